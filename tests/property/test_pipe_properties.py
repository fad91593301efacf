"""A pipe delivers what was put into it: whatever its chunks, its window, its connections, and whenever these are cut.

The real reader of standard input, the real send queue, and the real reorder buffer; in between, connections that
hypothesis moves: each takes a chunk, delivers what it has, gets it acknowledged, or is cut and loses what it had.
"""

import os
import threading
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from filestreamer.wire import messages as m
from filestreamer.wire.digests import segment_digest
from receiver.file.chunk_states import Delivery
from receiver.file.target import IncomingSegment
from receiver.pipe.reorder_buffer import ReorderBuffer
from sender.dispatch.manifest import Manifest
from sender.dispatch.part import StreamPart
from sender.dispatch.schedule import Schedule
from sender.dispatch.send_queue import SendQueue
from sender.mailbox import Failed, Mailbox
from sender.source.item import Item
from sender.source.stream import Stream
from tests.support.services import HANG

Held = tuple[m.Segment, bytes]


class Kept:
    """Where everything goes; a slow reader takes one piece each time that it is told to."""

    path = "kept"

    def __init__(self) -> None:
        self.content = b""

    def write(self, view: memoryview) -> None:
        self.content += view

    def finish(self, size: int) -> None:
        assert size == len(self.content)


class Connection:
    """One connection: what it has taken and has not delivered, and what was delivered and is not acknowledged."""

    is_ended = False

    def __init__(self, number: int) -> None:
        self.connection_id = number
        self.taken: list[int] = []
        self.delivered: set[int] = set()
        self.lock = threading.Lock()

    def acknowledge(self) -> None:
        """Each chunk is acknowledged by itself."""

    def stop(self, seconds: float) -> bool:
        return seconds > 0


class Pipe:
    """Everything between the two ends."""

    def __init__(self, content: bytes, chunk_size: int, windows: tuple[int, int], connections: int) -> None:
        read_fd, write_fd = os.pipe()
        self.read_fd = read_fd
        self.writing = threading.Thread(target=self._write, args=(write_fd, content))
        self.writing.start()
        self.stream = Stream(read_fd, chunk_size, windows[0] * chunk_size)
        self.manifest = Manifest(chunk_size)
        self.mailbox = Mailbox()
        item = Item(m.Entry(b"s", m.EntryType.STREAM, 0, 0o644, 0), b"", stream=self.stream)
        part = self.manifest.add([item], last=True)
        assert isinstance(part, StreamPart)
        self.part = part
        self.queue = SendQueue(self.manifest, Schedule(connections), self.mailbox)
        self.queue.extend(part)
        self.kept = Kept()
        self.buffer = ReorderBuffer(self.kept, None, chunk_size, windows[1] * chunk_size)
        self.queue.limit_window(windows[1] * chunk_size)
        self.queue.need_stream()
        self.failures: list[object] = []  # of the output
        self.buffer.start(self.failures.append)
        self.stream.start(self._grow, self.mailbox)
        self.connections = [Connection(number) for number in range(4 * connections)]

    @staticmethod
    def _write(fd: int, content: bytes) -> None:
        with os.fdopen(fd, "wb") as pipe:
            pipe.write(content)

    def _grow(self) -> None:
        self.queue.grow(self.part, is_whole=self.stream.is_ended)

    def take(self, connection: Connection) -> bool:
        """Take a chunk; whether there was one."""
        chunk_id = self.queue.next(connection.connection_id, self.queue.epoch)
        if chunk_id is None:
            return False
        with connection.lock:
            connection.taken.append(chunk_id)
        return True

    def deliver(self, connection: Connection) -> bool:
        """Deliver the oldest chunk of a connection; whether it had one."""
        if not connection.taken:
            return False
        chunk_id = connection.taken.pop(0)
        ((segment, _),) = self.manifest.carried(chunk_id)
        content = bytes(self.stream.bytes_at(segment.offset, segment.length))
        position = self.buffer.position(segment)
        assert position == chunk_id
        turn, _ = self.buffer.begin(position, segment.length, connection)
        assert turn is not Delivery.WAIT  # who was cut has left
        if turn is Delivery.WRITE:
            self.buffer.write(memoryview(content), segment.offset)
        connection.delivered.add(chunk_id)
        digest = segment_digest(content)
        incoming = IncomingSegment(self.buffer, position, segment, turn is Delivery.WRITE)
        assert self.buffer.end_chunk(connection, [incoming], [digest], [digest]) == [True]
        self.buffer.when_passed_on(position, connection, lambda: self._acknowledged(connection, chunk_id))
        return True

    def _acknowledged(self, connection: Connection, chunk_id: int) -> None:
        with connection.lock:
            if chunk_id not in connection.delivered:
                return  # the connection was cut before the acknowledgement came
            connection.delivered.discard(chunk_id)
        assert not self.queue.pin_digest(
            chunk_id, [segment for segment, _ in self.manifest.carried(chunk_id)], [bytes(range(16))]
        )
        self.queue.mark_done((chunk_id,), self.queue.epoch, connection.connection_id)

    def cut(self, connection: Connection) -> bool:
        """Lose what a connection had: it is sent again, delivered or not."""
        self.buffer.detach(connection)
        with connection.lock:
            lost = connection.taken + sorted(connection.delivered)
            connection.taken.clear()
            connection.delivered.clear()
        self.queue.put_back(lost, self.queue.epoch)
        return True

    def double(self, _connection: Connection) -> None:
        """Send over twice as many, if there are so many."""
        if 2 * self.queue.connections <= len(self.connections):
            self.queue.resize(2 * self.queue.connections)

    def halve(self, _connection: Connection) -> None:
        """Send over half of them; the others deliver what they have."""
        if self.queue.connections % 2 == 0:
            self.queue.resize(self.queue.connections // 2)

    def has_failed(self) -> bool:
        """Whether the output or the stream has failed."""
        while (event := self.mailbox.take(0)) is not None:
            if isinstance(event, Failed):
                self.failures.append(event.error)
        return bool(self.failures)

    def is_done(self) -> bool:
        return self.queue.all_done

    def close(self) -> None:
        self.stream.stop()
        assert self.buffer.stop(HANG)
        self.writing.join(HANG)
        os.close(self.read_fd)


STEPS = ["take", "take", "take", "deliver", "deliver", "cut", "double", "halve"]


@settings(max_examples=60)
@given(
    content=st.binary(max_size=400),
    chunk_size=st.integers(1, 60),
    windows=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    connections=st.integers(1, 5),
    steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 19)), max_size=60),
)
def test_a_pipe_delivers_what_was_put_into_it(
    content: bytes, chunk_size: int, windows: tuple[int, int], connections: int, steps: list[tuple[str, int]]
) -> None:
    pipe = Pipe(content, chunk_size, windows, connections)
    try:
        for step, number in steps:
            getattr(pipe, step)(pipe.connections[number % len(pipe.connections)])
        deadline = time.monotonic() + HANG
        while not pipe.is_done():  # then every connection does what it can
            moved = [step(each) for each in pipe.connections for step in (pipe.take, pipe.deliver)]
            assert not pipe.has_failed()
            assert time.monotonic() < deadline, "it stands still"
            if not any(moved):
                time.sleep(0.0005)
        assert pipe.kept.content == content
        assert (pipe.buffer.passed_bytes, pipe.queue.states.lowest) == (len(content), pipe.queue.states.chunks)
        assert not pipe.has_failed()
    finally:
        pipe.close()
