"""Large files of a tree: resumed, set aside and opened again, with holes, and closed when they are complete."""

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import Code, TransferFailed
from receiver.disk.descriptors import DescriptorPool
from receiver.disk.obstacles import Obstacle
from receiver.disk.paths import staging_key
from receiver.disk.staging.staging import Staging
from receiver.disk.staging.sweep import staged_keys
from receiver.tree import open_files, part_preparer
from receiver.tree.commit import committer
from receiver.tree.manifest.spool import Spool
from tests.support.peer import TreeSample
from tests.support.tree_receiver import (
    MTIME,
    C,
    Connection,
    TransferOf,
    failure,
    needed,
    sample,
    sample_of,
    two_large_files,
)


def test_a_large_file_is_resumed(tmp_path: Path, transfer_of: TransferOf) -> None:
    tree = sample()
    tree.add(b"t/large", bytes(range(200)))
    first = transfer_of(tree)
    first.offer()
    assert first.send(m.Segment(1, 0, C))
    assert first.send(m.Segment(1, 2 * C, C))
    transfer = transfer_of(tree)
    segments = (m.SegmentRange(1, 1, 1), m.SegmentRange(1, 3, 1))
    assert [m.Needed((), segments)] == transfer.offer()
    assert {0, 2} == {
        answer.first_segment for _ in range(2) for answer in transfer.rehashed() if isinstance(answer, m.Held)
    }
    assert transfer.send(m.Segment(1, C, C))
    assert transfer.send(m.Segment(1, 3 * C, 8))
    assert not (tmp_path / "t/large").exists()  # the sender may find that it has another chunk
    transfer.finish()
    assert bytes(range(200)) == (tmp_path / "t/large").read_bytes()
    assert transfer.counters.held_bytes == 128
    assert not (tmp_path / ".filestreamer").exists()


def leave_ledgers(path: Path, count: int) -> None:
    """Leave what looks like so many large files that were not finished."""
    for number in range(count):
        os.mknod(path / ".filestreamer" / f"{number:032x}.ledger")


def test_files_that_were_not_finished_take_little_memory(tmp_path: Path, transfer_of: TransferOf) -> None:
    tree = sample()
    tree.add(b"t/large", bytes(range(200)))
    transfer = transfer_of(tree)
    leave_ledgers(tmp_path, 20_000)
    tracemalloc.start()
    try:
        assert transfer.offer()
        used_bytes, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used_bytes < 32 * 20_000
    assert most_bytes < 96 * 20_000


def test_a_file_is_received_anew_where_memory_lacks_to_know_of_all(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = sample()
    tree.add(b"t/large", bytes(range(200)))
    first = transfer_of(tree)
    first.offer()
    assert first.send(m.Segment(1, 0, C))
    others = [f"{number:032x}" for number in range(10_000)]
    monkeypatch.setattr(part_preparer, "staged_keys", lambda place: [*others, *staged_keys(place)])
    transfer = transfer_of(tree, memory_bytes=5 << 18)
    assert transfer.offer() == [needed(1)]
    transfer.send_all()
    transfer.finish()
    assert bytes(range(200)) == (tmp_path / "t/large").read_bytes()


def test_a_large_file_is_closed_when_complete(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many large files there are, only those that are being received need descriptors."""
    monkeypatch.setattr(committer, "BATCH_FILES", 1)
    tree = sample()
    for at in range(100):
        tree.add(b"t/%d" % at, bytes(100))
    transfer = transfer_of(tree)
    transfer.offer()
    before = len(os.listdir("/proc/self/fd"))
    transfer.send_all()
    transfer.tree._committer.flush()
    assert before + 4 >= len(os.listdir("/proc/self/fd"))
    assert len(os.listdir(tmp_path / "t")) == 100
    transfer.finish()


def test_a_ledger_is_left_alone_when_its_file_is_complete(transfer_of: TransferOf) -> None:
    """A connection records a chunk after it has ended it: the file may be closed by then."""
    tree = sample()
    tree.add(b"t/large", bytes(100))
    transfer = transfer_of(tree)
    transfer.offer()
    (part,) = transfer.begin(m.Segment(1, 0, C))
    part.sink.write(memoryview(bytes(C)), 0)
    assert transfer.tree.chunks.end_chunk(
        transfer.connection, [part], [segment_digest(bytes(C))], [segment_digest(bytes(C))]
    )
    assert transfer.send(m.Segment(1, C, 36))
    transfer.tree._committer.flush()
    assert part.ledger is not None
    part.ledger.record([(0, segment_digest(bytes(C)))])
    transfer.finish()


def test_a_large_file_that_can_not_be_finished_behind_a_connection_that_leaves(
    tmp_path: Path, transfer_of: TransferOf
) -> None:
    """The file counts as received: the transfer has to fail, as it would be committed without the file otherwise."""
    tree = sample()
    tree.add(b"t/large", bytes(range(200)))
    transfer = transfer_of(tree)
    transfer.offer()
    assert transfer.send(m.Segment(1, 0, C))
    other = Connection(transfer)
    transfer.begin(m.Segment(1, 0, C), connection=other)  # it compares while the rest comes
    transfer.send_all()
    (data,) = (tmp_path / ".filestreamer").glob("*.data")
    os.truncate(data, 150)
    failure(Code.DESTINATION, transfer.tree.chunks.detach, other)
    assert [error.code for error in transfer.failures if isinstance(error, TransferFailed)] == [Code.DESTINATION]


def test_a_file_with_more_segments_than_the_memory_for_all(transfer_of: TransferOf) -> None:
    huge = sample()
    huge.entries.append(m.Entry(b"t/huge", m.EntryType.FILE, C * (1 << 23), 0o644, MTIME))
    transfer = transfer_of(huge, memory_bytes=64 << 20)
    failure(Code.TOO_LARGE, transfer.offer, m.ManifestPart(0, tuple(huge.entries), True))


def test_a_file_that_can_not_be_opened_on_a_disk_that_is_full(
    transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is noted of a declined file needs a little space. The memory of its table is given back once."""
    monkeypatch.setattr(open_files, "OWN_BYTES", 0)
    transfer = transfer_of(two_large_files(100))
    transfer.offer()
    monkeypatch.setattr(Staging, "open", failing(Obstacle(Code.DESTINATION, "it is in the way", "in the way")))
    monkeypatch.setattr(Spool, "reserve", failing(TransferFailed(Code.NO_SPACE, "the disk is full")))
    assert failure(Code.NO_SPACE, transfer.begin, m.Segment(1, 0, C)) == "the disk is full"


def failing(error: TransferFailed) -> Callable[..., None]:
    """Return what raises this error."""

    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


# ------------------------------------------------------------------------------------------------------------ set aside


def test_a_few_large_files_are_open_at_once(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other files are set aside between their chunks, and no chunk is sent again."""
    monkeypatch.setattr(open_files, "PLACES", DescriptorPool(2))
    large = sample()
    for at in range(20):
        large.add(b"t/%d" % at, os.urandom(200))
    transfer = transfer_of(large)
    transfer.offer()
    before = len(os.listdir("/proc/self/fd"))
    for segment in (0, 2, 1, 3):
        for at in range(20):
            assert transfer.send(m.Segment(1 + at, segment * C, min(C, 200 - segment * C)))
            assert len(os.listdir("/proc/self/fd")) <= before + 2 * 4 + 8, "descriptors follow the number of files"
    transfer.finish()
    assert (transfer.counters.held_bytes, transfer.counters.size_bytes) == (0, 4000)
    for at in range(20):
        assert (tmp_path / f"t/{at}").read_bytes() == large.contents[1 + at]


def test_a_large_file_is_set_aside_with_segments_that_are_not_recorded_yet(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_files, "PLACES", DescriptorPool(1))
    large = two_large_files(100)
    transfer = transfer_of(large)
    transfer.offer()
    (part,) = transfer.begin(m.Segment(1, 0, C))
    part.sink.write(memoryview(b"a" * C), 0)
    digest = segment_digest(b"a" * C)
    assert transfer.tree.chunks.end_chunk(transfer.connection, [part], [digest], [digest]) == [True]
    assert transfer.send(m.Segment(2, 0, C))
    assert part.ledger is not None
    part.ledger.record([(0, digest)])
    monkeypatch.setattr(open_files, "PLACES", DescriptorPool(8))
    again = transfer_of(sample_of(large))
    again.offer()
    told = again.rehashed() + again.rehashed()
    assert sorted(each.file_id for each in told if isinstance(each, m.Held)) == [1, 2]


def test_a_large_file_that_another_process_wrote_meanwhile(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_files, "PLACES", DescriptorPool(1))
    large = two_large_files(100)
    transfer = transfer_of(large)
    transfer.offer()
    assert transfer.send(m.Segment(1, 0, C))
    assert transfer.send(m.Segment(2, 0, C))
    (noted,) = [path for path in (tmp_path / ".filestreamer").glob("*.ledger") if path.stem == staging_key(b"t/a")]
    with noted.open("ab") as ledger:
        ledger.write(b"x")
    failure(Code.BUSY, transfer.begin, m.Segment(1, C, 100 - C))


def test_a_file_that_is_all_here_and_that_another_process_wrote_before_finish(
    tmp_path: Path, transfer_of: TransferOf
) -> None:
    """Its part is archived by then: the archive keeps the mark of the staging, too."""
    large = sample()
    large.add(b"t/large", bytes(range(200)))
    first = transfer_of(large)
    first.offer()
    for at in (0, C, 2 * C):
        assert first.send(m.Segment(1, at, C))
    transfer = transfer_of(sample_of(large))
    transfer.offer()
    while len(transfer.tree._large_files.open_files) and not transfer.tree.has_more:
        transfer.rehashed()
        transfer.send(m.Segment(1, 3 * C, 8))
    assert list(transfer.tree.more()) == []
    assert not transfer.tree._parts.active
    (data,) = (tmp_path / ".filestreamer").glob("*.data")
    (noted,) = (tmp_path / ".filestreamer").glob("*.ledger")
    data.write_bytes(b"x" * 200)
    with noted.open("ab") as ledger:
        ledger.write(b"x")
    assert "another process" in failure(Code.BUSY, transfer.tree.finish, large.finish)
    assert not (tmp_path / "t/large").exists()


# ---------------------------------------------------------------------------------------------------------------- holes


def test_holes_take_no_space_and_have_no_digest(tmp_path: Path, transfer_of: TransferOf) -> None:
    block = 4096
    tree = TreeSample(4 * block)
    tree.directory(b"t")
    content = bytearray(40 * block)
    content[5 * block : 6 * block] = b"x" * block
    content[39 * block :] = b"y" * block
    holes = ((0, 5 * block), (6 * block, 10 * block), (16 * block, 23 * block))
    tree.add(b"t/sparse", bytes(content), holes=holes)
    tree.add(b"t/small", bytes(2 * block) + b"z", holes=((block, block),))
    transfer = transfer_of(tree)
    assert [needed(1, 2)] == transfer.offer()
    transfer.send_all()
    transfer.finish()
    assert content == (tmp_path / "t/sparse").read_bytes()
    assert 2 * block == (tmp_path / "t/sparse").stat().st_blocks * 512
    assert 2 * block == (tmp_path / "t/small").stat().st_blocks * 512
    assert transfer.counters.zero_bytes == 32 * block


def test_what_an_earlier_run_left_in_a_hole_goes(tmp_path: Path, transfer_of: TransferOf) -> None:
    tree = sample()
    tree.add(b"t/f", b"x" * 200)
    first = transfer_of(tree)
    first.offer()
    assert first.send(m.Segment(1, 0, C))
    assert first.send(m.Segment(1, C, C))
    content = b"x" * 16 + bytes(144) + b"x" * 40
    tree.contents[1] = content
    tree.holes[1] = ((16, 144),)
    transfer = transfer_of(tree)
    transfer.offer()
    transfer.rehashed()
    transfer.send_all()
    transfer.finish()
    assert content == (tmp_path / "t/f").read_bytes()
