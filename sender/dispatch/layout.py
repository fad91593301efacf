"""Files to chunks, purely (proto/README.md, "Chunks and segments").

Chunks are counted over the transfer in reading order. A file of more than one segment starts a chunk of its own, one
chunk for each segment. Smaller files are bundled whole: a bundle closes before it would exceed `chunk_size` bytes or
SEGMENTS_PER_CHUNK segments. Empty files have no segment and belong to no chunk.
"""

from bisect import bisect_right
from collections.abc import Iterator

from filestreamer.wire import limits
from filestreamer.wire.grid import Grid
from filestreamer.wire.messages import Segment


class Layout:
    """Which segments make which chunk. Files are added in manifest order; memory grows with files, not with bytes."""

    def __init__(self, chunk_size: int) -> None:
        self.chunk_size = chunk_size
        self.chunks = 0
        """Number of chunks so far, the open bundle included."""
        self._sizes: list[int] = []
        self._first_chunks: list[int] = []  # of each file, in order; an empty file has the next file's
        self._runs: list[tuple[int, int]] = []  # (first chunk_id, file_id): where large files and bundles begin
        self._run_starts: list[int] = []
        self._bundle_bytes = 0
        self._bundle_segments = 0

    def add(self, size: int) -> int:
        """Append a file of `size` bytes; return its file_id."""
        file_id = len(self._sizes)
        self._sizes.append(size)
        if size > self.chunk_size:
            self._close_bundle()
            self._begin_run(file_id)
            self._first_chunks.append(self.chunks)
            self.chunks += self.grid(file_id).segments
        elif size:
            self._bundle(file_id, size)
        else:
            self._first_chunks.append(self.chunks)
        return file_id

    def _bundle(self, file_id: int, size: int) -> None:
        full = self._bundle_bytes + size > self.chunk_size or self._bundle_segments == limits.SEGMENTS_PER_CHUNK
        if full:
            self._close_bundle()
        if not self._bundle_segments:
            self._begin_run(file_id)
            self.chunks += 1
        self._bundle_bytes += size
        self._bundle_segments += 1
        self._first_chunks.append(self.chunks - 1)

    def _begin_run(self, file_id: int) -> None:
        self._runs.append((self.chunks, file_id))
        self._run_starts.append(self.chunks)

    def _close_bundle(self) -> None:
        self._bundle_bytes = self._bundle_segments = 0

    def grid(self, file_id: int) -> Grid:
        """Return the segments of one file."""
        return Grid(self._sizes[file_id], self.chunk_size)

    def chunk_of(self, file_id: int, segment: int) -> int:
        """Return which chunk carries segment `segment` of a file."""
        return self._first_chunks[file_id] + (segment if self._sizes[file_id] > self.chunk_size else 0)

    def segments(self, chunk_id: int) -> tuple[Segment, ...]:
        """Return what one chunk carries, in order. Raises IndexError for a chunk that is not in this layout."""
        if not 0 <= chunk_id < self.chunks:
            raise IndexError(f"chunk {chunk_id} of {self.chunks}")
        first_chunk, file_id = self._runs[bisect_right(self._run_starts, chunk_id) - 1]
        grid = self.grid(file_id)
        if grid.segments > 1:
            index = chunk_id - first_chunk
            return (Segment(file_id, grid.offset(index), grid.length(index)),)
        return tuple(self._bundled(file_id, chunk_id))

    def _bundled(self, file_id: int, chunk_id: int) -> Iterator[Segment]:
        for at in range(file_id, len(self._sizes)):
            size = self._sizes[at]
            if not size:
                continue  # an empty file, which belongs to no chunk
            if self._first_chunks[at] != chunk_id:
                return
            yield Segment(at, 0, size)
