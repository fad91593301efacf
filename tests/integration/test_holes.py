"""Sparse files arrive as they are: the same bytes, as few of them on the disk, and the zeros of holes never sent."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.digests import root_digest
from filestreamer.wire.errors import Code
from tests.support import trees
from tests.support.peer import RawReceiver, read_chunk
from tests.support.services import Pair, same
from tests.support.staging import statuses
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
    until(lambda: any(each.st_size > 200 for each in statuses(staging, "*.ledger")), "a few chunks in the ledger")
    sender.process.kill()
    sender.process.wait()
    make(file, 16 * MIB, [(5 * MIB + 1000, 10_000)])
    sent = pair.sender(file, pair.address(receiver), "--chunk-size", "1MiB").succeeds()
    check(file, pair.destination / "f")
    assert sent["sent_bytes"] <= stored_bytes(file)


# ----------------------------------------------------------------------------------------------- meanwhile


def keeping_mtime(path: Path, change: Callable[[int], object]) -> None:
    """Change an open file so that only its ctime tells."""
    status = path.stat()
    with path.open("r+b") as file:
        change(file.fileno())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("kind", ["file", "tree"])
@pytest.mark.parametrize("gets_bytes", [False, True], ids=["nothing", "a byte"])
def test_a_file_is_touched_when_its_hole_was_told(pair: Pair, kind: str, gets_bytes: bool) -> None:
    """The mtime is the same again: only looking at the hole anew shows whether it is one."""
    source = pair.source / "t"
    source.mkdir()
    file = make(source / "f", 8 * MIB, [(4 * MIB, 4 * MIB)])
    receiver = pair.receiver()
    args = ("--chunk-size", "256KiB", "--connections", 1, "--rate-limit", "1MiB/s")
    sender = pair.sender(file if kind == "file" else source, pair.address(receiver), *args)
    staging = pair.destination / ".filestreamer"
    until(lambda: any(each.st_size > 100 for each in statuses(staging, "*.ledger")), "chunks behind the hole")
    if gets_bytes:
        keeping_mtime(file, lambda fd: os.pwrite(fd, b"x", 1_000_000))
    else:
        keeping_mtime(file, lambda fd: os.fchmod(fd, 0o600))
    if kind == "file" and gets_bytes:
        assert str(file) in sender.fails(4, "source_changed")
        assert not (pair.destination / "f").exists()
    else:
        sender.succeeds()
        check(file, pair.destination / ("f" if kind == "file" else "t/f"))


@pytest.mark.parametrize("gets_bytes", [False, True], ids=["nothing", "a byte"])
def test_a_file_of_nothing_but_zeros_is_touched_when_they_were_told(pair: Pair, gets_bytes: bool) -> None:
    """No byte of it was read: it is looked at again all the same, before Finish."""
    file = make(pair.source / "f", 4 * MIB, [])
    zeros = m.Zeros((m.SegmentRange(0, 0, 4),))
    with RawReceiver() as receiver:
        sender = pair.sender(file, receiver.address, "--chunk-size", "1MiB", "--connections", 1)
        control, _ = receiver.needs(4)
        assert control.expect(m.Zeros) == zeros
        if gets_bytes:
            keeping_mtime(file, lambda fd: os.pwrite(fd, b"x", 3 * MIB))
        else:
            file.chmod(0o600)
        control.send(zeros)
        if gets_bytes:
            assert control.expect(m.Abort).code is Code.SOURCE_CHANGED
            control.close()
            sender.fails(4, "source_changed")
        else:
            assert control.expect(m.Finish) == m.Finish(4, root_digest([]))
            control.send(m.Complete(True))
            control.end_writing()
            sender.succeeds()


@pytest.mark.parametrize("arrived", [False, True], ids=["lost", "arrived"])
def test_control_is_lost_when_zeros_were_told(pair: Pair, arrived: bool) -> None:
    """They are told again, unless the receiver says that it knows."""
    file = make(pair.source / "f", 4 * MIB, [])
    zeros = m.Zeros((m.SegmentRange(0, 0, 4),))
    with RawReceiver() as receiver:
        sender = pair.sender(file, receiver.address, "--chunk-size", "1MiB", "--connections", 1)
        control, _ = receiver.needs(4)
        assert control.expect(m.Zeros) == zeros
        control.close()
        control, _, _ = receiver.control()
        if not arrived:
            control.send(m.Needed((), (m.SegmentRange(0, 0, 4),)))
            assert control.expect(m.Zeros) == zeros
        control.send(zeros)
        said = control.read()
        while said == zeros or isinstance(said, m.Progress):  # it may have been told before it said that it knows
            said = control.read()
        assert said == m.Finish(4, root_digest([]))
        control.send(m.Complete(True))
        control.end_writing()
        sender.succeeds()


def test_a_file_is_declined_when_its_zeros_were_told(pair: Pair) -> None:
    """What is not moved counts neither with its bytes nor with its zeros."""
    tree = trees.write(pair.source / "tree" / "a", b"small").parent
    make(tree / "sparse", 4 * MIB, [(3 * MIB, MIB)])
    zeros = m.Zeros((m.SegmentRange(2, 0, 3),))
    with RawReceiver() as receiver:
        sender = pair.sender(tree, receiver.address, "--chunk-size", "1MiB", "--connections", 1)
        control, _ = receiver.tree()
        control.send(m.Needed((m.FileRange(1, 2),), ()))
        data, _ = receiver.welcome(m.Role.DATA)
        chunk = read_chunk(data)
        assert control.expect(m.Zeros) == zeros
        control.send(zeros, m.Declined((m.DeclinedEntry(2, m.SkipKind.DECLINED, "it is too large", b"tree/sparse"),)))
        assert control.expect(m.Withdrawn).file_ids == (2,)
        data.send(m.ChunkAck(m.Verdict.OK, (chunk.chunk_id,)))
        control.finish()
        control.send(m.Complete(True))
        control.end_writing()
        assert sender.falls_short()["bytes"] == len(b"small")


@pytest.mark.parametrize("kind", ["file", "tree"])
def test_a_receiver_is_killed_between_zeros_and_bytes(pair: Pair, kind: str) -> None:
    """No ledger has the zeros: the next one is told them again, also where it finds other bytes on its disk."""
    source = pair.source / "t"
    source.mkdir()
    data = [(2 * MIB, 3 * MIB), (7 * MIB, 5)]
    file = make(source / "f", 10 * MIB, data)
    receiver = pair.receiver()
    address = pair.address(receiver)
    args = ("--chunk-size", "256KiB", "--connections", 2, "--rate-limit", "1MiB/s")
    sender = pair.sender(file if kind == "file" else source, address, *args)
    staging = pair.destination / ".filestreamer"
    until(lambda: any(each.st_size > 100 for each in statuses(staging, "*.ledger")), "a few chunks in the ledger")
    receiver.process.kill()
    receiver.process.wait()
    (staged,) = staging.glob("*.data")
    with staged.open("r+b") as opened:
        os.pwrite(opened.fileno(), b"x" * MIB, 0)
    receiver = pair.receiver(listen=address)
    sent = sender.succeeds()
    check(file, pair.destination / ("f" if kind == "file" else "t/f"))
    assert sent["sent_bytes"] < 5 * MIB  # the 3 MiB of data, and again what was under way
    receiver.end()
