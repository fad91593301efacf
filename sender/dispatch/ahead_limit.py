"""How far ahead of the first chunk that has not arrived the chunks of a tree are sent. Pure.

A chunk that is sent far ahead of the first one that has not arrived leaves the receiver with that many files half
written (proto/README.md, "From segments to chunks"). So nothing is sent AHEAD_CHUNKS or more ahead of it: a connection
whose home has nothing nearer steals the lowest chunk that is queued. If the others still have to wait for a chunk
on a slow connection, that connection gets less: half as many chunks on its way, down to WINDOW_CHUNKS_MIN, and one more
again with each that arrives.
"""

import heapq
from collections import Counter

from filestreamer.wire import limits


class AheadLimit:
    """The chunks that are on their way: sent, and not arrived. The caller (`send_queue`) holds the lock."""

    def __init__(self, chunks: int = limits.AHEAD_CHUNKS) -> None:
        self._chunks = chunks
        self._connection_of: dict[int, int] = {}  # of each chunk that is on its way
        self._heap: list[int] = []  # the same chunks; those that have arrived are taken out when they come first
        self._counts: Counter[int] = Counter()  # chunks on their way, by connection
        self._most: dict[int, int] = {}  # how many a slow connection may have on its way
        self._blamed_chunk = -1  # the last chunk that other connections waited for: its connection was slowed down once
        self.is_waited_for = False
        """Whether a connection got no chunk since this was last taken back, though some are queued."""

    def sent(self, chunk_id: int, connection_id: int) -> None:
        """Note that a connection has sent a chunk."""
        self._connection_of[chunk_id] = connection_id
        self._counts[connection_id] += 1
        heapq.heappush(self._heap, chunk_id)

    def arrived(self, chunk_id: int) -> None:
        """Note that a chunk is done."""
        connection_id = self._remove(chunk_id)
        if connection_id in self._most:
            self._most[connection_id] += 1
            if self._most[connection_id] > limits.WINDOW_CHUNKS_MAX:
                del self._most[connection_id]

    def returned(self, chunk_id: int) -> None:
        """Note that a chunk is queued again."""
        self._remove(chunk_id)

    def _remove(self, chunk_id: int) -> int:
        """Return the connection that had a chunk on its way; -1 for none."""
        connection_id = self._connection_of.pop(chunk_id, -1)
        if connection_id >= 0:
            self._counts[connection_id] -= 1
        return connection_id

    def _first(self) -> int | None:
        while self._heap and self._heap[0] not in self._connection_of:
            heapq.heappop(self._heap)
        return self._heap[0] if self._heap else None

    def end(self, lowest_queued: int | None) -> int:
        """Return the chunk before which chunks may be sent; `lowest_queued` is the first one that is queued."""
        firsts = [chunk_id for chunk_id in (self._first(), lowest_queued) if chunk_id is not None]
        return min(firsts, default=0) + self._chunks

    def may_take(self, connection_id: int) -> bool:
        """Whether a connection may have another chunk on its way."""
        most = self._most.get(connection_id)
        return most is None or self._counts[connection_id] < most

    def room(self, connection_id: int) -> int:
        """Return how many more chunks a connection may have on its way."""
        return self._most.get(connection_id, self._chunks) - self._counts[connection_id]

    def hold_back(self) -> None:
        """Note that a connection got no chunk, as all queued chunks are too far ahead."""
        self.is_waited_for = True
        first = self._first()
        if first is not None and first != self._blamed_chunk:
            self._blamed_chunk, slow = first, self._connection_of[first]
            self._most[slow] = max(limits.WINDOW_CHUNKS_MIN, self._counts[slow] // 2)
