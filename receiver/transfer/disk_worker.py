"""A thread that does the coordinator's work that may wait for a disk.

The coordinator waits for the result in short steps, and sends heartbeats between them: so the sender knows that the
receiver lives, however long the disk takes.
"""

import queue
import threading
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from filestreamer.process.threads import run_to_end, start_thread
from filestreamer.wire.errors import FilestreamerError
from filestreamer.wire.messages import Message

MESSAGES_MOST: Final = 16
"""The most messages that wait: all answers for a file of a million segments would exceed the memory of a peer."""
IDLE_SECONDS: Final = 1.0
"""A thread without work ends after this long: if the process may have few threads, connections need them."""
RETRY_SECONDS: Final = 1.0


class Done(NamedTuple):
    """The work is done, or has failed."""

    error: FilestreamerError | None


class DiskWorker:
    """Does one piece of work at a time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()  # protects _work and _thread
        self._work: Callable[[], Iterable[Message]] | None = None
        self._thread: threading.Thread | None = None
        self._results: queue.Queue[Message | Done] = queue.Queue(MESSAGES_MOST)
        self._stopped = threading.Event()
        self.is_busy = False
        """Whether work is under way: `next` has not returned its Done yet."""

    def begin(self, work: Callable[[], Iterable[Message]]) -> None:
        """Begin work, which yields messages to be sent. Raises TransferFailed(LIMIT) where no thread can be started."""
        with self._changed:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="disk-worker", daemon=True)
                start_thread(thread, "what waits for the disk")
                self._thread = thread
            self._work = work
            self.is_busy = True
            self._changed.notify_all()

    def next(self, seconds: float) -> Message | Done | None:
        """Return the next message, or Done behind the last one; None where neither comes within `seconds`."""
        try:
            result = self._results.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(result, Done):
            self.is_busy = False
        return result

    def stop(self) -> None:
        """Refuse further work, and wait without limit for the work that was begun."""
        with self._changed:
            self._stopped.set()
            thread = self._thread
            self._changed.notify_all()
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while (work := self._next_work()) is not None:
            self._put(Done(run_to_end("the transfer", lambda work=work: self._do(work))))  # type: ignore[misc]

    def _next_work(self) -> Callable[[], Iterable[Message]] | None:
        """Wait for work; None where the thread has to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._work is not None or self._stopped.is_set(), IDLE_SECONDS)
            work, self._work = self._work, None
            if work is None or self._stopped.is_set():
                self._thread = None
                return None
            return work

    def _do(self, work: Callable[[], Iterable[Message]]) -> None:
        for message in work():
            self._put(message)

    def _put(self, result: Message | Done) -> None:
        while not self._stopped.is_set():
            try:
                self._results.put(result, timeout=RETRY_SECONDS)
                return
            except queue.Full:
                continue
