"""A file of more than one segment in a tree: staged and resumed as a single file is (`files`).

It is opened with its first chunk, or when there is staging of an earlier run, and closed as soon as it is complete: a
tree of many large files has few of them open. Then no more than its digests is kept.
"""

import threading
from collections.abc import Iterator

from receiver.files import File, Stake
from wire import limits
from wire import messages as m
from wire.grid import WHOLE, Grid, hole_segments


class LargeStake(Stake):
    """What a tree has in a large file that is open: all of it."""

    def __init__(self, file: File) -> None:
        super().__init__(file, WHOLE)
        self.rehashing = 0
        """Batches that are being re-hashed; protected by the lock of its portion."""
        self._recording = threading.Lock()  # protects is_done
        self._is_done = False

    def record(self, records: list[tuple[int, bytes]]) -> None:
        """Note what was written, unless the file is complete: then it needs no ledger, and may be closed."""
        with self._recording:
            if not self._is_done:
                super().record(records)

    def finish(self) -> None:
        """Let nobody touch its descriptors any more."""
        with self._recording:
            self._is_done = True

    @property
    def is_verified(self) -> bool:
        """Whether every segment came in this transfer."""
        with self.file.lock:
            return self.file.assembly.is_verified

    @property
    def is_settled(self) -> bool:
        """Whether every segment is here, unless the sender finds that it has another."""
        with self.file.lock:
            return self.file.assembly.is_settled

    @property
    def has_writers(self) -> bool:
        """Whether a connection is writing it."""
        with self.file.lock:
            return self.file.assembly.has_writers


class Large:
    """One large file; protected by the lock of its portion."""

    __slots__ = ("digests", "grid", "holes", "stake")

    def __init__(self, entry: m.Entry, chunk_size: int) -> None:
        self.grid = Grid(entry.size, chunk_size)
        self.holes = list(hole_segments(self.grid, entry.holes))
        """Runs [first, end) of segments that lie in holes."""
        self.stake: LargeStake | None = None
        """While it is open."""
        self.digests = b""
        """Of all segments, holes included; when it is VERIFIED, or HELD under its final name."""

    @property
    def payload_bytes(self) -> int:
        """Bytes of the segments that do not lie in holes."""
        return self.grid.size - sum(self.grid.bytes_between(*run) for run in self.holes)

    def digest(self, position: int) -> bytes:
        """Return the digest of one segment."""
        return self.digests[position * limits.DIGEST_BYTES : (position + 1) * limits.DIGEST_BYTES]

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield the runs [first, end) of segments that do not lie in holes."""
        at = 0
        for first, end in [*self.holes, (self.grid.segments, 0)]:
            if at < first:
                yield at, first
            at = end

    def all_digests(self) -> Iterator[bytes]:
        """Yield the digests of the segments that have one, in order."""
        for first, end in self.runs():
            yield self.digests[first * limits.DIGEST_BYTES : end * limits.DIGEST_BYTES]

    def finish(self) -> File:
        """Close it to connections, now that all of it is here; return what is to be put in place."""
        stake = self.stake
        assert stake is not None
        stake.finish()
        self.digests = stake.file.assembly.all_digests()
        self.stake = None
        return stake.file
