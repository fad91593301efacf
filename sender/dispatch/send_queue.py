"""The queue of chunks that are to be sent, under one lock for all threads.

    unanswered --need--> queued --next--> sent by a connection --mark_done--> done
               --hold--> compared (`verify`): equal --> done, different --> queued
    queued --take_zeros--> told to the receiver --zeros_arrived--> done

The chunks of a connection that is lost are put back, and so is a chunk that arrives damaged: they are queued again. The
transfer can finish when all chunks are done. `schedule` says which chunk a connection gets, `chunk_states` keeps which
are answered and done, and `pinned_digests` what was read.

Another incarnation of the receiver begins another epoch, as it does not know the earlier answers and acknowledgements.
A call with an earlier epoch changes nothing.
"""

import threading
from collections.abc import Sequence
from typing import Final

from filestreamer.telemetry.counters import ConnectionCounters
from filestreamer.wire import limits
from filestreamer.wire.errors import Code, ConnectionLost, FilestreamerError, RemoteProtocolError, TransferFailed
from filestreamer.wire.grid import WHOLE, Share
from filestreamer.wire.messages import Segment
from filestreamer.wire.runs import runs
from sender.dispatch.ahead_limit import AheadLimit
from sender.dispatch.chunk_states import ChunkStates
from sender.dispatch.manifest import Manifest
from sender.dispatch.part import Part, StreamPart
from sender.dispatch.pinned_digests import PinnedDigests
from sender.dispatch.schedule import Schedule
from sender.mailbox import Event, Mailbox

RUNS_AHEAD: Final = 4
"""Where chunks are sent only so far ahead, each connection has so many runs on its way."""


class PartDone(Event):
    """The last open chunk of a part is done or of one file is sent, or a stream has ended."""


class SendQueue:
    """Shared by the coordinator, the data connections and the threads that compare."""

    def __init__(
        self, manifest: Manifest, schedule: Schedule, mailbox: Mailbox, share: Share = WHOLE, *, is_tree: bool = False
    ) -> None:
        """Queue the chunks of `share` that are in the manifest; tables have a row for each of these, by ordinal.

        The chunks of a tree are not sent far ahead of those that have not arrived (`ahead_limit`).
        """
        self.share = share
        self.epoch = 0
        self.states = ChunkStates()
        """Read by any thread without the lock: each number is right, though it may be old by then."""
        self.digests = PinnedDigests()
        self._manifest = manifest
        self._schedule = schedule
        self._mailbox = mailbox
        self._is_tree = is_tree
        # Protects all fields below, `states`, `_schedule`, and the counts of chunks in the parts of the manifest.
        # Notified where a connection that waits for a chunk may get one, and where the transfer is over.
        self._changed = threading.Condition(threading.Lock())
        self._ahead_limit: AheadLimit | None = None  # None: not a tree
        self._window_chunks: int | None = None  # what the receiver of a pipe has room for; None: not a pipe
        self._needs_all = False  # whether chunks of a stream that are still to come are needed, too
        self._differing_files: set[int] = set()  # by their first chunk: files that are needed whole (`compared`)
        # How often each chunk arrived damaged, by ordinal: a byte, as a receiver may say so of all of them. As long as
        # the chunks that there were when one did so last.
        self._damages = bytearray()
        self._failure: FilestreamerError | None = None
        self._is_complete = False
        self._sent_epoch = 0  # the epoch for which the coordinator knows that everything was sent
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.epoch += 1
        self._schedule.clear()
        shards = self._manifest.shares.shard.count if self._manifest.shares is not None else 1
        self._ahead_limit = AheadLimit(limits.AHEAD_CHUNKS * shards) if self._is_tree else None
        self.states.clear()
        self._needs_all = False
        self.may_finish_ahead = not self._is_tree and self._manifest.stream is None
        """Whether Finish may be said when everything is sent. Not where the receiver may change its mind about a chunk:
        it declines an entry, holds a chunk that is found to differ, or misses one after Finish; nor in order."""
        for part in self._manifest.parts:
            self._extend(part)

    # --- the manifest

    def extend(self, part: Part) -> None:
        """Add the chunks of another part."""
        with self._changed:
            self._extend(part)

    def _extend(self, part: Part) -> None:
        chunks = self.share.chunks(part.end_chunk)
        new = self.states.extend(chunks)
        for chunk_ids, share in part.shared_files():
            new -= self.states.leave_to_others(chunk_ids.start, chunk_ids.stop, share)
        part.unanswered_chunks = part.open_chunks = new
        self.digests.extend(chunks)

    def grow(self, part: StreamPart, *, is_whole: bool) -> None:
        """Add the chunks of a stream that were read since; `is_whole` when the stream has ended."""
        with self._changed:
            first, unanswered, open_chunks = self.states.chunks, part.unanswered_chunks, part.open_chunks
            self._manifest.grow(part, is_whole=is_whole)
            self._extend(part)
            part.unanswered_chunks += unanswered
            part.open_chunks += open_chunks
            if self._needs_all:
                self._need(first, self.states.chunks)
        if is_whole:
            self._mailbox.post(PartDone())

    # --- the receiver's answers

    def need(self, first: int, end: int) -> int:
        """Queue the chunks [first, end), which are needed. Return how many of them were not answered before."""
        with self._changed:
            return self._need(first, end)

    def _need(self, first: int, end: int) -> int:
        ordinals, new = self.share.ordinals(first, end), 0
        for start, stop in self.states.unanswered(ordinals.start, ordinals.stop):
            self._mark_answered(start, stop, self._manifest.part_of_chunk(first))
            self._schedule.add(*self.share.span(start, stop), self.share.count)
            new += stop - start
        self._changed.notify_all()
        return new

    def need_stream(self) -> None:
        """Queue all chunks of a stream, including those that are not read yet."""
        with self._changed:
            self._needs_all = True
            self._need(0, self.states.chunks)

    def hold(self, first: int, end: int, whole: range | None = None) -> list[tuple[int, int]]:
        """Note that the receiver holds the chunks [first, end).

        Return the ranges of them that are to be compared: those that were not answered before. `whole` are the chunks
        of a file that lies under its final name; if it was found to differ already, these chunks are needed instead.
        """
        with self._changed:
            ordinals = self.share.ordinals(first, end)
            new = list(self.states.unanswered(ordinals.start, ordinals.stop))
            for start, stop in new:
                self._mark_answered(start, stop, self._manifest.part_of_chunk(first))
            spans = [self.share.span(start, stop) for start, stop in new]
            if whole is None or whole.start not in self._differing_files:
                return spans
            for span in spans:
                self._schedule.add(*span, self.share.count)
            self._changed.notify_all()
        return []

    def _mark_answered(self, start: int, stop: int, part: Part) -> None:
        self.states.mark_answered(start, stop)
        part.unanswered_chunks -= stop - start

    def limit_window(self, window_bytes: int) -> None:
        """Send nothing that lies `window_bytes` or more behind the first byte that is not acknowledged."""
        with self._changed:
            self.may_finish_ahead = False
            self._window_chunks = max(1, window_bytes // self._manifest.chunk_size)

    def reopen(self, first: int, end: int) -> None:
        """Queue the chunks [first, end) again: the receiver misses them after Finish."""
        with self._changed:
            self.may_finish_ahead = False
            for ordinal in self.share.ordinals(first, end):
                if self._reopen(ordinal):
                    self._put_back([self.share.chunk(ordinal)])
            self._changed.notify_all()

    def _reopen(self, ordinal: int) -> bool:
        was_done = self.states.reopen(ordinal)
        if was_done:
            self._manifest.part_of_chunk(self.share.chunk(ordinal)).open_chunks += 1
        return was_done

    def withdraw(self, chunks: range) -> None:
        """Mark the chunks of a withdrawn large file as done, and leave them out of the root digest.

        Chunks of it that were already sent arrive, and are ignored.
        """
        self.hold(chunks.start, chunks.stop)
        self.digests.leave_out(chunks)
        self.mark_done(chunks, self.epoch)

    def withdraw_open(self, part: Part, file_id: int) -> bool:
        """Withdraw a file of a tree that the receiver declines, unless all of its chunks are done; whether it was.

        The lock keeps a bundle from being done, and its digests from being kept, in between.
        """
        if not part.has_segments(file_id):
            return False
        with self._changed:
            chunks = part.chunks_of(file_id) if part.is_large(file_id) else [part.chunk_of(file_id, 0)]
            is_done = all(map(self.states.is_done, chunks))
            return not is_done and self._manifest.withdrawn.add(file_id)

    def start_over(self) -> None:
        """Begin another epoch: another incarnation of the receiver answers anew. Digests stay pinned."""
        with self._changed:
            self._begin_epoch()
            self.digests.leave_nothing_out()
            self._changed.notify_all()

    # --- the data connections

    def next(self, connection_id: int, epoch: int, *, wait_seconds: float = 0.0) -> int | None:
        """Give a connection the next chunk to send; None where there is none for it within `wait_seconds`.

        Raises the error that ended the transfer, if one did, and ConnectionLost for a connection of an earlier epoch.
        """
        with self._changed:
            chunk_id = self._next(connection_id, epoch)
            if chunk_id is None and wait_seconds and not self._is_complete:
                self._changed.wait(wait_seconds)
                chunk_id = self._next(connection_id, epoch)
            return chunk_id

    def _next(self, connection_id: int, epoch: int) -> int | None:
        if self._failure is not None:
            raise self._failure
        if epoch != self.epoch:
            # A connection to the earlier incarnation could never put a chunk of this epoch back: it would be lost.
            raise ConnectionLost("the receiver was restarted and no longer knows this transfer: connecting again")
        if self._window_chunks is not None:
            return self._schedule.take(connection_id, self.share.chunk(self.states.lowest + self._window_chunks))
        if self._ahead_limit is not None:
            return self._next_of_tree(connection_id, self._ahead_limit)
        return self._schedule.take(connection_id)

    def _next_of_tree(self, connection_id: int, limit: AheadLimit) -> int | None:
        schedule = self._schedule
        if connection_id >= schedule.connections or not (schedule.strict_modulo or limit.may_take(connection_id)):
            return None
        chunk_id = schedule.take(connection_id, limit.end(schedule.lowest))
        if chunk_id is not None:
            limit.sent(chunk_id, connection_id)
        elif schedule.remaining:
            limit.hold_back()
        return chunk_id

    def take_run(self, first: int, connection_id: int, epoch: int, *, most: int, end: int) -> range:
        """Return the chunks that travel as a run behind `first`, which `next` gave to this connection, with it.

        At most `most`, all before `end`; of a home that is not its own, it leaves half of the chunks.
        """
        with self._changed:
            schedule, limit, ahead = self._schedule, self._ahead_limit, None
            if epoch != self.epoch or connection_id >= schedule.connections:
                return range(first, first + 1)
            if self._window_chunks is not None:
                ahead, end = self._window_chunks, min(end, self.share.chunk(self.states.lowest + self._window_chunks))
            elif limit is not None:
                ahead, end = limits.AHEAD_CHUNKS, min(end, limit.end(schedule.lowest))
                most = min(most, 1 + limit.room(connection_id))
            if ahead is not None:  # so that no connection waits for what others have still to send
                most = min(most, ahead // (RUNS_AHEAD * schedule.connections))
            home = schedule.home(first)
            if home != connection_id:
                most = min(most, 1 + schedule.remaining_of(home) // 2)
            run = schedule.take_run(first, most, end)
            if limit is not None:
                for chunk_id in run[1:]:
                    limit.sent(chunk_id, connection_id)
            return run

    def pin_run(self, chunk_ids: range, digests: Sequence[bytes]) -> list[int]:
        """Make the first digest of each chunk of a run binding; return the indices of those that had another one."""
        return self.digests.pin_run(self.share.ordinals_of(chunk_ids), digests)

    def pin_digest(self, chunk_id: int, segments: Sequence[Segment], digests: Sequence[bytes]) -> list[int]:
        """Make the first digest of each segment binding.

        Return the indices of segments that have another digest than when they were read before.
        """
        ordinal = self.share.ordinal(chunk_id)
        if self._manifest.is_bundle(chunk_id):
            return self.digests.pin_bundle(ordinal, [segment.file_id for segment in segments], digests)
        return [] if self.digests.pin_segment(ordinal, digests[0]) else [0]

    def put_back(self, chunk_ids: list[int], epoch: int) -> None:
        """Queue chunks again that a connection took, and that were not acknowledged to it."""
        with self._changed:
            if epoch == self.epoch:
                self._put_back(chunk_ids)
                self._changed.notify_all()

    def _put_back(self, chunk_ids: list[int]) -> None:
        self._schedule.put_back(chunk_ids)
        if self._ahead_limit is not None:
            for chunk_id in chunk_ids:
                self._ahead_limit.returned(chunk_id)

    def put_back_damaged(self, chunk_id: int, connection: ConnectionCounters, epoch: int) -> None:
        """Queue a chunk again that arrived damaged. Raises TransferFailed(DIGEST) after SENDS_PER_CHUNK times."""
        with self._changed:
            if epoch != self.epoch:
                return
            ordinal = self.share.ordinal(chunk_id)
            self._damages.extend(bytes(max(0, self.states.chunks - len(self._damages))))
            self._damages[ordinal] += 1
            if self._damages[ordinal] == limits.SENDS_PER_CHUNK:
                raise TransferFailed(
                    Code.DIGEST,
                    f"chunk {chunk_id} arrived damaged {limits.SENDS_PER_CHUNK} times over connection"
                    f" {connection.connection_id}: suspect the network, or the memory of either machine",
                )
            self._put_back([chunk_id])
            self._changed.notify_all()

    def mark_done(self, chunk_ids: tuple[int, ...] | range, epoch: int, by: int | None = None) -> None:
        """Mark chunks of this epoch as done: acknowledged to connection `by`, or (None) held and equal."""
        with self._changed:
            is_part_done = epoch == self.epoch and self._mark_all_done(chunk_ids, by)
            if self._ahead_limit is not None and self._ahead_limit.is_waited_for:
                self._ahead_limit.is_waited_for = False
                self._changed.notify_all()
        if is_part_done:
            self._mailbox.post(PartDone())

    def _mark_all_done(self, chunk_ids: tuple[int, ...] | range, by: int | None) -> bool:
        """Mark chunks as done that are not; return whether one of them was the last open chunk of a part."""
        is_part_done = False
        if isinstance(chunk_ids, range) and by is not None and self._mark_run_done(chunk_ids, by):
            self._advance()
            return not self._manifest.part_of_chunk(chunk_ids[0]).open_chunks
        for chunk_id in chunk_ids:
            ordinal = self.share.ordinal(chunk_id)
            if not self.states.is_done(ordinal):
                part = self._manifest.part_of_chunk(chunk_id)
                self._mark_done(ordinal, by, part)
                is_part_done = is_part_done or not part.open_chunks
        self._advance()
        return is_part_done

    def _mark_run_done(self, chunk_ids: range, by: int) -> bool:
        """Mark the chunks of a run as done, which are of one file, if none of them is; return whether it has."""
        if not self.states.mark_run_done(self.share.ordinals_of(chunk_ids), by):
            return False
        self._manifest.part_of_chunk(chunk_ids[0]).open_chunks -= len(chunk_ids)
        if self._ahead_limit is not None:
            for chunk_id in chunk_ids:
                self._ahead_limit.arrived(chunk_id)
        return True

    def _mark_done(self, ordinal: int, by: int | None, part: Part) -> None:
        self.states.mark_done(ordinal, by)
        part.open_chunks -= 1
        # Only trees have bundles and an AheadLimit, and the queue of a tree counts the chunks of other shards, too: an
        # ordinal is a chunk's number there.
        if self._ahead_limit is not None:
            self._ahead_limit.arrived(ordinal)
        self.digests.close_bundle(ordinal, self._manifest.withdrawn)

    def _advance(self) -> None:
        """Move the windows on where the first chunk that was not done is."""
        if self.states.advance():
            if self._window_chunks is not None:
                self._changed.notify_all()
            if self._manifest.stream is not None:
                self._manifest.stream.advance(self.states.lowest)

    # --- chunks of zeros

    def may_be_told(self, chunk_id: int) -> bool:
        """Whether a chunk that a connection took may be told as zeros, if it is: one segment that was never read.

        What was read has a digest, which the receiver may have, too. In order, the receiver takes chunks alone.
        """
        ordinal = self.share.ordinal(chunk_id)
        is_read = self._manifest.is_bundle(chunk_id) or self.digests.pinned_between(ordinal, ordinal + 1)
        return not (is_read or self.is_in_order)

    def take_zeros(self, chunk_id: int, end: int, epoch: int) -> list[tuple[int, int]]:
        """Take the chunks of a hole: `chunk_id`, which a connection took, and those before `end` that are queued.

        Return the ranges [first, end) of chunks that the receiver is to be told of; a range of a shard means its own.
        """
        share = self.share
        with self._changed:
            if epoch != self.epoch:
                return []
            first, stop = share.ordinal(chunk_id), share.ordinals(chunk_id, end).stop
            taken = bytearray(stop - first)
            for chunk_ids in self._schedule.remove(chunk_id + 1, end):
                ordinals = share.ordinals_of(chunk_ids)
                places = slice(ordinals.start - first, ordinals.stop - first, ordinals.step)
                taken[places] = b"\x01" * len(chunk_ids)
            queued_again = [at for at in self.digests.pinned_between(first, stop) if taken[at - first]]
            for ordinal in queued_again:
                taken[ordinal - first] = 0
            self._schedule.put_back(list(map(share.chunk, queued_again)))
            taken[0] = 1
            told = [(first + start, first + stop) for start, stop in runs(taken, 1)]
            for start, stop in told:
                self.states.tell(start, stop)
            if self._ahead_limit is not None:
                self._ahead_limit.returned(chunk_id)
            self._changed.notify_all()
            return [share.span(*span) for span in told]

    def is_told(self, chunk_id: int) -> bool:
        """Whether a chunk was taken by `take_zeros`, and is not done."""
        with self._changed:
            return self.states.is_told(self.share.ordinal(chunk_id))

    def is_known_as_zeros(self, chunk_id: int) -> bool:
        """Whether a chunk was told as zeros, on any control connection."""
        with self._changed:
            return self.states.is_zeros(self.share.ordinal(chunk_id))

    def zeros_arrived(self, first: int, end: int) -> list[tuple[int, int]]:
        """Mark those of the chunks [first, end) as done that were told; return the ranges of their ordinals.

        Raises RemoteProtocolError where one of them was not told.
        """
        is_part_done = False
        with self._changed:
            ordinals = self.share.ordinals(first, end)
            new = self.states.mark_zeros(ordinals.start, ordinals.stop)
            if new is None:
                raise RemoteProtocolError(
                    f"the receiver takes chunks {first} to {end - 1} for zeros that were not told"
                )
            if new:
                part = self._manifest.part_of_chunk(first)
                part.open_chunks -= sum(stop - start for start, stop in new)
                is_part_done = not part.open_chunks
                self._advance()
                if self._ahead_limit is not None:
                    self._changed.notify_all()
        if is_part_done:
            self._mailbox.post(PartDone())
        return new

    def zeros(self, first: int, end: int) -> list[tuple[int, int]]:
        """Return the ranges of the ordinals of those of the chunks [first, end) that are done as zeros."""
        with self._changed:
            ordinals = self.share.ordinals(first, end)
            return self.states.zeros(ordinals.start, ordinals.stop)

    def root_digest(self) -> bytes:
        """Compute the root digest, when all is done or sent."""
        with self._changed:
            for ordinal in self.states.not_done():
                self.digests.close_bundle(ordinal, self._manifest.withdrawn)
            return self.digests.root_digest(self.states.zeros(0, self.states.chunks))

    # --- the threads that compare

    def compared(
        self, chunk_id: int, epoch: int, *, is_equal: bool, whole: range | None = None
    ) -> tuple[bool, list[int]]:
        """Handle the comparison of a held chunk of a large file: if it differs, it is needed.

        If the file lies under its final name, all of its chunks (`whole`) are needed then, as the receiver never writes
        into a complete file. Return whether the chunk counts as held, and the chunks that no longer count as held.
        """
        is_part_done = False
        taken_back: list[int] = []
        with self._changed:
            if epoch != self.epoch or (whole is not None and whole.start in self._differing_files):
                return False, taken_back
            if is_equal:
                is_part_done = self._mark_all_done((chunk_id,), None)
            else:
                needed = [chunk_id]
                if whole is not None:
                    self._differing_files.add(whole.start)
                    ordinals = filter(self.states.is_answered, self.share.ordinals(whole.start, whole.stop))
                    needed = list(map(self.share.chunk, ordinals))
                    taken_back = [other for other in needed if self._reopen(self.share.ordinal(other))]
                self._put_back(needed)
                self._changed.notify_all()
        if is_part_done:
            self._mailbox.post(PartDone())
        return is_equal, taken_back

    def is_needed_whole(self, whole: range) -> bool:
        """Whether a file that lies under its final name, which has the chunks `whole`, was found to differ."""
        return whole.start in self._differing_files

    # --- the number of connections

    @property
    def connections(self) -> int:
        """The number of connections that get chunks: those with an id below it."""
        return self._schedule.connections

    def resize(self, connections: int) -> None:
        """Give chunks to so many connections from now on: N is doubled or halved as often as needed."""
        with self._changed:
            self._schedule.resize(connections)
            self._changed.notify_all()

    def is_home(self, chunk_id: int, connection_id: int) -> bool:
        """Whether a chunk is on its home connection; if not, another one took it over."""
        return self._schedule.home(chunk_id) == connection_id

    def wanted_connections(self, started: set[int]) -> list[int]:
        """Return the connections to start: first those whose home has chunks, then as many as can steal from these.

        Chunks that are not answered count as needed, as most of them are.
        """
        with self._changed:
            schedule = self._schedule
            idle = [c for c in range(schedule.connections) if c not in started]
            if not idle:  # as nearly always: this is asked after each event
                return []
            unanswered = self._count_unanswered()
            own = [c for c in idle if schedule.remaining_of(c)]
            others = [c for c in idle if not schedule.remaining_of(c)]
            if schedule.strict_modulo:
                return own + [c for c in others if c < unanswered]
            return (own + others)[: max(0, schedule.remaining + unanswered - len(started))]

    @property
    def unanswered(self) -> int:
        """Number of chunks that the receiver has not answered."""
        with self._changed:
            return self._count_unanswered()

    def _count_unanswered(self) -> int:
        return sum(part.unanswered_chunks for part in self._manifest.parts)

    @property
    def remaining(self) -> int:
        """Number of chunks that are queued."""
        with self._changed:
            return self._schedule.remaining

    @property
    def strict_modulo(self) -> bool:
        """Whether no connection takes over a chunk of another one."""
        return self._schedule.strict_modulo

    @property
    def is_in_order(self) -> bool:
        """Whether the receiver writes chunks to a pipe in order, and acknowledges each when it has."""
        return self._window_chunks is not None

    # --- the end

    @property
    def is_drained(self) -> bool:
        """Whether every chunk of the parts so far is done."""
        with self._changed:
            return self.states.done_count == self.states.chunks

    @property
    def all_done(self) -> bool:
        """Whether the whole manifest is listed, and every chunk of it is done."""
        with self._changed:
            return self._manifest.is_listed and self.states.done_count == self.states.chunks

    @property
    def all_sent(self) -> bool:
        """Whether every chunk of the one file is done, or was sent: then Finish may go ahead of acknowledgements."""
        with self._changed:
            if not self.may_finish_ahead or not self._manifest.is_listed or self._schedule.remaining:
                return False
            if any(part.unanswered_chunks for part in self._manifest.parts):
                return False
            # Nothing that is told as zeros is pinned.
            return all(map(self.digests.is_pinned, self.states.not_done()))

    def look_if_all_sent(self) -> None:
        """Have the coordinator act if everything was sent. For a connection that has nothing left to send."""
        if self._sent_epoch != self.epoch and self.all_sent:
            self._sent_epoch = self.epoch
            self._mailbox.post(PartDone())

    def complete(self) -> None:
        """End the data connections in order: the receiver said Complete."""
        with self._changed:
            self._is_complete = True
            self._changed.notify_all()

    def fail(self, error: FilestreamerError) -> None:
        """End the data connections with an error, which `next` raises from now on. The first one stays."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    @property
    def is_complete(self) -> bool:
        return self._is_complete

    @property
    def is_over(self) -> bool:
        """Whether the transfer is complete, or has failed."""
        return self._is_complete or self._failure is not None

    def dismisses(self, connection_id: int) -> bool:
        """Whether a connection may end in order: the transfer is complete, or goes on with fewer of them."""
        return self._is_complete or connection_id >= self._schedule.connections

    def wait_over(self, seconds: float) -> bool:
        """Wait at most `seconds` until the transfer is over; return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self.is_over, seconds)
