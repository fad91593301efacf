"""Receives from a sender that listens: dials it, keeps as many connections open as it wants, ends with its transfer.

    control is dialled           -> Hello names the transfer: it begins, or is rejoined
    Connections comes            -> data connections are dialled, each in a thread of its own
    a connection is lost         -> it is dialled again, control as well
    the transfer ends            -> complete: the end; for a reason that may pass: control is dialled for another one

The main thread acts on one event at a time. What dials, and the threads of the transfer, post events.
"""

import queue
import threading
import time
from typing import Any, Final, NamedTuple

from filestreamer.process.backoff import Backoff
from filestreamer.process.threads import run_to_end, start_thread
from filestreamer.telemetry.monitor import Monitor
from filestreamer.telemetry.report import report
from filestreamer.wire import messages as m
from filestreamer.wire.errors import (
    Aborted,
    Absent,
    Code,
    ConnectionLost,
    FilestreamerError,
    Refused,
    RemoteProtocolError,
    TransferFailed,
)
from filestreamer.wire.opening import random_id
from filestreamer.wire.progress_clock import ProgressClock
from filestreamer.wire.sockets.addresses import Address, format_address
from filestreamer.wire.sockets.route import Route
from receiver.disk.destination import Destination
from receiver.memory.budget import Budget
from receiver.pipe.standard_output import OpenFile
from receiver.server.admission import Admission
from receiver.server.dialled import Dialled, Dialler
from receiver.server.homes import Homes
from receiver.server.peers_bytes import read_peers_bytes
from receiver.settings import ReceiverSettings
from receiver.transfer.asked import Asked
from receiver.transfer.transfer import Transfer

TICK_SECONDS: Final = 0.5
_PASSING: Final = frozenset({Code.BUSY, Code.LIMIT, Code.CORRUPT, Code.UNKNOWN_TRANSFER})
"""Codes with which this end ends a transfer, and another one may do better."""


class _Opened(NamedTuple):
    """A connection was dialled."""

    dialled: Dialled


class _Failed(NamedTuple):
    """A connection could not be dialled."""

    role: m.Role
    error: FilestreamerError


class _Wanted(NamedTuple):
    """The sender wants so many data connections from now on."""

    connections: int


class _ControlLost(NamedTuple):
    """Control is to be dialled again."""


class _ConnectionLost(NamedTuple):
    """A data connection has ended."""


class _Ended(NamedTuple):
    """A transfer has ended."""

    transfer: Transfer
    error: FilestreamerError | None


class _Stopped(NamedTuple):
    """The process was asked to end."""

    error: FilestreamerError


_Event = _Opened | _Failed | _Wanted | _ControlLost | _ConnectionLost | _Ended | _Stopped


class Client:
    """Receives one transfer from the sender that a route leads to. It is `Dialling` for that transfer."""

    def __init__(
        self,
        settings: ReceiverSettings,
        destination: Destination | OpenFile,
        monitor: Monitor,
        *,
        route: Route,
        output_name: bytes | None,
        log: Any,
        asked: Asked | None = None,
    ) -> None:
        """`output_name` replaces the sender's name of the file; `asked` is all that it may bring. Raises UsageError."""
        self._settings = settings
        self._monitor = monitor
        self._route = route
        self._log = log
        self.admission = Admission(
            settings,
            Homes(destination, output_name),
            Budget(read_peers_bytes(settings, log)),
            ended=lambda transfer, error: self._events.put(_Ended(transfer, error)),
            monitor=monitor,
            log=log,
            asked=asked,
            dialling=self,
        )
        self._dialler = Dialler(settings, route, random_id(), log)
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._transfer: Transfer | None = None
        self._address: Address | None = None  # where control was last
        self._is_control_wanted = True
        self._is_control_dialled = False  # whether it is being dialled
        self._control_at = 0.0  # when it is to be dialled (monotonic)
        self._control_backoff = Backoff()
        self._wanted = 0  # data connections that the sender wants
        self._data_dialled = 0  # that are being dialled
        self._data_at = 0.0  # when the next one is to be dialled
        self._data_backoff = Backoff()
        self._trouble: FilestreamerError | None = None  # the last error of a connection
        self._clock = ProgressClock(time.monotonic())  # of all transfers together
        self._new_bytes = 0  # that transfers which have ended brought
        self._seen_at = self._clock.at
        """When a sender was there last: it had a connection, or has refused one."""
        self._has_begun = False
        """Whether a transfer has brought a byte."""

    # --- for the transfer (`Dialling`), and for signal handlers

    def want(self, connections: int) -> None:
        """Have so many data connections open from now on."""
        self._events.put(_Wanted(connections))

    def control_lost(self) -> None:
        """Dial control again."""
        self._events.put(_ControlLost())

    def connection_lost(self) -> None:
        """Look whether a data connection is to be dialled again."""
        self._events.put(_ConnectionLost())

    def stop(self, error: FilestreamerError) -> None:
        """Make `run` raise this error."""
        self._events.put(_Stopped(error))

    # --- the main thread

    def run(self) -> int:
        """Receive; return the exit code, with the result reported. Raises what ended it without a transfer."""
        exit_code: int | None = None
        try:
            while exit_code is None:
                self._dial()
                self._check_patience()
                exit_code = self._act_on_next()
            return exit_code
        except FilestreamerError as error:
            self.admission.stop()
            if self._transfer is None:
                raise
            return self._report(self._transfer, error)
        finally:
            self._dialler.close()
            self.admission.stop()

    def _act_on_next(self) -> int | None:
        """Act on the next event, or on none where something is to be dialled first; return as `_act`."""
        now = time.monotonic()
        due = [at - now for at in (self._control_at, self._data_at) if at > now]
        try:
            return self._act(self._events.get(timeout=min([TICK_SECONDS, *due])))
        except queue.Empty:
            return None

    def _act(self, event: _Event) -> int | None:
        """Act on an event; return the exit code if the work is done."""
        match event:
            case _Opened(dialled):
                self._has_dialled(dialled.hello.role)
                self._take(dialled)
            case _Failed(role, error):
                self._has_dialled(role)
                self._take_failure(role, error)
            case _Wanted(connections):
                self._wanted = connections
            case _ControlLost():
                self._take_control_lost()
            case _ConnectionLost():
                pass  # `_dial` looks
            case _Ended(transfer, failure):
                return self._take_end(transfer, failure)
            case _Stopped(error):
                raise error
        return None

    # --- dialling

    def _dial(self) -> None:
        """Begin to dial what is wanted and not there."""
        now = time.monotonic()
        if self._is_control_wanted and not self._is_control_dialled and now >= self._control_at:
            self._is_control_dialled = True
            self._start(m.Role.CONTROL, None)
        transfer = self._transfer
        if self._is_control_wanted or transfer is None or now < self._data_at:
            return
        if transfer.is_complete or transfer.is_ending:
            return
        missing = self._wanted - transfer.connection_set.admitted - self._data_dialled
        for _ in range(missing):
            self._data_dialled += 1
            self._start(m.Role.DATA, self._address)

    def _start(self, role: m.Role, address: Address | None) -> None:
        def dial() -> None:
            dialled: list[Dialled] = []
            error = run_to_end("dialling", lambda: dialled.append(self._dialler.open(role, address)))
            self._events.put(_Opened(dialled[0]) if error is None else _Failed(role, error))

        try:
            start_thread(threading.Thread(target=dial, name="dial", daemon=True), "dialling")
        except TransferFailed as error:
            self.admission.on_few_threads()
            self._events.put(_Failed(role, error))

    def _has_dialled(self, role: m.Role) -> None:
        """Take in that a connection of this role is not being dialled any more."""
        if role is m.Role.CONTROL:
            self._is_control_dialled = False
        else:
            self._data_dialled -= 1

    def _take(self, dialled: Dialled) -> None:
        """Hand a connection to the transfer that Hello names; say Abort where that fails."""
        hello = dialled.hello
        complete = self._transfer if self._transfer is not None and self._transfer.is_complete else None
        if complete is not None and hello.transfer_id != complete.transfer_id:
            # The sender has forgotten the transfer, as it is complete there, too.
            dialled.abort(Code.SUPERSEDED, "everything is here")
            complete.dismiss()
            return
        try:
            transfer, budget = self.admission.find_place(dialled, hello)
            self.admission.let_in(dialled, hello, transfer, budget)
        except FilestreamerError as error:
            code = error.code if isinstance(error, RemoteProtocolError | TransferFailed) else Code.LIMIT
            dialled.abort(code, str(error))
            self._take_failure(hello.role, error)
            return
        if hello.role is m.Role.CONTROL:
            self._log.info("connected", address=format_address(dialled.address[1]))
            self._is_control_wanted = False
            if self._transfer is not None and self._transfer is not transfer:
                self._transfer.end_soon(TransferFailed(Code.SUPERSEDED, "the sender began another transfer"))
                self._wanted = 0
            self._transfer, self._address = transfer, dialled.address
        else:
            self._data_backoff.reset()

    def _take_failure(self, role: m.Role, error: FilestreamerError) -> None:
        """Try again later, where that may help. Raises the error where not."""
        if role is m.Role.CONTROL:
            if not error.retryable:
                raise error
            if str(error) != str(self._trouble):
                self._log.warning("cannot_connect", reason=str(error))
            self._wait_for_control()
        else:
            # A sender that wants fewer connections by now, or begins again, is no trouble.
            if getattr(error, "code", None) not in (Code.LIMIT, Code.UNKNOWN_TRANSFER):
                self._log.warning("cannot_connect", reason=str(error))
            if not error.retryable and self._transfer is not None:
                self._transfer.end_soon(error)
            self._data_at = time.monotonic() + self._data_backoff.next()
        if isinstance(error, Refused):
            self._seen_at = time.monotonic()
        self._trouble = error.with_traceback(None)

    def _take_control_lost(self) -> None:
        """Dial control again, unless it was that of an earlier transfer."""
        if self._transfer is not None and self._transfer.context.link.channel is not None:
            return
        self._is_control_wanted = True
        self._wait_for_control()

    def _wait_for_control(self) -> None:
        self._control_at = time.monotonic() + self._control_backoff.next()

    # --- the end

    def _take_end(self, transfer: Transfer, error: FilestreamerError | None) -> int | None:
        """Report how the transfer ended, and return the exit code; dial for another one where that may help."""
        has_spent_output = transfer.has_spent_output
        self._note_progress(transfer)
        if transfer is not self._transfer:
            self._remove_replaced(transfer)
            return None
        if not transfer.is_complete and not has_spent_output and error is not None and _may_pass(error):
            self._remove_replaced(transfer)
            self._transfer, self._wanted = None, 0
            self._trouble = error.with_traceback(None)
            self._log.warning("transfer_lost", reason=str(error))
            self._clock.start_over(done=self._new_bytes)
            self._is_control_wanted = True
            self._wait_for_control()
            return None
        return self._report(transfer, self._explain(error))

    def _remove_replaced(self, transfer: Transfer) -> None:
        self._monitor.replaced(transfer.counters)
        self.admission.remove(transfer)

    def _explain(self, error: FilestreamerError | None) -> FilestreamerError | None:
        """Return why a transfer has ended: where it has waited in vain for the sender of a job, that is absent."""
        is_timeout = isinstance(error, TransferFailed) and error.code is Code.TIMEOUT
        seconds = self._settings.patience.seconds(has_begun=self._has_begun)
        return self._absence(seconds) or error if is_timeout else error

    def _report(self, transfer: Transfer, error: FilestreamerError | None) -> int:
        outcome = transfer.outcome(error)
        self._monitor.ended(transfer.counters, outcome.status)  # before it is removed, so that no scrape misses it
        self.admission.remove(transfer)
        report(outcome, self._settings.result_file, self._log, file=transfer.counters.name)
        self._monitor.push()
        return outcome.exit_code

    def _note_progress(self, transfer: Transfer) -> None:
        counters = transfer.counters
        self._seen_at = max(self._seen_at, transfer.liveness.connected_at)
        self._has_begun = (
            self._has_begun or counters.there_bytes > 0 or any(each.chunks for each in counters.connections)
        )
        # What a transfer only repeats of an earlier one is no progress: one may begin and end again and again.
        self._new_bytes += transfer.connection_set.new_bytes
        at = max(counters.last_progress_at, self._clock.at)  # a transfer that was replaced may end late
        progress = [self._clock.done(self._new_bytes, at)]
        progress += [self._clock.reach(what, count, at) for what, count in transfer.liveness.counts.items()]
        if any(progress):
            self._control_backoff.reset()

    def _check_patience(self) -> None:
        """Raise TransferFailed(TIMEOUT) where no transfer has begun for too long; a transfer looks after itself."""
        seconds = self._settings.patience.seconds(has_begun=self._has_begun)
        if self._transfer is not None or time.monotonic() - self._clock.at <= seconds:
            return
        if absence := self._absence(seconds):
            raise absence
        trouble = f" ({self._trouble})" if self._trouble is not None else ""
        raise TransferFailed(
            Code.TIMEOUT,
            f"gave up after {seconds:g} s without progress, waiting for {self._dialler.waits_for()}{trouble};"
            " run the same command again to resume",
        )

    def _absence(self, seconds: float) -> Absent | None:
        """Return the error of a job that has had no sender for longer than `seconds`."""
        is_there = isinstance(self._trouble, Refused) or time.monotonic() - self._seen_at <= seconds
        if self._settings.job is None or is_there:
            return None
        return Absent.looked_for("sender", self._settings.job, seconds, self._trouble)


def _may_pass(error: FilestreamerError) -> bool:
    """Whether another transfer may do better than the one that ended with this error."""
    if isinstance(error, Aborted):  # a sender that begins again says SUPERSEDED
        return error.retryable or error.code is Code.SUPERSEDED
    if isinstance(error, TransferFailed | RemoteProtocolError):
        return error.code in _PASSING
    return isinstance(error, ConnectionLost)
