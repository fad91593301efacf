"""Chunks of a tree: what may be sent, what is written, and what is only compared."""

import os
from pathlib import Path

from filestreamer.wire import messages as m
from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import Code
from tests.support.tree_receiver import C, Connection, Make, failure, sample, two_large_files


def test_an_existing_file_stays_until_all_is_there(tmp_path: Path, moving: Make) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t/f").write_bytes(b"before")
    tree = sample()
    tree.add(b"t/f", b"x" * 100)
    it = moving(tree)
    it.offer()
    assert it.send(m.Segment(1, 0, 64))
    assert (tmp_path / "t/f").read_bytes() == b"before"
    assert it.send(m.Segment(1, 64, 36))
    it.finish()
    assert (tmp_path / "t/f").read_bytes() == b"x" * 100


def test_segments_that_are_none(moving: Make) -> None:
    tree = sample(part_entries=4)
    tree.add(b"t/small", b"small")
    tree.add(b"t/large", bytes(200))
    tree.add(b"t/empty")
    tree.add(b"t/other part", b"x")
    it = moving(tree)
    it.offer()
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
        failure(Code.PROTOCOL, it.begin, *segments)
        it.tree.chunks.detach(it.connection)
    it.send_all()
    it.finish()


def test_a_chunk_in_a_hole_is_refused(moving: Make) -> None:
    tree = sample()
    tree.add(b"t/f", bytes(200), holes=(m.Hole(0, C),))
    tree.add(b"t/g", bytes(C), holes=(m.Hole(0, C),))
    it = moving(tree)
    it.offer()
    failure(Code.PROTOCOL, it.begin, m.Segment(1, 0, C))
    failure(Code.PROTOCOL, it.begin, m.Segment(2, 0, C))


def test_a_segment_of_a_large_file_is_alone_in_its_chunk(moving: Make) -> None:
    """Else one chunk could have a thousand files open."""
    large = two_large_files(70)
    it = moving(large)
    it.offer()
    failure(Code.PROTOCOL, it.begin, m.Segment(1, C, 6), m.Segment(2, C, 6))


def test_what_comes_after_finish_is_refused(moving: Make) -> None:
    tree = sample(checksum=True)
    tree.add(b"t/f", b"f")
    moving(tree).move()
    it = moving(tree)
    it.offer()
    it.rehashed()
    it.finish()
    failure(Code.PROTOCOL, it.begin, m.Segment(1, 0, 1))


def test_a_file_that_another_connection_writes(moving: Make) -> None:
    """The older one has left it before the newer one writes."""
    tree = sample()
    tree.add(b"t/small", b"small")
    tree.add(b"t/large", bytes(200))
    it = moving(tree)
    it.offer()
    for segment in (m.Segment(1, 0, 5), m.Segment(2, 0, C)):
        older = Connection(it)
        it.begin(segment, connection=older)
        assert it.send(segment)
        assert older.was_ended
    it.send_all()
    it.finish()


def test_a_chunk_of_a_file_that_is_complete_is_compared(moving: Make) -> None:
    """The acknowledgement was lost: the same bytes are acknowledged again, others are not."""
    tree = sample()
    tree.add(b"t/large", bytes(range(200)))
    tree.add(b"t/small", b"small")
    it = moving(tree)
    it.offer()
    it.send_all()
    for segment in (m.Segment(1, C, C), m.Segment(2, 0, 5)):
        assert it.send(segment)
        assert not it.send(segment, change=lambda payload: payload[::-1])
        assert not it.send(segment, digest=bytes(16))
        other = segment_digest(tree.payload(segment)[::-1])
        assert not it.send(segment, change=lambda payload: payload[::-1], digest=other)
    it.finish()


def test_a_second_delivery_of_what_is_archived(moving: Make) -> None:
    tree = sample(part_entries=3)
    tree.add(b"t/small", b"small")
    tree.add(b"t/large", bytes(range(100)))
    it = moving(tree)
    it.offer()
    it.send_all()
    list(it.tree.more())
    assert it.tree._parts.active == []
    for segment in (m.Segment(1, 0, 5), m.Segment(2, C, 36), m.Segment(2, 0, C)):
        assert it.send(segment)
        assert not it.send(segment, change=lambda payload: bytes(len(payload)), digest=segment_digest(b"other"))
    it.tree.rejoin()
    assert [m.Held] * 2 == [type(each) for each in it.offer()]
    it.finish()


def test_a_file_that_was_held_where_it_lies_is_sent_after_all(tmp_path: Path, moving: Make) -> None:
    """The sender found that it differs; its part was archived by then."""
    tree = sample(checksum=True)
    tree.add(b"t/small", b"small")
    tree.add(b"t/large", bytes(range(100)))
    moving(tree).move()
    it = moving(tree)
    it.offer()
    assert {1, 2} == {each.file_id for each in it.rehashed() if isinstance(each, m.Held)}
    list(it.tree.more())
    assert it.tree._parts.active == []
    tree.contents[1], tree.contents[2] = b"SMALL", bytes(reversed(range(100)))
    it.send_all()
    it.finish()
    assert (tmp_path / "t/small").read_bytes() == b"SMALL"
    assert (tmp_path / "t/large").read_bytes() == bytes(reversed(range(100)))


def test_withdrawn_while_it_is_written(tmp_path: Path, moving: Make) -> None:
    tree = sample()
    tree.add(b"t/small", b"small")
    tree.add(b"t/large", bytes(range(200)))
    it = moving(tree)
    it.offer()
    small = it.begin(m.Segment(1, 0, 5))
    large = it.begin(m.Segment(2, 0, C), connection=Connection(it))
    small[0].sink.write(memoryview(b"sm"), 0)
    it.tree.withdraw([1, 2])
    tree.withdrawn = {1, 2}
    small[0].sink.write(memoryview(b"all"), 2)
    large[0].sink.write(memoryview(bytes(C)), 0)
    assert not it.tree.chunks.end_chunk(it.connection, small, [bytes(16)], [segment_digest(b"small")])
    it.tree.chunks.detach(Connection(it))
    it.tree.chunks.detach(next(iter([large[0].sink.file.chunk_states.writer(0)])))
    it.finish()
    assert os.listdir(tmp_path / "t") == []
    assert not (tmp_path / ".filestreamer").exists()
