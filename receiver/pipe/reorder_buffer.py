"""What is passed on in order: a file or a stream to standard output, a stream to its place in staging.

Chunks come over N connections, in any order. Those that come early are kept in a ring of as many chunks as the window
has; one thread writes them in order, and tells who brought one when it is passed on: only then it is acknowledged. The
sender never sends more than the window beyond what is not acknowledged, so there is always room for what may come, and
no connection waits for another one.

    FREE ──begin──▶ WRITING ──deliver──▶ here ──in order──▶ passed on ──▶ acknowledged

What was passed on can't be taken back: nobody else may begin with the same output then.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from filestreamer.process.threads import run_to_end, start_thread
from filestreamer.settings.sizes import format_size
from filestreamer.telemetry.chunk_map import ChunkMap
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.digests import segment_hasher
from filestreamer.wire.errors import Code, FilestreamerError, RemoteProtocolError, TransferFailed
from filestreamer.wire.grid import Grid, hole_segments
from filestreamer.wire.sockets import memory
from receiver.disk.readable import InPlace
from receiver.disk.staging import Staging
from receiver.file.chunk_states import Delivery, Writer
from receiver.memory.budget import Account

SLOTS_MOST: Final = 4096
"""Chunks that a window has room for, however small they are."""
SLOTS_LEAST: Final = 2
"""Chunks of a window with which one can be passed on while the next one comes."""
SLOT_BYTES: Final = 1024
"""What a chunk of the window costs beside its bytes: its state, the connection that is told of it, its last digest."""
TOLD_MOST: Final = 3
"""Connections that hear of one chunk. A sender has one that it waits for, and may have closed others."""
WAITING_SECONDS: Final = 1.0
"""A write that takes longer than this is waiting: the sender is told so."""


class OrderedWriter(Protocol):
    """Where bytes go, in order. Its calls may take as long as they like, and raise TransferFailed."""

    path: str

    def write(self, view: memoryview) -> None:
        """Pass on the next bytes, all of them."""

    def finish(self, size: int) -> None:
        """Make what was written durable, where that can be, and say that nothing follows."""


class StagedWriter:
    """A stream's place in staging: it grows, and is put under its final name when the sender says that it is whole."""

    def __init__(self, staged: Staging | InPlace) -> None:
        assert isinstance(staged, Staging)  # only shards are looked at in place
        self.path = staged.path
        self._staged = staged
        self._size = 0

    def write(self, view: memoryview) -> None:
        """Append the bytes. Raises TransferFailed: NO_SPACE, DESTINATION."""
        self._staged.append(view, self._size)
        self._size += len(view)

    def finish(self, size: int) -> None:
        """Note the size, which `Staging.commit` puts in place."""
        self._staged.entry = self._staged.entry._replace(size=size)


def borrow_window(account: Account, chunk_size: int, most_bytes: int) -> tuple[int, int]:
    """Borrow memory for a window of at most `most_bytes`; return how many bytes that window has, and what it costs.

    It has room for whole chunks. One that is larger than two chunks leaves as much as it takes and twice that, and a
    quarter of the budget, to others: ten pipes don't take ten windows. Raises TransferFailed: POLICY where the window
    has no room for a chunk, TOO_LARGE where the budget never has, LIMIT where it has none now.
    """
    check_window(chunk_size, most_bytes)
    cost = chunk_size + SLOT_BYTES
    account.check(cost)
    slots = min(SLOTS_MOST, most_bytes // chunk_size)
    while slots:
        leave_bytes = 2 * slots * cost + account.budget.share_bytes if slots > SLOTS_LEAST else 0
        if account.try_borrow(slots * cost, leave_bytes=leave_bytes):
            return slots * chunk_size, slots * cost
        slots //= 2
    raise TransferFailed(Code.LIMIT, "this receiver has no memory left for the window of another pipe: try again")


def check_window(chunk_size: int, window_bytes: int) -> None:
    """Raise TransferFailed(POLICY) where the window has no room for a chunk."""
    if chunk_size > window_bytes:
        raise TransferFailed(
            Code.POLICY,
            f"chunks of {format_size(chunk_size)} don't fit into this receiver's window of {format_size(window_bytes)}:"
            " use a smaller --chunk-size there, or a larger --window here",
        )


@dataclass(slots=True)
class _Chunk:
    """A chunk that somebody is bringing, or that is here and waits for its turn."""

    writer: Writer | None
    length: int
    digest: bytes = b""
    """Empty until all of it is here and right."""
    by: int = 0
    """The connection that brought it."""
    passed_on: dict[Writer, Callable[[], None]] = field(default_factory=dict)
    """Called when it is passed on: of the connections that brought it and are there, the last TOLD_MOST."""


class ReorderBuffer:
    """Takes the chunks of one file or stream, and passes them on. The lock protects every field with an underscore."""

    ledger_writer: Final = None
    """What was passed on is not found again."""

    def __init__(
        self,
        target: OrderedWriter,
        size: int | None,
        chunk_size: int,
        window_bytes: int,
        holes: tuple[m.Hole, ...] = (),
    ) -> None:
        """`size` is None for a stream; the window has room for a chunk (`check_window`).

        Chunks in `holes` of a file are zeros that nobody sends: they are not counted among the positions.
        """
        self.target = target
        self.size = size
        self.chunk_size = chunk_size
        self.window_bytes = window_bytes
        """Of which there is room for whole chunks, and for no more than SLOTS_MOST of them."""
        self._grid = Grid(size or 0, chunk_size)
        self._holes = list(hole_segments(self._grid, holes))
        self._hole_chunks = sum(end - first for first, end in self._holes)
        self._slots = min(SLOTS_MOST, window_bytes // chunk_size)
        self.chunk_map = ChunkMap()
        """Of what was passed on."""
        self._ring: dict[int, memoryview] = {}
        self._chunks: dict[int, _Chunk] = {}
        self._digests: deque[bytes] = deque(maxlen=self._slots)  # of what was passed on last: it may be sent once more
        self._changed = threading.Condition(threading.Lock())
        self._passed = 0
        self._passed_bytes = 0
        self._root = segment_hasher()
        self._has_begun = False
        self._is_over = False
        self._writing_since: float | None = None
        self._writing_seconds = 0.0
        self._thread: threading.Thread | None = None

    # --- what is seen of it

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
        """Whether anything was passed on, or is about to be: that can't be taken back."""
        with self._changed:
            return self._has_begun

    @property
    def is_waiting(self) -> bool:
        """Whether the target takes nothing."""
        since = self._writing_since
        return since is not None and time.monotonic() - since > WAITING_SECONDS

    @property
    def writing_seconds(self) -> float:
        """Seconds that the target has taken so far."""
        with self._changed:
            since = self._writing_since
            return self._writing_seconds + (time.monotonic() - since if since is not None else 0.0)

    # --- what connections bring

    def position(self, segment: m.Segment) -> int | None:
        """Which of the chunks that are sent this is; None where it is none."""
        if self.size is not None:
            index = self._grid.index_of(segment.offset, segment.length)
            return None if index is None else self._position_of(index)
        index, rest = divmod(segment.offset, self.chunk_size)
        if rest or not 0 < segment.length <= self.chunk_size or index >= limits.CHUNKS_PER_FILE:
            return None
        return index

    def _position_of(self, index: int) -> int | None:
        """Count the segments before this one that are no holes; None where it is one."""
        before = 0
        for first, end in self._holes:
            if index < first:
                break
            if index < end:
                return None
            before += end - first
        return index - before

    def _index_of(self, position: int) -> int:
        """Return which segment has this position; behind the last one, the number of segments."""
        index = position
        for first, end in self._holes:
            if index < first:
                break
            index += end - first
        return index

    def begin(self, position: int, length: int, writer: Writer) -> tuple[Delivery, Writer | None]:
        """Begin a chunk; where the turn is WAIT, who has to leave first.

        Raises RemoteProtocolError for one outside of the window, and for one that the same connection is bringing.
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
                    raise RemoteProtocolError(f"chunk {position} is sent twice at once")
                return Delivery.WAIT, chunk.writer
            self._chunks[position] = _Chunk(writer, length)
            return Delivery.WRITE, None

    def write(self, view: memoryview, offset: int) -> None:
        """Keep bytes of a chunk that was begun."""
        index, at = divmod(offset, self.chunk_size)
        slot = (self._position_of(index) or 0) % self._slots
        room = self._ring.get(slot)
        if room is None:  # nobody else writes into this slot
            self._ring[slot] = room = memory.mapped(self.chunk_size)
        room[at : at + len(view)] = view

    def deliver(self, position: int, digest: bytes, computed: bytes, by: int) -> bool:
        """Settle a chunk that connection `by` has begun and whose bytes are all here; whether its digest was right."""
        with self._changed:
            chunk = self._chunks.get(position)
            if chunk is None:  # it was passed on before
                return digest == computed == self._digests[position - self._passed]
            if chunk.digest:  # it waits for its turn
                return digest == computed == chunk.digest
            if digest != computed:
                del self._chunks[position]
                return False
            chunk.writer, chunk.digest, chunk.by = None, digest, by
            self._changed.notify_all()
            return True

    def hand_over(self, position: int, writer: Writer, passed_on: Callable[[], None]) -> None:
        """Have it told when a chunk that was delivered is passed on: by the thread that does that, or at once.

        A connection hears of it once, however often it brings it, and few connections do: a sender sends a chunk again
        only where the connection before is gone.
        """
        with self._changed:
            if position >= self._passed:
                told = self._chunks[position].passed_on
                told.pop(writer, None)
                told[writer] = passed_on
                if len(told) > TOLD_MOST:
                    del told[next(iter(told))]
                return
        passed_on()

    def abandon(self, writer: Writer) -> None:
        """Take back what a connection was bringing, and tell it nothing more."""
        with self._changed:
            for position in [at for at, chunk in self._chunks.items() if chunk.writer is writer]:
                del self._chunks[position]
            for chunk in self._chunks.values():
                chunk.passed_on.pop(writer, None)

    # --- passing on

    def start(self, on_failure: Callable[[FilestreamerError], None]) -> None:
        """Begin to pass on; `on_failure` hears of a target that takes nothing any more."""

        def pass_on() -> None:
            if error := run_to_end("output", self._pass_on):
                on_failure(error)

        # A daemon: where nobody takes the bytes it hangs in a write, and nothing else can end that than the process.
        thread = threading.Thread(target=pass_on, name="output", daemon=True)
        start_thread(thread, "the output")
        self._thread = thread

    def _pass_on(self) -> None:
        while (chunk := self._next()) is not None:
            position = self._passed
            self._pass_on_zeros(self._index_of(position))
            self._write(self._ring[position % self._slots][: chunk.length])
            with self._changed:
                if self._is_over:
                    return
                del self._chunks[position]
                self._digests.append(chunk.digest)
                self._root.update(chunk.digest)
                self.chunk_map.extend(position + 1)
                self.chunk_map.add(position, chunk.by)
                self._passed += 1
                self._passed_bytes += chunk.length
                told = list(chunk.passed_on.values())
            for passed_on in told:
                passed_on()

    def _pass_on_zeros(self, index: int) -> None:
        """Pass on the holes before a segment."""
        end = min(index * self.chunk_size, self._grid.size) if self._holes else 0
        zeros = memoryview(bytes(min(limits.BLOCK_BYTES, max(0, end - self._passed_bytes))))
        while self._passed_bytes < end and not self._is_over:
            self._write(zeros[: end - self._passed_bytes])
            with self._changed:
                self._passed_bytes += min(len(zeros), end - self._passed_bytes)

    def _next(self) -> _Chunk | None:
        """Wait for the next chunk; None where the transfer is over. Raises RemoteProtocolError behind a short one."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or self._is_here(self._passed))
            if self._is_over:
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
            self.target.write(view)
        finally:
            with self._changed:
                self._writing_since = None
                self._writing_seconds += time.monotonic() - began

    # --- the end

    def missing(self) -> m.Needed | None:
        """Say which segment is passed on next; None where nothing is to come any more, and of a stream."""
        index = self._index_of(self.passed)
        if self.size is None or index >= self._grid.segments:
            return None
        return m.Needed((), (m.SegmentRange(0, index, 1),), self.window_bytes)

    @property
    def payload_bytes(self) -> int:
        """Bytes of a file that a sender sends: all but those of chunks in holes."""
        return self._grid.size - sum(self._grid.bytes_between(first, end) for first, end in self._holes)

    @property
    def has_chunks(self) -> bool:
        """Whether anything is to be sent."""
        return self.size is None or self._grid.segments > self._hole_chunks

    def root_digest(self) -> bytes:
        """Return the digest over the digests of everything that was passed on."""
        with self._changed:
            return self._root.digest()

    def is_whole(self, finish: m.Finish) -> bool:
        """Whether what was passed on is what the sender says that it has sent."""
        chunks = finish.chunks - self._hole_chunks
        size = finish.stream_bytes if self.size is None else self._passed_bytes
        with self._changed:
            return (chunks, finish.root_digest, size) == (self._passed, self._root.digest(), self._passed_bytes)

    def finish(self) -> None:
        """End the target, now that everything but holes at the end was passed on. Raises TransferFailed."""
        self._pass_on_zeros(self._grid.segments)
        self.target.finish(self.passed_bytes)
        self._ring.clear()

    def end(self, seconds: float | None) -> bool:
        """Pass on nothing more; whether the thread has ended, within `seconds` if so: it may hang in a write."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(seconds)
            return not self._thread.is_alive()
        return True
