"""One data connection: a thread that receives chunks, and acknowledges them (proto/README.md, "Chunks and segments").

The life of a chunk is `DataConnection._receive_chunk`, from top to bottom:

    header       every segment is checked by the target, and begun
    each block   received, hashed, written at its place: a part of a segment, or as many small ones as it has room for
    digests      received, and compared with those that were computed
    end          a segment is VERIFIED where they are equal, and has to be sent again where not
    acknowledge  recorded in the ledger, then told to the sender, as soon as the next read would have to wait

The chunks of a run live together, but for those that arrive damaged.
"""

import contextlib
import itertools
import threading
import time
from functools import partial
from typing import Final, NamedTuple

from filestreamer.process.threads import run_to_end
from filestreamer.telemetry.counters import ConnectionCounters, StageClock
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.blocks import blocks
from filestreamer.wire.codec import decode
from filestreamer.wire.digests import segment_digest, segment_hasher, update_with_zeros
from filestreamer.wire.errors import (
    Aborted,
    Code,
    ConnectionClosed,
    ConnectionLost,
    FilestreamerError,
    RemoteProtocolError,
    TransferFailed,
)
from filestreamer.wire.features import CHUNK_RUNS
from filestreamer.wire.runs import runs
from filestreamer.wire.session import Session
from filestreamer.wire.sockets.transport import Channel
from receiver.file.target import ChunkWriter, Incoming, IncomingRun, IncomingSegment, LedgerWriter
from receiver.memory.connection_budget import ConnectionBudget, limit_receive_buffer, limit_socket_buffers
from receiver.pipe.reorder_buffer import ReorderBuffer
from receiver.transfer.context import Context
from receiver.transfer.mailbox import Nudged

SHRINK_SECONDS: Final = 1.0
"""A connection gives memory back in steps; at most one step in this time."""
MISMATCHES_LOGGED: Final = 8
"""Damaged chunks of one connection that are logged; the result counts all of them."""


class _Received(NamedTuple):
    """A chunk, or those of a run, with correct digests, to be acknowledged."""

    chunk_ids: range
    begun_at: float
    new: int
    """How many of them were not here, or not all of it: one whose acknowledgement was lost comes again."""
    new_bytes: int
    """Payload of what was not here."""


class DataConnection(threading.Thread):
    """Receives chunks over one connection until it ends."""

    def __init__(
        self,
        context: Context,
        channel: Channel,
        welcome: m.Welcome | None,
        counters: ConnectionCounters,
        budget: ConnectionBudget,
    ) -> None:
        """Receive chunks for the transfer of `context`. `budget` is given back when the connection is closed.

        `welcome` is what has to be said first; None where it was said.
        """
        super().__init__(name=f"connection-{counters.connection_id}", daemon=True)
        self.connection_id = counters.connection_id
        self.channel = channel
        self.counters = counters
        self.new_bytes = 0
        """Bytes of chunks that were received with correct digests, each segment once."""
        self.idle_since: float | None = time.monotonic()
        """Since when no chunk was being received (monotonic); None while a chunk is being received."""
        self._shared = context
        self._connection_set = context.connection_set
        self._welcome = welcome
        self._budget = budget
        self._session = Session("receiver", m.Role.DATA)
        self._hasher = segment_hasher()
        self._clock = StageClock(counters.stage_seconds)
        self._unrecorded: dict[LedgerWriter, list[tuple[int, bytes]]] = {}
        """(position, digest) of segments that are VERIFIED, and not in the ledger yet."""
        self._unacknowledged: list[_Received] = []
        self._unacknowledged_chunks = 0
        """How many chunks these are."""
        self._unpassed_chunks = 0
        """How many chunks of a pipe are acknowledged when they are passed on; changed under `_sending`."""
        self._unpassed: dict[int, _Received] = {}
        """Those of them that are not counted yet, by position. Who removes one counts it: two threads do."""
        self._begun_at = 0.0
        """When the latest chunk was begun."""
        self._keeps_memory_until = 0.0
        self._is_new = False
        """Whether the chunk that is being received has segments that were missing before."""
        self._moved_before_bytes = counters.moved_bytes
        """The `moved_bytes` of the counters when the latest chunk was begun."""
        self._is_ended = False
        self._detached = threading.Event()
        self._sending = threading.Lock()
        """Protects the writing side: chunks of a pipe are acknowledged by the thread that passes them on."""

    # --- the connection

    def run(self) -> None:
        """Take the place of an older connection, say Welcome, receive chunks until the connection ends."""
        error = run_to_end(f"connection {self.connection_id}", self._serve)
        if isinstance(error, TransferFailed) and error.code is Code.LIMIT:
            # No memory for this connection: the other connections go on without it.
            error = ConnectionLost(error.reason)
        try:
            self._end(error)
        finally:
            self.channel.close()
            self._connection_set.give_back(self._budget)

    def _serve(self) -> None:
        self._connection_set.attach(self)
        self.counters.connect(self.channel.socket)
        self.channel.patience = self._patience
        self.channel.on_dry = self.acknowledge
        self._limit_rate()
        if self._welcome is not None:
            self.channel.send_message(self._welcome)
        while True:
            self._receive_chunk(self._receive_header())
            self._shrink()

    def _limit_rate(self) -> None:
        """Read no faster than the rate limit of this process allows."""
        limit = self._shared.rate_limit
        if limit is None:
            return
        limit_receive_buffer(self.channel.socket, self._budget, limit.bytes_per_second)
        self.channel.read_bytes = limit.read_bytes

        def pace(count: int) -> None:
            interrupted = self._clock.enter("limit")
            limit.wait(count, lambda: self._is_ended or self._connection_set.is_over)
            self._clock.enter(interrupted)

        self.channel.pace = pace

    def _patience(self) -> None:
        """Raise ConnectionLost if the sender is silent on every connection. Called each second without movement."""
        if self._shared.liveness.peer_is_silent:
            raise ConnectionLost(f"{self.channel.peer} was silent for {limits.DEAD_SECONDS:.0f} s")

    def _shrink(self) -> None:
        """Give memory back, a step after each chunk, where other connections need it."""
        if self._keeps_memory_until >= self._begun_at:
            return
        to = self._connection_set.shrunk(self._budget)
        if to is not None:
            limit_socket_buffers(self.channel.socket, to)
            self._connection_set.shrink(self._budget, to)
            self._budget, self._keeps_memory_until = to, self._begun_at + SHRINK_SECONDS

    def stop(self, seconds: float | None) -> bool:
        """Shut the connection; return whether its thread has stopped using files within `seconds`."""
        self._is_ended = True
        self.channel.shut()
        return self._detached.wait(seconds)

    @property
    def is_ended(self) -> bool:
        """Whether the connection was told to stop: its thread must not wait for anything any more."""
        return self._is_ended

    def _end(self, error: FilestreamerError | None) -> None:
        """Detach from the files, then from the transfer; send Abort if the sender broke the protocol."""
        self._clock.enter(None)
        try:
            # Not acknowledged over this connection, and here: when they come again, they count no more.
            unpassed = [self._unpassed.pop(position, None) for position in list(self._unpassed)]
            self._count([*self._unacknowledged, *(each for each in unpassed if each is not None)])
            self.counters.disconnect()
            failure = run_to_end(f"leaving connection {self.connection_id}", lambda: self._connection_set.detach(self))
            self._report_end(failure or error)
        finally:  # `stop` waits for this, even after an error
            self._detached.set()
            if self._shared.dialling is not None:
                self._shared.dialling.connection_lost()
        if isinstance(error, RemoteProtocolError) and self._session.state != "aborted":
            try:
                self.channel.send_message(m.Abort(error.code, error.reason))
                self.channel.close_in_order()
            except FilestreamerError:
                pass

    def _report_end(self, error: FilestreamerError | None) -> None:
        """Log why the connection ended; an error that concerns the whole transfer ends the transfer."""
        context = self._shared
        context.liveness.has_lost_connection = True
        if isinstance(error, TransferFailed) or (error is not None and not error.retryable):
            context.mailbox.post(error)
        elif isinstance(error, ConnectionClosed):
            self.counters.is_dismissed = not context.transfer.is_complete
        # A sender that has Complete closes at once, also connections on which it has not read Welcome.
        elif error is not None and not context.over.is_set() and not context.transfer.is_complete:
            context.log.warning("connection_lost", connection=self.connection_id, reason=str(error))

    # --- a chunk

    def _receive_header(self) -> m.ChunkHeader:
        """Wait for the header of the next chunk. Raises Aborted, RemoteProtocolError."""
        self._clock.enter("receive")
        try:
            body = self.channel.read_body()
        except FilestreamerError:
            self._clock.drop()  # the wait for a frame that never came does not count as a stage
            raise
        message = decode(body)
        self._session.received(message)
        if isinstance(message, m.Abort):
            raise Aborted(message.code, message.reason)
        if not isinstance(message, m.ChunkHeader):
            raise RemoteProtocolError(f"{type(message).__name__} on a data connection")
        return message

    def _receive_chunk(self, header: m.ChunkHeader) -> None:
        # Header: check and begin every segment.
        self._clock.enter(None)
        begun_at = self._begun_at = time.monotonic()
        chunks, payload_bytes, hole_bytes = self._check(header)
        incoming = chunks.begin_chunk(self, header)
        self.idle_since = None
        self._moved_before_bytes = self.counters.moved_bytes
        self._is_new = isinstance(incoming, IncomingRun) or any(segment.write for segment in incoming)

        # Blocks, then digests: receive, hash and write; receive the sender's digests.
        self._clock.enter("receive")
        if isinstance(incoming, IncomingRun):
            computed = self._receive_run(incoming)
        else:
            computed = self._receive_segments(incoming)
        received = bytes(self.channel.take(limits.DIGEST_BYTES * len(computed)))
        digests = [received[at : at + limits.DIGEST_BYTES] for at in range(0, len(received), limits.DIGEST_BYTES)]

        # End: compare the digests, and put every segment into its next state. Of a run, each of them is a chunk.
        self._clock.enter(None)
        self._is_new = False
        good = chunks.end_chunk(self, incoming, digests, computed)
        if not all(good):
            damaged = [header.chunk_id]
            if header.chunks > 1:
                damaged = [chunk_id for chunk_id, is_good in zip(header.chunk_ids, good, strict=True) if not is_good]
            self._report_mismatch(damaged, payload_bytes)
            if len(damaged) == header.chunks:
                self.idle_since = time.monotonic()
                return
        self.counters.hole_bytes += hole_bytes
        self._note_new(incoming, digests, good)

        # Acknowledge: a chunk of a pipe when it was passed on; others as soon as many wait, or the socket is empty.
        count = partial(self._received, header, incoming, payload_bytes, begun_at)
        if isinstance(chunks, ReorderBuffer):
            assert not isinstance(incoming, IncomingRun)  # each chunk of a run is passed on by itself
            self.idle_since = time.monotonic()
            for at in itertools.compress(range(header.chunks), good):
                self._acknowledge_later(chunks, incoming[at].position, count(slice(at, at + 1)))
            return
        for first, end in [(0, header.chunks)] if all(good) else runs(bytes(good), 1):
            self._unacknowledged.append(count(slice(first, end)))
            self._unacknowledged_chunks += end - first
        self.idle_since = time.monotonic()  # behind the lines above, so that `is_settled` misses no chunk
        # Half a window, so that the sender never waits for all of it; those of another run would still fit.
        if self._unacknowledged_chunks >= limits.WINDOW_CHUNKS_MAX // 2:
            self.acknowledge()

    def _received(
        self, header: m.ChunkHeader, incoming: Incoming, payload_bytes: int, begun_at: float, which: slice
    ) -> _Received:
        """Return a chunk, or `which` chunks of a run; count what was here already as abandoned.

        `payload_bytes` are those of each. What was here is not acknowledged once more: that, and what is held, would be
        more than the whole.
        """
        chunk_ids = header.chunk_ids[which]
        new, new_bytes = len(chunk_ids), payload_bytes * len(chunk_ids)
        if not isinstance(incoming, IncomingRun):
            segments = incoming[which] if header.chunks > 1 else incoming  # of a run, each is a chunk
            if again := [each.segment for each in segments if each.was_here]:
                new = new - len(again) if header.chunks > 1 else int(len(again) < len(segments))
                again_bytes = sum([each.payload_bytes for each in again])
                new_bytes -= again_bytes
                self.counters.abandoned_bytes += again_bytes
                self.counters.hole_bytes -= sum([each.length for each in again]) - again_bytes
        return _Received(chunk_ids, begun_at, new, new_bytes)

    def _note_new(self, incoming: Incoming, digests: list[bytes], good: list[bool]) -> None:
        """Count what was written with correct digests, and have it recorded in its ledger before it is acknowledged."""
        if isinstance(incoming, IncomingRun):
            self.new_bytes += incoming.segment.length * sum(good)
            records = itertools.compress(zip(incoming.positions, digests, strict=True), good)
            self._unrecorded.setdefault(incoming.ledger, []).extend(records)
            return
        for segment, digest, is_good in zip(incoming, digests, good, strict=True):
            if is_good and segment.write:
                self.new_bytes += segment.segment.length
                if segment.ledger is not None:
                    self._unrecorded.setdefault(segment.ledger, []).append((segment.position, digest))

    def _check(self, header: m.ChunkHeader) -> tuple[ChunkWriter, int, int]:
        """Return the `ChunkWriter` for a chunk, and the bytes of the chunk in data and in holes; of a run, of each.

        Raises RemoteProtocolError.
        """
        target = self._connection_set.target
        if target is None:  # a sender that reconnected before its manifest was taken
            raise RemoteProtocolError("a chunk came before its file was offered", Code.UNKNOWN_TRANSFER)
        size = sum(segment.length for segment in header.segments)
        if size > self._shared.counters.chunk_size:
            raise RemoteProtocolError(f"chunk {header.chunk_id} has {size} bytes, more than a chunk")
        if header.chunks > 1 and CHUNK_RUNS not in self._shared.features:
            raise RemoteProtocolError(f"the sender uses the feature '{CHUNK_RUNS}', which its Hello does not name")
        hole_bytes = sum([segment.length - segment.payload_bytes for segment in header.segments if segment.runs])
        return target.chunks, size - hole_bytes, hole_bytes

    def _receive_segments(self, incoming: list[IncomingSegment]) -> list[bytes]:
        """Receive, hash and write the segments of a chunk; return their digests."""
        computed: list[bytes] = []
        for first, end, size in blocks([each.segment for each in incoming], self.channel.block_bytes):
            if size:
                computed += self._receive_block(incoming[first:end], size)
            else:
                computed.append(self._receive_segment(incoming[first]))
        return computed

    def _receive_block(self, incoming: list[IncomingSegment], size: int) -> list[bytes]:
        """Receive, hash and write small segments of `size` bytes together; return their digests."""
        clock, view, end = self._clock, self.channel.take(size), 0
        clock.enter("digest")
        pieces = [view[end : (end := end + each.segment.length)] for each in incoming]
        computed = [segment_digest(piece) for piece in pieces]
        clock.enter("write")
        for each, piece in zip(incoming, pieces, strict=True):
            if each.write:
                each.sink.write(piece, each.segment.offset)
        self.counters.moved_bytes += size
        clock.enter("receive")
        return computed

    def _receive_segment(self, segment: IncomingSegment) -> bytes:
        """Receive, hash and write the bytes of one segment; return their digest."""
        hasher, whole = self._hasher, segment.segment
        hasher.reset()
        self._clock.enter("receive")
        if whole.runs:
            self._receive_pieces(segment)
        else:
            self._receive_data(segment, whole.offset, whole.offset + whole.length)
        return hasher.digest()

    def _receive_run(self, run: IncomingRun) -> list[bytes]:
        """Receive, hash and write the segments of a run; return their digests."""
        clock, channel, length = self._clock, self.channel, run.segment.length
        at_once = channel.block_bytes // length
        if not at_once:  # the buffer of a receiver that is short of memory: a segment comes block by block
            return [self._receive_segment(segment) for segment in run.each()]
        offset, computed = run.segment.offset, []
        for first in range(0, len(run.positions), at_once):
            count = min(at_once, len(run.positions) - first)
            view = channel.take(count * length)
            clock.enter("digest")
            computed += [segment_digest(view[at : at + length]) for at in range(0, len(view), length)]
            clock.enter("write")
            run.sink.write_run(view, offset, length, run.distance)
            offset += count * run.distance
            self.counters.moved_bytes += len(view)
            clock.enter("receive")
        return computed

    def _receive_pieces(self, segment: IncomingSegment) -> None:
        """Receive, hash and write the data of a segment that has holes, and hash these."""
        if segment.write:
            self._clock.enter("write")
            segment.sink.begin_sparse(segment.segment)
        for start, end, is_data in segment.segment.pieces():
            self._clock.enter("receive" if is_data else "digest")
            if is_data:
                self._receive_data(segment, start, end)
            else:
                update_with_zeros(self._hasher, end - start)
        self._clock.enter("receive")

    def _receive_data(self, segment: IncomingSegment, offset: int, end: int) -> None:
        """Receive, hash and write bytes [offset, end) of a file."""
        counters, hasher, clock = self.counters, self._hasher, self._clock
        for view in self.channel.payload(end - offset):
            clock.enter("digest")
            hasher.update(view)
            if segment.write:
                clock.enter("write")
                segment.sink.write(view, offset)
            offset += len(view)
            counters.moved_bytes += len(view)
            clock.enter("receive")

    def _report_mismatch(self, chunk_ids: list[int], size: int) -> None:
        """Have the sender send damaged chunks again, which have `size` bytes of payload each."""
        for chunk_id in chunk_ids[: max(0, MISMATCHES_LOGGED - self.counters.resent_chunks)]:
            self._shared.log.warning("digest_mismatch", connection=self.connection_id, chunk=chunk_id)
        self.counters.abandoned_bytes += size * len(chunk_ids)
        self.counters.resent_chunks += len(chunk_ids)
        self.counters.mismatches += len(chunk_ids)
        self._send(m.ChunkAck(m.Verdict.DIGEST_MISMATCH, tuple(chunk_ids)))

    @property
    def stage(self) -> str | None:
        """What this connection does now, of RECEIVER_STAGES."""
        return self._clock.stage

    @property
    def under_way_bytes(self) -> int:
        """Bytes of the chunk that is being received, as far as it is new."""
        if not self._is_new:
            return 0
        return self.counters.moved_bytes - self._moved_before_bytes + self.channel.buffered_bytes

    # --- acknowledgements

    def acknowledge(self) -> None:
        """Record every VERIFIED segment in its ledger, then acknowledge the chunks."""
        if not self._unacknowledged:
            return
        interrupted = self._clock.enter("acknowledge")
        # The ledger comes first: the next run must find every segment that the sender counts as done.
        for ledger, records in self._unrecorded.items():
            ledger.record(records)
        self._unrecorded.clear()
        try:
            self._send_acknowledgement(self._unacknowledged)
        finally:
            self._unacknowledged, self._unacknowledged_chunks = [], 0
        if self._connection_set.is_awaited:
            self._shared.mailbox.post_now(Nudged())
        self._clock.enter(interrupted)

    @property
    def is_settled(self) -> bool:
        """Whether every chunk that was begun is acknowledged, or was refused."""
        return self.idle_since is not None and not self._unacknowledged

    @property
    def starved_since(self) -> float | None:
        """Since when this connection waits for bytes, and owes no answer to a chunk (monotonic); None: it does not."""
        owes_answer = self._unacknowledged or self._unpassed_chunks
        return None if owes_answer or self._clock.stage != "receive" else self.channel.heard_at

    def _acknowledge_later(self, output: ReorderBuffer, position: int, chunk: _Received) -> None:
        """Have a chunk of a pipe acknowledged when it was passed on."""
        with self._sending:
            self._unpassed_chunks += 1
        self._unpassed.setdefault(position, chunk)
        output.when_passed_on(position, self, partial(self._acknowledge_passed, position, chunk.chunk_ids))

    def _acknowledge_passed(self, position: int, chunk_ids: range) -> None:
        """Acknowledge a chunk that was passed on. For the thread that writes the output.

        Where this connection is gone, the sender sends the chunk again over another one.
        """
        chunk = self._unpassed.pop(position, None)  # else the thread of this connection has counted it
        try:
            if not self._detached.is_set():
                with contextlib.suppress(ConnectionLost):  # the thread of this connection gets the same error, and ends
                    self._send(m.ChunkAck.of(m.Verdict.OK, [chunk_ids]))
        finally:
            if chunk is not None:
                self._count([chunk])
            with self._sending:
                self._unpassed_chunks -= 1

    def _send_acknowledgement(self, acknowledged: list[_Received]) -> None:
        try:
            self._send(m.ChunkAck.of(m.Verdict.OK, [received.chunk_ids for received in acknowledged]))
        finally:
            self._count(acknowledged)

    def _count(self, acknowledged: list[_Received]) -> None:
        """Count chunks that are here as acknowledged, also if that is lost: when they come again, they do not count."""
        if not acknowledged:
            return
        now = time.monotonic()
        for chunk_ids, begun_at, new, new_bytes in acknowledged:
            self.counters.acknowledged_bytes += new_bytes
            self.counters.chunks += new
            self.counters.latencies.observe(now - begun_at, len(chunk_ids))
        self.counters.finished_at = now

    def _send(self, message: m.Message) -> None:
        with self._sending:
            self._session.sending(message)
            self.channel.send_message(message)
