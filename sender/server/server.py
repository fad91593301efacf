"""A sender that listens: lets receivers in, has each served in a thread of its own, and ends when its work is done."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from filestreamer.credentials import certificate
from filestreamer.listening.acceptor import HANDSHAKES, Acceptor, Listener
from filestreamer.listening.handshake import Handshake
from filestreamer.process.rate_limit import RateLimit
from filestreamer.process.threads import start_thread
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.telemetry.monitor import Monitor
from filestreamer.telemetry.report import report
from filestreamer.telemetry.result import TransferResult
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Absent, Code, ConnectionLost, FilestreamerError, Interrupted, TransferFailed
from filestreamer.wire.opening import random_id
from filestreamer.wire.receiver_dials import DialledSenderOpening, Joined
from filestreamer.wire.sockets.transport import USER_TIMEOUT_SECONDS
from sender.coordinator import Served
from sender.listing.files_from import PathList
from sender.listing.listing import ListingThread
from sender.listing.skipped_entries import SkippedEntries
from sender.mailbox import Mailbox
from sender.network.accepted import Accepted
from sender.offer import check_shard, needed_features
from sender.server.serving import Serving, abort
from sender.settings import SenderSettings
from sender.source.known_digests import KnownDigests

TICK_SECONDS: Final = 0.5
TRANSFERS: Final = 64
"""Transfers that may be under way at once."""
CONNECTIONS: Final = 1024
"""Data connections that may be open at once, over all transfers."""
END_SECONDS: Final = 5.0
"""How long all transfers together may take to end when the service does."""
TELL_SECONDS: Final = 60.0
"""How long a receiver is waited for that is to be told that nothing comes: it may start at the same moment."""


class Server:
    """Sends what the settings name to each receiver that connects, until `stop`, or until its work is done."""

    def __init__(
        self,
        settings: SenderSettings,
        monitor: Monitor,
        *,
        listeners: list[Listener],
        token: Callable[[], str],
        tls: certificate.Current,
        log: Any,
    ) -> None:
        """Look at the paths to send. `token` returns what receivers have to prove now, `tls` what is shown to them.

        Raises TransferFailed(SOURCE) if a path that the user names is missing or can't be read, UsageError. With --once
        and a job it is the receiver that is told first, and then `run` that ends so.
        """
        self._settings = settings
        self._is_run = settings.job is not None and (settings.once or settings.reads_stdin)
        """Whether the work is one transfer of a job: then this sender and its receiver end with each other."""
        self._monitor = monitor
        self._token = token
        self._log = log
        self.on_few_threads: Callable[[], None] = lambda: None
        """Called if a thread that a transfer needs can't be started: the caller may stop another thread for it."""
        self._untold: TransferFailed | None = None
        """Why nothing can be sent, which the receiver of the job is to be told."""
        self._listed: PathList | None = None
        self._needs: tuple[str, ...] = ()
        try:
            self._look()
        except TransferFailed as error:
            if not self._ends_for_good(error):
                raise
            self._untold = error.with_traceback(None)
            log.warning(
                "ends_for_good", reason=str(error), hint=f"waits {TELL_SECONDS:g} s for its receiver, to tell it"
            )
        self._most_transfers = min(TRANSFERS, CONNECTIONS // (settings.connections or limits.CONNECTIONS_AUTO // 4))
        """Each connection is a thread; few transfers that choose the number of their connections use a lot of them."""
        self._digests = KnownDigests()
        self._rate_limit = RateLimit(settings.rate_limit) if settings.rate_limit else None
        self._acceptor = Acceptor(
            listeners, HANDSHAKES, opening=self._make_opening, tls=tls, refused=monitor.refused, log=log
        )
        self._mailbox: queue.SimpleQueue[FilestreamerError | None] = queue.SimpleQueue()
        """How `run` has to end, from `stop`: the error to raise, or None."""
        self._busy_at = time.monotonic()
        self._lock = threading.Lock()  # protects the fields below
        self._servings: dict[bytes, Serving] = {}  # by the incarnation of the receiver
        self._reader: bytes | None = None  # the receiver of standard input
        self._failure_code: int | None = None  # the exit code of a transfer that has ended this run for good
        self._exit_code = 0

    def _look(self) -> None:
        """Look at the paths to send. Raises as the constructor."""
        looked = TransferCounters(b"", self._settings.name, files=0)
        listing = ListingThread(self._settings, Mailbox(), SkippedEntries(looked, self._log))
        self._listed = listing.listed
        check_shard(self._settings, listing.single)
        self._needs = needed_features(self._settings, listing.single)

    def _ends_for_good(self, error: FilestreamerError | None) -> bool:
        """Whether no receiver of the one transfer of a job will get it: trying again does not change this error."""
        return self._is_run and error is not None and error.ends_job

    def stop(self, error: FilestreamerError | None) -> None:
        """Make `run` raise this error, or return if it is None. For any thread and signal handler."""
        self._mailbox.put(error)
        self._acceptor.wake()

    @property
    def is_connected(self) -> bool:
        """Whether any receiver has a connection."""
        with self._lock:
            return any(each.is_connected for each in self._servings.values())

    def counters(self) -> list[TransferCounters]:
        """Return the counters of the transfers that are under way."""
        with self._lock:
            return [each.counters for each in self._servings.values() if each.counters is not None]

    def run(self) -> int:
        """Serve until the work is done; return the exit code. Raises what ended the service otherwise."""
        error: FilestreamerError | None = None
        try:
            while self._mailbox.empty():
                for handshake in self._acceptor.select(TICK_SECONDS):
                    self._let_in(handshake)
                self._tick()
            error = self._mailbox.get()
            if error is not None:
                raise error
            return self._exit_code
        finally:
            self._acceptor.stop()
            self._end_all(error)
            self._acceptor.close()

    def _tick(self) -> None:
        now = time.monotonic()
        self._token()  # now, and not only with the next connection: what is wrong with its file is told at once
        self._acceptor.tick(now)
        with self._lock:
            if self._servings:
                self._busy_at = now
        timeout = self._settings.idle_timeout
        if self._untold is not None:
            timeout = TELL_SECONDS if timeout is None else min(timeout, TELL_SECONDS)
        if timeout is not None and now - self._busy_at > timeout:
            self.stop(self._untold or self._idle(timeout))

    def _idle(self, timeout: float) -> FilestreamerError:
        if self._is_run and self._settings.job is not None:
            return Absent.waited_for("receiver", self._settings.job, timeout, "sender")
        return TransferFailed(Code.TIMEOUT, f"no transfer for {timeout:g} s (--idle-timeout)")

    def _end_all(self, error: FilestreamerError | None) -> None:
        """End every transfer; wait at most END_SECONDS."""
        with self._lock:
            servings = list(self._servings.values())
        ended = TransferFailed(Code.SHUTTING_DOWN, "the sender was asked to end: start it again")
        for serving in servings:
            if isinstance(error, Interrupted):
                serving.interrupt(error.signal_number, ended)
            else:
                serving.end_soon(ended)
        until = time.monotonic() + END_SECONDS
        for serving in servings:
            serving.join(max(0.0, until - time.monotonic()))

    # --- an opening

    def _make_opening(self, certificate_sha256: bytes) -> DialledSenderOpening:
        return DialledSenderOpening(
            self._token().encode(), certificate_sha256, join=self._join, earlier=self._earlier_token
        )

    def _earlier_token(self, incarnation: bytes) -> bytes | None:
        with self._lock:
            serving = self._servings.get(incarnation)
        return serving.token if serving is not None else None

    def _join(self, greeting: m.Greeting) -> Joined:
        """Return what a connection belongs to. Nothing is proved yet: nothing is begun, and nothing ended.

        Raises TransferFailed: BUSY, UNKNOWN_TRANSFER, LIMIT.
        """
        most = self._settings.connections or limits.CONNECTIONS_AUTO
        job = self._settings.job or ""
        with self._lock:
            serving = self._servings.get(greeting.incarnation)
            connections = sum(len(each.accepted) for each in self._servings.values())
            is_taken = self._reader not in (None, greeting.incarnation)
        if is_taken:
            raise TransferFailed(Code.BUSY, "standard input is read only once, and another receiver gets it")
        if serving is not None and serving.is_over:
            serving = None
        if greeting.role is m.Role.CONTROL:
            return Joined(serving.transfer_id if serving is not None else random_id(), 0, most, self._needs, job)
        if serving is None:
            raise TransferFailed(Code.UNKNOWN_TRANSFER, "this sender has no transfer to this receiver")
        connection_id = serving.accepted.reserve() if connections < CONNECTIONS else None
        if connection_id is None:
            raise TransferFailed(Code.LIMIT, "no more data connections are wanted now")
        return Joined(serving.transfer_id, connection_id, most, self._needs, job)

    def _let_in(self, handshake: Handshake[DialledSenderOpening]) -> None:
        """Hand a connection to what serves its receiver, or say Abort."""
        greeting, hello = handshake.opening.greeting, handshake.opening.hello
        assert greeting is not None  # its opening is over
        assert hello is not None
        try:
            serving = self._serving_of(greeting, hello, handshake)
            self._acceptor.take(handshake)
            channel = handshake.into_channel(lambda: None, USER_TIMEOUT_SECONDS)
        except ConnectionLost as error:
            self._acceptor.lose(handshake, error)
            return
        except MemoryError:
            handshake.socket.close()
            return
        except TransferFailed as error:
            self._acceptor.turn_away(handshake, error.code, error.reason)
            return
        serving.token = handshake.opening.token
        if hello.role is m.Role.CONTROL:
            serving.take_control(channel, hello.transfer_id)
        elif hello.transfer_id == serving.transfer_id:
            serving.accepted.take_data(hello.connection_id, channel)
        else:
            abort(channel, Code.UNKNOWN_TRANSFER, "the transfer has ended meanwhile")

    def _serving_of(self, greeting: m.Greeting, hello: m.Hello, handshake: Handshake[DialledSenderOpening]) -> Serving:
        """Return what serves a receiver, new where it is not known. Raises TransferFailed (UNKNOWN_TRANSFER, LIMIT)."""
        with self._lock:
            serving = self._servings.get(greeting.incarnation)
            if serving is not None and not serving.is_over:
                return serving
            if hello.role is m.Role.DATA:
                raise TransferFailed(Code.UNKNOWN_TRANSFER, "this sender has no transfer to this receiver")
            if self._settings.reads_stdin:
                if self._reader is not None:
                    raise TransferFailed(Code.BUSY, "standard input is read only once, and another receiver gets it")
                self._reader = greeting.incarnation
            self._make_place()
            serving = self._new_serving(greeting, hello, handshake.peer)
            self._servings[greeting.incarnation] = serving
        if self._untold is not None:
            serving.end_soon(self._untold)
        try:
            start_thread(serving, "a transfer")
        except TransferFailed:
            self.on_few_threads()
            with self._lock:
                del self._servings[greeting.incarnation]
                self._reader = None
            raise
        return serving

    def _new_serving(self, greeting: m.Greeting, hello: m.Hello, peer: str) -> Serving:
        served = Served(
            Accepted(greeting.incarnation, f"the receiver at {peer}", greeting.features),
            hello.transfer_id,
            self._digests,
            self._listed,
            self._rate_limit,
        )
        log = self._log.bind(transfer=hello.transfer_id.hex()[:8])
        return Serving(
            self._settings,
            served,
            ended=self._report_end,
            replaced=self._monitor.replaced,
            on_few_threads=self._few_threads,
            log=log,
        )

    def _few_threads(self) -> None:
        self.on_few_threads()

    def _make_place(self) -> None:
        """Raise TransferFailed(LIMIT) if all places are taken; end a transfer that is stalled, for the next try."""
        if len(self._servings) < self._most_transfers:
            return
        idlest = max(self._servings.values(), key=lambda each: each.idle_seconds())
        if idlest.idle_seconds() > limits.STRANGER_SECONDS:
            idlest.end_soon(
                TransferFailed(Code.TIMEOUT, "there was no progress for too long, and another transfer needs the place")
            )
        raise TransferFailed(Code.LIMIT, f"{self._most_transfers} transfers are under way: try again later")

    # --- the end of a transfer

    def _report_end(self, serving: Serving, outcome: TransferResult) -> None:
        """Report how a transfer ended; end the service where that was the last one. For the thread of the transfer."""
        if serving.counters is not None:  # before it is removed from the running ones, so that no scrape misses it
            self._monitor.ended(serving.counters, outcome.status)
        with self._lock:
            if self._servings.get(serving.incarnation) is serving:
                del self._servings[serving.incarnation]
            is_last = self._settings.reads_stdin or (self._settings.once and serving.is_complete)
            if is_last:
                self._exit_code = outcome.exit_code
            elif self._ends_for_good(serving.failure):
                self._failure_code = outcome.exit_code
            if not is_last and self._failure_code is not None and not self._servings:
                is_last, self._exit_code = True, self._failure_code
        if self._untold is not None:
            self._log.info("receiver_told", reason=str(self._untold))
        report(outcome, self._settings.result_file, self._log, file=self._settings.input_files[0])
        self._monitor.push()
        if is_last:
            self.stop(None)
