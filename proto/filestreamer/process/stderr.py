"""Standard error without waiting for its reader.

1. `replace` puts a `Stderr` in the place of sys.stderr, once, when a command begins;
2. log lines, tracebacks and the progress display are written to it, and become jobs of its `Background`;
3. the Background's thread writes them in order; lines for which there is no room are dropped and counted;
4. before the next line that is written, another line says how many were dropped;
5. `drain` waits for what is not written yet, for a bounded time, when the process ends.
"""

import io
import os
import sys
from collections.abc import Callable
from typing import Final, TextIO, cast

from filestreamer.process.background import Background, is_writable, write_some

OVERHEAD_BYTES: Final = 256
"""Memory that a waiting line takes in addition to its bytes."""


class Stderr(io.TextIOBase):
    """A text stream to a descriptor. Neither `write` nor `flush` waits for its reader.

    `write` hands whole lines on to the thread; `flush` also hands on a line without its end, such as a display's frame.
    """

    def __init__(self, fd: int, encoding: str) -> None:
        self._fd = fd
        self._encoding = encoding
        self.announce: Callable[[int], str] = "{} log lines were dropped\n".format
        """Makes the line that says how many lines were dropped."""
        self.dropped = 0
        """Lines that were not written since the process began."""
        self._background = Background("log", lambda: is_writable(fd))
        # Protects _partial and _lost. It is the Background's own, as destructors that print could take two locks in
        # either order.
        self._lock = self._background.lock
        self._partial = ""  # a line whose end has not been written yet
        self._lost = 0  # lines dropped since one was handed on
        # Of the thread that writes:
        self._unannounced = 0  # lines that were dropped and not announced yet
        self._is_torn = False  # the last write ended in the middle of a line

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding; characters that it lacks are written as escapes."""
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
            lines, end, self._partial = (self._partial + text).rpartition("\n")
            self._hand_on(lines + end)
        self._background.pause()
        return len(text)

    def flush(self) -> None:
        """Hand on the line that has no end yet."""
        with self._lock:
            partial, self._partial = self._partial, ""
            self._hand_on(partial)
        self._background.pause()

    def drain(self, seconds: float) -> bool:
        """Wait for at most `seconds` until everything is written; return whether it is."""
        self.flush()
        return self._background.drain(seconds)

    def _hand_on(self, text: str) -> None:
        if text:
            lost, self._lost = self._lost, 0
            data = text.encode(self._encoding, "backslashreplace")
            if not self._background.add(lambda: self._write(lost, data), len(data) + OVERHEAD_BYTES):
                self._lost = lost + _lines(data)
                self.dropped += _lines(data)

    # --- in the thread that writes

    def _write(self, lost: int, data: bytes) -> None:
        """Write lines; before them, say that `lost` lines are missing, and behind the last job those lost since."""
        self._unannounced += lost
        if not (self._announce() and self._put(data)):
            self._unannounced += _lines(data)
            with self._lock:
                self.dropped += _lines(data)
        elif self._background.is_last:
            with self._lock:
                lost, self._lost = self._lost, 0
            self._unannounced += lost
            self._announce()

    def _announce(self) -> bool:
        """Write the line about lines that were dropped, if there are any; return False where it can't be written."""
        if self._unannounced:
            if not self._put(self.announce(self._unannounced).encode(self._encoding, "backslashreplace")):
                return False
            self._unannounced = 0
        return True

    def _put(self, data: bytes) -> bool:
        """Write to the descriptor; return whether everything is written. A line that was torn before is ended first."""
        view = memoryview(b"\n" + data if self._is_torn else data)
        size = len(view)
        try:
            while view:
                view = view[write_some(self._fd, view, waits=self._background.has_thread) :]
        except OSError:  # no reader, a full disk, or a write that would wait without a thread that may
            self._is_torn = self._is_torn or len(view) < size
            return False
        self._is_torn = False
        return True


def _lines(data: bytes) -> int:
    return data.count(b"\n") or 1


_replaced: Stderr | None = None


def replace() -> None:
    """Replace sys.stderr, so that from now on no thread of this process waits for its reader."""
    global _replaced  # noqa: PLW0603 - there is one standard error
    if sys.stderr is not None:  # None: the process was started with standard error closed
        _replaced = Stderr(sys.stderr.fileno(), sys.stderr.encoding)
        sys.stderr = cast(TextIO, _replaced)


def set_announcement(announce: Callable[[int], str]) -> None:
    """Have `announce` make the line that says how many lines were dropped."""
    if _replaced is not None:
        _replaced.announce = announce


def dropped_lines() -> int:
    """Return how many lines of this process's standard error were dropped."""
    return _replaced.dropped if _replaced is not None else 0


def drain(seconds: float) -> bool:
    """Wait for at most `seconds` until standard error is written; return whether it is."""
    return _replaced is None or _replaced.drain(seconds)
