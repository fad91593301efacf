"""Listening: on one address, on several of one name, and where the machine lacks some. Real sockets."""

import errno
import os
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from filestreamer.wire.errors import AddressNotReady
from filestreamer.wire.sockets import own_address
from filestreamer.wire.sockets.addresses import format_address
from filestreamer.wire.sockets.listen import accept, listen

LONG_SECONDS = 30.0
"""Far longer than anything here takes: what waits for it has failed."""

Closing = Callable[[list[socket.socket]], list[socket.socket]]


@pytest.fixture
def closing() -> Iterator[Closing]:
    """Return a function that returns its sockets, which are closed after the test."""
    kept: list[socket.socket] = []

    def keep(sockets: list[socket.socket]) -> list[socket.socket]:
        kept.extend(sockets)
        return sockets

    yield keep
    for sock in kept:
        sock.close()


def reach(family: int, host: str, port: int) -> None:
    """Connect to a listener, to see that it is there."""
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(LONG_SECONDS)
        sock.connect((host, port))


def table_line(address: str, flags: int) -> str:
    """Return a line of /proc/net/if_inet6."""
    return f"{socket.inet_pton(socket.AF_INET6, address).hex()} 02 40 00 {flags:02x}     eth0\n"


def without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel answer as one that was started with ipv6.disable=1."""

    class Ipv4Socket(socket.socket):
        def __init__(self, family: int = -1, *args: Any, **kwargs: Any) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
            super().__init__(family, *args, **kwargs)

    monkeypatch.setattr(socket, "socket", Ipv4Socket)


def test_listen_on_one_address(closing: Closing) -> None:
    (listener,) = closing(listen("127.0.0.1", 0))
    host, port = listener.getsockname()

    assert host == "127.0.0.1"
    assert listener.gettimeout() == 0.0  # for a selector
    reach(socket.AF_INET, "127.0.0.1", port)


def test_listen_on_all_addresses_takes_ipv4_too(closing: Closing) -> None:
    (listener,) = closing(listen("::", 0))
    port = listener.getsockname()[1]

    reach(socket.AF_INET, "127.0.0.1", port)
    reach(socket.AF_INET6, "::1", port)
    listener.settimeout(LONG_SECONDS)
    accepted, _ = listener.accept()
    with accepted:
        assert format_address(accepted.getpeername()).startswith("[::ffff:127.0.0.1]:")


def test_listen_on_all_addresses_of_a_machine_without_ipv6(closing: Closing, monkeypatch: pytest.MonkeyPatch) -> None:
    without_ipv6(monkeypatch)
    (listener,) = closing(listen("::", 0))
    host, port = listener.getsockname()

    assert host == "0.0.0.0"
    reach(socket.AF_INET, "127.0.0.1", port)


def test_an_ipv6_address_of_a_machine_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for one address gets that one or an error."""
    without_ipv6(monkeypatch)
    with pytest.raises(OSError, match=os.strerror(errno.EAFNOSUPPORT)):
        listen("::1", 0)


def test_listen_on_one_ipv6_address_does_not_take_ipv4(closing: Closing) -> None:
    (listener,) = closing(listen("::1", 0))

    assert listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


@pytest.mark.parametrize("addresses", [("0.0.0.0", "::"), ("::", "0.0.0.0"), ("127.0.0.1", "::1")])
def test_listen_on_every_address_of_a_name_with_one_port(
    closing: Closing, names: Callable[..., None], addresses: tuple[str, ...]
) -> None:
    names(*addresses)
    listeners = closing(listen("two.example", 0))
    (port,) = {listener.getsockname()[1] for listener in listeners}

    assert len(listeners) == 2
    assert port
    reach(socket.AF_INET, "127.0.0.1", port)
    reach(socket.AF_INET6, "::1", port)


def test_an_address_that_is_not_of_this_machine_is_left_out(closing: Closing, names: Callable[..., None]) -> None:
    names("192.0.2.1", "127.0.0.1")
    (listener,) = closing(listen("localhost", 0))

    assert listener.getsockname()[0] == "127.0.0.1"


def test_no_address_is_of_this_machine() -> None:
    with pytest.raises(AddressNotReady, match=r"192\.0\.2\.1: this machine does not have this address now"):
        listen("192.0.2.1", 0)


def test_an_address_that_comes_later(closing: Closing, names: Callable[..., None]) -> None:
    names("192.0.2.1")
    reasons: list[str] = []

    def tell(reason: str) -> None:
        reasons.append(reason)
        names("127.0.0.1")

    (listener,) = closing(listen("late.example", 0, tell))
    assert listener.getsockname()[0] == "127.0.0.1"
    assert len(reasons) == 1
    assert "192.0.2.1" in reasons[0]


def test_an_address_that_never_comes_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_address, "MISSING_SECONDS", 0.2)
    reasons: list[str] = []
    with pytest.raises(AddressNotReady):
        listen("192.0.2.1", 0, reasons.append)
    assert len(reasons) == 1


def test_a_name_with_an_address_that_works_waits_for_none_that_is_missing(
    closing: Closing, names: Callable[..., None]
) -> None:
    names("192.0.2.1", "127.0.0.1")
    closing(listen("two.example", 0, pytest.fail))


def test_a_name_whose_second_address_is_tentative(
    closing: Closing, names: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the service gets both of them, with one port."""
    names("127.0.0.1", "2001:db8::1")
    monkeypatch.setattr(own_address, "_ipv6_addresses", lambda: [table_line("2001:db8::1", 0x40)])
    listeners = closing(listen("two.example", 0, lambda _: names("127.0.0.1", "::1")))
    assert [listener.getsockname()[0] for listener in listeners] == ["127.0.0.1", "::1"]
    assert len({listener.getsockname()[1] for listener in listeners}) == 1


@pytest.mark.parametrize(
    ("flags", "says"), [(0x40, "checks it for duplicates"), (0x48, "another machine of the network has it")]
)
def test_why_an_address_is_not_ready(monkeypatch: pytest.MonkeyPatch, flags: int, says: str) -> None:
    monkeypatch.setattr(own_address, "_ipv6_addresses", lambda: [table_line("2001:db8::1", flags)])
    with pytest.raises(AddressNotReady, match=f"2001:db8::1: .*{says}"):
        listen("2001:db8::1", 0)


def test_an_interface_that_this_machine_lacks() -> None:
    with pytest.raises(AddressNotReady, match=r"this machine has no interface nowhere0; it has .*lo"):
        listen("fe80::1%nowhere0", 0)


def test_a_port_in_use(closing: Closing, names: Callable[..., None], listening: socket.socket) -> None:
    """None of the name's addresses is listened on then."""
    names("127.0.0.2", "127.0.0.1")
    port = listening.getsockname()[1]
    with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
        listen("two.example", port)

    closing([socket.create_server(("127.0.0.2", port))])


def test_a_port_is_free_again_at_once(closing: Closing) -> None:
    """A receiver that is started again does not wait for connections of the one before to time out."""
    (listener,) = listen("127.0.0.1", 0)
    address = listener.getsockname()
    with socket.create_connection(address) as ours:
        listener.settimeout(LONG_SECONDS)
        theirs, _ = listener.accept()
        theirs.close()  # the first to close keeps the address for a while
        assert ours.recv(1) == b""
    listener.close()

    (again,) = closing(listen(*address))
    assert again.getsockname() == address


# --- accepting


class Short:
    """A listener with a connection that can't be accepted."""

    def __init__(self, number: int) -> None:
        self.number = number

    def accept(self) -> tuple[socket.socket, object]:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(
    ("number", "pauses"),
    [(errno.EMFILE, 1), (errno.ENFILE, 1), (errno.ENOBUFS, 1), (errno.ENOMEM, 1), (errno.ECONNABORTED, 0)],
)
def test_a_connection_for_which_something_is_short_is_tried_again_in_a_moment(
    monkeypatch: pytest.MonkeyPatch, number: int, pauses: int
) -> None:
    """It stays with the listener, which stays readable: without a pause, the loop would spin."""
    paused: list[float] = []
    monkeypatch.setattr("filestreamer.wire.sockets.listen.time", SimpleNamespace(sleep=paused.append))
    listener: Any = Short(number)
    assert accept(listener) is None
    assert len(paused) == pauses


def test_accept(closing: Closing) -> None:
    (listener,) = closing(listen("127.0.0.1", 0))
    assert accept(listener) is None  # there is no connection yet
    with socket.create_connection(listener.getsockname()) as dialled:
        accepted = accept(listener)
        assert accepted is not None
        closing([accepted])
        assert accepted.getpeername() == dialled.getsockname()
