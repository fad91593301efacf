"""Peers on this very machine; tests/integration/test_networks.py has addresses that come late."""

import os
import socket
from collections.abc import Sequence

import pytest

from filestreamer.wire.sockets import own_address
from filestreamer.wire.sockets.own_address import is_peer_here


def connected(listen: str, come_from: str) -> tuple[socket.socket, socket.socket]:
    """Return the end that was accepted, and the one that has connected."""
    family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    with socket.create_server((listen, 0), family=family) as server:
        made = socket.create_connection(server.getsockname()[:2], source_address=(come_from, 0))
        return server.accept()[0], made


@pytest.mark.parametrize(
    ("listen", "come_from"), [("127.0.0.1", "127.0.0.1"), ("127.0.0.2", "127.0.0.1"), ("::1", "::1")]
)
def test_from_any_address_of_this_machine(listen: str, come_from: str) -> None:
    accepted, made = connected(listen, come_from)
    with accepted, made:
        assert is_peer_here(accepted)
        assert is_peer_here(made)


def test_a_socket_without_a_network() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert is_peer_here(one)


class Elsewhere:
    """A connection whose peer has an address that this machine has not, or that it would let a program bind to."""

    family = socket.AF_INET

    def __init__(self, peer: str) -> None:
        self._peer = peer

    def getsockname(self) -> Sequence[object]:
        return ("127.0.0.1", 7800)

    def getpeername(self) -> Sequence[object]:
        return (self._peer, 7801)


@pytest.mark.parametrize("peer", ["192.0.2.1", "127.0.0.2"])
def test_a_peer_of_another_machine(peer: str) -> None:
    assert not is_peer_here(Elsewhere(peer))  # type: ignore[arg-type]


def test_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_address, "_CONNECTIONS", {socket.AF_INET: os.path.join(os.sep, "nonexistent")})
    accepted, made = connected("127.0.0.2", "127.0.0.1")
    with accepted, made:
        assert not is_peer_here(accepted)


@pytest.mark.parametrize("host", ["1.2.3.4", "2001:db8::1:2%lo"])
def test_addresses_as_the_kernel_lists_them(host: str) -> None:
    """Written and read: words in the machine's own order."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    address, port = own_address._as_listed(family, (host, 80)).split(":")
    assert port == "0050"
    size = len(socket.inet_pton(family, host.partition("%")[0]))
    assert len(address) == 2 * size
