"""A path that loses large packets and says nothing: it is named, and smaller packets are tried (an MTU black hole)."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import Authority
from tests.support.routed import RECEIVER, SENDER, Routed, routed
from tests.support.services import UNIT, Pair, Service, same

PORT = 7800
MIB = 1 << 20
IPV6_LEAST, BELOW_IPV6, TINY = 1300, 1000, 300
"""The largest packets that get through: those of the first step do, only those of the last one do, none do."""


@pytest.fixture
def net() -> Iterator[Routed]:
    with routed() as made:
        yield made


def receive(pair: Pair, net: Routed, *args: object) -> Service:
    listen = ("--listen", f"{RECEIVER}:{PORT}", "--directory", pair.destination, "--anonymous")
    receiver = pair.start("receiver", *listen, *args, under=net.at(RECEIVER))
    receiver.wait_for("listening")
    return receiver


def send(pair: Pair, net: Routed, path: Path, *args: object, **more: Any) -> Service:
    return pair.start("sender", path, "--to", f"{RECEIVER}:{PORT}", *args, under=net.at(SENDER), **more)


@pytest.mark.parametrize(("most", "steps"), [(IPV6_LEAST, 1), (BELOW_IPV6, 2)])
def test_chunks_that_do_not_get_through(pair: Pair, net: Routed, most: int, steps: int) -> None:
    net.lose_large(most, to=RECEIVER)
    receive(pair, net)
    sender = send(pair, net, pair.file("f", 8 * MIB))
    sender.succeeds()
    assert same(pair.source / "f", pair.destination / "f")
    warnings = sender.events("mtu_black_hole")
    assert len(warnings) == steps
    assert all("MTU" in line["reason"] and "tcp_mtu_probing" in line["reason"] for line in warnings)
    assert len(sender.events("small_packets_work")) == 1


def test_a_path_that_changes_in_the_middle(pair: Pair, net: Routed) -> None:
    receive(pair, net)
    sender = send(pair, net, pair.file("f", 24 * MIB), "--rate-limit", "4MiB/s", "--chunk-size", "1MiB")
    sender.wait_for("connected")
    net.lose_large(IPV6_LEAST, to=RECEIVER)
    sender.wait_for("mtu_black_hole")
    sender.succeeds()
    assert same(pair.source / "f", pair.destination / "f")


def test_a_list_of_files_that_does_not_get_through(pair: Pair, net: Routed) -> None:
    """The control connection waits in the middle of a frame."""
    tree = pair.source / "tree"
    tree.mkdir()
    for number in range(3000):
        (tree / f"a name that is rather long, for many bytes in few files {number:06}").touch()
    net.lose_large(IPV6_LEAST, to=RECEIVER)
    receive(pair, net)
    sender = send(pair, net, tree)
    sender.succeeds()
    assert len(list((pair.destination / "tree").iterdir())) == 3000
    assert sender.events("mtu_black_hole")


def test_certificates_that_do_not_get_through(pair: Pair, net: Routed, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    receive(pair, net, *authority.issue("receiver", f"IP:{RECEIVER}").shown)
    net.lose_large(600, to=SENDER)
    sender = send(pair, net, pair.file("f", MIB), *authority.trusted)
    sender.succeeds()
    assert "TLS handshake" in sender.events("mtu_black_hole")[0]["reason"]


def test_digests_that_do_not_come_back(pair: Pair, net: Routed) -> None:
    receiver = receive(pair, net)
    send(pair, net, pair.file("f", 16 * MIB), "--chunk-size", "4KiB").succeeds()
    (pair.source / "t").mkdir()
    (pair.destination / "t").mkdir()
    for place in (pair.source, pair.destination):
        (place / "f").rename(place / "t" / "f")
    net.lose_large(IPV6_LEAST, to=SENDER)
    sender = send(pair, net, pair.source / "t", "--checksum", "--chunk-size", "4KiB")
    assert "reach" in receiver.wait_for("mtu_black_hole")["reason"]
    assert sender.succeeds()["sent_bytes"] == 0


def test_where_nothing_large_gets_through_the_error_says_so(pair: Pair, net: Routed) -> None:
    net.lose_large(TINY, to=RECEIVER)
    receive(pair, net)
    sender = send(pair, net, pair.file("f", MIB), "--give-up-after", 1.5 * UNIT)
    message = sender.fails(1, "timeout")
    assert "waiting for acknowledgements of 1.00 MiB on" in message
    assert "small packets reach" in message


def test_a_dead_cable_is_none(pair: Pair, net: Routed) -> None:
    receive(pair, net)
    sender = send(pair, net, pair.file("f", 24 * MIB), "--rate-limit", "4MiB/s", "--give-up-after", 1.5 * UNIT)
    sender.wait_for("connected")
    net.cut()
    message = sender.fails(1, "timeout")
    assert "the receiver was last heard" in message
    assert "MTU" not in sender.stderr


def test_a_receiver_that_reads_nothing_is_none(pair: Pair, net: Routed) -> None:
    receiver = receive(pair, net)
    sender = send(pair, net, pair.file("f", 64 * MIB), "--rate-limit", "4MiB/s", "--give-up-after", 1.5 * UNIT)
    sender.wait_for("progress")  # chunks move by then: the answer to the offer is not what is missing
    receiver.signal(signal.SIGSTOP)
    message = sender.fails(1, "timeout")
    assert "acknowledgements of" in message
    assert "MTU" not in sender.stderr
