"""A tree at the receiver, without sockets: what is listed, what is answered, what is there at the end."""

import errno
import itertools
import os
import threading
from pathlib import Path

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import Code
from receiver.disk.descriptors import PLACES
from receiver.disk.destination import Destination
from receiver.file.shared_file import File
from receiver.tree import part_preparer, tree_target
from receiver.tree.commit import committer
from receiver.tree.manifest import spool
from tests.support.peer import TreeSample
from tests.support.processes import own_descriptors
from tests.support.services import UNIT
from tests.support.tree_receiver import (
    C,
    TransferOf,
    failure,
    held,
    needed,
    sample,
    sample_of,
    staged,
)


def test_files_without_segments_may_lie_in_a_range(tmp_path: Path, transfer_of: TransferOf) -> None:
    tree = sample()
    tree.add(b"t/a", b"a")
    tree.add(b"t/b")
    tree.directory(b"t/c")
    tree.add(b"t/c/d", bytes(200))
    assert [needed(1, 2, 3, 4)] == transfer_of(tree).offer()
    assert (tmp_path / "t/b").read_bytes() == b""
    assert not (tmp_path / "t/a").exists()


def test_counts(transfer_of: TransferOf) -> None:
    tree = sample(part_entries=2)
    for at in range(5):
        tree.add(b"t/%d" % at, b"x" * (30 * at))
    transfer = transfer_of(tree)
    transfer.move()
    assert (
        transfer.counters.files,
        transfer.counters.size_bytes,
        transfer.counters.held_bytes,
        transfer.counters.unchecked_bytes,
    ) == (5, 300, 0, 0)
    assert transfer.counters.chunks == len(list(tree.segments()))


def test_a_name_at_the_top_is_held_until_it_is_in_place(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "BATCH_FILES", 1)
    tree = TreeSample(C)
    tree.directory(b"directory")
    tree.add(b"file", b"file")
    tree.add(b"large", b"large" * 100)
    tree.add(b"empty")
    tree.symlink(b"link", b"file")
    tree.add(b"first", b"first", hard_link_group=1)
    tree.add(b"second", b"first", hard_link_group=1)
    transfer = transfer_of(tree)
    transfer.offer()
    names = [entry.path for entry in tree.entries]
    assert {b"directory", b"file", b"large", b"first", b"second"} <= {
        name for name in names if name in transfer.top_level_names
    }
    assert b"link" not in transfer.top_level_names
    transfer.send_all()
    transfer.finish()
    assert [name for name in names if name in transfer.top_level_names] == [b"directory", b"first", b"second"]
    assert sorted(os.fsencode(name) for name in os.listdir(tmp_path) if name != ".filestreamer") == sorted(names)


def test_no_space_is_told_before_the_first_byte(transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Destination, "free_bytes", lambda _: 150)
    parts = sample(part_entries=2)
    parts.add(b"t/0", bytes(100))
    parts.add(b"t/sparse", bytes(1000), data_bytes=40)
    parts.add(b"t/1", bytes(100))
    transfer = transfer_of(parts)
    first, second = parts.parts
    transfer.offer(first)
    assert "150 bytes" in failure(Code.NO_SPACE, transfer.offer, second).replace("50 are", "150 bytes")


def test_what_files_replace_is_free_for_those_that_follow(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what can't fit in any order is refused; and nothing where a file system may store fewer bytes."""
    (tmp_path / "t").mkdir()
    for name in ("a", "b"):
        (tmp_path / "t" / name).write_bytes(bytes(8192))
    parts = sample()
    parts.add(b"t/a", bytes(9000))
    parts.add(b"t/b", bytes(9000))
    monkeypatch.setattr(Destination, "free_bytes", lambda _: 9807)  # 18000 less 8192, and one less than that
    failure(Code.NO_SPACE, transfer_of(parts).offer)
    monkeypatch.setattr(part_preparer, "stores_every_byte", lambda _: False)
    assert [needed(1, 2)] == transfer_of(parts).offer()
    monkeypatch.undo()
    monkeypatch.setattr(Destination, "free_bytes", lambda _: 9808)
    assert [needed(1, 2)] == transfer_of(parts).offer()


def test_what_files_of_one_part_replace_is_free_for_the_next_part(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t").mkdir()
    for name in ("a", "b"):
        (tmp_path / "t" / name).write_bytes(bytes(8192))
    parts = sample(part_entries=2)
    parts.add(b"t/a", bytes(9000))
    parts.add(b"t/b", bytes(9000))
    first, second = parts.parts
    free = 9807  # one byte less than in `test_what_files_replace_is_free_for_those_that_follow`
    monkeypatch.setattr(Destination, "free_bytes", lambda _: free)
    transfer = transfer_of(parts)
    assert [needed(1)] == transfer.offer(first)
    failure(Code.NO_SPACE, transfer.offer, second)
    free = 9808
    transfer = transfer_of(parts)
    assert [needed(1)] == transfer.offer(first)
    assert [needed(2)] == transfer.offer(second)
    transfer = transfer_of(parts)
    assert [needed(1)] == transfer.offer(first)
    # All of the first file has come, and is not in place yet.
    transfer.counters.add_connection(0).moved_bytes = 9000
    free = 808
    assert [needed(2)] == transfer.offer(second)


# ------------------------------------------------------------------------------------------------------------ withdrawn


def test_what_is_withdrawn_is_not_put_in_place(tmp_path: Path, transfer_of: TransferOf) -> None:
    tree = sample()
    for name in (b"a", b"b", b"c"):
        tree.add(b"t/" + name, name * 3)
    tree.add(b"t/large", bytes(range(200)))
    tree.add(b"t/f", b"f", hard_link_group=1)
    tree.add(b"t/g", b"f", hard_link_group=1)
    transfer = transfer_of(tree)
    transfer.offer()
    assert transfer.send(m.Segment(4, 0, C))
    changed = (m.Segment(1, 0, 3), m.Segment(2, 0, 3), m.Segment(3, 0, 3))
    assert not transfer.send(*changed, change=lambda payload: payload.replace(b"bbb", b"b\0\0"))
    transfer.tree.withdraw([2, 4, 5])
    transfer.tree.withdraw([2])
    tree.withdrawn = {2, 4, 5}
    assert not transfer.send(*changed, change=lambda payload: payload.replace(b"bbb", b"b\0\0"))
    transfer.send_all()
    transfer.finish()
    assert {"a", "c"} == set(os.listdir(tmp_path / "t"))
    assert (transfer.counters.files, transfer.counters.size_bytes) == (2 + 1, 6)
    assert not (tmp_path / ".filestreamer").exists()


def test_a_final_file_that_is_withdrawn_stays(tmp_path: Path, transfer_of: TransferOf) -> None:
    """The sender can't read its own file any more, so that it can't compare the digest."""
    tree = sample(checksum=True)
    tree.add(b"t/f", b"content")
    transfer_of(tree).move()
    transfer = transfer_of(tree)
    transfer.offer()
    transfer.rehashed()
    transfer.tree.withdraw([1])
    tree.withdrawn = {1}
    transfer.finish()
    assert (tmp_path / "t/f").read_bytes() == b"content"


def test_withdrawing_what_is_not_to_be_sent_is_refused(transfer_of: TransferOf) -> None:
    tree = sample()
    tree.add(b"t/empty")
    transfer = transfer_of(tree)
    transfer.offer()
    transfer.send_all()
    for file_id in (0, 1, 2, 1 << 60):
        failure(Code.PROTOCOL, transfer.tree.withdraw, [file_id])


def test_what_is_withdrawn_when_it_is_complete_stays(tmp_path: Path, transfer_of: TransferOf) -> None:
    """The sender missed the acknowledgement, and its file has changed since: the root digest leaves the file out."""
    tree = sample()
    small, large = tree.add(b"t/small", b"complete"), tree.add(b"t/large", bytes(range(200)))
    tree.add(b"t/other", b"other")
    transfer = transfer_of(tree)
    transfer.offer()
    transfer.send_all()
    transfer.tree.withdraw([small, large])
    tree.withdrawn = {small, large}
    transfer.finish()
    assert (tmp_path / "t/small").read_bytes() == b"complete"
    assert (tmp_path / "t/large").read_bytes() == bytes(range(200))
    assert (transfer.counters.files, transfer.counters.size_bytes) == (1, 5)


# --------------------------------------------------------------------------------------------------------- listed again


def test_parts_are_repeated(transfer_of: TransferOf) -> None:
    tree = sample(part_entries=3)
    for at in range(6):
        tree.add(b"t/%d" % at, b"%d" % at)
    tree.add(b"t/large", bytes(200))
    transfer = transfer_of(tree)
    transfer.offer()
    assert transfer.send(m.Segment(1, 0, 1))
    assert transfer.send(m.Segment(7, C, C))
    transfer.tree.rejoin()
    answers = transfer.offer()
    assert m.Held(0, 0, segment_digest(b"0"), files=(m.FileRange(1, 1),)) in answers
    assert m.Held(7, 1, segment_digest(bytes(C))) in answers
    assert m.Needed((m.FileRange(3, 3),), ()) in answers
    assert m.Needed((), (m.SegmentRange(7, 0, 1), m.SegmentRange(7, 2, 2))) in answers
    transfer.send_all()
    transfer.tree.rejoin()
    assert held(transfer.offer()).keys() == set(range(1, 8))
    transfer.finish()


def test_first_parts_may_be_left_out(transfer_of: TransferOf) -> None:
    tree = sample(part_entries=3)
    for at in range(8):
        tree.add(b"t/%d" % at, b"%d" % at)
    transfer = transfer_of(tree)
    first, second, third = tree.parts
    transfer.offer(first, second)
    transfer.tree.rejoin()
    assert [needed(3, 4, 5)] == transfer.offer(second)
    transfer.offer(third)
    transfer.send_all()
    transfer.finish()


def test_parts_that_are_not_known(transfer_of: TransferOf) -> None:
    tree = sample(part_entries=3)
    for at in range(8):
        tree.add(b"t/%d" % at, b"%d" % at)
    first, second, third = tree.parts
    transfer = transfer_of(tree)
    transfer.offer(first)
    failure(Code.PROTOCOL, transfer.offer, third)
    transfer.tree.rejoin()
    failure(Code.UNKNOWN_TRANSFER, transfer.offer, third)
    for other in (
        first._replace(entries=first.entries[:2]),
        first._replace(last=True),
        first._replace(entries=(*first.entries[:2], first.entries[2]._replace(mtime_ns=0))),
        first._replace(first_file_id=1),
    ):
        transfer.tree.rejoin()
        failure(Code.PROTOCOL, transfer.offer, other)
    transfer.tree.rejoin()
    transfer.offer(first, second, third)
    transfer.tree.rejoin()
    failure(Code.PROTOCOL, transfer.offer, m.ManifestPart(9, tree.parts[0].entries[1:], True))


def test_an_empty_last_part(transfer_of: TransferOf) -> None:
    tree = sample()
    tree.add(b"t/f", b"f")
    (part,) = tree.parts
    transfer = transfer_of(tree)
    transfer.offer(part._replace(last=False), m.ManifestPart(2, (), True))
    transfer.tree.rejoin()
    transfer.offer(m.ManifestPart(2, (), True))
    transfer.send_all()
    transfer.finish()


# ------------------------------------------------------------------------------------------------------ parts that wait


def test_parts_wait_unanswered_while_many_are_active(transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """That holds the sender back: it may have four unanswered parts."""
    monkeypatch.setattr(tree_target, "PARTS_ACTIVE", 2)
    parts = sample(part_entries=1)
    for at in range(5):
        parts.add(b"t/%d" % at, b"%d" % at)
    transfer = transfer_of(parts)
    assert [needed(1), needed(2)] == transfer.offer()
    assert list(transfer.tree.more()) == []
    transfer.tree.withdraw([4])
    assert transfer.send(m.Segment(1, 0, 1))
    assert transfer.nudges == 1
    assert [needed(3)] == list(transfer.tree.more())
    assert transfer.send(m.Segment(2, 0, 1))
    assert [needed(5)] == list(transfer.tree.more())
    parts.withdrawn = {4}
    assert transfer.send(m.Segment(3, 0, 1))
    assert transfer.send(m.Segment(5, 0, 1))
    transfer.finish()


def test_parts_that_wait_are_listed_again(transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_target, "PARTS_ACTIVE", 1)
    parts = sample(part_entries=2)
    parts.add(b"t/0", b"0")
    parts.add(b"t/1", b"1")
    parts.directory(b"t/d")
    transfer = transfer_of(parts)
    assert [needed(1)] == transfer.offer()
    transfer.tree.rejoin()
    assert [needed(1)] == transfer.offer()
    assert transfer.send(m.Segment(1, 0, 1))
    assert [needed(2, 3)] == list(transfer.tree.more())
    transfer.send_all()
    transfer.finish()


def test_finish_answers_parts_that_wait(
    transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The sender is told of files that are here, too, not only of missing ones."""
    parts = sample(part_entries=2)
    parts.add(b"t/0", b"0")
    parts.add(b"t/1", b"1")
    parts.directory(b"t/d")
    transfer_of(parts).move()
    monkeypatch.setattr(tree_target, "PARTS_ACTIVE", 0)
    transfer = transfer_of(parts)
    assert transfer.offer() == []
    monkeypatch.setattr(tree_target, "PARTS_ACTIVE", 64)
    told = list(transfer.tree.missing())
    assert told == [m.Held(1, 0, b"", (m.FileRange(1, 1),)), m.Held(2, 0, b"", (m.FileRange(2, 1),))]


def test_taking_up_a_part_never_waits_for_a_sync(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts wait while the committer is far behind, and are taken up when it no longer is."""
    synced = threading.Event()
    monkeypatch.setattr(committer, "sync_file_system", lambda _: synced.wait(UNIT))
    monkeypatch.setattr(committer, "BACKLOG_BATCHES", 0)
    monkeypatch.setattr(committer, "BATCH_FILES", 1)
    (tmp_path / "t").mkdir()
    tree = sample(part_entries=2)
    for at in range(5):
        (tmp_path / f"t/{at}").write_bytes(b"another")
        tree.add(b"t/%d" % at)
    tree.add(b"t/full", b"full")
    transfer = transfer_of(tree)
    assert transfer.offer() == []
    assert (tmp_path / "t/4").read_bytes() == b"another"
    synced.set()
    told = list(transfer.tree.missing())
    assert told == [needed(6)]
    transfer.send_all()
    transfer.finish()
    assert [(tmp_path / f"t/{at}").read_bytes() for at in range(5)] == [b""] * 5


# -------------------------------------------------------------------------------------------------------------- the end


def test_finish_says_what_is_missing(transfer_of: TransferOf) -> None:
    tree = sample()
    tree.add(b"t/a", b"a")
    tree.add(b"t/b", bytes(200))
    tree.add(b"t/c", b"c")
    transfer = transfer_of(tree)
    transfer.offer()
    assert transfer.send(m.Segment(2, C, C))
    (part,) = transfer.begin(m.Segment(3, 0, 1))
    missing = list(transfer.tree.missing())
    assert m.Needed((m.FileRange(1, 1), m.FileRange(3, 1)), ()) in missing
    assert m.Needed((), (m.SegmentRange(2, 0, 1), m.SegmentRange(2, 2, 2))) in missing
    transfer.tree.chunks.detach(transfer.connection)
    assert part.write
    transfer.send_all()
    transfer.finish()


def test_a_finish_that_is_wrong(transfer_of: TransferOf) -> None:
    tree = sample()
    tree.add(b"t/f", b"f")
    for wrong in (m.Finish(2, tree.finish.root_digest), m.Finish(1, bytes(16))):
        transfer = transfer_of(tree)
        transfer.offer()
        if not tree.unchecked:
            transfer.send_all()
            tree.unchecked = {1}
        failure(Code.DIGEST, transfer.tree.finish, wrong)


def test_what_is_complete_is_put_in_place_however_it_ends(tmp_path: Path, transfer_of: TransferOf) -> None:
    tree = sample()
    tree.add(b"t/a", b"a")
    tree.add(b"t/b", b"b" * 65)
    tree.add(b"t/c", b"c")
    tree.add(b"t/d", b"d" * 65)
    transfer = transfer_of(tree)
    transfer.offer()
    for segment in (m.Segment(1, 0, 1), m.Segment(2, 0, C), m.Segment(2, C, 1), m.Segment(4, 0, C)):
        assert transfer.send(segment)
    transfer.begin(m.Segment(3, 0, 1))[0].sink.write(memoryview(b"c"), 0)
    transfer.connection.stop(1)
    transfer_of(sample())  # the next transfer
    assert {"a", "b"} == set(os.listdir(tmp_path / "t"))
    assert [os.path.splitext(name)[1] for name in staged(tmp_path)] == [".data", ".ledger"]  # for the next run


def test_whatever_fails_at_the_end_the_other_descriptors_are_closed(
    transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a network file system, close(2) may be the call that reports a failed write."""
    tree = sample()
    for at in range(3):
        tree.add(b"t/%d" % at, bytes(200))
    before = len(own_descriptors())
    transfer = transfer_of(tree)
    transfer.offer()
    for at in range(3):
        assert transfer.send(m.Segment(1 + at, 0, C))
    close = File.close

    def fail(file: File) -> None:
        close(file)
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(File, "close", fail)
    with pytest.raises(OSError, match="quota"):
        transfer.tree.close(cleanly=True)
    assert len(own_descriptors()) == before + 1  # the destination's
    assert transfer.tree._large_files.open_files not in PLACES._held


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_tree_that_finds_no_descriptor_leaves_none(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    tree = sample()
    tree.add(b"t/f", b"f")
    transfer = transfer_of(tree)
    before = len(own_descriptors())
    opened = itertools.count()
    open_spool, start = spool._open_unnamed, threading.Thread.start

    def open_unnamed(directory_fd: int) -> int:
        if next(opened) == which:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return open_spool(directory_fd)

    def start_thread(thread: threading.Thread) -> None:
        if thread.name == "place":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(spool, "_open_unnamed", open_unnamed)
    monkeypatch.setattr(threading.Thread, "start", start_thread)
    other = sample_of(tree)
    other.entries = [entry._replace(path=b"other" + entry.path[1:]) for entry in other.entries]
    for _ in range(5):
        opened = itertools.count()
        failure(Code.LIMIT, transfer.another, other)
    assert len(own_descriptors()) == before
    assert len(os.listdir(tmp_path / ".filestreamer")) == 1
