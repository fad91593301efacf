"""Host names to addresses, and addresses to text."""

import socket
from collections.abc import Callable
from typing import Any

import pytest

from filestreamer.wire.errors import ConnectionLost
from filestreamer.wire.sockets.addresses import format_address, resolve


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("127.0.0.1", 7800), "127.0.0.1:7800"),
        (("::1", 7800, 0, 0), "[::1]:7800"),
        (("host.example", 1), "host.example:1"),
    ],
)
def test_format_address(address: tuple[object, ...], text: str) -> None:
    assert format_address(address) == text


def test_resolve_an_address() -> None:
    assert resolve("127.0.0.1", 7800) == [(socket.AF_INET, ("127.0.0.1", 7800))]
    assert resolve("::1", 7800) == [(socket.AF_INET6, ("::1", 7800, 0, 0))]


def test_resolve_every_address_once_and_in_order(names: Callable[..., None]) -> None:
    names("::1", "127.0.0.2", "127.0.0.1", "127.0.0.2")

    assert [address[0] for _, address in resolve("many.example", 7800)] == ["::1", "127.0.0.2", "127.0.0.1"]


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example", "\udcff"])
def test_what_is_no_name(host: str) -> None:
    with pytest.raises(ConnectionLost, match=r"is not a host name|does not resolve"):
        resolve(host, 1)


def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retryable: in a container network a name may come later than its user."""

    def getaddrinfo(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
    with pytest.raises(ConnectionLost, match=r"receiver\.example does not resolve: Name or service") as caught:
        resolve("receiver.example", 7800)
    assert caught.value.retryable
