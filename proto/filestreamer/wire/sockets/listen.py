"""Listening on every address of a host name."""

import errno
import socket

from filestreamer.wire.sockets.addresses import resolve

_BACKLOG = 512
"""Connections that the kernel completes before they are accepted: those of several transfers that begin at once."""


def listen(host: str, port: int) -> list[socket.socket]:
    """Listen on every address of `host`; port 0 takes one free port for all of them. `::` takes IPv4 as well.

    The sockets do not block. Raises ConnectionLost where the name does not resolve, OSError where an address can't be
    bound.
    """
    addresses = resolve(host, port, passive=True)
    listeners: list[socket.socket] = []
    absent: OSError | None = None
    for family, address in addresses:
        try:
            listeners.append(_listen(family, (address[0], port, *address[2:]), alone=len(addresses) == 1))
        except OSError as error:
            # A name may have addresses that this machine lacks: `localhost` often names ::1 on a machine without IPv6.
            # Such addresses are skipped as long as another one works.
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                absent = error
                continue
            for sock in listeners:
                sock.close()
            raise
        port = listeners[-1].getsockname()[1]
    if absent and not listeners:
        # The container images listen on `::`, whatever the kernel has. Without IPv6 that is every address of IPv4.
        if host == "::" and absent.errno == errno.EAFNOSUPPORT:
            return listen("0.0.0.0", port)
        raise absent
    return listeners


def _listen(family: int, address: tuple[object, ...], *, alone: bool) -> socket.socket:
    """Listen on one address; `alone` says that there is no other. Raises OSError."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # `::` takes IPv4 only where it is alone: beside 0.0.0.0, both would want the same port of IPv4.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::" or not alone))
        sock.bind(address)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock
