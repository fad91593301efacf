"""Sparse files arrive as they are: the same bytes, as few of them on the disk, and the zeros of holes never sent."""

import os
from pathlib import Path
from typing import Final

import pytest

from tests.support.services import Pair, same
from tests.support.waiting import until

KIB: Final = 1 << 10
MIB: Final = 1 << 20

Data = list[tuple[int, int]]

FILES: Final[dict[str, tuple[int, Data]]] = {
    "no hole": (3 * MIB, [(0, 3 * MIB)]),
    "one hole": (3 * MIB + 5, []),
    "one hole, small": (5000, []),
    "leading": (3 * MIB, [(3 * MIB - 70_000, 70_000)]),
    "trailing": (3 * MIB + 7, [(0, 70_000)]),
    "inner": (9 * MIB, [(0, MIB), (5 * MIB + 5, MIB)]),
    "many": (12 * MIB, [(at * 12 * KIB, 4 * KIB) for at in range(1000)]),
    "at odd places": (9 * MIB + 3, [(at * 1_000_003, 1234) for at in range(9)]),
    "small": (40 * KIB, [(0, 5), (30 * KIB, 7)]),
}
"""Files of a size, with data at these places."""


def make(path: Path, size: int, data: Data) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for at, length in data:
            os.pwrite(file.fileno(), os.urandom(length), at)
    return path


def stored_bytes(path: Path) -> int:
    return path.stat().st_blocks * 512


def check(source: Path, arrived: Path) -> None:
    assert same(source, arrived)
    # Up to a block at each end of a hole, where the file systems have blocks of other sizes.
    assert stored_bytes(arrived) <= stored_bytes(source) + 64 * KIB


@pytest.mark.parametrize("chunk_size", ["1MiB", "1000003"], ids=["1 MiB", "odd"])
def test_each_as_a_file_and_all_as_a_tree(pair: Pair, chunk_size: str) -> None:
    receiver = pair.receiver()
    tree = pair.source / "tree"
    tree.mkdir()
    stored = 0
    for name, (size, data) in FILES.items():
        file = make(tree / name, size, data)
        stored += stored_bytes(file)
        sent = pair.sender(file, pair.address(receiver), "--chunk-size", chunk_size).succeeds()
        check(file, pair.destination / name)
        assert sent["sent_bytes"] == sent["bytes"] <= stored_bytes(file)
    sent = pair.sender(tree, pair.address(receiver), "--chunk-size", chunk_size).succeeds()
    assert sent["sent_bytes"] == sent["bytes"] <= stored
    for name in FILES:
        check(tree / name, pair.destination / "tree" / name)
    again = pair.sender(tree, pair.address(receiver), "--chunk-size", chunk_size, "--checksum").succeeds()
    assert (again["sent_bytes"], again["held_bytes"]) == (0, sum(size for size, _ in FILES.values()))


@pytest.mark.parametrize("name", ["one hole", "inner", "many"])
def test_in_shards(pair: Pair, name: str) -> None:
    """Each shard tells the zeros of its own share; the receiver is killed before the last one, and knows them again."""
    file = make(pair.source / "f", *FILES[name])
    receiver = pair.receiver()
    for index in range(3):
        if index == 2:
            receiver.process.kill()
            receiver.process.wait()
            receiver = pair.receiver()
        sender = pair.sender(file, pair.address(receiver), "--shard", f"{index}/3", "--chunk-size", "1MiB")
        assert sender.wait() == 0
        assert sender.result["committed"] is (index == 2)
    check(file, pair.destination / "f")


def test_a_disk_image_of_64_gib(pair: Pair) -> None:
    """Its holes cost messages by range, not by segment; what it takes is what it stores."""
    size = 64 << 30
    file = make(pair.source / "f", size, [(0, 1), (size // 2 + 12345, MIB), (size - 1, 1)])
    receiver = pair.receiver()
    sent = pair.sender(file, pair.address(receiver), "--chunk-size", "1MiB").succeeds()
    arrived = pair.destination / "f"
    assert arrived.stat().st_size == size
    assert stored_bytes(arrived) <= stored_bytes(file) + 64 * KIB
    assert sent["chunks"] == 64 << 10
    assert sent["sent_bytes"] <= stored_bytes(file)
    for at in (0, size // 2, size - MIB):
        with file.open("rb") as expected, arrived.open("rb") as found:
            assert os.pread(expected.fileno(), 2 * MIB, at) == os.pread(found.fileno(), 2 * MIB, at)


def test_data_that_was_staged_where_a_hole_is_now(pair: Pair) -> None:
    """An earlier run was killed with other bytes there; a later source has a hole."""
    file = make(pair.source / "f", 16 * MIB, [(0, 16 * MIB)])
    receiver = pair.receiver()
    sender = pair.sender(file, pair.address(receiver), "--chunk-size", "1MiB", "--rate-limit", "8MiB/s")
    staging = pair.destination / ".filestreamer"
    until(lambda: any(each.stat().st_size > 200 for each in staging.glob("*.ledger")), "a few chunks in the ledger")
    sender.process.kill()
    sender.process.wait()
    make(file, 16 * MIB, [(5 * MIB + 1000, 10_000)])
    sent = pair.sender(file, pair.address(receiver), "--chunk-size", "1MiB").succeeds()
    check(file, pair.destination / "f")
    assert sent["sent_bytes"] <= stored_bytes(file)
