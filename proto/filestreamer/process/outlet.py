"""Writing lines and results without waiting for their reader.

A log that nobody reads, a terminal that is stopped and a disk that hangs make write(2) wait without end. Here only a
thread that has nothing else to do waits for them:

    1. `replace_stderr` puts a `Stderr` in the place of sys.stderr, once, when a command begins
    2. log lines, tracebacks and the display are written there, and become jobs of its `Background`
    3. the thread of that writes them in order; those that find no room are dropped and counted
    4. the next line that is written is preceded by one that says how many were dropped
    5. `flush` waits for what is unwritten, for a bounded time, when the process ends
"""

import errno
import io
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, TextIO, cast

BACKLOG_BYTES: Final = 1 << 20
"""What may wait to be written, in each place."""
IDLE_SECONDS: Final = 1.0
"""A thread that has nothing to write for so long ends: a process that may have few needs them for connections."""
PAUSE_SECONDS: Final = 0.1
"""How long a line may take to be written at once. Nearly every reader takes it within that."""
OVERHEAD_BYTES: Final = 256
"""What a line takes beside its bytes while it waits."""
RETRY_SECONDS: Final = 0.01


class Background:
    """Does jobs one after another in a daemon thread of its own, which is there while there are some.

    Where no thread can be started, whoever adds a job does those that need not wait, as `is_ready` says.
    """

    def __init__(self, name: str, is_ready: Callable[[], bool]) -> None:
        self._name = name
        self._is_ready = is_ready
        # Reentrant: what a destructor prints is printed by whatever thread is there, maybe in one of these methods.
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._jobs: deque[tuple[Callable[[], None], int]] = deque()  # protected; the first one is being done
        self._waiting_bytes = 0  # protected
        self._is_full = False  # protected
        self._thread: threading.Thread | None = None  # protected
        self._is_busy = False  # protected: a job is being done
        self._is_slow = False  # protected: somebody waited in vain since all were done

    @property
    def has_thread(self) -> bool:
        """Whether a job may wait as long as it has to."""
        return self._thread is not None

    @property
    def is_last(self) -> bool:
        """Whether no other job follows the one that is being done."""
        return len(self._jobs) <= 1

    def add(self, job: Callable[[], None], size_bytes: int) -> bool:
        """Have `job` done, which raises nothing; return whether there is room for its `size_bytes`.

        Once there is none, there is none until half of the room is free: what is lost is lost in few places.
        """
        with self._changed:
            room_bytes = BACKLOG_BYTES // 2 if self._is_full else BACKLOG_BYTES
            self._is_full = bool(self._jobs) and self._waiting_bytes + size_bytes > room_bytes
            if self._is_full:
                return False
            self._jobs.append((job, size_bytes))
            self._waiting_bytes += size_bytes
            self._changed.notify_all()
            is_served = self._start()
        if not is_served:
            self._do_those_that_are_ready()
        return True

    def pause(self) -> None:
        """Give the jobs a moment, once, until all are done: a line is written before the thread that logged it goes on.

        Hold no lock that a job takes.
        """
        with self._changed:
            if self._jobs and not self._is_slow:
                self._is_slow = not self._changed.wait_for(lambda: not self._jobs, PAUSE_SECONDS)

    def finish(self, seconds: float) -> bool:
        """Wait until all jobs are done, at most so long; return whether they are."""
        until = time.monotonic() + seconds
        if not self.has_thread:
            while not self._do_those_that_are_ready() and time.monotonic() < until:
                time.sleep(RETRY_SECONDS)
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs, max(0.0, until - time.monotonic()))

    def _start(self) -> bool:
        """Start the thread, if there is none; return whether there is one."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads: the next job tries again
                return False
            self._thread = thread
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._changed.wait_for(lambda: bool(self._jobs) and not self._is_busy, IDLE_SECONDS):
                    if not self._jobs:
                        self._thread = None
                        return
                self._is_busy = True
            self._do_first()

    def _do_those_that_are_ready(self) -> bool:
        """Do jobs as long as they need not wait, unless another thread does; return whether all are done."""
        while True:
            with self._changed:
                if not self._jobs or self._is_busy or not self._is_ready():
                    return not self._jobs
                self._is_busy = True
            self._do_first()

    def _do_first(self) -> None:
        job, size_bytes = self._jobs[0]
        try:
            job()
        except BaseException:
            with self._changed:
                self._thread = None  # it ends with this: the next job starts another
            raise
        finally:
            with self._changed:
                self._jobs.popleft()
                self._waiting_bytes -= size_bytes
                self._is_busy = False
                self._is_slow = self._is_slow and bool(self._jobs)
                self._changed.notify_all()


class Stderr(io.TextIOBase):
    """A text stream to a descriptor. Neither `write` nor `flush` waits for its reader.

    What is written is handed on as whole lines; `flush` hands on the rest of one, as a display's frame is.
    """

    def __init__(self, fd: int, encoding: str) -> None:
        self._fd = fd
        self._encoding = encoding
        self.announce: Callable[[int], str] = "{} log lines were dropped\n".format
        """Makes the line that says how many were dropped."""
        self.dropped = 0
        """Lines that were not written since the process began."""
        self._background = Background("log", lambda: is_writable(fd))
        self._lock = self._background.lock  # two of them could be taken in either order, by destructors
        self._begun = ""  # protected: a line without its end
        self._lost = 0  # protected: dropped since a line was handed on
        self._untold = 0  # of the thread that writes: dropped, and not told yet
        self._is_torn = False  # of the thread that writes: a line was written in part

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """What text becomes bytes by, with escapes for what it has no bytes for."""
        return self._encoding

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return os.isatty(self._fd)

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str) -> int:
        """Hand on all whole lines."""
        with self._lock:
            lines, end, self._begun = (self._begun + text).rpartition("\n")
            self._hand_on(lines + end)
        self._background.pause()
        return len(text)

    def flush(self) -> None:
        """Hand on the line that is begun."""
        with self._lock:
            begun, self._begun = self._begun, ""
            self._hand_on(begun)
        self._background.pause()

    def finish(self, seconds: float) -> bool:
        """Wait until all is written, at most so long; return whether it is."""
        self.flush()
        return self._background.finish(seconds)

    def _hand_on(self, text: str) -> None:
        if text:
            lost, self._lost = self._lost, 0
            data = text.encode(self._encoding, "backslashreplace")
            if not self._background.add(lambda: self._write(lost, data), len(data) + OVERHEAD_BYTES):
                self._lost = lost + _lines(data)
                self.dropped += _lines(data)

    # --- in the thread that writes

    def _write(self, lost: int, data: bytes) -> None:
        """Write lines; say before them, and behind the last ones, how many are missing there."""
        self._untold += lost
        if not (self._say() and self._put(data)):
            self._untold += _lines(data)
            with self._lock:
                self.dropped += _lines(data)
        elif self._background.is_last:
            with self._lock:
                lost, self._lost = self._lost, 0
            self._untold += lost
            self._say()

    def _say(self) -> bool:
        if self._untold:
            if not self._put(self.announce(self._untold).encode(self._encoding, "backslashreplace")):
                return False
            self._untold = 0
        return True

    def _put(self, data: bytes) -> bool:
        """Write to the descriptor; return whether all of it is written. After part of a line a new one is begun."""
        view = memoryview(b"\n" + data if self._is_torn else data)
        size = len(view)
        try:
            while view:
                view = view[write_some(self._fd, view, waits=self._background.has_thread) :]
        except OSError:  # nobody reads it any more, its disk is full, or it would have to wait and may not
            self._is_torn = self._is_torn or len(view) < size
            return False
        self._is_torn = False
        return True


def _lines(data: bytes) -> int:
    return data.count(b"\n") or 1


def write_some(fd: int, view: memoryview, *, waits: bool = True) -> int:
    """Write some of it; return how much. Raises OSError, BlockingIOError among them where it would wait and may not.

    A descriptor that does not block, as somebody else who shares it may have made it, is waited for as any other.
    """
    while True:
        if not waits and not is_writable(fd):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        try:
            return os.write(fd, view if waits else view[: select.PIPE_BUF])
        except BlockingIOError:
            if not waits:
                raise
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()


def is_writable(fd: int) -> bool:
    """Return whether a write of up to PIPE_BUF bytes would not wait, as it does not where it fails."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


_replaced: Stderr | None = None


def replace_stderr() -> None:
    """From here on, no thread of this process waits for standard error. For the beginning of a command."""
    global _replaced  # noqa: PLW0603 - there is one standard error
    if sys.stderr is not None:  # it is closed otherwise
        _replaced = Stderr(sys.stderr.fileno(), sys.stderr.encoding)
        sys.stderr = cast(TextIO, _replaced)


def announce_by(announce: Callable[[int], str]) -> None:
    """Have `announce` make the line that says how many lines were dropped."""
    if _replaced is not None:
        _replaced.announce = announce


def dropped() -> int:
    """Return how many lines of this process's standard error were dropped."""
    return _replaced.dropped if _replaced is not None else 0


def flush(seconds: float) -> bool:
    """Wait until standard error is written, at most so long; return whether it is."""
    return _replaced is None or _replaced.finish(seconds)
