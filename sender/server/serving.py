"""One receiver of a sender that listens: its transfer, and those that continue it, in a thread of its own."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from filestreamer.process.threads import run_to_end
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.telemetry.result import TransferResult
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, FilestreamerError, TransferFailed
from filestreamer.wire.opening import random_id
from filestreamer.wire.sockets.transport import Channel
from sender.coordinator import BeginAgain, Served, Transfer
from sender.mailbox import Failed
from sender.network.accepted import Accepted
from sender.settings import SenderSettings


class Serving(threading.Thread):
    """Sends everything to one receiver. The server brings the receiver's connections."""

    def __init__(
        self,
        settings: SenderSettings,
        served: Served,
        *,
        ended: "Callable[[Serving, TransferResult], None]",
        replaced: Callable[[TransferCounters], None],
        on_few_threads: Callable[[], None],
        log: Any,
    ) -> None:
        """Prepare to send. `ended` is called in this thread, with the result of the last transfer.

        `replaced` is called with each transfer before, with which the next one has gone on.
        """
        super().__init__(name=f"transfer-{served.transfer_id.hex()[:8]}", daemon=True)
        self._settings = settings
        self._served = served
        self._ended = ended
        self._replaced = replaced
        self._on_few_threads = on_few_threads
        self._log = log
        self.token: bytes | None = None
        """The token with which its last connection was let in: it goes on with that, even if the token is renewed."""
        self._mutex = threading.Lock()  # protects the fields below
        self._transfer: Transfer | None = None
        self._end: FilestreamerError | None = None
        self.is_over = False
        """Whether it takes no connection any more."""
        self._begun_at = time.monotonic()
        self._committed: bool | None = None  # the `committed` of Complete
        self.failure: FilestreamerError | None = None
        """What has ended it before everything was durable."""

    # --- the server

    @property
    def incarnation(self) -> bytes:
        """The receiver."""
        return self._served.accepted.incarnation

    @property
    def transfer_id(self) -> bytes:
        """The transfer that is under way."""
        return self._served.transfer_id

    @property
    def accepted(self) -> Accepted:
        """What takes the connections of the transfer that is under way."""
        return self._served.accepted

    @property
    def counters(self) -> TransferCounters | None:
        """The counters of the transfer that is under way; None before it is."""
        return self._transfer.counters if self._transfer is not None else None

    @property
    def is_connected(self) -> bool:
        """Whether the control connection is up."""
        return self._transfer is not None and self._transfer.is_connected

    @property
    def is_complete(self) -> bool:
        """Whether everything is durable at the receiver."""
        return self._committed is not None

    def idle_seconds(self) -> float:
        """Return how long ago the last progress was."""
        counters = self.counters
        at = counters.last_progress_at if counters is not None else 0.0
        return time.monotonic() - max(at, self._begun_at)

    def take_control(self, channel: Channel, transfer_id: bytes) -> None:
        """Bring a control connection, whose Hello named this transfer."""
        with self._mutex:
            is_taken = not self.is_over and transfer_id == self.transfer_id
            if is_taken:
                self.accepted.take_control(channel)
        if is_taken:
            return
        if isinstance(self.failure, TransferFailed) and not self.failure.retryable:
            abort(channel, self.failure.code, self.failure.reason)  # it has ended before this connection was brought
        else:
            abort(channel, Code.UNKNOWN_TRANSFER, "the transfer has ended meanwhile: connect again")

    def end_soon(self, error: FilestreamerError) -> None:
        """End the transfer with this error, which the receiver is told. For any thread; never waits."""
        with self._mutex:
            self._end = error
            if self._transfer is not None:
                self._transfer.mailbox.post(Failed(error))

    def interrupt(self, signal_number: int, error: FilestreamerError) -> None:
        """End the transfer soon, even if the receiver reads nothing: the process was asked to end."""
        with self._mutex:
            self._end = error
            if self._transfer is not None:
                self._transfer.interrupt(signal_number)

    # --- the thread

    def run(self) -> None:
        """Send everything, and report how that ended."""
        error = run_to_end("serving a receiver", self._serve)
        self._close(error)
        transfer = self._transfer
        if transfer is None:
            assert error is not None  # there was none to run
            self._ended(self, TransferResult.without_transfer(error))
            return
        self._ended(
            self,
            TransferResult.from_counters(
                transfer.counters,
                error=error or transfer.counters.shortfall(),
                committed=bool(self._committed),
                root_digest=transfer.root_digest,
            ),
        )

    def _serve(self) -> None:
        """Run the transfer, and those that continue it. Raises what ended it before it was complete."""
        self._check_end()
        transfer = self._begin(Transfer(self._settings, self._log, served=self._served))
        while self._committed is None:
            try:
                self._committed = transfer.run()
            except BeginAgain:
                self._log.warning("transfer_begins_again", reason="the receiver no longer knows this transfer")
                self._replaced(transfer.counters)
                transfer = self._begin(transfer.again(self._renew()))

    def _begin(self, transfer: Transfer) -> Transfer:
        """Make a transfer the one that is under way. Raises what the serving was asked to end with."""
        transfer.on_few_threads = self._on_few_threads
        with self._mutex:
            self._check_end()
            self._transfer = transfer
        return transfer

    def _check_end(self) -> None:
        """Raise what the serving was asked to end with."""
        if self._end is not None:
            raise self._end

    def _renew(self) -> Served:
        """Return what the transfer has that continues the one before: the receiver is going to connect to it."""
        before = self._served
        accepted = Accepted(before.accepted.incarnation, before.accepted.receiver, before.accepted.features)
        with self._mutex:
            self._served = before._replace(accepted=accepted, transfer_id=random_id())
        return self._served

    def _close(self, failure: FilestreamerError | None) -> None:
        """Take no more connections; tell those that were not taken why."""
        with self._mutex:
            self.is_over, self.failure = True, failure
        code = getattr(failure, "code", Code.SHUTTING_DOWN)
        for channel in self.accepted.give_up():
            abort(channel, code, str(failure) if failure is not None else "the transfer has ended")


def abort(channel: Channel, code: Code, reason: str) -> None:
    """Say Abort on a connection of which nobody makes use, and close it."""
    with contextlib.suppress(FilestreamerError):
        channel.send_message(m.Abort(code, reason))
    channel.close_at_once()
