"""One of several connections gets hardly anything through: the others send what it had begun."""

from collections.abc import Iterator

import pytest

from filestreamer.wire.limits import MIB
from tests.support.routed import RECEIVER, SENDER, Routed, routed
from tests.support.services import Pair, Service, same
from tests.support.waiting import until

PORT = 7800
CONNECTIONS = 4


@pytest.fixture
def net() -> Iterator[Routed]:
    with routed() as made:
        made.limit("200mbit", to=RECEIVER)
        yield made


def slowed(pair: Pair, net: Routed, *flags: object) -> Service:
    """Send a file, and have the path lose nearly all of a connection once all are at work."""
    listen = ("--listen", f"{RECEIVER}:{PORT}", "--directory", pair.destination, "--anonymous")
    receiver = pair.start("receiver", *listen, under=net.at(RECEIVER))
    receiver.wait_for("listening")
    to = ("--to", f"{RECEIVER}:{PORT}", "--connections", CONNECTIONS)
    sender = pair.start("sender", pair.file("f", 64 * MIB), *to, *flags, under=net.at(SENDER))
    until(lambda: len(net.ports(MIB)) == CONNECTIONS, "all connections are at work")
    net.police(net.ports(MIB)[0], 20)
    return sender


def test_others_send_what_a_slow_connection_has_begun(pair: Pair, net: Routed) -> None:
    """Alone, it would need minutes for that."""
    sender = slowed(pair, net)
    result = sender.succeeds()
    assert same(pair.source / "f", pair.destination / "f")
    (given_up,) = {line["connection"] for line in sender.events("straggler_given_up")}
    assert result["resent_chunks"] >= 1
    assert [each["connection_id"] for each in result["per_connection"] if each["reconnects"]] == [given_up]


def test_each_keeps_its_chunks_where_the_modulo_is_strict(pair: Pair, net: Routed) -> None:
    sender = slowed(pair, net, "--strict-modulo")
    until(lambda: len(net.ports(14 * MIB)) == CONNECTIONS - 1, "the others are done")
    sender.wait_for("progress", count=len(sender.events("progress")) + 2)  # five seconds at least
    sender.end()
    assert not sender.events("straggler_given_up")
