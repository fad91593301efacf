"""Metrics of real transfers: the names that dashboards depend on, and that the numbers are true.

What the metrics port does when it is attacked, and what it does after the end, is in test_endpoint.py.
"""

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Final

import pytest

from filestreamer.wire.limits import MIB
from tests.support.contract import BY_USER, STAGES, contract
from tests.support.prometheus import program
from tests.support.proxy import Proxy
from tests.support.scrape import METRICS, Scrape, scrape
from tests.support.services import UNIT, Pair, Service
from tests.support.waiting import until

STEADY: Final = ("--rate-limit", "8MiB/s", "--chunk-size", "64KiB", "--connections", 4)


def running(pair: Pair, *flags: object) -> tuple[Service, Service]:
    """Start a transfer that takes a while, and wait until every connection has moved something."""
    receiver = pair.receiver(*METRICS)
    sender = pair.sender(pair.file("private-name", 64 * MIB), pair.address(receiver), *STEADY, *METRICS, *flags)
    for service in (sender, receiver):
        until(lambda service=service: _all_have_moved(scrape(service)), "all connections move")  # type: ignore[misc]
    return sender, receiver


def _all_have_moved(seen: Scrape) -> bool:
    chunks = seen.values("connection_chunks_total")
    return len(chunks) == 4 and min(chunks) > 0


def test_names_types_and_labels(pair: Pair) -> None:
    """What users script against; only ever added to."""
    for service in running(pair):
        seen = scrape(service)
        assert "openmetrics" in seen.content_type
        found: dict[str, tuple[str, set[str]]] = {}
        for name, family in seen.families.items():
            labels = {frozenset(sample.labels) - {"le"} for sample in family.samples}
            assert len(labels) == 1, f"{name}: {labels}"
            found[name] = (family.type, set(*labels))
            assert family.documentation, f"{name} says what it is"
        assert found == contract(service.command)
        stages = {labels["stage"] for labels, _ in seen.samples("connection_stage_seconds_total")}
        assert stages == STAGES[service.command]


def test_no_name_and_no_path_is_told(pair: Pair) -> None:
    """The port asks nobody who they are."""
    for service in running(pair):
        text = scrape(service).text
        assert "private-name" not in text
        assert str(pair.destination) not in text


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text"])
def test_promtool_finds_nothing(pair: Pair, accept: str) -> None:
    for service in running(pair):
        text = scrape(service, accept).text
        if accept == "text/plain":  # the only format that it reads
            checked = subprocess.run(
                [program("promtool"), "check", "metrics"], input=text, text=True, capture_output=True, check=False
            )
            assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
        assert re.search(r"^# HELP .*bytes", text, re.MULTILINE)


def test_labels_are_the_transfer_and_its_connections(pair: Pair) -> None:
    sender, receiver = running(pair)
    for service in (sender, receiver):
        seen = scrape(service)
        ups = list(seen.samples("connection_up"))
        assert {labels["connection"] for labels, _ in ups} == {"0", "1", "2", "3"}
        assert all(value == 1 for _, value in ups)
        assert {labels["transfer"] for labels, _ in ups} == {receiver.wait_for("transfer_started")["transfer"]}
        assert seen.value("transfer_phase", phase="moving") == 1
        assert sum(seen.values("transfer_phase")) == 1
        assert seen.value("transfer_size_bytes") == 64 * MIB


def test_bytes_in_flight_are_those_not_yet_acknowledged(pair: Pair) -> None:
    """A stalled transfer: what the sender has in flight is what it sent less what was acknowledged, and stays so."""
    receiver = pair.receiver(*METRICS)
    file = pair.file("f", 256 * MIB)
    with Proxy(pair.address(receiver)) as proxy:
        flags = ("--connections", 2, "--chunk-size", "1MiB", *METRICS)
        sender = pair.sender(file, proxy.address, *flags, "--rate-limit", "64MiB/s")
        until(lambda: sum(scrape(sender).values("connection_chunks_total")) > 4, "chunks are acknowledged")
        for name in ("data 0", "data 1"):
            proxy.hold(name, "down")  # no acknowledgement comes any more, until the window is full
        until(lambda: stands(sender), "the windows are full")
        seen = scrape(sender)
        for connection in ("0", "1"):
            in_flight = seen.value("connection_bytes_in_flight", connection=connection)
            sent = seen.value("connection_sent_bytes_total", connection=connection)
            acknowledged = seen.value("connection_acknowledged_bytes_total", connection=connection)
            assert in_flight == sent - acknowledged == 16 * MIB, "the window"
        assert sum(seen.values("connection_acknowledged_bytes_total")) == seen.value("transfer_acknowledged_bytes")


def stands(service: Service) -> bool:
    """Whether every connection has its window of 16 MiB in flight."""
    return scrape(service).values("connection_bytes_in_flight") == [16 * MIB] * 2


def test_totals_at_the_end(pair: Pair) -> None:
    """The last values are the result's, and stay to be seen: for a sender with --metrics-linger, here always."""
    size = 5 * MIB + 17
    receiver = pair.receiver(*METRICS)
    flags = ("--chunk-size", "64KiB", "--connections", 3, "--metrics-linger", 60)
    sender = pair.sender(pair.file("f", size), pair.address(receiver), *METRICS, *flags)
    sender.wait_for("metrics_linger")
    (result,) = receiver.wait_for_results()
    for service in (sender, receiver):
        seen = scrape(service)
        assert seen.value("transfer_acknowledged_bytes") == seen.value("transfer_size_bytes") == size
        assert sum(seen.values("connection_acknowledged_bytes_total")) == size
        assert sum(seen.values("connection_chunks_total")) == result["chunks"] == 81
        assert seen.value("chunk_seconds_count") == seen.value("chunk_seconds_bucket", le="+Inf") == 81
        assert seen.value("transfer_phase", phase="complete") == 1
        assert seen.values("connection_bytes_in_flight") == [0, 0, 0]
        assert seen.values("connection_up") == [0, 0, 0]
        assert seen.values("connection_tcp_rtt_seconds") == [], "nothing is said of sockets that are gone"
        assert seen.value("transfers_total", result="complete") == 1
        assert abs(seen.value("transfer_start_time_seconds") - time.time()) < 6 * UNIT  # noqa: TID251 - it is a date
        assert seen.value("transfer_last_progress_time_seconds") >= seen.value("transfer_start_time_seconds")
    sender.process.send_signal(signal.SIGTERM)
    assert sender.wait() == 0


def test_buckets_count_up(pair: Pair) -> None:
    """A histogram's buckets are cumulative, and all of them are told."""
    for service in running(pair):
        seen = scrape(service)
        bounds = [float(labels["le"]) for labels, _ in seen.samples("chunk_seconds_bucket")]
        counts = seen.values("chunk_seconds_bucket")
        assert bounds == sorted(bounds)
        assert bounds[-1] == float("inf")
        assert counts == sorted(counts)
        assert seen.value("chunk_seconds_sum") > 0


def test_a_lost_connection_is_seen(pair: Pair) -> None:
    """Its reconnects count, it comes up again, and nothing that only grows goes back."""
    receiver = pair.receiver(*METRICS)
    file = pair.file("f", 64 * MIB)
    with Proxy(pair.address(receiver)) as proxy:
        sender = pair.sender(file, proxy.address, *STEADY, *METRICS)
        until(lambda: _all_have_moved(scrape(sender)), "all connections move")
        before = scrape(sender)
        proxy.reset("data 2")
        until(lambda: scrape(sender).value("connection_reconnects_total", connection="2") == 1, "it is made again")
        until(lambda: scrape(sender).values("connection_up") == [1] * 4, "it comes up again")
        after = scrape(sender)
    for name in ("sent_bytes", "acknowledged_bytes", "chunks", "tcp_retransmits", "reconnects"):
        for connection in "0123":
            total = f"connection_{name}_total"
            assert after.value(total, connection=connection) >= before.value(total, connection=connection)


def test_who_is_turned_away_is_counted(pair: Pair) -> None:
    token = {"FILESTREAMER_TOKEN": "a token of sixteen or more"}
    receiver = pair.receiver(*METRICS, env=token)
    assert scrape(receiver).value("refused_connections_total", reason="token") == 0
    wrong = {"FILESTREAMER_TOKEN": "another token of that length"}
    assert pair.sender(pair.file("f", 10), pair.address(receiver), env=wrong).wait() == 3
    assert scrape(receiver).value("refused_connections_total", reason="token") == 1


def test_a_failed_transfer_has_no_phase(pair: Pair) -> None:
    """An alert on a transfer that stands still does not fire for one that has ended."""
    receiver = pair.receiver(*METRICS)
    sender = pair.sender(pair.file("f", 64 * MIB), pair.address(receiver), *STEADY)
    until(lambda: sum(scrape(receiver).values("connection_chunks_total")) > 0, "chunks come")
    sender.process.send_signal(signal.SIGTERM)
    receiver.wait_for_results()
    seen = scrape(receiver)
    assert seen.values("transfer_phase") == [0, 0, 0, 0]
    assert sum(seen.values("transfers_total")) == 1
    assert seen.value("transfers_total", result="complete") == 0


def test_free_space(pair: Pair) -> None:
    receiver = pair.receiver(*METRICS)
    free = os.statvfs(pair.destination)
    seen = scrape(receiver).value("destination_free_bytes")
    assert 0.5 < seen / (free.f_bavail * free.f_frsize) < 2


def test_the_readme_lists_them_all() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for families in (contract("sender"), contract("receiver"), BY_USER):
        for name, (kind, _) in families.items():
            suffix = {"counter": "_total", "info": "_info"}.get(kind, "")
            assert re.search(rf"`{name}{suffix}(\{{[\w,]+\}})?`", readme), name


def test_a_large_chunk_that_comes_slowly_is_progress(pair: Pair) -> None:
    """At the receiver, too, which acknowledges nothing for as long as the first chunk is under way."""
    receiver = pair.receiver(*METRICS)
    file = pair.file("f", 64 * MIB)
    pair.sender(file, pair.address(receiver), "--rate-limit", "1MiB/s", "--chunk-size", "64MiB", "--connections", 1)
    receiver.wait_for("transfer_started")
    started = scrape(receiver).value("transfer_last_progress_time_seconds")
    until(lambda: scrape(receiver).value("transfer_last_progress_time_seconds") > started + 1, "it gets on")
    assert sum(scrape(receiver).values("connection_chunks_total")) == 0
