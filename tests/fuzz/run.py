"""Fuzz both ends' decoders, openings and sessions, for as long as is wanted.

    python -m tests.fuzz.run --cases 5000000 --seed 7      # decoders, sessions, openings, ledgers, names
    python -m tests.fuzz.run --seed 7 --first 41 --cases 1 # one of them again, as a failure names it
    python -m tests.fuzz.run --live 20000 --seed 7         # a real receiver process, while real transfers run
    python -m tests.fuzz.run --live-senders 2000 --seed 7  # real senders against a hostile receiver

A case is its number and the seed: each run is the same run. Exit 0: everything was accepted, or ended in one of the
listed errors (tests/fuzz/targets.py), and memory stayed bounded. Exit 1 names what was found, and how to see it again.
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests.fuzz.targets import Found, run_case, tls_context
from tests.support.processes import forget_peak, peak_bytes, resident_bytes

BLOCK_CASES = 10_000
GROWTH_BYTES = 96 << 20
"""How far a process may grow: the largest ledgers of the corpus make tables of some 40 MB, and nothing may stay."""
FINDINGS_MAX = 20


class Block(NamedTuple):
    """What became of a run of cases."""

    cases: int
    ends: Counter[tuple[str, str]]
    """How many cases of a target ended how."""
    found: list[str]
    grown_bytes: int


def run_block(seed: int, first: int, cases: int) -> Block:
    """Run the cases [first, first + cases) in this process."""
    rng = Random()
    ends: Counter[tuple[str, str]] = Counter()
    found: list[str] = []
    run_case(0, 0, rng)  # what is loaded once is no growth
    tls_context()
    forget_peak(os.getpid())
    before = resident_bytes(os.getpid())
    for number in range(first, first + cases):
        try:
            ends[run_case(seed, number, rng)] += 1
        except Found as finding:
            ends["found", type(finding.__cause__).__name__] += 1
            if len(found) < FINDINGS_MAX:
                found.append(str(finding))
    return Block(cases, ends, found, peak_bytes(os.getpid()) - before)


def blocks(seed: int, first: int, cases: int, workers: int) -> Iterator[Block]:
    """Run cases in worker processes; yield each block as it is done."""
    if cases <= BLOCK_CASES or workers == 1:
        for start in range(first, first + cases, BLOCK_CASES):
            yield run_block(seed, start, min(BLOCK_CASES, first + cases - start))
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        starts = range(first, first + cases, BLOCK_CASES)
        running = [pool.submit(run_block, seed, start, min(BLOCK_CASES, first + cases - start)) for start in starts]
        for done in concurrent.futures.as_completed(running):
            yield done.result()


def fuzz(seed: int, first: int, cases: int, workers: int) -> int:
    """Run cases and tell about them; return the exit code."""
    ends: Counter[tuple[str, str]] = Counter()
    found: list[str] = []
    most_grown = done = 0
    begun = told = time.monotonic()
    for block in blocks(seed, first, cases, workers):
        ends += block.ends
        found += block.found
        done += block.cases
        most_grown = max(most_grown, block.grown_bytes)
        if time.monotonic() - told > 30:
            told = time.monotonic()
            print(f"{done} of {cases} cases, {len(found)} findings", flush=True)
    for (target, end), count in sorted(ends.items()):
        print(f"{target:20} {end:20} {count}")
    seconds = time.monotonic() - begun
    print(f"{done} cases of seed {seed} in {seconds:.0f} s; a process grew by at most {most_grown >> 20} MiB")
    for text in found[:FINDINGS_MAX]:
        print(f"FOUND: {text}")
    if most_grown > GROWTH_BYTES:
        print(f"FOUND: memory grew by more than {GROWTH_BYTES >> 20} MiB")
    return int(bool(found) or most_grown > GROWTH_BYTES)


def fuzz_live(seed: int, first: int, receivers: int, senders: int) -> int:
    """Run live fuzz and tell about it; return the exit code."""
    from tests.fuzz.live import against_receiver, against_senders

    try:
        with tempfile.TemporaryDirectory() as directory:
            if receivers:
                print(against_receiver(Path(directory), seed, first, receivers))
            if senders:
                print(against_senders(Path(directory), seed, first, senders))
    except AssertionError as finding:
        print(f"FOUND: {finding}")
        return 1
    return 0


def main() -> int:
    """Run the command."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1_000_000, help="how many cases [1000000]")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other cases [0]")
    parser.add_argument("--first", type=int, default=0, help="number of the first case [0]")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes [one a core]")
    parser.add_argument("--live", type=int, default=0, metavar="N", help="N connections to a real receiver instead")
    parser.add_argument("--live-senders", type=int, default=0, metavar="N", help="N real senders instead")
    args = parser.parse_args()
    if args.live or args.live_senders:
        return fuzz_live(args.seed, args.first, args.live, args.live_senders)
    return fuzz(args.seed, args.first, args.cases, args.workers)


if __name__ == "__main__":
    sys.exit(main())
