"""The original's own test: files of the numbers 1..n, a line each, for n = 1..100, with its own config.json.

Both services take the file as it is, keys and all: 5 connections, chunks of 1 KiB. (The longest file has 292 bytes, so
the last test adds longer ones of the same kind.)
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.services import UNIT, Service, held_port

AT_ONCE = 4


def numbers(n: int) -> bytes:
    """Make the original's file."""
    return b"".join(b"%d\n" % number for number in range(1, n + 1))


def move(root: Path, n: int) -> bytes:
    """Move the file of n lines with a pair of services of its own; return what arrived."""
    directory = root / str(n)
    directory.mkdir()
    (directory / "in.txt").write_bytes(numbers(n))
    config = directory / "config.json"
    with held_port() as port:
        config.write_text(
            json.dumps(
                {
                    "ServerAddr": f"127.0.0.1:{port}",
                    "InputFile": "./in.txt",
                    "ParallelPage": 5,
                    "Chunk": 1024,
                    "ClientAddr": f"127.0.0.1:{port}",
                    "OutputFile": "./out.txt",
                }
            )
        )
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


@pytest.mark.timeout(20 * UNIT)
def test_the_original_test(tmp_path: Path) -> None:
    """100 of 100."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        arrived = dict(zip(range(1, 101), pool.map(lambda n: move(tmp_path, n), range(1, 101)), strict=True))
    assert [n for n in range(1, 101) if arrived[n] != numbers(n)] == []


@pytest.mark.parametrize("n", [1000, 10_000, 100_000])
def test_longer_ones(tmp_path: Path, n: int) -> None:
    assert numbers(n) == move(tmp_path, n)
