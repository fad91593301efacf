"""Listening on every address of a host name, and accepting connections."""

import errno
import socket
import time
from typing import Final

from filestreamer.wire.errors import AddressNotReady
from filestreamer.wire.sockets import own_address
from filestreamer.wire.sockets.addresses import SockAddress, resolve

_BACKLOG = 512
"""Connections that the kernel completes before they are accepted: those of several transfers that begin at once."""
_SHORTAGES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE_SECONDS: Final = 0.05


def accept(listener: socket.socket) -> socket.socket | None:
    """Accept a connection; return None where there is none, or there is no descriptor or memory for it.

    Then a listener stays readable. Its loop would spin, and have a whole processor: so this takes a moment.
    """
    try:
        return listener.accept()[0]
    except OSError as error:
        if error.errno in _SHORTAGES:
            time.sleep(_PAUSE_SECONDS)
        return None


def listen(host: str, port: int, tell: own_address.Tell | None = None) -> list[socket.socket]:
    """Listen on every address of `host`; port 0 takes one free port for all of them. `::` takes IPv4 as well.

    An address that this machine does not have yet, and the name server, are waited for, some seconds, after `tell` was
    called with the reason; without `tell` they are not. The sockets do not block. Raises ConnectionLost where the name
    does not resolve; AddressNotReady where this machine has none of the addresses, or the name server does not answer;
    OSError where an address can't be bound for another reason.
    """
    waiting = own_address.Waiting(tell)
    while True:
        listeners: list[socket.socket] = []
        try:
            listeners, absent = _listen_on_each(host, port)
            if absent and not listeners:
                raise own_address.not_ready(absent)
        except AddressNotReady as error:
            if not waiting.wait(error):
                raise
            continue
        # A name may have addresses that this machine lacks: `localhost` often names ::1 on a machine without IPv6.
        # Such addresses are skipped as long as another one works.
        if not absent or not waiting.wait(own_address.not_ready(absent, is_needed=False)):
            return listeners
        _close(listeners)


def _listen_on_each(host: str, port: int) -> tuple[list[socket.socket], list[SockAddress]]:
    """Listen where that is possible; return the sockets, and the addresses that this machine lacks. Raises as `listen`.

    Where it has not one address family of them, that is an OSError.
    """
    addresses = resolve(host, port, passive=True)
    listeners: list[socket.socket] = []
    absent: list[SockAddress] = []
    no_family: OSError | None = None
    try:
        for family, address in addresses:
            try:
                listeners.append(_listen(family, (address[0], port, *address[2:]), alone=len(addresses) == 1))
                port = listeners[-1].getsockname()[1]
            except OSError as error:
                if error.errno == errno.EAFNOSUPPORT:
                    no_family = error
                elif error.errno == errno.EADDRNOTAVAIL:
                    absent.append(address)
                else:
                    raise
    except BaseException:
        _close(listeners)
        raise
    if no_family is not None and not listeners and not absent:
        # The container images listen on `::`, whatever the kernel has. Without IPv6 that is every address of IPv4.
        if host == "::":
            return _listen_on_each("0.0.0.0", port)
        raise no_family
    return listeners, absent


def _close(listeners: list[socket.socket]) -> None:
    for sock in listeners:
        sock.close()


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
