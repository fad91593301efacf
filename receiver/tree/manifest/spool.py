"""A file without a name in the staging of a tree, for data that would not fit into memory; closing it deletes it.

A sender decides how long its manifest is, so everything that grows with the manifest is written here. Small additions
are gathered in memory first.
"""

import contextlib
import itertools
import os
import threading
from typing import Final

from filestreamer.wire import limits
from filestreamer.wire.errors import Code, from_os_error
from receiver.disk.paths import SPOOL_PREFIX
from receiver.disk.space import write_at

GATHER_BYTES: Final = 64 * limits.KIB
BLOCK_BYTES: Final = 4 * limits.KIB
"""As much as a file system stores at least."""
_OPEN: Final = os.O_RDWR | os.O_CLOEXEC


class Spool:
    """Bytes by their offset. Any thread may call. Raises TransferFailed: DESTINATION, NO_SPACE, LIMIT."""

    def __init__(self, directory_fd: int, shown: str) -> None:
        """Make it in a directory; `shown` is the directory's path for messages."""
        self._shown = shown
        self._lock = threading.Lock()  # protects what follows
        self._gathered = bytearray(1)  # nothing is at offset 0, so that 0 can stand for "not written"
        self._written_bytes = 0
        """Bytes in the file; the gathered bytes follow them."""
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
        """Add bytes at the end; return their offset."""
        with self._lock:
            at = self._written_bytes + len(self._gathered)
            self._gathered += data
            if len(self._gathered) >= GATHER_BYTES:
                self._flush()
            return at

    def reserve(self, count: int) -> int:
        """Add `count` zeros at the end; return their offset."""
        if count < GATHER_BYTES:
            return self.append(bytes(count))
        with self._lock:
            self._flush()
            at = self._written_bytes
            self._written_bytes += count
            return at

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        """Overwrite bytes that were appended or reserved."""
        with self._lock:
            start = at - self._written_bytes
            if start >= 0:
                self._gathered[start : start + len(data)] = data
                return
            self._flush()
            self._write(data, at)

    def update(self, at: int, data: bytes | bytearray | memoryview) -> None:
        """Overwrite bytes, but for blocks that do not change: zeros that were reserved go on to take no space."""
        before, rest = self.read(at, len(data)), memoryview(data)
        for differ, blocks in itertools.groupby(range(0, len(data), BLOCK_BYTES), lambda i: _differ(before, rest, i)):
            first, *others = blocks
            if differ:
                self.write(at + first, rest[first : (others[-1] if others else first) + BLOCK_BYTES])

    def read(self, at: int, count: int) -> bytes:
        """Read bytes that were appended, reserved or overwritten."""
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
                if not more:  # reserved, and never written: the file ends before that
                    return data + bytes(count - len(data))
                data += more
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't read the manifest back in {self._shown}") from None
        return data

    def _flush(self) -> None:
        self._write(self._gathered, self._written_bytes)
        self._written_bytes += len(self._gathered)
        self._gathered = bytearray()

    def _write(self, data: bytes | bytearray | memoryview, at: int) -> None:
        try:
            write_at(self._fd, memoryview(data), at)
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't write the manifest into {self._shown}") from None


def _differ(one: bytes, other: memoryview, at: int) -> bool:
    """Whether two blocks differ."""
    return one[at : at + BLOCK_BYTES] != other[at : at + BLOCK_BYTES]


def _open_unnamed(directory_fd: int) -> int:
    """Make a file without a name; where the file system can't, make one and unlink it. Raises OSError."""
    with contextlib.suppress(OSError):
        return os.open(".", _OPEN | os.O_TMPFILE, 0o600, dir_fd=directory_fd)
    # A random name: another process may do the same now, and a process that was killed here may have left its file.
    name = f"{SPOOL_PREFIX}{os.urandom(8).hex()}"
    fd = os.open(name, _OPEN | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=directory_fd)
    try:
        with contextlib.suppress(FileNotFoundError):  # a receiver that starts removes what others had left
            os.unlink(name, dir_fd=directory_fd)
    except OSError:
        os.close(fd)
        raise
    return fd
