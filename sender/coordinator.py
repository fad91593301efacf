"""One transfer from the sender's side: the coordinator, in the main thread, acts on one event at a time.

It alone writes to the control connection and decides what the transfer does next. Chunks move in the threads of the
data connections; everything that concerns the whole arrives here as an event.
"""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from filestreamer.process.backoff import Backoff
from filestreamer.process.threads import as_failure, start_thread, waited_seconds
from filestreamer.telemetry import tcp_info
from filestreamer.telemetry.counters import ConnectionCounters, Skipped, TransferCounters
from filestreamer.wire import features, limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode
from filestreamer.wire.errors import (
    Aborted,
    Code,
    ConnectionClosed,
    ConnectionLost,
    FilestreamerError,
    Interrupted,
    Refused,
    RemoteProtocolError,
    TransferFailed,
    UsageError,
)
from filestreamer.wire.grid import comfortable_chunk_size, smallest_chunk_size
from filestreamer.wire.opening import random_id
from filestreamer.wire.progress_clock import ProgressClock, sync_seconds
from filestreamer.wire.sockets.control_link import ControlLink
from filestreamer.wire.sockets.transport import Channel, Deadline
from sender.dispatch.answers import Answers
from sender.dispatch.manifest import Manifest, Part, StreamPart
from sender.dispatch.parallelism import Change, Parallelism
from sender.dispatch.schedule import Schedule
from sender.dispatch.send_queue import SendQueue
from sender.dispatch.verify import Verifier
from sender.network import control
from sender.network.connection import DataConnection
from sender.network.control import MAILBOX_FRAMES, ControlEvent, ControlReader
from sender.network.dial import Address, ControlState, Dialer
from sender.network.rate import RateLimit
from sender.settings import SenderSettings
from sender.source.item import Item, Unsendable, check_in_place
from sender.source.listing import Listed, Lister

TICK_SECONDS: Final = 1.0
LOOK_SECONDS: Final = 0.1
"""Ticks where the number of connections is found on the way."""
GOODBYE_SECONDS: Final = 2.0
"""How long it may take to tell the receiver why this ends."""


class PartDone(NamedTuple):
    """The last open chunk of a part settled."""


class Compared(NamedTuple):
    """A small file that the receiver holds was compared, in answer to what it said in this epoch."""

    file_id: int
    epoch: int
    is_equal: bool


class Withdrew(NamedTuple):
    """A file can't be sent as it was listed."""

    file_id: int
    error: Unsendable


class Grown(NamedTuple):
    """A stream has chunks for more connections than there are."""


class Signalled(NamedTuple):
    """The process was asked to end."""

    signal_number: int


Event = ControlEvent | PartDone | Listed | Grown | Compared | Withdrew | Signalled


class BeginAgain(Exception):
    """The receiver has forgotten a tree of which a part was let go here: a new transfer moves what is missing."""


class Transfer:
    """Sends what the settings name. Make it, `run` it once; any thread may read `counters`, and `post`."""

    _is_rejoining = False
    _is_interrupted = False
    _peer_rehashed_bytes = 0
    _has_lost = False
    """Whether a connection was lost, since the clock was told."""
    _finished_at: float | None = None
    """When Finish was said, and nothing got on since."""
    _reopened_chunks = 0
    _fewest_missing: int | None = None
    _short_until = 0.0
    """When it is tried again to start data connections for which there was no thread or no memory."""
    _was_limited = False
    """The log says that the receiver has no room for all connections."""

    def __init__(self, settings: SenderSettings, log: Any, before: "Transfer | None" = None) -> None:
        """Begin to list what is sent; `before` is the transfer that this one begins again for.

        Raises TransferFailed(SOURCE) where what the user names is not there or can't be read, UsageError.
        """
        self._settings = settings
        self._parallelism = Parallelism(settings.connections, rate_limit=settings.rate_limit)
        self._log = log
        self._mailbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._share = settings.shard
        self.limit = RateLimit(settings.rate_limit) if settings.rate_limit else None
        self.counters = TransferCounters(
            random_id(), settings.name, m.SENDER_STAGES, files=0, tolerated=settings.tolerated
        )
        self._mutex = threading.Lock()  # protects what the counters say of entries that are left out
        self._lister = Lister(settings, self.post, self.failed, self.leave_out)
        self._stream = self._lister.single.stream if self._lister.single is not None else None
        self.manifest = Manifest(
            self._stream.chunk_size if self._stream else _chunk_size(settings, self._lister.single)
        )
        self.counters.chunk_size = self.manifest.chunk_size
        self.counters.parallelism = self._parallelism.connections
        self.queue = SendQueue(
            self.manifest,
            self._make_schedule,
            lambda: self.post(PartDone()),
            settings.shard,
            is_tree=self._lister.single is None,
        )
        self.counters.chunk_map = self.queue.chunk_map
        if self._stream is not None:
            self.counters.is_growing = True
            self.queue.on_advance = self._stream.advance
        self._dialer = Dialer(settings, self.counters.transfer_id, _features(settings, self._lister.single))
        self._control_state = ControlState(was_open=before is not None)
        self._backoff: Backoff = before._backoff if before else Backoff()
        self._verifier = Verifier(self)
        self._link = ControlLink("sender", MAILBOX_FRAMES, threading.Event())
        self._reader = ControlReader(
            self._dialer,
            self._link,
            self.post,
            lambda: self._verifier.is_behind,
            self._backoff.next() if before else 0.0,
        )
        self._answers = Answers(self.manifest, self.queue, self._verifier, self.counters)
        self._data: dict[int, DataConnection] = {}
        self._reached: tuple[Address, bytes] | None = None  # where control led last, and the incarnation there
        self._committed: bool | None = None
        self._was_finished = False
        self._clock: ProgressClock = before._clock if before else ProgressClock(time.monotonic())
        self._last_trouble: FilestreamerError | None = before._last_trouble if before else None
        self._shortage = Backoff()
        self.on_few_threads: Callable[[], None] = before.on_few_threads if before else _nothing
        """Called where a thread that can't be done without does not start: others may be."""
        self.root_digest: bytes | None = None
        if self._lister.single is not None:
            self._take_listed([self._lister.single], last=True)

    def again(self) -> "Transfer":
        """Return a transfer of the same, after `run` raised BeginAgain. Raises as the constructor does."""
        return Transfer(self._settings, self._log, self)

    def _make_schedule(self) -> Schedule:
        count = self._settings.shard.count
        return Schedule(self.counters.parallelism, shard_count=count, strict_modulo=self._settings.strict_modulo)

    @property
    def is_connected(self) -> bool:
        """Whether the control connection is up."""
        return self._link.channel is not None

    # --- what the threads call

    def post(self, event: Event) -> None:
        """Give the coordinator an event: from any thread, and from a signal handler."""
        self._mailbox.put(event)

    def interrupt(self, signal_number: int) -> None:
        """End soon, for a signal: from its handler. A receiver that reads nothing is not waited for."""
        self._is_interrupted = self._link.is_hurried = True
        self.post(Signalled(signal_number))

    def failed(self, error: FilestreamerError) -> None:
        """End the transfer for this error."""
        self.post(control.Failed(error))

    def dial_data(self, connection_id: int) -> Channel:
        """Open a data connection to where control is, where the receiver has answered the offer by then.

        Raises ConnectionLost, Refused, RemoteProtocolError.
        """
        return self._dialer.data(self._control_state, connection_id)

    def withdraw(self, file_id: int, error: Unsendable) -> None:
        """Leave out a file that can't be sent as it was listed. Raises `error` where it is all there is."""
        if self._lister.single is not None or self.manifest.is_single:
            raise error
        if self.manifest.withdraw(file_id):
            self.post(Withdrew(file_id, error))

    def leave_out(self, skipped: Skipped) -> None:
        """Tell of an entry that is not moved."""
        with self._mutex:
            self.counters.leave_out(skipped)
        log = self._log.error if self.counters.is_failure(skipped.kind) else self._log.warning
        log("entry_skipped", path=skipped.path, kind=skipped.kind.name.lower(), reason=skipped.reason)

    def compared(self, file_id: int, epoch: int, *, is_equal: bool) -> None:
        """Take what came out for a small file that the receiver holds."""
        self.post(Compared(file_id, epoch, is_equal))

    def hang_up(self, channel: Channel, *, in_order: bool) -> None:
        """Close a data connection."""
        self._dialer.close(channel, in_order=in_order)

    def connection_changed(self, counters: ConnectionCounters, error: FilestreamerError | None) -> None:
        """Log that a data connection came up, or why it went down."""
        if error is None:
            self._log.debug("connection_up", connection=counters.connection_id)
        else:
            self._has_lost = True
            self._last_trouble = error.with_traceback(None)  # which would keep the buffers of its frames
            # A receiver that has no room for all connections says so to each of them, whenever it tries again.
            is_limit = isinstance(error, Refused) and error.code is Code.LIMIT
            log = self._log.debug if is_limit and self._was_limited else self._log.warning
            self._was_limited = self._was_limited or is_limit
            log("connection_lost", connection=counters.connection_id, reason=str(error))

    def idle_stage(self) -> str | None:
        """Name what a connection without chunks waits for: whoever writes the stream, or whoever reads the output."""
        if self._stream is not None and self._stream.is_waiting:
            return "read"
        return "wait_ack" if self.queue.is_in_order else None

    def receiver_is_heard(self) -> bool:
        """Whether the receiver said anything within DEAD_SECONDS, on whatever connection that is up."""
        channels = [self._link.channel, *(connection.channel for connection in list(self._data.values()))]
        heard_at = max((channel.heard_at for channel in channels if channel is not None), default=0.0)
        return time.monotonic() - heard_at <= limits.DEAD_SECONDS

    def _grow(self) -> None:
        """Take in what came of a stream; called by the thread that reads it."""
        part = self.manifest.parts[0]
        assert self._stream is not None  # it calls
        assert isinstance(part, StreamPart)
        is_whole = self._stream.is_ended
        self.counters.size_bytes, self.counters.chunks = self._stream.size, self._stream.chunks
        self.counters.is_growing = not is_whole
        self.queue.grow(part, is_whole=is_whole)
        if len(self._data) < self.queue.connections:
            self.post(Grown())

    # --- the coordinator

    def run(self) -> bool:
        """Move it; return whether it is committed (False: a shard's share that waits for the others).

        Raises the FilestreamerError that ended the transfer, or BeginAgain.
        """
        try:
            self._start_thread(self._reader, "the control connection")
            if self._lister.single is None:
                self._start_thread(self._lister, "the walk")
            while self._committed is None:
                self._act(self._next_event())
                self._tick()
            self.counters.phase = "complete"
            self.queue.complete()
            return self._committed
        except BeginAgain:
            self.queue.fail(ConnectionLost("the transfer begins again"))
            self._say_goodbye(TransferFailed(Code.SUPERSEDED, "its sender begins again"))
            raise
        except Exception as error:
            failure = as_failure("sending", error)
            self.queue.fail(failure)
            self._say_goodbye(failure)
            raise failure from error
        finally:
            self.counters.ended_at = time.monotonic()
            self._end()

    def _start_thread(self, thread: threading.Thread, what: str) -> None:
        """Start a thread that the transfer can't do without. Raises TransferFailed(LIMIT)."""
        try:
            start_thread(thread, what)
        except TransferFailed:
            self.on_few_threads()
            start_thread(thread, what)

    def _next_event(self) -> Event | None:
        try:
            return self._mailbox.get(timeout=LOOK_SECONDS if self._parallelism.adapts else TICK_SECONDS)
        except queue.Empty:
            return None

    def _act(self, event: Event | None) -> None:
        match event:
            case None:
                pass
            case control.Received(body, channel):
                self._link.acted()
                if channel is self._link.channel:
                    self._receive(decode(body))
            case control.Connected(address, rtt_seconds):
                self._go_ahead(address, rtt_seconds)
            case control.ControlUp(channel, address, incarnation):
                self._offer(channel, address, incarnation)
            case control.ControlDown(error):
                self._control_state.tell(None)
                if self._link.channel is not None or not isinstance(error, ConnectionClosed):
                    self._lose_control(error)
            case control.Failed(error):
                raise error
            case Signalled(signal_number):
                raise Interrupted(signal_number)
            case _:
                self._take_news(event)
                self._go_on()

    def _take_news(self, event: Event) -> None:
        """Take what the walk, the comparing or a data connection has found."""
        match event:
            case Listed(items, last):
                self._take_listed(items, last=last)
            case Compared(file_id, epoch, is_equal):
                self._answers.compared(file_id, epoch, is_equal=is_equal)
            case Withdrew(file_id, error):
                self._take_withdrew(file_id, error)
            case _:
                pass  # Settled

    def _take_listed(self, items: list[Item], *, last: bool) -> None:
        """Take in another part of what is sent."""
        part = self.manifest.add(items, last=last)
        self.queue.extend(part)
        counters, share = self.counters, self._share
        counters.files += sum(item.entry.type in (m.EntryType.FILE, m.EntryType.STREAM) for item in items)
        counters.size_bytes += share.bytes_of(part.grid(0)) if share.count > 1 else part.bytes
        counters.chunks = self.queue.chunks
        if self.manifest.lost_groups:
            self._withdraw_links(part)

    def _take_withdrew(self, file_id: int, error: Unsendable) -> None:
        part = self.manifest.part_of_file(file_id)
        assert part is not None  # it stays until this is told
        item = part.item(file_id)
        self.leave_out(Skipped(item.shown, error.why, error.kind, item.entry.path))
        self._answers.withdraw(file_id)
        if part.is_sent and self._link.state in ("manifest", "moving"):
            self._send_withdrawn((file_id,))
        self.manifest.told_withdrawn(file_id)
        if item.identity is not None and item.entry.hard_link_group:
            self.manifest.lost_groups[item.entry.hard_link_group] = error.kind
            for other in self.manifest.parts:
                self._withdraw_links(other)

    def _withdraw_links(self, part: Part) -> None:
        """Leave out the further names of files that can't be sent."""
        for file_id, item in enumerate(part.items, part.first_file_id):
            kind = self.manifest.lost_groups.get(item.entry.hard_link_group)
            if item.identity is None and kind is not None:
                why = "it is another name of a file that could not be sent"
                self.withdraw(file_id, Unsendable(Code.SOURCE, f"{item.shown}: {why}", kind, why))

    def _go_ahead(self, address: Address, rtt_seconds: float) -> None:
        """Have data connections opened while control still is, once: whom the receiver turned away has to wait."""
        if self._control_state.was_open:
            return
        self._control_state.tell(address)
        if self._parallelism.adapts:
            self._change(self._parallelism.begin(rtt_seconds, self.queue.unanswered))

    def _offer(self, channel: Channel, address: Address, incarnation: bytes) -> None:
        """Offer what is sent on a new control connection; another incarnation answers everything anew.

        Raises BeginAgain.
        """
        if self._reached is not None and incarnation != self._reached[1]:
            self._log.warning("receiver_restarted", address=channel.peer)
            self._start_over()
        self._reached = (address, incarnation)
        if self._control_state.is_open:
            self._control_state.tell(address, incarnation)
        self._link.attach(channel)
        self._log.info("connected", address=channel.peer)
        shard = m.Shard(self._share.index, self._share.count) if self._share.count > 1 else None
        total_bytes = self._lister.single.sent_bytes if self._lister.single is not None else 0
        self._link.say(m.Offer(self.manifest.chunk_size, shard, self._settings.checksum, total_bytes))
        self.manifest.tell_again()
        self._is_rejoining = True
        self._go_on()

    def _go_on(self) -> None:
        """Let go of parts that are done, say what comes next of the manifest, and finish after all of it."""
        self._lister.room(self.manifest.let_go())
        parts = self.manifest.parts
        unanswered = sum(part.is_sent and part.unanswered_chunks > 0 for part in parts)
        for part in parts:
            if self._link.state != "manifest" or unanswered >= limits.MANIFEST_PARTS_UNANSWERED:
                break
            if not part.is_sent:
                self._link.say(part.message)
                part.is_sent, part.withdrawn_before = True, self.manifest.told
                unanswered += part.unanswered_chunks > 0
                self._repeat_withdrawn(part)
        self._lister.room(self.manifest.let_go())
        self._finish_if_done()

    def _repeat_withdrawn(self, part: Part) -> None:
        """Say again what was withdrawn of a part and, where control is open anew, of those that were let go.

        What was said last on the old connection may be lost, and a file that is left out here be counted there.
        """
        first = 0 if self._is_rejoining else part.first_file_id
        self._is_rejoining = False
        withdrawn = self.manifest.withdrawn_between(first, part.end_file_id)
        for at in range(0, len(withdrawn), limits.FILES_PER_WITHDRAWN):
            self._send_withdrawn(tuple(withdrawn[at : at + limits.FILES_PER_WITHDRAWN]))

    def _send_withdrawn(self, file_ids: tuple[int, ...]) -> None:
        self._link.say(m.Withdrawn(file_ids))
        self.manifest.tell_withdrawn(file_ids)

    def _start_over(self) -> None:
        """Forget what was answered, acknowledged and held: the receiver answers anew. Raises BeginAgain."""
        self._peer_rehashed_bytes = 0
        if self._lister.single is None:
            self._clock.start_over()
            raise BeginAgain
        self._clock.start_over(rehashed=self.counters.rehashed_bytes)
        for part in self.manifest.parts:
            part.forget_answers()
        self._shut_data()
        if self._stream is not None and not self._stream.start_over():
            reason = "the receiver has forgotten what it had of standard input, which can't be read again"
            raise TransferFailed(Code.UNKNOWN_TRANSFER, f"{reason}: run the pipe again")
        self._was_finished = False
        self.queue.start_over()
        self.counters.start_over()

    def _shut_data(self) -> None:
        for connection in self._data.values():
            if connection.channel is not None:
                connection.channel.shut()

    def _lose_control(self, error: FilestreamerError) -> None:
        if self._link.channel is not None or str(error) != str(self._last_trouble):
            self._log.warning("control_lost" if self._link.channel else "cannot_connect", reason=str(error))
        self._link.channel = None
        self._control_state.tell(None)
        self._last_trouble = error.with_traceback(None)

    def _receive(self, message: m.Message) -> None:
        finishing = self._link.state == "finishing"
        self._link.received(message)
        if isinstance(message, m.Needed | m.Held):
            assert self._reached is not None
            self._control_state.tell(*self._reached, is_answered=True)
        match message:
            case m.Needed():
                self._take_needed(message, reopen=finishing)
            case m.Held():
                self._take_held(message)
            case m.Progress():
                self._take_progress(message)
            case m.Complete():
                self._take_complete(message)
            case m.Abort():
                self._take_abort(message)
            case _:
                pass  # the session table lets nothing else through

    def _take_needed(self, message: m.Needed, *, reopen: bool) -> None:
        """Have it dealt. Raises BeginAgain where a tree misses something after Finish."""
        if message.window_bytes:
            self.queue.bound(message.window_bytes)
        if self._stream is not None and message.files:
            self.queue.need_stream()
            self._stream.start(self._grow, self.failed)
        if not reopen:
            for file_id in [each.first_file_id for each in message.files] + [each.file_id for each in message.segments]:
                self.manifest.hear_answer(file_id)
            self._answers.need(message)
        elif self._lister.single is not None:
            self._reopen(message)
        else:
            self._clock.start_over()
            raise BeginAgain
        self.counters.phase = "moving"
        self._start_connections()
        self._go_on()

    def _reopen(self, message: m.Needed) -> None:
        """Have sent again what is missing after Finish. All of it counts once more, and fewer than ever before do."""
        before = self.queue.done
        self._answers.reopen(message)
        done = self.queue.done
        missing = before - done
        self._reopened_chunks += missing
        fewest = self._fewest_missing
        if self._reopened_chunks <= self.queue.chunks or (fewest is not None and missing < fewest):
            self._clock.reopen(done)
        self._fewest_missing = missing if fewest is None else min(missing, fewest)

    def _take_held(self, message: m.Held) -> None:
        is_single = self._lister.single is not None or self.manifest.is_single
        if message.unchecked and (is_single or self._settings.checksum):
            raise RemoteProtocolError("the receiver accepts unread what it may not")
        self.manifest.hear_answer(message.file_id)
        self._answers.hold(message)
        self.counters.phase = "moving"
        self._go_on()

    def _take_progress(self, message: m.Progress) -> None:
        """Note that the receiver syncs or waits for a reader, which is progress, or how far it has re-hashed."""
        self._peer_rehashed_bytes = message.rehashed_bytes
        self.counters.peer_stages = message.stage_microseconds or self.counters.peer_stages
        now = time.monotonic()
        if message.phase is m.Phase.WAITING and self.queue.is_in_order:
            self._clock.wait(now)
        if message.phase is m.Phase.SYNCING and self._link.state == "finishing" and self._finished_at is not None:
            seconds = sync_seconds(self.counters.size_bytes, self.manifest.files)
            self._clock.sync(self._finished_at, seconds, now)

    def _take_complete(self, message: m.Complete) -> None:
        if not message.committed and self._share.count == 1:
            raise RemoteProtocolError("the receiver keeps back a file that is no shard")
        if not self._was_finished:
            raise RemoteProtocolError("the receiver says Complete before everything was sent")
        self._committed = message.committed

    def _take_abort(self, message: m.Abort) -> None:
        error = Aborted(message.code, message.reason)
        if not error.retryable:
            raise error
        self._lose_control(error)
        self._dialer.shut_all()
        self._start_over()  # whatever it knew of this transfer, it has let go

    def _start_connections(self) -> None:
        """Start as many data connections as there are chunks for, their homes' first."""
        if not self._control_state.is_open:
            return
        for connection_id in [known for known, connection in self._data.items() if not connection.is_alive()]:
            del self._data[connection_id]  # it was dismissed
        if time.monotonic() < self._short_until:
            return
        for connection_id in self.queue.wanted_connections(set(self._data)):
            try:
                connection = DataConnection(self, self.counters.add_connection(connection_id))
                start_thread(connection, f"connection {connection_id}")
            except (TransferFailed, MemoryError) as error:
                self._do_with_fewer(as_failure(f"connection {connection_id}", error))
                return
            self._data[connection_id] = connection

    def _do_with_fewer(self, error: FilestreamerError) -> None:
        """Go on with the data connections that there are; others are tried later."""
        if not self._short_until:  # told once
            self._log.warning("fewer_connections", connections=len(self._data), reason=str(error))
        self._last_trouble = error.with_traceback(None)
        self._short_until = time.monotonic() + self._shortage.next()
        if not self._data:
            self.on_few_threads()

    def _finish_if_done(self) -> None:
        if not self.queue.all_done or not self.manifest.is_all_told:
            return
        if self._link.channel is None or self._link.state != "moving":
            return
        if self._lister.single is not None:
            check_in_place(self._lister.single)
        self.counters.phase = "syncing"
        self.root_digest = self.queue.root_digest()
        self._was_finished = True
        self._finished_at = self._finished_at or time.monotonic()
        self._link.say(self.counters.heartbeat())
        stream_bytes = self._stream.size if self._stream is not None else 0
        with self._mutex:
            counts, left_out = self.counters.tell_left_out()
        self._link.say(m.Finish(self.queue.chunks, self.root_digest, stream_bytes, counts, left_out))

    # --- the clock

    def _tick(self) -> None:
        now = time.monotonic()
        if self._link.is_heartbeat_due(now):
            self._link.say(self.counters.heartbeat())
        self._note_progress(now)
        self._check_liveness()
        self._adapt(now)
        self._start_connections()
        if now - self._clock.at > self._settings.give_up_after:
            raise self._gave_up()

    def _note_progress(self, now: float) -> None:
        """Tell the clock of everything that counts as progress (proto/README.md, "Liveness")."""
        counters, clock = self.counters, self._clock
        size_bytes = counters.size_bytes
        if self._lister.single is not None and self._share.count > 1:  # the receiver may hash other shares, too
            size_bytes = self._lister.single.entry.size
        step = limits.REHASH_STEP_BYTES
        under_way = self._under_way_bytes()
        if self._has_lost:
            self._has_lost = False
            clock.lose(under_way)
        waits = self._stream is not None and self._link.channel is not None and self._stream.is_waiting
        counters.is_waiting = waits and self.queue.is_idle  # nothing is sent where nothing comes
        if counters.is_waiting:
            clock.wait(now)
        gets_on = [
            clock.done(self.queue.done, now),
            clock.under_way(under_way, now),
            clock.reach("listed", self.manifest.files, now),
            clock.reach("answered", self.queue.chunks - self.queue.unanswered, now),
            clock.reach("rehashed", counters.rehashed_bytes, now, most=size_bytes),
            clock.reach("peer_rehashed", self._peer_rehashed_bytes, now, most=size_bytes, step=step),
        ]
        if any(gets_on):
            counters.last_progress_at = now
            if self._link.state != "finishing":
                self._finished_at = None
            if gets_on[0]:
                self._backoff.reset()

    def _under_way_bytes(self) -> int:
        """Count the bytes of chunks that are not acknowledged which the peer's kernel has taken."""
        return sum(connection.delivered_bytes for connection in list(self._data.values()))

    def _adapt(self, now: float) -> None:
        """Have more connections, or fewer, where nobody chose how many."""
        if not self._parallelism.adapts or self.counters.phase != "moving" or now < self._short_until:
            return
        sockets = [opened for each in self._data.values() if (opened := each.counters.link[0]) is not None]
        links = [info for opened in sockets if (info := tcp_info.read(opened)) is not None]
        change = self._parallelism.observe(
            now,
            sum(link.delivered_bytes for link in links),
            up=len(links),
            undealt=self.queue.undealt,
            rtt_seconds=min((link.rtt_seconds for link in links), default=0.0),
            waited_seconds=waited_seconds(self._data.values()),
        )
        self._change(change)

    def _change(self, change: Change | None) -> None:
        if change is not None:
            self._log.info("parallelism", **change._asdict())
            self.counters.parallelism = change.connections
            self.counters.parallelism_changes[change.reason] += 1
            self.queue.resize(change.connections)

    def _check_liveness(self) -> None:
        """Drop all connections to a peer that said nothing on any of them for DEAD_SECONDS: it is dead; dial anew."""
        if self._link.channel is not None and not self.receiver_is_heard():
            self._last_trouble = ConnectionLost(f"{self._link.channel.peer} was silent for {limits.DEAD_SECONDS:.0f} s")
            self._dialer.shut_all()

    def _gave_up(self) -> FilestreamerError:
        trouble = f": {self._last_trouble}" if self._last_trouble else ""
        seconds = f"{self._settings.give_up_after:g} s"
        advice = "run the same command again to resume" if self._stream is None else "run the pipe again"
        if self._last_trouble is not None and getattr(self._last_trouble, "code", None) is Code.BUSY:
            return TransferFailed(Code.BUSY, f"gave up after {seconds}{trouble}")
        return TransferFailed(Code.TIMEOUT, f"gave up after {seconds} without progress{trouble}; {advice}")

    # --- the end

    def _say_goodbye(self, error: FilestreamerError) -> None:
        """Tell the receiver what the time went into, and why this ends, if it can be told at once."""
        if self._link.channel is not None:
            self._link.channel.patience = Deadline(GOODBYE_SECONDS, "to say goodbye")
        self._link.say_goodbye(error, self.counters.heartbeat())

    def _end(self) -> None:
        """End every thread; in order where the transfer is complete."""
        self._control_state.end()
        if self.limit is not None:
            self.limit.end()
        self._lister.end()
        if self._stream is not None:
            self._stream.end()
        self._verifier.end()
        if self._committed is None:
            self._dialer.end(keep=self._link.channel)
        else:
            self._reader.finish(self._link.channel)  # while the data connections do so
        deadline = time.monotonic() + (GOODBYE_SECONDS if self._is_interrupted else limits.CLOSING_SECONDS)
        for connection in self._data.values():
            connection.join(max(0.0, deadline - time.monotonic()))
        self._reader.stop(self._link.channel, max(0.0, deadline - time.monotonic()))
        self._dialer.end()


def _nothing() -> None:
    pass


def _features(settings: SenderSettings, single: Item | None) -> tuple[str, ...]:
    """Return the features that the receiver has to have for what is sent, and for how."""
    uses = {
        features.TREES: single is None,
        features.STREAMS: single is not None and single.stream is not None,
        features.SHARDS: settings.shard.count > 1,
        features.OWNER: settings.owner,
        features.CHECKSUM: settings.checksum,
    }
    return tuple(name for name, is_used in uses.items() if is_used)


def _chunk_size(settings: SenderSettings, single: Item | None) -> int:
    """Return the chunk size asked for, or the automatic one, in bytes.

    Raises UsageError where the one asked for would cut the file into too many chunks, and for shards of a tree.
    """
    if settings.shard.count > 1 and single is None:
        raise UsageError("--shard moves a share of one file, and a directory, or several paths, is none")
    size = single.entry.size if single is not None else 0
    if settings.chunk_size is None:
        return comfortable_chunk_size(size)
    smallest = smallest_chunk_size(size)
    if single is not None and settings.chunk_size < smallest:
        raise UsageError(
            f"chunk_size {settings.chunk_size} cuts {single.shown} into more than {limits.CHUNKS_PER_FILE} chunks:"
            f" use at least {smallest}"
        )
    return settings.chunk_size
