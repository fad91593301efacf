"""Buffers for payload, in huge pages where the kernel gives any.

The kernel copies every byte into such a buffer and out of it again. In pages of 4 KiB, what the CPU has to look up of
their addresses costs a tenth of all CPU time of a transfer. A huge page holds 2 MiB: buffers that live as long as each
other are cut from arenas (`buffer`). One that lives for itself has an arena for itself or, where it is to be small,
plain memory (`mapped`): both go back to the system with it, whatever lives beside it.
"""

import contextlib
import mmap  # noqa: TID251 - memory of no file
import threading
from typing import Final

from filestreamer.wire import limits

ARENA_BYTES: Final = 2 * limits.MIB
"""One huge page: what one buffer that is left pins of its neighbours."""
_ALIGNMENT: Final = 64


class Arenas:
    """Cuts buffers from one arena after another. An arena is given back once nobody has a view of it.

    So what is cut from one arena should live about as long as its neighbours.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()  # protects what is left of the newest arena
        self._left = memoryview(b"")

    def buffer(self, size: int) -> memoryview:
        """Return `size` writable bytes that nobody else has; at most ARENA_BYTES. Raises MemoryError."""
        taken = -(-size // _ALIGNMENT) * _ALIGNMENT
        with self._mutex:
            if len(self._left) < taken:
                self._left = memoryview(_map(ARENA_BYTES, mmap.MADV_HUGEPAGE))
            view, self._left = self._left[:size], self._left[taken:]
        return view


def mapped(size: int, *, huge: bool = False) -> memoryview:
    """Return `size` writable bytes that go back to the system with the last view of them. Raises MemoryError.

    `huge` puts them into huge pages: then they take whole ones. Without, what nobody writes to takes nothing.
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
