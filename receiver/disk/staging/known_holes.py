"""Where a staged file may have holes: what its sender told, so that any other hole shows that bytes are gone.

Holes are counted, not listed: a file may have any number of them.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator

from filestreamer.wire.grid import Grid
from filestreamer.wire.messages import Segment
from receiver.disk.space import holes, inner_bytes
from receiver.disk.staging import ledger


class KnownHoles:
    """The holes of one staged file. Any thread may count."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self.zero_segments: Callable[[], Iterable[tuple[int, int]]] = tuple
        """Returns the runs [first, end) of segments of zeros."""
        self._mutex = threading.Lock()  # protects what follows
        self._bytes = 0
        """At least so many bytes of the segments that are here lie in holes."""

    def count(self, segment: Segment) -> None:
        """Count the holes of a segment that is here."""
        size = self._grid.size
        with self._mutex:
            self._bytes += sum(inner_bytes(start, end, size) for start, end, is_data in segment.pieces() if not is_data)

    def count_claimed(self, fd: int, claims: ledger.Claims) -> None:
        """Count the holes that the segments of an earlier run have on the disk: these segments are hashed again."""
        found = sum(end - start for run in ledger.byte_runs(claims) for start, end in holes(fd, *run))
        with self._mutex:
            self._bytes += found

    def suspects(self, fd: int) -> Iterator[int]:
        """Yield the number of each segment that a hole of the file touches, once, in order.

        Yield nothing if the file has no more holes than are known. Raises OSError.
        """
        grid = self._grid
        zeros = [(grid.offset(first), min(grid.offset(end), grid.size)) for first, end in self.zero_segments()]
        known_bytes = self._bytes + sum(inner_bytes(*run, grid.size) for run in zeros)
        status = os.fstat(fd)
        if not os.major(status.st_dev) and status.st_blocks * 512 >= grid.size - known_bytes:
            return  # a file system in memory: to look for holes there would visit every page
        if sum(end - start for start, end in holes(fd, 0, grid.size)) <= known_bytes:
            return
        first = 0
        for start, end in holes(fd, 0, grid.size):
            next_first = min(grid.segments, -(-end // grid.chunk_size))
            yield from range(max(first, start // grid.chunk_size), next_first)
            first = next_first
