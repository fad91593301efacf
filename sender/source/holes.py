"""The holes of a sparse file, as the file system reports them: looked for where the file is about to be sent.

    hole_end    where the hole ends that an offset lies in: whole segments of zeros are told, and never read
    holes_in    the holes inside a segment that is sent
    runs_of     the same as `Segment.runs` has them

A file system that can't tell has data everywhere.
"""

import errno
import os
from typing import Final

from filestreamer.wire.messages import Segment

_END: Final = 1 << 63


class Extents:
    """Asks for the holes of one open file. One thread owns it."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size
        self._data = (0, 0)
        """A range [start, end) that is known to be data: most segments of most files cost no call."""

    def hole_end(self, offset: int) -> int:
        """Return where the hole ends that this offset lies in; the offset itself where it lies in data."""
        start, end = self._data
        if start <= offset < end:
            return offset
        hole = self._seek(offset, os.SEEK_HOLE)
        data = self._seek(offset, os.SEEK_DATA) if hole == offset else offset
        if data > offset:
            return min(data, self._size)
        # Where both say "here", a program writes to the file just now: all of it is read then, and found to be changed.
        self._data = (offset, hole if hole > offset else _END)
        return offset

    def holes_in(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the holes between two offsets, each as [start, end), in order."""
        found = []
        at = start
        while at < end:
            hole_end = min(self.hole_end(at), end)
            if hole_end > at:
                found.append((at, hole_end))
                at = hole_end
            else:
                at = self._data[1]
        return found

    def _seek(self, offset: int, whence: int) -> int:
        try:
            return os.lseek(self._fd, offset, whence)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing of the kind follows
                return _END
            return _END if whence == os.SEEK_HOLE else offset  # the file system can't tell: all of it is data


def runs_of(segment: Segment, holes: list[tuple[int, int]], most: int) -> tuple[int, ...]:
    """Return the runs of a segment with these holes; at most `most` numbers, for which the smallest holes are left out.

    () where the segment has no hole.
    """
    room = max(0, (most - 1) // 2)  # a hole, and the data before it; at the end there may be data once more
    if len(holes) > room:
        holes = sorted(sorted(holes, key=lambda hole: hole[0] - hole[1])[:room])
    runs = []
    at, end = segment.offset, segment.offset + segment.length
    for start, stop in holes:
        runs += [start - at, stop - start]
        at = stop
    if runs and at < end:
        runs.append(end - at)
    return tuple(runs)
