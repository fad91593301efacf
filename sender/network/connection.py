"""One data connection, in one thread, both directions (proto/README.md, "Chunks and segments").

for each chunk that the queue gives to this connection:
    header frame                                         ┐ small ones are gathered
    for each block: read it, hash it, send it while it   │ into one system call
    is in the CPU's cache                                │ (`outbox`)
    one digest for each segment                          ┘
    take in the acknowledgements that have come, without waiting
wait for acknowledgements only where the window is full (`send_window`), or no chunk is queued

Small chunks of a large file go as a run: the chunks that follow in the queue at one distance are sent under one header.

Of a sparse file, holes are looked for before the header: it lists those of its segments, whose zeros are hashed and not
sent. A chunk that is nothing but a hole is told on the control connection, with all chunks behind it in the same hole.
"""

import contextlib
import threading
import time
from dataclasses import dataclass
from typing import Any, Final

from filestreamer.process.backoff import Backoff
from filestreamer.process.rate_limit import RateLimit
from filestreamer.process.threads import as_failure, run_to_end
from filestreamer.telemetry import tcp_info
from filestreamer.telemetry.counters import ConnectionCounters, StageClock
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode
from filestreamer.wire.digests import segment_hasher, update_with_zeros
from filestreamer.wire.errors import Aborted, ConnectionLost, FilestreamerError, RemoteProtocolError
from filestreamer.wire.features import CHUNK_RUNS
from filestreamer.wire.framing import frame
from filestreamer.wire.session import Session
from filestreamer.wire.sockets.transport import Channel
from sender.dispatch.manifest import FoundZeros, Manifest
from sender.dispatch.send_queue import SendQueue
from sender.dispatch.stragglers import Look
from sender.dispatch.verify import Verifier
from sender.mailbox import Failed, Mailbox
from sender.network.connector import Connector, Opened
from sender.network.outbox import GATHER_BYTES, Outbox
from sender.network.peer import Peer
from sender.network.send_window import SendWindow, SentChunk
from sender.source.holes import runs_of
from sender.source.item import Identity, Item, Unsendable, changed
from sender.source.known_digests import KnownDigests
from sender.source.reader import OTHER_BYTES, Reader
from sender.source.run_reader import Places, RunReader

IDLE_SECONDS: Final = 1.0
"""How long a connection that has nothing to send waits for a chunk before it looks for acknowledgements again."""
_NO_DIGEST: Final = b"\xff" * limits.DIGEST_BYTES
"""Marks a payload that is not the listed file: only one payload in 2^128 has this digest."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all data connections of a transfer use."""

    manifest: Manifest
    queue: SendQueue
    connector: Connector
    peer: Peer
    mailbox: Mailbox
    rate_limit: RateLimit | None
    log: Any
    verifier: Verifier
    digests: KnownDigests | None = None
    """Digests of what this process has sent, for other transfers; None where there are none."""


class DataConnection(threading.Thread):
    """Sends chunks until the transfer is over; connects again where the connection fails."""

    def __init__(self, shared: Shared, counters: ConnectionCounters) -> None:
        super().__init__(name=f"connection-{counters.connection_id}", daemon=True)
        self.connection_id = counters.connection_id
        self.counters = counters
        self._shared = shared
        self._queue = shared.queue
        self._rate_limit = shared.rate_limit
        self._channel: Channel | None = None
        self._pending: Opened | None = None  # the opening, while the receiver has not said Welcome
        self._session = Session("sender", m.Role.DATA)
        self._epoch = 0  # of the receiver that this connection leads to (`send_queue`)
        self._backoff = Backoff()
        self._clock = StageClock(counters.stage_seconds)
        self._reader = Reader()
        self._hasher = segment_hasher()
        self._digests = shared.digests
        self._run_reader = RunReader(self._reader, shared.digests, self._clock)
        self._is_hashing = True  # whether the digest of the segment that is being sent is not known
        self._has_runs = False  # whether the receiver is known to take runs of chunks
        self._outbox = Outbox(counters, self._clock)
        self._window = SendWindow()
        self._poisoned: set[int] = set()  # chunks in the window with a file that is not what was listed
        self._is_poisoned = False  # whether the chunk that is being sent has one
        self._polled_bytes = 0  # how many bytes had been moved when acknowledgements were last looked for
        self._unacknowledged_bytes = 0  # what the kernel held a second ago
        self._is_given_up = False  # whether it was shut down so that others send what it has begun
        self._took_at = 0.0  # when the receiver's kernel last took bytes, as far as known (monotonic)

    def run(self) -> None:
        """Connect and move chunks, again and again, until the queue dismisses this connection."""
        if error := run_to_end(f"connection {self.connection_id}", self._keep_running):
            self._shared.mailbox.post(Failed(error))
        self._reader.close()

    def _keep_running(self) -> None:
        while not (self._queue.is_over or self._queue.dismisses(self.connection_id) or self._run_once()):
            self._queue.wait_over(self._backoff.next())
        self.counters.is_dismissed = not self._queue.is_over

    def _run_once(self) -> bool:
        """Open the connection and move chunks until it fails; return whether the queue has dismissed it instead."""
        try:
            channel = self._open()
            if channel is not None:
                self._move(channel)
            return True
        except (FilestreamerError, MemoryError) as error:
            failure = as_failure(f"connection {self.connection_id}", error)
            if not self._queue.is_over:
                self.counters.reconnects += self._channel is not None
                if not self._is_given_up:
                    self._shared.peer.data_connection_lost(self.connection_id, failure)
            if not failure.retryable:
                raise
            return False
        finally:
            self._is_given_up = False
            self._close()

    def _open(self) -> Channel | None:
        """Return the connection, once it is open; None where it is not wanted any more."""
        pending = self._shared.connector.open_data(self.connection_id, self._is_wanted)
        if pending is None:
            return None
        self._pending = pending
        self._channel = channel = pending.channel
        self._shared.peer.opened(channel)
        channel.patience = self._check_peer
        channel.tolerate_closed_window()  # `_check_peer` notices a dead peer
        self._epoch = self._queue.epoch
        self._has_runs = CHUNK_RUNS in pending.features
        self._session = Session("sender", m.Role.DATA)
        self._took_at = time.monotonic()
        self.counters.connect(channel.socket)
        self._shared.log.debug("connection_up", connection=self.connection_id)
        return channel

    def _is_wanted(self) -> bool:
        return not (self._queue.is_over or self._queue.dismisses(self.connection_id))

    def _close(self) -> None:
        """Close the connection. Chunks that were not acknowledged are queued again."""
        self._clock.enter(None)
        self.counters.disconnect()
        if self._channel is not None:
            self._shared.peer.closed(self._channel)
            in_order = self._queue.dismisses(self.connection_id)
            self._shared.connector.close_channel(self._channel, in_order=in_order, at_once=self._queue.is_complete)
            self._channel = self._pending = None
        self._outbox.clear()
        self._poisoned.clear()
        self._is_poisoned = False  # the chunk that was being sent was lost in the middle
        if unacknowledged := self._window.clear():
            self.counters.resent_chunks += len(unacknowledged)
            self._queue.put_back(unacknowledged, self._epoch)

    # --- sending

    def _move(self, channel: Channel) -> None:
        """Send chunks and take in acknowledgements until the queue dismisses this connection."""
        while True:
            # Not after each small chunk: looking for acknowledgements costs a system call.
            is_poll_due = self.counters.moved_bytes >= self._polled_bytes + GATHER_BYTES
            if is_poll_due or not self._window.chunks or self._rate_limit is not None:
                self._poll(channel)
            if self._window.is_full:
                self._outbox.flush(channel)
                self._window.grow(channel)
                self._wait_for_acknowledgement(channel)
                continue
            if not self._window.chunks:
                self._clock.enter(self._idle_stage())
            chunk_id = self._queue.next(
                self.connection_id, self._epoch, wait_seconds=0 if self._window.chunks else IDLE_SECONDS
            )
            self._clock.enter(None)
            if chunk_id is not None:
                self._send_chunk(channel, chunk_id)
            elif self._window.chunks:
                self._outbox.flush(channel)
                self._queue.look_if_all_sent()
                self._wait_for_acknowledgement(channel)
            elif self._queue.dismisses(self.connection_id):
                return

    def _idle_stage(self) -> str | None:
        """Return the stage that this connection is in while there is no chunk for it."""
        stream = self._shared.manifest.stream
        if stream is not None and stream.is_waiting:
            return "read"  # for the program that writes to standard input
        return "wait_ack" if self._queue.is_in_order else None

    def _send_chunk(self, channel: Channel, chunk_id: int) -> None:
        carried = self._shared.manifest.carried(chunk_id)
        chunk_ids = range(chunk_id, chunk_id + 1)
        is_stolen = not self._queue.is_home(chunk_id, self.connection_id)
        self.counters.stolen_chunks += is_stolen
        if not carried:  # all of its files were withdrawn
            self._queue.mark_done((chunk_id,), self._epoch)
            return
        if any(item.entry.data_bytes is not None for _, item in carried):
            if self._takes_zeros(chunk_id, *carried[0]):
                return
            carried = self._with_holes(carried)
        elif (most := self._run_most()) > 1:
            end = self._shared.manifest.end_of_run(chunk_id, carried[0][0].file_id)
            chunk_ids = self._queue.take_run(chunk_id, self.connection_id, self._epoch, most=most, end=end)
            self.counters.stolen_chunks += is_stolen * (len(chunk_ids) - 1)
        header = m.ChunkHeader(chunk_id, tuple([segment for segment, _ in carried]), len(chunk_ids), chunk_ids.step)
        self._session.sending(header)
        now = time.monotonic()
        if not self._window.chunks:
            self._took_at = now
        hole_bytes = sum([segment.length - segment.payload_bytes for segment in header.segments if segment.runs])
        payload_bytes = sum([segment.length for segment in header.segments]) - hole_bytes
        self._window.add(chunk_ids, SentChunk(payload_bytes, hole_bytes, now))
        self._outbox.add(channel, frame(header))
        if header.chunks > 1:
            digests = self._send_run(channel, header, *carried[0])
        else:
            digests = self._send_segments(channel, chunk_id, carried)
        self._outbox.add(channel, b"".join(digests))
        if self._outbox.gathered_bytes >= limits.BLOCK_BYTES or self._rate_limit is not None:
            self._outbox.flush(channel)

    def _run_most(self) -> int:
        """Return how many chunks may be sent under one header now."""
        if not self._has_runs:
            return 1
        limit, chunk_size = self._rate_limit, self._shared.manifest.chunk_size
        # At a low rate, each header and its digests come soon: whoever waits for a chunk sees that something moves.
        run_bytes = limits.RUN_BYTES if limit is None else min(limits.RUN_BYTES, limit.piece_bytes)
        return min(limits.CHUNKS_PER_RUN, run_bytes // chunk_size, self._window.room)

    def _send_segments(self, channel: Channel, chunk_id: int, carried: list[tuple[m.Segment, Item]]) -> list[bytes]:
        """Send the segments of a chunk; return the digests to send for them."""
        sent = [self._send_segment(channel, segment, item) for segment, item in carried]
        digests = [digest for digest, _ in sent]
        for index in self._queue.pin_digest(chunk_id, [segment for segment, _ in carried], digests):
            segment, item = carried[index]
            digests[index] = self._withdraw(segment, changed(item, OTHER_BYTES))
        if not self._is_poisoned and self._must_hold_back(chunk_id, *carried[0], sent[0][1]):
            digests = [_NO_DIGEST]
            self._is_poisoned = True
        if self._is_poisoned:
            self._poisoned.add(chunk_id)
            self._is_poisoned = False
        return digests

    def _must_hold_back(self, chunk_id: int, segment: m.Segment, item: Item, seen: Identity | None) -> bool:
        """Whether a chunk of a file that moved is to be rejected, until what was sent of the file is compared.

        Without this chunk the receiver can't complete the file.
        """
        if seen is None or self._shared.manifest.is_bundle(chunk_id):
            return False
        return self._shared.verifier.saw(segment.file_id, item, seen, chunk_id)

    def _send_run(self, channel: Channel, header: m.ChunkHeader, segment: m.Segment, item: Item) -> list[bytes]:
        """Read, hash and send the segments of a run; return the digests to send for them."""
        chunk_ids, verifier = header.chunk_ids, self._shared.verifier
        try:
            digests, seen = self._send_gathered(channel, header, item)
            if self._queue.pin_run(chunk_ids, digests):
                raise changed(item, OTHER_BYTES)
        except Unsendable as error:
            self._withdraw(segment, _lasting(error))
            self._is_poisoned = False
            self._poisoned.update(chunk_ids)
            return [_NO_DIGEST] * len(chunk_ids)
        held = [verifier.saw(segment.file_id, item, seen, chunk_ids[0])]
        if verifier.has_moved(segment.file_id):
            held += [verifier.saw(segment.file_id, item, seen, chunk_id) for chunk_id in chunk_ids[1:]]
        for index, is_held in enumerate(held):
            if is_held:
                digests[index] = _NO_DIGEST
                self._poisoned.add(chunk_ids[index])
        return digests

    def _send_gathered(self, channel: Channel, header: m.ChunkHeader, item: Item) -> tuple[list[bytes], Identity]:
        """Send the segments of a run; return their digests, and the identity of their file all the while.

        Raises Unsendable after other bytes were sent in their place, as the header has announced some.
        """
        view = self._outbox.reserve(channel, header.length)
        self._outbox.add_payload(len(view))
        try:
            return self._run_reader.read_into(item, Places.of(header), view)
        except Unsendable:
            view[:] = bytes(len(view))
            raise
        finally:
            if self._rate_limit is not None:
                self._clock.enter("limit")
                self._rate_limit.wait(len(view), lambda: self._queue.is_over)
            self._clock.enter(None)

    def _takes_zeros(self, chunk_id: int, segment: m.Segment, item: Item) -> bool:
        """Have a chunk told that lies in a hole, with all chunks behind it in the same hole; return whether it does."""
        if not self._queue.may_be_told(chunk_id):
            return False
        reader = self._reader
        try:
            before = reader.look(item)
            hole_end = reader.extents(item).hole_end(segment.offset)
            if hole_end < segment.offset + segment.length or reader.look(item) != before:
                return False
        except Unsendable:
            return False  # the same happens when the chunk is sent
        if self._shared.verifier.saw(segment.file_id, item, before, chunk_id):
            return False  # the file has moved: this chunk is to be held back, which zeros that are told can't be
        chunk_size = self._shared.manifest.chunk_size
        chunks = -(-hole_end // chunk_size) if hole_end == item.entry.size else hole_end // chunk_size
        taken = self._queue.take_zeros(chunk_id, chunk_id + chunks - segment.offset // chunk_size, self._epoch)
        self._shared.mailbox.post(FoundZeros(segment.file_id, taken, self._epoch))
        return True

    def _with_holes(self, carried: list[tuple[m.Segment, Item]]) -> list[tuple[m.Segment, Item]]:
        """Return what a chunk carries, with the holes of its segments."""
        left = limits.RUNS_PER_CHUNK
        found = []
        for segment, item in carried:
            runs: tuple[int, ...] = ()
            if item.entry.data_bytes is not None:
                with contextlib.suppress(Unsendable):  # the same happens when the segment is read
                    holes = self._reader.extents(item).holes_in(segment.offset, segment.offset + segment.length)
                    runs = runs_of(segment, holes, left)
            left -= len(runs)
            found.append((segment._replace(runs=runs) if runs else segment, item))
        return found

    def _send_segment(self, channel: Channel, segment: m.Segment, item: Item) -> tuple[bytes, Identity | None]:
        """Read, hash and send a segment, block by block.

        Return its digest, and the identity of its file all the while; another digest, and None, if it is withdrawn.
        """
        reader, clock = self._reader, self._clock
        trouble: Unsendable | None = None
        before: Identity | None = None
        known: bytes | None = None
        self._hasher.reset()
        clock.enter("read")
        try:
            before = reader.look(item)
            if self._digests is not None and item.stream is None:
                known = self._digests.get(before, segment.offset, segment.length)
            if segment.runs and not reader.has_holes(item, segment):
                raise changed(item, OTHER_BYTES)
        except Unsendable as error:
            trouble = _lasting(error)
        self._is_hashing = known is None
        if not segment.runs:
            trouble = self._send_data(channel, item, segment.offset, segment.offset + segment.length, trouble)
        else:
            trouble = self._send_pieces(channel, item, segment, trouble)
        if before is not None and trouble is None:
            digest = known or self._hasher.digest()
            try:
                seen = reader.confirm(item, before, segment.offset, segment.length, digest)
                if known is None and self._digests is not None and item.stream is None:
                    self._digests.add(seen, segment.offset, segment.length, digest)
                clock.enter(None)
                return digest, seen
            except Unsendable as error:
                trouble = _lasting(error)
        clock.enter(None)
        assert trouble is not None
        return self._withdraw(segment, trouble), None

    def _send_pieces(
        self, channel: Channel, item: Item, segment: m.Segment, trouble: Unsendable | None
    ) -> Unsendable | None:
        """Send the data of a segment that has holes, and hash all of it; return as `_send_data`."""
        for start, end, is_data in segment.pieces():
            if is_data:
                trouble = self._send_data(channel, item, start, end, trouble)
            elif self._is_hashing:
                self._clock.enter("digest")
                update_with_zeros(self._hasher, end - start)
        return trouble

    def _send_data(
        self, channel: Channel, item: Item, offset: int, end: int, trouble: Unsendable | None
    ) -> Unsendable | None:
        """Read, hash and send bytes [offset, end) of a file; return the trouble that it had, or that came before."""
        reader, outbox, limit, clock = self._reader, self._outbox, self._rate_limit, self._clock
        block_bytes = limits.BLOCK_BYTES if limit is None else limit.piece_bytes
        while offset < end:
            size = min(block_bytes, end - offset)
            view = outbox.reserve(channel, size)
            clock.enter("read")
            if trouble is None:
                try:
                    reader.read_into(item, view, offset)
                except Unsendable as error:
                    trouble = _lasting(error)
            if trouble is not None:
                view[:] = bytes(size)  # the header has announced these bytes, so something has to be sent
            if self._is_hashing:
                clock.enter("digest")
                self._hasher.update(view)
            outbox.add_payload(size)
            offset += size
            if limit is not None:
                clock.enter("limit")
                limit.wait(size, lambda: self._queue.is_over)
                outbox.flush(channel, more=True)
        return trouble

    def _withdraw(self, segment: m.Segment, trouble: Unsendable) -> bytes:
        """Withdraw a file that is not what was listed; return a digest that the receiver will not accept for it."""
        if withdrew := self._shared.manifest.withdraw(segment.file_id, trouble):
            self._shared.mailbox.post(withdrew)
        self._is_poisoned = True
        return _NO_DIGEST

    # --- acknowledgements

    def _poll(self, channel: Channel) -> None:
        """Take in the acknowledgements that have come."""
        self._polled_bytes = self.counters.moved_bytes
        while (body := channel.poll_body()) is not None:
            self._take_acknowledgement(body)

    def _wait_for_acknowledgement(self, channel: Channel) -> None:
        self._took_at = time.monotonic()  # sending may have taken long: count the receiver's silence from now
        self._clock.enter("wait_ack")
        if self._pending is not None and not self._pending.is_over:
            channel.patience = self._check_opening
        body = channel.read_body()
        channel.patience = self._check_peer
        self._clock.enter(None)
        self._take_acknowledgement(body)

    def _take_acknowledgement(self, body: bytes) -> None:
        """Act on one frame from the receiver. Raises Aborted, RemoteProtocolError, TransferFailed(DIGEST).

        Raises what the opening raises as well (`PendingOpening.take`), if that is not over yet.
        """
        if self._pending is not None:
            if not self._pending.is_over:
                self._pending.take(body)
                self._has_runs = CHUNK_RUNS in self._pending.features
                return
            self._pending = None
        message = decode(body)
        self._session.received(message)
        if isinstance(message, m.Abort):
            raise Aborted(message.code, message.reason)
        if not isinstance(message, m.ChunkAck):
            raise RemoteProtocolError(f"{type(message).__name__} on a data connection")
        self._backoff.reset()
        now = time.monotonic()
        answered: list[tuple[int, ...] | range] = [message.chunk_ids, *(each.chunk_ids for each in message.ranges)]
        for chunk_ids in [each for each in answered if each]:
            if message.verdict is m.Verdict.OK:
                self._take_accepted(chunk_ids, now)
            else:
                for chunk_id in chunk_ids:
                    ((chunk, _),) = self._window.remove((chunk_id,))
                    self._take_rejected(chunk_id, chunk)
        self.counters.finished_at = now

    def _take_accepted(self, chunk_ids: tuple[int, ...] | range, now: float) -> None:
        """Count chunks that the receiver has taken over."""
        counters = self.counters
        for chunk, count in self._window.remove(chunk_ids):
            counters.acknowledged_bytes += chunk.payload_bytes * count
            counters.hole_bytes += chunk.hole_bytes * count
            counters.chunks += count
            counters.latencies.observe(now - chunk.taken_at, count)
        self._queue.mark_done(chunk_ids, self._epoch, self.connection_id)

    def _take_rejected(self, chunk_id: int, chunk: SentChunk) -> None:
        """Queue a chunk again whose digest did not match its payload."""
        self.counters.abandoned_bytes += chunk.payload_bytes
        self.counters.resent_chunks += 1
        if chunk_id in self._poisoned:
            # The chunk was sent with a wrong digest on purpose. It is sent again without the withdrawn file, or when
            # its file, which moved, was read again.
            self._poisoned.remove(chunk_id)
            if self._shared.verifier.may_queue_again(chunk_id, self._epoch):
                self._queue.put_back([chunk_id], self._epoch)
        else:
            self.counters.mismatches += 1
            self._forget_digests(chunk_id)
            self._queue.put_back_damaged(chunk_id, self.counters, self._epoch)

    def _forget_digests(self, chunk_id: int) -> None:
        """Have a chunk hashed anew that arrived with another digest than was sent."""
        if self._digests is None:
            return
        for segment, item in self._shared.manifest.carried(chunk_id):
            if item.stream is None:
                with contextlib.suppress(Unsendable):  # it is not what it was: its digests count no more
                    self._digests.forget(self._reader.look(item), segment.offset)

    # --- liveness

    @property
    def stage(self) -> str | None:
        """What this connection does now, of SENDER_STAGES."""
        return self._clock.stage

    @property
    def unacknowledged_bytes(self) -> int:
        """Bytes of chunks that were begun and are not acknowledged."""
        return self._window.bytes

    @property
    def delivered_bytes(self) -> int:
        """About how many bytes of chunks that are not acknowledged the receiver's kernel has taken."""
        channel = self._channel
        return self._delivered_bytes(channel.unacknowledged_bytes()) if channel is not None else 0

    def _delivered_bytes(self, queued_bytes: int) -> int:
        return max(0, self.counters.bytes_in_flight - queued_bytes)

    def look(self) -> Look | None:
        """Return how this connection stands; None where it is not up."""
        channel = self._channel
        info = tcp_info.read(channel.socket) if channel is not None else None
        if info is None:
            return None
        queued_bytes, begun_bytes = info.unacknowledged_bytes + info.unsent_bytes, self._window.bytes
        return Look(
            self.connection_id,
            info.delivered_bytes,
            begun_bytes,
            begun_bytes - self._delivered_bytes(queued_bytes),
            info.rtt_seconds,
            info.window_limited_seconds,
            is_sending=queued_bytes > 0 and not info.is_window_closed,
        )

    def shut(self) -> None:
        """Shut the connection down, if it is open: its thread notices."""
        channel = self._channel
        if channel is not None:
            channel.shut()

    def give_up(self) -> None:
        """Have others send what this connection has begun; it is opened anew."""
        self._is_given_up = self._channel is not None
        self.shut()

    def _check_opening(self) -> None:
        """Raise ConnectionLost where the receiver does not answer Hello in time, or is silent.

        Not while this end sends: what the receiver said may be there then, and unread.
        """
        if self._pending is not None and not self._pending.is_over:
            self._pending.check()
        self._check_peer()

    def _check_peer(self) -> None:
        """Raise ConnectionLost where the receiver is silent for DEAD_SECONDS. Called each second without movement.

        A receiver that is merely slow still takes bytes, so what this kernel holds shrinks, even where no
        acknowledgement comes.
        """
        if self._queue.is_over and not self._queue.is_complete:
            raise ConnectionLost("the transfer is over")
        channel = self._channel
        if channel is None:
            return
        now, unacknowledged_bytes = time.monotonic(), channel.unacknowledged_bytes()
        if unacknowledged_bytes < self._unacknowledged_bytes or not self._window.chunks:
            self._took_at = now
        elif (not unacknowledged_bytes or self._is_window_closed(channel)) and self._shared.peer.is_heard():
            # The receiver's kernel has all bytes, or takes no more now: the receiver reads late, as its disk or pipe is
            # slow, it is short of memory, or it has a rate limit. The kernel finds out whether a peer is still there.
            self._took_at = now
        self._unacknowledged_bytes = unacknowledged_bytes
        if now - max(self._took_at, channel.heard_at) > limits.DEAD_SECONDS:
            raise ConnectionLost(f"{channel.peer} was silent for {limits.DEAD_SECONDS:.0f} s")

    def _is_window_closed(self, channel: Channel) -> bool:
        info = tcp_info.read(channel.socket)
        return info is not None and info.is_window_closed


def _lasting(error: Unsendable) -> Unsendable:
    """Return an error that says something of its file. Raises ConnectionLost for one that does not."""
    if error.retryable:  # this process has too many open files
        raise ConnectionLost(str(error)) from None
    return error
