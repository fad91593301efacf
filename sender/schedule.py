"""Whose chunk is next, purely.

The home of chunk k is connection k mod N (for shard i of COUNT, (k // COUNT) mod N). Each home is a queue of ranges of
chunk ids, so that a million chunks cost nothing. A connection takes from its own home; where that is empty, it takes
over the next chunk of the home that has most left, unless the modulo is strict. A chunk is dealt to one connection at a
time: only `put_back` lets it be dealt again.
"""

from collections import deque


class Schedule:
    """The chunks that are still to be dealt. Not thread-safe: the deal holds the lock."""

    def __init__(self, connections: int, *, shard_count: int = 1, strict_modulo: bool = False) -> None:
        self.connections = connections
        self._shard_count = shard_count
        self.strict_modulo = strict_modulo
        self._homes: list[deque[range]] = [deque() for _ in range(connections)]
        self._left = [0] * connections

    def home(self, chunk_id: int) -> int:
        """Return the connection that this chunk belongs to."""
        return (chunk_id // self._shard_count) % self.connections

    @property
    def remaining(self) -> int:
        """Chunks that are not dealt."""
        return sum(self._left)

    def remaining_of(self, connection_id: int) -> int:
        """Chunks of one home that are not dealt."""
        return self._left[connection_id]

    def add(self, first: int, end: int, step: int = 1) -> None:
        """Put the chunks first, first + step, ... below `end` behind what is there, each into its home.

        `step` is 1, or the number of shards for the chunks of one shard.
        """
        stride = step * self.connections
        for start in range(first, min(end, first + stride), step):
            self._append(self.home(start), range(start, end, stride))

    def _append(self, home: int, chunk_ids: range) -> None:
        self._homes[home].append(chunk_ids)
        self._left[home] += len(chunk_ids)

    def put_back(self, chunk_ids: list[int]) -> None:
        """Put chunks that were dealt and not delivered before everything else of their homes, lowest first."""
        for chunk_id in sorted(chunk_ids, reverse=True):
            home = self.home(chunk_id)
            self._homes[home].appendleft(range(chunk_id, chunk_id + 1))
            self._left[home] += 1

    def deal(self, connection_id: int) -> int | None:
        """Give a connection its next chunk; None where there is none for it."""
        if self._left[connection_id]:
            return self._take(connection_id)
        if self.strict_modulo:
            return None
        furthest_behind = max(range(self.connections), key=self._left.__getitem__)
        return self._take(furthest_behind) if self._left[furthest_behind] else None

    def _take(self, home: int) -> int:
        queue = self._homes[home]
        chunk_ids = queue.popleft()
        if len(chunk_ids) > 1:
            queue.appendleft(chunk_ids[1:])
        self._left[home] -= 1
        return chunk_ids[0]
