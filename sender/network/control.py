"""The control connection: a thread that opens it, reads it, and opens it again. Only the coordinator writes to it.

It posts events to the coordinator's mailbox (`filestreamer.wire.sockets.control_link` says why reader and writer are
two threads).
"""

import threading
import time
from collections.abc import Callable
from typing import Final

from filestreamer.process.backoff import LONGEST_SECONDS, Backoff
from filestreamer.process.threads import as_failure, run_to_end
from filestreamer.telemetry import tcp_info
from filestreamer.wire.errors import FilestreamerError
from filestreamer.wire.sockets.addresses import Address
from filestreamer.wire.sockets.control_link import ControlLink
from filestreamer.wire.sockets.transport import Channel
from sender.mailbox import Event, Failed, Mailbox
from sender.network.connector import Connector, Opened

MAILBOX_FRAMES: Final = 64
"""How many of the receiver's frames may be in the mailbox: read, and not acted on yet."""


class Connected(Event):
    """The control connection has reached an address, and has said Hello there."""

    address: Address
    rtt_seconds: float
    early: Channel | None
    """Where the offer need not wait for Welcome, as no token is to be proved: the channel that takes it."""


class ControlUp(Event):
    """The receiver has welcomed the control connection."""

    channel: Channel
    address: Address
    incarnation: bytes
    """Of the receiver."""


class ControlDown(Event):
    """The control connection failed, or could not be opened. It is opened again."""

    error: FilestreamerError


class Received(Event):
    """A frame came over the control connection. It is not decoded yet: a decoded one can be far larger."""

    body: bytes
    channel: Channel


class ControlReader(threading.Thread):
    """Opens and reads the control connection until `stop`."""

    def __init__(
        self,
        connector: Connector,
        link: ControlLink,
        mailbox: Mailbox,
        is_behind: Callable[[], bool],
        pause_seconds: float = 0.0,
    ) -> None:
        """Prepare to open it after `pause_seconds`. While this end `is_behind`, nothing more is read."""
        super().__init__(name="control", daemon=True)
        self._connector = connector
        self._link = link
        self._mailbox = mailbox
        self._is_behind = is_behind
        self._pause_seconds = pause_seconds

    def run(self) -> None:
        """Open, read until it fails, wait, again."""
        if error := run_to_end("control connection", self._keep_running):
            self._mailbox.post(Failed(error))

    def _keep_running(self) -> None:
        backoff = Backoff()
        self._link.over.wait(self._pause_seconds)
        while not self._link.over.is_set():
            opened_at = time.monotonic()
            try:
                channel, address, incarnation = self._connector.open_control(self._connected)
                channel.patience = self._link.check
                self._mailbox.post(ControlUp(channel, address, incarnation))
                self._read(channel)
            except (FilestreamerError, MemoryError) as error:
                failure = as_failure("the control connection", error)
                if not failure.retryable:
                    raise
                self._mailbox.post(ControlDown(failure))
            if time.monotonic() - opened_at > LONGEST_SECONDS:
                backoff.reset()
            self._link.over.wait(backoff.next())

    def _connected(self, address: Address, pending: Opened) -> None:
        info = tcp_info.read(pending.channel.socket)
        rtt_seconds = info.rtt_seconds if info is not None else 0.0
        self._mailbox.post(Connected(address, rtt_seconds, None if pending.must_finish else pending.channel))

    def _read(self, channel: Channel) -> None:
        try:
            self._link.read(channel, lambda body: self._mailbox.post(Received(body, channel)), self._is_behind)
        finally:
            self._link.let_go(channel, self._connector.close_channel)

    def begin_stop(self, channel: Channel | None) -> None:
        """Ask the thread to end. If a channel is open, tell the receiver that nothing follows on it."""
        self._link.over.set()
        if channel is not None:
            channel.finish_writing()

    def stop(self, channel: Channel | None, seconds: float) -> None:
        """Stop the thread. If a channel is open, the receiver gets so many seconds to read all of it and close it."""
        self.begin_stop(channel)
        if channel is not None:
            self.join(seconds)
