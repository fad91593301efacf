"""Space for a file, taken ahead of its bytes (posix_fallocate(3)).

Connections write at many places of one file at once. A file system that was told of all of it lays it out in few
pieces, and has less to do for each write, under the lock of the inode. And nobody else gets that space meanwhile.
"""

import ctypes
import errno
import os
from collections.abc import Callable, Iterable
from typing import Final

from wire.grid import outside_holes
from wire.limits import MIB

STEP_BYTES: Final = 256 * MIB
"""On disk all is done at once. In memory every page takes its time, and writers wait for each step."""

_libc: Final = ctypes.CDLL(None, use_errno=True)
_fallocate: Final = getattr(_libc, "fallocate64", _libc.fallocate)
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def reserve(fd: int, size: int, holes: Iterable[tuple[int, int]], is_over: Callable[[], bool]) -> None:
    """Take space for all of a file of `size` bytes but its holes (offset, length), until it `is_over`.

    Raises OSError where the file system is full, or a quota is: ENOSPC, EDQUOT. One that can't do it is left alone.
    """
    try:
        for start, end in outside_holes(0, size, holes):
            for offset in range(start, end, STEP_BYTES):
                if is_over():
                    return
                fallocate(fd, offset, min(STEP_BYTES, end - offset))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise


def fallocate(fd: int, offset: int, count: int) -> None:
    """Take space and write nothing: os.posix_fallocate writes zeros where a file system can't do it. Raises OSError."""
    if _fallocate(fd, 0, offset, count):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
