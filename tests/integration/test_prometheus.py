"""A real Prometheus scrapes real transfers: the dashboard has data in every panel, and alerts fire when they should."""

import contextlib
import math
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from filestreamer.settings.address import parse_address
from filestreamer.wire.limits import MIB
from tests.support.prometheus import RULES, PanelQuery, Prometheus, panel_queries, prometheus, rules, wait_for
from tests.support.proxy import Blackhole, FlipPayload, Proxy
from tests.support.scrape import METRICS, metrics_address
from tests.support.services import HANG, Pair, Service, held_port, same

LINGER = ("--metrics-linger", 600)
"""So that whatever is asked, the answer does not depend on how soon."""

QUICK_RULES = re.sub(r"\bfor: \d+s|\bfor: 1m", "for: 1s", RULES.read_text().replace("[1m]", "[4s]"))
"""The rules, in a hurry: ranges of a minute are 4 s here, and conditions that have to last do so for 1 s."""


class Watched:
    """A receiver, where the sender has to serve its metrics, and a Prometheus that scrapes both or one of them."""

    def __init__(self, receiver: Service, sender_metrics: str, server: Prometheus) -> None:
        self.receiver = receiver
        self.server = server
        self.sender_options = ("--metrics", sender_metrics, *LINGER)


@contextlib.contextmanager
def watched(pair: Pair, directory: Path, rules_text: str, *, only: str | None = None) -> Iterator[Watched]:
    """Start everything but the sender, and wait until it is scraped: nothing of the transfer is missed."""
    receiver = pair.receiver(*METRICS, *LINGER)
    with held_port() as port:
        targets = {"receiver": metrics_address(receiver), "sender": f"127.0.0.1:{port}"}
        scraped = {job: address for job, address in targets.items() if only in (job, None)}
        with prometheus(directory, scraped, rules_text) as server:
            wait_for(
                lambda: {one["metric"]["job"] for one in server.query("up")} == {*scraped}, "all targets are tried"
            )
            if "receiver" in scraped:
                wait_for(lambda: server.query('up{job="receiver"} == 1'), "the receiver is scraped")
            yield Watched(receiver, targets["sender"], server)


def has_data(series: list[dict[str, Any]]) -> bool:
    """Whether a panel would show something."""
    return any(not math.isnan(float(one["value"][1])) for one in series)


def watch_until_all_have_data(server: Prometheus, queries: set[PanelQuery], seconds: float) -> set[str]:
    """Ask again and again until each query had data once; return the transfers that were seen."""
    seen: set[str] = set()

    def none_is_empty() -> bool:
        for query in sorted(queries):
            series = server.query(query.expr)
            seen.update(one["metric"]["transfer"] for one in series if "transfer" in one["metric"])
            if has_data(series):
                queries.remove(query)
        return not queries

    try:
        wait_for(none_is_empty, "every query has data", seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}; no data: {sorted(queries)}") from None
    return seen


def recorded() -> set[PanelQuery]:
    """Return a query for each recorded series of each side."""
    return {
        PanelQuery("recorded", f'{rule["record"]}{{side="{rule["labels"]["side"]}"}}')
        for rule in rules()
        if "record" in rule
    }


def tells(side: str, expr: str) -> bool:
    """Whether one service alone tells what a query asks for."""
    other = {"sender": "receiver", "receiver": "sender"}[side]
    told = {rule["record"] for rule in rules() if rule.get("labels", {}).get("side") == side}
    return other not in expr and set(re.findall(r"\w+:filestreamer_\w+:\w+", expr)) <= told


def check_rules(server: Prometheus) -> None:
    """Every rule has been evaluated, without an error or a warning."""
    evaluated = [rule for group in server.get("rules")["groups"] for rule in group["rules"]]
    assert len(evaluated) == len(rules())
    assert {(rule["health"], rule.get("lastError", "")) for rule in evaluated} == {("ok", "")}


def test_every_panel_and_every_rule_has_data(pair: Pair, tmp_path: Path, seed: int) -> None:
    """While a transfer of both services runs, and while what is left of it can be seen; and nobody is alerted."""
    file = pair.file("large", 48 * MIB, seed)
    with watched(pair, tmp_path, RULES.read_text()) as here:
        slow = ("--connections", 4, "--chunk-size", "256KiB", "--rate-limit", "2MiB/s")
        sender = pair.sender(file, pair.address(here.receiver), *slow, *here.sender_options)
        queries = {*panel_queries(window="10s"), *recorded()}
        (transfer,) = watch_until_all_have_data(here.server, queries, HANG)

        (result,) = sender.wait_for_results()
        assert (result["status"], result["transfer_id"][:8]) == ("complete", transfer)

        def complete() -> list[dict[str, Any]]:
            found = here.server.query("transfer:filestreamer_done_bytes:sum")
            return found if {float(one["value"][1]) for one in found} == {file.stat().st_size} else []

        assert {one["metric"]["side"] for one in wait_for(complete, "all is acknowledged")} == {"sender", "receiver"}
        check_rules(here.server)
        assert here.server.query("ALERTS") == here.server.alerts() == []


@pytest.mark.parametrize("side", ["sender", "receiver"])
def test_the_dashboard_of_one_side_alone(pair: Pair, tmp_path: Path, seed: int, side: str) -> None:
    """Where only one service is scraped, every panel that it can tell something of has data."""
    file = pair.file("large", 64 * MIB, seed)
    with watched(pair, tmp_path, RULES.read_text(), only=side) as here:
        slow = ("--connections", 2, "--chunk-size", "256KiB", "--rate-limit", "1MiB/s")
        pair.sender(file, pair.address(here.receiver), *slow, *here.sender_options)
        queries = {query for query in panel_queries(window="10s") if tells(side, query.expr)}
        assert {query.panel for query in queries} >= {"Progress", "Time left", "Phase", f"Bytes in flight: {side}"}
        watch_until_all_have_data(here.server, queries, HANG)
        check_rules(here.server)


def test_a_stalled_connection_fires_its_alert(pair: Pair, tmp_path: Path, seed: int) -> None:
    """Both sides name the connection, and no other; once it is lost and made anew, the alert is over.

    The rules are those of deploy/, only quicker: see QUICK_RULES.
    """
    file = pair.file("large", 64 * MIB, seed)
    with watched(pair, tmp_path, QUICK_RULES) as here:

        def stalled() -> list[dict[str, Any]]:
            name = "FilestreamerConnectionStalled"
            return [alert for alert in here.server.alerts() if alert["labels"]["alertname"] == name]

        # In the middle of a chunk, beyond its first block: the receiver has that one in flight.
        with Proxy(pair.address(here.receiver), [Blackhole(on="data 1", at=2 * MIB + 3 * MIB // 4)]) as proxy:
            slow = ("--connections", 4, "--chunk-size", "1MiB", "--rate-limit", "4MiB/s")
            sender = pair.sender(file, proxy.address, *slow, *here.sender_options)
            alerts = wait_for(lambda: found if len(found := stalled()) >= 2 else [], "both sides alert")
            assert {alert["labels"]["side"] for alert in alerts} == {"sender", "receiver"}
            assert {alert["labels"]["connection"] for alert in alerts} == {"1"}
            for alert in alerts:
                said = " ".join(alert["annotations"].values())
                assert alert["labels"]["transfer"] in said
                assert "<no value>" not in said
                assert "error" not in said.lower()

            proxy.reset("data 1")
            wait_for(lambda: not stalled(), "the alert is over")
            assert sender.wait_for_results()[0]["status"] == "complete"
    assert same(file, pair.destination / "large")


def test_damage_and_strangers_fire_their_alerts(pair: Pair, tmp_path: Path, seed: int) -> None:
    """One chunk arrives damaged, and somebody who speaks no protocol of ours comes again and again."""
    file = pair.file("damaged", 4 * MIB, seed)
    with watched(pair, tmp_path, QUICK_RULES) as here:
        address = pair.address(here.receiver)
        with Proxy(address, [FlipPayload(on="data *", nth=None, chunk=1)]) as proxy:
            sender = pair.sender(file, proxy.address, "--chunk-size", "1MiB", *here.sender_options)
            assert sender.wait_for_results()[0]["resent_chunks"] == 1
        for _ in range(40):
            with socket.create_connection(parse_address(address), HANG) as stranger:
                stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")

        def fired() -> dict[str, dict[str, Any]]:
            found = {alert["labels"]["alertname"]: alert for alert in here.server.alerts()}
            return found if len(found) == 2 else {}

        alerts = wait_for(fired, "both alerts fire")
        assert alerts["FilestreamerDigestMismatch"]["labels"]["severity"] == "critical"
        assert alerts["FilestreamerManyConnectionsRefused"]["labels"]["reason"] == "protocol"
