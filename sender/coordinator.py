"""One transfer from the sender's side: the coordinator, in the main thread, acts on one event at a time.

It alone writes to the control connection, and decides what the transfer does next. Chunks move in the threads of the
data connections; whatever concerns the whole transfer arrives here as an event, in the mailbox.
"""

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from filestreamer.process.rate_limit import RateLimit
from filestreamer.process.threads import as_failure, start_thread
from filestreamer.telemetry.counters import JobCounts, TransferCounters
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode
from filestreamer.wire.errors import (
    Aborted,
    Code,
    ConnectionClosed,
    ConnectionLost,
    FilestreamerError,
    Interrupted,
    RemoteProtocolError,
    TransferFailed,
)
from filestreamer.wire.framing import frame
from filestreamer.wire.grid import WHOLE
from filestreamer.wire.opening import random_id
from filestreamer.wire.sockets.addresses import Address
from filestreamer.wire.sockets.control_link import ControlLink
from filestreamer.wire.sockets.route import Route
from filestreamer.wire.sockets.transport import Channel, Deadline
from filestreamer.wire.tree_shares import TreeShares
from sender.declined import DeclinedEntries
from sender.dispatch.answers import Answers
from sender.dispatch.manifest import FoundZeros, Manifest, Withdrew
from sender.dispatch.parallelism import Parallelism
from sender.dispatch.part import StreamPart
from sender.dispatch.schedule import Schedule
from sender.dispatch.send_queue import PartDone, SendQueue
from sender.dispatch.verify import Compared, Settled, Verifier
from sender.listing.deletion import find_deletion
from sender.listing.files_from import PathList
from sender.listing.listing import Listed, ListedAgain, ListingThread
from sender.listing.skipped_entries import SkippedEntries
from sender.liveness import Liveness
from sender.mailbox import Event, Failed, Mailbox, Signalled
from sender.network.accepted import Accepted
from sender.network.black_hole import BlackHoleFinder
from sender.network.connections import DataConnections
from sender.network.connector import Connector
from sender.network.control import MAILBOX_FRAMES, Connected, ControlDown, ControlReader, ControlUp, Received
from sender.network.control_state import ControlState
from sender.network.dial import Dialer
from sender.network.peer import Peer
from sender.network.shared import Shared
from sender.offer import check_complete, check_shard, make_offer, needed_features
from sender.second_tries import SecondTries
from sender.settings import SenderSettings
from sender.source.chunk_size import choose_chunk_size
from sender.source.item import Item, look_in_place
from sender.source.known_digests import KnownDigests
from sender.withdrawals import Withdrawals
from sender.zeros import Zeros

TICK_SECONDS: Final = 0.1
GOODBYE_SECONDS: Final = 2.0
"""How long it may take to tell the receiver why the transfer ends."""


class Served(NamedTuple):
    """What a transfer has where the receiver has dialled."""

    accepted: Accepted
    transfer_id: bytes
    digests: KnownDigests
    """Those of what this process has sent, to any receiver."""
    listed: PathList | None = None
    """The paths of --files-from, if there are any."""
    rate_limit: RateLimit | None = None
    """That of all transfers of this process."""


class Grown(Event):
    """A stream has chunks for more connections than are running."""


class BeginAgain(Exception):
    """The receiver no longer knows a tree, some parts of which were dropped here: a new transfer sends the rest."""


class Transfer:
    """Sends what the settings name. Make it, and `run` it once; any thread may read `counters`."""

    has_said_why = False
    """Whether the receiver was told why the transfer has failed."""
    _is_interrupted = False
    _tick_at = 0.0  # when to look after the clock next (monotonic)
    _thread_id = 0  # of the thread that runs this transfer
    _is_walked = False  # whether the walk has ended: what is listed after it is tried again
    _committed: bool | None = None  # the `committed` of Complete
    _early: tuple[Channel | None, tuple[m.Message, ...]] = (None, ())  # what was sent before Welcome, and where
    _was_finished = False  # whether Finish was sent
    _is_answered = False  # whether this incarnation of the receiver has answered something of the offer
    _wanted_told: int | None = None  # how many data connections a receiver that has dialled was told to have open

    def __init__(
        self,
        settings: SenderSettings,
        log: Any,
        before: "Transfer | None" = None,
        route: Route | None = None,
        served: Served | None = None,
    ) -> None:
        """Look at the paths to send. `before` is the transfer that this one continues (BeginAgain).

        `route` leads to the receiver; None: that to --to. `served` is what it has where the receiver has dialled.

        Raises TransferFailed(SOURCE) if a path that the user names is missing or can't be read, UsageError.
        """
        self._settings, self._route = settings, route
        self._log = log
        self.mailbox = Mailbox()
        self.counters = TransferCounters(
            served.transfer_id if served is not None else random_id(),
            settings.name,
            m.SENDER_STAGES,
            files=0,
            tolerated=settings.tolerated,
        )
        self.root_digest: bytes | None = None
        self.on_few_threads: Callable[[], None] = before.on_few_threads if before is not None else _do_nothing
        """Called if a thread that the transfer needs can't be started: the caller may stop another thread for it."""
        self._reached: tuple[Address, bytes] | None = None  # where control was last, and the incarnation there

        self._skipped = SkippedEntries(self.counters, log)
        self._deletion = find_deletion(settings)
        self._listing: ListingThread = self._make_listing(before, served)
        self._is_tree = self._listing.single is None
        self._manifest = _begin_manifest(settings, self._listing.single)
        share = settings.shard if self._manifest.shares is None else WHOLE  # each file of a tree has its own share
        parallelism = Parallelism(settings.connections, rate_limit=settings.rate_limit)
        schedule = Schedule(parallelism.connections, shard_count=share.count, strict_modulo=settings.strict_modulo)
        self._queue = SendQueue(self._manifest, schedule, self.mailbox, share, is_tree=self._is_tree)
        self.counters.chunk_size, self.counters.chunk_map = self._manifest.chunk_size, self._queue.states.chunk_map

        self._control_state = ControlState(was_open=before is not None)
        self._served = served
        self._connector: Connector = self._make_connector(before, route)
        self._peer: Peer = Peer(log, before._peer.last_trouble if before is not None else None)
        self._rate_limit = RateLimit(settings.rate_limit) if settings.rate_limit and served is None else None
        digests = served.digests if served is not None else None
        self._verifier = Verifier(self._manifest, self._queue, self.counters, self.mailbox, digests)
        shared = Shared(
            self._manifest,
            self._queue,
            self._connector,
            self._peer,
            self.mailbox,
            self._rate_limit if served is None else served.rate_limit,
            log,
            self._verifier,
            digests,
        )
        self._connections = DataConnections(shared, self.counters, parallelism, self._control_state)
        self._black_hole = BlackHoleFinder(self._connections, self._connector.path_mtu, log)
        self._link = ControlLink(
            "sender", MAILBOX_FRAMES, threading.Event(), "receiver" if served is None else "sender"
        )
        self._liveness: Liveness = Liveness(
            counters=self.counters,
            manifest=self._manifest,
            queue=self._queue,
            connections=self._connections,
            link=self._link,
            connector=self._connector,
            peer=self._peer,
            patience=settings.patience,
            before=before._liveness if before is not None else None,
            job=settings.job if served is None else None,
        )
        pause_seconds = self._liveness.backoff.next() if before is not None else 0.0
        self._reader = ControlReader(self._connector, self._link, self.mailbox, self._verifier.is_behind, pause_seconds)
        self._answers = Answers(self._manifest, self._queue, self._verifier, self.counters)
        self._zeros = Zeros(self._manifest, self._queue, self.counters, self._link)
        self._second_tries = SecondTries(self._listing, self._skipped)
        self._withdrawals = Withdrawals(
            self._manifest, self._answers, self._zeros, self._second_tries, link=self._link, mailbox=self.mailbox
        )
        self._declined = DeclinedEntries(
            self._manifest, self._queue, self._withdrawals, self._skipped, self.counters, is_tree=self._is_tree
        )
        self._take_single()

    def _make_listing(self, before: "Transfer | None", served: Served | None) -> ListingThread:
        listed = served.listed if served is not None else None
        if before is not None:
            listed = before._listing.listed
        return ListingThread(self._settings, self.mailbox, self._skipped, listed)

    def _make_connector(self, before: "Transfer | None", route: Route | None) -> Connector:
        """Return where the connections come from. Raises as the constructor."""
        if self._served is not None:
            self._served.accepted.begin(self._control_state)
            return self._served.accepted
        return Dialer(
            self._settings,
            self.counters.transfer_id,
            self._control_state,
            needed_features(self._settings, self._listing.single),
            self._log,
            path_mtu=before._connector.path_mtu if before is not None else None,
            route=route,
        )

    def _take_single(self) -> None:
        """Add the only file, or the stream, if what is sent is no tree."""
        if self._listing.single is not None:
            self.counters.is_growing = self._listing.single.stream is not None
            self._take_listed([self._listing.single], last=True)

    def again(self, served: Served | None = None) -> "Transfer":
        """Return the transfer that continues this one, after `run` raised BeginAgain. Raises as the constructor.

        `served` is what that one has where the receiver has dialled.
        """
        return Transfer(self._settings, self._log, self, self._route, served)

    @property
    def is_connected(self) -> bool:
        """Whether the control connection is up."""
        return self._link.channel is not None

    def interrupt(self, signal_number: int) -> None:
        """End the transfer soon, even if the receiver reads nothing. For a signal handler."""
        self._is_interrupted = self._link.is_hurried = True
        self.mailbox.post(Signalled(signal_number))

    def run(self) -> bool:
        """Send everything; return whether the receiver has committed it (False: a shard, which waits for the others).

        Raises the FilestreamerError that ended the transfer, or BeginAgain.
        """
        self._thread_id = threading.get_ident()
        try:
            self._start_thread(self._reader, "the control connection")
            if self._is_tree:
                self._start_thread(self._listing, "the walk")
            while self._committed is None:
                event = self.mailbox.take(TICK_SECONDS)
                if event is not None:
                    self._act(event)
                    self._start_connections()
                self._tick()
            self.counters.phase = "complete"
            self._black_hole.is_over()
            self._queue.complete()
            return self._committed
        except BeginAgain:
            self._queue.fail(ConnectionLost("the transfer begins again"))
            self._say_goodbye(TransferFailed(Code.SUPERSEDED, "the sender begins this transfer again"))
            raise
        except Exception as error:
            failure = as_failure("sending", error)
            self._second_tries.give_up()
            self._queue.fail(failure)
            self._say_goodbye(failure)
            raise failure from error
        finally:
            self.counters.ended_at = time.monotonic()
            self._stop_threads()

    def _start_thread(self, thread: threading.Thread, what: str) -> None:
        """Start a thread that the transfer needs. Raises TransferFailed(LIMIT)."""
        try:
            start_thread(thread, what)
        except TransferFailed:
            self.on_few_threads()
            start_thread(thread, what)

    # --- events

    def _act(self, event: Event) -> None:
        match event:
            case Received(body, channel):
                self._link.acted()
                if channel is self._link.channel:
                    self._receive(decode(body))
            case Connected(address, rtt_seconds, early):
                self._let_data_connect(address, rtt_seconds)
                if early is not None and self._reached is None:
                    self._offer_early(early)
            case ControlUp(channel, address, incarnation):
                self._offer(channel, address, incarnation)
            case ControlDown(error):
                self._control_state.lost()
                if self._link.channel is not None or not isinstance(error, ConnectionClosed):
                    self._lose_control(error)
            case Failed(error):
                raise error
            case Signalled(signal_number):
                raise Interrupted(signal_number)
            case _:
                self._take_news(event)
                self._go_on()

    def _take_news(self, event: Event) -> None:
        """Handle an event of a thread that lists, reads or compares the source."""
        match event:
            case Listed(items, last):
                self._is_walked = self._is_walked or last
                if items:
                    self._take_listed(items, last=last and self._is_alone(items))
            case ListedAgain():
                self._second_tries.take_listed(event)
            case Compared():
                self._answers.compared(event)
            case Withdrew():
                self._withdrawals.take(event)
            case FoundZeros():
                self._zeros.take(event)
            case PartDone() | Grown() | Settled():
                pass  # `_go_on` and `_start_connections` act on it after each event
            case _:
                raise AssertionError(event)

    def _take_listed(self, items: list[Item], *, last: bool) -> None:
        """Add another part to the manifest, and to the queue."""
        part = self._manifest.add(items, last=last)
        self._queue.extend(part)
        counters, share = self.counters, self._queue.share
        types = [item.entry.type for item in items]
        counters.files += types.count(m.EntryType.FILE) + types.count(m.EntryType.STREAM)
        counters.size_bytes += share.bytes_of(part.grid(0)) if share.count > 1 else part.bytes
        counters.chunks = self._queue.states.chunks - self._queue.states.others
        self._withdrawals.withdraw_links(part)

    def _is_alone(self, items: list[Item]) -> bool:
        """Whether these are all entries, and what the protocol calls no tree: nothing is tried again then.

        A directory that is mirrored is a tree, also where there is a single file in it.
        """
        is_alone = not self._manifest.files and len(items) == 1 and items[0].entry.is_no_tree
        return is_alone and self._deletion is None and self._manifest.shares is None

    def _list_last(self) -> None:
        """Add the last part of a tree, without entries, when all others are done and nothing is to be tried again."""
        if not self._is_walked or self._manifest.is_listed:
            return
        is_rest_done = self._queue.is_drained and self._manifest.withdrawn.is_all_taken
        if is_rest_done and self._second_tries.go_on():
            self._take_listed([], last=True)

    def _take_stream_chunk(self) -> None:
        """Queue the chunks of a stream that were read since the last call.

        The thread that reads the stream calls this itself, so that chunks do not wait for the coordinator.
        """
        part, stream = self._manifest.parts[0], self._manifest.stream
        assert isinstance(part, StreamPart)
        assert stream is not None
        is_whole = stream.is_ended
        self.counters.size_bytes, self.counters.chunks = stream.size, stream.chunks
        self.counters.is_growing = not is_whole
        self._queue.grow(part, is_whole=is_whole)
        if len(self._connections) < self._queue.connections:
            self.mailbox.post(Grown())

    # --- the control connection

    def _let_data_connect(self, address: Address, rtt_seconds: float) -> None:
        """Let data connections connect while control is still being opened."""
        # Only the first time. Later, data connections wait for an answer on control, so that a receiver that refuses
        # control need not refuse N data connections, too.
        if not self._control_state.was_open:
            self._control_state.connected(address)
            self._connections.begin(rtt_seconds)

    def _offer_early(self, channel: Channel) -> None:
        """Send the Offer, and a first part of the manifest if there is one, before the receiver has said Welcome."""
        messages: list[m.Message] = [self._make_offer()]
        first = next(iter(self._manifest.parts), None)
        if first is not None:
            messages += itertools.islice(first.messages, 1)
        try:
            channel.send(b"".join(map(frame, messages)))
        except ConnectionLost:
            return  # the thread that reads the connection notices, too
        self._early = (channel, tuple(messages))

    def _make_offer(self) -> m.Offer:
        return make_offer(self._settings, self._manifest.chunk_size, self._listing.single, self._deletion)

    def _offer(self, channel: Channel, address: Address, incarnation: bytes) -> None:
        """Send the Offer and the manifest on a new control connection. Raises BeginAgain."""
        if self._reached is not None and incarnation != self._reached[1]:
            self._log.warning("receiver_restarted", address=channel.peer)
            self._start_over()
        self._reached = (address, incarnation)
        if self._control_state.is_open:
            self._control_state.welcomed(address, incarnation)
        early_channel, said_early = self._early
        channel.patience = self._control_patience
        self._link.attach(channel, said_early if channel is early_channel else ())
        self._peer.opened(channel)
        self._log.info("connected", address=channel.peer)
        self._black_hole.control_is_up()
        self._wanted_told = None
        self._tell_wanted()
        self._link.say(self._make_offer()._replace(again=self._is_answered))
        self._manifest.begin_offer()
        self._withdrawals.begin_offer()
        self._declined.begin_offer()
        self._zeros.begin_offer()
        self._go_on()

    def _go_on(self) -> None:
        """Drop parts that are done, send the next parts of the manifest, and finish after all of it."""
        self._list_last()
        self._listing.make_room(self._manifest.drop_done_parts())
        parts = self._manifest.parts
        unanswered = sum(part.is_sent and part.unanswered_chunks > 0 for part in parts)
        for part in parts:
            if self._link.state != "manifest" or unanswered >= limits.MANIFEST_PARTS_UNANSWERED:
                break
            if not part.is_sent:
                for message in part.messages:
                    self._link.say(message)
                part.is_sent, part.withdrawn_before = True, self._manifest.withdrawn.said_count
                unanswered += part.unanswered_chunks > 0
                self._withdrawals.say_again(part)
        self._zeros.tell()
        self._listing.make_room(self._manifest.drop_done_parts())
        self._finish_if_done()

    def _finish_if_done(self) -> None:
        is_done = self._queue.all_done
        if not (is_done or self._queue.all_sent) or not self._manifest.withdrawn.is_all_taken:
            return
        if self._link.channel is None or self._link.state not in ("moving", "finishing"):
            return
        if self._link.state == "moving":
            if not self._is_source_settled():
                return
            self._say_finish(ahead=not is_done)
        if is_done:
            self.counters.phase = "syncing"
            self._liveness.finish()

    def _say_finish(self, *, ahead: bool) -> None:
        """Say Finish; `ahead` of chunks that were sent, and are not acknowledged yet."""
        self.root_digest = self._queue.root_digest()
        self._was_finished = True
        self._link.say(self.counters.heartbeat())
        stream_bytes = self._manifest.stream.size if self._manifest.stream is not None else 0
        counts, left_out = self._skipped.for_finish()
        chunks = self._queue.states.chunks
        digest = self._listing.walk_digest
        self._link.say(m.Finish(chunks, self.root_digest, stream_bytes, counts, left_out, ahead, digest))

    def _is_source_settled(self) -> bool:
        """Whether nothing of the source is to be read again before Finish. Raises Unsendable if a single file changed.

        A file of a tree may change once it is in place: that is of no account.
        """
        single = self._listing.single
        if single is not None and single.identity is not None:
            self._verifier.saw(0, single, look_in_place(single))
        return self._verifier.is_settled

    def _lose_control(self, error: FilestreamerError) -> None:
        if self._link.channel is not None or str(error) != str(self._peer.last_trouble):
            self._log.warning("control_lost" if self._link.channel else "cannot_connect", reason=str(error))
        if self._link.channel is not None:
            self._peer.closed(self._link.channel)
            self._link.channel = None
        self._control_state.lost()
        self._peer.note_trouble(error)

    def _start_over(self) -> None:
        """Drop all answers and acknowledgements, as another incarnation answers anew. Raises BeginAgain."""
        self._liveness.start_over(is_tree=self._is_tree)
        if self._is_tree:
            raise BeginAgain
        for part in self._manifest.parts:
            part.forget_answers()
        self._connections.shut()
        # Before the stream goes back to its first chunk: an acknowledgement of the epoch that ends would free it again.
        self._queue.start_over()
        self._zeros.start_over()
        if self._manifest.stream is not None and not self._manifest.stream.start_over():
            raise TransferFailed(
                Code.UNKNOWN_TRANSFER,
                "the receiver no longer knows this transfer, and standard input is read only once: run the pipe again",
            )
        self._was_finished = self._is_answered = False
        self.counters.start_over()

    # --- messages of the receiver

    def _receive(self, message: m.Message) -> None:
        finishing = self._link.state == "finishing"
        self._link.received(message)
        if isinstance(message, m.Needed | m.Held | m.Zeros):
            assert self._reached is not None
            self._is_answered = True
            self._control_state.answered(*self._reached)
        match message:
            case m.Needed():
                self._take_needed(message, reopen=finishing)
            case m.Held():
                self._take_held(message)
            case m.Declined():
                self._take_declined(message)
            case m.Notice():
                self._declined.notice(message)
            case m.Zeros():
                self._zeros.take_known(message)
                self._go_on()
            case m.Progress():
                self.counters.peer_stages = message.stage_microseconds or self.counters.peer_stages
                self._peer.take_starved(message.starved)
                # A receiver that was not asked to delete anything says nothing of that.
                self._liveness.take_progress(message if self._deletion else message._replace(deleted=0))
            case m.Complete():
                self._take_complete(message)
            case m.Abort():
                self._take_abort(message)
            case _:  # Verdicts: the session allows no other message
                raise RemoteProtocolError("the receiver answers as in a dry run, and this is none")

    def _take_needed(self, message: m.Needed, *, reopen: bool) -> None:
        """Queue the needed chunks. Raises BeginAgain if a tree misses chunks after Finish (`reopen`)."""
        if message.window_bytes:
            if self._is_tree or self._queue.share.count > 1:
                raise RemoteProtocolError("the receiver tells the window of an output, which takes one whole file")
            self._queue.limit_window(message.window_bytes)
        if self._manifest.stream is not None and message.files:
            self._queue.need_stream()
            self._manifest.stream.start(self._take_stream_chunk, self.mailbox)
        if not reopen:
            for file_id in [each.first_file_id for each in message.files] + [each.file_id for each in message.segments]:
                self._manifest.take_answer(file_id)
            self._answers.need(message)
        elif self._is_tree:
            self._liveness.start_over(is_tree=True)
            raise BeginAgain
        else:
            done_before = self._queue.states.done_count
            self._zeros.uncount(0)
            self._answers.reopen(message)
            self._zeros.count_again(0)
            self._liveness.reopen(missing=done_before - self._queue.states.done_count)
        self.counters.phase = "moving"
        self._start_connections()
        self._go_on()

    def _take_held(self, message: m.Held) -> None:
        if message.unchecked and (self._settings.checksum or self._queue.share.count > 1):
            raise RemoteProtocolError("the receiver accepts files unread, but --checksum has to compare them")
        if message.files and self._queue.share.count > 1:
            raise RemoteProtocolError("the receiver answers a whole file, of which this sender has a shard")
        if message.left and self._settings.existing not in (m.Existing.SKIP, m.Existing.NEWER):
            raise RemoteProtocolError("the receiver leaves files as they are, but they are to be replaced")
        for file_id in [each.first_file_id for each in message.files] or [message.file_id]:
            self._manifest.take_answer(file_id)
        self._answers.hold(message)
        self.counters.phase = "moving"
        self._go_on()

    def _take_declined(self, message: m.Declined) -> None:
        self._declined.take(message)
        self._start_connections()
        self._go_on()

    def _take_complete(self, message: m.Complete) -> None:
        if not message.committed and self._settings.shard.count == 1:
            raise RemoteProtocolError("the receiver does not commit the file, which has no other shards")
        if not self._was_finished:
            raise RemoteProtocolError("the receiver sent Complete before all chunks were sent")
        check_complete(self._make_offer(), message)
        counters = self.counters
        counters.deleted_files, counters.undeletable_files = message.deleted, message.undeletable
        counters.left_files = message.left
        if self._manifest.shares is not None:
            counters.job = JobCounts(
                self._settings.job or "",
                str(self._settings.shard),
                message.shards_finished,
                message.job_files,
                message.job_bytes,
            )
        self._committed = message.committed

    def _take_abort(self, message: m.Abort) -> None:
        error = Aborted(message.code, message.reason)
        if not error.retryable:
            raise error
        self._lose_control(error)
        self._connector.shut_all()
        self._start_over()  # a receiver that has aborted a transfer no longer knows it

    # --- the clock

    def _control_patience(self) -> None:
        """Give up reading or writing the control connection in time. For both threads that use it.

        While a frame can't be written, this thread has no ticks.
        """
        self._link.check()
        if threading.get_ident() == self._thread_id:
            now = time.monotonic()
            self._liveness.note_progress(now)
            self._black_hole.look(self._link.channel, self._peer.heard_at)
            self._liveness.check(now)

    def _tick(self) -> None:
        """Look after the clock: however many events come, a few times a second."""
        now = time.monotonic()
        if now < self._tick_at:
            return
        self._tick_at = now + TICK_SECONDS / 2
        self.counters.passed_over_files = self._listing.passed_over
        if self._link.is_heartbeat_due(now):
            self._link.say(self.counters.heartbeat())
        self._liveness.note_progress(now)
        channel = self._link.channel
        if channel is not None and not self._peer.is_heard():
            # Their threads notice the shutdown, and connect again.
            self._peer.note_trouble(ConnectionLost(f"{channel.peer} was silent for {limits.DEAD_SECONDS:.0f} s"))
            self._connector.path_mtu.fell_silent(channel.socket)
            self._connector.shut_all()
        self._black_hole.look(channel, self._peer.heard_at)
        self._connections.tend(now)
        self._start_connections()
        self._liveness.check(now)

    def _start_connections(self) -> None:
        if not self._connections.start():
            self.on_few_threads()
        self._tell_wanted()

    def _tell_wanted(self) -> None:
        """Tell a receiver that has dialled how many data connections it is to have open, where that has changed."""
        if self._served is None or self._link.channel is None or self._committed is not None:
            return
        wanted = self._connections.wanted
        if wanted != self._wanted_told:
            self._link.say(m.Connections(wanted))
            self._wanted_told = wanted

    # --- the end

    def _say_goodbye(self, error: FilestreamerError) -> None:
        """Send the last Progress (the stages) and Abort with the reason, if the socket takes them at once."""
        self.has_said_why = self._link.channel is not None
        if self._link.channel is not None:
            self._link.channel.patience = Deadline(GOODBYE_SECONDS, "to say goodbye")
        self._link.say_goodbye(error, self.counters.heartbeat())

    def _stop_threads(self) -> None:
        """Stop every thread; if the transfer is complete, close the connections in order."""
        self._control_state.close()
        if self._rate_limit is not None:
            self._rate_limit.close()
        self._listing.stop()
        if self._manifest.stream is not None:
            self._manifest.stream.stop()
        self._verifier.stop()
        control = [self._link.channel.socket] if self._link.channel is not None else []
        if self._committed is None:
            self._connector.close(keep=control)
        else:
            # Complete is the last that the receiver says: there is no end of stream to wait for, nor a connection that
            # is still being opened. Acknowledgements may come behind it.
            self._reader.begin_stop(self._link.channel)
            self._connector.close(keep=[*control, *self._connections.sockets()])
        deadline = time.monotonic() + (GOODBYE_SECONDS if self._is_interrupted else limits.CLOSING_SECONDS)
        self._connections.join(deadline)
        if self._committed is None:
            self._reader.stop(self._link.channel, max(0.0, deadline - time.monotonic()))
        self._connector.close()


def _begin_manifest(settings: SenderSettings, single: Item | None) -> Manifest:
    """Return a manifest without parts. Raises UsageError."""
    check_shard(settings, single)
    chunk_size = choose_chunk_size(settings, single)
    if single is not None or settings.shard.count == 1:
        return Manifest(chunk_size)
    return Manifest(chunk_size, TreeShares(settings.shard, chunk_size, checksum=settings.checksum))


def _do_nothing() -> None:
    pass
