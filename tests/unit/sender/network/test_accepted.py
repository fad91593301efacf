"""How the connections of a receiver that has dialled are handed to the threads of its transfer."""

import select
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from filestreamer.wire.errors import ConnectionLost
from filestreamer.wire.sockets.transport import Channel
from sender.network.accepted import Accepted
from sender.network.control_state import ControlState
from tests.support.services import HANG
from tests.support.waiting import until

INCARNATION = bytes(16)


class Ends:
    """Connections, and a transfer whose control is answered."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.accepted = Accepted(INCARNATION, "the receiver")
        self.state = ControlState()
        self.accepted.begin(self.state)

    def channel(self) -> Channel:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
        self.sockets += [theirs, ours]
        return Channel(ours, lambda: None)

    def answer_control(self) -> None:
        self.accepted.take_control(self.channel())
        _, address, incarnation = self.accepted.open_control(lambda *_: None)
        assert incarnation == INCARNATION
        self.state.answered(address, incarnation)


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.accepted.close()
    made.state.close()
    for sock in made.sockets:
        sock.close()


class Waiting(threading.Thread):
    """A thread that waits for a data connection."""

    def __init__(self, ends: Ends, connection_id: int) -> None:
        super().__init__(daemon=True)
        self.ends, self.connection_id = ends, connection_id
        self.is_wanted = True
        self.channel: Channel | None = None
        self.error: ConnectionLost | None = None
        self.start()

    def run(self) -> None:
        try:
            opened = self.ends.accepted.open_data(self.connection_id, lambda: self.is_wanted)
            self.channel = opened.channel if opened is not None else None
        except ConnectionLost as error:
            self.error = error

    def ends_within(self) -> None:
        self.join(HANG)
        assert not self.is_alive()


def reserve(ends: Ends) -> int:
    found: list[int] = []

    def look() -> bool:
        reserved = ends.accepted.reserve()
        if reserved is not None:
            found.append(reserved)
        return bool(found)

    until(look, "a connection is wanted")
    return found[0]


def test_each_connection_comes_to_the_thread_that_waits_for_it(ends: Ends) -> None:
    ends.answer_control()
    assert ends.accepted.reserve() is None  # nobody waits
    waiting = Waiting(ends, 7)
    assert reserve(ends) == 7
    channel = ends.channel()
    ends.accepted.take_data(7, channel)
    waiting.ends_within()

    assert waiting.channel is channel
    assert ends.accepted.reserve() is None


def test_a_number_that_a_stranger_has_asked_for_is_given_again(ends: Ends) -> None:
    """Who has only said Greeting keeps no place: the number that was reserved longest ago comes next."""
    ends.answer_control()
    waiting = [Waiting(ends, number) for number in (0, 1)]
    until(lambda: {reserve(ends), reserve(ends)} == {0, 1}, "both wait")

    assert [reserve(ends) for _ in range(4)] in ([0, 1, 0, 1], [1, 0, 1, 0])
    for each in waiting:
        ends.accepted.take_data(each.connection_id, ends.channel())
        each.ends_within()
        assert each.channel is not None


def test_a_connection_that_nobody_wants_any_more_is_closed(ends: Ends) -> None:
    ends.answer_control()
    channel = ends.channel()
    ends.accepted.take_data(3, channel)

    assert channel.socket.fileno() < 0


def test_a_thread_whose_connection_is_not_wanted_any_more_ends(ends: Ends) -> None:
    ends.answer_control()
    waiting = Waiting(ends, 0)
    assert reserve(ends) == 0
    waiting.is_wanted = False
    waiting.ends_within()

    assert (waiting.channel, waiting.error) == (None, None)


def test_a_new_control_connection_takes_the_place_of_the_older_one(ends: Ends) -> None:
    first, second = ends.channel(), ends.channel()
    ends.accepted.take_control(first)
    assert ends.accepted.open_control(lambda *_: None)[0] is first
    ends.accepted.take_control(second)

    assert first.socket.recv(1) == b""  # its reader notices
    assert ends.accepted.open_control(lambda *_: None)[0] is second


def test_a_control_connection_that_was_reset_before_it_was_handed_out_is_closed(ends: Ends) -> None:
    """A receiver that does so again and again would take one descriptor each time."""
    channel = ends.channel()
    theirs, ours = ends.sockets
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    until(lambda: bool(select.select([ours], [], [], 0)[0]), "the reset has come")
    ends.accepted.take_control(channel)
    with pytest.raises(ConnectionLost):
        ends.accepted.open_control(lambda *_: None)

    assert (ours.fileno(), len(ends.accepted)) == (-1, 0)


def test_at_the_end_everybody_is_told(ends: Ends) -> None:
    waiting = Waiting(ends, 0)
    assert reserve(ends) == 0
    ends.accepted.close()
    waiting.ends_within()

    assert waiting.error is not None
    with pytest.raises(ConnectionLost, match="over"):
        ends.accepted.open_control(lambda *_: None)
    late = ends.channel()
    ends.accepted.take_control(late)
    assert late.socket.fileno() < 0
