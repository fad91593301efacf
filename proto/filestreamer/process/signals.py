"""How a process ends: by itself, or by SIGTERM, SIGINT and SIGHUP.

The first signal asks the service to end in order, the second one ends the process at once. A handler only reports the
signal; the service's own loop acts on it, and has SHUTDOWN_SECONDS. Handlers are set explicitly because PID 1, as which
a container's command runs, has no default ones: without them, `docker stop` would wait and then kill the process.

A signal that was ignored when the process started stays ignored: `nohup` does that with SIGHUP, and a shell with SIGINT
for what it runs in the background. One that was blocked does not stay blocked: nobody asks for that, but the runtimes
of Java and Ruby, and others, block signals in their threads, and what a thread starts inherits it.

SIGHUP says that the terminal is gone. It never counts as the second signal, as it seldom comes alone: the kernel and
the shell both send it, and systemd sends it together with SIGTERM.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final, NoReturn

from filestreamer.process import stderr
from filestreamer.wire.errors import Interrupted

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
WAKE_SECONDS: Final = 0.5
"""How late a signal may be acted on while the service starts."""
SHUTDOWN_SECONDS: Final = 7.0
"""How long the service has after the first signal. `docker stop` kills after 10 seconds."""
OVERDUE_SECONDS: Final = 1.0
"""How long a service that has not ended by then has to report that."""
EXIT_SECONDS: Final = 2.0
"""How long the exit waits for readers of results and log, all together ..."""
EACH_SECONDS: Final = 0.25
"""... but for each at least this long, and after a second signal exactly this long."""

_exit_hooks: Final[list[Callable[[float], None]]] = []


def exit_on_signal() -> None:
    """Make a signal end the process at once, until `on_signal` is called: so far, nothing has to end in order."""
    _handle(lambda number, _frame: _exit_by_signal(number))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it was ignored, nobody could know how ssh has ended
    atexit.register(_run_exit_hooks)  # an exception that nobody caught ends the process without `exit_process`


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Make a signal raise Interrupted at the end of the block: in steps that must be whole, such as imports.

    After the block a signal ends the process at once.
    """
    signalled: list[int] = []
    _on_first(signalled.append, None)
    try:
        yield
    finally:
        _handle(lambda number, _frame: _exit_by_signal(number))
    if signalled:
        raise Interrupted(signalled[0])


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Make a signal raise Interrupted within the block: in steps that may wait, before `on_signal` is called.

    After the block a signal ends the process at once, unless `on_signal` was called in it.
    """
    signalled: list[int] = []

    def interrupt(number: int) -> None:
        signalled.append(number)
        raise Interrupted(number)

    def wake(_number: int, _frame: FrameType | None) -> None:
        """Let Python act on a signal that came just before a call that waits: only the next one interrupts the call."""

    _on_first(interrupt, None)
    ours = [(number, signal.getsignal(number)) for number in SIGNALS]
    signal.signal(signal.SIGALRM, wake)
    signal.setitimer(signal.ITIMER_REAL, WAKE_SECONDS, WAKE_SECONDS)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGALRM) is wake:  # else a signal has come, and its deadline runs
            signal.setitimer(signal.ITIMER_REAL, 0)
        if ours == [(number, signal.getsignal(number)) for number in SIGNALS]:
            _handle(lambda number, _frame: _exit_by_signal(number))
    if signalled:  # Python drops an exception in some places, such as the end of an import
        raise Interrupted(signalled[0])


def _handle(handler: Callable[[int, FrameType | None], None]) -> None:
    """Set the handler of all signals but those that are ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def exit_process(exit_code: int) -> NoReturn:
    """End the process: hooks first, then what standard output has buffered."""
    _run_exit_hooks()
    if sys.stdout is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
    # Not sys.exit: tearing the interpreter down takes a fifth of the time of a short transfer, and frees only memory.
    os._exit(exit_code)


def before_exit(hook: Callable[[float], None]) -> None:
    """Have `hook(seconds)` called when the process ends, before the hooks that were added earlier.

    It may wait for so many seconds, and it may log.
    """
    if hook not in _exit_hooks:
        _exit_hooks.append(hook)


def _run_exit_hooks() -> None:
    until = time.monotonic() + EXIT_SECONDS
    while _exit_hooks:
        _exit_hooks.pop()(max(EACH_SECONDS, until - time.monotonic()))
    stderr.drain(max(EACH_SECONDS, until - time.monotonic()))


def _exit_by_signal(number: int) -> None:
    stderr.drain(EACH_SECONDS)
    os._exit(128 + number)


def on_signal(report: Callable[[int], None], overdue: Callable[[int], None] | None = None) -> None:
    """Call `report(signal number)` at the first signal, inside the handler; SimpleQueue.put is safe there.

    A process that still runs after SHUTDOWN_SECONDS is ended; before that, `overdue(signal number)` is called, and has
    OVERDUE_SECONDS to report the result.
    """
    _on_first(report, overdue)


def around_stop(leave: Callable[[], None], come_back: Callable[[], None]) -> None:
    """Call `leave` before Ctrl-Z stops this process, and `come_back` when it goes on, both inside the handler.

    Only the main thread can have that; in another one, and where the signal is ignored, nothing is called.
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        leave()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)  # here the process stands still
        signal.signal(number, handle)
        come_back()

    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL:
        signal.signal(signal.SIGTSTP, handle)


def _on_first(act: Callable[[int], None], overdue: Callable[[int], None] | None) -> None:
    """Call `act(signal number)` at the first signal. A second one ends the process, unless one of them is SIGHUP."""
    is_signalled = is_asked = False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal is_signalled, is_asked
        if is_asked and number != signal.SIGHUP:
            _exit_by_signal(number)
        is_asked = is_asked or number != signal.SIGHUP
        if is_signalled:
            return
        is_signalled = True
        until = time.monotonic() + SHUTDOWN_SECONDS - WAKE_SECONDS

        def end(_alarm: int, _frame: FrameType | None) -> None:
            if time.monotonic() > until:  # else it is one from before, of `raised`
                _exit_overdue(number, overdue)

        signal.signal(signal.SIGALRM, end)
        signal.setitimer(signal.ITIMER_REAL, SHUTDOWN_SECONDS)
        act(number)

    _handle(handle)


def _exit_overdue(number: int, overdue: Callable[[int], None] | None) -> None:
    # `overdue` and the hooks may hang for the same reason as the service: then a second alarm ends the process.
    signal.signal(signal.SIGALRM, lambda *_: os._exit(128 + number))
    signal.setitimer(signal.ITIMER_REAL, OVERDUE_SECONDS)
    with contextlib.suppress(Exception):
        if overdue is not None:
            overdue(number)
        _run_exit_hooks()
    os._exit(128 + number)
