"""What may wait for a disk, in a thread of its own: the coordinator goes on saying that this side lives."""

import queue
import threading
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from service.threads import run_to_end, start_thread
from wire.errors import FilestreamerError
from wire.messages import Message

MESSAGES: Final = 16
"""How many may wait to be said: those of a file of a million segments take more than a peer may have."""
_TICK_SECONDS: Final = 1.0


class Done(NamedTuple):
    """The work is done, or has failed."""

    error: FilestreamerError | None


class Aside:
    """Does one piece of work at a time. For the coordinator."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], Iterable[Message]] | None] = queue.SimpleQueue()
        self._said: queue.Queue[Message | Done] = queue.Queue(MESSAGES)
        self._thread: threading.Thread | None = None
        self._is_ended = threading.Event()
        self.is_busy = False
        """Whether work was begun whose end was not heard of."""

    def begin(self, work: Callable[[], Iterable[Message]]) -> None:
        """Begin work: what it yields is to be said. Raises TransferFailed(LIMIT) where no thread can be started."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="aside", daemon=True)
            start_thread(thread, "what waits for the disk")
            self._thread = thread
        self.is_busy = True
        self._work.put(work)

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
        self._is_ended.set()
        self._work.put(None)
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while (work := self._work.get()) is not None and not self._is_ended.is_set():
            self._say(Done(run_to_end("the transfer", lambda work=work: self._do(work))))  # type: ignore[misc]

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
