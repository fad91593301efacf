"""One data connection, in one thread, both directions (proto/README.md, "Chunks and segments").

header frame: every segment checked against the files of the transfer, and begun (assembly)
for each block of payload: receive it, hash it, write it at its place
digests: compared; equal is VERIFIED, different is to be sent again
acknowledgements, ledger first, whenever the next read would have to wait
"""

import contextlib
import threading
import time
from typing import Protocol

from filestreamer.process.threads import run_to_end
from filestreamer.telemetry.counters import ConnectionCounters, StageClock
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode
from filestreamer.wire.digests import segment_hasher
from filestreamer.wire.errors import (
    Aborted,
    Code,
    ConnectionLost,
    FilestreamerError,
    RemoteProtocolError,
    TransferFailed,
)
from filestreamer.wire.session import Session
from filestreamer.wire.sockets.transport import Channel
from receiver.file.target import IncomingSegment, LedgerWriter
from receiver.memory.connection_budget import ConnectionBudget, limit_socket_buffers
from receiver.pipe.reorder_buffer import ReorderBuffer
from receiver.transfer.connection_set import ConnectionSet


class Host(Protocol):
    """What a data connection needs of its transfer."""

    connection_set: ConnectionSet

    def left(self, connection: "DataConnection", error: FilestreamerError | None) -> None:
        """Hear why it ended."""

    def note_mismatch(self, connection: "DataConnection", chunk_id: int) -> None:
        """Log that a chunk arrived damaged."""

    def peer_is_silent(self) -> bool:
        """Say whether the sender is silent on every connection."""


class DataConnection(threading.Thread):
    """Receives chunks over one connection until it ends; the `host` is told what concerns the whole."""

    def __init__(
        self,
        host: Host,
        channel: Channel,
        welcome: m.Welcome,
        counters: ConnectionCounters,
        connection_budget: ConnectionBudget,
    ) -> None:
        """`connection_budget` is what it may take of memory, and gives back when it is closed."""
        super().__init__(name=f"connection-{counters.connection_id}", daemon=True)
        self.connection_id = counters.connection_id
        self.channel = channel
        self.counters = counters
        self._seat = connection_budget
        self._begun_at = self._shrunk_at = 0.0
        """When the latest chunk was begun, and until when its seat stays as it is."""
        self._host = host
        self._connection_set = host.connection_set
        self._welcome = welcome
        self._session = Session("receiver", m.Role.DATA)
        self._hasher = segment_hasher()
        self._written: dict[LedgerWriter, list[int]] = {}  # positions that are verified and not noted yet
        self._received: list[tuple[int, int, float]] = []  # (chunk_id, bytes, begun at) of chunks to be acknowledged OK
        self._clock = StageClock(counters.stage_seconds)
        self._left = threading.Event()
        self._is_new = False
        self._done_bytes = counters.moved_bytes
        self.idle_since: float | None = time.monotonic()
        """Since when there is no chunk on it (monotonic); None while there is."""
        self._is_ended = False
        self._sending = threading.Lock()
        """Protects the writing side: what is passed on in order is acknowledged by the thread that does that."""

    def run(self) -> None:
        """Take the place of an older connection, say Welcome, receive."""
        error = run_to_end(f"connection {self.connection_id}", self._serve)
        if isinstance(error, TransferFailed) and error.code is Code.LIMIT:  # no memory: others go on without it
            error = ConnectionLost(error.reason)
        try:
            self._leave(error)
        finally:
            self.channel.close()
            self._connection_set.give_back(self._seat)

    def _serve(self) -> None:
        self._connection_set.join(self)
        self.counters.connect(self.channel.socket)
        self.channel.patience = self._patience
        self.channel.on_dry = self.acknowledge
        self.channel.send_message(self._welcome)
        while True:
            self._take_in(self._wait_for_body())
            self._shrink()

    def _shrink(self) -> None:
        """Do with less where others need memory: a step for each chunk, at most one a second."""
        if self._shrunk_at < self._begun_at and (to := self._connection_set.shrunk(self._seat)) is not None:
            limit_socket_buffers(self.channel.socket, to)
            self._connection_set.shrink(self._seat, to)
            self._seat, self._shrunk_at = to, self._begun_at + 1.0

    def _leave(self, error: FilestreamerError | None) -> None:
        """Leave the files, then the transfer; tell the peer what it did, where it did something."""
        self._clock.enter(None)
        try:
            self.counters.disconnect()
            failure = run_to_end(f"leaving connection {self.connection_id}", lambda: self._connection_set.leave(self))
            self._host.left(self, failure or error)
        finally:  # somebody waits for it, whatever is wrong here
            self._left.set()
        if isinstance(error, RemoteProtocolError) and self._session.state != "aborted":
            try:
                self.channel.send_message(m.Abort(error.code, error.reason))
                self.channel.close_in_order()
            except FilestreamerError:
                pass

    @property
    def under_way_bytes(self) -> int:
        """Bytes that have come of a chunk, as far as it is new."""
        return self.counters.moved_bytes - self._done_bytes + self.channel.buffered_bytes if self._is_new else 0

    def stop(self, seconds: float | None) -> bool:
        """Shut the connection and wait until its thread has left the files, or for so long; whether it has."""
        self._is_ended = True
        self.channel.shut()
        return self._left.wait(seconds)

    @property
    def is_ended(self) -> bool:
        """Whether it was told to end: what waits in its thread waits no longer."""
        return self._is_ended

    # --- one frame

    def _wait_for_body(self) -> bytes:
        """Read a frame. Waiting for one that never comes is no stage: nothing was left to be received."""
        self._clock.enter("receive")
        try:
            return self.channel.read_body()
        except FilestreamerError:
            self._clock.drop()
            raise

    def _take_in(self, body: bytes) -> None:
        message = decode(body)
        self._session.received(message)
        if isinstance(message, m.Abort):
            raise Aborted(message.code, message.reason)
        if not isinstance(message, m.ChunkHeader):
            raise RemoteProtocolError(f"{type(message).__name__} on a data connection")
        self._receive_chunk(message)

    def _receive_chunk(self, header: m.ChunkHeader) -> None:
        self._clock.enter(None)
        begun_at = self._begun_at = time.monotonic()
        parts = self._connection_set.begin_chunk(self, header)
        self.idle_since = None
        self._done_bytes = self.counters.moved_bytes
        self._is_new = any(part.write for part in parts)
        self._clock.enter("receive")
        computed = [self._receive_segment(part) for part in parts]
        told = bytes(self.channel.take(limits.DIGEST_BYTES * len(parts)))
        self._clock.enter(None)
        digests = [told[at : at + limits.DIGEST_BYTES] for at in range(0, len(told), limits.DIGEST_BYTES)]
        self._is_new = False
        good = self._connection_set.end_chunk(self, parts, digests, computed)
        self.idle_since = time.monotonic()
        size = sum(segment.length for segment in header.segments)
        if not good:
            self._host.note_mismatch(self, header.chunk_id)
            self.counters.abandoned_bytes += size
            self.counters.resent_chunks += 1
            self.counters.mismatches += 1
            self._send(m.ChunkAck(m.Verdict.DIGEST_MISMATCH, (header.chunk_id,)))
            return
        sink, received = parts[0].sink, (header.chunk_id, size, begun_at)
        if isinstance(sink, ReorderBuffer):
            sink.hand_over(parts[0].position, self, lambda: self._acknowledge_passed(received))
            return
        for part in parts:
            if part.write and (ledger_writer := part.sink.ledger_writer) is not None:
                self._written.setdefault(ledger_writer, []).append(part.position)
        self._received.append(received)
        if len(self._received) >= limits.ACKS_PER_FRAME:
            self.acknowledge()

    def _receive_segment(self, part: IncomingSegment) -> bytes:
        """Receive, hash and write the bytes of one segment; return the digest of what came."""
        counters, hasher, clock = self.counters, self._hasher, self._clock
        offset = part.segment.offset
        hasher.reset()
        for view in self.channel.payload(part.segment.length):
            clock.enter("digest")
            hasher.update(view)
            if part.write:
                clock.enter("write")
                part.sink.write(view, offset)
            offset += len(view)
            counters.moved_bytes += len(view)
            clock.enter("receive")
        return hasher.digest()

    # --- acknowledgements

    def acknowledge(self) -> None:
        """Append what was written to the ledgers, then acknowledge it."""
        if not self._received:
            return
        interrupted = self._clock.enter("acknowledge")
        for ledger_writer, positions in self._written.items():
            ledger_writer.record([(position, ledger_writer.digest(position)) for position in positions])
        acknowledged = self._received
        self._written, self._received = {}, []
        self._say_acknowledged(acknowledged)
        self._clock.enter(interrupted)

    def _acknowledge_passed(self, received: tuple[int, int, float]) -> None:
        """Acknowledge a chunk that was passed on; called by the thread that does that.

        Where the connection is gone, its sender sends the chunk again over another one.
        """
        if not self._left.is_set():
            with contextlib.suppress(ConnectionLost):  # the thread of the connection hears of it, too
                self._say_acknowledged([received])

    def _say_acknowledged(self, acknowledged: list[tuple[int, int, float]]) -> None:
        self._send(m.ChunkAck(m.Verdict.OK, tuple(chunk_id for chunk_id, _, _ in acknowledged)))
        now = time.monotonic()
        for _, size, begun_at in acknowledged:
            self.counters.acknowledged_bytes += size
            self.counters.latencies.observe(now - begun_at)
        self.counters.chunks += len(acknowledged)
        self.counters.finished_at = now

    def _send(self, message: m.Message) -> None:
        with self._sending:
            self._session.sending(message)
            self.channel.send_message(message)

    def _patience(self) -> None:
        """After each second without movement: a peer that is heard on any connection is alive."""
        if self._host.peer_is_silent():
            raise ConnectionLost(f"{self.channel.peer} was silent for {limits.DEAD_SECONDS:.0f} s")
