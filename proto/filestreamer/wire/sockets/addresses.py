"""Socket addresses: how a host name becomes addresses, and how an address is shown to people."""

import socket
import threading
import time
from typing import Any, Final

from filestreamer.wire.errors import AddressNotReady, ConnectionLost

SockAddress = tuple[str, int] | tuple[str, int, int, int]
Address = tuple[int, SockAddress]
"""An address family, and an address of it."""

LOOKUP_SECONDS: Final = 2.0
"""How long the name server is waited for before that is said; the lookup itself goes on."""
LOOKUP_SECONDS_MAX: Final = 30.0
"""How long a service that starts waits for it: the system asks a second and a third server after some seconds."""
KEPT_SECONDS: Final = 30.0
"""How long an answer is kept that came when nobody waited for it any more: longer than the pause between two tries."""
MISSING_SECONDS: Final = 3.0
"""How long a service that starts waits for an address that this machine does not have: it may be mistyped."""


IN_SSH: Final = "ssh"
"""What an address is called that is none of the network: the other end is a program that ssh has started."""


def format_address(address: object) -> str:
    """Write a socket address as HOST:PORT, with brackets around IPv6, and %INTERFACE where it is link-local.

    That of a Unix socket, which has no host, is IN_SSH.
    """
    if not isinstance(address, tuple):
        return IN_SSH
    host, port = format_host(address), address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def format_host(address: object) -> str:
    """Write a socket address without its port; IN_SSH for a Unix socket."""
    if not isinstance(address, tuple):
        return IN_SSH
    host = str(address[0])
    scope = address[3] if len(address) == 4 else 0
    return f"{host}%{_interface(scope)}" if scope and isinstance(scope, int) else host


def _interface(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:  # it is gone by now
        return str(index)


def resolve(host: str, port: int, *, passive: bool = False, seconds: float = LOOKUP_SECONDS) -> list[Address]:
    """Look up a host name; return each of its IPv4 and IPv6 addresses once, in the resolver's order.

    `passive` makes an empty host mean every address of this machine, for listening. Raises ConnectionLost, which is
    retryable: in a container network, a name may appear later than the container that uses it; AddressNotReady where
    the name server has not answered within `seconds`, or this machine lacks the interface behind `%`.
    """
    _check_interface(host)
    flags = socket.AI_PASSIVE if passive else 0
    lookup = _Lookup.of(host, port, flags)
    try:
        found = lookup.result(seconds)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            reason = f"{host}: the name server does not answer ({error.strerror})"
            raise AddressNotReady(reason, MISSING_SECONDS) from None
        raise ConnectionLost(f"{host} does not resolve: {error.strerror}") from None
    except OSError as error:
        raise ConnectionLost(f"{host} does not resolve: {error.strerror}") from None
    except UnicodeError:
        raise ConnectionLost(f"{host} is not a host name") from None
    unique = dict.fromkeys((int(family), sockaddr) for family, _, _, _, sockaddr in found)
    return [(family, sockaddr) for family, sockaddr in unique if family in (socket.AF_INET, socket.AF_INET6)]


def _check_interface(host: str) -> None:
    """Raise AddressNotReady where this machine has no interface of the name, or number, behind `%`."""
    _, percent, interface = host.partition("%")
    if not percent or ":" not in host:
        return
    known = socket.if_nameindex()
    if not any(interface in (name, str(index)) for index, name in known):
        names = ", ".join(name for _, name in known)
        raise AddressNotReady(f"{host}: this machine has no interface {interface}; it has {names}", MISSING_SECONDS)


class _Lookup:
    """One call of getaddrinfo, which can't be cancelled, and takes as long as the name servers make it take.

    A name is looked up in a thread of its own, so that its caller may stop waiting. Who asks for the same name again
    gets the answer to the call that is under way, so that there is never more than one thread for a name. An answer for
    which nobody has come in KEPT_SECONDS is no answer any more.
    """

    _mutex = threading.Lock()  # protects `_under_way`
    _under_way: Final[dict[tuple[str, int, int], "_Lookup"]] = {}

    def __init__(self, *key: Any) -> None:
        self._key = key
        self._done = threading.Event()
        self._done_at = 0.0
        """When it was done (monotonic)."""
        self._found: list[Any] = []
        self._error: Exception | None = None

    @classmethod
    def of(cls, host: str, port: int, flags: int) -> "_Lookup":
        """Return the lookup of this name that is under way, or begin one."""
        key = (host, port, flags)
        with cls._mutex:
            lookup = cls._under_way.get(key)
            if lookup is not None and not lookup._is_stale:
                return lookup
            lookup = cls(*key)
            if is_numeric(host):
                lookup._run()
                return lookup
            cls._under_way[key] = lookup
        try:
            threading.Thread(target=lookup._run, name="name lookup", daemon=True).start()
        except (RuntimeError, MemoryError):  # this process may have no more threads
            lookup._run()
        return lookup

    @property
    def _is_stale(self) -> bool:
        return self._done.is_set() and time.monotonic() - self._done_at > KEPT_SECONDS

    def _run(self) -> None:
        host, port, flags = self._key
        try:
            self._found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
        except Exception as error:  # noqa: BLE001 - the top of a thread: `result` raises it
            self._error = error
        self._done_at = time.monotonic()
        self._done.set()

    def result(self, seconds: float) -> list[Any]:
        """Return what getaddrinfo returned, or raise what it raised; AddressNotReady where it takes too long."""
        if not self._done.wait(seconds):
            raise AddressNotReady(f"{self._key[0]}: the name server has not answered yet", LOOKUP_SECONDS_MAX)
        with self._mutex:
            if self._under_way.get(self._key) is self:
                del self._under_way[self._key]
        if self._error is not None:
            raise self._error
        return self._found


def is_numeric(host: str) -> bool:
    """Whether a host is an address, or empty: then no name server is asked."""
    if not host or ":" in host:
        return True
    try:
        socket.inet_pton(socket.AF_INET, host)
    except (OSError, UnicodeError, ValueError):
        return False
    return True
