"""Shows the state of a service: metrics endpoint and live page while it runs, a push of the metrics at the end.

The transfers do no work for it: their counters are read when a client asks, and what the answer needs is imported then.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Final

from filestreamer.process.threads import run_to_end, start_thread
from filestreamer.settings.address import Address
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.telemetry.endpoint import Endpoint, Response
from filestreamer.telemetry.history import History, Snapshot, UserSums
from filestreamer.telemetry.result import Status
from filestreamer.wire.errors import AddressNotReady, ConnectionLost, TransferFailed, UsageError
from filestreamer.wire.sockets.addresses import format_address
from filestreamer.wire.sockets.listen import listen

if TYPE_CHECKING:
    from filestreamer.settings.common import CommonSettings
    from filestreamer.telemetry.metrics import Collector
    from filestreamer.telemetry.push import Push
    from filestreamer.wire.session import Side

TICK_SECONDS: Final = 1.0
KEEP_SECONDS: Final = 60.0
"""How long a transfer is shown after its end, unless --metrics-linger says otherwise."""


class Monitor:
    """Shows the transfers of a service: `start`, `watch`, `ended` for each transfer, and `stop` at the end."""

    def __init__(
        self, service: "Side", settings: "CommonSettings", log: Any, free_bytes: Callable[[], int] | None = None
    ) -> None:
        """`free_bytes` reads the free space of the destination, if there is one, as `SlowValue` wants it."""
        self._service = service
        self._settings = settings
        self._log = log
        self._free_bytes: Callable[[], int | None] = _nothing
        if free_bytes is not None:  # a receiver
            from filestreamer.telemetry.slow_value import SlowValue

            self._free_bytes = SlowValue(free_bytes).get
        self._history = History(settings.metrics_linger or KEEP_SECONDS)
        self._running: Callable[[], Sequence[TransferCounters]] = tuple
        self._trouble: Callable[[], str | None] = _starting
        self._memory: Callable[[], tuple[int, int]] | None = None
        self._users: Callable[[], Collection[str]] | None = None
        self._endpoint: Endpoint | None = None
        self._push_lock = threading.Lock()  # protects the next two
        self._is_pushing = False
        self._is_push_due = False
        """Whether a transfer has ended since the last push began."""
        self._linger_ended: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_lingering_over = False

    # --- values for the endpoint

    def snapshot(self) -> Snapshot:
        """Return the transfers at this moment: those that are running, and those that ended a short while ago."""
        return self._history.snapshot(self._running())

    @property
    def history(self) -> History:
        """The transfers that have ended."""
        return self._history

    def free_bytes(self) -> int | None:
        """Read the free space of the destination; None where there is none, or it can't be read."""
        return self._free_bytes()

    def memory(self) -> tuple[int, int] | None:
        """Read (limit, used) of the memory that peers can make the service hold; None where it has no limit."""
        return self._memory() if self._memory is not None else None

    def users(self) -> dict[str, UserSums] | None:
        """Sum up the transfers of each user of now; None for a service without users."""
        return self._history.users(self._running(), self._users()) if self._users is not None else None

    # --- start to stop

    def start(self, default: Address | None = None) -> None:
        """Serve at the address in the settings, or at `default`.

        Raises UsageError where the address in the settings can't be listened on; AddressNotReady where this machine
        does not have it now, after some seconds. For `default` both are only a warning.
        """
        address = self._settings.metrics
        if address == "off" or (address is None and default is None):
            return
        where = default if address is None else address
        assert isinstance(where, Address)
        try:
            listeners = listen(where.host, where.port, None if address is None else self._tell_waiting)
        except (OSError, ConnectionLost) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            if address is not None and isinstance(error, AddressNotReady):
                raise AddressNotReady(f"--metrics: {reason}") from None
            if address is not None:
                raise UsageError(f"--metrics {where}: {reason}") from None
            self._log.warning(
                "no_metrics", address=str(where), reason=reason, hint="--metrics HOST:PORT sets another address"
            )
            return
        routes = {
            "/": _page,
            "/transfers": self._transfers,
            "/metrics": self._metrics,
            "/healthz": _healthz,
            "/readyz": self._readyz,
        }
        endpoint = Endpoint(listeners, routes, self._log)
        try:
            endpoint.start()
        except TransferFailed as error:
            for listener in listeners:
                listener.close()
            self._log.warning("no_metrics", address=str(where), reason=str(error))
            return
        self._endpoint = endpoint
        for listener in listeners:
            self._log.info("metrics", address=format_address(listener.getsockname()))

    def _tell_waiting(self, reason: str) -> None:
        self._log.warning("waiting_for_address", setting="--metrics", reason=reason)

    def watch(
        self,
        running: Callable[[], Sequence[TransferCounters]],
        trouble: Callable[[], str | None],
        memory: Callable[[], tuple[int, int]] | None = None,
        users: Callable[[], Collection[str]] | None = None,
    ) -> None:
        """Show the transfers that `running` returns; `trouble` returns why the service is not ready, or None.

        `memory` returns (limit, used) of the memory that peers can make the service hold. `users` returns the users of
        now, if the service has users.
        """
        self._running, self._trouble, self._memory, self._users = running, trouble, memory, users

    def refused(self, reason: str) -> None:
        """Count a connection that was refused."""
        self._history.refused[reason] += 1

    def ended(self, transfer: TransferCounters, status: Status) -> None:
        """Add a transfer that has ended, with its last values."""
        self._history.add(transfer, status)

    def replaced(self, transfer: TransferCounters) -> None:
        """Take out a transfer with which another one goes on: what it moved stays in the totals."""
        self._history.replaced(transfer)

    def push(self) -> None:
        """Push the metrics to the Pushgateway in the settings, if there is one and a transfer has ended.

        Returns after PUSH_SECONDS at the latest, after `stop_lingering` sooner. Where another thread pushes, it returns
        at once, and that one pushes once more, as transfers may end faster than a gateway answers. A push that fails is
        one warning.
        """
        url = self._settings.pushgateway
        if url is None or self._history.ended_at is None:
            return
        with self._push_lock:
            self._is_push_due = True
            if self._is_pushing:
                return
            self._is_pushing = True
        while self._takes_push():
            # Whatever goes wrong costs this push alone: else none would follow, nor the end of whoever has called.
            if error := run_to_end("pushing", lambda: self._push_now(url)):
                self._warn_not_pushed(url, str(error))

    def _takes_push(self) -> bool:
        """Return whether this thread, which pushes, has to do so once more."""
        with self._push_lock:
            self._is_pushing, self._is_push_due = self._is_push_due, False
            return self._is_pushing

    def _push_now(self, url: str) -> None:
        outcome: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # why it failed, or None
        try:
            from filestreamer.telemetry.push import PUSH_SECONDS, Push

            until = time.monotonic() + PUSH_SECONDS
            push = Push(url, f"filestreamer_{self._service}")
            # A thread of its own, as nothing ends a look-up of a name, or an answer of a byte a second.
            start_thread(threading.Thread(target=self._push, args=(push, outcome), name="push", daemon=True), "pushing")
            reason = self._outcome(push, outcome, until)
        except (TransferFailed, ValueError, OSError) as error:  # OSError: too many open files for the import
            reason = str(error)
        if reason is not None:
            self._warn_not_pushed(url, reason)

    def _warn_not_pushed(self, url: str, reason: str) -> None:
        from filestreamer.settings import values

        self._log.warning("not_pushed", to=values.without_password(url), reason=reason)

    def _push(self, push: "Push", outcome: "queue.SimpleQueue[str | None]") -> None:
        def send() -> None:
            from filestreamer.telemetry import metrics

            try:
                push.send(metrics.exposition(self._collector(connections=False), "").body)
            except OSError as error:
                outcome.put(str(error))

        error = run_to_end("pushing", send)
        outcome.put(None if error is None else str(error))

    def _outcome(self, push: "Push", outcome: "queue.SimpleQueue[str | None]", until: float) -> str | None:
        """Wait for the outcome until a time, or a tick after `stop_lingering`; return why the push failed, or None."""
        is_last_tick = False
        while (left := until - time.monotonic()) > 0 and not is_last_tick:
            is_last_tick = self._is_lingering_over
            with contextlib.suppress(queue.Empty):
                return outcome.get(timeout=min(left, TICK_SECONDS))
        return push.abandon()

    def stop(self) -> None:
        """Stop serving, after --metrics-linger if a transfer has ended; `stop_lingering` cuts the wait short."""
        if self._endpoint is None:
            return
        if self._settings.metrics_linger is not None and self._history.ended_at is not None:
            seconds = max(0.0, self._history.ended_at + self._settings.metrics_linger - time.monotonic())
            self._log.info("metrics_linger", seconds=round(seconds, 1))
            self._linger(seconds)
        self._endpoint.stop()

    def _linger(self, seconds: float) -> None:
        """Wait for so many seconds, or until `stop_lingering`."""
        # A tick at a time: where the kernel gives a signal to another thread, Python runs the handler, which calls
        # `stop_lingering`, only when this thread wakes.
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                self._linger_ended.get(timeout=min(left, TICK_SECONDS))
                return

    def stop_lingering(self) -> None:
        """Let `stop` and `push` wait no longer. Safe in a signal handler."""
        self._is_lingering_over = True
        self._linger_ended.put(None)

    # --- routes

    def _collector(self, *, connections: bool) -> "Collector":
        from filestreamer.telemetry.metrics import Collector

        return Collector(self._service, self, connections=connections)

    def _metrics(self, accept: str) -> Response:
        from filestreamer.telemetry import metrics

        return metrics.exposition(self._collector(connections=True), accept)

    def _transfers(self, _accept: str) -> Response:
        from filestreamer.telemetry import page

        return page.transfers(self._service, self.snapshot())

    def _readyz(self, _accept: str) -> Response:
        trouble = self._trouble()
        return Response(b"ready\n") if trouble is None else Response(f"{trouble}\n".encode(), status=503)


def _page(_accept: str) -> Response:
    from filestreamer.telemetry import page

    return page.page()


def _healthz(_accept: str) -> Response:
    return Response(b"alive\n")


def _nothing() -> None:
    return None


def _starting() -> str:
    return "starting"
