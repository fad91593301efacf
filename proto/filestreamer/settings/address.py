"""Where a service listens or connects: HOST:PORT."""

import re
from typing import Final, NamedTuple

from filestreamer.wire import limits

ADDRESSES_ACCEPTED: Final = "HOST:PORT, HOST, :PORT or, for IPv6, [ADDRESS]:PORT"

_ADDRESS: Final = re.compile(r"(?:\[([^][\s/\0]*:[^][\s/\0]*)\]|([^][:\s/\0]*))(?::([0-9]{1,5}))?")

_IN_BRACKETS: Final = re.compile(r"\[([^][]*:[^][]*)\]")


class Address(NamedTuple):
    """A host name or numeric address, not resolved, and a TCP port.

    An empty host means every address of this machine; port 0 means a port that the kernel picks.
    """

    host: str
    port: int

    @property
    def is_numeric(self) -> bool:
        """Whether the host is an IPv4 or IPv6 address, not a name."""
        return ":" in self.host or _is_ipv4(self.host)

    def __str__(self) -> str:
        """Write the address as `parse_address` reads it: IPv6 in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(value: object) -> Address:
    """Read `HOST:PORT`, `HOST`, `:PORT`, `[IPV6]:PORT` or `[IPV6]`; without a port, the port is 7800.

    Raises ValueError with a message that says which forms are accepted.
    """
    match = _ADDRESS.fullmatch(value) if isinstance(value, str) and value else None
    if match is None:
        raise ValueError(f"{value!r} is not an address: write it as {ADDRESSES_ACCEPTED}")
    ipv6, name, digits = match.groups()
    host = ipv6 or name
    if digits is None and host.isdigit():
        raise ValueError(f"{value!r} is not an address: a port alone is written :{host}")
    try:
        _check_interface(host)
        host.encode("idna")
    except ValueError as error:  # a UnicodeError is one, too
        raise ValueError(f"{value!r} is not an address: {error}") from error
    port = limits.DEFAULT_PORT if digits is None else int(digits)
    if port > 65535:
        raise ValueError(f"{value!r} is not an address: ports end at 65535")
    return Address(host, port)


def numeric_address(value: object) -> str:
    """Read an IPv4 or IPv6 address without a port, with or without brackets; a link-local one has its %INTERFACE."""
    match = _IN_BRACKETS.fullmatch(value) if isinstance(value, str) else None
    host = match[1] if match else value
    if not isinstance(host, str) or not _is_address(host):
        raise ValueError(f"{value!r} is not an address: write it as 192.0.2.1, 2001:db8::1 or fe80::1%eth0")
    try:
        _check_interface(host)
    except ValueError as error:
        raise ValueError(f"{value!r} is not an address: {error}") from None
    return host


def _is_address(host: str) -> bool:
    return _is_ipv4(host) or _packed(host.partition("%")[0], is_ipv6=True) is not None


def _is_ipv4(host: str) -> bool:
    return _packed(host, is_ipv6=False) is not None


def _packed(host: str, *, is_ipv6: bool) -> bytes | None:
    """Return the bytes of a numeric address; None where it is none of this family."""
    import socket  # not at the top: few runs need it before they connect

    try:
        return socket.inet_pton(socket.AF_INET6 if is_ipv6 else socket.AF_INET, host)
    except (OSError, ValueError):  # a UnicodeError, or a NUL
        return None


def _check_interface(host: str) -> None:
    """Raise ValueError where a numeric address lacks the interface that it needs, or has one that it can't have."""
    address, percent, interface = host.partition("%")
    packed = _packed(address, is_ipv6=True) if ":" in address else None
    if packed is None:
        return
    is_link_local = b"\xfe\x80" <= packed < b"\xfe\xc0"  # fe80::/10 (RFC 4291, section 2.5.6)
    if is_link_local and not interface:
        raise ValueError(f"a link-local address needs its interface, such as {address}%eth0")
    if percent and not is_link_local:
        raise ValueError(f"only link-local addresses (fe80::...) have an interface: write {address}")


def peer(value: object) -> Address:
    """Read an address to connect to; without a host it is one of this machine."""
    address = parse_address(value)
    if address.port == 0:
        raise ValueError(f"{value!r} is not an address to connect to: ports begin at 1")
    return address if address.host else address._replace(host="localhost")
