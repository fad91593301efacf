"""What the page is told, and under which policy it runs."""

import base64
import hashlib
import json
import re
from typing import Any

import pytest

from filestreamer.telemetry import page
from filestreamer.telemetry.chunk_map import ChunkMap
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.telemetry.history import History
from filestreamer.wire.messages import RECEIVER_STAGES, SENDER_STAGES

NAME = "private-name"


def told(*transfers: TransferCounters, history: History | None = None) -> list[dict[str, Any]]:
    """Return what /transfers says of these transfers."""
    look = (history or History(60)).snapshot(transfers)
    answer = json.loads(page.transfers("sender", look).body)
    assert answer["service"] == "sender"
    found: list[dict[str, Any]] = answer["transfers"]
    return found


def transfer(first_byte: int = 0xAB) -> TransferCounters:
    counters = TransferCounters(bytes([first_byte]) * 16, NAME, SENDER_STAGES, size_bytes=100, chunks=5, chunk_size=20)
    counters.chunk_map = ChunkMap(5)
    return counters


def test_counters_are_told_as_they_are() -> None:
    counters = transfer()
    connection = counters.add_connection(3)
    connection.moved_bytes, connection.acknowledged_bytes, connection.chunks = 60, 40, 2
    connection.stage_seconds["read"] = 0.5
    counters.chunk_map.add(0, None)
    counters.chunk_map.add(2, 3)
    (seen,) = told(counters)
    assert seen["transfer"] == "abababab"
    assert (seen["direction"], seen["phase"], seen["status"]) == ("sending", "offering", None)
    assert (seen["size_bytes"], seen["acknowledged_bytes"], seen["chunks"]) == (100, 40, 5)
    assert seen["map"] == {
        "chunks_per_cell": 1,
        "brought": [0, 0, 1, 0, 0],
        "held": [1, 0, 0, 0, 0],
        "by": [-1, -1, 3, -1, -1],
    }
    (lane,) = seen["connections"]
    assert (lane["connection"], lane["bytes_in_flight"], lane["moved_bytes"]) == (3, 20, 60)
    assert lane["rtt_seconds"] is None, "no socket is open"
    assert seen["stage_microseconds"]["sender"]["read"] == 500_000
    assert seen["stage_microseconds"]["receiver"] == {}, "the receiver has not said"


def test_a_connection_that_is_not_needed_any_more_is_not_down() -> None:
    counters = transfer()
    counters.add_connection(0).is_dismissed = True
    counters.add_connection(1)
    (seen,) = told(counters)
    assert [(lane["up"], lane["dismissed"]) for lane in seen["connections"]] == [(False, True), (False, False)]


def test_a_receiver_tells_its_own_stages_and_the_senders() -> None:
    counters = TransferCounters(bytes(16), NAME, RECEIVER_STAGES)
    counters.peer_stages = tuple(range(len(SENDER_STAGES) + 1))  # of a later version, which knows one more
    (seen,) = told(counters)
    assert seen["direction"] == "receiving"
    assert seen["stage_microseconds"]["sender"] == {stage: at for at, stage in enumerate(SENDER_STAGES)}
    assert list(seen["stage_microseconds"]["receiver"]) == list(RECEIVER_STAGES)


def test_no_name_is_told() -> None:
    assert NAME not in json.dumps(told(transfer()))


def test_the_end_is_told() -> None:
    counters, history = transfer(), History(60)
    counters.ended_at = counters.started_at + 7
    history.add(counters, "interrupted")
    (seen,) = told(counters, history=history)
    assert (seen["ended"], seen["status"], seen["seconds"]) == (True, "interrupted", 7)


def test_all_that_run_and_the_latest_that_ended() -> None:
    """A receiver that serves thousands tells a page a bounded number of them each second."""
    history = History(60)
    for at in range(30):
        counters = transfer(at)
        counters.ended_at = counters.started_at + 1
        history.add(counters, "complete")
    running = transfer(0xFF)
    seen = [each["transfer"][:2] for each in told(running, history=history)]
    assert seen == [f"{at:02x}" for at in range(30 - page.ENDED_SHOWN, 30)] + ["ff"]


@pytest.mark.parametrize("tag", ["script", "style"])
def test_the_policy_lets_run_what_is_in_the_page_and_nothing_else(tag: str) -> None:
    response = page.page()
    html = response.body.decode()
    policy = dict(part.split(" ", 1) for part in response.headers["Content-Security-Policy"].split("; "))
    (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"


def test_the_page_is_one_file() -> None:
    """Nothing comes from elsewhere: no address, and nothing that a browser would load."""
    html = page.page().body.decode().replace("http://www.w3.org/2000/svg", "").replace("http%3A", "")
    assert "://" not in html
    assert not re.search(r"<(script|style)[^>]+>|\bsrc=|@import|url\(| style=| on[a-z]+=", html)
    assert [link for link in re.findall(r"<link[^>]*>", html) if "data:image/svg+xml" not in link] == []
