"""Starts threads, and reports to the transfer why a thread has ended.

No thread ends unnoticed: `run_to_end` is at the top of each, and turns any exception into an error for its owner.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final

from filestreamer.wire.errors import Code, FilestreamerError, TransferFailed


def run_to_end(what: str, body: Callable[[], object]) -> FilestreamerError | None:
    """Run the body of a thread; return the error that ended it, as `as_failure` makes it, or None.

    `what` names the work of the thread, for the error message.
    """
    try:
        body()
    except Exception as error:  # noqa: BLE001 - the top of a thread: any exception must become an error of the transfer
        return as_failure(what, error)
    return None


def as_failure(what: str, error: Exception) -> FilestreamerError:
    """Turn an exception that was raised during `what` into an error that ends a transfer.

    Lack of memory or threads becomes LIMIT, which is retryable. Any other exception that is not a FilestreamerError is
    a bug, and becomes INTERNAL with file and line.
    """
    if isinstance(error, FilestreamerError):
        return error
    if isinstance(error, MemoryError):
        return TransferFailed(Code.LIMIT, f"{what}: this process has no memory left: allow it more")
    if isinstance(error, RuntimeError) and str(error) == _NO_THREAD:
        return TransferFailed(Code.LIMIT, f"{what}: {_NO_THREAD_REASON}")
    return TransferFailed(Code.INTERNAL, f"{what}: {error!r}{_place(error)} (a bug: please report it)")


def _place(error: Exception) -> str:
    """Return " in FILE:LINE" of where an exception was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" in {os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"


_NO_THREAD: Final = "can't start new thread"
"""The message of CPython's RuntimeError."""
_NO_THREAD_REASON: Final = "no thread can be started: allow this process more (docker --pids-limit, ulimit -u)"


def start_thread(thread: threading.Thread, what: str) -> None:
    """Start a thread, which does `what`. Raises TransferFailed(LIMIT) where the process may have no more threads.

    After that, the same thread may be started again later.
    """
    try:
        thread.start()
    except (RuntimeError, MemoryError):
        raise TransferFailed(Code.LIMIT, f"{what}: {_NO_THREAD_REASON}") from None


def log_defects(log: Any) -> None:
    """Log an exception that ends a thread nevertheless, as one line instead of a traceback on standard error."""

    def write(args: threading.ExceptHookArgs) -> None:
        if isinstance(args.exc_value, Exception):
            name = args.thread.name if args.thread is not None else "a thread"
            log.error("thread_failed", thread=name, reason=str(as_failure(name, args.exc_value)))

    threading.excepthook = write


def waited_seconds(threads: Iterable[threading.Thread]) -> float:
    """Return how long these threads have waited for a processor, all together; 0 where the kernel does not count it.

    It is the second field of /proc/self/task/ID/schedstat (Linux, Documentation/scheduler/sched-stats.rst).
    """
    nanoseconds = 0
    for thread in threads:
        # What is suppressed: the thread has ended, or has not begun.
        path = f"/proc/self/task/{thread.native_id}/schedstat"
        with contextlib.suppress(OSError, IndexError, ValueError), open(path, "rb") as file:
            nanoseconds += int(file.read().split()[1])
    return nanoseconds / 1e9
