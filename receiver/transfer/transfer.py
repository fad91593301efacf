"""One transfer from the receiver's side: the coordinator thread acts on one event at a time.

It alone writes to the control connection and decides what the transfer does next. What may wait for a disk is done
`aside`, and the coordinator waits for that, saying that this side lives. A reader thread for the control
connection never writes; each data connection has a thread of its own, and brings chunks to the `connection_set`.
"""

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple, Protocol

from filestreamer.process.threads import run_to_end, start_thread
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import features, limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode
from filestreamer.wire.errors import (
    Aborted,
    Code,
    ConnectionClosed,
    ConnectionLost,
    FilestreamerError,
    RemoteProtocolError,
    TransferFailed,
)
from filestreamer.wire.grid import WHOLE, Grid, Share
from filestreamer.wire.sockets.control_link import ControlLink
from filestreamer.wire.sockets.transport import Channel
from receiver.disk.paths import check_path
from receiver.file.file_share import FileShare
from receiver.file.file_target import FileTarget
from receiver.file.rehash import FinalsRehashed, Rehashed, Rehasher
from receiver.file.target import LEAVE_SECONDS, Target
from receiver.memory.budget import Account
from receiver.memory.process_limit import SocketLimits
from receiver.pipe.pipe_target import PipeTarget
from receiver.pipe.reorder_buffer import OrderedWriter, ReorderBuffer, StagedWriter, borrow_window
from receiver.pipe.standard_output import OpenFile
from receiver.transfer.connection import DataConnection
from receiver.transfer.connection_set import ConnectionSet
from receiver.transfer.disk_worker import DiskWorker, Done
from receiver.transfer.liveness import Liveness
from receiver.tree.top_level_names import TopLevelNames

TICK_SECONDS: Final = 1.0
COMPLETE_SECONDS: Final = 60.0
"""How long a complete transfer is kept to answer a sender that has not heard of it."""
FENCE_SECONDS: Final = 10.0
"""How long its threads may take to end after their connections were cut."""
MAILBOX_EVENTS: Final = 64
CONTROL_FRAMES: Final = 4
"""Frames of a sender that are read and not acted on yet: what is beyond waits in its socket."""
CONTROLS: Final = 2
"""Control connections that were let in and not acted on yet: the senders of others come again."""
MISMATCHES_LOGGED: Final = 8
COMES_AGAIN: Final = (Code.BUSY, Code.LIMIT)
"""A sender from which nothing was taken yet for these reasons tries again soon: a try is no transfer of its own."""


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


class Nudged(NamedTuple):
    """There may be more to be answered."""


class Synced(NamedTuple):
    """A step that waited for the disk is done."""


Event = ControlUp | ControlDown | Received | Failed | Nudged | Synced | Rehashed | FinalsRehashed


class TransferHost(Protocol):
    """What a transfer needs of the server."""

    def claim(self, transfer: "Transfer", entry: m.Entry, grid: Grid, share: Share) -> FileShare:
        """Give a transfer its share of a file. Raises TransferFailed."""

    def claim_root(self, transfer: "Transfer", name: bytes) -> TopLevelNames:
        """Give a tree its first name in the destination. Raises TransferFailed."""

    def claim_stdout(self, transfer: "Transfer") -> OpenFile | None:
        """Give a transfer what is written in order; None where files are received instead. Raises TransferFailed."""

    def release(self, transfer: "Transfer") -> None:
        """Let others write what a transfer has committed."""

    def leave(self, transfer: "Transfer", *, cleanly: bool) -> None:
        """Take a transfer out of its file; `cleanly` is whether none of its threads hangs there."""

    def ended(self, transfer: "Transfer", error: FilestreamerError | None) -> None:
        """Take the end of a transfer."""


class Transfer(threading.Thread):
    """Receives what one sender offers. `post` may be called from any thread."""

    _leaver: threading.Thread | None = None
    _is_left_behind = False
    """Whether it has ended, and a thread of it hangs in a file."""
    _end_by = math.inf
    """When its end may wait for nothing any more (monotonic): the process ends."""
    _told_at = math.inf
    """When it was told to end."""
    _syncer: threading.Thread | None = None
    _window_cost = 0
    """What was borrowed for the window of an output, until that is whole."""

    def __init__(
        self,
        registry: TransferHost,
        hello: m.Hello,
        account: Account,
        give_up_after: float,
        log: Any,
        *,
        window_bytes: int = 64 * limits.MIB,
        socket_limits: SocketLimits | None = None,
        stranger_seconds: float = limits.STRANGER_SECONDS,
    ) -> None:
        """`account` is closed when the transfer has ended; `socket_limits` is what sockets may take, read where it is None."""
        super().__init__(name=f"transfer-{hello.transfer_id.hex()[:8]}", daemon=True)
        self.transfer_id = hello.transfer_id
        self.account = account
        """What it may hold of the memory that peers have."""
        self.counters = TransferCounters(hello.transfer_id, "", m.RECEIVER_STAGES)
        self.root_digest: bytes | None = None
        self.complete: m.Complete | None = None
        """What the sender is told, as soon as that is so."""
        self._features = hello.features
        self._registry = registry
        self._give_up_after = give_up_after
        self._window_bytes = window_bytes
        self._log = log
        self._mailbox: queue.Queue[Event] = queue.Queue(MAILBOX_EVENTS)
        self._controls = threading.Semaphore(CONTROLS)
        """Room for further control connections in the mailbox."""
        self._offer: m.Offer | None = None
        self._rehasher = Rehasher(self.post, lambda error: self.post(Failed(error)), account)
        self._disk_worker = DiskWorker()
        self._claiming = threading.Lock()  # protects: what is claimed is let go where the transfer is over by then
        self._over = threading.Event()
        self._link = ControlLink("receiver", CONTROL_FRAMES, self._over)
        self.connection_set = ConnectionSet(
            self.counters, hello.connections, account, self._over.is_set, socket_limits=socket_limits
        )
        self._heard_at = time.monotonic()
        self.liveness = Liveness(self.counters, self.connection_set, self._rehasher, stranger_seconds)
        self._completed_at = 0.0
        self._told: Channel | None = None
        """The control connection that Complete was said on."""
        self._closed_by_sender = False
        self.connected_at = self._started_at = time.monotonic()
        """When its sender was last there, about."""
        self._was_offered = False
        self._is_finishing = False
        """Finish was said, with the right root digest."""
        self._ending: FilestreamerError | None = None

    def check(self, hello: m.Hello) -> None:
        """Compare another Hello with the first. Raises RemoteProtocolError where they don't fit together."""
        if hello.connections != self.connection_set.most:
            raise RemoteProtocolError(
                f"{hello.connections} connections were announced, and {self.connection_set.most} before"
            )
        if hello.features != self._features:
            raise RemoteProtocolError("other features were named than before")

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
        self._told_at = min(self._told_at, time.monotonic())
        self.post_now(Failed(error))

    def end_by(self, deadline: float, error: FilestreamerError) -> None:
        """Have it end soon, and wait for nothing beyond this moment: the process ends."""
        self._end_by = deadline
        if self.is_complete:
            self.forget()
        self.end_soon(error)

    def yield_place(self) -> None:
        """Have it end soon, as others wait for its place: its sender may come again."""
        reason = "nothing was offered" if not self.liveness.has_listed else "there was no progress for too long"
        self.end_soon(TransferFailed(Code.TIMEOUT, f"{reason}, and others wait for the place"))

    def cut(self) -> None:
        """Shut every connection: whoever hangs on one wakes."""
        channel = self._link.channel
        if channel is not None:
            channel.shut()
        self.connection_set.shut()

    def forget(self) -> None:
        """End, soon, a complete transfer that is only kept to answer a sender that has not heard of it."""
        self._closed_by_sender = True
        self.post_now(Nudged())

    def yield_to_newer(self) -> None:
        """End, soon, for a newer sender."""
        if self.is_complete:
            self.forget()
        else:
            self.end_soon(TransferFailed(Code.SUPERSEDED, "a newer sender took this one's place"))

    def post_now(self, event: Event) -> bool:
        """Give the coordinator an event if that needs no waiting; whether it did not."""
        if isinstance(event, ControlUp) and not self._controls.acquire(blocking=False):
            return False
        try:
            self._mailbox.put_nowait(event)
        except queue.Full:
            if isinstance(event, ControlUp):
                self._controls.release()
            return False
        if self._over.is_set():  # it ended meanwhile, and may not have seen it
            self._turn_away()
        return True

    @property
    def is_complete(self) -> bool:
        """Whether all of it is durable: committed or, for a shard, in staging."""
        return self.complete is not None

    @property
    def committed(self) -> bool:
        """Whether its file stands under its final name."""
        return self.complete is not None and self.complete.committed

    @property
    def target_name(self) -> bytes:
        """What it receives, relative to the destination: a file, or the root of a tree."""
        return self._claimed_target.name

    @property
    def has_passed_on(self) -> bool:
        """Whether an output has bytes of it, which can't be taken back."""
        return isinstance(self.connection_set.target, PipeTarget) and self.connection_set.target.has_begun

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
            if self._ending is not None and not self.is_complete:
                raise self._ending
            self._act(event)
            self._say_more()
            self._tick()

    def _beside(self, work: Callable[[], Iterable[m.Message]]) -> Iterator[m.Message]:
        """Have done what may wait for a disk; yield what it has to say. Heartbeats and the clock go on meanwhile.

        Raises what the work does, and what ends the transfer meanwhile.
        """
        try:
            self._disk_worker.begin(work)
        except TransferFailed:  # no thread: then this one waits for the disk, and says nothing meanwhile
            yield from work()
            return
        while True:
            said = self._disk_worker.next(TICK_SECONDS)
            if isinstance(said, Done):
                if said.error is not None:
                    raise said.error
                return
            if said is not None:
                yield said
            if self._ending is not None and not self.is_complete:
                raise self._ending
            self._tick()

    def _say_more(self) -> None:
        target = self.connection_set.target
        is_told = self.complete is None and self._link.state in ("manifest", "moving")
        if target is not None and is_told and target.has_more:
            self._say_all(self._beside(target.more))

    def _is_done(self) -> bool:
        """Return whether it is complete, and its sender has closed after Complete or been away COMPLETE_SECONDS."""
        if not self.is_complete:
            return False
        if self._closed_by_sender or (self._ending is not None and self._end_by < math.inf):
            return True
        return time.monotonic() - self._completed_at > COMPLETE_SECONDS

    def _next_event(self) -> Event | None:
        try:
            return self._mailbox.get(timeout=TICK_SECONDS)
        except queue.Empty:
            return None

    def _act(self, event: Event | None) -> None:
        match event:
            case None | Nudged():
                pass
            case Received(channel, body):
                self._link.acted()
                if channel is self._link.channel:
                    self._receive(decode(body), body)
            case Rehashed() | FinalsRehashed():
                self._take_rehashed(event)
            case Synced():
                self._take_synced()
            case ControlUp(channel, welcome):
                self._controls.release()
                self._welcome(channel, welcome)
            case ControlDown(channel, error):
                self._lose_control(channel, error)
            case Failed(error):
                if not self.is_complete:
                    raise error

    def _welcome(self, channel: Channel, welcome: m.Welcome) -> None:
        """Let a control connection in; it takes the place of an older one."""
        if self._link.channel is not None:
            self._link.channel.shut()
        self._link.attach(channel)
        self._closed_by_sender = False
        channel.patience = self._control_patience
        reader = threading.Thread(target=self._read_control, args=(channel,), name="control", daemon=True)
        try:
            start_thread(reader, "the control connection")
        except TransferFailed as error:
            self._refuse(channel, error)
            return
        try:
            channel.send_message(welcome)
        except ConnectionLost:
            channel.shut()

    def _refuse(self, channel: Channel, error: TransferFailed) -> None:
        """Turn away a control connection that can't be read. Raises `error` where there is nothing to go on with."""
        self._link.channel = None
        with contextlib.suppress(FilestreamerError):
            channel.send_message(m.Refusal(error.code, error.reason))
        channel.close_in_order()
        if self.connection_set.target is None:
            raise error

    def _read_control(self, channel: Channel) -> None:
        """Read the control connection until it ends: a thread that never writes."""

        def read() -> None:
            self._link.read(channel, lambda body: self.post(Received(channel, body)))

        if error := run_to_end("control connection", read):
            self.post(ControlDown(channel, error))

    def _control_patience(self) -> None:
        self._link.check()
        if self.peer_is_silent():
            raise ConnectionLost(f"the sender was silent for {limits.DEAD_SECONDS:.0f} s")

    def _lose_control(self, channel: Channel, error: FilestreamerError) -> None:
        if channel is not self._link.channel:
            channel.close()
            return
        # A write that failed takes the kernel's error: to the reader a reset then looks like an end in order.
        self._closed_by_sender = channel is self._told and isinstance(error, ConnectionClosed)
        if not error.retryable or self.connection_set.target is None:
            raise error
        if isinstance(error, RemoteProtocolError):
            self._link.say_goodbye(error)
        self._link.channel = None
        if self._closed_by_sender:
            channel.close_in_order()
            return
        channel.close()
        self._log.warning("control_lost", reason=str(error))

    def _receive(self, message: m.Message, body: bytes) -> None:
        self._link.received(message)
        match message:
            case m.Offer():
                self._take_offer(message)
            case m.ManifestPart():
                self._take_manifest_part(message, body)
            case m.Withdrawn():
                if self.connection_set.target is None:
                    raise RemoteProtocolError("files are withdrawn that were not offered")
                self._say_all(self._beside(lambda: self._withdraw(message)))
            case m.Finish():
                self._take_finish(message)
            case m.Progress():
                self.counters.peer_stages = message.stage_microseconds or self.counters.peer_stages
                self.liveness.heard(message)
            case m.Abort():
                raise Aborted(message.code, message.reason)
            case _:
                pass  # the session table lets nothing else through

    def _take_offer(self, offer: m.Offer) -> None:
        if self._offer is not None and offer != self._offer:
            raise RemoteProtocolError("the transfer is offered again, otherwise than before")
        features.check_named(self._features, offer)
        self._offer = offer
        if self.connection_set.target is not None:
            self.connection_set.target.rejoin()
        self.counters.chunk_size = offer.chunk_size

    def _take_manifest_part(self, part: m.ManifestPart, body: bytes) -> None:
        """Claim what is offered, the first time; answer what is needed and what is held, every time."""
        self.liveness.listed(part)
        features.check_named(self._features, part)
        if self.connection_set.target is None:
            self._say_all(self._beside(lambda: self._begin_cargo(part)))
            self._was_offered = True
        if self.complete is None:
            self.counters.phase = "moving"
        for answer in self._beside(lambda: self._claimed_target.take_part(part, body)):
            if self.complete is None:
                self._link.say(answer)
        if self.complete is not None and part.last:
            self._say_complete(self.complete)

    def _begin_cargo(self, part: m.ManifestPart) -> Iterable[m.Message]:
        """Claim what is offered; let it go again where the transfer ended while the disk was slow."""
        try:
            target = self._claim(part)
        except BaseException:
            if self._over.is_set():
                self._registry.leave(self, cleanly=True)
            raise
        with self._claiming:
            if not self._over.is_set():
                self.connection_set.target = target
                return ()
        target.stop_writes()
        target.close(cleanly=True)
        self._registry.leave(self, cleanly=True)
        return ()

    def _claim(self, part: m.ManifestPart) -> Target:
        """Take what is offered from the registry. Raises TransferFailed, RemoteProtocolError."""
        assert self._offer is not None  # the session table has an Offer before the first ManifestPart
        if part.first_file_id:
            raise TransferFailed(Code.UNKNOWN_TRANSFER, "the beginning of the manifest is not known here: begin again")
        is_single = len(part.entries) == 1 and part.last and part.entries[0].type is m.EntryType.FILE
        entry = part.entries[0] if len(part.entries) == 1 and part.last else None
        is_one = entry is not None and b"/" not in entry.path
        if self._offer.shard is not None and not (is_single and is_one):
            raise RemoteProtocolError("a shard is a share of one file, which has no directory, and of nothing else")
        stdout = self._claim_stdout(is_one=is_one)
        if entry is not None and is_one and (stdout is not None or entry.type is m.EntryType.STREAM):
            return self._pass_on(stdout, entry, self._offer.chunk_size)
        if entry is not None and is_one and is_single:
            file_share = self._file_share(entry, Grid(entry.size, self._offer.chunk_size))
            return FileTarget(entry, file_share, self.counters, self._rehasher, self._log)
        return self._plant(self._offer, part)

    def _plant(self, offer: m.Offer, part: m.ManifestPart) -> Target:
        from receiver.tree.tree_target import TreeTarget

        first = part.entries[0].path if part.entries else b""  # the contents of an empty directory
        if part.entries:
            check_path(first)
        root = first.partition(b"/")[0]
        return TreeTarget(
            offer,
            self._claim_root(root),
            root=root,
            account=self.account,
            counters=self.counters,
            rehasher=self._rehasher,
            failed=self.end_soon,
            nudge=lambda: self.post_now(Nudged()),
            log=self._log,
        )

    def _claim_root(self, name: bytes) -> TopLevelNames:
        try:
            return self._registry.claim_root(self, name)
        except TransferFailed as error:
            self._was_offered = error.code not in COMES_AGAIN
            raise

    def _claim_stdout(self, *, is_one: bool) -> OpenFile | None:
        """Claim what is written in order, if that is where things go. Raises TransferFailed (POLICY, BUSY)."""
        try:
            stdout = self._registry.claim_stdout(self)
        except TransferFailed:
            self._was_offered = False
            raise
        if stdout is not None and not is_one:
            raise TransferFailed(
                Code.POLICY,
                f"this receiver writes one file to {stdout.path}, no tree: use tar c DIR | filestreamer-sender -",
            )
        return stdout

    def _pass_on(self, stdout: OpenFile | None, entry: m.Entry, chunk_size: int) -> Target:
        """Take what comes in order: to standard output, or a stream to a file."""
        streams = entry.type is m.EntryType.STREAM
        if self._offer is not None and self._offer.shard is not None:
            raise TransferFailed(Code.POLICY, "standard output is not put together from shards")
        if not (streams or entry.type is m.EntryType.FILE):
            raise TransferFailed(Code.POLICY, "standard output takes a plain file, or a stream")
        if streams and entry.size:
            raise RemoteProtocolError("a stream has no size before its end")
        window_bytes = self._borrow_window(chunk_size)
        file_share: FileShare | None = None
        target: OrderedWriter | None = stdout
        if target is None:
            file_share = self._file_share(entry, Grid(0, chunk_size))
            target = StagedWriter(file_share.content)
        output = ReorderBuffer(target, None if streams else entry.size, chunk_size, window_bytes, entry.holes)
        output.start(lambda error: self.post(Failed(error)))
        return PipeTarget(entry, output, file_share, self.counters, self._log)

    def _borrow_window(self, chunk_size: int) -> int:
        try:
            window_bytes, self._window_cost = borrow_window(self.account, chunk_size, self._window_bytes)
        except TransferFailed as error:
            self._was_offered = error.code not in COMES_AGAIN
            raise
        return window_bytes

    def _file_share(self, entry: m.Entry, grid: Grid) -> FileShare:
        if entry.type not in (m.EntryType.FILE, m.EntryType.STREAM) or entry.xattrs:
            raise TransferFailed(Code.POLICY, "this receiver takes plain files, not yet directories, links and xattrs")
        share = Share(*self._offer.shard) if self._offer and self._offer.shard else WHOLE
        if entry.holes and share.count > 1:
            raise TransferFailed(Code.POLICY, "a shard is sent without holes")
        if grid.segments > limits.CHUNKS_PER_FILE:
            raise RemoteProtocolError(f"{grid.segments} chunks are too many: the limit is {limits.CHUNKS_PER_FILE}")
        try:
            return self._registry.claim(self, entry, grid, share)
        except TransferFailed as error:
            self._was_offered = error.code not in COMES_AGAIN
            raise

    @property
    def _claimed_target(self) -> Target:
        """What is received: the session table has a ManifestPart before whatever asks."""
        assert self.connection_set.target is not None
        return self.connection_set.target

    def _take_rehashed(self, batch: Rehashed | FinalsRehashed) -> None:
        """Answer what was claimed, now that it is known what is on the disk."""
        for answer in self._beside(lambda: self._claimed_target.take_rehashed(batch)):
            # In the state "offer", control is being opened anew: the manifest is answered again.
            if not self._is_finishing and self._link.state != "offer":
                self._link.say(answer)
        if self._is_finishing:
            self._go_on()

    def _take_finish(self, finish: m.Finish) -> None:
        """Every chunk is here, the sender says: commit, or say what is missing."""
        if self._is_finishing:
            return  # Complete was said, or follows
        self.counters.hear_left_out(finish)
        is_missing = False
        for answer in self._beside(self._claimed_target.missing):
            is_missing = is_missing or isinstance(answer, m.Needed)
            self._link.say(answer)
        if is_missing:
            return
        self._say_all(self._beside(lambda: self._close(finish)))
        self._is_finishing = True
        self.liveness.finishing_at = time.monotonic()
        self.counters.phase = "syncing"
        self._go_on()

    def _withdraw(self, message: m.Withdrawn) -> Iterable[m.Message]:
        self._claimed_target.withdraw(message.file_ids)
        return ()

    def _close(self, finish: m.Finish) -> Iterable[m.Message]:
        self.root_digest = self._claimed_target.finish(finish)
        return ()

    def _go_on(self) -> None:
        """Do what comes next on the way to Complete; what waits for the disk in a thread.

        The coordinator goes on saying that this side lives.
        """
        if self._syncer is not None or self.complete is not None:
            return
        step = self._claimed_target.next_step()
        if isinstance(step, m.Complete):
            self._complete(step)
        elif step is not None:
            syncer = threading.Thread(target=self._sync, args=(step,), name="sync", daemon=True)
            try:
                start_thread(syncer, "the sync")
            except TransferFailed:  # then this one waits for the disk, and says nothing meanwhile
                self._sync_here(step)
            else:
                self._syncer = syncer

    def _sync_here(self, work: Callable[[], None]) -> None:
        if error := run_to_end("sync", work):
            raise error
        self.post_now(Synced())

    def _sync(self, work: Callable[[], None]) -> None:
        error = run_to_end("sync", work)
        self.post(Failed(error) if error else Synced())

    def _take_synced(self) -> None:
        if self._syncer is not None:
            self._syncer.join()
            self._syncer = None
        self._go_on()

    def _complete(self, complete: m.Complete) -> None:
        self.complete = complete
        self._completed_at = time.monotonic()
        self.counters.phase = "complete"
        self.counters.ended_at = self._completed_at
        self.account.give_back(self._window_cost)
        if complete.committed:
            self._registry.release(self)
        if self._link.channel is not None and self._link.state in ("moving", "finishing"):
            self._say_complete(complete)

    def _say_complete(self, complete: m.Complete) -> None:
        self._link.say(self.counters.heartbeat())
        if self._link.say(complete):
            self._told = self._link.channel

    def _say_all(self, messages: Iterable[m.Message]) -> None:
        for message in messages:
            self._link.say(message)

    # --- the clock

    def peer_is_silent(self) -> bool:
        """Whether the sender said nothing, on any connection, for longer than the living do."""
        channel = self._link.channel
        heard_at = max(self._heard_at, self.connection_set.heard_at(), channel.heard_at if channel is not None else 0.0)
        return time.monotonic() - heard_at > limits.DEAD_SECONDS

    @property
    def is_orphaned(self) -> bool:
        """Whether the sender has no connection left, or is silent: another one may take its place."""
        return not self.is_complete and (not self._is_connected or self.peer_is_silent())

    @property
    def may_be_let_go(self) -> bool:
        """Whether its sender is gone, for longer than it takes to connect anew, and can resume it."""
        is_gone = self.is_orphaned and time.monotonic() - self.connected_at > limits.OPENING_SECONDS
        return is_gone and not self.has_passed_on

    @property
    def yields(self) -> bool:
        """Whether a newer sender need not wait for this one."""
        return self.is_complete or self._over.is_set() or self.is_orphaned or self.is_stalled

    @property
    def is_stalled(self) -> bool:
        """Whether it has made no progress for so long that it gives way to others."""
        return not self.is_complete and self.liveness.is_stalled

    @property
    def has_offered_nothing(self) -> bool:
        """Whether its sender had time to offer something, and has not."""
        return not self.liveness.has_listed and time.monotonic() - self._started_at > limits.OPENING_SECONDS

    @property
    def is_ending(self) -> bool:
        """Whether it was told to end, or does."""
        return self._ending is not None or self._over.is_set()

    @property
    def hangs(self) -> str | None:
        """Why it still has its name though it has ended: a thread of it waits for a disk. None where none does."""
        is_left_behind = self._is_left_behind and self._leaver is not None and self._leaver.is_alive()
        told_seconds = time.monotonic() - self._told_at
        is_deaf = self.is_alive() and not self.is_complete and told_seconds > LEAVE_SECONDS + FENCE_SECONDS
        if not is_left_behind and not is_deaf:
            return None
        what = "the sync" if self._syncer is not None and self._syncer.is_alive() else "a write"
        return f"{what} of an earlier transfer hangs in {self.counters.name}: look at the disk; it is free after that"

    @property
    def _is_connected(self) -> bool:
        return self._link.channel is not None or self.connection_set.is_connected

    def _tick(self) -> None:
        now = time.monotonic()
        if not self.is_complete:
            self.liveness.tick(now, is_connected=self._is_connected)
        if not self.is_complete and self._link.is_heartbeat_due(now):
            self._link.say(self.counters.heartbeat())
        if self._is_connected or self.is_complete:
            self.connected_at = now
        elif now - self.connected_at > self._give_up_after:
            self._give_up("the sender did not come back within")
        if (
            self.connection_set.target is None
            and not self._disk_worker.is_busy
            and now - self._started_at > limits.DEAD_SECONDS
        ):
            raise TransferFailed(Code.TIMEOUT, f"the sender offered nothing within {limits.DEAD_SECONDS:g} s")
        if not self.is_complete and self.liveness.spent_seconds(now, self._give_up_after) > self._give_up_after:
            self._give_up("the sync did not end within" if self._is_finishing else "there was no progress for")

    def _give_up(self, what: str) -> None:
        kept = (
            "what came can't be resumed" if isinstance(self.connection_set.target, PipeTarget) else "what came is kept"
        )
        raise TransferFailed(Code.TIMEOUT, f"{what} {self._give_up_after:g} s; {kept}")

    # --- what the data connections call

    def left(self, connection: DataConnection, error: FilestreamerError | None) -> None:
        """Hear why a data connection ended; a failure that is not the connection's own ends the transfer."""
        self.liveness.has_lost = True
        if isinstance(error, TransferFailed) or (error is not None and not error.retryable):
            self.post(Failed(error))
        elif isinstance(error, ConnectionClosed):
            connection.counters.is_dismissed = not self.is_complete
        elif error is not None and not self._over.is_set():
            self._log.warning("connection_lost", connection=connection.connection_id, reason=str(error))

    def note_mismatch(self, connection: DataConnection, chunk_id: int) -> None:
        """Log that a chunk arrived damaged: the first few of a connection, the result counts them all."""
        if connection.counters.resent_chunks < MISMATCHES_LOGGED:
            self._log.warning("digest_mismatch", connection=connection.connection_id, chunk=chunk_id)

    # --- the end

    def _end(self, error: FilestreamerError | None) -> None:
        """End every connection, leave every file, tell the registry: that hears of it whatever fails or hangs here."""
        channel = self._link.channel
        if error is not None and channel is not None:
            self._try("saying goodbye", lambda: self._link.say_goodbye(error))
        with self._claiming:
            self._over.set()
        self._try("leaving", self._leave_in_time)
        self._try("closing", self._close_channel)
        self.counters.ended_at = self.counters.ended_at or time.monotonic()
        self._try("giving memory back", self.account.close)
        self._try("the result", lambda: self._registry.ended(self, error))
        self._try("turning away", self._turn_away)

    def _try(self, what: str, step: Callable[[], object]) -> bool:
        """Take a step of the end, and log where it fails; whether it did not."""
        error = run_to_end(what, step)
        if error is not None:
            self._log.error("transfer_not_ended_well", reason=str(error))
        return error is None

    def _leave_in_time(self) -> None:
        """Leave the files, in a thread of its own: where one hangs on a disk, the names stay until it does not."""
        self._leaver = threading.Thread(target=self._leave, name="leave", daemon=True)
        try:
            start_thread(self._leaver, "leaving")
        except TransferFailed:
            self._leave()
            return
        self._leaver.join(max(0.0, min(LEAVE_SECONDS, self._end_by - time.monotonic())))
        self._is_left_behind = self._leaver.is_alive()
        if self._is_left_behind:
            self._log.error("transfer_hangs", reason=self.hangs)

    def _leave(self) -> None:
        """Wait until no thread is in a file, then leave them all."""
        steps: list[Callable[[], object]] = [
            self.connection_set.end,
            self._rehasher.stop,
            self._join_syncer,
            self._disk_worker.end,
        ]
        done = [self._try("leaving", step) for step in steps]
        cleanly = all(done)
        target = self.connection_set.target
        if target is not None:
            self._try("leaving what was received", lambda: target.close(cleanly=cleanly))
        self._try("leaving the name", lambda: self._registry.leave(self, cleanly=cleanly))

    def _join_syncer(self) -> None:
        if self._syncer is not None:
            self._syncer.join()

    def _close_channel(self) -> None:
        if self._link.channel is not None:
            self._link.channel.close_in_order(min(limits.CLOSING_SECONDS, self._end_by - time.monotonic()))

    def _turn_away(self) -> None:
        """Close the control connections that were let in too late to be acted on: their sender connects again."""
        with contextlib.suppress(queue.Empty):
            while True:
                event = self._mailbox.get_nowait()
                if isinstance(event, ControlUp):
                    event.channel.close()
