"""Which chunk a connection sends next. Pure.

The home of chunk k is connection k mod N (for shard i of COUNT: (k // COUNT) mod N). Each home is a queue of ranges of
chunk ids, so that a million chunks cost nothing. A connection takes the next chunk of its own home. If that is empty,
it steals the next chunk of the home that has most left, unless the modulo is strict. A chunk that was taken is not
given to another connection before `put_back`.

N may double and halve on the way: home h splits into h and h + N, or takes in h + N/2. No chunk is touched for that.
"""

from collections import deque


class Schedule:
    """The chunks that are queued. The caller (`send_queue`) holds the lock."""

    def __init__(self, connections: int, *, shard_count: int = 1, strict_modulo: bool = False) -> None:
        self.connections = connections
        self._shard_count = shard_count
        self.strict_modulo = strict_modulo
        self.clear()

    def clear(self) -> None:
        """Drop all chunks; the number of connections stays."""
        self._homes: list[deque[range]] = [deque() for _ in range(self.connections)]
        self._left = [0] * self.connections  # how many chunks each home has
        self._unsorted: set[int] = set()  # homes whose first range may not be the lowest

    def home(self, chunk_id: int) -> int:
        """Return the connection that this chunk belongs to."""
        return (chunk_id // self._shard_count) % self.connections

    @property
    def remaining(self) -> int:
        """Number of chunks that are queued."""
        return sum(self._left)

    @property
    def lowest(self) -> int | None:
        """The lowest chunk that is queued."""
        return min(
            (first for home in range(self.connections) if (first := self._first_of(home)) is not None), default=None
        )

    def _first_of(self, home: int) -> int | None:
        """Return the lowest chunk of a home."""
        if home in self._unsorted:
            self._homes[home] = deque(sorted(self._homes[home], key=lambda chunk_ids: chunk_ids[0]))
            self._unsorted.discard(home)
        return self._homes[home][0][0] if self._homes[home] else None

    def _check_order(self, home: int) -> None:
        """Note it if the first range of a home is no longer the lowest."""
        queue = self._homes[home]
        if len(queue) > 1 and queue[0][0] > queue[1][0]:
            self._unsorted.add(home)

    def remaining_of(self, connection_id: int) -> int:
        """Return the number of chunks that are queued in one home."""
        return self._left[connection_id]

    def add(self, first: int, end: int, step: int = 1) -> None:
        """Queue the chunks first, first + step, ... below `end`, each at the end of its home.

        `step` is 1, or the number of shards for the chunks of one shard.
        """
        stride = step * self.connections
        for start in range(first, min(end, first + stride), step):
            self._append(self.home(start), range(start, end, stride))

    def _append(self, home: int, chunk_ids: range) -> None:
        if self._homes[home] and self._homes[home][-1][0] > chunk_ids[0]:
            self._unsorted.add(home)
        self._homes[home].append(chunk_ids)
        self._left[home] += len(chunk_ids)

    def put_back(self, chunk_ids: list[int]) -> None:
        """Queue chunks again that were taken and not delivered: first in their homes, the lowest first."""
        for chunk_id in sorted(chunk_ids, reverse=True):
            home = self.home(chunk_id)
            self._homes[home].appendleft(range(chunk_id, chunk_id + 1))
            self._check_order(home)
            self._left[home] += 1

    def remove(self, first: int, end: int) -> list[range]:
        """Take all chunks out of the queue that are in [first, end); return them, as ranges."""
        removed = []
        for home, queue in enumerate(self._homes):
            kept: deque[range] = deque()
            for chunk_ids in queue:
                step = chunk_ids.step
                start = min(len(chunk_ids), max(0, -(-(first - chunk_ids[0]) // step)))
                stop = min(len(chunk_ids), max(start, -(-(end - chunk_ids[0]) // step)))
                if inside := chunk_ids[start:stop]:
                    removed.append(inside)
                    self._left[home] -= len(inside)
                    kept.extend(part for part in (chunk_ids[:start], chunk_ids[stop:]) if part)
                else:
                    kept.append(chunk_ids)
            if len(kept) != len(queue) or (kept and kept[0] != queue[0]):
                self._unsorted.add(home)
            self._homes[home] = kept
        return removed

    def resize(self, connections: int) -> None:
        """Double N, or halve it, as often as it takes to have `connections`."""
        while self.connections < connections:
            self._double()
        while self.connections > connections:
            self._halve()
        self._unsorted = set(range(self.connections))

    def _double(self) -> None:
        homes = self._homes
        self.connections *= 2
        self._homes = [deque() for _ in range(self.connections)]
        self._left = [0] * self.connections
        for chunk_ids in (chunk_ids for home in homes for chunk_ids in home):
            for part in (chunk_ids[::2], chunk_ids[1::2]) if self._is_split(chunk_ids) else (chunk_ids,):
                self._append(self.home(part[0]), part)

    def _is_split(self, chunk_ids: range) -> bool:
        """Whether the chunks of a range belong to two homes by turns: halving has left ranges that do not."""
        return len(chunk_ids) > 1 and self.home(chunk_ids[0]) != self.home(chunk_ids[1])

    def _halve(self) -> None:
        self.connections //= 2
        pairs = zip(self._homes[: self.connections], self._homes[self.connections :], strict=True)
        self._homes = [deque(sorted([*lower, *upper], key=lambda chunk_ids: chunk_ids[0])) for lower, upper in pairs]
        self._left = [sum(map(len, home)) for home in self._homes]

    def take(self, connection_id: int, end: int | None = None) -> int | None:
        """Return the chunk that a connection sends next, which is not queued any more; None where there is none for it.

        With `end`, only chunks before that one are taken. A connection beyond the N gets none.
        """
        if connection_id >= self.connections:
            return None
        if end is not None:
            return self._take_before(connection_id, end)
        if self._left[connection_id]:
            return self._take_first(connection_id)
        if self.strict_modulo:
            return None
        furthest_behind = max(range(self.connections), key=self._left.__getitem__)
        return self._take_first(furthest_behind) if self._left[furthest_behind] else None

    def take_run(self, first: int, most: int, end: int) -> range:
        """Take the chunks that follow the one which was taken last from its home, `first`, at one distance.

        Return all of them, `first` included: at most `most`, all before `end`.
        """
        home, run = self.home(first), range(first, first + 1)
        queue = self._homes[home]
        while len(run) < most and queue:
            chunk_ids = queue[0]
            stride = chunk_ids[0] - run[-1]
            if stride <= 0 or chunk_ids[0] >= end or (len(run) > 1 and stride != run.step):
                break
            fits = 1
            if chunk_ids.step == stride:
                fits = min(most - len(run), len(range(chunk_ids[0], min(end, chunk_ids.stop), stride)))
            run = range(first, chunk_ids[fits - 1] + 1, stride)
            self._left[home] -= fits
            queue.popleft()
            if fits < len(chunk_ids):
                queue.appendleft(chunk_ids[fits:])
        self._check_order(home)
        return run

    def _take_before(self, connection_id: int, end: int) -> int | None:
        # Steals the lowest chunk, not the next one of the fullest home: the window that ends at `end` moves on when its
        # first chunk has arrived.
        first = self._first_of(connection_id)
        if first is not None and first < end:
            return self._take_first(connection_id)
        lowest = None if self.strict_modulo else self.lowest
        return self._take_first(self.home(lowest)) if lowest is not None and lowest < end else None

    def _take_first(self, home: int) -> int:
        queue = self._homes[home]
        chunk_ids = queue.popleft()
        if len(chunk_ids) > 1:
            queue.appendleft(chunk_ids[1:])
            self._check_order(home)
        self._left[home] -= 1
        return chunk_ids[0]
