"""Host names to addresses, and addresses to text."""

import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from filestreamer.wire.errors import AddressNotReady, ConnectionLost
from filestreamer.wire.sockets import addresses
from filestreamer.wire.sockets.addresses import format_address, resolve


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("127.0.0.1", 7800), "127.0.0.1:7800"),
        (("::1", 7800, 0, 0), "[::1]:7800"),
        (("host.example", 1), "host.example:1"),
        (("fe80::1", 1, 0, 1), "[fe80::1%lo]:1"),
        (("fe80::1", 1, 0, 4_000_000), "[fe80::1%4000000]:1"),  # an interface that is gone
    ],
)
def test_format_address(address: tuple[object, ...], text: str) -> None:
    assert format_address(address) == text


def test_resolve_an_address() -> None:
    assert resolve("127.0.0.1", 7800) == [(socket.AF_INET, ("127.0.0.1", 7800))]
    assert resolve("::1", 7800) == [(socket.AF_INET6, ("::1", 7800, 0, 0))]


def test_resolve_a_link_local_address() -> None:
    assert resolve("fe80::1%lo", 7800) == [(socket.AF_INET6, ("fe80::1", 7800, 0, 1))]
    assert resolve("fe80::1%1", 7800) == [(socket.AF_INET6, ("fe80::1", 7800, 0, 1))]


@pytest.mark.parametrize("interface", ["nowhere0", "4000000"])
def test_an_interface_that_this_machine_lacks(interface: str) -> None:
    """Retryable: a network card may be plugged in later."""
    with pytest.raises(AddressNotReady, match=f"this machine has no interface {interface}; it has .*lo") as caught:
        resolve(f"fe80::1%{interface}", 7800)
    assert caught.value.retryable


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


def test_a_name_server_that_says_to_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
    with pytest.raises(
        AddressNotReady, match=r"receiver\.example: the name server does not answer \(Temporary failure"
    ):
        resolve("receiver.example", 7800)


def test_a_name_server_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not waited for, and asked once: a later call gets the answer to the first one."""
    asked: list[str] = []
    answer = threading.Event()

    def getaddrinfo(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        asked.append(host)
        assert answer.wait(30)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))]

    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
    for _ in range(3):
        with pytest.raises(AddressNotReady, match=r"^slow\.example: the name server has not answered yet$"):
            resolve("slow.example", 7800, seconds=0)
    answer.set()
    assert resolve("slow.example", 7800, seconds=30) == [(socket.AF_INET, ("192.0.2.1", 7800))]
    assert asked == ["slow.example"]

    resolve("slow.example", 7800, seconds=30)
    assert len(asked) == 2  # an answer is not kept


def test_an_answer_that_came_long_ago_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that was down when a push gave up says nothing of the push a day later."""
    answers = iter([socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "192.0.2.1"])
    goes_on, has_answered = threading.Event(), threading.Event()

    def getaddrinfo(_: str, port: int, **__: Any) -> list[tuple[Any, ...]]:
        assert goes_on.wait(30)
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answer, port))]

    def run(lookup: addresses._Lookup) -> None:
        look_up(lookup)
        has_answered.set()

    look_up = addresses._Lookup._run
    monkeypatch.setattr(addresses._Lookup, "_run", run)
    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
    with pytest.raises(AddressNotReady, match="has not answered yet"):
        resolve("gateway.example", 9091, seconds=0)
    goes_on.set()
    assert has_answered.wait(30)
    monkeypatch.setattr(addresses, "KEPT_SECONDS", -1.0)
    assert resolve("gateway.example", 9091, seconds=30) == [(socket.AF_INET, ("192.0.2.1", 9091))]


def test_a_name_is_looked_up_even_without_another_thread(
    monkeypatch: pytest.MonkeyPatch, names: Callable[..., None]
) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    names("192.0.2.1")
    monkeypatch.setattr(threading.Thread, "start", start)
    assert resolve("host.example", 1) == [(socket.AF_INET, ("192.0.2.1", 1))]
