"""One transfer from the receiver's side: the coordinator thread acts on one event at a time.

It alone writes to the control connection and decides what the transfer does next. A reader thread for the control
connection never writes; each data connection has a thread of its own, and brings chunks to the `intake`.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

from receiver.assembly import CLAIMED, Assembly
from receiver.connection import DataConnection
from receiver.intake import LEAVE_SECONDS, File, Intake, held_messages, needed_messages
from receiver.rehash import Rehashed, Rehasher
from receiver.store import Staged
from service.chunk_map import ChunkMap
from service.counters import TransferCounters
from service.threads import run_to_end
from wire import limits
from wire import messages as m
from wire.codec import decode
from wire.errors import (
    Aborted,
    Code,
    ConnectionClosed,
    ConnectionLost,
    FilestreamerError,
    RemoteProtocolError,
    TransferFailed,
)
from wire.grid import Grid
from wire.session import Session
from wire.transport import Channel

TICK_SECONDS: Final = 1.0
COMPLETE_SECONDS: Final = 60.0
"""How long a committed transfer is kept to answer a sender that has not heard of it."""
MAILBOX_EVENTS: Final = 64
MISMATCHES_LOGGED: Final = 8
WRITE_BACK_BYTES: Final = 64 * limits.MIB


class ControlUp(NamedTuple):
    """A control connection was let in; `welcome` is to be said on it."""

    channel: Channel
    welcome: m.Welcome


class ControlDown(NamedTuple):
    """It ended."""

    channel: Channel
    error: FilestreamerError


class Received(NamedTuple):
    """A frame came over it; not decoded yet, as what is decoded can be far larger."""

    channel: Channel
    body: bytes


class Failed(NamedTuple):
    """Some thread, or the server, ends the transfer."""

    error: FilestreamerError


class Committed(NamedTuple):
    """Every file is durable under its final name."""


Event = ControlUp | ControlDown | Received | Failed | Committed | Rehashed


class Registry(Protocol):
    """What a transfer needs of the server."""

    def claim(self, transfer: "Transfer", entry: m.Entry, grid: Grid) -> Staged:
        """Stage a file that no other transfer writes. Raises TransferFailed."""

    def release(self, transfer: "Transfer") -> None:
        """Let others write the files of a transfer."""

    def ended(self, transfer: "Transfer", error: FilestreamerError | None) -> None:
        """Take the end of a transfer."""


class Transfer(threading.Thread):
    """Receives what one sender offers. `post` may be called from any thread."""

    def __init__(self, registry: Registry, hello: m.Hello, give_up_after: float, log: Any) -> None:
        super().__init__(name=f"transfer-{hello.transfer_id.hex()[:8]}", daemon=True)
        self.transfer_id = hello.transfer_id
        self.counters = TransferCounters(hello.transfer_id, "", m.RECEIVER_STAGES)
        self.root_digest: bytes | None = None
        self.committed = False
        self._registry = registry
        self._give_up_after = give_up_after
        self._log = log
        self._mailbox: queue.Queue[Event] = queue.Queue(MAILBOX_EVENTS)
        self._channel: Channel | None = None
        self._session = Session("receiver", m.Role.CONTROL)
        self._offer: m.Offer | None = None
        self._manifest: tuple[m.Entry, ...] = ()
        self._rehasher = Rehasher(self.post, lambda error: self.post(Failed(error)))
        self._committer: threading.Thread | None = None
        self._over = threading.Event()
        self._write_back_ended = threading.Event()
        self._write_backs: list[threading.Thread] = []
        self._write_back_error: FilestreamerError | None = None
        self.intake = Intake(self.counters, hello.connections, self._over.is_set)
        self._said_at = 0.0
        self._heard_at = time.monotonic()
        self._moved_bytes = 0
        self._committed_at = 0.0
        self._told: Channel | None = None
        """The control connection that Complete was said on."""
        self._closed_by_sender = False
        self._connected_at = self._started_at = time.monotonic()
        self._was_offered = False
        self._ending: FilestreamerError | None = None
        self._writing_since: float | None = None

    def check(self, hello: m.Hello) -> None:
        """Compare another Hello with the first. Raises RemoteProtocolError where they don't fit together."""
        if hello.connections != self.intake.most:
            raise RemoteProtocolError(f"{hello.connections} connections were announced, and {self.intake.most} before")

    def post(self, event: Event) -> None:
        """Give the coordinator an event; waits where it is far behind, so that no peer can fill the memory."""
        while not self._over.is_set():
            try:
                self._mailbox.put(event, timeout=TICK_SECONDS)
                return
            except queue.Full:
                continue

    def end_soon(self, error: FilestreamerError) -> None:
        """Have the coordinator end the transfer for this error, before it acts on anything else. Never waits."""
        self._ending = error
        self.post_now(Failed(error))

    def cut(self) -> None:
        """Shut every connection: whoever hangs on one wakes."""
        channel = self._channel
        if channel is not None:
            channel.shut()
        self.intake.shut()

    def forget(self) -> None:
        """End, soon, a committed transfer that is only kept to answer a sender that has not heard of it."""
        self._closed_by_sender = True

    def post_now(self, event: Event) -> bool:
        """Give the coordinator an event if that needs no waiting; whether it did not."""
        try:
            self._mailbox.put_nowait(event)
        except queue.Full:
            return False
        if self._over.is_set():  # it ended meanwhile, and may not have seen it
            self._turn_away()
        return True

    @property
    def was_offered(self) -> bool:
        """Whether the sender came as far as to offer a file that nobody else is writing."""
        return self._was_offered

    # --- the coordinator

    def run(self) -> None:
        """Act on events until the transfer is over; whatever happens, the registry hears how it ended."""
        self._end(run_to_end("transfer", self._coordinate))

    def _coordinate(self) -> None:
        while not self._is_done():
            event = self._next_event()
            if self._ending is not None and not self.committed:
                raise self._ending
            self._act(event)
            self._tick()

    def _is_done(self) -> bool:
        """Return whether it is committed, and its sender has closed after Complete or been away COMPLETE_SECONDS."""
        if not self.committed:
            return False
        return self._closed_by_sender or time.monotonic() - self._committed_at > COMPLETE_SECONDS

    def _next_event(self) -> Event | None:
        try:
            return self._mailbox.get(timeout=TICK_SECONDS)
        except queue.Empty:
            return None

    def _act(self, event: Event | None) -> None:
        match event:
            case None:
                pass
            case Received(channel, body):
                if channel is self._channel:
                    self._receive(decode(body))
            case Rehashed():
                self._take_rehashed(event)
            case Committed():
                self._complete()
            case ControlUp(channel, welcome):
                self._welcome(channel, welcome)
            case ControlDown(channel, error):
                self._lose_control(channel, error)
            case Failed(error):
                if not self.committed:
                    raise error

    def _welcome(self, channel: Channel, welcome: m.Welcome) -> None:
        """Let a control connection in; it takes the place of an older one."""
        if self._channel is not None:
            self._channel.shut()
        self._channel = channel
        self._closed_by_sender = False
        self._writing_since = None
        self._session = Session("receiver", m.Role.CONTROL)
        channel.patience = self._control_patience
        threading.Thread(target=self._read_control, args=(channel,), name="control", daemon=True).start()
        try:
            channel.send_message(welcome)
        except ConnectionLost:
            channel.shut()

    def _read_control(self, channel: Channel) -> None:
        """Read the control connection until it ends: a thread that never writes."""

        def read() -> None:
            while not self._over.is_set():
                self.post(Received(channel, channel.read_body()))

        if error := run_to_end("control connection", read):
            self.post(ControlDown(channel, error))

    def _control_patience(self) -> None:
        if self._over.is_set():
            raise ConnectionLost("the transfer is over")
        since = self._writing_since
        takes_nothing = since is not None and time.monotonic() - since > limits.DEAD_SECONDS
        if takes_nothing or self.peer_is_silent():
            raise ConnectionLost(f"the sender was silent for {limits.DEAD_SECONDS:.0f} s")

    def _lose_control(self, channel: Channel, error: FilestreamerError) -> None:
        if channel is not self._channel:
            channel.close()
            return
        # A write that failed takes the kernel's error: to the reader a reset then looks like an end in order.
        self._closed_by_sender = channel is self._told and isinstance(error, ConnectionClosed)
        if not error.retryable or not self._manifest:
            raise error
        if isinstance(error, RemoteProtocolError):
            self._say_goodbye(channel, error)
        self._channel = None
        if self._closed_by_sender:
            channel.close_in_order()
            return
        channel.close()
        self._log.warning("control_lost", reason=str(error))

    def _receive(self, message: m.Message) -> None:
        self._session.received(message)
        match message:
            case m.Offer():
                self._take_offer(message)
            case m.ManifestPart():
                self._take_manifest_part(message)
            case m.Finish():
                self._take_finish(message)
            case m.Progress():
                self.counters.peer_stages = message.stage_microseconds or self.counters.peer_stages
            case m.Abort():
                raise Aborted(message.code, message.reason)
            case _:
                pass  # the session table lets nothing else through

    def _take_offer(self, offer: m.Offer) -> None:
        if self._offer is not None and offer != self._offer:
            raise RemoteProtocolError("the transfer is offered again, otherwise than before")
        if offer.shard is not None:
            raise TransferFailed(Code.POLICY, "this receiver does not put shards together yet: send without --shard")
        self._offer = offer
        self.counters.chunk_size = offer.chunk_size

    def _take_manifest_part(self, part: m.ManifestPart) -> None:
        """Stage the file, the first time; answer what is needed and what is held, every time."""
        if part.first_file_id != 0 or len(part.entries) != 1 or not part.last:
            raise TransferFailed(Code.POLICY, "this receiver takes one file at a time, not yet trees")
        if not self._manifest:
            self._manifest = part.entries
            self._was_offered = True
            self._stage(part.entries[0])
        elif part.entries != self._manifest:
            raise RemoteProtocolError("the manifest is repeated, otherwise than before")
        if self.committed:
            self._say_complete()
            return
        self.counters.phase = "moving"
        for file_id, file in enumerate(self.intake.files):
            answer = self.intake.answer(file_id)
            self._say_all(needed_messages(file_id, answer.needed))
            self._say_all(held_messages(file_id, file.assembly, answer.held))

    def _stage(self, entry: m.Entry) -> None:
        assert self._offer is not None  # the session table has an Offer before the first ManifestPart
        if entry.type is not m.EntryType.FILE or entry.holes or entry.xattrs or entry.hard_link_group:
            raise TransferFailed(Code.POLICY, "this receiver takes plain files, not yet directories, links and holes")
        grid = Grid(entry.size, self._offer.chunk_size)
        if grid.segments > limits.CHUNKS_PER_FILE:
            raise RemoteProtocolError(f"{grid.segments} chunks are too many: the limit is {limits.CHUNKS_PER_FILE}")
        try:
            staged = self._registry.claim(self, entry, grid)
        except TransferFailed as error:
            self._was_offered = error.code is not Code.BUSY
            raise
        assembly = Assembly(grid)
        claims = staged.take_claims()
        for index in claims.indices():
            assembly.claim(index, claims.digest(index))
        self.counters.size_bytes += entry.size
        self.counters.chunks += grid.segments
        self.counters.chunk_map = ChunkMap(self.counters.chunks)
        self.counters.name = staged.path
        self.intake.files.append(File(entry, staged, assembly))
        self._log.info("transfer_started", file=staged.path, bytes=entry.size, claimed_chunks=claims.claimed)
        for first, end in assembly.runs(CLAIMED):
            self._rehasher.add(len(self.intake.files) - 1, staged, grid, first, end)
        if entry.size >= WRITE_BACK_BYTES:
            thread = threading.Thread(target=self._write_back, args=(staged,), name="write-back", daemon=True)
            self._write_backs.append(thread)
            thread.start()

    def _write_back(self, staged: Staged) -> None:
        """Have the kernel write while the rest still comes in, so that the sync at the end is short."""

        def write_back() -> None:
            while not self._write_back_ended.wait(TICK_SECONDS):
                staged.write_back()

        self._write_back_error = run_to_end("write-back", write_back)
        if self._write_back_error is not None:
            self.post(Failed(self._write_back_error))

    def _take_rehashed(self, batch: Rehashed) -> None:
        """Answer claimed chunks, now that it is known what is on the disk."""
        answer = self.intake.take_rehashed(batch)
        self.counters.rehashed_bytes += batch.bytes
        self.counters.last_progress_at = time.monotonic()
        if self._session.state == "offer":
            return  # control is being opened anew: the manifest is answered whole
        self._say_all(needed_messages(batch.file_id, answer.needed))
        self._say_all(held_messages(batch.file_id, self.intake.files[batch.file_id].assembly, answer.held))

    def _take_finish(self, finish: m.Finish) -> None:
        """Every chunk is here, the sender says: commit, or say what is missing."""
        if self._committer is not None:
            return  # Complete was said, or follows
        missing = [
            message
            for file_id in range(len(self.intake.files))
            for message in needed_messages(file_id, self.intake.missing(file_id))
        ]
        self._say_all(missing)
        if missing:
            return
        self.root_digest = self.intake.close()
        self._write_back_ended.set()
        if self.root_digest != finish.root_digest or self.counters.chunks != finish.chunks:
            reason = "what is staged differs from what the sender read, though every chunk was equal: send it again"
            for file in self.intake.files:
                file.staged.discard()
            raise TransferFailed(Code.DIGEST, reason)
        self.counters.phase = "syncing"
        self._committer = threading.Thread(target=self._commit, name="commit", daemon=True)
        self._committer.start()

    def _commit(self) -> None:
        """Put every file in place; the coordinator goes on saying that this side lives."""

        def commit() -> None:
            for thread in self._write_backs:
                thread.join()
            if self._write_back_error is not None:
                raise self._write_back_error
            begun = time.monotonic()
            for file in self.intake.files:
                file.staged.commit()
            self.counters.sync_seconds = time.monotonic() - begun

        error = run_to_end("commit", commit)
        self.post(Failed(error) if error else Committed())

    def _complete(self) -> None:
        self.committed = True
        self._committed_at = time.monotonic()
        self.counters.phase = "complete"
        self.counters.ended_at = self._committed_at
        self._registry.release(self)
        if self._channel is not None and self._session.state in ("moving", "finishing"):
            self._say_complete()

    def _say_complete(self) -> None:
        self._say_progress()
        if self._say(m.Complete(True)):
            self._told = self._channel

    def _say_progress(self) -> None:
        counters = self.counters
        phase = {"offering": m.Phase.OFFERING, "syncing": m.Phase.SYNCING}.get(counters.phase, m.Phase.MOVING)
        stages = counters.stage_microseconds()
        self._say(m.Progress(phase, counters.acknowledged_bytes, counters.rehashed_bytes, stages))

    def _say_all(self, messages: Sequence[m.Message]) -> None:
        for message in messages:
            self._say(message)

    def _say(self, message: m.Message) -> bool:
        """Write to the control connection; whether the kernel took it.

        Where it did not, the reader of the connection notices, and the sender opens another.
        """
        if self._channel is None:
            return False
        self._session.sending(message)
        self._writing_since = time.monotonic()
        try:
            self._channel.send_message(message)
        except ConnectionLost:
            self._channel.shut()
            return False
        self._said_at = time.monotonic()
        self._writing_since = None
        return True

    # --- the clock

    def peer_is_silent(self) -> bool:
        """Whether the sender said nothing, on any connection, for longer than the living do."""
        channel = self._channel
        heard_at = max(self._heard_at, self.intake.heard_at(), channel.heard_at if channel is not None else 0.0)
        return time.monotonic() - heard_at > limits.DEAD_SECONDS

    def taken_bytes(self) -> int:
        """Count, about, the bytes on the disk that its files have taken so far."""
        return sum(file.staged.taken_bytes for file in self.intake.files)

    @property
    def is_deserted(self) -> bool:
        """Whether the sender has no connection left, or is silent: another one may take its place."""
        return not self.committed and (not self._is_connected or self.peer_is_silent())

    @property
    def _is_connected(self) -> bool:
        return self._channel is not None or self.intake.is_connected

    def _tick(self) -> None:
        now = time.monotonic()
        moved_bytes = self.counters.moved_bytes
        if moved_bytes != self._moved_bytes:  # a large chunk that comes slowly is progress, too
            self._moved_bytes, self.counters.last_progress_at = moved_bytes, now
        if now - self._said_at > limits.HEARTBEAT_SECONDS and not self.committed:
            self._say_progress()
        if self._is_connected or self.committed:
            self._connected_at = now
        elif now - self._connected_at > self._give_up_after:
            seconds = f"{self._give_up_after:g} s"
            raise TransferFailed(Code.TIMEOUT, f"the sender did not come back within {seconds}; what came is kept")
        if not self._manifest and now - self._started_at > limits.DEAD_SECONDS:
            raise TransferFailed(Code.TIMEOUT, f"the sender offered nothing within {limits.DEAD_SECONDS:g} s")

    # --- what the data connections call

    def left(self, connection: DataConnection, error: FilestreamerError | None) -> None:
        """Hear why a data connection ended; a failure that is not the connection's own ends the transfer."""
        if isinstance(error, TransferFailed) or (error is not None and not error.retryable):
            self.post(Failed(error))
        elif error is not None and not isinstance(error, ConnectionClosed) and not self._over.is_set():
            self._log.warning("connection_lost", connection=connection.connection_id, reason=str(error))

    def note_mismatch(self, connection: DataConnection, chunk_id: int) -> None:
        """Log that a chunk arrived damaged: the first few of a connection, the result counts them all."""
        if connection.counters.resent_chunks < MISMATCHES_LOGGED:
            self._log.warning("digest_mismatch", connection=connection.connection_id, chunk=chunk_id)

    # --- the end

    def _end(self, error: FilestreamerError | None) -> None:
        """End every connection, leave every file, tell the registry."""
        if error is not None and self._channel is not None:
            self._say_goodbye(self._channel, error)
        self._over.set()
        self._write_back_ended.set()
        left = [self.intake.end(), self._rehasher.end(LEAVE_SECONDS)]
        for thread in self._write_backs:
            thread.join(LEAVE_SECONDS)
            left.append(not thread.is_alive())
        if self._committer is not None:
            self._committer.join()
        if self._channel is not None:
            self._channel.close_in_order()
        if all(left):  # else a thread that hangs in a write could write into whatever has the descriptor next
            for file in self.intake.files:
                file.staged.close()
        self.counters.ended_at = self.counters.ended_at or time.monotonic()
        self._registry.release(self)
        self._registry.ended(self, error)
        self._turn_away()

    def _turn_away(self) -> None:
        """Close the control connections that were let in too late to be acted on: their sender connects again."""
        with contextlib.suppress(queue.Empty):
            while True:
                event = self._mailbox.get_nowait()
                if isinstance(event, ControlUp):
                    event.channel.close()

    def _say_goodbye(self, channel: Channel, error: FilestreamerError) -> None:
        """Tell the sender why this ends."""
        if isinstance(error, Aborted | ConnectionLost) or self._session.state in ("aborted", "complete"):
            return
        code: Code = getattr(error, "code", Code.INTERNAL)
        try:
            channel.send_message(m.Abort(code, str(error)))
            channel.finish_writing()
        except FilestreamerError:
            channel.shut()
