"""The control connection: a thread that opens it, reads it, and opens it again. It never writes after the opening.

What it has to say goes into the coordinator's mailbox; the coordinator writes. So neither end can block writing while
the other one does.
"""

import socket
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from filestreamer.process.backoff import LONGEST_SECONDS, Backoff
from filestreamer.process.threads import as_failure, run_to_end
from filestreamer.telemetry import tcp_info
from filestreamer.wire import limits
from filestreamer.wire.errors import ConnectionLost, FilestreamerError
from filestreamer.wire.sockets.transport import TICK_SECONDS, Channel
from sender.network.dial import Address, Dialer

MAILBOX_FRAMES: Final = 64
BEHIND_SECONDS: Final = 0.02


class Connected(NamedTuple):
    """The control connection leads somewhere; what the receiver there says is still to come."""

    address: Address
    rtt_seconds: float


class ControlUp(NamedTuple):
    """The control connection was welcomed."""

    channel: Channel
    address: Address
    incarnation: bytes
    """Of the receiver."""


class ControlDown(NamedTuple):
    """It failed, or could not be opened; another try follows by itself."""

    error: FilestreamerError


class Received(NamedTuple):
    """A frame came over it; not decoded yet, as what is decoded can be far larger."""

    body: bytes
    channel: Channel


class Failed(NamedTuple):
    """Some thread ends the transfer."""

    error: FilestreamerError


ControlEvent = Connected | ControlUp | ControlDown | Received | Failed


class ControlReader(threading.Thread):
    """Opens and reads the control connection until `end`."""

    def __init__(
        self,
        dialer: Dialer,
        post: Callable[[ControlEvent], None],
        pause_seconds: float = 0.0,
        is_behind: Callable[[], bool] = lambda: False,
    ) -> None:
        """Begin after `pause_seconds`. While this end `is_behind` with what it heard, nothing more is read."""
        super().__init__(name="control", daemon=True)
        self._pause_seconds = pause_seconds
        self._is_behind = is_behind
        self._dialer = dialer
        self._post = post
        self._ended = threading.Event()
        self.room = threading.Semaphore(MAILBOX_FRAMES)
        """Released by the coordinator for each frame it has acted on, so that no peer can fill the memory."""
        self.writing_since: float | None = None
        """When the coordinator began to write what it still writes."""
        self.is_hurried = False
        """Whether the process was asked to end: it waits for no peer then."""

    def run(self) -> None:
        """Open, read until it fails, wait, again."""
        if error := run_to_end("control connection", self._keep_running):
            self._post(Failed(error))

    def _keep_running(self) -> None:
        backoff = Backoff()
        self._ended.wait(self._pause_seconds)
        while not self._ended.is_set():
            opened_at = time.monotonic()
            try:
                channel, address, incarnation = self._dialer.control(self._connected)
                channel.patience = self._patience
                self._post(ControlUp(channel, address, incarnation))
                self._read(channel)
            except (FilestreamerError, MemoryError) as error:
                failure = as_failure("the control connection", error)
                if not failure.retryable:
                    raise
                self._post(ControlDown(failure))
            if time.monotonic() - opened_at > LONGEST_SECONDS:
                backoff.reset()
            self._ended.wait(backoff.next())

    def _connected(self, address: Address, sock: socket.socket) -> None:
        info = tcp_info.read(sock)
        self._post(Connected(address, info.rtt_seconds if info is not None else 0.0))

    def _read(self, channel: Channel) -> None:
        try:
            while True:
                body = channel.read_body()
                while self._is_behind() or not self.room.acquire(timeout=TICK_SECONDS):
                    self._patience()
                    channel.heard_at = time.monotonic()  # that nothing more is heard is our doing
                    self._ended.wait(BEHIND_SECONDS)
                self._post(Received(body, channel))
        finally:
            self._dialer.close(channel)

    def _patience(self) -> None:
        """Give up where the receiver takes nothing of what is written, which would hold the coordinator for ever."""
        if self._ended.is_set():
            raise ConnectionLost("the transfer is over")
        since = self.writing_since
        if since is not None and (self.is_hurried or time.monotonic() - since > limits.DEAD_SECONDS):
            raise ConnectionLost("the receiver does not read the control connection")

    def finish(self, in_order: Channel | None) -> None:
        """Begin to end: `in_order` names the open channel, whose peer may read and close it."""
        self._ended.set()
        if in_order is not None:
            in_order.finish_writing()

    def end(self, in_order: Channel | None, seconds: float) -> None:
        """End the thread, as `finish` does; the peer gets so many seconds."""
        self.finish(in_order)
        if in_order is not None:
            self.join(seconds)
