"""The control link of a coordinator: what it says, when it gives up, how far its reader goes ahead."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode
from filestreamer.wire.errors import Code, ConnectionLost, Interrupted, LocalProtocolError, TransferFailed
from filestreamer.wire.framing import frame
from filestreamer.wire.sockets.control_link import ControlLink
from filestreamer.wire.sockets.transport import Channel, Deadline, prepare
from tests.support.services import HANG

PROGRESS = m.Progress(m.Phase.MOVING, 0, 0, ())


def channels() -> tuple[Channel, Channel]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    return Channel(prepare(ours, 60.0), lambda: None), Channel(prepare(theirs, 60.0), lambda: None)


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    made = channels()
    yield made
    for each in made:
        each.close()


@pytest.fixture
def link(pair: tuple[Channel, Channel]) -> ControlLink:
    made = ControlLink("sender", 2, threading.Event())
    made.attach(pair[0])
    pair[0].patience = made.check
    return made


def test_nothing_is_said_without_a_channel() -> None:
    link = ControlLink("sender", 2, threading.Event())

    assert not link.say(PROGRESS)
    assert not link.is_heartbeat_due(1e9)
    link.say_goodbye(TransferFailed(Code.INTERNAL, "nobody hears this"))


def test_the_session_holds_for_what_is_said(link: ControlLink) -> None:
    with pytest.raises(LocalProtocolError):
        link.say(m.Finish(0, bytes(16)))
    assert link.say(m.Offer(1024, None, False, 0))
    assert link.state == "manifest"


def test_a_new_channel_begins_a_new_conversation(link: ControlLink, pair: tuple[Channel, Channel]) -> None:
    link.say(m.Offer(1024, None, False, 0))
    link.attach(pair[0])

    assert link.state == "offer"


def test_a_write_that_fails_shuts_the_channel(link: ControlLink, pair: tuple[Channel, Channel]) -> None:
    pair[0].shut()

    assert not link.say(PROGRESS)


def test_a_channel_is_closed_when_nothing_is_written_to_it(
    link: ControlLink, pair: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the write might go to whatever connection gets the descriptor next."""
    is_written, is_shut = threading.Event(), threading.Event()
    steps = []

    def send(_: m.Message) -> None:
        is_written.set()
        assert is_shut.wait(HANG), "a write that is under way is not made to end"
        steps.append("written")

    monkeypatch.setattr(pair[0], "send_message", send)
    monkeypatch.setattr(pair[0], "shut", is_shut.set)
    coordinator = threading.Thread(target=link.say, args=(PROGRESS,))
    coordinator.start()
    assert is_written.wait(HANG)
    link.let_go(pair[0], lambda _: steps.append("closed"))
    coordinator.join(HANG)
    assert steps == ["written", "closed"]


def test_a_heartbeat_is_due_when_nothing_was_said_for_long(link: ControlLink) -> None:
    assert link.is_heartbeat_due(limits.HEARTBEAT_SECONDS + 1)
    link.say(PROGRESS)
    assert not link.is_heartbeat_due(0.0)


@pytest.mark.parametrize(
    ("error", "code"),
    [(TransferFailed(Code.NO_SPACE, "full"), Code.NO_SPACE), (Interrupted(15), Code.SHUTTING_DOWN)],
)
def test_goodbye_has_the_reason_and_is_the_end(
    link: ControlLink, pair: tuple[Channel, Channel], error: TransferFailed | Interrupted, code: Code
) -> None:
    link.say_goodbye(error, PROGRESS)

    assert decode(pair[1].read_body()) == PROGRESS
    assert decode(pair[1].read_body()) == m.Abort(code, str(error))
    with pytest.raises(ConnectionLost):
        pair[1].read_body()


def test_a_peer_that_ended_the_transfer_is_told_nothing(link: ControlLink, pair: tuple[Channel, Channel]) -> None:
    link.received(m.Abort(Code.NO_SPACE, "full"))
    link.say_goodbye(TransferFailed(Code.NO_SPACE, "full"))
    pair[0].close()

    with pytest.raises(ConnectionLost):
        pair[1].read_body()


def test_what_was_not_acted_on_bounds_what_is_read(link: ControlLink, pair: tuple[Channel, Channel]) -> None:
    """Two frames are read ahead, and the third one when the coordinator has acted on the first."""
    taken: list[bytes] = []
    came = threading.Semaphore(0)

    def take(body: bytes) -> None:
        taken.append(body)
        came.release()

    def read() -> None:
        with pytest.raises(ConnectionLost):
            link.read(pair[0], take)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(3):
        pair[1].send(frame(PROGRESS))
    assert came.acquire(timeout=10)
    assert came.acquire(timeout=10)
    assert not came.acquire(timeout=0.2)
    link.acted()
    assert came.acquire(timeout=10)
    assert len(taken) == 3
    link.over.set()
    pair[1].send(frame(PROGRESS))  # the reader waits for room, or for this frame: in both cases it ends
    reader.join(10)
    assert not reader.is_alive()


def test_a_reader_that_waits_for_this_end_ends_with_the_transfer(
    link: ControlLink, pair: tuple[Channel, Channel]
) -> None:
    """Also while the channel's patience is that of a goodbye."""
    pair[1].send(frame(PROGRESS))
    pair[0].patience = Deadline(3.0, "the goodbye")
    link.over.set()

    with pytest.raises(ConnectionLost, match="the transfer is over"):
        link.read(pair[0], lambda _: None, lambda: True)


class Stuck:
    """A channel whose peer takes nothing: a write asks its patience, again and again."""

    def __init__(self, link: ControlLink) -> None:
        self._link = link
        self.was_shut = False

    def send_message(self, message: m.Message) -> None:
        del message
        for _ in range(1000):
            self._link.check()
        pytest.fail("the write goes on for ever")

    def shut(self) -> None:
        self.was_shut = True


@pytest.mark.parametrize("reason", ["hurried", "dead"])
def test_a_peer_that_takes_nothing_does_not_hold_the_coordinator(
    link: ControlLink, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck: Any = Stuck(link)
    link.attach(stuck)
    link.is_hurried = reason == "hurried"
    if reason == "dead":
        monkeypatch.setattr(limits, "DEAD_SECONDS", -1.0)

    assert not link.say(PROGRESS)
    assert stuck.was_shut
    link.is_hurried = False
    link.check()  # nothing is being written any more
