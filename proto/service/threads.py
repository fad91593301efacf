"""Threads: what is at the top of one, so that none ends without its transfer hearing of it, and what they wait."""

import contextlib
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from wire.errors import Code, FilestreamerError, TransferFailed


def run_to_end(what: str, body: Callable[[], None]) -> FilestreamerError | None:
    """Run the body of a thread; return what ended it, None where it just returned.

    Anything but a FilestreamerError is a bug, and becomes TransferFailed(INTERNAL) that names `what` was going on.
    """
    try:
        body()
    except FilestreamerError as error:
        return error
    except Exception as error:  # noqa: BLE001 - the top of a thread: whatever it is, somebody must hear of it
        return TransferFailed(Code.INTERNAL, f"{what}: {error!r} (a bug: please report it)")
    return None


def waited_seconds(threads: Iterable[threading.Thread]) -> float:
    """Return how long these have waited for a processor, added up; nothing where the kernel does not count that.

    The second field of schedstat, as Linux has it for each thread (Documentation/scheduler/sched-stats.rst).
    """
    nanoseconds = 0
    for thread in threads:
        with contextlib.suppress(OSError, IndexError, ValueError):  # it has ended, or not begun
            nanoseconds += int(Path(f"/proc/self/task/{thread.native_id}/schedstat").read_bytes().split()[1])
    return nanoseconds / 1e9
