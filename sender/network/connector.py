"""Where a transfer has its connections from: it dials the receiver (`dial`), or was dialled by it (`accepted`)."""

import socket
from collections.abc import Callable, Iterable
from typing import Protocol

from filestreamer.wire.sockets.addresses import Address
from filestreamer.wire.sockets.transport import Channel
from sender.network.path_mtu import PathMtu


class Opened(Protocol):
    """A connection on which Hello was said."""

    @property
    def channel(self) -> Channel:
        """The connection."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether its opening is over; else its frames are for `take`."""
        ...

    @property
    def features(self) -> tuple[str, ...]:
        """The features that the receiver has named on it by now."""
        ...

    @property
    def must_finish(self) -> bool:
        """Whether nothing more may be sent before the opening is over."""
        ...

    def check(self) -> None:
        """Raise ConnectionLost where the opening takes too long."""
        ...

    def take(self, body: bytes) -> None:
        """Take the next frame of the opening."""
        ...


OnHello = Callable[[Address, Opened], None]
"""Called with each address that control reaches, when Hello was said there."""


class Connector(Protocol):
    """The connections of one transfer. Any thread may call."""

    path_mtu: PathMtu

    def open_control(self, on_hello: OnHello) -> tuple[Channel, Address, bytes]:
        """Return the control connection, its address, and the incarnation of the receiver; `on_hello` comes before.

        Raises ConnectionLost, Refused, RemoteProtocolError, TransferFailed(POLICY).
        """
        ...

    def open_data(self, connection_id: int, is_wanted: Callable[[], bool]) -> Opened | None:
        """Return a data connection on which chunks may be sent; None where it is not wanted any more.

        Raises ConnectionLost, Refused, RemoteProtocolError.
        """
        ...

    def close_channel(self, channel: Channel, *, in_order: bool = False, at_once: bool = False) -> None:
        """Close a channel that came from here; `at_once` behind Complete, in order if the transfer goes on."""
        ...

    def shut_all(self, keep: Iterable[socket.socket] = ()) -> None:
        """Shut down every connection but `keep`: a thread that is blocked on one gets ConnectionLost."""
        ...

    def close(self, keep: Iterable[socket.socket] = ()) -> None:
        """Shut down every connection but `keep`, and hand no other one out. Idempotent."""
        ...

    def waits_for(self) -> str:
        """Return what the control connection waits for, while there is none."""
        ...
