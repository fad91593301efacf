"""A single file that is there already: it is not sent again, and needs no second space."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from filestreamer.wire.limits import KIB, MIB
from tests.support.disks import disk, ext4_of_whole_seconds
from tests.support.services import Pair, same
from tests.support.staging import statuses
from tests.support.waiting import until

MTIME = 1_700_000_001_123_456_789


def send(pair: Pair, file: Path, *args: object, receiver: tuple[object, ...] = ()) -> dict[str, Any]:
    """Send a file to a receiver of its own, to the end; return the sender's result, which is also the receiver's."""
    there = pair.receiver("--once", *receiver)
    sent = pair.sender(file, pair.address(there), *args).succeeds()
    received = there.succeeds()
    for key in ("bytes", "files", "chunks", "root_digest", "unchecked_bytes", "held_bytes"):
        assert sent[key] == received[key], key
    return sent


@pytest.fixture(params=[MIB, 1000, 0], ids=["large", "small", "empty"])
def known(pair: Pair, request: pytest.FixtureRequest) -> Path:
    """Return a file that was sent."""
    file = pair.file("f", request.param)
    file.chmod(0o640)
    os.utime(file, ns=(MTIME, MTIME))
    assert send(pair, file, "--chunk-size", "64KiB")["sent_bytes"] == request.param
    return file


def in_place(pair: Pair, file: Path, inode: int) -> None:
    """Assert that the file that was there before is still there, as the source is."""
    there, status = (pair.destination / file.name).stat(), file.stat()
    assert there.st_ino == inode
    assert (there.st_mode, there.st_mtime_ns) == (status.st_mode, status.st_mtime_ns)
    assert same(file, pair.destination / file.name)
    assert pair.received() == [file.name]


def inode(pair: Pair) -> int:
    return (pair.destination / "f").stat().st_ino


@pytest.mark.parametrize("policy", [(), ("--no-replace",)], ids=["replaces", "no-replace"])
def test_by_size_and_mtime(pair: Pair, known: Path, policy: tuple[str, ...]) -> None:
    """Also where nothing may be replaced: nothing is."""
    before = inode(pair)
    known.chmod(0o600)
    sent = send(pair, known, "--chunk-size", "64KiB", receiver=policy)
    size = known.stat().st_size
    assert (sent["sent_bytes"], sent["unchecked_bytes"], sent["held_bytes"]) == (0, size, 0)
    in_place(pair, known, before)


@pytest.mark.parametrize("policy", [(), ("--no-replace",)], ids=["replaces", "no-replace"])
def test_by_its_bytes_whatever_its_mtime_is(pair: Pair, known: Path, policy: tuple[str, ...]) -> None:
    before = inode(pair)
    os.utime(pair.destination / "f", ns=(7, 7))
    (pair.destination / "f").chmod(0o400)
    sent = send(pair, known, "--chunk-size", "64KiB", "--checksum", receiver=policy)
    size = known.stat().st_size
    assert (sent["sent_bytes"], sent["unchecked_bytes"], sent["held_bytes"]) == (0, 0, size)
    in_place(pair, known, before)


def test_setuid_bits_of_both_stay(pair: Pair, known: Path) -> None:
    """As in a tree: a receiver that sets none takes none from a file that stays as it is."""
    there = pair.destination / "f"
    known.chmod(0o4750)
    there.chmod(0o4700)
    assert send(pair, known, "--chunk-size", "64KiB")["sent_bytes"] == 0
    assert there.stat().st_mode & 0o7777 == 0o4750


@pytest.mark.parametrize("at", [0, MIB // 2, MIB - 1])
@pytest.mark.parametrize("chunk_size", ["64KiB", "4MiB"])
def test_one_byte_that_differs_has_the_file_sent(pair: Pair, at: int, chunk_size: str) -> None:
    """Into staging: what is there is untouched until it is replaced."""
    file = pair.file("f", MIB)
    send(pair, file)
    there = pair.destination / "f"
    before, status = inode(pair), there.stat()
    with there.open("r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ 1]))
    os.utime(there, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert send(pair, file, "--chunk-size", chunk_size)["unchecked_bytes"] == MIB
    assert inode(pair) == before
    sent = send(pair, file, "--chunk-size", chunk_size, "--checksum", "--connections", 3)
    assert (sent["sent_bytes"], sent["held_bytes"]) == (MIB, 0)
    assert inode(pair) != before
    assert same(file, there)


def test_what_differs_is_not_replaced_where_that_is_forbidden(pair: Pair) -> None:
    file = pair.file("f", MIB)
    there = pair.destination / "f"
    there.write_bytes(bytes(MIB))
    receiver = pair.receiver("--no-replace")
    for args in ((), ("--checksum",)):
        message = pair.sender(file, pair.address(receiver), *args).fails(3, "exists", status="refused")
        assert "--no-replace" in message
    assert there.read_bytes() == bytes(MIB)


def test_the_file_of_a_receiver_that_names_it_itself(pair: Pair) -> None:
    file = pair.file("f", MIB)
    out = pair.destination / "out.bin"
    for unchecked_bytes in (0, MIB):
        receiver = pair.start("receiver", "--listen", "127.0.0.1:0", "--output-file", out)
        sent = pair.sender(file, pair.address(receiver)).succeeds()
        receiver.succeeds()
        assert (sent["unchecked_bytes"], sent["sent_bytes"]) == (unchecked_bytes, MIB - unchecked_bytes)


def test_what_an_interrupted_run_left_of_another_version_is_not_lost(pair: Pair) -> None:
    """A file of the same size stands under the final name: with --checksum, it is not compared in place of that."""
    file = pair.file("f", 4 * MIB)
    (pair.destination / "f").write_bytes(bytes(4 * MIB))
    receiver = pair.receiver("--once")
    args = ("--chunk-size", "64KiB", "--checksum", "--rate-limit", "4MiB/s")
    sender = pair.sender(file, pair.address(receiver), *args)
    receiver.wait_for("transfer_started")
    ledger_of = pair.destination / ".filestreamer"
    until(lambda: any(each.st_size > 2000 for each in statuses(ledger_of, "*.ledger")), "chunks in the ledger")
    sender.end()
    receiver.end()
    sent = send(pair, file, "--chunk-size", "64KiB", "--checksum")
    assert 0 < sent["held_bytes"] == 4 * MIB - sent["sent_bytes"]
    assert same(file, pair.destination / "f")


@pytest.mark.parametrize("args", [(), ("--checksum",)], ids=["size and mtime", "checksum"])
def test_there_need_not_be_room_for_two(pair: Pair, args: tuple[str, ...]) -> None:
    with disk(pair.destination, 12 * MIB):
        file = pair.file("f", 9 * MIB)
        for sent_bytes in (9 * MIB, 0):
            assert send(pair, file, *args)["sent_bytes"] == sent_bytes


@pytest.mark.parametrize(("count", "size", "connections"), [(150, 100_000, 1), (150, 100_000, 2), (3, 4_700_000, 1)])
def test_a_tree_that_has_changed_needs_room_for_some_of_it(pair: Pair, count: int, size: int, connections: int) -> None:
    """What each file replaces is free for the next ones, as for programs that write one file after the other."""
    with disk(pair.destination, 20 * MIB):
        for side in (pair.source, pair.destination):
            (side / "s").mkdir()
        for at in range(count):
            pair.file(f"s/{at}", size)
            (pair.destination / f"s/{at}").write_bytes(bytes(size - 1))
        send(pair, pair.source / "s", "--connections", connections, "--chunk-size", "256KiB")
        assert all(same(pair.source / f"s/{at}", pair.destination / f"s/{at}") for at in range(count))


# ---------------------------------------------------------------------------------------------- times that are not kept


@pytest.fixture
def coarse(pair: Pair) -> Iterator[Path]:
    """Have the destination on an ext4 with inodes of 128 bytes: times in whole seconds, up to 2038."""
    with ext4_of_whole_seconds(pair.destination) as mounted:
        yield mounted


TIMES = {
    "with nanoseconds": MTIME,
    "before 1970": -1_500_000_000,
    "after 2038": 4_000_000_000_123_456_789,
    "of a whole second": 1_700_000_000_000_000_000,
}


@pytest.mark.parametrize("mtime_ns", TIMES.values(), ids=TIMES.keys())
def test_a_file_is_known_by_what_the_destination_keeps_of_its_time(pair: Pair, coarse: Path, mtime_ns: int) -> None:
    file = pair.file("f", 100 * KIB)
    os.utime(file, ns=(mtime_ns, mtime_ns))
    assert [send(pair, file)["sent_bytes"] for _ in range(2)] == [100 * KIB, 0]
    os.utime(file, ns=(mtime_ns, mtime_ns - 2_000_000_000 if mtime_ns < 2**32 * 10**9 / 2 else 10**18))
    assert send(pair, file)["sent_bytes"] == 100 * KIB


@pytest.mark.parametrize("mtime_ns", TIMES.values(), ids=TIMES.keys())
def test_a_tree_is_known_by_what_the_destination_keeps_of_its_times(pair: Pair, coarse: Path, mtime_ns: int) -> None:
    tree = pair.source / "tree"
    tree.mkdir()
    for name, size in (("small", 100), ("large", 100 * KIB), ("empty", 0)):
        (tree / name).write_bytes(os.urandom(size))
        os.utime(tree / name, ns=(mtime_ns, mtime_ns))
    os.link(tree / "large", tree / "large too")
    sent = [send(pair, tree, "--chunk-size", "8KiB") for _ in range(2)]
    assert [each["sent_bytes"] for each in sent] == [100 * KIB + 100, 0]
    assert sent[1]["unchecked_bytes"] == 100 * KIB + 100


def test_files_with_equal_bytes_and_other_times_are_held_and_get_their_times(pair: Pair) -> None:
    tree = pair.source / "tree"
    tree.mkdir()
    for name, size in (("small", 100), ("large", 100 * KIB), ("empty", 0), ("differs", 100)):
        (tree / name).write_bytes(os.urandom(size))
        os.utime(tree / name, ns=(MTIME, MTIME))
    send(pair, tree, "--chunk-size", "8KiB")
    there = pair.destination / "tree"
    (there / "differs").write_bytes(bytes(100))
    for each in there.iterdir():
        os.utime(each, ns=(7, 7))
        each.chmod(0o600)
    inodes = {each.name: each.stat().st_ino for each in there.iterdir()}
    sent = send(pair, tree, "--chunk-size", "8KiB", "--checksum")
    assert (sent["sent_bytes"], sent["held_bytes"]) == (100, 100 * KIB + 100)
    for each in there.iterdir():
        assert same(each, tree / each.name)
        assert each.stat().st_mtime_ns == MTIME
        assert each.stat().st_mode == (tree / each.name).stat().st_mode
        assert (each.stat().st_ino == inodes[each.name]) == (each.name != "differs")
