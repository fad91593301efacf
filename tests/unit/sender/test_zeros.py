"""Zeros are told once the receiver has their entry, and told again on another control connection until it knows."""

from typing import Any, cast

import pytest

from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import messages as m
from filestreamer.wire.errors import RemoteProtocolError
from sender.dispatch.manifest import FoundZeros
from sender.dispatch.schedule import Schedule
from sender.dispatch.send_queue import SendQueue
from sender.mailbox import Mailbox
from sender.zeros import Zeros
from tests.support.manifests import manifest_of


class Link:
    """A control connection that takes everything."""

    def __init__(self) -> None:
        self.channel: object | None = object()
        self.state = "moving"
        self.said: list[m.Message] = []

    def say(self, message: m.Message) -> None:
        self.said.append(message)


class Teller:
    """The zeros of one file of ten chunks, of which 2 to 5 were found to be zeros."""

    def __init__(self) -> None:
        self.manifest = manifest_of(10)
        self.queue = SendQueue(self.manifest, Schedule(1), Mailbox())
        self.counters = TransferCounters(bytes(16), "x")
        self.link = Link()
        self.zeros = Zeros(self.manifest, self.queue, self.counters, cast(Any, self.link))
        self.manifest.parts[0].is_sent = True
        self.queue.need(0, 10)
        assert [self.queue.next(0, 1) for _ in range(3)] == [0, 1, 2]
        self.zeros.take(FoundZeros(0, self.queue.take_zeros(2, 6, 1), 1))


@pytest.fixture
def teller() -> Teller:
    return Teller()


RANGE = m.Zeros((m.SegmentRange(0, 2, 4),))


def test_zeros_wait_for_control_and_for_their_entry(teller: Teller) -> None:
    teller.manifest.parts[0].is_sent = False
    teller.zeros.tell()
    teller.manifest.parts[0].is_sent, teller.link.state = True, "offer"
    teller.zeros.tell()
    assert teller.link.said == []
    teller.link.state = "manifest"
    teller.zeros.tell()
    teller.zeros.tell()
    assert teller.link.said == [RANGE]


def test_zeros_are_told_again_until_the_receiver_knows_them(teller: Teller) -> None:
    teller.zeros.tell()
    teller.zeros.begin_offer()
    teller.zeros.tell()
    assert teller.link.said == [RANGE, RANGE]
    teller.zeros.take_known(RANGE)
    teller.zeros.take_known(RANGE)
    teller.zeros.begin_offer()
    teller.zeros.tell()
    assert teller.link.said == [RANGE, RANGE]
    assert (teller.queue.states.done_count, teller.counters.zero_bytes) == (4, 4)


def test_zeros_of_an_epoch_that_is_over_are_not_told(teller: Teller) -> None:
    teller.queue.start_over()
    teller.zeros.start_over()
    teller.zeros.take(FoundZeros(0, [(2, 6)], 1))
    teller.zeros.tell()
    assert teller.link.said == []


@pytest.mark.parametrize("known", [m.SegmentRange(0, 1, 2), m.SegmentRange(0, 8, 3), m.SegmentRange(1, 0, 1)])
def test_zeros_that_were_not_told(teller: Teller, known: m.SegmentRange) -> None:
    teller.zeros.tell()
    with pytest.raises(RemoteProtocolError):
        teller.zeros.take_known(m.Zeros((known,)))
