"""A file of more than one segment in a tree: staged and resumed as a single file is (`files`).

It is opened with its first chunk, or when there is staging of an earlier run, and closed as soon as it is complete.
Between chunks it may be set aside (`cache`): then its descriptors are closed, and what is known of its segments is in
the spool, as are the digests of one that is complete.
"""

import threading
from collections.abc import Iterator
from typing import Final

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.grid import WHOLE, Grid, hole_segments
from receiver.disk.store import Staging, StagingMark
from receiver.file.file_share import FileShare
from receiver.file.shared_file import File
from receiver.file.target import Connection
from receiver.tree.spool import Spool

UNSEEN: Final = 0
"""Nothing is known of its segments but what the state of the file says."""
TABLE: Final = 1
"""It was set aside: the spool has the digests and states of its segments."""
WHOLE_DIGESTS: Final = 2
"""All of it is here, and the spool has its digests."""
_SIZE: Final = limits.DIGEST_BYTES
_PIECE: Final = 64 * limits.KIB
"""Segments that are copied at once."""


class OpenLargeFile(FileShare):
    """What a tree has in a large file that is open: all of it."""

    def __init__(self, file: File) -> None:
        super().__init__(file, WHOLE)
        self.rehashing = 0
        """Batches that are being re-hashed; protected by the lock of its portion, as is `inside`."""
        self.inside: set[Connection] = set()
        """Connections with a chunk of it."""
        self.borrowed_bytes = 0
        """What its table has borrowed."""
        self.free_bytes = 0
        """What its table has of the transfer's own."""
        self._recording = threading.Lock()  # protects what follows
        self._unrecorded: set[int] = set()
        self._is_done = False

    def delivered(self, position: int) -> None:
        """Hear that a segment was written that no ledger notes yet."""
        with self._recording:
            self._unrecorded.add(position)

    def write(self, view: memoryview, offset: int) -> None:
        """Write bytes of a segment that was begun. Raises TransferFailed: NO_SPACE, DESTINATION."""
        self.staged.write(view, offset)

    def record(self, records: list[tuple[int, bytes]]) -> None:
        """Note what was written, unless it was closed meanwhile: then all of it was noted before."""
        with self._recording:
            if not self._is_done:
                self.staged.record(records)
                self._unrecorded.difference_update([position for position, _ in records])

    def finish(self) -> None:
        """Note what is not noted yet, and let nobody touch its descriptors any more. Raises TransferFailed."""
        with self._recording:
            if not self._is_done:
                self._is_done = True
                if self._unrecorded:
                    positions = sorted(self._unrecorded)
                    self.staged.record([(position, self.file.chunk_states.digest(position)) for position in positions])

    def forsake(self) -> None:
        """Let nobody touch its descriptors any more; note nothing."""
        with self._recording:
            self._is_done = True

    @property
    def staged(self) -> Staging:
        """Its staging: a large file of a tree is never looked at in place."""
        assert isinstance(self.file.content, Staging)
        return self.file.content

    @property
    def is_verified(self) -> bool:
        """Whether every segment came in this transfer."""
        with self.file.lock:
            return self.file.chunk_states.is_verified

    @property
    def is_settled(self) -> bool:
        """Whether every segment is here, unless the sender finds that it has another."""
        with self.file.lock:
            return self.file.chunk_states.is_all_here

    @property
    def has_writers(self) -> bool:
        """Whether a connection is writing it."""
        with self.file.lock:
            return self.file.chunk_states.has_writers


class Large:
    """One large file; protected by the lock of its portion."""

    __slots__ = ("at", "grid", "holes", "kind", "mark", "open_file")

    def __init__(self, entry: m.Entry, chunk_size: int) -> None:
        self.grid = Grid(entry.size, chunk_size)
        self.holes = list(hole_segments(self.grid, entry.holes))
        """Runs [first, end) of segments that lie in holes."""
        self.open_file: OpenLargeFile | None = None
        """While it is open."""
        self.kind = UNSEEN
        self.at = 0
        """Where the spool has its digests, then its states: of the segments that do not lie in holes."""
        self.mark: StagingMark | None = None
        """What its staging looked like when it was set aside; None where nothing was in it."""

    @property
    def payload_bytes(self) -> int:
        """Bytes of the segments that do not lie in holes."""
        return self.grid.size - sum(self.grid.bytes_between(*run) for run in self.holes)

    @property
    def sent_segments(self) -> int:
        """Segments that do not lie in holes."""
        return self.grid.segments - sum(end - first for first, end in self.holes)

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield the runs [first, end) of segments that do not lie in holes."""
        at = 0
        for first, end in [*self.holes, (self.grid.segments, 0)]:
            if at < first:
                yield at, first
            at = end

    def _rank(self, position: int) -> int:
        """Count the segments before this one that do not lie in holes."""
        return position - sum(min(end, position) - first for first, end in self.holes if first < position)

    def place(self, spool: Spool) -> int:
        """Return where the spool has what is known of it, after making room for that."""
        if not self.at:
            self.at = spool.reserve((_SIZE + 1) * self.sent_segments)
        return self.at

    def digests_between(self, first: int, end: int, spool: Spool) -> bytes:
        """Return the digests of segments that follow each other and do not lie in holes."""
        open_file = self.open_file
        if open_file is not None:
            with open_file.file.lock:
                return b"".join(open_file.file.chunk_states.digests(WHOLE, first, end))
        return spool.read(self.at + _SIZE * self._rank(first), _SIZE * (end - first))

    def keep_digests(self, first: int, digests: bytes, spool: Spool) -> None:
        """Write digests of segments that follow each other and do not lie in holes."""
        spool.write(self.place(spool) + _SIZE * self._rank(first), digests)

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield `runs`, none of them longer than what is looked at, or copied, at once."""
        for first, end in self.runs():
            for start in range(first, end, _PIECE):
                yield start, min(start + _PIECE, end)

    def states_between(self, first: int, end: int, spool: Spool) -> bytes:
        """Return the states (`chunk_states`) of segments that follow each other and do not lie in holes."""
        open_file = self.open_file
        if open_file is not None:
            with open_file.file.lock:
                return open_file.file.chunk_states.states_between(first, end)
        if self.kind == UNSEEN:  # dropped meanwhile
            return b""
        return spool.read(self.at + _SIZE * self.sent_segments + self._rank(first), end - first)

    def set_aside(self, spool: Spool, *, is_whole: bool) -> None:
        """Write into the spool what is known of its segments, now that nobody is inside. Raises TransferFailed."""
        open_file = self.open_file
        assert open_file is not None
        chunk_states = open_file.file.chunk_states
        at, states_at = self.place(spool), self.at + _SIZE * self.sent_segments
        for start, stop in self.pieces():
            spool.write(at, b"".join(chunk_states.digests(WHOLE, start, stop)))
            spool.write(states_at, chunk_states.states_between(start, stop))
            at, states_at = at + _SIZE * (stop - start), states_at + stop - start
        self.kind = WHOLE_DIGESTS if is_whole else TABLE

    def restore(self, open_file: OpenLargeFile, spool: Spool) -> None:
        """Put what is known of its segments into a file that was opened again."""
        rank, states_at = 0, self.at + _SIZE * self.sent_segments
        for start, stop in self.pieces():
            count = stop - start
            digests = spool.read(self.at + _SIZE * rank, _SIZE * count)
            open_file.file.chunk_states.restore(start, spool.read(states_at + rank, count), digests)
            rank += count
