"""Space for a file, taken before its bytes come (posix_fallocate(3)).

Connections write at many places of one file at once. A file system that was told of all of it lays it out in few
pieces, and has less to do for each write, under the lock of the inode. And nobody else gets that space meanwhile.
"""

import ctypes
import os
import time
from collections.abc import Iterable
from typing import Final

from wire.grid import outside_holes
from wire.limits import GIB

RESERVE_SECONDS: Final = 1.0
"""On disk it is done at once. In memory every page takes its time, and what is not done by then is left to writers."""
STEP_BYTES: Final = GIB

_libc: Final = ctypes.CDLL(None, use_errno=True)
_fallocate: Final = getattr(_libc, "fallocate64", _libc.fallocate)
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def reserve(fd: int, size: int, holes: Iterable[tuple[int, int]]) -> None:
    """Take space for all of a file of `size` bytes but its holes (offset, length), or for its beginning.

    Never raises: where a file system can't do it, or is full by now, those who write will see.
    """
    deadline = time.monotonic() + RESERVE_SECONDS
    try:
        for start, end in outside_holes(0, size, holes):
            for offset in range(start, end, STEP_BYTES):
                if time.monotonic() > deadline:
                    return
                fallocate(fd, offset, min(STEP_BYTES, end - offset))
    except OSError:
        return


def fallocate(fd: int, offset: int, count: int) -> None:
    """Take space and write nothing: os.posix_fallocate writes zeros where a file system can't do it. Raises OSError."""
    if _fallocate(fd, 0, offset, count):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
