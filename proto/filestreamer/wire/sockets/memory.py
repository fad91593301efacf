"""Buffers for payload, in huge pages where the kernel has them.

The kernel copies every byte into such a buffer and out of it again. With pages of 4 KiB, address translation takes a
tenth of all CPU time of a transfer.

A huge page has 2 MiB. `buffer` cuts buffers that live about equally long from the same huge page (an arena). `mapped`
is for a buffer with a life of its own: it has memory of its own, which goes back to the system with it.
"""

import contextlib
import mmap  # noqa: TID251 - memory of no file
import threading
from typing import Final

from filestreamer.wire import limits

ARENA_BYTES: Final = 2 * limits.MIB
"""One huge page. A single buffer that is still used keeps all of it from going back to the system."""
_ALIGNMENT: Final = 64


class Arenas:
    """Cuts buffers from one arena after another. An arena goes back to the system when no view of it is left.

    Buffers that are cut one after another should therefore live about equally long.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()  # protects _left, the unused end of the newest arena
        self._left = memoryview(b"")

    def buffer(self, size: int) -> memoryview:
        """Return `size` writable bytes of their own, at most ARENA_BYTES. Raises MemoryError."""
        taken = -(-size // _ALIGNMENT) * _ALIGNMENT
        with self._mutex:
            if len(self._left) < taken:
                self._left = memoryview(_map(ARENA_BYTES, mmap.MADV_HUGEPAGE))
            view, self._left = self._left[:size], self._left[taken:]
        return view


def mapped(size: int, *, huge: bool = False) -> memoryview:
    """Return `size` writable bytes, which go back to the system with the last view of them. Raises MemoryError.

    With `huge`, they take whole huge pages. Without it, pages that are never written to take no memory.
    """
    if huge:
        return memoryview(_map(-(-size // ARENA_BYTES) * ARENA_BYTES, mmap.MADV_HUGEPAGE))[:size]
    return memoryview(_map(size, mmap.MADV_NOHUGEPAGE))


def _map(size: int, advice: int) -> mmap.mmap:
    try:
        arena = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(error.strerror) from None
    with contextlib.suppress(OSError):  # a kernel without huge pages
        arena.madvise(advice)
    return arena


buffer: Final = Arenas().buffer
