"""The deal: what is still to be sent, what was answered, what is settled, under one lock for all threads.

A chunk is first unanswered; the receiver's answer makes it needed (it goes to the schedule) or held (it is re-hashed
here and compared: equal is settled, different is needed). A needed chunk is dealt, sent, acknowledged: settled. When
all chunks are answered and settled, the transfer can finish.
"""

import threading
from collections.abc import Callable, Iterator

from sender.schedule import Schedule
from service.chunk_map import ChunkMap
from service.counters import ConnectionCounters
from wire import limits
from wire.digests import root_digest
from wire.errors import Code, ConnectionLost, FilestreamerError, TransferFailed
from wire.grid import WHOLE, Share

_UNBOUND = bytes(limits.DIGEST_BYTES)
_ACKNOWLEDGED = 1
_HELD = 2


class Deal:
    """Shared by the coordinator and the data connections. The mutex protects every field with an underscore."""

    def __init__(
        self,
        chunks: int,
        make_schedule: Callable[[], Schedule],
        on_settled: Callable[[], None],
        share: Share = WHOLE,
    ) -> None:
        """Deal the chunks of a share of `chunks`; tables have a row for each of these, by ordinal.

        `on_settled` is called, without the lock, each time that the last open chunk settles.
        """
        self.share = share
        self.chunks = share.chunks(chunks)
        self.chunk_map = ChunkMap(self.chunks)
        self._make_schedule = make_schedule
        self._on_settled = on_settled
        self._changed = threading.Condition(threading.Lock())
        self._digests = bytearray(limits.DIGEST_BYTES * self.chunks)
        self._sends: dict[int, int] = {}  # only of chunks that were sent again
        self._over: FilestreamerError | None = None
        self._complete = False
        self._start_over()

    def _start_over(self) -> None:
        self._schedule = self._make_schedule()
        self._answered = bytearray(self.chunks)
        self._settled = bytearray(self.chunks)  # 0, _ACKNOWLEDGED, _HELD
        self.chunk_map.clear()
        self._answered_count = 0
        self._settled_count = 0
        self.epoch = getattr(self, "epoch", 0) + 1

    # --- the receiver's answers

    def start_over(self) -> None:
        """Forget what was answered and acknowledged: another incarnation answers anew. Digests stay binding."""
        with self._changed:
            self._start_over()
            self._changed.notify_all()

    def need(self, first: int, end: int) -> int:
        """Take an answer: these chunks are to be sent. Return how many of them were not answered before."""
        with self._changed:
            new = 0
            for start, stop in self._unanswered(first, end):
                self._mark_answered(start, stop)
                self._schedule.add(*self.share.span(start, stop), self.share.count)
                new += stop - start
            self._changed.notify_all()
        return new

    def hold(self, first: int, end: int) -> list[tuple[int, int]]:
        """Take an answer: these chunks are to be compared. Return the ranges of them that were not answered before."""
        with self._changed:
            new = list(self._unanswered(first, end))
            for start, stop in new:
                self._mark_answered(start, stop)
        return [self.share.span(start, stop) for start, stop in new]

    def reopen(self, first: int, end: int) -> None:
        """Take an answer to Finish: the receiver misses these after all."""
        with self._changed:
            for ordinal in self.share.ordinals(first, end):
                if how := self._settled[ordinal]:
                    self._settled[ordinal] = 0
                    self.chunk_map.remove(ordinal, was_held=how == _HELD)
                    self._settled_count -= 1
                    self._schedule.put_back([self.share.chunk(ordinal)])
            self._changed.notify_all()

    def _unanswered(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges of ordinals inside the chunks [first, end) that no answer has covered."""
        ordinals = self.share.ordinals(first, end)
        at, last = ordinals.start, ordinals.stop
        while (start := self._answered.find(0, at, last)) >= 0:
            stop = self._answered.find(1, start, last)
            at = last if stop < 0 else stop
            yield start, at

    def _mark_answered(self, start: int, stop: int) -> None:
        self._answered[start:stop] = b"\x01" * (stop - start)
        self._answered_count += stop - start

    # --- the data connections

    def next(self, connection_id: int, epoch: int, *, wait_seconds: float = 0.0) -> int | None:
        """Deal a chunk to a connection; None where there is none for it within `wait_seconds`.

        Raises what ended the transfer, if anything did, and ConnectionLost for a connection of an earlier epoch: what
        it can't send any more would be lost.
        """
        with self._changed:
            chunk_id = self._next(connection_id, epoch)
            if chunk_id is None and wait_seconds and not self._complete:
                self._changed.wait(wait_seconds)
                chunk_id = self._next(connection_id, epoch)
            return chunk_id

    def _next(self, connection_id: int, epoch: int) -> int | None:
        if self._over is not None:
            raise self._over
        if epoch != self.epoch:
            raise ConnectionLost("the receiver forgot this transfer: connect again")
        return self._schedule.deal(connection_id)

    def is_home(self, chunk_id: int, connection_id: int) -> bool:
        """Whether a chunk belongs to this connection, or was taken over."""
        return self._schedule.home(chunk_id) == connection_id

    def bind(self, chunk_id: int, digest: bytes) -> bool:
        """Make the first digest of a chunk binding. False where another one was bound before."""
        at = self.share.ordinal(chunk_id) * limits.DIGEST_BYTES
        bound = self._digests[at : at + limits.DIGEST_BYTES]
        if bound == _UNBOUND:
            self._digests[at : at + limits.DIGEST_BYTES] = digest
            return True
        return bound == digest

    def settle(self, chunk_ids: tuple[int, ...] | range, epoch: int, by: int | None = None) -> None:
        """Take chunks that `by` got acknowledged, or (None) held ones that are equal, of the answers of `epoch`."""
        how = _HELD if by is None else _ACKNOWLEDGED
        with self._changed:
            if epoch != self.epoch:
                return
            for ordinal in map(self.share.ordinal, chunk_ids):
                if not self._settled[ordinal]:
                    self._settled[ordinal] = how
                    self._settled_count += 1
                    self.chunk_map.add(ordinal, by)
            settled = self._all_settled()
        if settled:
            self._on_settled()

    def differs(self, chunk_id: int, epoch: int) -> None:
        """Take a held chunk whose digest is not the source's: it is needed after all."""
        with self._changed:
            if epoch == self.epoch:
                self._schedule.put_back([chunk_id])
                self._changed.notify_all()

    def mismatch(self, chunk_id: int, connection: ConnectionCounters, epoch: int) -> None:
        """Take a DIGEST_MISMATCH: deal the chunk again. Raises TransferFailed(DIGEST) after SENDS_PER_CHUNK sends."""
        with self._changed:
            if epoch != self.epoch:
                return
            sends = self._sends.get(chunk_id, 1) + 1
            if sends > limits.SENDS_PER_CHUNK:
                raise TransferFailed(
                    Code.DIGEST,
                    f"chunk {chunk_id} arrived damaged {limits.SENDS_PER_CHUNK} times over connection"
                    f" {connection.connection_id}: suspect the network, or the memory of either machine",
                )
            self._sends[chunk_id] = sends
            self._schedule.put_back([chunk_id])
            self._changed.notify_all()

    def put_back(self, chunk_ids: list[int], epoch: int) -> None:
        """Take the unacknowledged chunks of a connection that ended, to deal them again."""
        with self._changed:
            if epoch == self.epoch:
                self._schedule.put_back(chunk_ids)
                self._changed.notify_all()

    # --- the coordinator

    def _all_settled(self) -> bool:
        return self._answered_count == self._settled_count == self.chunks

    @property
    def all_settled(self) -> bool:
        """Whether every chunk was answered and is acknowledged or held."""
        with self._changed:
            return self._all_settled()

    def wanted_connections(self, started: set[int]) -> list[int]:
        """Which connections to start: first those whose home has chunks, then as many as can take over from them."""
        with self._changed:
            schedule = self._schedule
            idle = [c for c in range(schedule.connections) if c not in started]
            own = [c for c in idle if schedule.remaining_of(c)]
            if schedule.strict_modulo:
                return own
            others = [c for c in idle if not schedule.remaining_of(c)]
            return (own + others)[: max(0, schedule.remaining - len(started))]

    @property
    def undealt(self) -> int:
        """Chunks that are needed and not dealt."""
        with self._changed:
            return self._schedule.remaining

    def resize(self, connections: int) -> None:
        """Deal to so many connections from now on: twice as many, or half, or those as often."""
        with self._changed:
            self._schedule.resize(connections)
            self._changed.notify_all()

    def root_digest(self) -> bytes:
        """Compute the digest over all segment digests in manifest order."""
        return root_digest([self._digests])

    def complete(self) -> None:
        """End the data connections in order: the receiver said Complete."""
        with self._changed:
            self._complete = True
            self._changed.notify_all()

    def fail(self, error: FilestreamerError) -> None:
        """End the data connections: each next() raises `error`."""
        with self._changed:
            self._over = self._over or error
            self._changed.notify_all()

    @property
    def is_complete(self) -> bool:
        return self._complete

    def dismisses(self, connection_id: int) -> bool:
        """Whether a connection may end in order: the transfer is complete, or goes on with fewer."""
        return self._complete or connection_id >= self._schedule.connections

    @property
    def is_over(self) -> bool:
        return self._complete or self._over is not None

    def wait_over(self, seconds: float) -> bool:
        """Wait until the transfer is over, at most `seconds`; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self.is_over, seconds)
