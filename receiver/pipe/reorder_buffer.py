"""Puts the chunks of a pipe in order: they come over N connections in any order, and one thread writes them.

    FREE ──begin_chunk──▶ WRITING ──end_chunk──▶ here ──its turn comes──▶ passed on ──▶ acknowledged

Chunks that come early are kept in a ring, which has room for all chunks of the window. The sender never sends more than
the window beyond the first chunk that is not acknowledged. So there is always room for a chunk that may come, and no
connection ever waits for another one.

A chunk that was passed on can't be taken back: after that, no other transfer may write to the same output.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from filestreamer.process.threads import run_to_end, start_thread
from filestreamer.telemetry.chunk_map import ChunkMap
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.digests import ZEROS, segment_hasher
from filestreamer.wire.errors import ConnectionLost, FilestreamerError, RemoteProtocolError
from filestreamer.wire.grid import Grid
from filestreamer.wire.sockets import memory
from receiver.file.chunk_states import Delivery, Writer
from receiver.file.target import LEAVE_SECONDS, Connection, Incoming, IncomingRun, IncomingSegment
from receiver.pipe.ordered_writer import OrderedWriter
from receiver.pipe.window import count_slots

LISTENERS_MOST: Final = 3
"""How many connections get the acknowledgement of one chunk. The sender waits for it on one of them; it may have closed
the others after they brought the chunk."""
WAITING_SECONDS: Final = 1.0
"""A write that takes longer than this waits for the reader of the pipe: Progress tells the sender so."""


@dataclass(slots=True, eq=False, repr=False)
class _Chunk:
    """A chunk that a connection is receiving, or that is complete and waits for its turn."""

    writer: Writer | None
    length: int
    digest: bytes = b""
    """Empty until the whole chunk was received with the right digest."""
    by: int = 0
    """The id of the connection that brought it."""
    listeners: dict[Writer, Callable[[], None]] = field(default_factory=dict)
    """By connection: called when the chunk is passed on. At most LISTENERS_MOST, the last ones that brought it."""


class ReorderBuffer:
    """Receives the chunks of one file or stream, and passes them on in order. It is the `ChunkWriter` of a pipe.

    A position is the number of a chunk, and of its segment.
    """

    def __init__(
        self,
        writer: OrderedWriter,
        size: int | None,
        chunk_size: int,
        window_bytes: int,
    ) -> None:
        """`size` is None for a stream. The window has room for at least one chunk (`check_window`)."""
        self.writer = writer
        self.size = size
        self.chunk_size = chunk_size
        self.window_bytes = window_bytes
        self.was_sent_chunks = False
        """Whether any chunk was begun: then the sender knows that everything is needed."""
        self.chunk_map = ChunkMap()
        """The chunks that were passed on."""
        self._grid = Grid(size or 0, chunk_size)
        self._slots = count_slots(window_bytes, chunk_size)
        self._ring: dict[int, memoryview] = {}  # by slot: position modulo `_slots`
        self._changed = threading.Condition(threading.Lock())  # protects everything below
        self._chunks: dict[int, _Chunk] = {}  # by position
        self._digests: deque[bytes] = deque(maxlen=self._slots)
        """The digests of the last chunks that were passed on: a sender may send these once more."""
        self._passed = 0
        self._passed_bytes = 0
        self._root = segment_hasher()
        self._has_begun = False
        self._is_stopped = False
        self._writing_since: float | None = None
        self._writing_seconds = 0.0
        self._thread: threading.Thread | None = None

    # --- how far it is

    @property
    def passed(self) -> int:
        """Chunks that were passed on."""
        with self._changed:
            return self._passed

    @property
    def passed_bytes(self) -> int:
        """Bytes that were passed on."""
        with self._changed:
            return self._passed_bytes

    @property
    def has_begun(self) -> bool:
        """Whether a chunk was passed on, or is about to be: that can't be taken back."""
        with self._changed:
            return self._has_begun

    @property
    def is_waiting(self) -> bool:
        """Whether the writer has taken nothing for WAITING_SECONDS."""
        since = self._writing_since
        return since is not None and time.monotonic() - since > WAITING_SECONDS

    @property
    def writing_seconds(self) -> float:
        """Seconds that all writes have taken so far."""
        with self._changed:
            since = self._writing_since
            return self._writing_seconds + (time.monotonic() - since if since is not None else 0.0)

    # --- chunks, from the threads of data connections

    def begin_chunk(self, connection: Connection, header: m.ChunkHeader) -> list[IncomingSegment]:
        """Check a chunk, and begin it; another connection that is bringing it is stopped first."""
        if len(header.segments) > 1:
            raise RemoteProtocolError(f"chunk {header.chunk_id} is not in what was offered")
        segments = zip(header.chunk_ids, header.all_segments, strict=True)
        return [self._begin_segment(connection, chunk_id, segment) for chunk_id, segment in segments]

    def _begin_segment(self, connection: Connection, chunk_id: int, segment: m.Segment) -> IncomingSegment:
        position = self.position(segment)
        if segment.file_id != 0 or position is None:
            raise RemoteProtocolError(f"chunk {chunk_id} is not in what was offered")
        self.was_sent_chunks = True
        while True:
            delivery, other = self.begin(position, segment.length, connection)
            if delivery is not Delivery.WAIT:
                is_new = delivery is Delivery.WRITE
                return IncomingSegment(self, position, segment, is_new, was_here=not is_new)
            if other is not None and not other.stop(LEAVE_SECONDS):
                raise ConnectionLost(f"another connection is still writing chunk {position}")

    def position(self, segment: m.Segment) -> int | None:
        """Return the position of a segment; None where it is none."""
        if self.size is not None:
            return self._grid.index_of(segment.offset, segment.length)
        index, rest = divmod(segment.offset, self.chunk_size)
        if rest or not 0 < segment.length <= self.chunk_size or index >= limits.CHUNKS_PER_FILE:
            return None
        return index

    def begin(self, position: int, length: int, writer: Writer) -> tuple[Delivery, Writer | None]:
        """Begin a chunk; if the answer is WAIT, also return the connection that has to stop first.

        Raises RemoteProtocolError for a chunk outside of the window, and for one that the same connection is bringing.
        """
        with self._changed:
            if not self._passed - self._slots <= position < self._passed + self._slots:
                raise RemoteProtocolError(
                    f"chunk {position} was sent while chunk {self._passed} is missing:"
                    f" that is outside of the window of {self.window_bytes} bytes"
                )
            chunk = self._chunks.get(position)
            if position < self._passed or (chunk is not None and chunk.digest):
                return Delivery.COMPARE, None
            if chunk is not None:
                if chunk.writer is writer:
                    raise RemoteProtocolError(f"a connection sends chunk {position} twice at once")
                return Delivery.WAIT, chunk.writer
            self._chunks[position] = _Chunk(writer, length)
            return Delivery.WRITE, None

    def write(self, view: memoryview, offset: int) -> None:
        """Keep bytes of a begun chunk until its turn comes."""
        position, at = divmod(offset, self.chunk_size)
        self._room(position)[at : at + len(view)] = view

    def begin_sparse(self, segment: m.Segment) -> None:
        """Keep the zeros of a begun chunk until its turn comes: an earlier chunk lies in its place."""
        for start, end, is_data in segment.pieces():
            for at in range(start, start if is_data else end, len(ZEROS)):
                self.write(ZEROS[: end - at], at)

    def _room(self, position: int) -> memoryview:
        slot = position % self._slots
        room = self._ring.get(slot)
        if room is None:  # no lock: no other thread writes into the same slot
            self._ring[slot] = room = memory.mapped(self.chunk_size)
        return room

    def end_chunk(
        self, connection: Connection, incoming: Incoming, digests: list[bytes], computed: list[bytes]
    ) -> list[bool]:
        """Return of each digest whether it is right, now that all bytes of the chunk, or run, were received."""
        assert not isinstance(incoming, IncomingRun)  # `begin_chunk` begins each chunk of a run by itself
        return [
            self._end_segment(connection, segment.position, digest, actual)
            for segment, digest, actual in zip(incoming, digests, computed, strict=True)
        ]

    def _end_segment(self, connection: Connection, position: int, digest: bytes, actual: bytes) -> bool:
        with self._changed:
            chunk = self._chunks.get(position)
            if chunk is None:  # the chunk was already passed on
                if position < self._passed - len(self._digests):
                    raise RemoteProtocolError(f"chunk {position} was sent again, and took longer than a whole window")
                return digest == actual == self._digests[position - self._passed]
            if chunk.digest:  # another connection already brought the chunk, and it waits for its turn
                return digest == actual == chunk.digest
            if digest != actual:
                del self._chunks[position]
                return False
            chunk.writer, chunk.digest, chunk.by = None, digest, connection.connection_id
            self._changed.notify_all()
            return True

    def when_passed_on(self, position: int, connection: Writer, acknowledge: Callable[[], None]) -> None:
        """Call `acknowledge` when a chunk that was ended is passed on: in the writing thread, or at once.

        It is called once for each connection, however often that has brought the chunk.
        """
        with self._changed:
            if position >= self._passed:
                listeners = self._chunks[position].listeners
                listeners.pop(connection, None)
                listeners[connection] = acknowledge
                # A peer that brings the same chunk on ever new connections must not fill the memory.
                if len(listeners) > LISTENERS_MOST:
                    del listeners[next(iter(listeners))]
                return
        acknowledge()

    def detach(self, connection: Writer) -> None:
        """Drop the chunk that a connection was receiving, and acknowledge nothing to it any more."""
        with self._changed:
            for position in [at for at, chunk in self._chunks.items() if chunk.writer is connection]:
                del self._chunks[position]
            for chunk in self._chunks.values():
                chunk.listeners.pop(connection, None)

    # --- the thread that writes

    def start(self, failed: Callable[[FilestreamerError], None]) -> None:
        """Start to pass chunks on. An error of the writer is reported to `failed`."""

        def pass_on() -> None:
            if error := run_to_end("output", self._pass_on):
                failed(error)

        # A daemon: while a pipe has no reader, the thread hangs in a write, and only the end of the process ends that.
        thread = threading.Thread(target=pass_on, name="output", daemon=True)
        start_thread(thread, "the output")
        self._thread = thread

    def _pass_on(self) -> None:
        while (chunk := self._next()) is not None:
            position = self._passed
            self._write(self._ring[position % self._slots][: chunk.length])
            with self._changed:
                if self._is_stopped:
                    return
                del self._chunks[position]
                self._digests.append(chunk.digest)
                self._root.update(chunk.digest)
                self.chunk_map.extend(position + 1)
                self.chunk_map.add(position, chunk.by)
                self._passed += 1
                self._passed_bytes += chunk.length
                listeners = list(chunk.listeners.values())
            for acknowledge in listeners:
                acknowledge()

    def _next(self) -> _Chunk | None:
        """Wait for the next chunk; return None after `stop`. Raises RemoteProtocolError behind a short chunk."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopped or self._is_here(self._passed))
            if self._is_stopped:
                return None
            if self.size is None and self._passed_bytes < self._passed * self.chunk_size:
                raise RemoteProtocolError(f"chunk {self._passed} follows one that is shorter than the others")
            self._has_begun = True
            return self._chunks[self._passed]

    def _is_here(self, position: int) -> bool:
        chunk = self._chunks.get(position)
        return chunk is not None and bool(chunk.digest)

    def _write(self, view: memoryview) -> None:
        began = self._writing_since = time.monotonic()
        try:
            self.writer.write(view)
        finally:
            with self._changed:
                self._writing_since = None
                self._writing_seconds += time.monotonic() - began

    def stop(self, seconds: float | None) -> bool:
        """Stop passing chunks on; return whether the thread has ended within `seconds`: it may hang in a write."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(seconds)
            return not self._thread.is_alive()
        return True

    # --- the end, from the coordinator's thread

    def missing(self) -> m.Needed | None:
        """Return Needed for the chunk that is passed on next; None behind the last one, and for a stream."""
        index = self.passed
        if self.size is None or index >= self._grid.segments:
            return None
        return m.Needed((), (m.SegmentRange(0, index, 1),), self.window_bytes)

    def root_digest(self) -> bytes:
        """Return the digest over the digests of all chunks that were passed on."""
        with self._changed:
            return self._root.digest()

    def is_whole(self, finish: m.Finish) -> bool:
        """Whether chunks and root digest are those of the sender's Finish."""
        size = finish.stream_bytes if self.size is None else self._passed_bytes
        with self._changed:
            return (finish.chunks, finish.root_digest, size) == (self._passed, self._root.digest(), self._passed_bytes)

    def finish(self) -> None:
        """End the output. Raises TransferFailed."""
        self.writer.finish(self.passed_bytes)
        self._ring.clear()
