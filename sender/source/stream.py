"""Standard input as a source: one thread reads it once, into chunks that are kept until they are acknowledged.

The chunks lie in a ring as large as the window. Chunk k takes the place of chunk k - places as soon as that one, and
every chunk before it, is acknowledged. So a chunk can be sent again after a connection was lost, memory is bounded, and
the program that writes to the pipe waits while the receiver is behind. As long as no chunk was overwritten, the whole
stream can be sent again.
"""

import contextlib
import fcntl
import os
import sys
import threading
from collections.abc import Callable
from typing import Final

from filestreamer.process.descriptors import wait_readable
from filestreamer.process.threads import run_to_end, start_thread
from filestreamer.wire import limits
from filestreamer.wire.errors import Code, TransferFailed, UsageError, from_os_error
from filestreamer.wire.messages import Segment
from sender.mailbox import Failed, Mailbox
from sender.settings import SenderSettings

CHUNK_SIZE: Final = 1 * limits.MIB
"""The default, in bytes: less than for a file, so that the window has many chunks."""
PIPE_BYTES: Final = 1 * limits.MIB
"""How much the kernel is asked to buffer in a pipe, so that one system call reads much."""


def open_stdin(settings: SenderSettings) -> "Stream":
    """Return standard input as a source. Raises UsageError where it is closed, or a terminal."""
    if sys.stdin is None:
        raise UsageError("INPUT_FILE -: standard input is closed")
    if sys.stdin.isatty():
        raise UsageError("INPUT_FILE -: standard input is a terminal: pipe data into it, or name a file")
    return Stream(sys.stdin.fileno(), settings.chunk_size or min(CHUNK_SIZE, settings.window), settings.window)


class Stream:
    """Bytes that come one after the other, cut into chunks. Any thread may call it."""

    def __init__(self, fd: int, chunk_size: int, window_bytes: int, path: str = "standard input") -> None:
        """Prepare to read `fd`. As many chunks of `chunk_size` bytes are kept as fit into the window, at least one."""
        self.path = path
        self.chunk_size = chunk_size
        self._fd = fd
        self._places = max(1, window_bytes // chunk_size)
        self._ring: list[memoryview] = []  # grows up to _places buffers: a short stream takes little memory
        self._changed = threading.Condition(threading.Lock())  # protects the fields below
        self._begun_chunks = 0  # chunks that have a place in the ring, or had one
        self._lowest = 0  # every chunk before this one is acknowledged
        self._size = 0
        self._chunks = 0
        self._is_ended = False
        self._is_stopped = False
        self._is_waiting = False
        self._thread: threading.Thread | None = None
        with contextlib.suppress(OSError):  # not a pipe, or it may not grow
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    # --- the chunks that were read

    @property
    def size(self) -> int:
        """Bytes in its chunks so far."""
        with self._changed:
            return self._size

    @property
    def chunks(self) -> int:
        """Number of chunks that were read, and can be sent."""
        with self._changed:
            return self._chunks

    @property
    def is_ended(self) -> bool:
        """Whether its writer closed it, and all of it was read."""
        with self._changed:
            return self._is_ended

    @property
    def is_waiting(self) -> bool:
        """Whether a chunk is being read, and waits for the program that writes to the pipe."""
        return self._is_waiting

    def segments(self, chunk_id: int) -> tuple[Segment, ...]:
        """Return the segment of a chunk. Raises IndexError for a chunk that was not read yet."""
        with self._changed:
            if not 0 <= chunk_id < self._chunks:
                raise IndexError(f"chunk {chunk_id} of {self._chunks}")
            offset = chunk_id * self.chunk_size
            return (Segment(0, offset, min(self.chunk_size, self._size - offset)),)

    def bytes_at(self, offset: int, count: int) -> memoryview:
        """Return bytes of one chunk that was read and is not acknowledged. They don't change before it is."""
        chunk_id, at = divmod(offset, self.chunk_size)
        return self._ring[chunk_id % self._places][at : at + count]

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` with bytes of one chunk that was read and is not acknowledged."""
        view[:] = self.bytes_at(offset, len(view))

    # --- calls of the queue

    def advance(self, lowest: int) -> None:
        """Free the places of all chunks before `lowest`, which are acknowledged."""
        with self._changed:
            self._lowest = max(self._lowest, lowest)
            self._changed.notify_all()

    def start_over(self) -> bool:
        """Go back to the first chunk; return False, and change nothing, where that was overwritten."""
        with self._changed:
            if self._begun_chunks > self._places:
                return False
            self._lowest = 0
            return True

    # --- reading

    def start(self, on_chunk: Callable[[], None], mailbox: Mailbox) -> None:
        """Start the thread that reads, unless it was started. Raises TransferFailed(LIMIT).

        The thread calls `on_chunk`, without the lock, after each chunk and at the end. It posts Failed if it fails.
        """
        if self._thread is not None:
            return

        def read() -> None:
            if error := run_to_end("reading standard input", lambda: self._read_all(on_chunk)):
                mailbox.post(Failed(error))

        # A daemon: while no program writes to the pipe, it hangs in a read that only the end of the process can end.
        thread = threading.Thread(target=read, name="stream", daemon=True)
        start_thread(thread, "reading standard input")
        self._thread = thread

    def stop(self) -> None:
        """Ask the thread to end, as soon as it does not block in a read."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def _read_all(self, on_chunk: Callable[[], None]) -> None:
        while (buffer := self._next_buffer()) is not None:
            count = self._fill(buffer)
            with self._changed:
                self._size += count
                self._chunks += count > 0
                self._is_ended = is_ended = count < self.chunk_size
            on_chunk()
            if is_ended:
                return

    def _next_buffer(self) -> memoryview | None:
        """Wait for a place for another chunk; return None after `stop`. Raises TransferFailed(SOURCE)."""
        with self._changed:
            index = self._begun_chunks
            self._changed.wait_for(lambda: self._is_stopped or index < self._lowest + self._places)
            if self._is_stopped:
                return None
            if index == limits.CHUNKS_PER_FILE:
                most = f"{limits.CHUNKS_PER_FILE} chunks of {self.chunk_size} bytes"
                raise TransferFailed(Code.SOURCE, f"{self.path} has more than {most}: use a larger --chunk-size")
            self._begun_chunks += 1
            if index == len(self._ring) < self._places:
                self._ring.append(memoryview(bytearray(self.chunk_size)))
            return self._ring[index % self._places]

    def _fill(self, buffer: memoryview) -> int:
        """Read until `buffer` is full, or the stream ends; return the bytes read. Raises TransferFailed(SOURCE)."""
        done = 0
        self._is_waiting = True
        try:
            while done < len(buffer) and (count := self._read(buffer[done:])):
                done += count
        except OSError as error:
            raise from_os_error(error, Code.SOURCE, f"can't read {self.path}") from None
        self._is_waiting = False
        return done

    def _read(self, view: memoryview) -> int:
        """Wait for bytes and read once; return 0 at the end. Raises OSError."""
        while True:
            try:
                return os.readv(self._fd, [view])
            except BlockingIOError:
                wait_readable(self._fd)
