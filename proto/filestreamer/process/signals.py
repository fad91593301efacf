"""How a process ends. SIGTERM and SIGINT: the first asks the service to end in order, the second ends it now.

The handler only reports; the service's own loop acts, and has END_SECONDS. As PID 1 of a container a process has no
default handlers: these are set explicitly, so that `docker stop` ends a transfer at once.
"""

import atexit
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Final, NoReturn

from filestreamer.process import outlet

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
END_SECONDS: Final = 7.0
"""How long the end may take that a signal asks for, whatever hangs: `docker stop` kills after 10."""
OVERDUE_SECONDS: Final = 1.0
"""How long what hangs at that moment has to say so."""
SETTLE_SECONDS: Final = 2.0
"""What the end of a process waits for readers of its results and its log, all of them together ..."""
LAST_SECONDS: Final = 0.25
"""... but at least so long for each, and no longer than that after a second signal."""

_unsettled: Final[list[Callable[[float], None]]] = []


def end_at_once() -> None:
    """Let a signal end the process at once, until `on_end`; nothing has begun that would have to end in order."""
    for number in SIGNALS:
        signal.signal(number, lambda number, _frame: _end_now(number))
    atexit.register(_settle)  # after an exception that nobody caught


def leave(exit_code: int) -> NoReturn:
    """End the process, now that all is done and told.

    To take an interpreter apart takes a fifth of the time of a short transfer, and gives back only memory.
    """
    _settle()
    if sys.stdout is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
    os._exit(exit_code)


def before_leaving(settle: Callable[[float], None]) -> None:
    """Have `settle(seconds)` called at the end of the process, before those that were there earlier; it may log.

    It may wait so long, for what others take, and no longer.
    """
    if settle not in _unsettled:
        _unsettled.append(settle)


def _settle() -> None:
    until = time.monotonic() + SETTLE_SECONDS
    while _unsettled:
        _unsettled.pop()(max(LAST_SECONDS, until - time.monotonic()))
    outlet.flush(max(LAST_SECONDS, until - time.monotonic()))


def _end_now(number: int) -> None:
    outlet.flush(LAST_SECONDS)
    os._exit(128 + number)


def on_end(report: Callable[[int], None], overdue: Callable[[int], None] | None = None) -> None:
    """Call `report(signal number)` at the first signal; it must be safe inside a handler (SimpleQueue.put is).

    What has not ended END_SECONDS later is ended; before that, `overdue(signal number)` has OVERDUE_SECONDS to say so.
    """
    seen = False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal seen
        if seen:
            _end_now(number)
        seen = True
        signal.signal(signal.SIGALRM, lambda *_: _end_overdue(number, overdue))
        signal.setitimer(signal.ITIMER_REAL, END_SECONDS)
        report(number)

    for number in SIGNALS:
        signal.signal(number, handle)


def _end_overdue(number: int, overdue: Callable[[int], None] | None) -> None:
    """End the process, with a last word that must not take long either."""
    signal.signal(signal.SIGALRM, lambda *_: os._exit(128 + number))
    signal.setitimer(signal.ITIMER_REAL, OVERDUE_SECONDS)
    with contextlib.suppress(Exception):
        if overdue is not None:
            overdue(number)
        _settle()
    os._exit(128 + number)
