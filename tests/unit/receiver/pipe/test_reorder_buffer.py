"""Chunks that come in any order are passed on in order, as far as the window reaches."""

import functools
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.digests import root_digest, segment_digest
from filestreamer.wire.errors import Code, FilestreamerError, RemoteProtocolError, TransferFailed
from receiver.file.chunk_states import Delivery
from receiver.file.target import IncomingSegment
from receiver.pipe.reorder_buffer import ReorderBuffer
from receiver.pipe.window import SLOTS_MOST
from tests.support.services import HANG
from tests.support.waiting import until

CHUNK = 1000
SLOTS = 4


class Pipe:
    """Keeps what is passed on; takes nothing while it is closed, and fails if it is told to."""

    path = "a pipe"

    def __init__(self) -> None:
        self.content = b""
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Semaphore(0)
        self.error: TransferFailed | None = None

    def write(self, view: memoryview) -> None:
        self.entered.release()
        assert self.open.wait(HANG)
        if self.error is not None:
            raise self.error
        self.content += view

    def finish(self, size: int) -> None:
        assert size == len(self.content)


class Connection:
    """Brings chunks."""

    connection_id = 7
    is_ended = False

    def acknowledge(self) -> None:
        """Nothing is gathered."""

    def stop(self, seconds: float) -> bool:
        return seconds > 0


class Bench:
    """A buffer that passes on, and what it told."""

    def __init__(self, size: int | None = None) -> None:
        self.pipe = Pipe()
        self.buffer = ReorderBuffer(self.pipe, size, CHUNK, SLOTS * CHUNK + 1)
        self.failures: list[FilestreamerError] = []
        self.failed = threading.Event()
        self.acknowledged: list[int] = []
        self.connection = Connection()
        self.buffer.start(self._fail)

    def _fail(self, error: FilestreamerError) -> None:
        self.failures.append(error)
        self.failed.set()

    def begin(self, position: int, content: bytes, by: Connection | None = None) -> Delivery:
        turn, _ = self.buffer.begin(position, len(content), by or self.connection)
        if turn is Delivery.WRITE:
            self.buffer.write(memoryview(content), position * CHUNK)
        return turn

    def deliver(self, position: int, content: bytes, digest: bytes | None = None) -> bool:
        computed = segment_digest(content)
        if not self.end(position, computed if digest is None else digest, computed):
            return False
        self.buffer.when_passed_on(position, self.connection, lambda: self.acknowledged.append(position))
        return True

    def end(self, position: int, digest: bytes, computed: bytes, by: Connection | None = None) -> bool:
        segment = IncomingSegment(self.buffer, position, m.Segment(0, position * CHUNK, CHUNK), True)
        return all(self.buffer.end_chunk(by or self.connection, [segment], [digest], [computed]))

    def bring(self, position: int, content: bytes) -> Delivery:
        turn = self.begin(position, content)
        assert self.deliver(position, content)
        return turn

    def until_acknowledged(self, *positions: int) -> None:
        until(lambda: len(self.acknowledged) >= len(positions), "the chunks are acknowledged")
        assert self.acknowledged == list(positions)


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Return a buffer for a stream."""
    made = Bench()
    yield made
    made.pipe.open.set()
    assert made.buffer.stop(HANG)


def chunk(position: int, length: int = CHUNK) -> bytes:
    return bytes([65 + position]) * length


def finish(*contents: bytes) -> m.Finish:
    return m.Finish(len(contents), root_digest(map(segment_digest, contents)), sum(map(len, contents)))


def test_what_comes_early_waits_for_its_turn(bench: Bench) -> None:
    for position in (2, 1, 3):
        assert bench.bring(position, chunk(position)) is Delivery.WRITE
    assert (bench.buffer.passed, bench.acknowledged, bench.buffer.has_begun) == (0, [], False)
    bench.bring(0, chunk(0))
    bench.until_acknowledged(0, 1, 2, 3)
    assert bench.pipe.content == b"".join(map(chunk, range(4)))


def test_acknowledged_is_what_was_taken(bench: Bench) -> None:
    bench.pipe.open.clear()
    bench.bring(0, chunk(0))
    bench.bring(1, chunk(1))
    assert bench.pipe.entered.acquire(timeout=HANG)
    assert (bench.acknowledged, bench.buffer.passed, bench.buffer.has_begun) == ([], 0, True)
    bench.pipe.open.set()
    bench.until_acknowledged(0, 1)


def test_a_reader_that_takes_nothing_is_waited_for_and_that_is_seen(bench: Bench) -> None:
    assert not bench.buffer.is_waiting
    bench.pipe.open.clear()
    bench.bring(0, chunk(0))
    until(lambda: bench.buffer.is_waiting, "the output is so far")
    assert bench.buffer.writing_seconds > 1
    bench.pipe.open.set()
    bench.until_acknowledged(0)
    assert not bench.buffer.is_waiting


def test_nothing_beyond_the_window_is_taken(bench: Bench) -> None:
    bench.begin(SLOTS - 1, chunk(0))
    with pytest.raises(RemoteProtocolError, match="outside of the window"):
        bench.begin(SLOTS, chunk(0))
    bench.bring(0, chunk(0))
    bench.until_acknowledged(0)
    bench.begin(SLOTS, chunk(0))


def test_a_damaged_chunk_is_neither_passed_on_nor_kept(bench: Bench) -> None:
    bench.begin(0, chunk(1))
    assert not bench.deliver(0, chunk(1), segment_digest(chunk(0)))
    assert bench.bring(0, chunk(0)) is Delivery.WRITE
    bench.until_acknowledged(0)
    assert bench.pipe.content == chunk(0)


def test_a_chunk_that_comes_again_is_compared_and_acknowledged_again(bench: Bench) -> None:
    bench.bring(0, chunk(0))
    bench.until_acknowledged(0)
    assert bench.bring(0, chunk(0)) is Delivery.COMPARE
    assert bench.acknowledged == [0, 0]
    assert bench.begin(0, chunk(7)) is Delivery.COMPARE
    assert not bench.deliver(0, chunk(7))
    assert bench.pipe.content == chunk(0)


def test_a_chunk_that_comes_again_before_its_turn_is_acknowledged_with_it(bench: Bench) -> None:
    bench.bring(1, chunk(1))
    assert bench.bring(1, chunk(1)) is Delivery.COMPARE
    assert bench.begin(1, chunk(7)) is Delivery.COMPARE
    assert not bench.deliver(1, chunk(7))
    assert bench.acknowledged == []
    bench.bring(0, chunk(0))
    bench.until_acknowledged(0, 1)


def test_one_connection_brings_a_chunk_at_a_time(bench: Bench) -> None:
    bench.begin(0, chunk(0))
    with pytest.raises(RemoteProtocolError, match="twice"):
        bench.begin(0, chunk(0))
    other = Connection()
    assert bench.buffer.begin(0, CHUNK, other) == (Delivery.WAIT, bench.connection)
    bench.buffer.detach(bench.connection)
    assert bench.begin(0, chunk(0), other) is Delivery.WRITE


def test_what_a_lost_connection_had_brought_stays(bench: Bench) -> None:
    bench.bring(1, chunk(1))
    bench.begin(2, chunk(2))
    bench.buffer.detach(bench.connection)
    bench.bring(0, chunk(0))
    until(lambda: bench.buffer.passed == 2, "the output is so far")
    bench.until_acknowledged(0)  # 1 is acknowledged where it is brought again
    assert bench.bring(1, chunk(1)) is Delivery.COMPARE
    bench.until_acknowledged(0, 1)
    assert bench.begin(2, chunk(2)) is Delivery.WRITE


def test_the_end_of_a_stream_is_what_the_sender_says(bench: Bench) -> None:
    contents = [chunk(0), chunk(1, 7)]
    bench.bring(0, contents[0])
    bench.until_acknowledged(0)
    assert not bench.buffer.is_whole(finish(*contents))
    bench.bring(1, contents[1])
    bench.until_acknowledged(0, 1)
    whole = finish(*contents)
    assert bench.buffer.is_whole(whole)
    assert not bench.buffer.is_whole(whole._replace(stream_bytes=CHUNK))
    assert not bench.buffer.is_whole(whole._replace(root_digest=bytes(16)))
    assert not bench.buffer.is_whole(whole._replace(chunks=1))


def test_nothing_follows_a_short_chunk(bench: Bench) -> None:
    bench.bring(0, chunk(0, 10))
    bench.bring(1, chunk(1))
    assert bench.failed.wait(HANG)
    (failure,) = bench.failures
    assert isinstance(failure, RemoteProtocolError)
    assert bench.pipe.content == chunk(0, 10)


def test_a_reader_that_has_gone_ends_it(bench: Bench) -> None:
    bench.pipe.error = TransferFailed(Code.DESTINATION, "gone")
    bench.bring(0, chunk(0))
    assert bench.failed.wait(HANG)
    assert bench.failures == [bench.pipe.error]
    assert bench.acknowledged == []


@pytest.mark.parametrize(
    ("segment", "position"),
    [
        (m.Segment(0, 0, CHUNK), 0),
        (m.Segment(0, CHUNK, 1), 1),
        (m.Segment(0, CHUNK, CHUNK + 1), None),
        (m.Segment(0, CHUNK, 0), None),
        (m.Segment(0, 1, CHUNK), None),
        (m.Segment(0, CHUNK << 23, CHUNK), None),
    ],
)
def test_segments_of_a_stream(bench: Bench, segment: m.Segment, position: int | None) -> None:
    assert bench.buffer.position(segment) == position


@pytest.mark.parametrize(
    ("segment", "position"),
    [
        (m.Segment(0, CHUNK, CHUNK), 1),
        (m.Segment(0, 2 * CHUNK, 10), 2),
        (m.Segment(0, CHUNK, 10), None),
        (m.Segment(0, 2 * CHUNK, CHUNK), None),
        (m.Segment(0, 3 * CHUNK, CHUNK), None),
    ],
)
def test_segments_of_a_file(segment: m.Segment, position: int | None) -> None:
    assert ReorderBuffer(Pipe(), 2 * CHUNK + 10, CHUNK, CHUNK).position(segment) == position


def test_a_file_is_whole_when_it_has_its_size() -> None:
    bench = Bench(size=CHUNK + 10)
    bench.bring(0, chunk(0))
    bench.bring(1, chunk(1, 10))
    bench.until_acknowledged(0, 1)
    assert bench.buffer.is_whole(finish(chunk(0), chunk(1, 10))._replace(stream_bytes=0))
    assert bench.buffer.stop(HANG)


def test_the_end_does_not_wait_for_a_reader_that_takes_nothing(bench: Bench) -> None:
    bench.pipe.open.clear()
    bench.bring(0, chunk(0))
    assert bench.pipe.entered.acquire(timeout=HANG)
    assert not bench.buffer.stop(0.01)
    bench.pipe.open.set()
    assert bench.buffer.stop(HANG)
    assert bench.acknowledged == []


def test_a_buffer_has_a_bound_of_chunks() -> None:
    assert ReorderBuffer(Pipe(), None, 1, 64 << 20)._slots == SLOTS_MOST


def test_a_window_is_a_number_until_it_is_used() -> None:
    """What is kept of chunks that were passed on is no more than there were of them."""
    bench = Bench()
    for position in range(3 * SLOTS):
        assert bench.bring(position, chunk(position)) is Delivery.WRITE
        bench.until_acknowledged(*range(position + 1))
    assert list(bench.buffer._digests) == [segment_digest(chunk(at)) for at in range(2 * SLOTS, 3 * SLOTS)]
    assert bench.begin(3 * SLOTS - 1, chunk(3 * SLOTS - 1)) is Delivery.COMPARE
    assert bench.deliver(3 * SLOTS - 1, chunk(3 * SLOTS - 1))
    assert bench.buffer.stop(HANG)


def test_who_brings_a_chunk_again_is_told_once_and_who_is_gone_never(bench: Bench) -> None:
    told: list[str] = []
    content = b"b" * CHUNK
    bench.bring(1, content)
    digest = segment_digest(content)
    first, second = Connection(), Connection()
    for name, connection in [("first", first), ("second", second), ("first", first), ("first", first)]:
        assert bench.buffer.begin(1, CHUNK, connection)[0] is Delivery.COMPARE
        assert bench.end(1, digest, digest, connection)
        bench.buffer.when_passed_on(1, connection, functools.partial(told.append, name))
    bench.buffer.detach(first)
    bench.bring(0, b"a" * CHUNK)
    until(lambda: bench.buffer.passed == 2 and bool(told), "the output is so far")
    assert told == ["second"]


def test_what_a_header_announces_is_begun(bench: Bench) -> None:
    """The holes of a chunk, which no payload brings; of a run, each chunk."""
    sparse = m.Segment(0, 0, CHUNK, (0, CHUNK))
    connection: Any = bench.connection
    begun = bench.buffer.begin_chunk(connection, m.ChunkHeader(0, (sparse,)))
    begun += bench.buffer.begin_chunk(connection, m.ChunkHeader(1, (m.Segment(0, CHUNK, CHUNK),), 2, 1))
    assert [each.segment for each in begun] == [sparse, *(m.Segment(0, at * CHUNK, CHUNK) for at in (1, 2))]
    assert [each.position for each in begun] == [0, 1, 2]


def test_a_chunk_that_comes_again_for_longer_than_a_window(bench: Bench) -> None:
    """Nothing is known of it any more when its end comes."""
    for position in range(2 * SLOTS + 1):
        bench.bring(position, chunk(position))
        bench.until_acknowledged(*range(position + 1))
        if position == 0:
            assert bench.begin(0, chunk(0), Connection()) is Delivery.COMPARE
    with pytest.raises(RemoteProtocolError, match="chunk 0 was sent again, and took longer than a whole window"):
        bench.deliver(0, chunk(0))
