"""The state of each chunk of a transfer, as BitTorrent's piece map: unanswered, answered, done. Pure.

Chunks are counted by ordinal: the place of a chunk in the share that this sender moves (`filestreamer.wire.grid.Share`;
without shards it is the chunk's number). A chunk is answered once the receiver has said whether it needs or holds it,
and done once it is acknowledged, or held and equal to the source. The caller (`send_queue`) holds the lock.
"""

from collections.abc import Iterator
from typing import Final

from filestreamer.telemetry.chunk_map import ChunkMap

NOT_DONE: Final = 0
ACKNOWLEDGED: Final = 1
"""Done: a connection sent the chunk, and the receiver acknowledged it."""
HELD: Final = 2
"""Done: the receiver had the chunk already, it lies in a hole, or its files are withdrawn."""


class ChunkStates:
    """Two bytes for each chunk, so that a million chunks take two megabytes."""

    def __init__(self) -> None:
        self.chunks = 0
        """Number of chunks so far."""
        self.done_count = 0
        """Number of chunks that are done: each counts once, however often it was acknowledged."""
        self.lowest = 0
        """Every ordinal below this one is done; `advance` moves it on."""
        self.chunk_map = ChunkMap()
        """The same for people, coarser."""
        self._answered = bytearray()  # 1 once answered
        self._done = bytearray()  # NOT_DONE, ACKNOWLEDGED, HELD

    def clear(self) -> None:
        """Drop every chunk; `extend` adds them again."""
        self.chunks = self.done_count = self.lowest = 0
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

    def is_done(self, ordinal: int) -> bool:
        """Whether a chunk is done."""
        return self._done[ordinal] != NOT_DONE

    def mark_done(self, ordinal: int, by: int | None) -> None:
        """Mark a chunk as done that was not: `by` this connection, or (None) without being sent."""
        self._done[ordinal] = HELD if by is None else ACKNOWLEDGED
        self.done_count += 1
        self.chunk_map.add(ordinal, by)

    def reopen(self, ordinal: int) -> bool:
        """Mark a chunk as not done; return whether it was done."""
        state = self._done[ordinal]
        if state == NOT_DONE:
            return False
        self._done[ordinal] = NOT_DONE
        self.chunk_map.remove(ordinal, was_held=state == HELD)
        self.done_count -= 1
        self.lowest = min(self.lowest, ordinal)
        return True

    def advance(self) -> bool:
        """Move `lowest` on to the first chunk that is not done; return whether it moved."""
        before, first = self.lowest, self._done.find(NOT_DONE, self.lowest)
        self.lowest = first if first >= 0 else self.chunks
        return self.lowest > before
