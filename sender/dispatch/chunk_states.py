"""The state of each chunk of a transfer, as BitTorrent's piece map: unanswered, answered, done. Pure.

Chunks are counted by ordinal: the place of a chunk in the share that this sender moves (`filestreamer.wire.grid.Share`;
without shards it is the chunk's number). A chunk is answered once the receiver has said whether it needs or holds it,
and done once it is acknowledged, or held and equal to the source. A chunk of zeros is told instead of sent, and is done
once the receiver has repeated that. The caller (`send_queue`) holds the lock.
"""

from collections.abc import Iterator
from typing import Final

from filestreamer.telemetry.chunk_map import ChunkMap
from filestreamer.wire.grid import Share
from filestreamer.wire.runs import runs

NOT_DONE: Final = 0
ACKNOWLEDGED: Final = 1
"""Done: a connection sent the chunk, and the receiver acknowledged it."""
HELD: Final = 2
"""Done: the receiver had the chunk already, or its files are withdrawn."""
ZERO: Final = 3
"""Done: the chunk is zeros, and the receiver knows that."""
TOLD: Final = 4
"""Not done: the chunk is zeros, which is told to the receiver, or is about to be."""

OTHERS: Final = 5
"""Done: another shard sends the chunk."""

_NOT_DONE: Final = (NOT_DONE, TOLD)


class ChunkStates:
    """Two bytes for each chunk, so that a million chunks take two megabytes."""

    def __init__(self) -> None:
        self.chunks = 0
        """Number of chunks so far."""
        self.done_count = 0
        """Number of chunks that are done: each counts once, however often it was acknowledged."""
        self.others = 0
        """Number of those that other shards of a tree send."""
        self.lowest = 0
        """Every ordinal below this one is done; `advance` moves it on."""
        self.chunk_map = ChunkMap()
        """The same for people, coarser."""
        self._answered = bytearray()  # 1 once answered
        self._done = bytearray()  # one of the states above
        self._told_count = 0

    def clear(self) -> None:
        """Drop every chunk; `extend` adds them again."""
        self.chunks = self.done_count = self.lowest = self._told_count = self.others = 0
        self._answered.clear()
        self._done.clear()
        self.chunk_map.clear()

    def extend(self, chunks: int) -> int:
        """Grow to `chunks` chunks; return how many of them are new."""
        new = chunks - self.chunks
        self._answered.extend(bytes(new))
        self._done.extend(bytes(new))
        self.chunks = chunks
        self.chunk_map.extend(chunks)
        return new

    def leave_to_others(self, start: int, stop: int, share: Share) -> int:
        """Mark those of the ordinals [start, stop) as done that other shards send; return how many.

        The ordinals are the segments of one file, and `share` is which of them this shard sends.
        """
        own = len(range(start + share.index, stop, share.count))
        for table, done in ((self._answered, 1), (self._done, OTHERS)):
            kept = table[start + share.index : stop : share.count]
            table[start:stop] = bytes([done]) * (stop - start)
            table[start + share.index : stop : share.count] = kept
        others = stop - start - own
        self.done_count += others
        self.others += others
        return others

    def unanswered(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges [start, stop) of ordinals in [start, stop) that are not answered, in order."""
        at = start
        while (first := self._answered.find(0, at, stop)) >= 0:
            end = self._answered.find(1, first, stop)
            at = stop if end < 0 else end
            yield first, at

    def is_answered(self, ordinal: int) -> bool:
        """Whether the receiver has answered a chunk."""
        return bool(self._answered[ordinal])

    def mark_answered(self, start: int, stop: int) -> None:
        """Mark the ordinals [start, stop) as answered."""
        self._answered[start:stop] = b"\x01" * (stop - start)

    def not_done(self) -> Iterator[int]:
        """Yield the chunks that are not done, those that are told included."""
        for state in _NOT_DONE:
            at = self._done.find(state)
            while at >= 0:
                yield at
                at = self._done.find(state, at + 1)

    def is_done(self, ordinal: int) -> bool:
        """Whether a chunk is done."""
        return self._done[ordinal] not in _NOT_DONE

    def mark_done(self, ordinal: int, by: int | None) -> None:
        """Mark a chunk as done that was not: `by` this connection, or (None) without being sent."""
        self._told_count -= self._done[ordinal] == TOLD
        self._done[ordinal] = HELD if by is None else ACKNOWLEDGED
        self.done_count += 1
        self.chunk_map.add(ordinal, by)

    def mark_run_done(self, ordinals: range, by: int) -> bool:
        """Mark the chunks of a run as done that connection `by` sent, if none of them is; return whether it has."""
        rows = slice(ordinals.start, ordinals.stop, ordinals.step)
        if any(self._done[rows]):
            return False
        self._done[rows] = bytes([ACKNOWLEDGED]) * len(ordinals)
        self.done_count += len(ordinals)
        self.chunk_map.add_run(ordinals, by)
        return True

    def reopen(self, ordinal: int) -> bool:
        """Mark a chunk as not done; return whether it was done."""
        state = self._done[ordinal]
        if state in _NOT_DONE or state == OTHERS:
            return False
        self._done[ordinal] = NOT_DONE
        self.chunk_map.remove(ordinal, was_held=state != ACKNOWLEDGED)
        self.done_count -= 1
        self.lowest = min(self.lowest, ordinal)
        return True

    # --- chunks of zeros

    def tell(self, start: int, stop: int) -> None:
        """Mark the ordinals [start, stop), which are not done, as told to the receiver."""
        self._done[start:stop] = bytes([TOLD]) * (stop - start)
        self._told_count += stop - start

    def is_told(self, ordinal: int) -> bool:
        """Whether a chunk is told as zeros, and not done."""
        return self._done[ordinal] == TOLD

    def is_zeros(self, ordinal: int) -> bool:
        """Whether a chunk is told as zeros, done or not."""
        return self._done[ordinal] in (TOLD, ZERO)

    def mark_zeros(self, start: int, stop: int) -> list[tuple[int, int]] | None:
        """Mark those of the ordinals [start, stop) as done that were told; return the ranges of these.

        None, and nothing is marked, if one of them is neither told nor done.
        """
        states = self._done[start:stop]
        if NOT_DONE in states:
            return None
        told = [(start + first, start + end) for first, end in runs(states, TOLD)]
        for first, end in told:
            self._done[first:end] = bytes([ZERO]) * (end - first)
            self.done_count += end - first
            self._told_count -= end - first
            self.chunk_map.add_held(first, end)
        return told

    def zeros(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return the ranges [start, stop) of ordinals in [start, stop) that are done as zeros."""
        return [(start + first, start + end) for first, end in runs(self._done[start:stop], ZERO)]

    # --- the window

    def advance(self) -> bool:
        """Move `lowest` on to the first chunk that is not done; return whether it moved."""
        before, first = self.lowest, self._done.find(NOT_DONE, self.lowest)
        if self._told_count:
            told = self._done.find(TOLD, self.lowest)
            first = min(at for at in (first, told) if at >= 0) if max(first, told) >= 0 else -1
        self.lowest = first if first >= 0 else self.chunks
        return self.lowest > before
