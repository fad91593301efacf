"""How a transfer ends: its threads stop, its target is closed, its names are released; in time, or it hangs.

A thread may hang in a write or a sync for as long as a disk does not answer. The transfer is then reported as ended all
the same, but keeps its names until the thread comes back: a newer transfer is refused, and told what hangs.
"""

import math
import threading
import time
from collections.abc import Callable
from typing import Final

from filestreamer.process.threads import run_to_end, start_thread
from filestreamer.wire.errors import FilestreamerError, TransferFailed
from receiver.file.target import LEAVE_SECONDS
from receiver.transfer.context import Context

FENCE_SECONDS: Final = 10.0
"""How long the threads of a transfer may take to end after its connections were shut."""


class Ending:
    """The end of one transfer: the error that ends it, and how long its threads are waited for."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.error: FilestreamerError | None = None
        """The error that the transfer was asked to end with."""
        self.deadline = math.inf
        """The time (monotonic) when the process ends: the transfer waits for nothing beyond it."""
        self._asked_at = math.inf
        self._releasing: threading.Thread | None = None
        self._was_late = False
        """Whether the transfer was reported as ended before all threads had stopped."""

    @property
    def is_final(self) -> bool:
        """Whether the process ends: even a complete transfer is not kept to answer its sender."""
        return self.error is not None and self.deadline < math.inf

    def ask(self, error: FilestreamerError) -> None:
        """Make the coordinator end the transfer with this error, before it acts on any other event. Never waits."""
        self.error = error
        self._asked_at = min(self._asked_at, time.monotonic())
        self._context.mailbox.post_now(error)

    def hangs(self, *, is_running: bool) -> str | None:
        """Return why the ended transfer keeps its names; None if none of its threads hangs.

        `is_running`: the coordinator's thread runs.
        """
        context = self._context
        is_releasing = self._was_late and self._releasing is not None and self._releasing.is_alive()
        is_overdue = time.monotonic() - self._asked_at > LEAVE_SECONDS + FENCE_SECONDS
        if not is_releasing and not (is_running and not context.transfer.is_complete and is_overdue):
            return None
        what = "the sync" if context.syncer.is_alive else "a write"
        path = context.counters.name
        return f"{what} of an earlier transfer hangs in {path}: check the disk; the name is free when the disk answers"

    def release(self) -> None:
        """Stop all threads, close the target and release the names; wait at most LEAVE_SECONDS."""
        self._releasing = threading.Thread(target=self._release, name="release", daemon=True)
        try:
            start_thread(self._releasing, "the end of the transfer")
        except TransferFailed:
            self._release()
            return
        self._releasing.join(max(0.0, min(LEAVE_SECONDS, self.deadline - time.monotonic())))
        self._was_late = self._releasing.is_alive()
        if self._was_late:
            self._context.log.error("transfer_hangs", reason=self.hangs(is_running=True))

    def _release(self) -> None:
        context = self._context
        steps = (context.connection_set.stop, context.rehasher.stop, context.syncer.join, context.disk_worker.stop)
        done = [self.attempt("stopping the threads", step) for step in steps]
        # A thread that could not be stopped may still write: then no descriptor is closed.
        cleanly = all(done)
        target = context.connection_set.target
        if target is not None:
            self.attempt("closing the target", lambda: target.close(cleanly=cleanly))
        self.attempt("releasing the names", lambda: context.names.release(context.transfer, cleanly=cleanly))

    def attempt(self, what: str, step: Callable[[], object]) -> bool:
        """Take one step of the end; log an error. Return whether the step succeeded."""
        error = run_to_end(what, step)
        if error is not None:
            self._context.log.error("transfer_not_ended_well", reason=str(error))
        return error is None
