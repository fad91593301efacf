"""Which segments make which chunk (proto/README.md, "Chunks and segments").

Files are taken in manifest order, and each ManifestPart is cut by itself. A file of more than one segment has one chunk
for each segment. Smaller files are bundled whole: a bundle ends before it would have more than `chunk_size` bytes or
SEGMENTS_PER_CHUNK segments, and before a file of several segments. An empty file has no segment and is in no chunk.

1. `Bundler` is that rule: file by file, in constant memory.
2. `count_chunks` counts the chunks of a part. The receiver needs no more, as each ChunkHeader names its segments.
3. `Layout` also remembers where each file is. The sender needs it to find the segments of a chunk.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from filestreamer.wire import limits
from filestreamer.wire.grid import Grid
from filestreamer.wire.messages import Segment


class Bundler:
    """Assigns files to chunks, one after the other."""

    __slots__ = ("_bundle_bytes", "_bundle_segments", "_chunk_size", "chunks")

    def __init__(self, chunk_size: int) -> None:
        self.chunks = 0
        """Number of chunks so far, the open bundle included."""
        self._chunk_size = chunk_size
        self._bundle_bytes = 0
        self._bundle_segments = 0  # 0: no bundle is open

    def add(self, size: int) -> int:
        """Take the next file, of `size` bytes; return the chunk of its first byte.

        An empty file has no byte: for it, the return value is the number of chunks so far.
        """
        if size > self._chunk_size:
            first_chunk = self.chunks
            self.chunks += Grid(size, self._chunk_size).segments
            self._bundle_segments = 0
            return first_chunk
        if not size:
            return self.chunks
        is_full = self._bundle_bytes + size > self._chunk_size or self._bundle_segments == limits.SEGMENTS_PER_CHUNK
        if is_full or not self._bundle_segments:
            self.chunks += 1
            self._bundle_bytes = self._bundle_segments = 0
        self._bundle_bytes += size
        self._bundle_segments += 1
        return self.chunks - 1


def count_chunks(sizes: Iterable[int], chunk_size: int) -> int:
    """Count the chunks of the files of one ManifestPart; sizes in bytes, in order."""
    bundler = Bundler(chunk_size)
    for size in sizes:
        bundler.add(size)
    return bundler.chunks


class Layout:
    """The chunks of the files of one ManifestPart. Its memory grows with files, not with bytes."""

    def __init__(self, chunk_size: int, sizes: Sequence[int]) -> None:
        """Cut files of these sizes, in bytes, in manifest order; their file_ids count from 0."""
        self.chunk_size = chunk_size
        self._sizes = sizes
        self.first_chunks: list[int] = []
        """Of each file, the chunk of its first byte, as `Bundler.add` returns it."""
        # A run is a file of several segments, or a bundle: (its first chunk_id, the file_id of its first file).
        self._runs: list[tuple[int, int]] = []
        self._run_starts: list[int] = []  # the first chunk_id of each run, for bisect
        bundler, chunks = Bundler(chunk_size), 0
        for file_id, size in enumerate(sizes):
            self.first_chunks.append(bundler.add(size))
            if bundler.chunks > chunks:
                self._runs.append((chunks, file_id))
                self._run_starts.append(chunks)
                chunks = bundler.chunks
        self.chunks = chunks
        """Number of chunks."""

    def grid(self, file_id: int) -> Grid:
        """Return the segments of one file."""
        return Grid(self._sizes[file_id], self.chunk_size)

    def chunk_of(self, file_id: int, segment: int) -> int:
        """Return which chunk carries segment `segment` of a file."""
        return self.first_chunks[file_id] + (segment if self._sizes[file_id] > self.chunk_size else 0)

    def segments(self, chunk_id: int) -> tuple[Segment, ...]:
        """Return the segments of one chunk, in order. Raises IndexError for a chunk that is not in this layout."""
        if not 0 <= chunk_id < self.chunks:
            raise IndexError(f"chunk {chunk_id} of {self.chunks}")
        first_chunk, file_id = self._runs[bisect_right(self._run_starts, chunk_id) - 1]
        grid = self.grid(file_id)
        if grid.segments > 1:
            index = chunk_id - first_chunk
            return (Segment(file_id, grid.offset(index), grid.length(index)),)
        return tuple(self._bundled(file_id, chunk_id))

    def _bundled(self, first_file_id: int, chunk_id: int) -> Iterator[Segment]:
        """Yield the segments of a bundle, whose first file is given."""
        for file_id in range(first_file_id, len(self._sizes)):
            size = self._sizes[file_id]
            if not size:
                continue  # an empty file, which is in no chunk
            if self.first_chunks[file_id] != chunk_id:
                return
            yield Segment(file_id, 0, size)
