"""Jobs that may wait for a reader or a disk, done by a thread that has nothing else to do.

A pipe that nobody reads, a terminal that is stopped and a disk that hangs make write(2) wait without end. So log lines
and results are written by a `Background`, and no other thread of the process waits.
"""

import errno
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

BACKLOG_BYTES: Final = 1 << 20
"""The most bytes that wait in one Background."""
IDLE_SECONDS: Final = 1.0
"""How long the thread stays without a job. If a process may have few threads, connections need them more."""
PAUSE_SECONDS: Final = 0.1
"""How long `pause` waits. Nearly every reader takes a line within that."""
RETRY_SECONDS: Final = 0.01


class Background:
    """Does jobs one after another in a daemon thread, which is there while there are jobs.

    Where no thread can be started, the threads that add jobs do those that need not wait, as `is_ready` says.
    """

    def __init__(self, name: str, is_ready: Callable[[], bool]) -> None:
        self._name = name
        self._is_ready = is_ready
        # Protects the attributes below. Reentrant, as the garbage collector may run a destructor that prints in the
        # middle of one of these methods.
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._jobs: deque[tuple[Callable[[], None], int]] = deque()  # job and size; the first one is being done
        self._waiting_bytes = 0
        self._is_full = False
        self._thread: threading.Thread | None = None
        self._is_busy = False  # a job is being done
        self._is_slow = False  # a `pause` timed out, and jobs have been there ever since

    @property
    def has_thread(self) -> bool:
        """Whether a job may wait as long as it has to."""
        return self._thread is not None

    @property
    def is_last(self) -> bool:
        """Whether no job follows the one that is being done."""
        return len(self._jobs) <= 1

    def add(self, job: Callable[[], None], size_bytes: int) -> bool:
        """Queue `job`, which must not raise; return False if there is no room for its `size_bytes`."""
        with self._changed:
            # After a job was refused, refuse all until half of the room is free: so jobs are lost in few places, and
            # each place gets one line about the loss.
            room_bytes = BACKLOG_BYTES // 2 if self._is_full else BACKLOG_BYTES
            self._is_full = bool(self._jobs) and self._waiting_bytes + size_bytes > room_bytes
            if self._is_full:
                return False
            self._jobs.append((job, size_bytes))
            self._waiting_bytes += size_bytes
            self._changed.notify_all()
            has_thread = self._start()
        if not has_thread:
            self._do_ready_jobs()
        return True

    def pause(self) -> None:
        """Wait a moment until all jobs are done, so that a line is usually written before its thread continues.

        After a wait that timed out, no call waits until all jobs are done. The caller must hold no lock of a job.
        """
        with self._changed:
            if self._jobs and not self._is_slow:
                self._is_slow = not self._changed.wait_for(lambda: not self._jobs, PAUSE_SECONDS)

    def drain(self, seconds: float) -> bool:
        """Wait for at most `seconds` until all jobs are done; return whether they are."""
        until = time.monotonic() + seconds
        if not self.has_thread:
            while not self._do_ready_jobs() and time.monotonic() < until:
                time.sleep(RETRY_SECONDS)
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs, max(0.0, until - time.monotonic()))

    def _start(self) -> bool:
        """Start the thread where there is none; return whether there is one."""
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

    def _do_ready_jobs(self) -> bool:
        """Do jobs as long as they need not wait and no other thread does one; return whether all are done."""
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
                self._thread = None  # the exception ends this thread: the next job starts another one
            raise
        finally:
            with self._changed:
                self._jobs.popleft()
                self._waiting_bytes -= size_bytes
                self._is_busy = False
                self._is_slow = self._is_slow and bool(self._jobs)
                self._changed.notify_all()


def write_some(fd: int, view: memoryview, *, waits: bool = True) -> int:
    """Write some of `view`; return how many bytes. Raises OSError.

    Without `waits`, it raises BlockingIOError where the write would wait. With it, a descriptor that does not block is
    waited for, too: another process that shares the descriptor may have made it so.
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
    """Return whether a write of up to PIPE_BUF bytes would not wait; a write that fails does not wait."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))
