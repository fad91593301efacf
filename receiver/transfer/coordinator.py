"""The conversation of one transfer with its sender: the coordinator acts on one event at a time.

    ControlUp            a control connection is let in; a thread reads it (`ControlLink`)
    Offer, ManifestPart  the target is opened (`target_opener`); each part is answered with what is needed and held
    Rehashed             claimed chunks are answered
    Finish               the missing chunks are answered, or everything is committed, step by step (`syncer`); one that
                         came ahead of chunks waits for these
    Complete             the transfer is kept for a while, to send Complete again if the sender did not get it
    an error             ends the transfer

The coordinator alone writes to the control connection. What may wait for a disk is done by the `disk_worker`, while the
coordinator sends heartbeats.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from filestreamer.process.log import printable
from filestreamer.process.threads import run_to_end, start_thread
from filestreamer.telemetry.counters import Skipped
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
from filestreamer.wire.sockets.transport import Channel
from filestreamer.wire.xattr_parts import PartJoiner
from receiver.file.file_target import FileTarget
from receiver.file.rehash import FinalsRehashed, Rehashed
from receiver.file.target import Target
from receiver.pipe.pipe_target import PipeTarget
from receiver.transfer.black_hole import BlackHoleFinder
from receiver.transfer.context import Context
from receiver.transfer.disk_worker import Done
from receiver.transfer.ending import Ending
from receiver.transfer.mailbox import ControlDown, ControlUp, Event, Nudged, Received, Synced
from receiver.transfer.target_opener import TargetOpener

TICK_SECONDS: Final = 1.0
COMPLETE_SECONDS: Final = 60.0
"""How long a complete transfer is kept, to send Complete again to a sender that did not get it."""
JOB_COMPLETE_SECONDS: Final = 120.0
"""The same for a transfer of a job: a cluster may have to replace the pod of the sender, perhaps on another node."""


class Coordinator:
    """Acts on the events of one transfer, in the thread of the transfer."""

    def __init__(self, context: Context, ending: Ending, opener: TargetOpener) -> None:
        self._context = context
        self._ending = ending
        self._opener = opener
        self._link = context.link
        self._black_hole = BlackHoleFinder(context.link, context.connection_set, context.liveness, context.log)
        self._counters = context.counters
        self._thread_id = 0
        self._offer: m.Offer | None = None
        self._control_reader: threading.Thread | None = None
        """The thread that reads the control connection that is open, if any."""
        self._joiner = PartJoiner()
        self._has_xattrs_memory = False
        self.opening = threading.Lock()
        """Protects opening the target: if the transfer has ended meanwhile, the target is closed again."""
        self._ahead: m.Finish | None = None
        """The Finish that came ahead of chunks, and counts when the last of them is acknowledged."""
        self._ahead_at = 0.0
        """When it came (monotonic)."""
        self._is_finishing = False
        """Whether the sender said Finish with the right root digest."""
        self.root_digest: bytes | None = None
        self.complete: m.Complete | None = None
        """The Complete to send as soon as everything is durable."""
        self._is_repeating = False
        """Whether what was reported before is told again, to a sender that has opened control anew."""
        self._completed_at = 0.0
        self._told: Channel | None = None
        """The control connection that Complete was sent over."""
        self.is_dismissed = False
        """Whether to keep the transfer no longer: the sender has Complete, or another transfer needs the place."""

    def run(self) -> None:
        """Act on events until the transfer is over. Raises what ends it before it is complete."""
        self._thread_id = threading.get_ident()
        while not self._is_done():
            event = self._context.mailbox.take(TICK_SECONDS)
            self._check_end()
            self._act(event)
            self._send_more()
            self._send_reports()
            self._finish_if_settled()
            self._tick()

    def _is_done(self) -> bool:
        """Whether the transfer is complete and need not be kept any more."""
        if self.complete is None:
            return False
        if self.is_dismissed or self._ending.is_final:
            return True
        kept_seconds = JOB_COMPLETE_SECONDS if self._context.job else COMPLETE_SECONDS
        return time.monotonic() - self._completed_at > kept_seconds

    def _check_end(self) -> None:
        """Raise the error that the transfer was asked to end with, unless the transfer is complete."""
        if self._ending.error is not None and self.complete is None:
            raise self._ending.error

    def _tick(self) -> None:
        """Check the progress and send a heartbeat, once a second. Raises TransferFailed(TIMEOUT)."""
        if self.complete is not None:
            return
        now = time.monotonic()
        liveness = self._context.liveness
        liveness.tick(now)
        self._black_hole.look(now)
        if self._link.is_heartbeat_due(now):
            connection_set, heartbeat = self._context.connection_set, self._counters.heartbeat()
            under_way_bytes, starved = connection_set.under_way_bytes(), tuple(connection_set.starved(now))
            self._link.say(heartbeat._replace(under_way_bytes=under_way_bytes, starved=starved))
        liveness.check(now, is_busy=self._context.disk_worker.is_busy)

    def _beside(self, work: Callable[[], Iterable[m.Message]]) -> Iterator[m.Message]:
        """Run `work` in the disk worker; yield its messages. Heartbeats and the clock go on meanwhile.

        Raises what the work raises, and what ends the transfer meanwhile.
        """
        worker = self._context.disk_worker
        try:
            worker.begin(work)
        except TransferFailed:
            # No thread could be started: this one waits for the disk, and sends no heartbeat meanwhile.
            yield from work()
            return
        while True:
            result = worker.next(TICK_SECONDS)
            if isinstance(result, Done):
                if result.error is not None:
                    raise result.error
                return
            if result is not None:
                yield result
            self._send_reports()
            self._check_end()
            self._tick()

    def _send_all(self, messages: Iterable[m.Message]) -> None:
        for message in messages:
            self._link.say(message)

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
                self._context.syncer.finish_step()
                self._commit_on()
            case ControlUp(channel, welcome):
                self._welcome(channel, welcome)
            case ControlDown(channel, error):
                self._lose_control(channel, error)
            case FilestreamerError():
                if self.complete is None:
                    raise event

    # --- the control connection

    def _welcome(self, channel: Channel, welcome: m.Welcome | None) -> None:
        """Let a control connection in; it takes the place of an older one."""
        if self._link.channel is not None:
            self._link.channel.shut()
        self._link.attach(channel)
        self.is_dismissed = False
        channel.patience = self._control_patience
        reader = threading.Thread(target=self._read_control, args=(channel,), name="control", daemon=True)
        try:
            start_thread(reader, "the control connection")
            self._control_reader = reader
        except TransferFailed as error:
            self._link.channel = None
            with contextlib.suppress(FilestreamerError):
                refusal = m.Abort if welcome is None else m.Refusal
                channel.send_message(refusal(error.code, error.reason))
            channel.close_in_order()
            if self._target_or_none is None:  # without a target, the sender has nothing to rejoin
                raise
            return
        try:
            if welcome is not None:
                channel.send_message(welcome)
        except ConnectionLost:
            channel.shut()

    def close_control(self, seconds: float) -> None:
        """End the control connection, now that the transfer is over, within some seconds. Never raises.

        Its reader leaves it first: a socket that is closed just before a thread reads from it may give its descriptor
        to another connection, whose bytes that thread would take.
        """
        channel, reader, until = self._link.channel, self._control_reader, time.monotonic() + seconds
        if channel is None:
            return
        channel.finish_writing()
        if reader is not None:
            reader.join(max(0.0, seconds))
            if reader.is_alive():
                channel.shut()
                reader.join(TICK_SECONDS)
        channel.close_in_order(max(0.0, until - time.monotonic()))

    def _read_control(self, channel: Channel) -> None:
        """Read a control connection until it ends. Runs in a thread of its own, which never writes."""
        post = self._context.mailbox.post

        def read() -> None:
            self._link.read(channel, lambda body: post(Received(channel, body)))

        if error := run_to_end("control connection", read):
            post(ControlDown(channel, error))

    def _control_patience(self) -> None:
        """Give up reading or writing the control connection in time. For both threads that use it.

        While a frame can't be written, the coordinator has no ticks.
        """
        self._link.check()
        if threading.get_ident() == self._thread_id and self.complete is None:
            now = time.monotonic()
            self._context.liveness.tick(now)
            self._black_hole.look(now)
            self._context.liveness.check(now, is_busy=False)
        if self._context.liveness.peer_is_silent:
            raise ConnectionLost(f"the sender was silent for {limits.DEAD_SECONDS:.0f} s")

    def _lose_control(self, channel: Channel, error: FilestreamerError) -> None:
        """Go on without control until the sender opens it again. Raises `error` if the sender can't rejoin."""
        if channel is not self._link.channel:
            channel.close()
            return
        # A close in order confirms Complete only on the channel that Complete was sent over. If a write has failed, the
        # reader may see a reset as a close in order, because the kernel reports the error only once.
        self.is_dismissed = channel is self._told and isinstance(error, ConnectionClosed)
        if not error.retryable or self._target_or_none is None:
            raise error
        if isinstance(error, RemoteProtocolError):
            self._link.say_goodbye(error)
        self._link.channel = None
        if self.is_dismissed:
            channel.close_in_order()
            return
        channel.close()
        self._context.log.warning("control_lost", reason=str(error))
        if self._context.dialling is not None:
            self._context.dialling.control_lost()

    # --- what the sender says

    def _receive(self, message: m.Message, body: bytes) -> None:
        self._link.received(message)
        match message:
            case m.Offer():
                self._take_offer(message)
            case m.ManifestPart():
                self._take_manifest_part(message, body)
            case m.Withdrawn():
                if self._target_or_none is None:
                    raise RemoteProtocolError("files were withdrawn that were not offered")
                self._send_all(self._beside(lambda: self._withdraw(message)))
            case m.Zeros():
                if self._target_or_none is None:
                    raise RemoteProtocolError("zeros were told of a file that was not offered")
                self._send_all(self._beside(lambda: self._target.take_zeros(message)))
            case m.Finish():
                self._take_finish(message)
            case m.Connections() | m.Progress():
                self._take_status(message)
            case m.Abort():
                raise Aborted(message.code, message.reason)
            case _:
                pass  # the session allows no other message

    def _take_status(self, message: m.Connections | m.Progress) -> None:
        if isinstance(message, m.Progress):
            self._counters.peer_stages = message.stage_microseconds or self._counters.peer_stages
            self._context.liveness.take_progress(message)
            return
        most = self._context.connection_set.most
        if message.wanted > most:
            raise RemoteProtocolError(f"{message.wanted} data connections are wanted, of {most} that were announced")
        if self._context.dialling is not None:  # it is: the session allows the message nowhere else
            self._context.dialling.want(message.wanted)

    def _take_offer(self, offer: m.Offer) -> None:
        if offer.again and self._offer is None:
            # Another transfer may have changed what is there since: the answers that the sender has are void.
            raise TransferFailed(Code.UNKNOWN_TRANSFER, "this receiver has ended the transfer: begin it again")
        offer = offer._replace(again=False)
        if self._offer is not None and offer != self._offer:
            raise RemoteProtocolError("the transfer was offered again with other properties")
        features.check_named(self._context.features, offer)
        if self._context.asked is not None:
            self._context.asked.check_offer(offer)
        self._offer = offer
        self._joiner.begin_again()
        if self._target_or_none is not None:
            self._target_or_none.rejoin()
            self._is_repeating = True
            self._send_all(self._beside(self._context.report.again))
            self._is_repeating = False
        self._counters.chunk_size = offer.chunk_size

    def _take_manifest_part(self, part: m.ManifestPart, body: bytes) -> None:
        """Open the target, the first time; answer what is needed and what is held, every time."""
        self._context.liveness.listed(part)
        features.check_named(self._context.features, part)
        assert self._offer is not None  # the session has an Offer before the first ManifestPart
        _check_announced(self._offer, part)
        if self._context.asked is not None:
            self._context.asked.check_entries(part.entries)
        part_or_none = self._joiner.join(part)
        if part_or_none is None:
            self._borrow_xattrs()
            return
        part = part_or_none
        if self._target_or_none is None:
            self._send_all(self._beside(lambda: self._open_target(part)))
            self._opener.was_offered = True
        if self.complete is None:
            self._counters.phase = "moving"
        for answer in self._beside(lambda: self._target.take_part(part, body)):
            if self.complete is None:
                self._link.say(answer)
        if self.complete is not None and part.last:
            self._send_complete(self.complete)

    def _borrow_xattrs(self) -> None:
        """Borrow the memory of the attributes of one entry, once for a transfer. Raises TransferFailed(LIMIT)."""
        if not self._has_xattrs_memory and not self._context.account.try_borrow(2 * limits.XATTRS_BYTES):
            raise TransferFailed(Code.LIMIT, "this receiver has no memory for extended attributes now; retrying")
        self._has_xattrs_memory = True

    def _open_target(self, part: m.ManifestPart) -> Iterable[m.Message]:
        """Open the target; close it again where the transfer has ended while the disk was slow."""
        assert self._offer is not None  # the session has an Offer before the first ManifestPart
        context = self._context
        try:
            target = self._opener.open(self._offer, part)
        except BaseException:
            if context.over.is_set():
                context.names.release(context.transfer, cleanly=True)
            raise
        with self.opening:
            if not context.over.is_set():
                context.connection_set.target = target
                return ()
        target.stop_writes()
        target.close(cleanly=True)
        context.names.release(context.transfer, cleanly=True)
        return ()

    def _withdraw(self, message: m.Withdrawn) -> Iterable[m.Message]:
        self._target.withdraw(message.file_ids)
        return ()

    @property
    def _target_or_none(self) -> Target | None:
        return self._context.connection_set.target

    @property
    def _target(self) -> Target:
        """The target, for messages that the session allows only after a ManifestPart."""
        assert self._context.connection_set.target is not None
        return self._context.connection_set.target

    def _take_rehashed(self, batch: Rehashed | FinalsRehashed) -> None:
        """Answer what was claimed, now that it is re-hashed."""
        for answer in self._beside(lambda: self._target.take_rehashed(batch)):
            # In the state "offer" the sender opens control anew: it repeats the manifest, and then gets all answers.
            if not self._is_finishing and self._link.state != "offer":
                self._link.say(answer)
        if self._is_finishing:
            self._commit_on()

    def _send_more(self) -> None:
        target = self._target_or_none
        is_asked = self.complete is None and self._link.state in ("manifest", "moving")
        if target is not None and is_asked and target.has_more:
            self._send_all(self._beside(target.more))

    def _send_reports(self) -> None:
        """Tell the sender, the log and the result what was reported. What the sender does not get is told again."""
        report = self._context.report
        # While the sender opens control anew, and while all is repeated for it, the order must be kept.
        is_told = self._link.channel is None or self._link.state in ("manifest", "moving", "finishing")
        if report.is_empty or self._is_repeating or not is_told:
            return
        for message in report.messages():
            self._note_report(message)
            self._link.say(message)

    def _note_report(self, message: m.Declined | m.Notice) -> None:
        counters, log = self._counters, self._context.log
        if isinstance(message, m.Notice):
            for text in message.texts:
                if counters.warn(text):
                    log.warning("notice", reason=text)
            return
        for entry in message.entries:
            path = printable(os.fsdecode(entry.path))
            counters.leave_out(Skipped(path, entry.reason, entry.kind, entry.path))
            write = log.error if counters.is_failure(entry.kind) else log.warning
            write("entry_skipped", path=path, kind=entry.kind.name.lower(), reason=entry.reason)

    # --- from Finish to Complete

    def _take_finish(self, finish: m.Finish) -> None:
        """Answer with what is missing; if nothing is missing, begin to commit."""
        if self._is_finishing:
            return  # a repeated Finish: Complete was sent, or will be
        assert self._offer is not None  # the session has an Offer before the first Finish
        _check_finish(self._offer, self._target, finish)
        self._counters.take_left_out(finish)
        if finish.ahead and not isinstance(self._target, FileTarget):
            raise RemoteProtocolError("Finish came ahead of chunks, which is possible for one file only")
        self._await(finish if finish.ahead else None)
        if not finish.ahead:
            self._finish(finish)

    def _await(self, finish: m.Finish | None) -> None:
        """Have a Finish wait until all chunks are acknowledged, or none."""
        self._ahead, self._ahead_at = finish, time.monotonic()
        self._context.connection_set.is_awaited = finish is not None

    def _finish_if_settled(self) -> None:
        """Act on a Finish that came ahead of chunks, once each of them is here and acknowledged."""
        finish = self._ahead
        # The order matters: a chunk that no connection has begun is missing until one has acknowledged it.
        if finish is None or any(self._target.missing()) or not self._context.connection_set.is_settled:
            return
        self._count_wait(time.monotonic() - self._ahead_at)
        self._await(None)
        self._finish(finish)

    def _count_wait(self, seconds: float) -> None:
        """Count what has passed since Finish as the sender's wait for acknowledgements.

        The sender has told its stages before Finish, and has done nothing else since.
        """
        stages, at = list(self._counters.peer_stages), m.SENDER_STAGES.index("wait_ack")
        if len(stages) > at:
            stages[at] += int(seconds * 1_000_000) * self._context.connection_set.admitted
            self._counters.peer_stages = tuple(stages)

    def _finish(self, finish: m.Finish) -> None:
        is_missing = False
        for answer in self._beside(self._target.missing):
            is_missing = is_missing or isinstance(answer, m.Needed)
            self._link.say(answer)
        if is_missing:
            return
        self._send_all(self._beside(lambda: self._finish_target(finish)))
        self._is_finishing = True
        self._context.liveness.finishing_at = time.monotonic()
        self._counters.phase = "syncing"
        self._commit_on()

    def _finish_target(self, finish: m.Finish) -> Iterable[m.Message]:
        self.root_digest = self._target.finish(finish)
        return ()

    def _commit_on(self) -> None:
        """Take the next steps on the way to Complete, unless one is being taken."""
        while not self._context.syncer.is_busy and self.complete is None:
            step = self._target.next_step()
            if isinstance(step, m.Complete):
                self._complete(step)
            elif step is None or self._context.syncer.begin(step):
                return
            else:
                self._tick()

    def _complete(self, complete: m.Complete) -> None:
        self._send_reports()  # before the last message; nothing is reported any more
        if complete.committed:
            self._send_all(self._beside(self._tell_committed))
        self.complete = complete
        self._completed_at = time.monotonic()
        self._counters.phase = "complete"
        self._counters.ended_at = self._completed_at
        self._context.account.give_back(self._opener.window_cost_bytes)
        if complete.committed:
            self._context.names.release_committed(self._context.transfer)
        if self._link.channel is not None and self._link.state in ("moving", "finishing"):
            self._send_complete(complete)

    def _tell_committed(self) -> Iterable[m.Message]:
        self._context.committed()
        return ()

    def _send_complete(self, complete: m.Complete) -> None:
        self._link.say(self._counters.heartbeat())
        if self._link.say(complete):
            self._told = self._link.channel


def _check_announced(offer: m.Offer, part: m.ManifestPart) -> None:
    """Check that entries have only what the Offer announces. Raises RemoteProtocolError."""
    if not offer.xattrs and (part.more_xattrs or any(entry.xattrs for entry in part.entries)):
        raise RemoteProtocolError("an entry has extended attributes, and the Offer does not say that they are kept")
    if offer.delete is None and m.EntryType.KEPT in {entry.type for entry in part.entries}:
        raise RemoteProtocolError("an entry is to be kept, and the Offer does not say that anything is deleted")


def _check_finish(offer: m.Offer, target: Target, finish: m.Finish) -> None:
    """Check that Finish says what belongs to a manifest of this kind, and nothing else. Raises RemoteProtocolError."""
    is_stream = isinstance(target, PipeTarget) and target.chunks.size is None
    if finish.stream_bytes and not is_stream:
        raise RemoteProtocolError("Finish has the size of a stream, and no stream was offered")
    is_tree_shard = offer.shard is not None and offer.shard.tree
    if finish.walk_digest and not is_tree_shard:
        raise RemoteProtocolError("Finish has the digest of a walk, and this is no shard of a tree")
    if is_tree_shard and not finish.walk_digest:
        raise RemoteProtocolError("a shard of a tree said Finish without the digest of its walk")
