"""Where the segments of a file lie (proto/README.md, "Chunks and segments").

Segment i of a file is bytes [i*C, min((i+1)*C, size)), C being the offered chunk size. Both ends compute this from the
Offer and the manifest; the receiver accepts no other segment.
"""

from typing import NamedTuple

from wire import limits


def comfortable_chunk_size(size: int, default: int = limits.CHUNK_SIZE_DEFAULT) -> int:
    """Double the default until a file of `size` bytes has no more than CHUNKS_PER_FILE_COMFORTABLE chunks."""
    chunk_size = default
    while -(-size // chunk_size) > limits.CHUNKS_PER_FILE_COMFORTABLE and chunk_size < limits.CHUNK_SIZE_MAX:
        chunk_size *= 2
    return chunk_size


def smallest_chunk_size(size: int) -> int:
    """Return the smallest chunk size, in bytes, that cuts `size` bytes into at most CHUNKS_PER_FILE chunks."""
    return max(1, -(-size // limits.CHUNKS_PER_FILE))


class Grid(NamedTuple):
    """The segments of one file. Sizes in bytes."""

    size: int
    chunk_size: int

    @property
    def segments(self) -> int:
        """Number of segments; an empty file has none."""
        return -(-self.size // self.chunk_size)

    def offset(self, index: int) -> int:
        """First byte of segment `index`."""
        return index * self.chunk_size

    def length(self, index: int) -> int:
        """Bytes in segment `index`: chunk_size, but for the last."""
        return min(self.chunk_size, self.size - index * self.chunk_size)

    def bytes_between(self, first: int, end: int) -> int:
        """Bytes in the segments [first, end)."""
        return min(end * self.chunk_size, self.size) - min(first * self.chunk_size, self.size)

    def index_of(self, offset: int, length: int) -> int | None:
        """Which segment these bytes are; None where they are not exactly one."""
        index, rest = divmod(offset, self.chunk_size)
        if rest or not 0 <= offset < self.size or length != self.length(index):
            return None
        return index
