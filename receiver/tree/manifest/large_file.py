"""A file of more than one segment in a tree: staged and resumed like a single file (receiver/file).

    LargeFile      exists as long as its part of the manifest is in memory;
    OpenLargeFile  exists while the staging of the file is open: from its first chunk, or because an earlier run staged
                   some of it, until the file is complete or set aside.

While the file is set aside its descriptors are closed, and the states and digests of its segments are in the spool. The
spool also keeps the digests of a file that is complete.
"""

import enum
import threading
from collections.abc import Iterable, Iterator
from typing import Final

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import RemoteProtocolError
from filestreamer.wire.grid import WHOLE, Grid, Share
from filestreamer.wire.runs import runs, runs_without
from receiver.disk.staging.closed_staging import StagingMark
from receiver.disk.staging.staging import Staging
from receiver.file.file_share import FileShare
from receiver.file.shared_file import File
from receiver.file.states import HELD, OTHERS, VERIFIED, ZERO
from receiver.file.target import Connection
from receiver.tree.manifest.spool import Spool

_SIZE: Final = limits.DIGEST_BYTES
_PIECE_SEGMENTS: Final = 64 * limits.KIB
"""Segments that are looked at, or copied, at once: a list for all segments would be larger than their table."""


_TO_ZERO: Final = bytes(OTHERS if state == OTHERS else ZERO for state in range(256))


class Spooled(enum.IntEnum):
    """Which data of a closed large file are in the spool."""

    NOTHING = 0
    TABLE = 1
    """States and digests: the file was set aside."""
    DIGESTS = 2
    """Digests of all segments: the file is complete, here or under its final name."""
    DECLINED = 3
    """States and digests of what came of a file that is declined: nothing of it is kept in staging."""


class OpenLargeFile(FileShare):
    """All chunks of a large file whose staging is open or, in a shard of a tree, those that are this shard's."""

    def __init__(self, file: File, share: Share = WHOLE) -> None:
        super().__init__(file, share)
        if share is not WHOLE:
            file.chunk_states.leave_to_others(share)
        self.rehashing = 0
        """Batches of segments that are being re-hashed, and messages of zeros that are acted on.

        Protected by the lock of its part, as is `inside`.
        """
        self.inside: set[Connection] = set()
        """Connections that are receiving a chunk of the file."""
        self._ledger_lock = threading.Lock()
        """Protects what follows, and the ledger's descriptor from being closed while it is written to."""
        self._unrecorded: set[int] = set()
        """Segments that are verified, and that their connection has not recorded in the ledger yet."""
        self._is_ledger_closed = False
        self.is_declined = False
        """Whether nothing more is written, as the file can't be put in place; protected by the lock of its part."""

    def note_unrecorded(self, positions: Iterable[int]) -> None:
        """Note that segments are verified: their connection records them later, before it acknowledges the chunks."""
        with self._ledger_lock:
            self._unrecorded.update(positions)

    def record(self, records: list[tuple[int, bytes]]) -> None:
        """Append (position, digest) pairs to the ledger. After `close_ledger`, which has recorded all, do nothing."""
        with self._ledger_lock:
            if not (self._is_ledger_closed or self.is_declined):
                self.staging.record(records)
                self._unrecorded.difference_update([position for position, _ in records])

    def close_ledger(self, *, records_rest: bool = True) -> None:
        """Keep all threads away from the descriptors; with `records_rest`, first record the segments that are not yet.

        Raises TransferFailed.
        """
        with self._ledger_lock:
            if self._is_ledger_closed:
                return
            self._is_ledger_closed = True
            if records_rest and self._unrecorded:
                positions = sorted(self._unrecorded)
                self.staging.record([(position, self.file.chunk_states.digest(position)) for position in positions])

    def discard(self) -> None:
        """Discard what is staged: of a file that several shards move, this share alone."""
        self.staging.discard()
        with self.file.lock:
            self.file.chunk_states.forget(self.share)

    @property
    def staging(self) -> Staging:
        """Its staging: a large file of a tree is never opened under its final name."""
        assert isinstance(self.file.content, Staging)
        return self.file.content

    @property
    def is_verified(self) -> bool:
        """Whether every segment was received in this transfer."""
        with self.file.lock:
            return self.file.chunk_states.is_verified

    @property
    def is_all_here(self) -> bool:
        """Whether every segment is VERIFIED or HELD. The sender may still send a HELD one if its file changed."""
        with self.file.lock:
            return self.file.chunk_states.is_all_here

    @property
    def has_writers(self) -> bool:
        """Whether a connection is writing a segment."""
        with self.file.lock:
            return self.file.chunk_states.has_writers


class LargeFile:
    """One large file; protected by the lock of its part."""

    __slots__ = ("grid", "mark", "open_file", "share", "spool_at", "spooled")

    def __init__(self, entry: m.Entry, chunk_size: int, share: Share = WHOLE) -> None:
        """`share` is which segments this shard of a tree moves; the others have the state OTHERS."""
        self.grid = Grid(entry.size, chunk_size)
        self.share = share
        self.open_file: OpenLargeFile | None = None
        """Set while the file is open."""
        self.spooled = Spooled.NOTHING
        self.spool_at = 0
        """Offset in the spool of the digests of its segments, and behind them the states; 0 if none were written."""
        self.mark: StagingMark | None = None
        """Shows whether another process wrote to the staging while the file was set aside; None without a staging."""

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield all segments in runs [first, end) of at most _PIECE_SEGMENTS."""
        for start in range(0, self.grid.segments, _PIECE_SEGMENTS):
            yield start, min(start + _PIECE_SEGMENTS, self.grid.segments)

    @property
    def own_bytes(self) -> int:
        """Bytes of the segments that this transfer moves."""
        return self.share.bytes_of(self.grid)

    def zero_bytes(self, spool: Spool) -> int:
        """Return the bytes of its segments of zeros, as far as is known."""
        return sum(
            self.grid.bytes_between(first + start, first + stop)
            for first, end in self.pieces()
            for start, stop in runs(self.states_between(first, end, spool), ZERO)
        )

    # --- what is known of its segments, in memory or in the spool

    def digests_between(self, first: int, end: int, spool: Spool) -> bytes:
        """Return the digests of the segments [first, end)."""
        open_file = self.open_file
        if open_file is not None:
            with open_file.file.lock:
                return b"".join(open_file.file.chunk_states.digests(WHOLE, first, end))
        return spool.read(self.spool_at + _SIZE * first, _SIZE * (end - first))

    def states_between(self, first: int, end: int, spool: Spool) -> bytes:
        """Return the states of the segments [first, end); b"" if nothing is known."""
        open_file = self.open_file
        if open_file is not None:
            with open_file.file.lock:
                return open_file.file.chunk_states.states_between(first, end)
        if self.spooled is Spooled.NOTHING:  # the file was withdrawn meanwhile
            return b""
        return spool.read(self._states_at + first, end - first)

    def write_digests(self, first: int, digests: bytes, spool: Spool) -> None:
        """Write digests of segments from `first` on into the spool."""
        self._reserve(spool)
        spool.write(self.spool_at + _SIZE * first, digests)

    def save(self, spool: Spool, spooled: Spooled) -> None:
        """Write the states and digests of the open file into the spool, while no connection is inside.

        A sender says in a few bytes that a file has millions of segments: those of which nothing came take no space.
        """
        open_file = self.open_file
        assert open_file is not None
        chunk_states = open_file.file.chunk_states
        self._reserve(spool)
        for start, stop in self.pieces():
            spool.update(self.spool_at + _SIZE * start, b"".join(chunk_states.digests(WHOLE, start, stop)))
            spool.update(self._states_at + start, chunk_states.states_between(start, stop))
        self.spooled = spooled

    def restore(self, open_file: OpenLargeFile, spool: Spool) -> None:
        """Read states and digests from the spool into a file that was opened again."""
        for start, stop in self.pieces():
            digests = spool.read(self.spool_at + _SIZE * start, _SIZE * (stop - start))
            open_file.file.chunk_states.restore(start, spool.read(self._states_at + start, stop - start), digests)

    def begin_declined(self, spool: Spool) -> None:
        """Keep states and digests of a declined file that is not open in the spool: what came before, and comes yet."""
        self._reserve(spool)
        if self.share is not WHOLE:
            for first, end in self.pieces():
                states = bytearray([OTHERS]) * (end - first)
                at = self.share.chunk(self.share.chunks(first)) - first
                states[at :: self.share.count] = bytes(len(states[at :: self.share.count]))
                spool.write(self._states_at + first, states)
        self.spooled = Spooled.DECLINED

    def take_declined(self, position: int, digest: bytes, spool: Spool) -> bool:
        """Note a segment of a declined file that came in; return whether its digest is the one that came first.

        Raises RemoteProtocolError for one that was told as zeros.
        """
        at, states_at = self.spool_at + _SIZE * position, self._states_at + position
        state = spool.read(states_at, 1)[0]
        if state in (ZERO, OTHERS):
            what = "was told as zeros" if state == ZERO else "is another shard's"
            raise RemoteProtocolError(f"segment {position} of a declined file {what}, and is sent")
        if state == VERIFIED:
            return spool.read(at, _SIZE) == digest
        spool.write(at, digest)
        spool.write(states_at, bytes([VERIFIED]))
        return True

    def take_declined_zeros(self, first: int, end: int, spool: Spool) -> int:
        """Note segments of a declined file that were told as zeros; return how many bytes were not before.

        Raises RemoteProtocolError for one that was sent.
        """
        states = self.states_between(first, end, spool)
        if VERIFIED in states:
            at = first + states.find(VERIFIED)
            raise RemoteProtocolError(f"segment {at} of a declined file was sent, and told as zeros")
        spool.write(self._states_at + first, states.translate(_TO_ZERO))
        new = runs_without(states, ZERO, OTHERS)
        return sum(self.grid.bytes_between(first + start, first + stop) for start, stop in new)

    def has_all_digests(self, spool: Spool) -> bool:
        """Whether all segments of a declined file came in, or were here before: the sender counts them as done."""
        here = bytes((VERIFIED, HELD, ZERO, OTHERS))
        return all(not self.states_between(first, end, spool).strip(here) for first, end in self.pieces())

    def _reserve(self, spool: Spool) -> None:
        """Reserve room in the spool, once."""
        if not self.spool_at:
            self.spool_at = spool.reserve((_SIZE + 1) * self.grid.segments)

    @property
    def _states_at(self) -> int:
        return self.spool_at + _SIZE * self.grid.segments
