"""Which segments make which chunk (proto/README.md, "Chunks and segments").

Files are taken in manifest order, and each ManifestPart is cut by itself. A file of more than one segment has one chunk
for each segment. Smaller files are bundled whole: a bundle ends before it would have more than `chunk_size` bytes or
SEGMENTS_PER_CHUNK segments, and before a file of several segments. An empty file has no segment and is in no chunk.

Both ends count chunks. The sender also looks up what a chunk carries; the receiver need not, as each ChunkHeader names
its segments.
"""

from bisect import bisect_right
from collections.abc import Sequence

from filestreamer.wire import limits
from filestreamer.wire.grid import Grid
from filestreamer.wire.messages import Segment


class Layout:
    """The chunks of the files of one ManifestPart. Its memory grows with files, not with bytes."""

    def __init__(self, chunk_size: int, sizes: Sequence[int]) -> None:
        """Cut files of these sizes, in bytes, in manifest order; their file_ids count from 0."""
        self.chunk_size = chunk_size
        self._sizes = sizes
        self.first_chunks: list[int] = []
        """Of each file, the chunk of its first byte; of an empty file, the number of chunks before it."""
        # A run is a file of several segments, or a bundle: (its first chunk_id, the file_id of its first file).
        self._runs: list[tuple[int, int]] = []
        self._run_starts: list[int] = []  # the first chunk_id of each run, for bisect
        chunks = 0
        bytes_left = segments_left = 0  # how much more the open bundle may take; 0: none is open
        for file_id, size in enumerate(sizes):
            if not size:
                self.first_chunks.append(chunks)
                continue
            if size > bytes_left or not segments_left:
                self._runs.append((chunks, file_id))
                self._run_starts.append(chunks)
                if size > chunk_size:
                    self.first_chunks.append(chunks)
                    chunks += Grid(size, chunk_size).segments
                    bytes_left = 0
                    continue
                chunks += 1
                bytes_left, segments_left = chunk_size, limits.SEGMENTS_PER_CHUNK
            self.first_chunks.append(chunks - 1)
            bytes_left -= size
            segments_left -= 1
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
        run = bisect_right(self._run_starts, chunk_id) - 1
        first_chunk, file_id = self._runs[run]
        grid = self.grid(file_id)
        if grid.segments > 1:
            index = chunk_id - first_chunk
            return (Segment(file_id, grid.offset(index), grid.length(index)),)
        sizes = self._sizes
        return tuple([Segment(file_id, 0, sizes[file_id]) for file_id in self._files_of(run) if sizes[file_id]])

    def files(self, chunk_id: int) -> range:
        """Return the files of a bundle; empty ones between them are in no chunk."""
        return self._files_of(bisect_right(self._run_starts, chunk_id) - 1)

    def _files_of(self, run: int) -> range:
        end = self._runs[run + 1][1] if run + 1 < len(self._runs) else len(self._sizes)
        return range(self._runs[run][1], end)
