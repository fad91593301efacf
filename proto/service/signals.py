"""How a process ends. SIGTERM and SIGINT: the first asks the service to end in order, the second ends it now.

The handler only reports; the service's own loop acts, and has END_SECONDS.

As PID 1 of a container a process has no default handlers: these
are set explicitly, so that `docker stop` ends a transfer at once.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Final, NoReturn

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
END_SECONDS: Final = 7.0
"""How long the end may take that a signal asks for, whatever hangs: `docker stop` kills after 10."""
LAST_SECONDS: Final = 1.0


def end_at_once() -> None:
    """Let a signal end the process at once, until `on_end`; nothing has begun that would have to end in order."""
    for number in SIGNALS:
        signal.signal(number, lambda number, _frame: os._exit(128 + number))


def leave(exit_code: int) -> NoReturn:
    """End the process, now that all is done and told.

    To take an interpreter apart takes a fifth of the time of a short transfer, and gives back only memory.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    os._exit(exit_code)


def on_end(report: Callable[[int], None], overdue: Callable[[int], None] | None = None) -> None:
    """Call `report(signal number)` at the first signal; it must be safe inside a handler (SimpleQueue.put is).

    What has not ended END_SECONDS later is ended; before that, `overdue(signal number)` has LAST_SECONDS to say so.
    """
    seen = False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal seen
        if seen:
            os._exit(128 + number)
        seen = True
        signal.signal(signal.SIGALRM, lambda *_: _end_now(number, overdue))
        signal.setitimer(signal.ITIMER_REAL, END_SECONDS)
        report(number)

    for number in SIGNALS:
        signal.signal(number, handle)


def _end_now(number: int, overdue: Callable[[int], None] | None) -> None:
    """End the process, with a last word that must not take long either."""
    signal.signal(signal.SIGALRM, lambda *_: os._exit(128 + number))
    signal.setitimer(signal.ITIMER_REAL, LAST_SECONDS)
    with contextlib.suppress(Exception):
        if overdue is not None:
            overdue(number)
    os._exit(128 + number)
