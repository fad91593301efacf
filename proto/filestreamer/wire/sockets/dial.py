"""Connecting to a peer: its addresses are tried one after another."""

import errno
import os
import socket
from collections.abc import Callable

from filestreamer.wire.errors import ConnectionLost
from filestreamer.wire.sockets.addresses import SockAddress, format_address


def connect(
    addresses: list[tuple[int, SockAddress]],
    timeout_seconds: float,
    on_socket: Callable[[socket.socket], None] | None = None,
) -> socket.socket:
    """Connect to the first address that answers; each has `timeout_seconds`.

    `on_socket` is called with each socket before it connects, so that another thread can shut it. Raises
    ConnectionLost, which says why each address failed, and what `on_socket` raises.
    """
    failures = []
    for family, address in addresses:
        try:
            return _connect(family, address, timeout_seconds, on_socket)
        except OSError as error:
            failures.append(f"{format_address(address)}: {error.strerror or 'no answer'}")
    raise ConnectionLost("; ".join(failures) or "the name has no address")


def _connect(
    family: int, address: SockAddress, timeout_seconds: float, on_socket: Callable[[socket.socket], None] | None
) -> socket.socket:
    """Connect to one address. Raises OSError, and what `on_socket` raises; the socket is closed then."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if on_socket:
            on_socket(sock)
        sock.settimeout(timeout_seconds)
        sock.connect(address)
        # TCP connects a socket to itself (simultaneous open) where the kernel picks, as the socket's own port, the very
        # port that it connects to. That happens sooner or later to a sender that retries a local port without listener.
        if sock.getsockname() == sock.getpeername():
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    except BaseException:
        sock.close()
        raise
    return sock
