"""The service: lets connections in, reports every transfer that has ended, and ends when its work is done."""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from filestreamer.credentials import certificate
from filestreamer.listening.acceptor import HANDSHAKE_BYTES, Acceptor, Listener, count_handshakes
from filestreamer.listening.handshake import Handshake
from filestreamer.telemetry.monitor import Monitor
from filestreamer.telemetry.report import report
from filestreamer.wire.errors import Code, ConnectionLost, FilestreamerError, RemoteProtocolError, TransferFailed
from filestreamer.wire.opening import ReceiverOpening, random_id
from receiver.disk.destination import Destination
from receiver.memory.budget import Budget
from receiver.pipe.standard_output import OpenFile
from receiver.server.admission import Admission
from receiver.server.homes import Homes
from receiver.server.peers_bytes import read_peers_bytes
from receiver.server.run import Run
from receiver.server.users import NOBODY
from receiver.settings import ReceiverSettings
from receiver.transfer.transfer import Transfer

TICK_SECONDS: Final = 0.5


class Arrived:
    """A connection that was accepted, and has gone through its opening (`Arrival`)."""

    def __init__(self, handshake: Handshake[ReceiverOpening], user: str) -> None:
        self.user = user
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
        tokens: Callable[[], Mapping[bytes, str] | None],
        tls: certificate.Current,
        log: Any,
    ) -> None:
        """`output_name` replaces the name that senders give.

        `tokens` returns the tokens of which senders have to prove one now, each with its user; None where none is
        required. `tls` returns what this receiver shows them now.
        """
        self._settings = settings
        self._monitor = monitor
        self._log = log
        peers_bytes = read_peers_bytes(settings, log)
        handshakes = count_handshakes(peers_bytes)
        budget = Budget(peers_bytes - handshakes * HANDSHAKE_BYTES)
        self._run = Run(settings, destination, log)
        self.admission = Admission(
            settings,
            Homes(destination, output_name),
            budget,
            ended=self._report_end,
            monitor=monitor,
            log=log,
            committed=self._run.keep,
        )
        self._tokens = tokens
        self._incarnation = random_id()
        self._acceptor = Acceptor(
            listeners, handshakes, opening=self._make_opening, tls=tls, refused=monitor.refused, log=log
        )
        self._mailbox: queue.SimpleQueue[FilestreamerError | None] = queue.SimpleQueue()
        """How `run` has to end, from `stop`: the error to raise, or None."""
        self._busy_at = time.monotonic()
        self._lock = threading.Lock()  # protects what follows
        self._last: Transfer | None = None
        """With --once, the first transfer that was committed."""
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
        tokens = self._current_tokens()
        return ReceiverOpening(
            self._incarnation,
            tokens,
            certificate_sha256,
            earlier=lambda: self.admission.earlier_tokens(tokens or ()),
            job=self._settings.job or "",
        )

    def _current_tokens(self) -> Mapping[bytes, str] | None:
        """Return the token of each user of now; the transfers of users who are gone are asked to end."""
        tokens = self._tokens()
        if tokens is not None:
            self.admission.expel_others(frozenset(tokens.values()))
        return tokens

    def _user_of(self, transfer_id: bytes, token: bytes | None) -> str:
        """Return whose connection it is that has proved this token. Raises RemoteProtocolError(TOKEN)."""
        tokens = self._current_tokens()
        if tokens is None:
            return NOBODY
        assert token is not None  # its opening is over
        user = tokens[token] if token in tokens else self.admission.user_of(transfer_id, token)
        if user is None:  # the token was taken away since it was proved
            raise RemoteProtocolError("the token is wrong", Code.TOKEN)
        return user

    def _let_in(self, handshake: Handshake[ReceiverOpening]) -> None:
        """Hand a connection to its transfer, or turn it away."""
        hello = handshake.opening.hello
        assert hello is not None  # its opening is over
        user = NOBODY
        try:
            user = self._user_of(hello.transfer_id, handshake.opening.token)
            arrival = Arrived(handshake, user)
            transfer, budget = self.admission.find_place(arrival, hello)
            self._acceptor.take(handshake)
            self.admission.let_in(arrival, hello, transfer, budget)
        except ConnectionLost as error:
            self._acceptor.lose(handshake, error)
        except (RemoteProtocolError, TransferFailed) as error:
            who = {"user": user} if user else {}
            self._acceptor.turn_away(handshake, error.code, error.reason, **who)

    def _tick(self) -> None:
        now = time.monotonic()
        self._current_tokens()  # now, and not only with the next connection: what is wrong with a file is told at once
        self._acceptor.tick(now)
        if not self.admission.is_idle:
            self._busy_at = now
        with self._lock:
            ended = self._run.ended(now - self._busy_at) if self._last is None else None
        if ended is not None:
            self._exit_code, error = ended
            self.stop(error)

    def _report_end(self, transfer: Transfer, error: FilestreamerError | None) -> None:
        """Report how a transfer ended; end the service where that was the last one. For the transfer's thread."""
        outcome = transfer.outcome(error)
        was_offered = transfer.opener.was_offered
        if was_offered:  # added to those that have ended before it is removed from the others, so no scrape misses it
            self._monitor.ended(transfer.counters, outcome.status)
        self.admission.remove(transfer)
        with self._lock:
            if transfer.is_committed and self._settings.once and self._last is None:
                self._last, self._exit_code = transfer, outcome.exit_code
            # The result file says how this service ends, whatever becomes of a later transfer of the same.
            result_file = self._settings.result_file if self._last in (None, transfer) else None
        log = self._log.bind(user=transfer.user) if transfer.user else self._log
        if was_offered:
            report(outcome, result_file, log, file=transfer.counters.name)
            self._monitor.push()
        else:
            log.warning("sender_left", transfer=transfer.transfer_id.hex()[:8], reason=str(error))
        if not transfer.is_complete:
            with self._lock:  # behind the report: from now on the service may end
                self._run.note_failure(transfer, error)
        if transfer.has_spent_output:  # no other transfer can write to the output, even if this one failed
            self._exit_code = outcome.exit_code
            self.stop(None)
        # With --once, the other shards, and transfers that still have its name, end before.
        if self._last is not None and not self._last.holds_name:
            self.stop(None)
