"""The pair beside its peers, on the same data, interleaved, every copy compared: `make bench`.

    make bench                                  every case that this machine can run
    make bench ARGS="large --rounds 3"          one case
    make bench ARGS="large --only cp,rsync"     the pair and those

Prints a table for each case, and saves the figures of each round in build/bench.
"""

import argparse
import filecmp
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.bench import contestants as c
from tests.bench.link import LINKS, Link, link
from wire.limits import GIB, KIB, MIB

OUTPUT: Final = Path("build/bench")


class Case(NamedTuple):
    """Some contestants on one file; the first of them is what the others are compared with."""

    title: str
    contestants: tuple[c.Contestant, ...]
    size: int
    directory: str = "/dev/shm"
    over: Link | None = None
    """A long link between two network namespaces; None is loopback."""


def cases(disk: str) -> dict[str, Case]:
    """Return every case by name."""
    peers = (c.CP, c.SOCAT, c.GRIDFTP, c.GRIDFTP_4, c.RSYNC, c.RCLONE, c.IPERF3)
    found = {
        "large": Case("4 GiB, RAM disk to RAM disk", (c.filestreamer(), *peers), 4 * GIB),
        "disk": Case("4 GiB on disk", (c.filestreamer(), *peers[:-1]), 4 * GIB, disk),
        "start": Case("1 KiB: what starting costs", (c.filestreamer(), c.CP, c.SOCAT, c.GRIDFTP, c.RSYNC), KIB),
        "connections": Case(
            "2 GiB by number of connections",
            tuple(c.filestreamer("--connections", n, name=f"--connections {n}") for n in ("auto", 1, 2, 4, 8, 16, 64)),
            2 * GIB,
        ),
        "chunks": Case(
            "1 GiB by chunk size",
            tuple(
                c.filestreamer("--chunk-size", size, name=f"--chunk-size {size}")
                for size in ("4MiB", "64KiB", "256KiB", "1MiB", "16MiB", "64MiB")
            ),
            GIB,
        ),
        "small-chunks": Case(
            "200 MB in chunks of 1 KiB, 5 connections",
            (c.filestreamer("--chunk-size", "1KiB", "--connections", 5), c.CP),
            200_000_000,
        ),
    }
    for name, each in LINKS.items():
        pairs = tuple(c.filestreamer("--connections", n, name=f"--connections {n}") for n in ("auto", 1, 4, 8, 16))
        found[f"link-{name}"] = Case(f"1 GiB over {each}", (*pairs, c.SOCAT, c.IPERF3), GIB, over=each)
    return found


def main() -> None:
    """Measure the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="*", help="which; default: all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="parts of peers' names, with commas between; default: all")
    parser.add_argument("--size", type=int, help="bytes of the file, instead of the case's")
    parser.add_argument("--disk", default=tempfile.gettempdir(), help="a directory on disk")
    settings = parser.parse_args()
    every = cases(settings.disk)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for name in settings.case or every:
        case = every[name]
        wanted = [part for part in settings.only.split(",") if part]
        running = [
            each
            for at, each in enumerate(case.contestants)
            if each.is_there and (at == 0 or not wanted or any(part in each.name for part in wanted))
        ]
        measure(name, case._replace(contestants=tuple(running), size=settings.size or case.size), settings.rounds)


def measure(name: str, case: Case, rounds: int) -> None:
    """Run a case, print its table, and save both."""
    root = Path(tempfile.mkdtemp(dir=case.directory, prefix="filestreamer-bench-"))
    runs: dict[str, list[c.Run]] = {each.name: [] for each in case.contestants}
    try:
        source = root / "source"
        fill(source, case.size)
        with link(case.over) as place:
            for number in range(rounds):
                for each in rotated(case.contestants, number):
                    target = root / "target"
                    runs[each.name].append(each.run(place, source, target))
                    if target.exists():
                        assert filecmp.cmp(source, target, shallow=False), f"{each.name}: the copy differs"
                        target.unlink()
    finally:
        shutil.rmtree(root)
    lines = list(table(case, runs))
    sys.stdout.write(f"\n{case.title} ({rounds} interleaved rounds, medians)\n" + "\n".join(lines) + "\n")
    saved: dict[str, Any] = {
        "case": name,
        "title": case.title,
        "bytes": case.size,
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
        "runs": {who: [run._asdict() for run in took] for who, took in runs.items()},
    }
    (OUTPUT / f"{name}.json").write_text(json.dumps(saved, indent=1) + "\n")


def fill(path: Path, size: int) -> None:
    """Write a file that no compression makes smaller."""
    block = os.urandom(16 * MIB)
    with path.open("wb") as file:
        for at in range(0, size, len(block)):
            file.write(block[: min(len(block), size - at)])


def rotated(contestants: tuple[c.Contestant, ...], number: int) -> tuple[c.Contestant, ...]:
    """Begin each round with another one."""
    at = number % len(contestants)
    return contestants[at:] + contestants[:at]


def table(case: Case, runs: dict[str, list[c.Run]]) -> Iterator[str]:
    """Yield a table in Markdown: rates, how they compare with the first contestant's, what they cost."""
    ours = runs[case.contestants[0].name]
    yield "| | ms | MB/s | least to most | ratio | CPU s/GiB | peak MiB | verified |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
    for each in case.contestants:
        took = runs[each.name]
        rates = sorted(case.size / run.seconds / 1e6 for run in took)
        ratio = statistics.median(mine.seconds / run.seconds for mine, run in zip(ours, took, strict=True))
        cpu_seconds = statistics.median(run.cpu_seconds for run in took) * GIB / case.size
        peak = max(run.peak_bytes for run in took) / MIB
        spread = f"{rates[0]:.0f} to {rates[-1]:.0f}"
        milliseconds = 1000 * statistics.median(run.seconds for run in took)
        verified = "yes" if each.verifies else "no"
        yield (
            f"| {each.name} | {milliseconds:.0f} | {statistics.median(rates):.0f} | {spread} | {ratio:.2f}"
            f" | {cpu_seconds:.2f} | {peak:.0f} | {verified} |"
        )


if __name__ == "__main__":
    main()
