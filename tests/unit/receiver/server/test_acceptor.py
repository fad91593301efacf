"""What the acceptor has open, and the end of it."""

import os
import socket

import pytest

from filestreamer.process import log
from filestreamer.telemetry.monitor import Monitor
from receiver.server.acceptor import HANDSHAKES_MIN, Acceptor
from receiver.server.handshake import Handshake
from receiver.settings import parse
from tests.support.services import UNIT


def acceptor(*listeners: socket.socket) -> Acceptor:
    settings, _ = parse([], {})
    logger = log.configure("receiver")
    monitor = Monitor("receiver", settings, logger, None)
    return Acceptor(
        list(listeners),
        HANDSHAKES_MIN,
        token=lambda: None,
        earlier_token=lambda _: None,
        tls=lambda: (None, b""),
        monitor=monitor,
        log=logger,
    )


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_wake_ends_the_wait() -> None:
    made = acceptor()
    made.wake()
    assert list(made.select(100 * UNIT)) == []
    made.stop()
    made.close()


def test_it_closes_all_that_it_has_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a connection whose socket does not take its Refusal."""
    before = descriptors()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    made = acceptor(listener)

    def take_nothing(handshake: Handshake, *_: object) -> bool:
        handshake.is_refused = True
        return False

    monkeypatch.setattr(Handshake, "refuse", take_nothing)
    monkeypatch.setattr(Handshake, "wants_write", property(lambda handshake: handshake.is_refused))
    with socket.create_connection(listener.getsockname()):
        assert list(made.select(UNIT)) == []
        made.stop()
        made.close()
    assert descriptors() == before


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
