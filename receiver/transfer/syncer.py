"""Takes the steps from Finish to Complete, each in a thread of its own: syncs and renames may take long.

Unlike the disk worker's work, the coordinator does not wait for them: it goes on to act on events meanwhile.
"""

import threading
from collections.abc import Callable

from filestreamer.process.threads import run_to_end, start_thread
from filestreamer.wire.errors import TransferFailed
from receiver.transfer.mailbox import Mailbox, Synced


class Syncer:
    """Takes one step at a time; posts Synced, or the error, when it is done. For the coordinator."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._thread: threading.Thread | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a step was begun and not finished by `join`."""
        return self._thread is not None

    @property
    def is_alive(self) -> bool:
        """Whether the thread of a step has not ended. For any thread."""
        thread = self._thread  # the coordinator may set it to None meanwhile
        return thread is not None and thread.is_alive()

    def begin(self, step: Callable[[], None]) -> bool:
        """Begin a step; return whether it goes on in a thread. Else it is done, and what it raises is raised here."""

        def run() -> None:
            self._mailbox.post(run_to_end("sync", step) or Synced())

        thread = threading.Thread(target=run, name="sync", daemon=True)
        try:
            start_thread(thread, "the sync")
        except TransferFailed:
            # Without a thread, no heartbeat is sent until the disk is done: still better than to give up.
            if error := run_to_end("sync", step):
                raise error from None
            return False
        self._thread = thread
        return True

    def join(self) -> None:
        """Wait for the step that was begun, if there is one."""
        if self._thread is not None:
            self._thread.join()

    def finish_step(self) -> None:
        """Make room for the next step, now that Synced was posted."""
        self.join()
        self._thread = None
