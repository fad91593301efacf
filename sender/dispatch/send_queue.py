"""The deal: what is still to be sent, what was answered, what is settled, under one lock for all threads.

A chunk is first unanswered; the receiver's answer makes it needed (it goes to the schedule) or held (it is re-hashed
here and compared: equal is settled, different is needed). A needed chunk is dealt, sent, acknowledged: settled. When
all chunks are answered and settled, the transfer can finish.
"""

import threading
from collections.abc import Callable, Iterator, Sequence

from filestreamer.telemetry.chunk_map import ChunkMap
from filestreamer.telemetry.counters import ConnectionCounters
from filestreamer.wire import limits
from filestreamer.wire.digests import root_digest
from filestreamer.wire.errors import Code, ConnectionLost, FilestreamerError, TransferFailed
from filestreamer.wire.grid import WHOLE, Share
from filestreamer.wire.messages import Segment
from sender.dispatch.ahead import Ahead
from sender.dispatch.manifest import Manifest, Part, StreamPart
from sender.dispatch.schedule import Schedule

_UNBOUND = bytes(limits.DIGEST_BYTES)
_ACKNOWLEDGED = 1
_HELD = 2


class SendQueue:
    """Shared by the coordinator and the data connections. The mutex protects every field with an underscore."""

    def __init__(
        self,
        manifest: Manifest,
        make_schedule: Callable[[], Schedule],
        on_part_done: Callable[[], None],
        share: Share = WHOLE,
        *,
        is_tree: bool = False,
    ) -> None:
        """Deal the chunks of a share of the manifest; tables have a row for each of these, by ordinal.

        Those of a tree are not dealt far ahead of what has arrived (`ahead`).

        `on_part_done` is called, without the lock, each time that the last open chunk of a part settles.
        """
        self.share = share
        self.chunks = 0
        self.chunk_map = ChunkMap()
        self._manifest = manifest
        self._make_schedule = make_schedule
        self._on_part_done = on_part_done
        self._is_tree = is_tree
        self._changed = threading.Condition(threading.Lock())
        self._digests = bytearray()
        self._bundles: dict[int, dict[int, bytes] | bytes] = {}
        """Of bundles, by chunk: digests by file, and once it is settled, of all in order."""
        self._left_out: list[range] = []  # chunks of files that were withdrawn
        self._whole: set[int] = set()  # first chunks of files of which all is needed
        self._sends: dict[int, int] = {}  # only of chunks that were sent again
        self._over: FilestreamerError | None = None
        self._complete = False
        self._window_chunks: int | None = None
        self.on_advance: Callable[[int], None] = _nothing
        """Called, without the lock, when everything below another ordinal is settled."""
        self._start_over()

    def _start_over(self) -> None:
        self._schedule = self._make_schedule()
        self._ahead = Ahead() if self._is_tree else None
        self._answered = bytearray()
        self._done = bytearray()  # 0, _ACKNOWLEDGED, _HELD
        self.chunk_map.clear()
        self._done_count = 0
        self._lowest = 0  # every ordinal below it is settled
        self._needs_rest = False
        self.epoch = getattr(self, "epoch", 0) + 1
        for part in self._manifest.parts:
            self._extend(part)

    # --- the manifest

    def extend(self, part: Part) -> None:
        """Take in the chunks of another part; those that lie in holes are settled at once."""
        with self._changed:
            self._extend(part)

    def _extend(self, part: Part) -> None:
        count = self.share.chunks(part.end_chunk) - len(self._done)
        self._answered.extend(bytes(count))
        self._done.extend(bytes(count))
        self.chunks = len(self._done)
        self._digests.extend(bytes(limits.DIGEST_BYTES * self.chunks - len(self._digests)))
        self.chunk_map.extend(self.chunks)
        part.unanswered_chunks = part.open_chunks = count
        for ordinal in map(self.share.ordinal, filter(self.share.holds, part.hole_chunks())):
            self._mark_answered(ordinal, ordinal + 1, part)
            self._mark_done(ordinal, None, part)

    def grow(self, part: StreamPart, *, is_whole: bool) -> None:
        """Take in what was read of a stream; `is_whole` once nothing follows."""
        with self._changed:
            first, unanswered, unsettled = self.chunks, part.unanswered_chunks, part.open_chunks
            self._manifest.grow(part, is_whole=is_whole)
            self._extend(part)
            part.unanswered_chunks += unanswered
            part.open_chunks += unsettled
            if self._needs_rest:
                self._need(first, self.chunks)
        if is_whole:
            self._on_part_done()

    # --- the receiver's answers

    def need_stream(self) -> None:
        """Take an answer: all of a stream is to be sent, and what comes of it, too."""
        with self._changed:
            self._needs_rest = True
            self._need(0, self.chunks)

    def bound(self, window_bytes: int) -> None:
        """Deal nothing that lies `window_bytes` or more behind the first byte that is not acknowledged."""
        with self._changed:
            self._window_chunks = max(1, window_bytes // self._manifest.chunk_size)
            self._advance()  # over holes

    def start_over(self) -> None:
        """Forget what was answered and acknowledged: another incarnation answers anew. Digests stay binding."""
        with self._changed:
            self._start_over()
            self._changed.notify_all()

    def need(self, first: int, end: int) -> int:
        """Take an answer: these chunks are to be sent. Return how many of them were not answered before."""
        with self._changed:
            return self._need(first, end)

    def _need(self, first: int, end: int) -> int:
        new = 0
        for start, stop in self._unanswered(first, end):
            self._mark_answered(start, stop, self._manifest.part_of_chunk(first))
            self._schedule.add(*self.share.span(start, stop), self.share.count)
            new += stop - start
        self._changed.notify_all()
        return new

    def hold(self, first: int, end: int, whole: range | None = None) -> list[tuple[int, int]]:
        """Take an answer: these chunks are to be compared. Return the ranges of them that were not answered before.

        Where they are of a file that is compared as a `whole` and was found to differ, they are needed instead.
        """
        with self._changed:
            new = list(self._unanswered(first, end))
            for start, stop in new:
                self._mark_answered(start, stop, self._manifest.part_of_chunk(first))
            spans = [self.share.span(start, stop) for start, stop in new]
            if whole is None or whole.start not in self._whole:
                return spans
            for span in spans:
                self._schedule.add(*span)
            self._changed.notify_all()
        return []

    def reopen(self, first: int, end: int) -> None:
        """Take an answer to Finish: the receiver misses these after all."""
        with self._changed:
            for ordinal in self.share.ordinals(first, end):
                if self._undo(ordinal):
                    self._put_back([self.share.chunk(ordinal)])
            self._changed.notify_all()

    def _undo(self, ordinal: int) -> bool:
        how = self._done[ordinal]
        if how:
            self._done[ordinal] = 0
            self.chunk_map.remove(ordinal, was_held=how == _HELD)
            self._done_count -= 1
            self._lowest = min(self._lowest, ordinal)
            self._manifest.part_of_chunk(self.share.chunk(ordinal)).open_chunks += 1
        return bool(how)

    def _unanswered(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges of ordinals inside the chunks [first, end) that no answer has covered."""
        ordinals = self.share.ordinals(first, end)
        at, last = ordinals.start, ordinals.stop
        while (start := self._answered.find(0, at, last)) >= 0:
            stop = self._answered.find(1, start, last)
            at = last if stop < 0 else stop
            yield start, at

    def _mark_answered(self, start: int, stop: int, part: Part) -> None:
        self._answered[start:stop] = b"\x01" * (stop - start)
        part.unanswered_chunks -= stop - start

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
        if self._ahead is not None and self._window_chunks is None:
            return self._next_near(connection_id, self._ahead)
        below = None if self._window_chunks is None else self.share.chunk(self._lowest + self._window_chunks)
        return self._schedule.deal(connection_id, below)

    def _next_near(self, connection_id: int, ahead: Ahead) -> int | None:
        """Deal a chunk that is not far ahead of what has arrived."""
        schedule = self._schedule
        if connection_id >= schedule.connections or not (schedule.strict_modulo or ahead.may_take(connection_id)):
            return None
        chunk_id = schedule.deal(connection_id, ahead.below(schedule.lowest))
        if chunk_id is not None:
            ahead.dealt(chunk_id, connection_id)
        elif schedule.remaining:
            ahead.hold_back()
        return chunk_id

    def _put_back(self, chunk_ids: list[int]) -> None:
        """Have chunks dealt again that were dealt, or held."""
        self._schedule.put_back(chunk_ids)
        if self._ahead is not None:
            for chunk_id in chunk_ids:
                self._ahead.returned(chunk_id)

    def is_home(self, chunk_id: int, connection_id: int) -> bool:
        """Whether a chunk belongs to this connection, or was taken over."""
        return self._schedule.home(chunk_id) == connection_id

    def pin_digest(self, chunk_id: int, segments: Sequence[Segment], digests: Sequence[bytes]) -> list[int]:
        """Make the first digest of each segment binding. Return the indices of those that are others than before."""
        if not self._manifest.is_bundle(chunk_id):
            return [] if self._pin_chunk(chunk_id, digests[0]) else [0]
        bound = self._bundles.setdefault(chunk_id, {})
        if not isinstance(bound, dict):  # settled before: a single file, whose receiver was restarted
            return [] if bound == digests[0] else [0]
        found = [bound.setdefault(file_id, digest) for (file_id, _, _), digest in zip(segments, digests, strict=True)]
        return [index for index, digest in enumerate(found) if digest != digests[index]]

    def _pin_chunk(self, chunk_id: int, digest: bytes) -> bool:
        at = self.share.ordinal(chunk_id) * limits.DIGEST_BYTES
        bound = self._digests[at : at + limits.DIGEST_BYTES]
        if bound == _UNBOUND:
            self._digests[at : at + limits.DIGEST_BYTES] = digest
            return True
        return bound == digest

    def mark_done(self, chunk_ids: tuple[int, ...] | range, epoch: int, by: int | None = None) -> None:
        """Take chunks that `by` got acknowledged, or (None) held ones that are equal, of the answers of `epoch`."""
        with self._changed:
            is_done = epoch == self.epoch and self._mark_all_done(chunk_ids, by)
            has_advanced = self._advance()
            if self._ahead is not None and self._ahead.is_waited_for:
                self._ahead.is_waited_for = False
                self._changed.notify_all()
        self._tell(is_done=is_done, has_advanced=has_advanced)

    def _tell(self, *, is_done: bool, has_advanced: bool) -> None:
        """Tell, without the lock, what settling has led to."""
        if has_advanced:
            self.on_advance(self._lowest)
        if is_done:
            self._on_part_done()

    def _mark_all_done(self, chunk_ids: tuple[int, ...] | range, by: int | None) -> bool:
        """Settle what is not settled yet; whether that was the last open chunk of a part."""
        is_done = False
        for chunk_id in chunk_ids:
            ordinal = self.share.ordinal(chunk_id)
            if not self._done[ordinal]:
                part = self._manifest.part_of_chunk(chunk_id)
                self._mark_done(ordinal, by, part)
                is_done = is_done or not part.open_chunks
        return is_done

    def _advance(self) -> bool:
        """Find the first ordinal that is not settled; whether that is another one than before."""
        before, lowest = self._lowest, self._done.find(0, self._lowest)
        self._lowest = lowest if lowest >= 0 else self.chunks
        if self._window_chunks is not None and self._lowest > before:
            self._changed.notify_all()
        return self._lowest > before

    @property
    def lowest(self) -> int:
        """Every ordinal below this is settled."""
        return self._lowest

    @property
    def is_in_order(self) -> bool:
        """Whether the receiver passes chunks on in order, and acknowledges them when it has."""
        return self._window_chunks is not None

    @property
    def done(self) -> int:
        """How many chunks are settled: each counts once, however often it was acknowledged."""
        return self._done_count

    @property
    def is_idle(self) -> bool:
        """Whether everything that is there is settled."""
        return self._done_count == self.chunks

    def _mark_done(self, ordinal: int, by: int | None, part: Part) -> None:
        self._done[ordinal] = _HELD if by is None else _ACKNOWLEDGED
        self._done_count += 1
        if self._ahead is not None:
            self._ahead.arrived(ordinal)  # trees have no shards: the chunk's number
        part.open_chunks -= 1
        self.chunk_map.add(ordinal, by)
        digests = self._bundles.get(ordinal)  # a bundle's number is its ordinal: shards have none
        if isinstance(digests, dict):
            files = [file_id for file_id in sorted(digests) if not self._manifest.is_withdrawn(file_id)]
            self._bundles[ordinal] = b"".join([digests[file_id] for file_id in files])

    def compared(
        self, chunk_id: int, epoch: int, *, is_equal: bool, whole: range | None = None
    ) -> tuple[bool, list[int]]:
        """Take a held chunk that was compared: where it differs, it is needed after all, and `whole` with it.

        Return whether it counts as held, and which chunks, that did, do not any more.
        """
        is_done = has_advanced = False
        taken_back: list[int] = []
        with self._changed:
            if epoch != self.epoch or (whole is not None and whole.start in self._whole):
                return False, taken_back
            if is_equal:
                is_done = self._mark_all_done((chunk_id,), None)
                has_advanced = self._advance()
            else:
                needed = [chunk_id]
                if whole is not None:
                    self._whole.add(whole.start)
                    holes = set(self._manifest.part_of_chunk(chunk_id).hole_chunks())
                    needed = [other for other in whole if self._answered[other] and other not in holes]
                    taken_back = [other for other in needed if self._undo(other)]
                self._put_back(needed)
                self._changed.notify_all()
        self._tell(is_done=is_done, has_advanced=has_advanced)
        return is_equal, taken_back

    def is_needed_whole(self, first_chunk: int) -> bool:
        """Whether a file that is compared under its final name was found to differ, so that all of it is needed."""
        return first_chunk in self._whole

    def withdraw(self, chunks: range) -> None:
        """Take the chunks of a file that is not going to be sent: they are settled, and out of the root digest.

        What is on its way of them arrives, and counts for nothing.
        """
        self.hold(chunks.start, chunks.stop)
        self._left_out.append(chunks)
        self.mark_done(chunks, self.epoch)

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
            self._put_back([chunk_id])
            self._changed.notify_all()

    def put_back(self, chunk_ids: list[int], epoch: int) -> None:
        """Take the unacknowledged chunks of a connection that ended, to deal them again."""
        with self._changed:
            if epoch == self.epoch:
                self._put_back(chunk_ids)
                self._changed.notify_all()

    # --- the coordinator

    @property
    def all_done(self) -> bool:
        """Whether everything is listed, and every chunk is acknowledged or held."""
        with self._changed:
            return self._manifest.is_listed and self._done_count == self.chunks

    def wanted_connections(self, started: set[int]) -> list[int]:
        """Which connections to start: first those whose home has chunks, then as many as can take over from them.

        What is not answered yet counts as needed, as that is what it mostly is.
        """
        unanswered = self.unanswered
        with self._changed:
            schedule = self._schedule
            idle = [c for c in range(schedule.connections) if c not in started]
            own = [c for c in idle if schedule.remaining_of(c)]
            others = [c for c in idle if not schedule.remaining_of(c)]
            if schedule.strict_modulo:
                return own + [c for c in others if c < unanswered]
            return (own + others)[: max(0, schedule.remaining + unanswered - len(started))]

    @property
    def unanswered(self) -> int:
        """Chunks of which the receiver has not said whether it needs them."""
        with self._changed:
            return sum(part.unanswered_chunks for part in self._manifest.parts)

    @property
    def connections(self) -> int:
        """How many connections it deals to."""
        return self._schedule.connections

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
        """Compute the digest over all segment digests in manifest order, of what was sent or compared."""
        for chunks in self._left_out:
            for chunk_id in chunks:
                at = chunk_id * limits.DIGEST_BYTES
                self._digests[at : at + limits.DIGEST_BYTES] = _UNBOUND
        return root_digest(self._digests_in_order())

    def _digests_in_order(self) -> Iterator[bytes | bytearray]:
        size = limits.DIGEST_BYTES
        for ordinal in range(self.chunks):
            digest = self._bundles.get(ordinal) or self._digests[ordinal * size : (ordinal + 1) * size]
            if not isinstance(digest, dict) and digest != _UNBOUND:
                yield digest

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


def _nothing(_lowest: int) -> None:
    pass
