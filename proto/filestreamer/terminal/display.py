"""A thread that shows transfers while they run: on a terminal drawn, elsewhere as log lines."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from filestreamer.process import signals
from filestreamer.process.log import on_terminal
from filestreamer.process.threads import start_thread
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.terminal.log_lines import LogLines
from filestreamer.terminal.views import Direction, Meter
from filestreamer.wire.errors import TransferFailed

if TYPE_CHECKING:
    from filestreamer.process.log import Logger
    from filestreamer.terminal.screen import Screen

FRAME_SECONDS: Final = 0.25
LOG_LINE_SECONDS: Final = 5.0
STOP_SECONDS: Final = 1.0


class ProgressDisplay:
    """Shows transfers from `start` to `stop`, in a thread of its own that only reads counters.

    Where the display fails, the log says so, and the transfers go on.
    """

    def __init__(
        self,
        transfers: Callable[[], Sequence[TransferCounters]],
        log: "Logger",
        *,
        direction: Direction,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`transfers` returns the transfers to show, in order."""
        self._transfers = transfers
        self._log = log
        self._direction: Direction = direction
        self._clock = clock
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._screen: Screen | None = None

    def start(self) -> None:
        """Start to show; a second call does nothing. Where no thread can be started, the log says so."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="progress", daemon=True)
            try:
                start_thread(thread, "progress")
            except TransferFailed as error:
                self._log.warning("progress_display_failed", reason=str(error))
            else:
                self._thread = thread
                if on_terminal():
                    signals.around_stop(
                        lambda: self._show_cursor(is_shown=True), lambda: self._show_cursor(is_shown=False)
                    )

    def stop(self) -> None:
        """Show the last state, restore the terminal, and wait for the thread to end. Idempotent.

        After STOP_SECONDS, it does not wait for a thread that hangs because terminal or log accept no output.
        """
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        on_screen = on_terminal() and os.environ.get("TERM", "dumb") != "dumb"
        interval_seconds = FRAME_SECONDS if on_screen else LOG_LINE_SECONDS
        # A quick transfer needs no display.
        if self._stopping.wait(interval_seconds):
            return
        try:
            with self._output(on_screen) as output:
                meter = Meter()
                output.show(meter.views(self._transfers(), self._clock()))
                while not self._stopping.wait(interval_seconds):
                    output.show(meter.views(self._transfers(), self._clock()))
                output.finish(meter.views(self._transfers(), self._clock()))
        except Exception as error:  # noqa: BLE001 - the top of a thread
            self._log.warning("progress_display_failed", reason=f"{type(error).__name__}: {error}")

    def _show_cursor(self, *, is_shown: bool) -> None:
        if self._screen is not None and not self._stopping.is_set():
            self._screen.show_cursor(is_shown=is_shown)

    def _output(self, on_screen: bool) -> "LogLines | Screen":
        if not on_screen:
            return LogLines(self._log)
        from filestreamer.terminal.screen import Screen

        self._screen = Screen(self._direction)
        return self._screen
