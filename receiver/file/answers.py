"""The answers by segments, Needed and Zeros, for ordinals [start, stop) of a share of a file.

A file of many chunks can have as many runs: messages are made one by one, never as a list.
"""

import itertools
from collections.abc import Iterable, Iterator

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.grid import Share

Runs = Iterable[tuple[int, int]]
"""Runs [start, stop) of ordinals."""


def needed_messages(file_id: int, share: Share, ordinals: Runs) -> Iterator[m.Needed]:
    """Yield Needed for these ordinals, in messages that a frame has room for."""
    return (m.Needed((), some) for some in _ranges(file_id, share, ordinals))


def zeros_messages(file_id: int, share: Share, ordinals: Runs) -> Iterator[m.Zeros]:
    """Yield Zeros for these ordinals, in messages that a frame has room for."""
    return (m.Zeros(some) for some in _ranges(file_id, share, ordinals))


def _ranges(file_id: int, share: Share, ordinals: Runs) -> Iterator[tuple[m.SegmentRange, ...]]:
    spans = (share.span(start, stop) for start, stop in ordinals)
    ranges = (m.SegmentRange(file_id, first, end - first) for first, end in spans)
    while some := tuple(itertools.islice(ranges, limits.RANGES_PER_NEEDED)):
        yield some
