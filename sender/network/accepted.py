"""The connections of one receiver that has dialled this sender: they are handed to the threads that wait for them.

The server takes each connection through its opening (`filestreamer.listening`), and only then brings it here. It asks
for the number of the data connection that is wanted next when the receiver has said Greeting, which proves nothing yet:
such a number is reserved only until it is asked for the next time, so that a stranger can keep no place.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from filestreamer.wire.errors import ConnectionLost
from filestreamer.wire.sockets.addresses import Address
from filestreamer.wire.sockets.transport import Channel
from sender.network.connector import OnHello
from sender.network.control_state import ControlState
from sender.network.path_mtu import PathMtu

LOOK_SECONDS = 1.0
"""How often a thread that waits for a connection looks whether it is still wanted."""


class Arrived(NamedTuple):
    """A connection whose opening is over."""

    channel: Channel
    features: tuple[str, ...] = ()
    is_over: bool = True
    must_finish: bool = True

    def check(self) -> None:
        """Nothing is awaited any more."""

    def take(self, body: bytes) -> None:
        """Take no frame: they are all of the transfer."""
        raise AssertionError(body)


class Accepted:
    """The connections of one transfer. The server calls `take_control`, `reserve`, `take_data`; threads the rest."""

    def __init__(self, incarnation: bytes, receiver: str, features: tuple[str, ...] = ()) -> None:
        """Have no connection yet; `receiver` names the receiver for people, `features` are those that it has named."""
        self.incarnation = incarnation
        self.receiver = receiver
        self.features = features
        self.path_mtu = PathMtu()
        self._control_state = ControlState()
        self._changed = threading.Condition()  # protects the fields below
        self._new_control: Channel | None = None
        self._control: Channel | None = None  # the one that was handed out
        self._waiting: dict[int, float] = {}  # by connection_id, when it was reserved last (monotonic); 0.0: never
        self._arrived: dict[int, Channel] = {}  # that are going to be handed out
        self._sockets: set[socket.socket] = set()  # that were handed out, and those that wait
        self._is_closed = False

    def begin(self, control_state: ControlState) -> None:
        """Serve the transfer that has this state. Call it before its threads start."""
        self._control_state = control_state

    # --- the server

    def take_control(self, channel: Channel) -> None:
        """Bring a control connection, which takes the place of the older one."""
        with self._changed:
            if self._is_closed:
                channel.close()
                return
            if self._new_control is not None:
                self._drop(self._new_control)
            if self._control is not None:
                self._control.shut()  # its reader notices, and comes for the new one
            self._new_control = channel
            self._sockets.add(channel.socket)
            self._changed.notify_all()

    def reserve(self) -> int | None:
        """Return the number of the data connection that is wanted next; None where none is wanted."""
        with self._changed:
            free = [each for each in self._waiting if each not in self._arrived]
            if not free:
                return None
            connection_id = min(free, key=lambda each: (self._waiting[each], each))
            self._waiting[connection_id] = time.monotonic()
            return connection_id

    def take_data(self, connection_id: int, channel: Channel) -> None:
        """Bring a data connection; close it in order if it is not wanted any more."""
        with self._changed:
            is_wanted = not self._is_closed and connection_id in self._waiting
            if is_wanted:
                if (older := self._arrived.pop(connection_id, None)) is not None:
                    self._drop(older)
                self._arrived[connection_id] = channel
                self._sockets.add(channel.socket)
                self._changed.notify_all()
        if not is_wanted:
            channel.close_at_once()

    def _drop(self, channel: Channel) -> None:
        self._sockets.discard(channel.socket)
        channel.close()

    def give_up(self) -> list[Channel]:
        """Hand no connection out any more; return those that nobody has taken."""
        with self._changed:
            self._is_closed = True
            unused = [*self._arrived.values(), *([self._new_control] if self._new_control is not None else [])]
            self._arrived.clear()
            self._new_control = None
            self._sockets.difference_update(channel.socket for channel in unused)
            self._changed.notify_all()
        return unused

    def __len__(self) -> int:
        """Return how many connections there are."""
        return len(self._sockets)

    # --- the threads of the transfer (`Connector`)

    def open_control(self, on_hello: OnHello) -> tuple[Channel, Address, bytes]:
        """Wait for the next control connection. Raises ConnectionLost where the transfer is over, or it is gone."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._new_control is not None)
            if self._is_closed or self._new_control is None:
                raise ConnectionLost("the transfer is over")
            channel = self._control = self._new_control
            self._new_control = None
        try:
            address = _address(channel)
        except ConnectionLost:
            self.close_channel(channel)
            raise
        on_hello(address, Arrived(channel))
        return channel, address, self.incarnation

    def open_data(self, connection_id: int, is_wanted: Callable[[], bool]) -> Arrived | None:
        """Wait for a data connection of this number, and until control is answered. Raises ConnectionLost."""
        channel = self._wait_for_data(connection_id, is_wanted)
        if channel is None:
            return None
        try:
            while not self._control_state.wait_until_answered(self._control_state.wait_for_address()):
                pass  # control was lost, and comes anew
        except ConnectionLost:
            self.close_channel(channel)
            raise
        return Arrived(channel, self.features)

    def _wait_for_data(self, connection_id: int, is_wanted: Callable[[], bool]) -> Channel | None:
        with self._changed:
            self._waiting[connection_id] = 0.0
            try:
                while not self._is_closed and connection_id not in self._arrived:
                    if not is_wanted():
                        return None
                    self._changed.wait(LOOK_SECONDS)
                if self._is_closed:
                    raise ConnectionLost("the transfer is over")
                return self._arrived.pop(connection_id)
            finally:
                del self._waiting[connection_id]

    def close_channel(self, channel: Channel, *, in_order: bool = False, at_once: bool = False) -> None:
        """Close a channel that was handed out."""
        if at_once:
            channel.close_at_once()
        elif in_order:
            channel.close_in_order()
        with self._changed:
            self._sockets.discard(channel.socket)
            if self._control is channel:
                self._control = None
        channel.socket.close()

    def shut_all(self, keep: Iterable[socket.socket] = ()) -> None:
        """Shut down every connection but `keep`: the receiver dials again."""
        with self._changed:
            for sock in self._sockets.difference(keep):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def close(self, keep: Iterable[socket.socket] = ()) -> None:
        """Shut down every connection but `keep`, and hand no other one out. Idempotent."""
        for channel in self.give_up():
            channel.close()
        self.shut_all(keep)

    def waits_for(self) -> str:
        """Return what the control connection waits for."""
        return f"{self.receiver} to connect again"


def _address(channel: Channel) -> Address:
    """Return the address of the receiver. Raises ConnectionLost where it is gone."""
    try:
        return channel.socket.family, channel.socket.getpeername()
    except OSError as error:
        raise ConnectionLost(f"{channel.peer}: {error.strerror}") from None
