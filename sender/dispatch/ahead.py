"""How far ahead a tree is dealt, purely (proto/README.md, "From segments to chunks").

What is dealt far beyond the first chunk that has not arrived leaves the receiver with that many files half there. So
nothing is dealt AHEAD_CHUNKS or more beyond it: whose home has nothing nearer takes over the lowest chunk that is left.
A connection that keeps the others waiting by what it has on its way is dealt less, down to WINDOW_CHUNKS_MIN chunks,
and more again with each that arrives.
"""

import heapq
from collections import Counter

from filestreamer.wire import limits


class Ahead:
    """The chunks that were dealt and have not arrived. Not thread-safe: the deal holds the lock."""

    def __init__(self, chunks: int = limits.AHEAD_CHUNKS) -> None:
        self._chunks = chunks
        self._dealt: dict[int, int] = {}
        self._lowest: list[int] = []  # a heap; chunks that have arrived are taken out late
        self._counts: Counter[int] = Counter()
        self._most: dict[int, int] = {}
        self._blamed = -1
        self.is_waited_for = False
        """Whether a connection was dealt nothing since this was last taken back, though something is left."""

    def dealt(self, chunk_id: int, connection_id: int) -> None:
        """Note that a chunk is on its way."""
        self._dealt[chunk_id] = connection_id
        self._counts[connection_id] += 1
        heapq.heappush(self._lowest, chunk_id)

    def arrived(self, chunk_id: int) -> None:
        """Note that a chunk is settled."""
        connection_id = self._forget(chunk_id)
        if connection_id in self._most:
            self._most[connection_id] += 1
            if self._most[connection_id] > limits.WINDOW_CHUNKS_MAX:
                del self._most[connection_id]

    def returned(self, chunk_id: int) -> None:
        """Note that a chunk is to be dealt again."""
        self._forget(chunk_id)

    def _forget(self, chunk_id: int) -> int:
        connection_id = self._dealt.pop(chunk_id, -1)
        if connection_id >= 0:
            self._counts[connection_id] -= 1
        return connection_id

    def _first(self) -> int | None:
        while self._lowest and self._lowest[0] not in self._dealt:
            heapq.heappop(self._lowest)
        return self._lowest[0] if self._lowest else None

    def below(self, undealt: int | None) -> int:
        """Return the chunk before which chunks may be dealt; `undealt` is the lowest one that is left."""
        ends = [chunk_id for chunk_id in (self._first(), undealt) if chunk_id is not None]
        return min(ends, default=0) + self._chunks

    def may_take(self, connection_id: int) -> bool:
        """Whether a connection may have another chunk on its way."""
        most = self._most.get(connection_id)
        return most is None or self._counts[connection_id] < most

    def hold_back(self) -> None:
        """Note that a connection was dealt nothing as all that is left lies too far ahead."""
        self.is_waited_for = True
        first = self._first()
        if first is not None and first != self._blamed:
            self._blamed, slow = first, self._dealt[first]
            self._most[slow] = max(limits.WINDOW_CHUNKS_MIN, self._counts[slow] // 2)
