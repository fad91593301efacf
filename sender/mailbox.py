"""The mailbox of a transfer's coordinator: the threads of the transfer, and signal handlers, post events to it.

Each module defines the events that it posts, beside the code that posts them; all are subclasses of `Event`.
"""

import queue

from filestreamer.records import Record
from filestreamer.wire.errors import FilestreamerError


class Event(Record):
    """Something that the coordinator has to act on."""


class Failed(Event):
    """A thread met an error that ends the transfer."""

    error: FilestreamerError


class Signalled(Event):
    """The process was asked to end."""

    signal_number: int


class Mailbox:
    """A queue of events. Any thread may post; the coordinator alone takes."""

    def __init__(self) -> None:
        # A SimpleQueue, as its `put` is reentrant: a signal handler may interrupt a `put` of the same thread.
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def post(self, event: Event) -> None:
        """Give the coordinator an event. Never blocks."""
        self._events.put(event)

    def take(self, timeout_seconds: float) -> Event | None:
        """Return the next event; None where there is none within `timeout_seconds`."""
        try:
            return self._events.get(timeout=timeout_seconds)
        except queue.Empty:
            return None
