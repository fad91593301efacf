"""Connecting to a peer: its addresses are tried side by side, each a moment after the one before (RFC 8305).

So an address from which no answer comes costs a quarter of a second, not a timeout. One thread does all of it: the
sockets do not block, and `poll` waits for them.
"""

import errno
import math
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from filestreamer.wire.errors import AddressNotReady, ConnectionLost
from filestreamer.wire.sockets import own_address
from filestreamer.wire.sockets.addresses import Address, format_address

ATTEMPT_DELAY_SECONDS: Final = 0.25
"""From one attempt to the next (RFC 8305, section 5: Connection Attempt Delay)."""
FAILURES_SHOWN: Final = 20
"""How many addresses an error names."""


class _Attempt(NamedTuple):
    address: Address
    sock: socket.socket
    until: float


class Dialing:
    """The attempts to reach a peer at one of its addresses. `connect` again where the address it returned is of no use.

    One thread calls it; other threads may shut the sockets that it tells to `on_socket`.
    """

    def __init__(
        self,
        addresses: Iterable[Address],
        timeout_seconds: float,
        on_socket: Callable[[socket.socket], None] | None = None,
        source: str | None = None,
        pins: tuple[bytes, ...] = (),
    ) -> None:
        """Prepare to try the addresses, each for `timeout_seconds`.

        `on_socket` is called with each socket before it connects, so that another thread can shut it. `source` is the
        address of this machine to connect from; addresses of the other family are left out. `pins` are for who goes on
        with the connections (`route.Attempts`).
        """
        self.pins = pins
        self._timeout_seconds = timeout_seconds
        self._on_socket = on_socket
        self._source = source
        self._failures: dict[Address, str] = {}
        self._waiting: deque[Address] = deque()
        self._under_way: dict[int, _Attempt] = {}  # by descriptor
        self._poll = select.poll()
        for address in interleave(addresses):
            if source is not None and address[0] != own_address.family_of(source):
                self.failed(address, f"not tried, as --source-address {source} is of the other family")
            else:
                self._waiting.append(address)

    def connect(self) -> tuple[Address, socket.socket]:
        """Return the first address that answers, and a socket that is connected to it and has the timeout.

        The other attempts are closed; their addresses are tried by the next call. Raises ConnectionLost, which says why
        each address has failed, in this call and before; and what `on_socket` raises.
        """
        next_at = 0.0
        try:
            while self._waiting or self._under_way:
                now = time.monotonic()
                if self._waiting and (now >= next_at or not self._under_way):
                    if self._begin(self._waiting.popleft(), now):
                        next_at = now + ATTEMPT_DELAY_SECONDS
                    continue
                has_failed, won = self._wait(min(next_at if self._waiting else math.inf, self._next_timeout()))
                if won is not None:
                    won.sock.settimeout(self._timeout_seconds)
                    return won.address, won.sock
                if has_failed:
                    next_at = 0.0
            raise self.failure()
        finally:
            self._call_off()

    def failed(self, address: Address, reason: str) -> None:
        """Take in that an address is of no use: why it could not be connected to or, once it was, what failed then."""
        shown = format_address(address[1])
        self._failures[address] = reason if shown in reason else f"{shown}: {reason}"

    def failure(self) -> ConnectionLost:
        """Make the error that says why each address has failed."""
        shown = list(self._failures.values())[:FAILURES_SHOWN]
        if len(self._failures) > len(shown):
            shown.append(f"and {len(self._failures) - len(shown)} other addresses")
        return ConnectionLost("; ".join(shown) or "the name has no address")

    def _begin(self, address: Address, now: float) -> bool:
        """Begin to connect to an address; return whether that is under way now. Raises what `on_socket` raises."""
        try:
            sock = socket.socket(address[0], socket.SOCK_STREAM)
        except OSError as error:
            self.failed(address, _reason(error))
            return False
        try:
            if self._on_socket is not None:
                self._on_socket(sock)
            sock.setblocking(False)
            reason = self._connect(sock, address)
        except BaseException:
            sock.close()
            raise
        if reason is not None:
            sock.close()
            self.failed(address, reason)
            return False
        self._under_way[sock.fileno()] = _Attempt(address, sock, now + self._timeout_seconds)
        self._poll.register(sock, select.POLLOUT)
        return True

    def _connect(self, sock: socket.socket, address: Address) -> str | None:
        """Ask the kernel to connect; return why it does not."""
        try:
            if self._source is not None:
                own_address.bind(sock, self._source)
            sock.connect(address[1])
        except BlockingIOError:
            return None
        except OSError as error:
            return _reason(error)
        except AddressNotReady as error:
            return f"--source-address {error}"
        return None

    def _next_timeout(self) -> float:
        return min((attempt.until for attempt in self._under_way.values()), default=math.inf)

    def _wait(self, until: float) -> tuple[bool, _Attempt | None]:
        """Wait for an attempt to end; return whether one has failed, and the one that has succeeded, if any."""
        has_failed = False
        seconds = max(0.0, until - time.monotonic())
        for fd, _ in self._poll.poll(math.ceil(seconds * 1000)):
            attempt = self._take(fd)
            reason = _outcome(attempt.sock)
            if reason is None:
                return has_failed, attempt
            self._fail(attempt, reason)
            has_failed = True
        now = time.monotonic()
        for fd in [fd for fd, attempt in self._under_way.items() if attempt.until <= now]:
            self._fail(self._take(fd), f"no answer within {self._timeout_seconds:g} s")
            has_failed = True
        return has_failed, None

    def _take(self, fd: int) -> _Attempt:
        self._poll.unregister(fd)
        return self._under_way.pop(fd)

    def _fail(self, attempt: _Attempt, reason: str) -> None:
        attempt.sock.close()
        self.failed(attempt.address, reason)

    def _call_off(self) -> None:
        """Close the attempts that are under way; their addresses are the first to be tried again."""
        attempts = [self._take(fd) for fd in list(self._under_way)]
        for attempt in attempts:
            attempt.sock.close()
        self._waiting.extendleft(attempt.address for attempt in reversed(attempts))


def connect(
    addresses: Iterable[Address],
    timeout_seconds: float,
    on_socket: Callable[[socket.socket], None] | None = None,
    source: str | None = None,
) -> socket.socket:
    """Connect to the first of these addresses that answers. Arguments and errors are those of `Dialing`."""
    return Dialing(addresses, timeout_seconds, on_socket, source).connect()[1]


def interleave(addresses: Iterable[Address]) -> list[Address]:
    """Return each address once, the families in turn, beginning with that of the first (RFC 8305, section 4)."""
    by_family: dict[int, deque[Address]] = {}
    for address in dict.fromkeys(addresses):
        by_family.setdefault(address[0], deque()).append(address)
    mixed: list[Address] = []
    while any(by_family.values()):
        mixed.extend(family.popleft() for family in by_family.values() if family)
    return mixed


def _outcome(sock: socket.socket) -> str | None:
    """Return why an attempt that has ended has failed; None where it has not."""
    if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        return os.strerror(code)
    try:
        # TCP connects a socket to itself (simultaneous open) where the kernel picks, as the socket's own port, the very
        # port that it connects to. That happens sooner or later to a sender that retries a local port without listener.
        return os.strerror(errno.ECONNREFUSED) if sock.getsockname() == sock.getpeername() else None
    except OSError as error:  # another thread has shut it, or the peer has reset it since
        return _reason(error)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
