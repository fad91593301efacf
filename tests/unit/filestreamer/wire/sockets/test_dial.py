"""Connecting: the first address that answers, and what becomes of the sockets of the others. Real connections."""

import socket
from collections.abc import Callable, Iterator

import pytest

from filestreamer.wire.errors import ConnectionLost
from filestreamer.wire.sockets.addresses import SockAddress, resolve
from filestreamer.wire.sockets.dial import connect

LONG_SECONDS = 30.0
"""Far longer than anything here takes: what waits for it has failed."""


class CalledOff(Exception):
    """What the test raises while a socket is being connected."""


@pytest.fixture
def refusing() -> Iterator[int]:
    """Keep a port of 127.0.0.1 where nobody listens, and nobody else can."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield int(sock.getsockname()[1])


def ipv4(*addresses: SockAddress) -> list[tuple[int, SockAddress]]:
    return [(socket.AF_INET, address) for address in addresses]


def test_connect(listening: socket.socket) -> None:
    with connect(ipv4(listening.getsockname()), LONG_SECONDS) as sock:
        assert sock.getpeername() == listening.getsockname()


def test_the_first_address_refuses(listening: socket.socket, refusing: int) -> None:
    addresses = ipv4(("127.0.0.1", refusing), listening.getsockname())

    with connect(addresses, LONG_SECONDS) as sock:
        assert sock.getpeername() == listening.getsockname()


def test_a_name_whose_first_address_refuses(listening: socket.socket, names: Callable[..., None]) -> None:
    names("::1", "127.0.0.1")
    port = listening.getsockname()[1]

    with connect(resolve("two.example", port), LONG_SECONDS) as sock:
        assert sock.getpeername() == listening.getsockname()


def test_an_address_family_that_this_machine_lacks(listening: socket.socket) -> None:
    addresses = [(int(socket.AF_APPLETALK), ("127.0.0.1", 1)), *ipv4(listening.getsockname())]

    with connect(addresses, LONG_SECONDS) as sock:
        assert sock.getpeername() == listening.getsockname()


def test_every_address_refuses(refusing: int) -> None:
    addresses = ipv4(("127.0.0.1", refusing), ("127.0.0.2", refusing))

    with pytest.raises(ConnectionLost) as caught:
        connect(addresses, LONG_SECONDS)
    assert f"127.0.0.1:{refusing}: Connection refused; 127.0.0.2:{refusing}: Connection refused" == str(caught.value)


def test_no_address() -> None:
    with pytest.raises(ConnectionLost, match="the name has no address"):
        connect([], LONG_SECONDS)


def test_nobody_connects_to_himself() -> None:
    """TCP allows it where the port that the kernel picks is the very one that nobody listens on yet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()

    with pytest.raises(ConnectionLost, match="Connection refused"):
        connect(ipv4(address), LONG_SECONDS, lambda sock: sock.bind(address))


def test_a_socket_is_told_before_it_connects(listening: socket.socket, refusing: int) -> None:
    told: list[socket.socket] = []
    addresses = ipv4(("127.0.0.1", refusing), listening.getsockname())

    with connect(addresses, LONG_SECONDS, told.append) as sock:
        assert len(told) == 2
        assert told[0].fileno() == -1  # what failed is closed
        assert told[1] is sock


def test_a_connect_that_is_called_off_leaves_no_socket_open(listening: socket.socket) -> None:
    told: list[socket.socket] = []

    def call_off(sock: socket.socket) -> None:
        told.append(sock)
        raise CalledOff

    with pytest.raises(CalledOff):
        connect(ipv4(listening.getsockname()) * 2, LONG_SECONDS, call_off)
    assert [sock.fileno() for sock in told] == [-1]
