"""The original's own test: files of the numbers 1..n, a line each, for n = 1..100, with its own config.json.

Both services take the file as it is, keys and all: 5 connections, chunks of 1 KiB. (The longest file has 292 bytes, so
the last test adds longer ones of the same kind.) A pair of processes for each of them is for `TEST_LARGE=1`; else the
files between those in PAIRS go to one receiver, from senders in the test's process.
"""

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import sending
from tests.support.services import Pair, Service, held_port

AT_ONCE = 4
ALL = range(1, 101)
PAIRS = ALL if "TEST_LARGE" in os.environ else (1, 2, 9, 10, 11, 50, 99, 100)


def numbers(n: int) -> bytes:
    """Make the original's file."""
    return b"".join(b"%d\n" % number for number in range(1, n + 1))


def write_config(directory: Path, address: str, *, source: Path = Path("in.txt")) -> Path:
    """Write the original's config.json for a pair that meets at this address."""
    config = directory / "config.json"
    values = {
        "ServerAddr": address,
        "InputFile": f"./{source}" if not source.is_absolute() else str(source),
        "ParallelPage": 5,
        "Chunk": 1024,
        "ClientAddr": address,
        "OutputFile": "./out.txt",
    }
    config.write_text(json.dumps(values))
    return config


def move(root: Path, n: int) -> bytes:
    """Move the file of n lines with a pair of services of its own; return what arrived."""
    directory = root / str(n)
    directory.mkdir()
    (directory / "in.txt").write_bytes(numbers(n))
    with held_port() as port:
        write_config(directory, f"127.0.0.1:{port}")
        services = [
            Service(command, "--config", "config.json", directory=directory, cwd=directory)
            for command in ("receiver", "sender")
        ]
        try:
            results = [service.succeeds() for service in services]
        finally:
            for service in services:
                service.end()
    assert [result["chunk_size"] for result in results] == [1024, 1024]
    assert all(result["connections"] <= 5 for result in results)
    return (directory / "out.txt").read_bytes()


def move_many(pair: Pair, several: Iterable[int]) -> dict[int, bytes]:
    """Move the files of so many lines to one receiver, by their own sender each; return what arrived."""
    address = pair.address(pair.receiver())
    arrived = {}
    for n in several:
        source = pair.source / f"{n}.txt"
        source.write_bytes(numbers(n))
        sent = sending.send("--config", write_config(pair.source, address, source=source))
        assert (sent.counters.chunk_size, sent.counters.moved_bytes) == (1024, len(numbers(n)))
        arrived[n] = (pair.destination / source.name).read_bytes()
    return arrived


def test_the_original_test(pair: Pair, tmp_path: Path) -> None:
    """100 of 100."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        arrived = dict(zip(PAIRS, pool.map(lambda n: move(tmp_path, n), PAIRS), strict=True))
    arrived |= move_many(pair, sorted(set(ALL) - set(PAIRS)))
    assert [n for n in ALL if arrived[n] != numbers(n)] == []


@pytest.mark.parametrize("n", [1000, 10_000, 100_000])
def test_longer_ones(tmp_path: Path, n: int) -> None:
    assert numbers(n) == move(tmp_path, n)
