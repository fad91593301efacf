"""What the acceptor has open, and the end of it."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from typing import Protocol

import pytest

from filestreamer.listening.acceptor import HANDSHAKES_MIN, Acceptor, Listener
from filestreamer.listening.handshake import Handshake, _network
from filestreamer.process import log
from filestreamer.wire import messages as m
from filestreamer.wire.framing import frame_of
from filestreamer.wire.opening import ReceiverOpening, SenderOpening, random_id
from tests.support.processes import own_descriptors
from tests.support.services import UNIT

INCARNATION = random_id()


def acceptor(*listeners: socket.socket, token: Callable[[], str | None] = lambda: None) -> Acceptor[ReceiverOpening]:
    def opening(certificate_sha256: bytes) -> ReceiverOpening:
        required = token()
        return ReceiverOpening(INCARNATION, (required.encode(),) if required else None, certificate_sha256)

    return Acceptor(
        [Listener(listener) for listener in listeners],
        HANDSHAKES_MIN,
        opening=opening,
        tls=lambda: (None, b""),
        refused=lambda _: None,
        log=log.configure("receiver"),
    )


def test_wake_ends_the_wait() -> None:
    made = acceptor()
    made.wake()
    assert list(made.select(100 * UNIT)) == []
    made.stop()
    made.close()


def test_it_closes_all_that_it_has_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a connection whose socket does not take its Refusal."""
    before = own_descriptors()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    made = acceptor(listener)

    def take_nothing(handshake: Handshake[ReceiverOpening], *_: object) -> bool:
        handshake.is_refused = True
        return False

    monkeypatch.setattr(Handshake, "refuse", take_nothing)
    monkeypatch.setattr(Handshake, "wants_write", property(lambda handshake: handshake.is_refused))
    with socket.create_connection(listener.getsockname()):
        assert list(made.select(UNIT)) == []
        made.stop()
        made.close()
    assert own_descriptors() == before


def test_wake_after_the_end_touches_no_other_file() -> None:
    made = acceptor()
    made.stop()
    made.close()
    readers_and_writers = [os.pipe2(os.O_NONBLOCK) for _ in range(4)]  # they get the numbers that were closed
    made.wake()
    for reader, writer in readers_and_writers:
        with pytest.raises(BlockingIOError):
            os.read(reader, 1)
        os.close(reader)
        os.close(writer)


class Connect(Protocol):
    """Opens a connection from an address, which may say Hello and no more."""

    def __call__(self, host: str = "127.0.0.1", *, says_hello: bool = False) -> socket.socket: ...


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Serve HANDSHAKES_MIN places."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4 * HANDSHAKES_MIN)
    listener.setblocking(False)
    made = acceptor(listener, token=lambda: "a token of these tests, and it is long")
    hello = frame_of(SenderOpening(b"a token").hello(random_id(), m.Role.CONTROL, 0, 1))
    with contextlib.ExitStack() as stack:
        stack.callback(made.close)
        stack.callback(made.stop)

        def connect(host: str = "127.0.0.1", *, says_hello: bool = False) -> socket.socket:
            sock = stack.enter_context(socket.create_connection(listener.getsockname(), source_address=(host, 0)))
            assert list(made.select(UNIT)) == []
            if says_hello:
                sock.sendall(hello)
                assert list(made.select(UNIT)) == []
            return sock

        yield connect


def test_where_places_run_out_a_connection_that_has_said_hello_stays(connect: Connect) -> None:
    """On a long path, the Proof of an honest sender comes seconds after its Hello: others connect meanwhile."""
    honest = connect(says_hello=True)
    strangers = [connect() for _ in range(3 * HANDSHAKES_MIN)]
    assert not is_ended(honest)
    assert [is_ended(stranger) for stranger in strangers] == [True] * (2 * HANDSHAKES_MIN + 1) + [False] * (
        HANDSHAKES_MIN - 1
    )


@pytest.mark.parametrize("say_hello", [False, True])
def test_strangers_from_many_addresses_take_each_other_s_places(connect: Connect, say_hello: bool) -> None:
    """Not those of a peer with several connections from one address, of which one has said Hello, and one nothing."""
    first = [connect(f"127.0.1.{at}", says_hello=say_hello) for at in range(1, HANDSHAKES_MIN)]
    peer = [connect(says_hello=says_hello) for says_hello in (True, False)]
    strangers = [connect(f"127.0.2.{at}", says_hello=say_hello) for at in range(1, HANDSHAKES_MIN - 3)]
    assert [is_ended(sock) for sock in peer] == [False, False]
    assert sum(map(is_ended, first + strangers)) == len(first) + len(strangers) + len(peer) - HANDSHAKES_MIN


@pytest.mark.parametrize(
    ("host", "other", "is_same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
    ],
)
def test_a_network_is_what_one_end_has(host: str, other: str, is_same: bool) -> None:
    assert (_network(host) == _network(other)) is is_same


def is_ended(sock: socket.socket) -> bool:
    """Whether the acceptor has closed a connection: there is a Greeting, and then either an end or nothing yet."""
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while sock.recv(4096):
            pass
        return True
    return False
