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
from filestreamer.wire.errors import FilestreamerError
from filestreamer.wire.sockets.control_link import ControlLink
from filestreamer.wire.sockets.transport import Channel
from sender.network.dial import Address, Dialer

MAILBOX_FRAMES: Final = 64
"""Frames of the receiver that are read and not acted on yet."""


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
        link: ControlLink,
        post: Callable[[ControlEvent], None],
        is_behind: Callable[[], bool],
        pause_seconds: float = 0.0,
    ) -> None:
        """Begin after `pause_seconds`. While this end `is_behind` with what it heard, nothing more is read."""
        super().__init__(name="control", daemon=True)
        self._pause_seconds = pause_seconds
        self._is_behind = is_behind
        self._dialer = dialer
        self._link = link
        self._post = post

    def run(self) -> None:
        """Open, read until it fails, wait, again."""
        if error := run_to_end("control connection", self._keep_running):
            self._post(Failed(error))

    def _keep_running(self) -> None:
        backoff = Backoff()
        self._link.over.wait(self._pause_seconds)
        while not self._link.over.is_set():
            opened_at = time.monotonic()
            try:
                channel, address, incarnation = self._dialer.control(self._connected)
                channel.patience = self._link.check
                self._post(ControlUp(channel, address, incarnation))
                self._read(channel)
            except (FilestreamerError, MemoryError) as error:
                failure = as_failure("the control connection", error)
                if not failure.retryable:
                    raise
                self._post(ControlDown(failure))
            if time.monotonic() - opened_at > LONGEST_SECONDS:
                backoff.reset()
            self._link.over.wait(backoff.next())

    def _connected(self, address: Address, sock: socket.socket) -> None:
        info = tcp_info.read(sock)
        self._post(Connected(address, info.rtt_seconds if info is not None else 0.0))

    def _read(self, channel: Channel) -> None:
        try:
            self._link.read(channel, lambda body: self._post(Received(body, channel)), self._is_behind)
        finally:
            self._dialer.close(channel)

    def finish(self, in_order: Channel | None) -> None:
        """Begin to stop: `in_order` names the open channel, whose peer may read and close it."""
        self._link.over.set()
        if in_order is not None:
            in_order.finish_writing()

    def stop(self, in_order: Channel | None, seconds: float) -> None:
        """Stop the thread, as `finish` does; the peer gets so many seconds."""
        self.finish(in_order)
        if in_order is not None:
            self.join(seconds)
