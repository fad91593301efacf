"""The address that ssh has reached, and the way that is chosen."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from filestreamer.ssh import round_trip, way
from filestreamer.ssh.lines import Answer
from filestreamer.wire.errors import Code
from filestreamer.wire.framing import frame, frame_of
from filestreamer.wire.messages import Refusal
from filestreamer.wire.opening import ReceiverOpening, random_id
from tests.support.services import held_port


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_address_that_a_process_has_reached(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        try:
            listener.bind((host, 0))
        except OSError:
            pytest.skip(f"this machine has no {host}")
        listener.listen()
        connect = "s = socket.create_connection((sys.argv[1], int(sys.argv[2])))"
        program = f"import socket, sys; {connect}; print(flush=True); input()"
        child = subprocess.Popen(
            [sys.executable, "-c", program, host, str(listener.getsockname()[1])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with child:
            assert child.stdout is not None
            child.stdout.readline()
            link = way.link_of(child.pid)
            assert link is not None
            assert link.host("") == host
            assert link.remote[1] == listener.getsockname()[1]
            # This machine's own path is a short one, and the kernel says so.
            rtt_seconds = round_trip.seconds(*link)
            assert rtt_seconds is not None
            assert 0 < rtt_seconds < 1
            assert round_trip.seconds(link.local, (link.remote[0], 1)) is None
            assert child.stdin is not None
            child.stdin.write(b"\n")
    assert way.link_of(os.getpid()) is None
    assert way.link_of(2**30) is None


def test_both_addresses_are_tried() -> None:
    answer = Answer("s", "192.0.2.7", 7, b"", 8, "m")
    assert way.candidates(answer, None) == [(socket.AF_INET, ("192.0.2.7", 7))]
    assert [address[0] for _, address in way.candidates(answer, "192.0.2.1")] == ["192.0.2.1", "192.0.2.7"]
    assert len(way.candidates(answer, "192.0.2.7")) == 1
    assert way.candidates(answer._replace(address="fe80::1%eth9"), None) == []


def served(said: bytes) -> tuple[socket.socket, Answer]:
    """Serve one connection on loopback, on which this is said."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.sendall(said)
            with contextlib.suppress(OSError):
                sock.recv(1)

    threading.Thread(target=serve, daemon=True).start()
    return listener, Answer("s", "127.0.0.1", listener.getsockname()[1], b"", 8, "m")


def test_the_direct_way_is_taken_where_it_works() -> None:
    opening = ReceiverOpening(random_id(), (b"t" * 32,))
    listener, answer = served(frame_of(opening.greeting_body))
    with listener:
        assert way.choose(None, answer, way.candidates(answer, None), "receiver").name == way.DIRECT


@pytest.mark.parametrize(
    "said", [b"", b"SSH-2.0-OpenSSH_9.2\r\n" * 10, frame(Refusal(Code.BUSY, "x")), b"\0\0\0\x05" + bytes(13)]
)
def test_another_service_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    monkeypatch.setattr(way, "TRYING_SECONDS", 0.5)
    listener, answer = served(said)
    with listener:
        chosen = way.choose(None, answer, way.candidates(answer, None), "receiver")
        assert chosen.name == way.THROUGH_SSH
        assert "no direct connection: 127.0.0.1:" in chosen.reason


def test_a_peer_that_says_a_byte_now_and_then_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class Dripping(socket.socket):
        """Says each byte of a long frame a second after the one before."""

        def recv(self, _count: int, _flags: int = 0) -> bytes:
            clock[0] += 1
            return b"\x04" if clock[0] == 3 else b"\0"

    class Dialled:
        def __init__(self, *_: object) -> None:
            pass

        def connect(self) -> tuple[object, socket.socket]:
            return (socket.AF_INET, ("192.0.2.1", 7800)), Dripping()

        def failed(self, _address: object, reason: str) -> None:
            self.reason = reason

        def failure(self) -> str:
            return self.reason

    monkeypatch.setattr(way, "Dialing", Dialled)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    answer = Answer("s", "192.0.2.1", 7800, b"", 8, "m")
    chosen = way.choose(None, answer, way.candidates(answer, None), "receiver")
    assert chosen == ("ssh", "no direct connection: the Greeting took too long")


def test_the_way_through_ssh() -> None:
    with held_port() as port:
        answer = Answer("s", "127.0.0.1", port, b"", 8, "m")
        addresses = way.candidates(answer, None)
        assert way.choose(None, answer, addresses, "receiver") == (
            "ssh",
            f"no direct connection: 127.0.0.1:{port}: Connection refused",
        )
        assert way.choose("direct", answer, addresses, "receiver").name == "direct"
        assert way.choose(None, answer, [], "receiver").name == "ssh"


@pytest.mark.parametrize(
    ("rtt_seconds", "cores", "connections"),
    [(None, 2, 8), (0.05, 2, 8), (0.0001, 1, 2), (0.0001, 4, 4), (0.0001, 64, 8), (0.0001, None, 2)],
)
def test_how_many_connections_through_ssh(
    monkeypatch: pytest.MonkeyPatch, rtt_seconds: float | None, cores: int | None, connections: int
) -> None:
    monkeypatch.setattr(round_trip, "seconds", lambda *_: rtt_seconds)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert way.connections_through_ssh(way.Link((b"", 0), (b"", 0))) == connections


def test_nothing_is_known_of_a_path() -> None:
    assert way.connections_through_ssh(None) == way.CONNECTIONS
