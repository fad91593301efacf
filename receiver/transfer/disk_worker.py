"""What may wait for a disk, in a thread of its own: the coordinator goes on saying that this side lives."""

import queue
import threading
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from filestreamer.process.threads import run_to_end, start_thread
from filestreamer.wire.errors import FilestreamerError
from filestreamer.wire.messages import Message

MESSAGES: Final = 16
"""How many may wait to be said: those of a file of a million segments take more than a peer may have."""
IDLE_SECONDS: Final = 1.0
"""A process that may have few threads needs them for connections."""
_TICK_SECONDS: Final = 1.0


class Done(NamedTuple):
    """The work is done, or has failed."""

    error: FilestreamerError | None


class DiskWorker:
    """Does one piece of work at a time. For the coordinator. A thread that has none for IDLE_SECONDS ends."""

    def __init__(self) -> None:
        self._changed = threading.Condition()  # protects _work and _thread
        self._work: Callable[[], Iterable[Message]] | None = None
        self._thread: threading.Thread | None = None
        self._said: queue.Queue[Message | Done] = queue.Queue(MESSAGES)
        self._is_ended = threading.Event()
        self.is_busy = False
        """Whether work was begun whose end was not heard of."""

    def begin(self, work: Callable[[], Iterable[Message]]) -> None:
        """Begin work: what it yields is to be said. Raises TransferFailed(LIMIT) where no thread can be started."""
        with self._changed:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="aside", daemon=True)
                start_thread(thread, "what waits for the disk")
                self._thread = thread
            self._work = work
            self.is_busy = True
            self._changed.notify_all()

    def next(self, seconds: float) -> Message | Done | None:
        """Return the next message, or Done after the last one; None where neither comes within `seconds`."""
        try:
            said = self._said.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(said, Done):
            self.is_busy = False
        return said

    def end(self) -> None:
        """Begin nothing any more, and wait for the end of what was begun, however long that takes."""
        with self._changed:
            self._is_ended.set()
            thread = self._thread
            self._changed.notify_all()
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while (work := self._next_work()) is not None:
            self._say(Done(run_to_end("the transfer", lambda work=work: self._do(work))))  # type: ignore[misc]

    def _next_work(self) -> Callable[[], Iterable[Message]] | None:
        """Wait for work; None where the thread is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._work is not None or self._is_ended.is_set(), IDLE_SECONDS)
            work, self._work = self._work, None
            if work is None or self._is_ended.is_set():
                self._thread = None
                return None
            return work

    def _do(self, work: Callable[[], Iterable[Message]]) -> None:
        for message in work():
            self._say(message)

    def _say(self, said: Message | Done) -> None:
        while not self._is_ended.is_set():
            try:
                self._said.put(said, timeout=_TICK_SECONDS)
                return
            except queue.Full:
                continue
