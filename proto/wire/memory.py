"""Buffers for payload, in huge pages where the kernel gives any.

The kernel copies every byte into such a buffer and out of it again. In pages of 4 KiB, what the CPU has to look up of
their addresses costs a tenth of all CPU time of a transfer. A huge page holds 2 MiB: buffers are cut from arenas.
"""

import contextlib
import mmap  # noqa: TID251 - memory of no file
import threading
from typing import Final

from wire import limits

ARENA_BYTES: Final = 2 * limits.MIB
"""One huge page: what one buffer that is left pins of its neighbours."""
_ALIGNMENT: Final = 64


class Arenas:
    """Cuts buffers from one arena after another. An arena is given back once nobody has a view of it."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()  # protects what is left of the newest arena
        self._left = memoryview(b"")

    def buffer(self, size: int) -> memoryview:
        """Return `size` writable bytes that nobody else has; at most ARENA_BYTES. Raises MemoryError."""
        taken = -(-size // _ALIGNMENT) * _ALIGNMENT
        with self._mutex:
            if len(self._left) < taken:
                self._left = memoryview(_map())
            view, self._left = self._left[:size], self._left[taken:]
        return view


def _map() -> mmap.mmap:
    try:
        arena = mmap.mmap(-1, ARENA_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(error.strerror) from None
    with contextlib.suppress(OSError):  # a kernel without huge pages
        arena.madvise(mmap.MADV_HUGEPAGE)
    return arena


buffer: Final = Arenas().buffer
