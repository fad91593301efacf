"""Standard input as a source: read once, by one thread, into chunks that are kept until they are acknowledged.

A ring of as many chunks as the window has. Chunk k goes where chunk k - slots was, as soon as that one and everything
before it is acknowledged: so a chunk can be sent again after a lost connection, memory is bounded by the window, and
whoever writes to the pipe waits where the receiver is behind. As long as nothing was overwritten, all of it can be sent
again.
"""

import contextlib
import fcntl
import os
import select
import sys
import threading
from collections.abc import Callable
from typing import Final

from filestreamer.process.threads import run_to_end, start_thread
from filestreamer.wire import limits
from filestreamer.wire.errors import Code, FilestreamerError, TransferFailed, UsageError, from_os_error
from filestreamer.wire.messages import Segment
from sender.settings import SenderSettings

CHUNK_SIZE: Final = 1 * limits.MIB
"""Default: smaller than a file's, so that a window has many chunks."""
PIPE_BYTES: Final = 1 * limits.MIB
"""What a pipe is asked to hold: fewer, larger system calls."""


def open_stdin(settings: SenderSettings) -> "Stream":
    """Return standard input as a source. Raises UsageError where it is closed, or somebody's keyboard."""
    if sys.stdin is None:
        raise UsageError("INPUT_FILE -: standard input is closed")
    if sys.stdin.isatty():
        raise UsageError("INPUT_FILE -: standard input is a terminal: pipe something into it, or name a file")
    return Stream(sys.stdin.fileno(), settings.chunk_size or min(CHUNK_SIZE, settings.window), settings.window)


class Stream:
    """Bytes that come one after the other, cut into chunks. Any thread may call it; the lock protects its fields."""

    def __init__(self, fd: int, chunk_size: int, window_bytes: int, path: str = "standard input") -> None:
        """Read `fd`; at least one chunk of `chunk_size` bytes is kept, and no more than `window_bytes`."""
        self.path = path
        self.chunk_size = chunk_size
        self._fd = fd
        self._slots = max(1, window_bytes // chunk_size)
        self._ring: list[memoryview] = []  # grows to _slots: a short stream takes little
        self._changed = threading.Condition(threading.Lock())
        self._begun = 0  # chunks that a slot was taken for
        self._lowest = 0  # everything before this chunk is acknowledged
        self._size = 0
        self._chunks = 0
        self._is_ended = False
        self._is_over = False
        self._is_waiting = False
        self._thread: threading.Thread | None = None
        with contextlib.suppress(OSError):  # no pipe, or one that may not grow
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    # --- what is there

    @property
    def size(self) -> int:
        """Bytes in the chunks so far; all of them once it has ended."""
        with self._changed:
            return self._size

    @property
    def chunks(self) -> int:
        """Chunks that can be sent."""
        with self._changed:
            return self._chunks

    @property
    def is_ended(self) -> bool:
        """Whether whoever writes to it has closed it, and all of it is in chunks."""
        with self._changed:
            return self._is_ended

    @property
    def is_waiting(self) -> bool:
        """Whether a chunk is being read, and waits for whoever writes to it."""
        return self._is_waiting

    def segments(self, chunk_id: int) -> tuple[Segment, ...]:
        """Return what a chunk carries. Raises IndexError for one that was not read yet."""
        with self._changed:
            if not 0 <= chunk_id < self._chunks:
                raise IndexError(f"chunk {chunk_id} of {self._chunks}")
            offset = chunk_id * self.chunk_size
            return (Segment(0, offset, min(self.chunk_size, self._size - offset)),)

    def bytes_at(self, offset: int, count: int) -> memoryview:
        """Return bytes of one chunk that is dealt and not acknowledged: they stay as they are until it is."""
        chunk_id, at = divmod(offset, self.chunk_size)
        return self._ring[chunk_id % self._slots][at : at + count]

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` with bytes of a chunk that is dealt."""
        view[:] = self.bytes_at(offset, len(view))

    # --- the sender's account

    def advance(self, lowest: int) -> None:
        """Take notice that everything before chunk `lowest` is acknowledged: it is not needed any more."""
        with self._changed:
            self._lowest = max(self._lowest, lowest)
            self._changed.notify_all()

    def start_over(self) -> bool:
        """Go back to the beginning; False, and nothing changes, where that is not here any more."""
        with self._changed:
            if self._begun > self._slots:
                return False
            self._lowest = 0
            return True

    # --- reading

    def start(self, on_change: Callable[[], None], on_failure: Callable[[FilestreamerError], None]) -> None:
        """Begin to read, unless it has begun.

        `on_change` is called, without the lock, after each chunk and at the end; `on_failure` where reading fails.
        """
        if self._thread is not None:
            return

        def read() -> None:
            if error := run_to_end("reading standard input", lambda: self._read_all(on_change)):
                on_failure(error)

        # A daemon: where nobody writes it hangs in a read, and nothing else can end that than the process.
        thread = threading.Thread(target=read, name="stream", daemon=True)
        start_thread(thread, "reading standard input")
        self._thread = thread

    def end(self) -> None:
        """Have the thread end, soon."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _read_all(self, on_change: Callable[[], None]) -> None:
        while (slot := self._next_slot()) is not None:
            count = self._fill(slot)
            with self._changed:
                self._size += count
                self._chunks += count > 0
                self._is_ended = ended = count < self.chunk_size
            on_change()
            if ended:
                return

    def _next_slot(self) -> memoryview | None:
        """Wait for room for another chunk; None where the transfer is over. Raises TransferFailed(SOURCE)."""
        with self._changed:
            index = self._begun
            self._changed.wait_for(lambda: self._is_over or index < self._lowest + self._slots)
            if self._is_over:
                return None
            if index == limits.CHUNKS_PER_FILE:
                most = f"{limits.CHUNKS_PER_FILE} chunks of {self.chunk_size} bytes"
                raise TransferFailed(Code.SOURCE, f"{self.path} has more than {most}: give it a larger --chunk-size")
            self._begun += 1
            if index == len(self._ring) < self._slots:
                self._ring.append(memoryview(bytearray(self.chunk_size)))
            return self._ring[index % self._slots]

    def _fill(self, slot: memoryview) -> int:
        """Read until `slot` is full or the end comes; return how much was read. Raises TransferFailed(SOURCE)."""
        done = 0
        self._is_waiting = True
        try:
            while done < len(slot) and (count := self._read(slot[done:])):
                done += count
        except OSError as error:
            raise from_os_error(error, Code.SOURCE, f"can't read {self.path}") from None
        self._is_waiting = False
        return done

    def _read(self, view: memoryview) -> int:
        """Read once, having waited for bytes; 0 at the end. Raises OSError."""
        while True:
            try:
                return os.readv(self._fd, [view])
            except BlockingIOError:  # somebody else, who shares it, made it so
                poll = select.poll()
                poll.register(self._fd, select.POLLIN)
                poll.poll()
