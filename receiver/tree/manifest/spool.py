"""What a tree does not keep in memory: a file in its staging that has no name, and ends with its descriptor.

Everything that a sender can make as long as it likes is written here, and read back when it is needed. Small additions
are gathered. Any thread may call.
"""

import contextlib
import os
import threading
from typing import Final

from filestreamer.wire import limits
from filestreamer.wire.errors import Code, from_os_error
from receiver.disk.store import write_at

GATHER_BYTES: Final = 64 * limits.KIB
_OPEN: Final = os.O_RDWR | os.O_CLOEXEC


class Spool:
    """Bytes, by their place. Raises TransferFailed: DESTINATION, NO_SPACE, LIMIT."""

    def __init__(self, directory_fd: int, shown: str) -> None:
        """Make it in a directory; `shown` is what people know of that."""
        self._shown = shown
        self._lock = threading.Lock()  # protects what follows
        self._gathered = bytearray(1)  # no place is 0
        self._written_bytes = 0
        try:
            self._fd = _open_unnamed(directory_fd)
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't write into {shown}") from None

    def close(self) -> None:
        """Drop everything. Idempotent."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def append(self, data: bytes | bytearray) -> int:
        """Write behind everything else; return where."""
        with self._lock:
            at = self._written_bytes + len(self._gathered)
            self._gathered += data
            if len(self._gathered) >= GATHER_BYTES:
                self._flush()
            return at

    def reserve(self, count: int) -> int:
        """Set so many zeros aside behind everything else; return where."""
        if count < GATHER_BYTES:
            return self.append(bytes(count))
        with self._lock:
            self._flush()
            at = self._written_bytes
            self._written_bytes += count
            return at

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        """Write over what stands at a place that was appended or reserved."""
        with self._lock:
            start = at - self._written_bytes
            if start >= 0:
                self._gathered[start : start + len(data)] = data
                return
            self._flush()
            self._write(data, at)

    def read(self, at: int, count: int) -> bytes:
        """Read what was written."""
        with self._lock:
            start = at - self._written_bytes
            if start >= 0:
                return bytes(self._gathered[start : start + count])
            if start + count > 0:
                self._flush()
            fd = self._fd
        return self._read(fd, at, count)

    def _read(self, fd: int, at: int, count: int) -> bytes:
        try:
            data = os.pread(fd, count, at)
            while len(data) < count:
                more = os.pread(fd, count - len(data), at + len(data))
                if not more:  # reserved, and never written
                    return data + bytes(count - len(data))
                data += more
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't read what is kept in {self._shown}") from None
        return data

    def _flush(self) -> None:
        self._write(self._gathered, self._written_bytes)
        self._written_bytes += len(self._gathered)
        self._gathered = bytearray()

    def _write(self, data: bytes | bytearray | memoryview, at: int) -> None:
        try:
            write_at(self._fd, memoryview(data), at, ())
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't keep the manifest in {self._shown}") from None


def _open_unnamed(directory_fd: int) -> int:
    """Make a file without a name, or take its name away where a file system makes none without. Raises OSError."""
    with contextlib.suppress(OSError):
        return os.open(".", _OPEN | os.O_TMPFILE, 0o600, dir_fd=directory_fd)
    name = f"spool-{os.urandom(8).hex()}"  # nobody else's, and not that of a process that was killed here
    fd = os.open(name, _OPEN | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=directory_fd)
    try:
        os.unlink(name, dir_fd=directory_fd)
    except OSError:
        os.close(fd)
        raise
    return fd
