"""A connection in its opening (proto/README.md, "Opening"): silent peers, and sockets that do not take all at once."""

import socket
import ssl
import time
from collections.abc import Iterator

import pytest

from filestreamer.listening.handshake import Handshake
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode
from filestreamer.wire.errors import Code, RemoteProtocolError
from filestreamer.wire.framing import frame_of, read_body
from filestreamer.wire.opening import ReceiverOpening, SenderOpening, random_id
from tests.support.services import HANG


class Stingy(socket.socket):
    """A socket that takes nothing at first, then a few bytes at a time, and says so as TLS or TCP does."""

    says: type[OSError] = BlockingIOError
    _takes = True

    def send(self, data: bytes, *_: int) -> int:  # type: ignore[override]
        self._takes = not self._takes
        if not self._takes:
            raise self.says
        return super().send(data[:5])


class Bench:
    """A handshake, and its peer."""

    def __init__(self, says: type[OSError]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.peer = socket.create_connection(listener.getsockname())
            accepted, _ = listener.accept()
        self.peer.settimeout(HANG)
        stingy = Stingy(fileno=accepted.detach())
        stingy.says = says
        self.handshake = Handshake(stingy, ReceiverOpening(random_id(), None), None)

    def read(self) -> m.Message:
        def exact(count: int) -> bytes:
            read = b""
            while len(read) < count:
                some = self.peer.recv(count - len(read))
                assert some, f"closed after {len(read)} of {count} bytes"
                read += some
            return read

        return decode(read_body(exact, limits.FRAME_BYTES))

    def close(self) -> None:
        self.peer.close()
        self.handshake.socket.close()


@pytest.fixture(params=[ssl.SSLWantWriteError, ssl.SSLWantReadError, BlockingIOError])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(request.param)
    yield made
    made.close()


def go_on(handshake: Handshake[ReceiverOpening]) -> None:
    """Do what the server does whenever the socket is ready."""
    for _ in range(2 * limits.OPENING_FRAME_BYTES):
        if not handshake.wants_write:
            return
        assert not handshake.receive()
    raise AssertionError("it never says all of it")


def test_the_greeting_is_said_bit_by_bit(bench: Bench) -> None:
    bench.handshake.greet()
    assert bench.handshake.wants_write
    go_on(bench.handshake)
    assert isinstance(bench.read(), m.Greeting)


@pytest.mark.parametrize("greets", [True, False])
def test_a_refusal_is_said_bit_by_bit(bench: Bench, greets: bool) -> None:
    """Behind the Greeting, where that is not out yet."""
    if greets:
        bench.handshake.greet()
    done = bench.handshake.refuse(Code.LIMIT, "too many")
    for _ in range(limits.OPENING_FRAME_BYTES):
        done = done or bench.handshake.finish_refusal()
    assert done
    if greets:
        assert isinstance(bench.read(), m.Greeting)
    assert bench.read() == m.Refusal(Code.LIMIT, "too many")


# --- a peer that says nothing


class Silent(Bench):
    """A handshake of a receiver that speaks TLS, and a peer that says nothing."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.peer = socket.create_connection(listener.getsockname())
            accepted, _ = listener.accept()
        self.peer.settimeout(HANG)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.begun_at = time.monotonic()
        self.handshake = Handshake(accepted, ReceiverOpening(random_id(), None), context)
        self.handshake.greet()


@pytest.fixture
def silent() -> Iterator[Silent]:
    made = Silent()
    yield made
    made.close()


def told_to_speak_tls(silent: Silent) -> bool:
    """Whether the peer is told with POLICY, in clear text, what it lacks."""
    refusal = silent.read()
    assert isinstance(refusal, m.Refusal)
    return refusal.code is Code.POLICY and "--tls" in refusal.reason


def test_tls_and_a_peer_that_speaks_clear_text(silent: Silent) -> None:
    """It is told so at once."""
    silent.peer.sendall(frame_of(SenderOpening(None).hello(random_id(), m.Role.CONTROL, 0, 1)))
    with pytest.raises(RemoteProtocolError, match="speaks TLS: pass the sender --tls") as caught:
        silent.handshake.receive()
    assert silent.handshake.refuse(caught.value.code, caught.value.reason)
    assert told_to_speak_tls(silent)


def test_tls_and_a_peer_of_which_nothing_arrives(silent: Silent) -> None:
    """It may speak TLS over a path that loses large packets: in clear text it is told nothing."""
    assert not silent.handshake.is_overdue(silent.begun_at + limits.OPENING_SILENCE_SECONDS - 0.1)
    assert silent.handshake.is_overdue(time.monotonic() + limits.OPENING_SILENCE_SECONDS)
    assert silent.handshake.refuse(Code.TIMEOUT, "no Hello")
    assert silent.peer.recv(1) == b""


def test_tls_and_a_peer_that_has_begun_to_shake_hands(silent: Silent) -> None:
    """It gets no word in clear text."""
    silent.peer.sendall(b"\x16\x03\x01")
    assert not silent.handshake.receive()
    assert silent.handshake.refuse(Code.TIMEOUT, "no Hello")
    assert silent.peer.recv(1) == b""


# --- how long


def test_silence_counts_from_the_last_byte(silent: Silent) -> None:
    """A round-trip of some seconds, and then another one; but all of them together have an end."""
    for byte in b"\x16\x03\x01":
        silent.peer.sendall(bytes([byte]))
        heard_at = time.monotonic()
        assert not silent.handshake.receive()
        assert not silent.handshake.is_overdue(heard_at + limits.OPENING_SILENCE_SECONDS - 0.1)
        assert silent.handshake.is_overdue(time.monotonic() + limits.OPENING_SILENCE_SECONDS)


def test_an_opening_ends_even_if_its_peer_is_never_silent(silent: Silent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OPENING_SECONDS", limits.OPENING_SILENCE_SECONDS / 2)
    silent.peer.sendall(b"\x16")
    assert not silent.handshake.receive()
    assert not silent.handshake.is_overdue(silent.begun_at + limits.OPENING_SECONDS - 0.1)
    assert silent.handshake.is_overdue(time.monotonic() + limits.OPENING_SECONDS)
