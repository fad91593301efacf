"""Where the segments of a file are (proto/README.md, "Chunks and segments").

Segment i of a file is bytes [i*C, min((i+1)*C, size)), where C is the chunk size of the Offer. Both ends compute the
segments from Offer and manifest, and the receiver accepts no others. A shard moves only its share of them ("Shards").
"""

from typing import Final, NamedTuple

from filestreamer.records import Record
from filestreamer.wire import limits


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
        """Number of segments; 0 for an empty file."""
        return -(-self.size // self.chunk_size)

    def offset(self, index: int) -> int:
        """First byte of segment `index`."""
        return index * self.chunk_size

    def length(self, index: int) -> int:
        """Bytes in segment `index`: chunk_size, or fewer in the last one."""
        return min(self.chunk_size, self.size - index * self.chunk_size)

    def bytes_between(self, first: int, end: int) -> int:
        """Bytes in the segments [first, end)."""
        return min(end * self.chunk_size, self.size) - min(first * self.chunk_size, self.size)

    def index_of(self, offset: int, length: int) -> int | None:
        """Return which segment these bytes are; None where they are not exactly one segment."""
        index, rest = divmod(offset, self.chunk_size)
        if rest or not 0 <= offset < self.size or length != self.length(index):
            return None
        return index


class Share(Record):
    """The chunks k of a file with k % count == index: those that one shard moves. Share 0 of 1 is all chunks.

    Within a share, chunks are numbered by ordinals: ordinal i is chunk i * count + index.
    """

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def chunks(self, chunks: int) -> int:
        """Return how many of the chunks 0 to `chunks` - 1 are in this share."""
        return len(range(self.index, chunks, self.count))

    def chunk(self, ordinal: int) -> int:
        """Return the chunk with this ordinal."""
        return ordinal * self.count + self.index

    def ordinal(self, chunk: int) -> int:
        """Return the ordinal of a chunk of this share."""
        return chunk // self.count

    def ordinals_of(self, chunks: range) -> range:
        """Return the ordinals of chunks that are all in this share."""
        step = -(-chunks.step // self.count)  # that of a single chunk may be 1, and means nothing
        first = self.ordinal(chunks.start)
        return range(first, first + len(chunks) * step, step)

    def holds(self, chunk: int) -> bool:
        """Return whether a chunk is in this share."""
        return chunk % self.count == self.index

    def ordinals(self, first: int, end: int) -> range:
        """Return the ordinals of those of the chunks [first, end) that are in this share."""
        return range(self.chunks(first), self.chunks(end))

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """Return the range [first, end) of chunks that covers the ordinals [start, stop), which must not be empty."""
        return self.chunk(start), self.chunk(stop - 1) + 1

    def bytes_between(self, grid: Grid, start: int, stop: int) -> int:
        """Bytes in the chunks of this share with ordinals [start, stop)."""
        if stop <= start:
            return 0
        return (stop - start - 1) * grid.chunk_size + grid.length(self.chunk(stop - 1))

    def bytes_of(self, grid: Grid) -> int:
        """Bytes of a file that are in this share."""
        return self.bytes_between(grid, 0, self.chunks(grid.segments))


WHOLE: Final = Share()
"""The share of a transfer that is no shard."""
