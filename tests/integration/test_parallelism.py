"""`--connections auto`: a real pair finds out how many connections make it fast."""

import signal
from typing import Any

import pytest

from filestreamer.wire.limits import CONNECTIONS_AUTO, MIB
from tests.support.relay import READ_BYTES, Relay
from tests.support.scrape import METRICS, scrape
from tests.support.services import Pair, Service, same
from tests.support.waiting import undisturbed


def changes(sender: Service) -> list[tuple[int, int, str]]:
    """Return what was decided: from, to, why."""
    return [(each["connections_before"], each["connections"], each["reason"]) for each in sender.events("parallelism")]


def ended_in_order(*services: Service) -> None:
    """Nobody was lost: connections that were not needed any more ended as they should."""
    for service in services:
        assert [line for line in service.log if line["level"] != "info"] == []


def moved(result: dict[str, Any]) -> int:
    """Return how many connections brought something."""
    return sum(connection["chunks"] > 0 for connection in result["per_connection"])


@pytest.mark.parametrize("strict", [False, True])
def test_connections_are_added_where_each_brings_so_much(pair: Pair, seed: int, strict: bool) -> None:
    """A way on which a connection makes 4 MiB/s, however many there are."""
    file = pair.file("f", 64 * MIB, seed)

    def are_added() -> bool:
        (pair.destination / "f").unlink(missing_ok=True)
        receiver = pair.receiver("--once")
        with Relay(pair.address(receiver), delay_seconds=READ_BYTES / (4 * MIB)) as relay:
            flags = ("--connections", "auto", "--chunk-size", "64KiB", *(["--strict-modulo"] if strict else []))
            sender = pair.sender(file, relay.address, *flags)
            sent, received = sender.succeeds(), receiver.succeeds()

        assert same(file, pair.destination / "f")
        assert all(line["bytes_per_second"] > 0 for line in sender.events("parallelism"))
        assert moved(sent) == moved(received) <= sent["connections"] <= CONNECTIONS_AUTO
        assert sent["reconnects"] == 0
        if strict:
            assert sent["stolen_chunks"] == 0
        ended_in_order(sender, receiver)
        return changes(sender)[:2] == [(2, 4, "try_more"), (4, 8, "try_more")] and moved(sent) >= 8

    undisturbed(are_added, "doubled twice")


def test_at_a_rate_limit_no_connection_is_added(pair: Pair, seed: int) -> None:
    """It is the default. One makes 10 MiB/s as two do, and is tried where the machine has nothing else to do."""
    file = pair.file("f", 40 * MIB, seed)

    def none_is_added() -> bool:
        (pair.destination / "f").unlink(missing_ok=True)
        receiver = pair.receiver("--once")
        sender = pair.sender(file, pair.address(receiver), "--rate-limit", "10MiB/s", "--chunk-size", "64KiB")
        sent, received = sender.succeeds(), receiver.succeeds()

        assert same(file, pair.destination / "f")
        assert sent["connections"] == received["connections"]
        assert (sent["resent_chunks"], received["resent_chunks"]) == (0, 0)
        ended_in_order(sender, receiver)
        return changes(sender)[:1] in ([], [(2, 1, "try_fewer")]) and sent["connections"] == 2

    undisturbed(none_is_added, "the limit is reached with two")


def test_decisions_are_in_the_metrics(pair: Pair, seed: int) -> None:
    file = pair.file("f", 64 * MIB, seed)
    receiver = pair.receiver()
    with Relay(pair.address(receiver), delay_seconds=READ_BYTES / (2 * MIB)) as relay:
        sender = pair.sender(file, relay.address, "--chunk-size", "64KiB", *METRICS)
        sender.wait_for("parallelism")
        seen = scrape(sender)

    assert seen.value("transfer_connections") >= 4
    assert seen.value("transfer_connection_changes_total", reason="try_more") >= 1
    assert seen.value("transfer_connection_changes_total", reason="needed") == 0


def test_a_number_that_was_chosen_stays(pair: Pair, seed: int) -> None:
    file = pair.file("f", 16 * MIB, seed)
    receiver = pair.receiver("--once")
    with Relay(pair.address(receiver), delay_seconds=READ_BYTES / (4 * MIB)) as relay:
        sender = pair.sender(file, relay.address, "--chunk-size", "64KiB", "--connections", 2)
        sent = sender.succeeds()

    assert sent["connections"] == 2
    assert changes(sender) == []


def test_an_interrupted_transfer_resumes_with_any_number(pair: Pair, seed: int) -> None:
    """Interrupted while its connections become more; the rest goes over two."""
    file = pair.file("f", 48 * MIB, seed)
    receiver = pair.receiver()
    with Relay(pair.address(receiver), delay_seconds=READ_BYTES / (2 * MIB)) as relay:
        first = pair.sender(file, relay.address, "--chunk-size", "64KiB")
        first.wait_for("parallelism", count=2)
        first.signal(signal.SIGTERM)
        assert first.wait() == 143
    second = pair.sender(file, pair.address(receiver), "--chunk-size", "64KiB", "--connections", 2).succeeds()

    assert same(file, pair.destination / "f")
    assert second["held_bytes"] > 0


def test_connections_that_are_reset_come_back_while_they_become_more(pair: Pair, seed: int) -> None:
    file = pair.file("f", 48 * MIB, seed)
    receiver = pair.receiver("--once")
    with Relay(pair.address(receiver), delay_seconds=READ_BYTES / (4 * MIB)) as relay:
        sender = pair.sender(file, relay.address, "--chunk-size", "64KiB")
        sender.wait_for("parallelism")
        for carried in relay.carried:
            carried.reset()
            carried.close()
        sent = sender.succeeds()

    assert receiver.wait() == 0
    assert same(file, pair.destination / "f")
    assert sent["reconnects"] >= 1
