"""The events that the coordinator of a transfer acts on, one at a time, and the queue that they wait in."""

import contextlib
import queue
import threading
from typing import Final, NamedTuple

from filestreamer.wire import messages as m
from filestreamer.wire.errors import FilestreamerError
from filestreamer.wire.sockets.transport import Channel
from receiver.file.rehash import FinalsRehashed, Rehashed

EVENTS_MOST: Final = 64
CONTROLS_MOST: Final = 2
"""Control connections that may wait in the mailbox: the senders of further ones connect again."""
RETRY_SECONDS: Final = 1.0


class ControlUp(NamedTuple):
    """A control connection was let in; `welcome` has to be said on it, if it was not yet."""

    channel: Channel
    welcome: m.Welcome | None


class ControlDown(NamedTuple):
    """A control connection has ended."""

    channel: Channel
    error: FilestreamerError


class Received(NamedTuple):
    """The body of a frame came over a control connection. It is not decoded yet: a message can be far larger."""

    channel: Channel
    body: bytes


class Nudged(NamedTuple):
    """Something has changed: the target may have more answers, or the transfer may be over."""


class Synced(NamedTuple):
    """A step on the way to Complete is done."""


Event = ControlUp | ControlDown | Received | Nudged | Synced | Rehashed | FinalsRehashed | FilestreamerError
"""An error ends the transfer."""


class Mailbox:
    """Events of one transfer. Any thread may post; the coordinator alone takes them."""

    def __init__(self, over: threading.Event) -> None:
        """`over` is set when the coordinator takes no further events."""
        self._over = over
        self._events: queue.Queue[Event] = queue.Queue(EVENTS_MOST)
        self._controls = threading.Semaphore(CONTROLS_MOST)
        """Room for further control connections."""

    def post(self, event: Event) -> None:
        """Add an event; wait while the mailbox is full, so that no peer can fill the memory."""
        while not self._over.is_set():
            try:
                self._events.put(event, timeout=RETRY_SECONDS)
                return
            except queue.Full:
                continue

    def post_now(self, event: Event) -> bool:
        """Add an event if there is room for it, without waiting; return whether there was."""
        if isinstance(event, ControlUp) and not self._controls.acquire(blocking=False):
            return False
        try:
            self._events.put_nowait(event)
        except queue.Full:
            if isinstance(event, ControlUp):
                self._controls.release()
            return False
        if self._over.is_set():  # the transfer may have ended meanwhile without acting on the event
            self.turn_away()
        return True

    def take(self, seconds: float) -> Event | None:
        """Return the next event; None where none comes within `seconds`."""
        try:
            event = self._events.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(event, ControlUp):
            self._controls.release()
        return event

    def turn_away(self) -> None:
        """Close the control connections that still wait, at the end of the transfer: their senders connect again."""
        with contextlib.suppress(queue.Empty):
            while True:
                event = self._events.get_nowait()
                if isinstance(event, ControlUp):
                    event.channel.close()
