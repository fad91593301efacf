"""One data connection, in one thread, both directions (proto/README.md, "Chunks and segments").

for each chunk that the queue gives to this connection:
    send it (`chunk_sender`)
    take in the acknowledgements that have come, without waiting
wait for acknowledgements only where the window is full (`send_window`), or no chunk is queued
"""

import threading
import time
from typing import Final

from filestreamer.process.backoff import Backoff
from filestreamer.process.threads import as_failure, run_to_end
from filestreamer.telemetry import tcp_info
from filestreamer.telemetry.counters import ConnectionCounters, StageClock
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode
from filestreamer.wire.errors import Aborted, ConnectionLost, FilestreamerError, RemoteProtocolError
from filestreamer.wire.features import CHUNK_RUNS
from filestreamer.wire.session import Session
from filestreamer.wire.sockets.transport import Channel
from sender.dispatch.stragglers import Look
from sender.mailbox import Failed
from sender.network.chunk_sender import ChunkSender
from sender.network.connector import Opened
from sender.network.outbox import GATHER_BYTES
from sender.network.send_window import SendWindow, SentChunk
from sender.network.shared import Shared

IDLE_SECONDS: Final = 1.0
"""How long a connection that has nothing to send waits for a chunk before it looks for acknowledgements again."""


class DataConnection(threading.Thread):
    """Sends chunks until the transfer is over; connects again where the connection fails."""

    def __init__(self, shared: Shared, counters: ConnectionCounters) -> None:
        super().__init__(name=f"connection-{counters.connection_id}", daemon=True)
        self.connection_id = counters.connection_id
        self.counters = counters
        self._shared = shared
        self._queue = shared.queue
        self._channel: Channel | None = None
        self._pending: Opened | None = None  # the opening, while the receiver has not said Welcome
        self._session = Session("sender", m.Role.DATA)
        self._epoch = 0  # of the receiver that this connection leads to (`send_queue`)
        self._backoff = Backoff()
        self._clock = StageClock(counters.stage_seconds)
        self._window = SendWindow()
        self._chunk_sender = ChunkSender(shared, counters, self._clock, self._window)
        self._polled_bytes = 0  # how many bytes had been moved when acknowledgements were last looked for
        self._unacknowledged_bytes = 0  # what the kernel held a second ago
        self._is_given_up = False  # whether it was shut down so that others send what it has begun
        self._took_at = 0.0  # when the receiver's kernel last took bytes, as far as known (monotonic)

    def run(self) -> None:
        """Connect and move chunks, again and again, until the queue dismisses this connection."""
        if error := run_to_end(f"connection {self.connection_id}", self._keep_running):
            self._shared.mailbox.post(Failed(error))
        self._chunk_sender.close()

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
        self._chunk_sender.begin(self._epoch, has_runs=CHUNK_RUNS in pending.features)
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
        self._chunk_sender.end()
        if unacknowledged := self._window.clear(is_in_order=self._queue.is_in_order):
            self.counters.resent_chunks += len(unacknowledged)
            self._queue.put_back(unacknowledged, self._epoch)

    # --- sending

    def _move(self, channel: Channel) -> None:
        """Send chunks and take in acknowledgements until the queue dismisses this connection."""
        while True:
            # Not after each small chunk: looking for acknowledgements costs a system call.
            is_poll_due = self.counters.moved_bytes >= self._polled_bytes + GATHER_BYTES
            if is_poll_due or not self._window.chunks or self._shared.rate_limit is not None:
                self._poll(channel)
            if self._window.is_full:
                self._chunk_sender.flush(channel)
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
                if not self._window.chunks:
                    self._took_at = time.monotonic()  # until now there was nothing that the receiver could take
                self._chunk_sender.send(channel, chunk_id, self._session)
            elif self._window.chunks:
                self._chunk_sender.flush(channel)
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

    # --- acknowledgements

    def _poll(self, channel: Channel) -> None:
        """Take in the acknowledgements that have come."""
        self._polled_bytes = self.counters.moved_bytes
        while (body := channel.poll_body(self._most_bytes)) is not None:
            self._take_acknowledgement(body)

    @property
    def _most_bytes(self) -> int:
        """The largest frame that the receiver may send next."""
        is_opening = self._pending is not None and not self._pending.is_over
        return limits.OPENING_FRAME_BYTES if is_opening else limits.FRAME_BYTES

    def _wait_for_acknowledgement(self, channel: Channel) -> None:
        self._took_at = time.monotonic()  # sending may have taken long: count the receiver's silence from now
        self._clock.enter("wait_ack")
        if self._pending is not None and not self._pending.is_over:
            channel.patience = self._check_opening
        body = channel.read_body(self._most_bytes)
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
                self._chunk_sender.has_runs = CHUNK_RUNS in self._pending.features
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
        if self._chunk_sender.take_poisoned(chunk_id):
            # It is sent again without the withdrawn file, or when its file, which moved, was read again.
            if self._shared.verifier.may_queue_again(chunk_id, self._epoch):
                self._queue.put_back([chunk_id], self._epoch)
        else:
            self.counters.mismatches += 1
            self._chunk_sender.forget_digests(chunk_id)
            self._queue.put_back_damaged(chunk_id, self.counters, self._epoch)

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
    def cuts(self) -> int:
        """How many times in a row it was lost before the receiver had answered a chunk."""
        return self._window.cuts

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
        acknowledgement comes. A proxy on the path may take bytes as well, and pass none on: the receiver says so.
        """
        if self._queue.is_over and not self._queue.is_complete:
            raise ConnectionLost("the transfer is over")
        channel = self._channel
        if channel is None:
            return
        now, unacknowledged_bytes = time.monotonic(), channel.unacknowledged_bytes()
        has_taken = unacknowledged_bytes < self._unacknowledged_bytes or not self._window.chunks
        if has_taken or (self._reads_late() and (not unacknowledged_bytes or self._is_window_closed(channel))):
            self._took_at = now
        self._unacknowledged_bytes = unacknowledged_bytes
        if now - max(self._took_at, channel.heard_at) > limits.DEAD_SECONDS:
            if self._shared.peer.starves(self.connection_id):
                raise ConnectionLost(
                    f"nothing came through to {channel.peer} for {limits.DEAD_SECONDS:.0f} s, or no answer came back:"
                    " a proxy or a load balancer on the path may have lost it"
                )
            raise ConnectionLost(f"{channel.peer} was silent for {limits.DEAD_SECONDS:.0f} s")

    def _reads_late(self) -> bool:
        """Whether the receiver is alive, and does not say that it waits for bytes of this connection.

        Then its kernel has them: its disk or pipe is slow, it is short of memory, or it has a rate limit. The kernel of
        this end finds out whether a peer is still there.
        """
        return self._shared.peer.is_heard() and not self._shared.peer.starves(self.connection_id)

    def _is_window_closed(self, channel: Channel) -> bool:
        info = tcp_info.read(channel.socket)
        return info is not None and info.is_window_closed
