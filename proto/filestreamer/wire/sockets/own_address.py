"""Addresses of this machine: those that are not there yet, connecting from one of them, and peers that have one.

At boot, and whenever an interface comes up, the kernel checks an IPv6 address for duplicates before anybody may use it
(RFC 4862, section 5.4: the address is tentative). It takes a second or two, and until then `bind` fails as if the
machine had no such address. An address that DHCP assigns is missing until the server has answered.
"""

import contextlib
import enum
import errno
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

from filestreamer.wire.errors import AddressNotReady
from filestreamer.wire.sockets.addresses import MISSING_SECONDS, SockAddress, format_host, resolve

TENTATIVE_SECONDS: Final = 10.0
"""How long a tentative address is waited for: some networks check several times, a second each."""
_STEP_SECONDS: Final = 0.1

Tell = Callable[[str], None]
"""Called once, with the reason, before a wait."""

_IPV6_ADDRESSES: Final = "/proc/net/if_inet6"
"""A line for each IPv6 address of this machine: address, interface index, prefix length, scope, flags, name."""
_CONNECTIONS: Final = {socket.AF_INET: "/proc/net/tcp", socket.AF_INET6: "/proc/net/tcp6"}
"""A line for each TCP socket of this machine: number, its own address, its peer's, and more (proc(5))."""
_DADFAILED, _TENTATIVE = 0x08, 0x40  # linux/if_addr.h
_IP_BIND_ADDRESS_NO_PORT: Final = 24  # linux/in.h; Python has a name for it from 3.12


class Condition(enum.Enum):
    """Why an address can't be bound to; the value says it to people."""

    TENTATIVE = "the kernel still checks it for duplicates (is the link up?)"
    DUPLICATE = "another machine of the network has it, too: the kernel has found a duplicate"
    MISSING = "this machine does not have this address now (`ip address` lists those that it has)"


def condition(address: SockAddress) -> Condition:
    """Return why `bind` to this address has failed with EADDRNOTAVAIL."""
    if ":" in address[0]:
        wanted = socket.inet_pton(socket.AF_INET6, address[0]).hex()
        interface = address[3] if len(address) == 4 else 0
        for line in _ipv6_addresses():
            host, index, _, _, flags, *_ = line.split()
            if host == wanted and interface in (0, int(index, 16)):
                if int(flags, 16) & _DADFAILED:
                    return Condition.DUPLICATE
                if int(flags, 16) & _TENTATIVE:
                    return Condition.TENTATIVE
    return Condition.MISSING


def _ipv6_addresses() -> list[str]:
    try:
        with open(_IPV6_ADDRESSES, encoding="ascii") as file:
            return file.readlines()
    except OSError:  # a machine without IPv6
        return []


def not_ready(addresses: Sequence[SockAddress], *, is_needed: bool = True) -> AddressNotReady:
    """Make the error of addresses of this machine that can't be bound to.

    What is tentative is worth a wait; what is missing only if it `is_needed`, as no other address will do.
    """
    conditions = {format_host(address): condition(address) for address in addresses}
    seconds = 0.0
    if Condition.TENTATIVE in conditions.values():
        seconds = TENTATIVE_SECONDS
    elif Condition.MISSING in conditions.values() and is_needed:
        seconds = MISSING_SECONDS
    return AddressNotReady("; ".join(f"{host}: {why.value}" for host, why in conditions.items()), seconds)


class Waiting:
    """A bounded wait for what this machine does not have yet: try, and `wait` while that may help."""

    def __init__(self, tell: Tell | None) -> None:
        """Begin to wait. Without `tell` nothing is waited for."""
        self._tell = tell
        self._began_at = time.monotonic()
        self._is_told = False

    def wait(self, error: AddressNotReady) -> bool:
        """Wait a moment after a try that failed with this error; return False where waiting makes no sense any more."""
        if self._tell is None or time.monotonic() - self._began_at >= error.wait_seconds:
            return False
        if not self._is_told:
            self._is_told = True
            self._tell(str(error))
        time.sleep(_STEP_SECONDS)
        return True


def bind(sock: socket.socket, host: str) -> None:
    """Let a socket connect from this address of this machine, from a port that is chosen when it connects.

    Raises AddressNotReady where the machine does not have it now, OSError.
    """
    ((_, address),) = resolve(host, 0)
    # Without this option bind takes a port that no other connection uses, to whatever peer, so that ports run out.
    with contextlib.suppress(OSError):  # an old kernel
        sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
    try:
        sock.bind(address)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        raise not_ready([address]) from None


def family_of(host: str) -> int:
    """Return the address family of a numeric address."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def wait_for(host: str, tell: Tell) -> None:
    """Wait until connections can come from this address of this machine. Raises AddressNotReady, after some seconds."""
    waiting = Waiting(tell)
    while True:
        try:
            with socket.socket(family_of(host), socket.SOCK_STREAM) as sock:
                bind(sock, host)
            return
        except AddressNotReady as error:
            if not waiting.wait(error):
                raise
        except OSError as error:
            raise AddressNotReady(f"{host}: {error.strerror}") from None


def is_peer_here(sock: socket.socket) -> bool:
    """Return whether the other end of a connected socket is on this very machine, so that no network is between.

    Equal addresses say so; different ones do not deny it: from one address of an interface to another one of it, the
    kernel connects from the first.
    """
    if sock.family == socket.AF_UNIX:
        return True
    own, peer = sock.getsockname(), sock.getpeername()
    if own[0] == peer[0]:
        return True
    try:
        with socket.socket(sock.family, socket.SOCK_DGRAM) as probe:
            probe.bind((peer[0], 0, *peer[2:]))
    except OSError:
        return False  # as for most strangers, for whom the table below would be much to read
    # A machine may let programs bind to addresses that it does not have (ip_nonlocal_bind).
    wanted = [_as_listed(sock.family, address) for address in (peer, own)]
    try:
        with open(_CONNECTIONS[socket.AddressFamily(sock.family)], encoding="ascii") as file:
            return any(line.split()[1:3] == wanted for line in file)
    except (OSError, LookupError):
        return False


def _as_listed(family: int, address: SockAddress) -> str:
    """Write an address as the kernel lists it: words of 32 bits, each in the byte order of this machine."""
    packed = socket.inet_pton(family, address[0].partition("%")[0])
    words = [int.from_bytes(packed[at : at + 4], sys.byteorder) for at in range(0, len(packed), 4)]
    return "".join(f"{word:08X}" for word in words) + f":{address[1]:04X}"
