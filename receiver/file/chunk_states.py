"""The state of each chunk of a file at the receiver, purely (proto/README.md, "Chunk states"; `states` lists them).

No write ever lands on a VERIFIED chunk: a second delivery is read, compared and dropped.
"""

import enum
from collections.abc import Iterator
from typing import Final, Protocol

from filestreamer.wire import limits
from filestreamer.wire.errors import RemoteProtocolError
from filestreamer.wire.grid import WHOLE, Grid, Share
from filestreamer.wire.runs import runs
from receiver.disk.staging.ledger import UNKNOWN_DIGEST, Claims
from receiver.file.states import CLAIMED, FREE, HELD, OTHERS, UNCHECKED, VERIFIED, WRITING, ZERO, StateTable

_MISSING: Final = bytes((FREE, CLAIMED))
_BEGUN_AGAIN: Final = bytes({VERIFIED: HELD, ZERO: FREE}.get(state, state) for state in range(256))


class Writer(Protocol):
    """A connection that writes a chunk; compared by identity."""

    def stop(self, seconds: float) -> bool:
        """Stop writing; return whether it has stopped within `seconds`."""


class Delivery(enum.Enum):
    """What a connection that was sent a chunk is to do with its bytes."""

    WRITE = enum.auto()
    COMPARE = enum.auto()
    """The chunk is VERIFIED: read, hash and drop the bytes."""
    WAIT = enum.auto()
    """Another connection is writing the chunk, and has to stop first."""


class ChunkStates(StateTable):
    """The chunks of one file: 17 bytes each. Not thread-safe: the file holds the lock."""

    def __init__(self, grid: Grid, claims: Claims | None = None) -> None:
        """Begin with what the ledger claims on this grid. Takes over the tables of `claims`: a copy costs memory."""
        if claims is not None and claims.present:
            super().__init__(claims.present, claims.digests)  # 1 for what is there: CLAIMED
        else:
            super().__init__(bytearray(grid.segments), bytearray(limits.DIGEST_BYTES * grid.segments))
        self.grid = grid
        self._writers: dict[int, Writer] = {}

    def digests(self, share: Share = WHOLE, start: int = 0, stop: int | None = None) -> Iterator[memoryview]:
        """Yield the digests of chunks of a share with ordinals [start, stop), in order; without `stop`, all."""
        size = limits.DIGEST_BYTES
        view = memoryview(self._digests).toreadonly()
        if stop is None:
            stop = share.chunks(self.grid.segments)
            if not self._has_none(ZERO, UNCHECKED, OTHERS):
                for first, end in self.runs(FREE, CLAIMED, HELD, WRITING, VERIFIED, share=share):
                    yield from self.digests(share, first, end)
                return
        if share.count == 1:
            yield view[start * size : stop * size]
            return
        for at in range(share.chunk(start) * size, share.chunk(stop) * size, share.count * size):
            yield view[at : at + size]

    @property
    def is_verified(self) -> bool:
        """Whether every chunk is VERIFIED, but for zeros."""
        return self._has_none(FREE, CLAIMED, HELD, WRITING)

    @property
    def is_all_here(self) -> bool:
        """Whether every chunk is VERIFIED or HELD, but for zeros."""
        return self._has_none(FREE, CLAIMED, WRITING)

    def _has_none(self, *states: int) -> bool:
        """Whether no chunk is in these states. It is called after each chunk, so it searches instead of counting."""
        return all(self._states.find(state) < 0 for state in states)

    def writer(self, index: int) -> Writer | None:
        """Return the connection that is writing a chunk, if any."""
        return self._writers.get(index)

    @property
    def has_writers(self) -> bool:
        return bool(self._writers)

    def _set(self, index: int, state: int, digest: bytes) -> None:
        self.put_digest(index, digest)
        self._states[index] = state

    def accept_unread(self) -> None:
        """Make every chunk UNCHECKED, before anything else happens: the file is there, of equal size and mtime."""
        self._states[:] = bytes([UNCHECKED]) * len(self._states)

    # --- what the ledger claims

    def rehashed(self, index: int, digest: bytes) -> None:
        """Turn CLAIMED to HELD if `digest` is that of the ledger, or the ledger has none; else to FREE."""
        if self._states[index] != CLAIMED:
            return
        if self.digest(index) in (digest, UNKNOWN_DIGEST):
            self._set(index, HELD, digest)
        else:
            self._states[index] = FREE

    # --- shares

    def begin_again(self, share: Share) -> None:
        """Turn VERIFIED to HELD, and ZERO to FREE: another transfer goes on with this share.

        Its sender has to compare what is HELD, and tells zeros anew.
        """
        chunks = slice(share.index, None, share.count)
        self._states[chunks] = self._states[chunks].translate(_BEGUN_AGAIN)

    def leave_to_others(self, share: Share) -> None:
        """Turn every chunk that is not in this share to OTHERS, before anything else happens."""
        own = self._states[share.index :: share.count]
        self._states[:] = bytes([OTHERS]) * len(self._states)
        self._states[share.index :: share.count] = own

    def forget(self, share: Share) -> None:
        """Turn every chunk of a share to FREE."""
        self._states[share.index :: share.count] = bytes(share.chunks(self.grid.segments))

    # --- zeros

    def make_zero(self, share: Share, start: int, stop: int) -> bytes:
        """Turn the chunks of a share with ordinals [start, stop) to ZERO, of which none is WRITING.

        Return their states before, one byte each, for `runs`. Raises RemoteProtocolError for a chunk that is VERIFIED.
        """
        rows = slice(share.chunk(start), share.chunk(stop - 1) + 1, share.count)
        states = bytes(self._states[rows])
        if VERIFIED in states:
            raise RemoteProtocolError(
                f"segment {share.chunk(start + states.find(VERIFIED))} was sent, and told as zeros"
            )
        self._states[rows] = bytes([ZERO]) * len(states)
        return states

    def writers_between(self, first: int, end: int) -> set[Writer]:
        """Return the connections that are writing any of the chunks [first, end)."""
        return {writer for index, writer in self._writers.items() if first <= index < end}

    def expected_digest(self, index: int) -> bytes | None:
        """Return the digest of a chunk that is here; None for zeros, and for what others write."""
        return None if self._states[index] in (ZERO, OTHERS) else self.digest(index)

    # --- what connections deliver

    def begin(self, index: int, writer: Writer) -> Delivery:
        """Begin a chunk that a connection was sent; if the answer is WRITE, it is WRITING by that connection.

        A CLAIMED chunk may be sent too, by a sender that knows the answer of an earlier transfer. Raises
        RemoteProtocolError for a chunk that the same connection is writing, and for one that was told as zeros.
        """
        state = self._states[index]
        if state == ZERO:
            raise RemoteProtocolError(f"segment {index} was told as zeros, and is sent")
        if state == UNCHECKED:
            raise RemoteProtocolError(f"segment {index} was accepted unread")
        if state == OTHERS:
            raise RemoteProtocolError(f"segment {index} is another shard's")
        if state == VERIFIED:
            return Delivery.COMPARE
        if state == WRITING:
            if self._writers[index] is writer:
                raise RemoteProtocolError(f"a chunk has segment {index} twice")
            return Delivery.WAIT
        self._states[index] = WRITING
        self._writers[index] = writer
        return Delivery.WRITE

    def begin_run(self, indices: range, writer: Writer) -> bool:
        """Begin chunks that a connection was sent, if none of them is here or under way; return whether it has."""
        rows = slice(indices.start, indices.stop, indices.step)
        if self._states[rows].translate(None, _MISSING):
            return False
        self._states[rows] = bytes([WRITING]) * len(indices)
        self._writers.update(dict.fromkeys(indices, writer))
        return True

    def verify_run(self, indices: range, writer: Writer, digests: list[bytes]) -> bool:
        """Turn chunks of `writer` from WRITING to VERIFIED, if all of them are its own; return whether they are."""
        writers, table, size = self._writers, self._digests, limits.DIGEST_BYTES
        if list(map(writers.get, indices)).count(writer) < len(indices):
            return False
        for index, digest in zip(indices, digests, strict=True):
            del writers[index]
            table[index * size : (index + 1) * size] = digest
        self._states[indices.start : indices.stop : indices.step] = bytes([VERIFIED]) * len(indices)
        return True

    def deliver(self, index: int, writer: Writer, digest: bytes, computed: bytes) -> bool:
        """End a chunk of `writer`; return whether the digests are equal: WRITING becomes VERIFIED then, else FREE.

        A chunk that was only compared does not change: return whether it equals the VERIFIED one.
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
        """Turn WRITING to FREE for everything that this connection was writing."""
        for index in [index for index, held_by in self._writers.items() if held_by is writer]:
            del self._writers[index]
            self._states[index] = FREE

    # --- answers

    def runs(self, *states: int, share: Share = WHOLE) -> Iterator[tuple[int, int]]:
        """Yield the runs [first, end) of chunks in any of these states, in order, as they are now.

        What is counted are the chunks of `share`: runs of its ordinals.
        """
        return runs(self.states(share), *states)

    def states(self, share: Share = WHOLE) -> bytes:
        """Return the states of the chunks of a share as they are now, one byte each, for `runs`."""
        return bytes(self._states[share.index :: share.count])

    def missing_bytes(self) -> int:
        """Count the bytes of all chunks that are FREE or WRITING; an estimate while connections write."""
        missing = self._states.count(FREE) + self._states.count(WRITING)
        return min(missing * self.grid.chunk_size, self.grid.size)

    @property
    def here_end(self) -> int:
        """Return the end of the last byte that is here, or may be here."""
        last = max(self._states.rfind(state) for state in (CLAIMED, HELD, VERIFIED))
        return min(self.grid.offset(last + 1), self.grid.size)

    def held_bytes(self, share: Share = WHOLE) -> int:
        """Count the bytes of the chunks of a share that are HELD."""
        return sum(share.bytes_between(self.grid, start, stop) for start, stop in self.runs(HELD, share=share))
