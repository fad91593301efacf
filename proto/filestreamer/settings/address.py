"""Where a service listens or connects: HOST:PORT."""

import re
from typing import Final, NamedTuple

from filestreamer.wire import limits

ADDRESSES_ACCEPTED: Final = "HOST:PORT, HOST, :PORT or, for IPv6, [ADDRESS]:PORT"

_ADDRESS: Final = re.compile(r"(?:\[([^][\s/\0]*:[^][\s/\0]*)\]|([^][:\s/\0]*))(?::([0-9]{1,5}))?")


class Address(NamedTuple):
    """A host name or numeric address, not resolved, and a TCP port.

    An empty host means every address of this machine; port 0 means a port that the kernel picks.
    """

    host: str
    port: int

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
        host.encode("idna")
    except UnicodeError as error:
        raise ValueError(f"{value!r} is not an address: {error}") from error
    port = limits.DEFAULT_PORT if digits is None else int(digits)
    if port > 65535:
        raise ValueError(f"{value!r} is not an address: ports end at 65535")
    return Address(host, port)
