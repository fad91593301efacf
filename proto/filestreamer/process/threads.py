"""Threads: what is at the top of one, so that none ends without its transfer hearing of it, and what they wait."""

import contextlib
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from filestreamer.wire.errors import Code, FilestreamerError, TransferFailed


def run_to_end(what: str, body: Callable[[], object]) -> FilestreamerError | None:
    """Run the body of a thread; return what ended it, None where it just returned (`as_failure`)."""
    try:
        body()
    except Exception as error:  # noqa: BLE001 - the top of a thread: whatever it is, somebody must hear of it
        return as_failure(what, error)
    return None


def as_failure(what: str, error: Exception) -> FilestreamerError:
    """Return what ends a transfer for an exception, which came up while `what` was going on.

    No memory, or no thread, is LIMIT, which may be better later. Anything else that is no FilestreamerError is a bug,
    and becomes TransferFailed(INTERNAL), which says where.
    """
    if isinstance(error, FilestreamerError):
        return error
    if isinstance(error, MemoryError):
        return TransferFailed(Code.LIMIT, f"{what}: this process may have no more memory")
    if isinstance(error, RuntimeError) and str(error) == _NO_THREAD:
        return TransferFailed(Code.LIMIT, f"{what}: {_NO_THREAD_REASON}")
    return TransferFailed(Code.INTERNAL, f"{what}: {error!r}{_place(error)} (a bug: please report it)")


def _place(error: Exception) -> str:
    """Say in which line an exception was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" in {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


_NO_THREAD: Final = "can't start new thread"
"""What CPython says."""
_NO_THREAD_REASON: Final = "no thread can be started: allow this process more (docker --pids-limit, ulimit -u)"


def start_thread(thread: threading.Thread, what: str) -> None:
    """Start a thread, which is for `what`; one that could not be started may be started later.

    Raises TransferFailed(LIMIT) where this process may have no more threads.
    """
    try:
        thread.start()
    except (RuntimeError, MemoryError):
        raise TransferFailed(Code.LIMIT, f"{what}: {_NO_THREAD_REASON}") from None


def log_defects(log: Any) -> None:
    """Have what a thread raises beyond its top be one line in the log, no traceback on standard error."""

    def tell(args: threading.ExceptHookArgs) -> None:
        if isinstance(args.exc_value, Exception):
            name = args.thread.name if args.thread is not None else "a thread"
            log.error("thread_failed", thread=name, reason=str(as_failure(name, args.exc_value)))

    threading.excepthook = tell


def waited_seconds(threads: Iterable[threading.Thread]) -> float:
    """Return how long these have waited for a processor, added up; nothing where the kernel does not count that.

    The second field of schedstat, as Linux has it for each thread (Documentation/scheduler/sched-stats.rst).
    """
    nanoseconds = 0
    for thread in threads:
        with contextlib.suppress(OSError, IndexError, ValueError):  # it has ended, or not begun
            nanoseconds += int(Path(f"/proc/self/task/{thread.native_id}/schedstat").read_bytes().split()[1])
    return nanoseconds / 1e9
