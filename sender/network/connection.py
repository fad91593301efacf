"""One data connection, in one thread, both directions (proto/README.md, "Chunks and segments").

    for each chunk that the deal gives this connection:
        header frame                                         ┐ small ones are gathered
        for each block: read it, hash it, send it while it   │ into one system call
        is in the CPU's cache                                │
        one digest for each segment                          ┘
        take in what acknowledgements have come, without waiting
    wait for acknowledgements only where the window is full, or nothing is left to send

Nobody can block writing while the other blocks writing: the receiver's acknowledgements fit into the kernel's buffers,
the window sees to that.
"""

import threading
import time
from typing import Final, Protocol

from filestreamer.process.backoff import Backoff
from filestreamer.process.threads import as_failure, run_to_end
from filestreamer.telemetry.counters import ConnectionCounters, StageClock
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode
from filestreamer.wire.digests import segment_hasher
from filestreamer.wire.errors import Aborted, ConnectionLost, FilestreamerError, RemoteProtocolError
from filestreamer.wire.framing import frame
from filestreamer.wire.session import Session
from filestreamer.wire.sockets import memory
from filestreamer.wire.sockets.transport import Channel
from sender.dispatch.manifest import Manifest
from sender.dispatch.send_queue import SendQueue
from sender.network.rate import RateLimit
from sender.source.item import Item, Reader, Unsendable, changed

GATHER_BYTES: Final = 64 * limits.KIB
"""Room for headers, digests and small segments behind a block: they go out with it in one system call."""

IDLE_SECONDS: Final = 1.0
_NO_DIGEST: Final = b"\xff" * limits.DIGEST_BYTES
"""Says that the payload is not what was listed: no payload has it, but for one in 2^128."""


class Host(Protocol):
    """What a data connection needs of its transfer."""

    manifest: Manifest
    queue: SendQueue
    limit: RateLimit | None

    def dial_data(self, connection_id: int) -> Channel:
        """Open the connection. Raises ConnectionLost, Refused, RemoteProtocolError."""

    def hang_up(self, channel: Channel, *, in_order: bool) -> None:
        """Close it."""

    def withdraw(self, file_id: int, error: Unsendable) -> None:
        """Leave out a file that can't be sent as it was listed. Raises `error` where nothing would be left."""

    def idle_stage(self) -> str | None:
        """Name the stage that a connection is in while there is no chunk for it."""

    def receiver_is_heard(self) -> bool:
        """Whether the receiver said anything lately, on whatever connection."""

    def connection_changed(self, counters: ConnectionCounters, error: FilestreamerError | None) -> None:
        """Tell that it is up (None), or why it went down."""

    def failed(self, error: FilestreamerError) -> None:
        """End the transfer."""


class DataConnection(threading.Thread):
    """Sends chunks until the transfer is over; reconnects for as long as it goes on."""

    def __init__(self, host: Host, counters: ConnectionCounters) -> None:
        super().__init__(name=f"connection-{counters.connection_id}", daemon=True)
        self.connection_id = counters.connection_id
        self.counters = counters
        self._host = host
        self._queue = host.queue
        self._channel: Channel | None = None
        self._session = Session("sender", m.Role.DATA)
        self._epoch = 0
        self._outstanding: dict[int, tuple[int, float]] = {}  # chunk_id: its bytes, when it was dealt; in that order
        self._outstanding_bytes = 0
        self._poisoned: set[int] = set()  # outstanding chunks with a file that could not be read as it was listed
        self._is_poisoned = False  # the chunk that is being sent
        self._reader = Reader()
        self._outbox = memory.buffer(limits.BLOCK_BYTES + GATHER_BYTES)
        self._gathered = 0  # bytes in the outbox
        self._gathered_payload = 0  # payload bytes of these
        self._hasher = segment_hasher()
        self._backoff = Backoff()
        self._window_bytes = limits.WINDOW_BYTES
        self._polled_at = 0  # moved bytes
        self._left_bytes = 0
        self._left_at = 0.0
        self._clock = StageClock(counters.stage_seconds)

    @property
    def channel(self) -> Channel | None:
        """The open channel, for the coordinator's liveness clock and for TCP_INFO."""
        return self._channel

    @property
    def delivered_bytes(self) -> int:
        """Bytes of chunks that are not acknowledged which the peer's kernel has taken, about."""
        channel = self._channel
        if channel is None:
            return 0
        return max(0, self.counters.bytes_in_flight - channel.unacknowledged_bytes())

    def run(self) -> None:
        """Connect, move chunks, and do it again where the connection fails; ends when the deal has dismissed it."""
        if error := run_to_end(f"connection {self.connection_id}", self._keep_running):
            self._host.failed(error)
        self._reader.close()

    def _keep_running(self) -> None:
        while not (self._queue.is_over or self._queue.dismisses(self.connection_id) or self._run_once()):
            self._queue.wait_over(self._backoff.next())
        self.counters.is_dismissed = not self._queue.is_over

    def _run_once(self) -> bool:
        """Live through one connection; whether the deal has dismissed it."""
        try:
            self._channel = channel = self._host.dial_data(self.connection_id)
            self._come_up(channel)
            self._move(channel)
            return True
        except (FilestreamerError, MemoryError) as error:
            failure = as_failure(f"connection {self.connection_id}", error)
            self._go_down(failure)
            if not failure.retryable:
                raise
            return False
        finally:
            self._abandon()

    def _come_up(self, channel: Channel) -> None:
        channel.patience = self._patience
        self._epoch = self._queue.epoch
        self._session = Session("sender", m.Role.DATA)
        self._left_at = time.monotonic()
        self.counters.connect(channel.socket)
        self._host.connection_changed(self.counters, None)

    def _go_down(self, error: FilestreamerError) -> None:
        if self._channel is not None and not self._queue.is_over:
            self.counters.reconnects += 1
        if not self._queue.is_over:
            self._host.connection_changed(self.counters, error)

    def _abandon(self) -> None:
        """Close the connection; what it had not got acknowledged goes back to the deal."""
        self._clock.enter(None)
        self.counters.disconnect()
        if self._channel is not None:
            self._host.hang_up(self._channel, in_order=self._queue.dismisses(self.connection_id))
            self._channel = None
        self._gathered = self._gathered_payload = 0
        if self._outstanding:
            self.counters.resent_chunks += len(self._outstanding)
            self._queue.put_back(list(self._outstanding), self._epoch)
            self._outstanding.clear()
            self._poisoned.clear()
            self._outstanding_bytes = 0

    # --- moving

    def _move(self, channel: Channel) -> None:
        """Send chunks and take in acknowledgements until the deal dismisses this connection."""
        while True:
            if self.counters.moved_bytes >= self._polled_at + GATHER_BYTES or not self._outstanding or self._host.limit:
                self._poll(channel)
            if self._window_is_full():
                self._flush(channel)
                self._grow_window(channel)
                self._wait_for_acknowledgement(channel)
                continue
            wait_seconds = 0 if self._outstanding else IDLE_SECONDS
            if wait_seconds:
                self._clock.enter(self._host.idle_stage())
            chunk_id = self._queue.next(self.connection_id, self._epoch, wait_seconds=wait_seconds)
            self._clock.enter(None)
            if chunk_id is not None:
                self._send_chunk(channel, chunk_id)
            elif self._outstanding:
                self._flush(channel)
                self._wait_for_acknowledgement(channel)
            elif self._queue.dismisses(self.connection_id):
                return

    def _poll(self, channel: Channel) -> None:
        """Take in what has come; not after each small chunk, as looking costs a system call."""
        self._polled_at = self.counters.moved_bytes
        while (body := channel.poll_body()) is not None:
            self._take_in(body)

    def _send_chunk(self, channel: Channel, chunk_id: int) -> None:
        if not self._queue.is_home(chunk_id, self.connection_id):
            self.counters.stolen_chunks += 1
        carried = self._host.manifest.carried(chunk_id)
        if not carried:  # all of it was withdrawn
            self._queue.mark_done((chunk_id,), self._epoch)
            return
        header = m.ChunkHeader(chunk_id, tuple([segment for segment, _ in carried]))
        self._session.sending(header)
        if not self._outstanding:
            self._left_at = time.monotonic()
        size = sum([segment.length for segment in header.segments])
        self._outstanding[chunk_id] = (size, time.monotonic())
        self._outstanding_bytes += size
        self._gather(channel, frame(header))
        digests = [self._send_segment(channel, segment, item) for segment, item in carried]
        for index in self._queue.pin_digest(chunk_id, header.segments, digests):
            segment, item = carried[index]
            digests[index] = self._withdraw(segment, changed(item, "it reads differently than before"))
        if self._is_poisoned:
            self._poisoned.add(chunk_id)
            self._is_poisoned = False
        self._gather(channel, b"".join(digests))
        if self._gathered >= limits.BLOCK_BYTES or self._host.limit is not None:
            self._flush(channel)

    def _send_segment(self, channel: Channel, segment: m.Segment, item: Item) -> bytes:
        """Send the bytes of one segment; return their digest, or another one where they are not what was listed."""
        reader, limit, clock = self._reader, self._host.limit, self._clock
        piece = limits.BLOCK_BYTES if limit is None else limit.piece_bytes
        offset, end = segment.offset, segment.offset + segment.length
        trouble: Unsendable | None = None
        self._hasher.reset()
        while True:
            size = min(piece, end - offset)
            view = self._reserve(channel, size)
            clock.enter("read")
            try:
                if trouble is None:
                    reader.read_into(item, view, offset)
                if offset + size == end:
                    reader.check_unchanged(item)
            except Unsendable as error:
                if error.retryable:  # no descriptor, say: nothing is wrong with the file
                    raise ConnectionLost(str(error)) from None
                trouble = error
            if trouble is not None:
                view[:] = bytes(size)  # what was announced has to be sent
            clock.enter("digest")
            self._hasher.update(view)
            self._gathered += size
            self._gathered_payload += size
            offset += size
            if limit is not None:
                clock.enter("limit")
                limit.wait(size)
                self._flush(channel, more=True)
            if offset == end:
                clock.enter(None)
                return self._hasher.digest() if trouble is None else self._withdraw(segment, trouble)

    def _withdraw(self, segment: m.Segment, trouble: Unsendable) -> bytes:
        """Leave a file out that is not what was listed; return a digest that is not that of what was sent of it."""
        self._host.withdraw(segment.file_id, trouble)
        self._is_poisoned = True
        return _NO_DIGEST

    def _reserve(self, channel: Channel, size: int) -> memoryview:
        """Return `size` bytes of the outbox behind what is gathered, which is sent where they would not fit."""
        if self._gathered + size > len(self._outbox):
            self._flush(channel, more=True)
        return self._outbox[self._gathered : self._gathered + size]

    def _gather(self, channel: Channel, data: bytes) -> None:
        """Put what is no payload behind what is gathered."""
        self._reserve(channel, len(data))[:] = data
        self._gathered += len(data)

    def _flush(self, channel: Channel, *, more: bool = False) -> None:
        """Send what has been gathered; `more` says that the rest of a chunk follows at once."""
        self._clock.enter("send")
        if self._gathered:
            channel.send(self._outbox[: self._gathered], more=more)
            self.counters.moved_bytes += self._gathered_payload
            self._gathered = self._gathered_payload = 0
        self._clock.enter(None)

    # --- acknowledgements

    def _window_is_full(self) -> bool:
        waiting = len(self._outstanding)
        if waiting < limits.WINDOW_CHUNKS_MIN:
            return False
        return waiting >= limits.WINDOW_CHUNKS_MAX or self._outstanding_bytes >= self._window_bytes

    def _grow_window(self, channel: Channel) -> None:
        """Double the window where the path carries all of it and could carry more: nothing waits in the kernel."""
        if self._window_bytes < limits.WINDOW_BYTES_MAX and channel.is_window_bound():
            self._window_bytes *= 2

    def _wait_for_acknowledgement(self, channel: Channel) -> None:
        self._left_at = time.monotonic()  # sending may have taken long: the peer's silence begins now
        self._clock.enter("wait_ack")
        body = channel.read_body()
        self._clock.enter(None)
        self._take_in(body)

    def _take_in(self, body: bytes) -> None:
        """Act on one frame from the receiver. Raises Aborted, RemoteProtocolError, TransferFailed(DIGEST)."""
        message = decode(body)
        self._session.received(message)
        if isinstance(message, m.Abort):
            raise Aborted(message.code, message.reason)
        if not isinstance(message, m.ChunkAck):
            raise RemoteProtocolError(f"{type(message).__name__} on a data connection")
        self._backoff.reset()
        now = time.monotonic()
        for chunk_id in message.chunk_ids:
            if chunk_id not in self._outstanding:
                raise RemoteProtocolError(f"chunk {chunk_id} is acknowledged and was not sent")
            size, dealt_at = self._outstanding.pop(chunk_id)
            self._outstanding_bytes -= size
            if message.verdict is m.Verdict.OK:
                self.counters.acknowledged_bytes += size
                self.counters.chunks += 1
                self.counters.latencies.observe(now - dealt_at)
            else:
                self.counters.abandoned_bytes += size
                self.counters.resent_chunks += 1
                if chunk_id in self._poisoned:
                    self._poisoned.remove(chunk_id)
                    self._queue.put_back([chunk_id], self._epoch)
                else:
                    self.counters.mismatches += 1
                    self._queue.mismatch(chunk_id, self.counters, self._epoch)
        self.counters.finished_at = now
        if message.verdict is m.Verdict.OK:
            self._queue.mark_done(message.chunk_ids, self._epoch, self.connection_id)

    def _patience(self) -> None:
        """After each second without movement: go on while the peer is merely slow.

        What the kernel still holds shrinks while the peer takes it, even where no acknowledgement comes.
        """
        if self._queue.is_over and not self._queue.is_complete:
            raise ConnectionLost("the transfer is over")
        channel = self._channel
        if channel is None:
            return
        now, left = time.monotonic(), channel.unacknowledged_bytes()
        if left < self._left_bytes or not self._outstanding:
            self._left_at = now
        elif not left and self._queue.is_in_order and self._host.receiver_is_heard():
            self._left_at = now  # it has everything, and acknowledges when it has passed on what comes before
        self._left_bytes = left
        if now - max(self._left_at, channel.heard_at) > limits.DEAD_SECONDS:
            raise ConnectionLost(f"{channel.peer} was silent for {limits.DEAD_SECONDS:.0f} s")
