"""The service: lets connections in, reports every transfer that has ended, and ends when its work is done."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from filestreamer.credentials import certificate
from filestreamer.listening.acceptor import HANDSHAKE_BYTES, Acceptor, Listener, count_handshakes
from filestreamer.listening.handshake import Handshake
from filestreamer.telemetry.monitor import Monitor
from filestreamer.telemetry.report import report
from filestreamer.telemetry.result import TransferResult
from filestreamer.wire.errors import ConnectionLost, FilestreamerError, RemoteProtocolError, TransferFailed
from filestreamer.wire.opening import ReceiverOpening, random_id
from receiver.disk.destination import Destination
from receiver.memory.budget import Budget
from receiver.pipe.standard_output import OpenFile
from receiver.server.admission import Admission
from receiver.server.peers_bytes import read_peers_bytes
from receiver.server.registry import Registry
from receiver.server.run import Run
from receiver.settings import ReceiverSettings
from receiver.transfer.transfer import Transfer

TICK_SECONDS: Final = 0.5


class Arrived:
    """A connection that was accepted, and has gone through its opening (`Arrival`)."""

    def __init__(self, handshake: Handshake[ReceiverOpening]) -> None:
        self.host = handshake.host
        self.socket = handshake.socket
        self.token = handshake.opening.token
        self.welcome = handshake.opening.welcome
        self.into_channel = handshake.into_channel


class Server:
    """Serves transfers into one destination until `stop`, or until its work is done."""

    def __init__(
        self,
        settings: ReceiverSettings,
        destination: Destination | OpenFile,
        monitor: Monitor,
        *,
        output_name: bytes | None,
        listeners: list[Listener],
        token: Callable[[], str | None],
        tls: certificate.Current,
        log: Any,
    ) -> None:
        """`output_name` replaces the name that senders give.

        `token` returns the token that senders have to prove now, `tls` what this receiver shows them now.
        """
        self._settings = settings
        self._monitor = monitor
        self._log = log
        peers_bytes = read_peers_bytes(settings, log)
        handshakes = count_handshakes(peers_bytes)
        self._registry = Registry(destination, output_name)
        budget = Budget(peers_bytes - handshakes * HANDSHAKE_BYTES)
        self._run = Run(settings, destination, log)
        self.admission = Admission(
            settings,
            self._registry,
            budget,
            ended=self._report_end,
            monitor=monitor,
            log=log,
            committed=self._run.keep,
        )
        self._token = token
        self._incarnation = random_id()
        self._acceptor = Acceptor(
            listeners, handshakes, opening=self._make_opening, tls=tls, refused=monitor.refused, log=log
        )
        self._mailbox: queue.SimpleQueue[FilestreamerError | None] = queue.SimpleQueue()
        """How `run` has to end, from `stop`: the error to raise, or None."""
        self._busy_at = time.monotonic()
        self._lock = threading.Lock()  # protects what follows
        self._last_name: bytes | None = None
        """With --once, the name of the first transfer that was committed."""
        self._last_job = ""
        """Its job."""
        self._exit_code = 0

    def stop(self, error: FilestreamerError | None) -> None:
        """Make `run` raise this error, or return if it is None. For any thread and signal handler."""
        self._mailbox.put(error)
        self._acceptor.wake()

    def run(self) -> int:
        """Serve until the work is done; return the exit code. Raises what ended the service otherwise."""
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
            self.admission.stop()
            self._acceptor.close()

    def _make_opening(self, certificate_sha256: bytes) -> ReceiverOpening:
        token = self._token()
        return ReceiverOpening(
            self._incarnation,
            token.encode() if token else None,
            certificate_sha256,
            earlier=self.admission.token_of,
            job=self._settings.job or "",
        )

    def _let_in(self, handshake: Handshake[ReceiverOpening]) -> None:
        """Hand a connection to its transfer, or turn it away."""
        hello = handshake.opening.hello
        assert hello is not None  # its opening is over
        try:
            arrival = Arrived(handshake)
            transfer, budget = self.admission.find_place(arrival, hello)
            self._acceptor.take(handshake)
            self.admission.let_in(arrival, hello, transfer, budget)
        except ConnectionLost as error:
            self._acceptor.lose(handshake, error)
        except (RemoteProtocolError, TransferFailed) as error:
            self._acceptor.turn_away(handshake, error.code, error.reason)

    def _tick(self) -> None:
        now = time.monotonic()
        self._token()  # now, and not only with the next connection: what is wrong with its file is told at once
        self._acceptor.tick(now)
        if not self.admission.is_idle:
            self._busy_at = now
        with self._lock:
            ended = self._run.ended(now - self._busy_at) if self._last_name is None else None
        if ended is not None:
            self._exit_code, error = ended
            self.stop(error)

    def _report_end(self, transfer: Transfer, error: FilestreamerError | None) -> None:
        """Report how a transfer ended; end the service where that was the last one. For the transfer's thread."""
        outcome = TransferResult.from_counters(
            transfer.counters,
            error=transfer.counters.shortfall() if transfer.is_complete else error,
            committed=transfer.is_committed,
            root_digest=transfer.root_digest,
        )
        was_offered = transfer.opener.was_offered
        if (
            was_offered
        ):  # added to the ended transfers before it is removed from the running ones, so that no scrape misses it
            self._monitor.ended(transfer.counters, outcome.status)
        self.admission.remove(transfer)
        with self._lock:
            if transfer.is_committed and self._settings.once and self._last_name is None:
                self._last_name, self._exit_code = transfer.target_name, outcome.exit_code
                self._last_job = transfer.context.job
            if not transfer.is_complete:
                self._run.note_failure(transfer, error)
        if was_offered:
            report(outcome, self._settings.result_file, self._log, file=transfer.counters.name)
            self._monitor.push()
        else:
            self._log.warning("sender_left", transfer=transfer.transfer_id.hex()[:8], reason=str(error))
        if self._registry.has_spent_output(
            transfer
        ):  # no other transfer can write to the output, even if this one failed
            self._exit_code = outcome.exit_code
            self.stop(None)
        # With --once, the other shards, and transfers that still have its name, end before.
        if self._last_name is not None and not self._registry.is_in_use(self._last_name, self._last_job):
            self.stop(None)
