"""Large files of a tree: resumed, set aside and opened again, with holes, and closed when they are complete."""

import os
from pathlib import Path

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import Code, TransferFailed
from receiver.disk.descriptors import DescriptorPool
from receiver.disk.store import Staging
from receiver.tree import open_files
from receiver.tree.commit import committer
from tests.support.peer import TreeSample
from tests.support.tree_receiver import MTIME, C, Connection, Make, failure, needed, sample, sample_of, two_large_files


def test_a_large_file_is_resumed(tmp_path: Path, moving: Make) -> None:
    tree = sample()
    tree.add(b"t/large", bytes(range(200)))
    first = moving(tree)
    first.offer()
    assert first.send(m.Segment(1, 0, C))
    assert first.send(m.Segment(1, 2 * C, C))
    it = moving(tree)
    segments = (m.SegmentRange(1, 1, 1), m.SegmentRange(1, 3, 1))
    assert [m.Needed((), segments)] == it.offer()
    assert {0, 2} == {answer.first_segment for _ in range(2) for answer in it.rehashed() if isinstance(answer, m.Held)}
    assert it.send(m.Segment(1, C, C))
    assert it.send(m.Segment(1, 3 * C, 8))
    assert not (tmp_path / "t/large").exists()  # the sender may find that it has another chunk
    it.finish()
    assert bytes(range(200)) == (tmp_path / "t/large").read_bytes()
    assert it.counters.held_bytes == 128
    assert not (tmp_path / ".filestreamer").exists()


def test_a_large_file_is_closed_when_complete(tmp_path: Path, moving: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand of them need no more descriptors than those that are under way."""
    monkeypatch.setattr(committer, "BATCH_FILES", 1)
    tree = sample()
    for at in range(100):
        tree.add(b"t/%d" % at, bytes(100))
    it = moving(tree)
    it.offer()
    before = len(os.listdir("/proc/self/fd"))
    it.send_all()
    it.tree._committer.flush()
    assert before + 4 >= len(os.listdir("/proc/self/fd"))
    assert len(os.listdir(tmp_path / "t")) == 100
    it.finish()


def test_a_ledger_is_left_alone_when_its_file_is_complete(moving: Make) -> None:
    """A connection acknowledges later than it delivers: the file may be closed by then."""
    tree = sample()
    tree.add(b"t/large", bytes(100))
    it = moving(tree)
    it.offer()
    (part,) = it.begin(m.Segment(1, 0, C))
    part.sink.write(memoryview(bytes(C)), 0)
    assert it.tree.chunks.end_chunk(it.connection, [part], [segment_digest(bytes(C))], [segment_digest(bytes(C))])
    assert it.send(m.Segment(1, C, 36))
    it.tree._committer.flush()
    part.sink.record([(0, segment_digest(bytes(C)))])
    it.finish()


def test_a_large_file_that_can_not_be_finished_behind_a_connection_that_leaves(tmp_path: Path, moving: Make) -> None:
    """It counts as received: the transfer ends, as it would be committed without that file."""
    tree = sample()
    tree.add(b"t/large", bytes(range(200)))
    it = moving(tree)
    it.offer()
    assert it.send(m.Segment(1, 0, C))
    other = Connection(it)
    it.begin(m.Segment(1, 0, C), connection=other)  # it compares while the rest comes
    it.send_all()
    (data,) = (tmp_path / ".filestreamer").glob("*.data")
    os.truncate(data, 150)
    failure(Code.DESTINATION, it.tree.chunks.detach, other)
    assert [error.code for error in it.failures if isinstance(error, TransferFailed)] == [Code.DESTINATION]


def test_a_file_with_more_segments_than_the_memory_for_all(moving: Make) -> None:
    huge = sample()
    huge.entries.append(m.Entry(b"t/huge", m.EntryType.FILE, C * (1 << 23), 0o644, MTIME))
    it = moving(huge, memory_bytes=64 << 20)
    failure(Code.TOO_LARGE, it.offer, m.ManifestPart(0, tuple(huge.entries), True))


# ------------------------------------------------------------------------------------------------------------ set aside


def test_a_few_large_files_are_open_at_once(tmp_path: Path, moving: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are set aside between their chunks, and none of them is sent again."""
    monkeypatch.setattr(open_files, "PLACES", DescriptorPool(2))
    large = sample()
    for at in range(20):
        large.add(b"t/%d" % at, os.urandom(200))
    it = moving(large)
    it.offer()
    before = len(os.listdir("/proc/self/fd"))
    for segment in (0, 2, 1, 3):
        for at in range(20):
            assert it.send(m.Segment(1 + at, segment * C, min(C, 200 - segment * C)))
            assert len(os.listdir("/proc/self/fd")) <= before + 2 * 4 + 8, "descriptors follow the number of files"
    it.finish()
    assert (it.counters.held_bytes, it.counters.size_bytes) == (0, 4000)
    for at in range(20):
        assert (tmp_path / f"t/{at}").read_bytes() == large.contents[1 + at]


def test_a_large_file_is_set_aside_with_what_no_ledger_notes_yet(
    tmp_path: Path, moving: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_files, "PLACES", DescriptorPool(1))
    large = two_large_files(100)
    it = moving(large)
    it.offer()
    (part,) = it.begin(m.Segment(1, 0, C))
    part.sink.write(memoryview(b"a" * C), 0)
    digest = segment_digest(b"a" * C)
    assert it.tree.chunks.end_chunk(it.connection, [part], [digest], [digest])
    assert it.send(m.Segment(2, 0, C))
    part.sink.ledger_writer.record([(0, part.sink.ledger_writer.digest(0))])
    monkeypatch.setattr(open_files, "PLACES", DescriptorPool(8))
    again = moving(sample_of(large))
    again.offer()
    told = again.rehashed() + again.rehashed()
    assert sorted(each.file_id for each in told if isinstance(each, m.Held)) == [1, 2]


def test_a_large_file_that_another_process_wrote_meanwhile(
    tmp_path: Path, moving: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_files, "PLACES", DescriptorPool(1))
    large = two_large_files(100)
    it = moving(large)
    it.offer()
    assert it.send(m.Segment(1, 0, C))
    assert it.send(m.Segment(2, 0, C))
    (noted,) = [path for path in (tmp_path / ".filestreamer").glob("*.ledger") if path.stem == Staging.key(b"t/a")]
    with noted.open("ab") as ledger:
        ledger.write(b"x")
    failure(Code.BUSY, it.begin, m.Segment(1, C, 100 - C))


def test_a_file_that_is_all_here_and_that_another_process_wrote_before_finish(tmp_path: Path, moving: Make) -> None:
    """Its part of the manifest is in the archive by then: what tells the staging apart is there, too."""
    large = sample()
    large.add(b"t/large", bytes(range(200)))
    first = moving(large)
    first.offer()
    for at in (0, C, 2 * C):
        assert first.send(m.Segment(1, at, C))
    it = moving(sample_of(large))
    it.offer()
    while len(it.tree._large_files.open_files) and not it.tree.has_more:
        it.rehashed()
        it.send(m.Segment(1, 3 * C, 8))
    assert list(it.tree.more()) == []
    assert not it.tree._parts.active
    (data,) = (tmp_path / ".filestreamer").glob("*.data")
    (noted,) = (tmp_path / ".filestreamer").glob("*.ledger")
    data.write_bytes(b"x" * 200)
    with noted.open("ab") as ledger:
        ledger.write(b"x")
    assert "another process" in failure(Code.BUSY, it.tree.finish, large.finish)
    assert not (tmp_path / "t/large").exists()


# ---------------------------------------------------------------------------------------------------------------- holes


def test_holes_take_no_space_and_have_no_digest(tmp_path: Path, moving: Make) -> None:
    block = 4096
    tree = TreeSample(4 * block)
    tree.directory(b"t")
    content = bytearray(40 * block)
    content[5 * block : 6 * block] = b"x" * block
    content[39 * block :] = b"y" * block
    holes = (m.Hole(0, 5 * block), m.Hole(6 * block, 10 * block), m.Hole(16 * block, 23 * block))
    tree.add(b"t/sparse", bytes(content), holes=holes)
    tree.add(b"t/small", bytes(2 * block) + b"z", holes=(m.Hole(block, block),))
    it = moving(tree)
    assert [needed(1, 2)] == it.offer()
    it.send_all()
    it.finish()
    assert content == (tmp_path / "t/sparse").read_bytes()
    assert 2 * block == (tmp_path / "t/sparse").stat().st_blocks * 512
    assert 2 * block == (tmp_path / "t/small").stat().st_blocks * 512
    assert 8 * block + 2 * block + 1 == it.counters.size_bytes


def test_what_an_earlier_run_left_in_a_hole_goes(tmp_path: Path, moving: Make) -> None:
    tree = sample()
    tree.add(b"t/f", b"x" * 200)
    first = moving(tree)
    first.offer()
    assert first.send(m.Segment(1, 0, C))
    assert first.send(m.Segment(1, C, C))
    content = b"x" * 16 + bytes(144) + b"x" * 40
    tree.contents[1] = content
    tree.entries[1] = tree.entries[1]._replace(holes=(m.Hole(16, 144),))
    it = moving(tree)
    it.offer()
    assert it.send(m.Segment(1, 0, C))
    assert it.send(m.Segment(1, 2 * C, C))
    assert it.send(m.Segment(1, 3 * C, 8))
    it.finish()
    assert content == (tmp_path / "t/f").read_bytes()
