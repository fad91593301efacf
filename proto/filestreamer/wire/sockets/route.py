"""How an end that dials reaches its peer: over TCP to HOST:PORT, or however else a `Route` makes connected sockets."""

import socket
from collections.abc import Callable, Iterable
from typing import Protocol

from filestreamer.wire.sockets.addresses import Address, resolve
from filestreamer.wire.sockets.dial import Dialing

OnSocket = Callable[[socket.socket], None]
"""Called with each socket before it is connected, so that another thread can shut it."""


class Attempts(Protocol):
    """The attempts to make one connection."""

    @property
    def pins(self) -> tuple[bytes, ...]:
        """Digests (SHA-256) of which the peer's certificate must have one, beside all other checks; (): no such check.

        They count only over TLS. They belong to the addresses that are tried: a peer that is started anew has others.
        """
        ...

    def connect(self) -> tuple[Address, socket.socket]:
        """Return an address that answers, and a socket that is connected to it and has a timeout.

        Call it again where the socket is of no use. Raises ConnectionLost, which says what has failed so far; and what
        the OnSocket raises.
        """
        ...

    def failed(self, address: Address, reason: str) -> None:
        """Take in that an address is of no use, though a connection was made."""
        ...


class Route(Protocol):
    """The way to one peer. Any thread may call."""

    @property
    def host(self) -> str:
        """The name of the peer's machine, as its certificate has it."""
        ...

    def attempts(
        self, timeout_seconds: float, on_socket: OnSocket, addresses: Iterable[Address] | None = None
    ) -> Attempts:
        """Prepare to connect to the peer, at one of its addresses or at one of these.

        `timeout_seconds` limits each attempt, and becomes the socket's timeout. Raises ConnectionLost where the peer
        has no address now, or these are none of its addresses any more.
        """
        ...

    def waits_for(self) -> str:
        """Return what the last call of `attempts` waited for, where no attempt is under way."""
        ...

    def __str__(self) -> str:
        """Name the peer for people."""
        ...


class TcpRoute:
    """The way to HOST:PORT: each address of the name is tried."""

    def __init__(self, host: str, port: int, shown: str, source: str | None = None) -> None:
        """`shown` names the peer for people; `source` is the address of this machine to connect from."""
        self.host = host
        self._port = port
        self._shown = shown
        self._source = source
        self._has_resolved = False

    def attempts(
        self, timeout_seconds: float, on_socket: OnSocket, addresses: Iterable[Address] | None = None
    ) -> Dialing:
        """Look the name up, unless its `addresses` are given (RFC 8305). Raises ConnectionLost."""
        if addresses is None:
            self._has_resolved = False
            addresses = resolve(self.host, self._port)
            self._has_resolved = True
        return Dialing(addresses, timeout_seconds, on_socket, self._source)

    def waits_for(self) -> str:
        """Return what is waited for."""
        return f"a connection to {self}" if self._has_resolved else f"the name server, for {self.host}"

    def __str__(self) -> str:
        return self._shown
