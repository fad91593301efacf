"""Chunks of a tree: what may be sent, what is written, and what is only compared."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import Code
from receiver.file import file_share
from receiver.tree.part_table import COPIES
from tests.support.tree_receiver import C, Connection, TransferOf, failure, held, sample, two_large_files


def test_an_existing_file_stays_until_all_is_there(tmp_path: Path, transfer_of: TransferOf) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t/f").write_bytes(b"before")
    tree = sample()
    tree.add(b"t/f", b"x" * 100)
    transfer = transfer_of(tree)
    transfer.offer()
    assert transfer.send(m.Segment(1, 0, 64))
    assert (tmp_path / "t/f").read_bytes() == b"before"
    assert transfer.send(m.Segment(1, 64, 36))
    transfer.finish()
    assert (tmp_path / "t/f").read_bytes() == b"x" * 100


def test_segments_that_are_none(transfer_of: TransferOf) -> None:
    tree = sample(part_entries=4)
    tree.add(b"t/small", b"small")
    tree.add(b"t/large", bytes(200))
    tree.add(b"t/empty")
    tree.add(b"t/other part", b"x")
    transfer = transfer_of(tree)
    transfer.offer()
    for segments in (
        (m.Segment(0, 0, 1),),
        (m.Segment(1, 0, 4),),
        (m.Segment(1, 1, 5),),
        (m.Segment(2, 1, C),),
        (m.Segment(2, 0, 200),),
        (m.Segment(3, 0, 1),),
        (m.Segment(9, 0, 1),),
        (m.Segment(1, 0, 5), m.Segment(4, 0, 1)),
        (m.Segment(1, 0, 5), m.Segment(1, 0, 5)),
        (m.Segment(2, 0, C), m.Segment(2, 0, C)),
    ):
        failure(Code.PROTOCOL, transfer.begin, *segments)
        transfer.tree.chunks.detach(transfer.connection)
    transfer.send_all()
    transfer.finish()


def test_a_chunk_that_was_told_as_zeros_is_refused(transfer_of: TransferOf) -> None:
    tree = sample()
    tree.add(b"t/f", bytes(200))
    transfer = transfer_of(tree)
    transfer.offer()
    told = m.Zeros((m.SegmentRange(1, 0, 1),))
    assert list(transfer.tree.take_zeros(told)) == [told]
    failure(Code.PROTOCOL, transfer.begin, m.Segment(1, 0, C))


def test_zeros_are_taken_in_pieces(tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of all runs of a file of the most segments would take more memory than was borrowed for it."""
    monkeypatch.setattr(file_share, "ZEROS_AT_ONCE", 2)
    tree = sample()
    tree.add(b"t/f", bytes(5 * C), holes=((0, 5 * C),))
    transfer = transfer_of(tree)
    transfer.offer()
    for told in ((1, 1, 1), (1, 3, 1), (1, 0, 5), (1, 0, 5)):
        list(transfer.tree.take_zeros(m.Zeros((m.SegmentRange(*told),))))
    assert transfer.counters.zero_bytes == 5 * C
    transfer.finish()
    assert (tmp_path / "t/f").read_bytes() == bytes(5 * C)


def test_a_segment_of_a_declined_file_has_a_digest_or_is_told_as_zeros(tmp_path: Path, transfer_of: TransferOf) -> None:
    tree = sample()
    tree.add(b"t/f", bytes(3 * C))
    (tmp_path / "t/f").mkdir(parents=True)
    transfer = transfer_of(tree)
    transfer.offer()
    assert transfer.send(m.Segment(1, 0, C))
    failure(Code.PROTOCOL, list, transfer.tree.take_zeros(m.Zeros((m.SegmentRange(1, 0, 2),))))
    list(transfer.tree.take_zeros(m.Zeros((m.SegmentRange(1, 2, 1),))))
    failure(Code.PROTOCOL, transfer.send, m.Segment(1, 2 * C, C))


def test_a_segment_of_a_large_file_is_alone_in_its_chunk(transfer_of: TransferOf) -> None:
    """Otherwise one chunk could have a thousand files open."""
    large = two_large_files(70)
    transfer = transfer_of(large)
    transfer.offer()
    failure(Code.PROTOCOL, transfer.begin, m.Segment(1, C, 6), m.Segment(2, C, 6))


def test_what_comes_after_finish_is_refused(transfer_of: TransferOf) -> None:
    tree = sample(checksum=True)
    tree.add(b"t/f", b"f")
    transfer_of(tree).move()
    transfer = transfer_of(tree)
    transfer.offer()
    transfer.rehashed()
    transfer.finish()
    failure(Code.PROTOCOL, transfer.begin, m.Segment(1, 0, 1))


def test_a_file_that_another_connection_writes(transfer_of: TransferOf) -> None:
    """The older connection is stopped before the newer one writes."""
    tree = sample()
    tree.add(b"t/small", b"small")
    tree.add(b"t/large", bytes(200))
    transfer = transfer_of(tree)
    transfer.offer()
    for segment in (m.Segment(1, 0, 5), m.Segment(2, 0, C)):
        older = Connection(transfer)
        transfer.begin(segment, connection=older)
        assert transfer.send(segment)
        assert older.was_stopped
    transfer.send_all()
    transfer.finish()


def test_a_chunk_of_a_file_that_is_complete_is_compared(transfer_of: TransferOf) -> None:
    """As an acknowledgement was lost: the same bytes are acknowledged again, different ones are not."""
    tree = sample()
    tree.add(b"t/large", bytes(range(200)))
    tree.add(b"t/small", b"small")
    transfer = transfer_of(tree)
    transfer.offer()
    transfer.send_all()
    for segment in (m.Segment(1, C, C), m.Segment(2, 0, 5)):
        assert transfer.send(segment)
        assert not transfer.send(segment, change=lambda payload: payload[::-1])
        assert not transfer.send(segment, digest=bytes(16))
        other = segment_digest(tree.payload(segment)[::-1])
        assert not transfer.send(segment, change=lambda payload: payload[::-1], digest=other)
    transfer.finish()


def test_a_second_delivery_of_what_is_archived(transfer_of: TransferOf) -> None:
    tree = sample(part_entries=3)
    tree.add(b"t/small", b"small")
    tree.add(b"t/large", bytes(range(100)))
    transfer = transfer_of(tree)
    transfer.offer()
    transfer.send_all()
    list(transfer.tree.more())
    assert transfer.tree._parts.active == []
    for segment in (m.Segment(1, 0, 5), m.Segment(2, C, 36), m.Segment(2, 0, C)):
        assert transfer.send(segment)
        assert not transfer.send(segment, change=lambda payload: bytes(len(payload)), digest=segment_digest(b"other"))
    transfer.tree.rejoin()
    assert [m.Held] * 2 == [type(each) for each in transfer.offer()]
    transfer.finish()


def test_a_file_that_was_held_under_its_final_name_is_sent_after_all(tmp_path: Path, transfer_of: TransferOf) -> None:
    """The sender found that the file differs; its part was archived by then."""
    tree = sample(checksum=True)
    tree.add(b"t/small", b"small")
    tree.add(b"t/large", bytes(range(100)))
    transfer_of(tree).move()
    transfer = transfer_of(tree)
    transfer.offer()
    assert held(transfer.rehashed()).keys() == {1, 2}
    list(transfer.tree.more())
    assert transfer.tree._parts.active == []
    tree.contents[1], tree.contents[2] = b"SMALL", bytes(reversed(range(100)))
    transfer.send_all()
    transfer.finish()
    assert (tmp_path / "t/small").read_bytes() == b"SMALL"
    assert (tmp_path / "t/large").read_bytes() == bytes(reversed(range(100)))


def test_two_files_of_an_archived_part_are_sent_after_all(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the connection of the first waits for memory, the second one comes, and the part is archived again."""
    tree = sample(checksum=True, part_entries=3)
    for at in range(20):
        tree.add(b"t/%d" % at, b"before")
    transfer_of(tree).move()
    transfer = transfer_of(tree)
    transfer.offer()
    while transfer.tree._parts.active:
        transfer.rehashed()
        list(transfer.tree.more())
    borrow = transfer._account.borrow

    def wait(count: int, patience: Callable[[], None]) -> None:
        monkeypatch.undo()
        for number in range(1, COPIES + 1):  # other parts are looked at: the copy of the first is dropped
            transfer.tree._parts.get(number)
        assert transfer.send(m.Segment(2, 0, 6), connection=Connection(transfer))
        list(transfer.tree.more())
        borrow(count, patience)

    monkeypatch.setattr(transfer._account, "borrow", wait)
    tree.contents[1] = tree.contents[2] = b"after!"
    assert transfer.send(m.Segment(1, 0, 6))
    transfer.finish()
    assert [(tmp_path / f"t/{at}").read_bytes() for at in range(3)] == [b"after!", b"after!", b"before"]


def test_withdrawn_while_it_is_written(tmp_path: Path, transfer_of: TransferOf) -> None:
    tree = sample()
    tree.add(b"t/small", b"small")
    tree.add(b"t/large", bytes(range(200)))
    transfer = transfer_of(tree)
    transfer.offer()
    small = transfer.begin(m.Segment(1, 0, 5))
    large = transfer.begin(m.Segment(2, 0, C), connection=Connection(transfer))
    small[0].sink.write(memoryview(b"sm"), 0)
    transfer.tree.withdraw([1, 2])
    tree.withdrawn = {1, 2}
    small[0].sink.write(memoryview(b"all"), 2)
    large[0].sink.write(memoryview(bytes(C)), 0)
    bad = transfer.tree.chunks.end_chunk(transfer.connection, small, [bytes(16)], [segment_digest(b"small")])
    assert bad == [False]
    transfer.tree.chunks.detach(Connection(transfer))
    transfer.tree.chunks.detach(next(iter([large[0].ledger.file.chunk_states.writer(0)])))
    transfer.finish()
    assert os.listdir(tmp_path / "t") == []
    assert not (tmp_path / ".filestreamer").exists()
