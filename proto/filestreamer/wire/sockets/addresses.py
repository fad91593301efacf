"""Socket addresses: how a host name becomes addresses, and how an address is shown to people."""

import socket

from filestreamer.wire.errors import ConnectionLost

SockAddress = tuple[str, int] | tuple[str, int, int, int]


def format_address(address: tuple[object, ...]) -> str:
    """Write a socket address as HOST:PORT, with brackets around IPv6."""
    host, port = str(address[0]), address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def resolve(host: str, port: int, *, passive: bool = False) -> list[tuple[int, SockAddress]]:
    """Look up a host name; return (family, address) of each of its IPv4 and IPv6 addresses, in the resolver's order.

    `passive` makes an empty host mean every address of this machine, for listening. Raises ConnectionLost, which is
    retryable: in a container network, a name may appear later than the container that uses it.
    """
    flags = socket.AI_PASSIVE if passive else 0
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
    except OSError as error:
        raise ConnectionLost(f"{host} does not resolve: {error.strerror}") from None
    except UnicodeError:
        raise ConnectionLost(f"{host} is not a host name") from None
    unique = dict.fromkeys((int(family), sockaddr) for family, _, _, _, sockaddr in found)
    return [(family, sockaddr) for family, sockaddr in unique if family in (socket.AF_INET, socket.AF_INET6)]  # type: ignore[misc]
