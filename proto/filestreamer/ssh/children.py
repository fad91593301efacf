"""The ssh processes of one near side: one thread reads what they say to standard error, and takes in their ends."""

import contextlib
import os
import selectors
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import IO, Final

from filestreamer.process.threads import run_to_end, start_thread
from filestreamer.ssh.guard import Guard

TICK_SECONDS: Final = 0.5
LINE_BYTES: Final = 8 << 10
"""A longer line is cut."""
TAIL_LINES: Final = 20
"""How many of the last lines are kept of each process."""
KILL_SECONDS: Final = 1.0
EXIT_SECONDS: Final = 0.05
"""How long a process that says nothing any more may take to end, before others are read."""

_UNDISTURBED: Final = ("/bin/sh", "-c", 'trap "" INT HUP; exec "$@"', "sh")
"""Runs ssh without SIGINT and SIGHUP, as Ctrl-C and the end of a terminal reach it, too: this service ends in order
first, and then ssh. It stays in the session of the terminal, so that it can ask for a password."""


class Child:
    """A process of ssh."""

    def __init__(self, process: "subprocess.Popen[bytes]", on_line: Callable[[bytes], None]) -> None:
        self.process = process
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        """The last lines that it has said to standard error, as text."""
        self.ended = threading.Event()
        """Set when it has ended, and everything that it said was read."""
        self._on_line = on_line
        self._partial = b""

    def take(self, data: bytes) -> None:
        """Take in what it has said; b"" is the end."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > LINE_BYTES or (not data and self._partial):
            lines.append(self._partial)
            self._partial = b""
        for line in lines:
            stripped = line[:LINE_BYTES].rstrip(b"\r \t")
            if stripped:
                self.tail.append(stripped.decode(errors="replace"))
                self._on_line(stripped)

    @property
    def last_words(self) -> str:
        """The last line that it has said; empty where there is none."""
        return self.tail[-1] if self.tail else ""

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


class Children:
    """All processes of ssh. Any thread may call."""

    def __init__(self, directory: str | None) -> None:
        """`directory` is what ssh would leave behind where this process is killed."""
        self._directory = directory
        self._mutex = threading.Lock()  # protects the fields below
        self._children: dict[int, Child] = {}  # by process id
        self._is_closed = False
        self._guard: Guard | None = None
        self._thread: threading.Thread | None = None
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake_reader, selectors.EVENT_READ, None)

    def start(
        self,
        argv: Sequence[str],
        on_line: Callable[[bytes], None],
        *,
        stdin: int | IO[bytes],
        stdout: int | IO[bytes],
        asks: bool = False,
    ) -> Child:
        """Start ssh. One that may ask stays with the terminal; the others are out of reach of its signals.

        `on_line` is called in a thread of its own with each line that it says to standard error. Raises OSError,
        TransferFailed(LIMIT).
        """
        with self._mutex:
            if self._is_closed:
                raise BrokenPipeError("it is over")
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="ssh", daemon=True)
                start_thread(thread, "reading what ssh says")
                self._thread = thread
            if self._guard is None:
                self._guard = Guard(self._directory)
            process = subprocess.Popen(
                [*(_UNDISTURBED if asks else ()), *argv],
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.PIPE,
                process_group=None if asks else self._guard.group,
            )
            child = Child(process, on_line)
            self._children[process.pid] = child
            assert process.stderr is not None
            os.set_blocking(process.stderr.fileno(), False)
            self._selector.register(process.stderr, selectors.EVENT_READ, child)
        self._wake()
        return child

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._wake_writer, b"\0")

    def close(self, seconds: float) -> None:
        """Wait for the end of all processes, at most so long; then end them. Nothing is started any more."""
        with self._mutex:
            self._is_closed = True
            left = list(self._children.values())
        until = time.monotonic() + seconds
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._wake()
            for child in left:
                child.ended.wait(max(0.0, until - time.monotonic()))
            left = [child for child in left if not child.ended.is_set()]
            for child in left:
                child.signal(number)
            until = time.monotonic() + KILL_SECONDS
        for child in left:
            child.ended.wait(KILL_SECONDS)
        self._wake()
        if self._thread is not None:
            self._thread.join(KILL_SECONDS)
        else:
            self._release()
        with self._mutex:
            guard, self._guard = self._guard, None
        if guard is not None:
            guard.end()

    # --- in the thread

    def _run(self) -> None:
        run_to_end("reading what ssh says", self._keep_reading)

    def _keep_reading(self) -> None:
        while True:
            for key, _ in self._selector.select(TICK_SECONDS):
                if key.data is None:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_reader, 64)
                else:
                    self._read(key.data)
            self._reap()
            with self._mutex:
                if self._is_closed and not self._children:
                    break
        self._release()

    def _release(self) -> None:
        self._selector.close()
        descriptors = self._wake_reader, self._wake_writer
        self._wake_reader = self._wake_writer = -1
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _read(self, child: Child) -> bool:
        """Read what a process has said; return whether there may be more."""
        stream = child.process.stderr
        assert stream is not None
        if stream.closed:
            return False
        try:
            data = os.read(stream.fileno(), 1 << 16)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        child.take(data)
        if not data:
            self._selector.unregister(stream)
            stream.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(EXIT_SECONDS)
        return bool(data)

    def _reap(self) -> None:
        """Take in the ends of processes. A program that ssh has left behind may still have standard error."""
        with self._mutex:
            ended = [child for child in self._children.values() if child.process.poll() is not None]
        for child in ended:
            while self._read(child):
                pass
            stream = child.process.stderr
            if stream is not None and not stream.closed:
                child.take(b"")
                self._selector.unregister(stream)
                stream.close()
            with self._mutex:
                del self._children[child.process.pid]
            child.ended.set()
