"""Space for a file: taken ahead of its bytes (posix_fallocate(3)), and given back where none came (punched out).

Connections write at many places of one file at once. A file system that was told of all of it lays it out in few
pieces, and has less to do for each write, under the lock of the inode. And nobody else gets that space meanwhile.

What may be taken ahead grows with what has come, so that a few bytes never take a large part of a disk: everything that
was announced, as long as that is not more than AHEAD_BYTES (over all files under way), and beyond that as much again as
has been written of the file.
"""

import ctypes
import errno
import os
from collections.abc import Callable, Iterable
from typing import Final

from filestreamer.wire.grid import outside_holes
from filestreamer.wire.limits import MIB

STEP_BYTES: Final = 256 * MIB
"""On disk all is done at once. In memory every page takes its time, and writers wait for each step."""
GRAIN_BYTES: Final = 64 * MIB
"""No less is taken ahead in one step, unless nothing else is left: many small pieces are no layout."""
AHEAD_BYTES: Final = 1024 * MIB
"""What all files under way may have together beyond twice what was written of each."""
BLOCK_BYTES: Final = 4096
"""Holes smaller than this free nothing."""
_PUNCH_HOLE: Final = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_UNABLE: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

_libc: Final = ctypes.CDLL(None, use_errno=True)
_fallocate: Final = getattr(_libc, "fallocate64", _libc.fallocate)
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Ahead:
    """What is still to be taken of one file. For one thread, but for `granted_bytes`."""

    def __init__(self, size: int, holes: Iterable[tuple[int, int]]) -> None:
        """Of all of a file of `size` bytes but its holes (offset, length)."""
        self.granted_bytes = 0
        """What was taken so far, or is about to be."""
        self.is_on_its_own = False
        """Nothing is lent to it any more: it gets no more than it has earned."""
        self._ranges = outside_holes(0, size, holes)
        self._at, self._end = next(self._ranges, (0, 0))

    def take(self, fd: int, grant: Callable[[int], int], is_over: Callable[[], bool]) -> bool:
        """Take what `grant` allows (it is asked for some bytes, and says how many), until it `is_over`.

        Return whether nothing is left to be taken. Raises OSError where the file system is full, or a quota is:
        ENOSPC, EDQUOT. One that can't do it is left alone.
        """
        try:
            while self._at < self._end:
                if is_over():
                    return False
                count = grant(min(STEP_BYTES, self._end - self._at))
                if not count:
                    return False
                fallocate(fd, self._at, count)
                self._at += count
                if self._at == self._end:
                    self._at, self._end = next(self._ranges, (0, 0))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
        return True


def give_back(fd: int, ranges: Iterable[tuple[int, int]], kept_end: int) -> None:
    """Free the space of ranges [start, end) of a file that no byte was written to that counts. Raises OSError.

    The file has bytes that count up to `kept_end`. A file system that can't punch holes gets it shortened to that.
    """
    size = os.fstat(fd).st_size
    try:
        for start, end in ranges:
            first = -(-start // BLOCK_BYTES) * BLOCK_BYTES
            last = (-(-end // BLOCK_BYTES) if end >= size else end // BLOCK_BYTES) * BLOCK_BYTES
            if first < last:
                punch(fd, first, last - first)
    except OSError as error:
        if error.errno not in _UNABLE:
            raise
        if kept_end < size:
            os.ftruncate(fd, kept_end)


def fallocate(fd: int, offset: int, count: int) -> None:
    """Take space and write nothing: os.posix_fallocate writes zeros where a file system can't do it. Raises OSError."""
    _call_fallocate(fd, 0, offset, count)


def punch(fd: int, offset: int, count: int) -> None:
    """Free the space of these bytes, which are zeros then; the size stays. Raises OSError."""
    _call_fallocate(fd, _PUNCH_HOLE, offset, count)


def _call_fallocate(fd: int, mode: int, offset: int, count: int) -> None:
    while _fallocate(fd, mode, offset, count):
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
