"""The state of every chunk of a file, without any input or output (proto/README.md, "Chunk states").

    FREE      not here                                            answered with Needed
    CLAIMED   the ledger says that it is here; not re-hashed yet  not answered yet
    HELD      re-hashed: its digest is known                      answered with Held
    WRITING   one connection is writing it                        answered with Needed
    VERIFIED  written in this transfer, with the right digest     answered with Held
    HOLE      lies in a hole of the file: it is not sent          not answered, has no digest

No write ever lands on a VERIFIED chunk: a second delivery is received, compared and dropped.
"""

import enum
from collections.abc import Iterator
from typing import Final, Protocol

from filestreamer.wire import limits
from filestreamer.wire.errors import RemoteProtocolError
from filestreamer.wire.grid import WHOLE, Grid, Share
from receiver.disk.ledger import UNKNOWN_DIGEST, Claims

FREE: Final = 0
CLAIMED: Final = 1
HELD: Final = 2
WRITING: Final = 3
VERIFIED: Final = 4
HOLE: Final = 5
_ANY_TO_FREE: Final = bytes(HOLE if state == HOLE else FREE for state in range(256))
_VERIFIED_TO_HELD: Final = bytes(HELD if state == VERIFIED else state for state in range(256))


class Writer(Protocol):
    """A connection that writes a chunk; compared by identity."""

    def stop(self, seconds: float) -> bool:
        """Have the connection stop at once; return whether it has within `seconds`."""


class Delivery(enum.Enum):
    """What a connection has to do with the bytes of a chunk that it is sent."""

    WRITE = enum.auto()
    COMPARE = enum.auto()
    """The chunk is VERIFIED: receive, hash and drop its bytes."""
    WAIT = enum.auto()
    """Another connection is writing the chunk: that connection has to stop first."""


class ChunkStates:
    """The states and digests of the chunks of one file: 17 bytes each. Not thread-safe: the file has the lock."""

    def __init__(self, grid: Grid, claims: Claims | None = None) -> None:
        """Begin with the chunks that the ledger claims on this grid, or with none; take over the tables of `claims`."""
        self.grid = grid
        if claims is not None and claims.present:
            # A copy would take the memory of these tables, which can be large, a second time.
            self._states, self._digests = claims.present, claims.digests  # 1 for what is there: CLAIMED
        else:
            self._states = bytearray(grid.segments)
            self._digests = bytearray(limits.DIGEST_BYTES * grid.segments)
        self._writers: dict[int, Writer] = {}
        self._has_holes = False

    def state(self, index: int) -> int:
        """Return the state of one chunk."""
        return self._states[index]

    def digest(self, index: int) -> bytes:
        """Return the digest of one chunk; meaningful where it is HELD or VERIFIED."""
        at = index * limits.DIGEST_BYTES
        return bytes(self._digests[at : at + limits.DIGEST_BYTES])

    def digests(self, share: Share = WHOLE, start: int = 0, stop: int | None = None) -> Iterator[memoryview]:
        """Yield the digests of the chunks of a share with ordinals [start, stop), in order.

        Without `stop`, of all chunks that have a digest: all but HOLE.
        """
        size = limits.DIGEST_BYTES
        view = memoryview(self._digests).toreadonly()
        if stop is None:
            stop = share.chunks(self.grid.segments)
            if self._has_holes:
                for first, end in self.runs(FREE, CLAIMED, HELD, WRITING, VERIFIED, share=share):
                    yield from self.digests(share, first, end)
                return
        if share.count == 1:
            yield view[start * size : stop * size]
            return
        for at in range(share.chunk(start) * size, share.chunk(stop) * size, share.count * size):
            yield view[at : at + size]

    def states_between(self, first: int, end: int) -> bytes:
        """Return the states of the chunks [first, end)."""
        return bytes(self._states[first:end])

    def restore(self, first: int, states: bytes, digests: bytes) -> None:
        """Put the states and digests of consecutive chunks back. None of them was WRITING when these were read."""
        size = limits.DIGEST_BYTES
        self._states[first : first + len(states)] = states
        self._digests[first * size : first * size + len(digests)] = digests

    @property
    def is_verified(self) -> bool:
        """Whether every chunk outside of holes is VERIFIED."""
        return self._has_none(FREE, CLAIMED, HELD, WRITING)

    @property
    def is_all_here(self) -> bool:
        """Whether every chunk outside of holes is VERIFIED or HELD."""
        return self._has_none(FREE, CLAIMED, WRITING)

    def _has_none(self, *states: int) -> bool:
        """Whether no chunk is in any of these states."""
        # Asked after every chunk of a large file in a tree: `find` stops at the first hit, `count` reads all.
        return all(self._states.find(state) < 0 for state in states)

    def writer(self, index: int) -> Writer | None:
        """Return the connection that is writing a chunk, if there is one."""
        return self._writers.get(index)

    @property
    def has_writers(self) -> bool:
        return bool(self._writers)

    def _put_digest(self, index: int, digest: bytes) -> None:
        at = index * limits.DIGEST_BYTES
        self._digests[at : at + limits.DIGEST_BYTES] = digest

    def _set(self, index: int, state: int, digest: bytes) -> None:
        self._put_digest(index, digest)
        self._states[index] = state

    def leave_out(self, first: int, end: int) -> None:
        """Make the chunks [first, end) HOLE. Call it before everything else."""
        self._states[first:end] = bytes([HOLE]) * (end - first)
        self._has_holes = True

    # --- what the ledger claims

    def claim(self, index: int, digest: bytes) -> None:
        """Turn a FREE chunk to CLAIMED: the ledger says that it is here, with this digest or UNKNOWN_DIGEST."""
        if self._states[index] == FREE:
            self._states[index] = CLAIMED
            self._put_digest(index, digest)

    def rehashed(self, index: int, digest: bytes) -> None:
        """Turn a CLAIMED chunk to HELD where the ledger has this digest or UNKNOWN_DIGEST, to FREE where not."""
        if self._states[index] != CLAIMED:
            return
        if self.digest(index) in (digest, UNKNOWN_DIGEST):
            self._set(index, HELD, digest)
        else:
            self._states[index] = FREE

    # --- shares

    def begin_again(self, share: Share) -> None:
        """Turn VERIFIED to HELD: another transfer goes on with this share, and its sender has to compare."""
        chunks = slice(share.index, None, share.count)
        self._states[chunks] = self._states[chunks].translate(_VERIFIED_TO_HELD)

    def forget(self, share: Share) -> None:
        """Turn every chunk of a share outside of holes to FREE."""
        chunks = slice(share.index, None, share.count)
        self._states[chunks] = self._states[chunks].translate(_ANY_TO_FREE)

    # --- what connections deliver

    def begin(self, index: int, writer: Writer) -> Delivery:
        """Return what a connection has to do with a chunk that it is sent; with WRITE the chunk becomes WRITING.

        Raises RemoteProtocolError for a chunk that the same connection is writing, and for a hole.
        """
        # CLAIMED is written as well: the sender may know from an earlier transfer that it has another chunk there.
        state = self._states[index]
        if state == HOLE:
            raise RemoteProtocolError(f"segment {index} lies in holes")
        if state == VERIFIED:
            return Delivery.COMPARE
        if state == WRITING:
            if self._writers[index] is writer:
                raise RemoteProtocolError(f"segment {index} stands in a chunk twice")
            return Delivery.WAIT
        self._states[index] = WRITING
        self._writers[index] = writer
        return Delivery.WRITE

    def deliver(self, index: int, writer: Writer, digest: bytes, computed: bytes) -> bool:
        """Return whether the digest of a chunk is right, now that `writer` has brought all its bytes.

        A chunk that it was writing becomes VERIFIED or FREE. One that was only compared stays as it is, and is right
        where it equals the VERIFIED one.
        """
        if self._writers.get(index) is not writer:
            return digest == computed == self.digest(index)
        del self._writers[index]
        if digest != computed:
            self._states[index] = FREE
            return False
        self._set(index, VERIFIED, digest)
        return True

    def detach(self, writer: Writer) -> None:
        """Turn every chunk that this connection was writing to FREE."""
        for index in [index for index, held_by in self._writers.items() if held_by is writer]:
            del self._writers[index]
            self._states[index] = FREE

    # --- answers

    def runs(self, *states: int, share: Share = WHOLE) -> Iterator[tuple[int, int]]:
        """Yield the runs [first, end) of chunks in any of these states, in order, as they are now.

        Chunks are counted by their ordinal in `share`.
        """
        return runs(self.states(share), *states)

    def states(self, share: Share = WHOLE) -> bytes:
        """Return the states of the chunks of a share as they are now, one byte each, for the function `runs`."""
        return bytes(self._states[share.index :: share.count])

    def missing_bytes(self) -> int:
        """Estimate the bytes of all chunks that are FREE or WRITING, without the lock."""
        missing = self._states.count(FREE) + self._states.count(WRITING)
        return min(missing * self.grid.chunk_size, self.grid.size)

    @property
    def here_end(self) -> int:
        """Offset behind the last byte that is here, or may be (CLAIMED)."""
        last = max(self._states.rfind(state) for state in (CLAIMED, HELD, VERIFIED))
        return min(self.grid.offset(last + 1), self.grid.size)

    def held_bytes(self, share: Share = WHOLE) -> int:
        """Count the bytes of the chunks of a share that are HELD."""
        return sum(share.bytes_between(self.grid, start, stop) for start, stop in self.runs(HELD, share=share))


def runs(states: bytes, *wanted: int) -> Iterator[tuple[int, int]]:
    """Yield the runs [first, end) of chunks in any of the wanted states, in order."""
    marks = states.translate(bytes(state in wanted for state in range(256)))
    first = marks.find(1)
    while first >= 0:
        end = marks.find(0, first)
        end = len(marks) if end < 0 else end
        yield first, end
        first = marks.find(1, end)
