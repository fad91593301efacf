"""The small segments of a chunk, taken together as far as a block has room for them.

A bundle has up to a thousand files. Each step, such as to hash them, is done for all of a block, so that a file costs
few calls of its own.
"""

from collections.abc import Iterator, Sequence

from filestreamer.wire.messages import Segment


def blocks(segments: Sequence[Segment], block_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Yield the segments [first, end) that a block has room for, and how many bytes they have, in order.

    A segment with holes comes alone, with 0 bytes, and so does one that is longer than a block.
    """
    first = size = 0
    for index, (_, _, length, runs) in enumerate(segments):
        is_alone = runs or length > block_bytes
        if size and (is_alone or size + length > block_bytes):
            yield first, index, size
            size = 0
        if is_alone:
            yield index, index + 1, 0
        else:
            first = first if size else index
            size += length
    if size:
        yield first, len(segments), size
