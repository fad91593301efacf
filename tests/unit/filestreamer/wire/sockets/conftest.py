"""What the tests of sockets share: a resolver that answers as the test says, and somebody who listens."""

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

LONG_SECONDS = 30.0
"""Far longer than anything here takes: what waits for it has failed."""


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function after which every name has the addresses that it is given."""

    def set_addresses(*addresses: str) -> None:
        def getaddrinfo(host: str | None, port: int, **_: Any) -> list[tuple[Any, ...]]:
            return [
                (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
                if ":" in address
                else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
                for address in addresses
            ]

        monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)

    return set_addresses


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(LONG_SECONDS)
        yield server
