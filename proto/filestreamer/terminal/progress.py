"""What is seen of transfers while they run: a live display on a terminal, and log lines everywhere else.

    1. a `Meter` looks at the counters now and then, remembers a few seconds of them, and says what moves how fast
    2. on a terminal, `service.screen` draws that with rich, a few times a second
    3. elsewhere, each active transfer gets one `progress` line in the log every few seconds

Done means acknowledged: written and verified by the receiver. What was merely sent is in flight, and shown as that.
"""

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self

from filestreamer.process.log import on_terminal
from filestreamer.process.threads import start_thread
from filestreamer.telemetry.counters import Phase, TransferCounters
from filestreamer.wire.errors import TransferFailed

if TYPE_CHECKING:
    from filestreamer.process.log import Logger
    from filestreamer.terminal.screen import Screen

Direction = Literal["sending", "receiving"]

RATE_WINDOW_SECONDS: Final = 5.0
FRAME_SECONDS: Final = 0.25
LOG_LINE_SECONDS: Final = 5.0
LOG_LINES_MAX: Final = 8
"""Transfers that get a line of their own each time; strangers may make many more."""
STOP_SECONDS: Final = 1.0


class ConnectionView(NamedTuple):
    """One data connection at one moment."""

    connection_id: int
    up: bool
    bytes_per_second: float
    bytes_in_flight: int


class TransferView(NamedTuple):
    """One transfer at one moment."""

    transfer_id: bytes
    name: str
    phase: Phase
    ended: bool
    size_bytes: int | None
    """None while nobody knows it: of a stream that has not ended."""
    done_bytes: int
    """Acknowledged, or held before."""
    acknowledged_bytes: int
    rehashed_bytes: int
    bytes_per_second: float
    """Acknowledged bytes, over the last few seconds; of a transfer that has ended, over all its time."""
    bytes_in_flight: int
    eta_seconds: float | None
    """None while nothing moves."""
    connections: tuple[ConnectionView, ...]

    @property
    def fraction(self) -> float | None:
        """How much is done, 0 to 1; 1 only when all of it is. None while nobody knows how much all of it is."""
        if self.size_bytes is None:
            return None
        if self.size_bytes == 0:
            return float(self.phase in ("syncing", "complete"))
        return min(1.0, self.done_bytes / self.size_bytes)


class Meter:
    """Turns counters into rates. Owned by one thread; no I/O; `now` is monotonic time, as in the counters."""

    def __init__(self) -> None:
        self._samples: dict[Hashable, deque[tuple[float, int]]] = {}

    def look(self, transfers: Sequence[TransferCounters], now: float) -> list[TransferView]:
        """Return what can be said of the transfers now, and forget transfers that are not there any more."""
        previous, self._samples = self._samples, {}
        return [self._transfer(counters, now, previous) for counters in transfers]

    def _transfer(self, counters: TransferCounters, now: float, previous: dict[Hashable, Any]) -> TransferView:
        def rate(key: Hashable, total_bytes: int) -> float:
            samples = previous.get(key) or deque([(counters.started_at, 0)])
            self._samples[key] = samples
            return _rate(samples, now, total_bytes)

        acknowledged_bytes = counters.acknowledged_bytes
        done_bytes = acknowledged_bytes + counters.there_bytes
        bytes_per_second = rate(counters.transfer_id, acknowledged_bytes)
        ended = counters.ended_at is not None
        if ended and counters.seconds > 0:
            bytes_per_second = acknowledged_bytes / counters.seconds
        left_bytes = max(0, counters.size_bytes - done_bytes)
        return TransferView(
            transfer_id=counters.transfer_id,
            name=counters.name,
            phase=counters.phase,
            ended=ended,
            size_bytes=None if counters.is_growing else counters.size_bytes,
            done_bytes=done_bytes,
            acknowledged_bytes=acknowledged_bytes,
            rehashed_bytes=counters.rehashed_bytes,
            bytes_per_second=bytes_per_second,
            bytes_in_flight=counters.bytes_in_flight,
            eta_seconds=left_bytes / bytes_per_second if bytes_per_second > 0 and not counters.is_growing else None,
            connections=tuple(
                ConnectionView(
                    item.connection_id,
                    item.up,
                    rate((counters.transfer_id, item.connection_id), item.acknowledged_bytes),
                    item.bytes_in_flight,
                )
                for item in sorted(counters.connections, key=lambda item: item.connection_id)
            ),
        )


def _rate(samples: deque[tuple[float, int]], now: float, total_bytes: int) -> float:
    """Add a sample and return bytes per second since the newest one that is at least a window old."""
    samples.append((now, total_bytes))
    while len(samples) > 2 and now - samples[1][0] >= RATE_WINDOW_SECONDS:
        samples.popleft()
    then, bytes_then = samples[0]
    return max(0, total_bytes - bytes_then) / (now - then) if now > then else 0.0


class Progress:
    """Shows transfers from `start` to `stop`, from a thread of its own that only reads counters.

    `transfers` returns those to show, in order. A display that fails says so in the log, and disturbs nobody.
    """

    def __init__(
        self,
        transfers: Callable[[], Sequence[TransferCounters]],
        log: "Logger",
        *,
        direction: Direction,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transfers = transfers
        self._log = log
        self._direction: Direction = direction
        self._clock = clock
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to show; a second call does nothing. Where there is no thread for it, the log says so."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="progress", daemon=True)
            try:
                start_thread(thread, "progress")
            except TransferFailed as error:
                self._log.warning("progress_display_failed", reason=str(error))
            else:
                self._thread = thread

    def stop(self) -> None:
        """Show the last state, leave the terminal as it was, and return when the thread has ended; idempotent.

        One that hangs, as the terminal or the log takes nothing, is left behind.
        """
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        on_screen = on_terminal() and os.environ.get("TERM", "dumb") != "dumb"
        interval_seconds = FRAME_SECONDS if on_screen else LOG_LINE_SECONDS
        # Nothing is shown, and rich not imported, before the first interval is over: a quick transfer needs neither.
        if self._stopping.wait(interval_seconds):
            return
        try:
            with self._display(on_screen) as display:
                meter = Meter()
                display.show(meter.look(self._transfers(), self._clock()))
                while not self._stopping.wait(interval_seconds):
                    display.show(meter.look(self._transfers(), self._clock()))
                display.finish(meter.look(self._transfers(), self._clock()))
        except Exception as error:  # noqa: BLE001 - the top of a thread
            self._log.warning("progress_display_failed", reason=f"{type(error).__name__}: {error}")

    def _display(self, on_screen: bool) -> "LogLines | Screen":
        if not on_screen:
            return LogLines(self._log)
        from filestreamer.terminal.screen import Screen

        return Screen(self._direction)


class LogLines:
    """One `progress` line for each active transfer, each time it is asked to show."""

    def __init__(self, log: "Logger") -> None:
        self._log = log

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        pass

    def show(self, views: Sequence[TransferView]) -> None:
        """Write the lines: of the first transfers one each, of the others one together."""
        active = [view for view in views if not view.ended]
        for view in active[:LOG_LINES_MAX]:
            self._log.info(
                "progress",
                transfer=view.transfer_id.hex()[:8],
                percent=None if view.fraction is None else math.floor(1000 * view.fraction) / 10,
                acknowledged_bytes=view.acknowledged_bytes,
                size_bytes=view.size_bytes,
                bytes_per_second=round(view.bytes_per_second),
                bytes_in_flight=view.bytes_in_flight,
                eta_seconds=None if view.eta_seconds is None else round(view.eta_seconds, 1),
                phase=view.phase,
            )
        if others := active[LOG_LINES_MAX:]:
            self._log.info(
                "progress",
                transfers=len(others),
                acknowledged_bytes=sum(view.acknowledged_bytes for view in others),
                bytes_per_second=round(sum(view.bytes_per_second for view in others)),
                bytes_in_flight=sum(view.bytes_in_flight for view in others),
            )

    def finish(self, views: Sequence[TransferView]) -> None:
        """Write nothing: the end of a transfer has a line of its own."""
