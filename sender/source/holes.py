"""The holes of a sparse file, as the file system reports them. They are listed in the manifest, and not sent."""

import errno
import os
from collections.abc import Iterator
from typing import Final

from filestreamer.wire import limits
from filestreamer.wire.messages import Hole

HOLE_BYTES_MIN: Final = 64 * limits.KIB
"""A smaller hole is sent as the zeros that it reads as, unless the file is smaller itself."""


def find_holes(fd: int, size: int) -> tuple[Hole, ...]:
    """Return the holes of a file, in order: those of HOLE_BYTES_MIN and more, and the largest if there are too many.

    Returns none where the file system can't report them.
    """
    least = min(HOLE_BYTES_MIN, size)
    try:
        found = [hole for hole in _all_holes(fd, size) if hole.length >= least]
    except OSError:
        return ()
    largest = sorted(found, key=lambda hole: -hole.length)[: limits.HOLES_PER_FILE]
    return tuple(sorted(largest))


def _all_holes(fd: int, size: int) -> Iterator[Hole]:
    """Yield the holes in the first `size` bytes. Raises OSError where the file system can't report them."""
    end = 0
    while end < size and (start := os.lseek(fd, end, os.SEEK_HOLE)) < size:
        try:
            end = min(os.lseek(fd, start, os.SEEK_DATA), size)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            end = size  # no data follows
        yield Hole(start, end - start)
