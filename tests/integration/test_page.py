"""The page of its own: what it is served with, that it tells no secret, and that what it draws is true."""

import json
import urllib.request
from collections.abc import Iterator
from http.client import HTTPMessage
from pathlib import Path
from typing import Any

import pytest

from filestreamer.wire.limits import KIB, MIB
from tests.support.browser import Browser, Page
from tests.support.proxy import Blackhole, Proxy, Stall
from tests.support.scrape import METRICS, get, metrics_address, scrape
from tests.support.services import HANG, UNIT, Pair, Service
from tests.support.waiting import until

STEADY = ("--chunk-size", "64KiB", "--rate-limit", "8MiB/s", "--connections", 4, *METRICS)
LINGER = ("--metrics-linger", 3 * UNIT)
LIVE = "document.querySelector('#link')?.textContent === 'live'"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """Return a browser whose pages had nothing to complain of when it ends."""
    with Browser(tmp_path / "profile") as opened:
        yield opened


def transfers(service: Service) -> list[dict[str, Any]]:
    """Return what a service tells its page."""
    body, content_type = get(metrics_address(service), "/transfers")
    assert content_type == "application/json"
    told: list[dict[str, Any]] = json.loads(body)["transfers"]
    return told


def page_of(browser: Browser, service: Service, **how: Any) -> Page:
    page = browser.open(f"http://{metrics_address(service)}/", **how)
    page.wait_for(LIVE)
    return page


# ------------------------------------------------------------------------------------------------------ what is served


@pytest.mark.parametrize("path", ["/", "/transfers"])
def test_headers_forbid_what_the_page_does_not_need(pair: Pair, path: str) -> None:
    address = metrics_address(pair.receiver(*METRICS))

    def ask(method: str) -> tuple[int, HTTPMessage, bytes]:
        request = urllib.request.Request(f"http://{address}{path}", method=method)
        with urllib.request.urlopen(request, timeout=HANG) as response:
            return response.status, response.headers, response.read()

    status, headers, body = ask("GET")
    assert status == 200
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    if path == "/":
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        assert headers["Referrer-Policy"] == "no-referrer"
        policy = headers["Content-Security-Policy"].split("; ")
        assert {"default-src 'none'", "connect-src 'self'", "base-uri 'none'", "frame-ancestors 'none'"} <= set(policy)
        assert "unsafe" not in headers["Content-Security-Policy"]
    head_status, head_headers, head_body = ask("HEAD")
    assert (head_status, head_body) == (200, b"")
    assert head_headers["Content-Length"] == str(len(body))
    assert head_headers["Content-Security-Policy"] == headers["Content-Security-Policy"]


def test_no_path_no_name_and_no_token_is_told(pair: Pair) -> None:
    """The port asks nobody who they are: what it tells of a transfer are numbers, while it runs and after it failed."""
    token = "a-token-that-nobody-may-see"
    receiver = pair.receiver(*METRICS, env={"FILESTREAMER_TOKEN": token})
    file = pair.file("private-name", 16 * MIB)
    sender = pair.sender(file, pair.address(receiver), *STEADY, *LINGER, env={"FILESTREAMER_TOKEN": token})
    until(lambda: any(sum(each["map"]["brought"]) > 4 for each in transfers(sender)), "chunks are acknowledged")
    secrets = [
        token,
        file.name,
        str(pair.source),
        str(pair.destination),
        str(receiver.wait_for("listening")["address"]),
    ]

    def check() -> None:
        for service in (receiver, sender):
            for path in ("/", "/transfers"):
                body, _ = get(metrics_address(service), path)
                for secret in secrets:
                    assert secret not in body, f"{secret} in {path} of the {service.command}"

    check()
    until(lambda: transfers(sender)[0]["status"] and transfers(receiver)[0]["status"], "both say how it ended")
    (ended,) = transfers(sender)
    assert len(ended["transfer"]) == 8, "not the whole id, which is what a connection joins a transfer by"
    check()


# ------------------------------------------------------------------------------------------------------- the chunk map


def test_the_map_of_a_resumed_transfer(pair: Pair) -> None:
    """Both ends draw the same: what was held, what was brought, and at the end every chunk once."""
    receiver = pair.receiver(*METRICS)
    file = pair.file("f", 12 * MIB)
    first = pair.sender(file, pair.address(receiver), *STEADY)
    until(
        lambda: first.process.poll() is not None or any(sum(each["map"]["brought"]) > 40 for each in transfers(first)),
        "some chunks",
    )
    first.end()
    with file.open("r+b") as source:  # another first chunk: what the receiver holds of it is of no use
        source.write(b"changed")
    until(lambda: transfers(receiver)[0]["connections"][0]["up"] is False, "the receiver sees the end")
    second = pair.sender(file, pair.address(receiver), *STEADY, *LINGER)
    until(lambda: transfers(second) and transfers(second)[0]["status"] == "complete", "the second run completes")
    result = second.wait_for_results()[0]
    (sent,) = transfers(second)
    received = transfers(receiver)[-1]
    for told in (sent, received):
        drawn = told["map"]
        assert sum(drawn["brought"]) + sum(drawn["held"]) == told["chunks"] == 192
        assert sum(drawn["held"]) == result["held_bytes"] // (64 * KIB) > 0
        assert (drawn["brought"][0], drawn["held"][0]) == (1, 0)
        assert {(by >= 0) + held for by, held in zip(drawn["by"], drawn["held"], strict=True)} == {1}
    assert received["map"] == sent["map"]
    per_connection = {each["connection_id"]: each["chunks"] for each in result["per_connection"]}
    assert {c: sent["map"]["by"].count(c) for c in per_connection} == per_connection


def test_the_map_of_chunks_that_came_twice(pair: Pair) -> None:
    """Acknowledgements are lost with their connection: the sender sends again what the receiver has, which is one."""
    receiver = pair.receiver(*METRICS)
    with Proxy(pair.address(receiver)) as proxy:
        sender = pair.sender(pair.file("f", 16 * MIB), proxy.address, *STEADY)

        def chunks(service: Service) -> int:
            return next((c["chunks"] for t in transfers(service) for c in t["connections"] if c["connection"] == 1), 0)

        until(lambda: chunks(sender) > 4, "connection 1 moves")
        proxy.hold("data 1", "down")
        until(lambda: chunks(receiver) > chunks(sender) + 4, "chunks that the sender does not know of")
        proxy.reset("data 1")
        assert sender.succeeds()["resent_chunks"] >= 4
    (told,) = transfers(receiver)
    assert told["map"]["brought"] == [1] * 256


# ------------------------------------------------------------------------------------------------------ what is drawn

FIGURES = """[...document.querySelectorAll('.lane')].map(lane => [
    lane.dataset.connection, Number(lane.querySelector('.flight data').value),
    Number(lane.querySelector('.more').textContent.match(/in (\\d+) chunk/)[1]), !lane.classList.contains('down')])"""
STANDS_STILL = """Number(document.querySelector('#percent').textContent) > 0
    && [...document.querySelectorAll('.lane .rate')].filter(each => each.textContent === '0 B/s').length === 4"""
"""Something was acknowledged, and nothing in the last few seconds."""


def counted(service: Service) -> list[list[Any]]:
    """Return what /metrics says of each connection: in flight, chunks, whether it is up."""
    seen = scrape(service)
    names = ("connection_bytes_in_flight", "connection_chunks_total", "connection_up")
    return [
        [connection, *(seen.value(name, connection=connection) for name in names)]
        for connection in sorted(labels["connection"] for labels, _ in seen.samples("connection_up"))
    ]


def test_lanes_say_what_the_metrics_say(pair: Pair, browser: Browser) -> None:
    """A transfer that stands still, each connection at another place: the page and /metrics have the same figures."""
    receiver = pair.receiver(*METRICS)
    file = pair.file("f", 64 * MIB)
    plan = [
        Stall(on="data 0", direction="down", at=600, seconds=2 * HANG),
        *(Blackhole(on=f"data {at}", at=bytes_) for at, bytes_ in ((1, 3 * MIB), (2, 5 * MIB), (3, 700 * KIB))),
    ]
    with Proxy(pair.address(receiver), plan) as proxy:
        sender = pair.sender(file, proxy.address, "--connections", 4, "--chunk-size", "512KiB", *METRICS)
        pages = {service: page_of(browser, service) for service in (sender, receiver)}
        for service, page in pages.items():
            page.wait_for(STANDS_STILL)
            until(lambda p=page, s=service: p.evaluate(FIGURES) == counted(s), "page and metrics agree")  # type: ignore[misc]
            seen = scrape(service)
            drawn = page.evaluate("Number(document.querySelector('#map-sums').textContent.split(' ')[0])")
            assert drawn == sum(seen.values("connection_chunks_total"))
            done = seen.value("transfer_acknowledged_bytes") / seen.value("transfer_size_bytes")
            assert page.evaluate("document.querySelector('#percent').textContent") == f"{int(done * 1000) / 10:.1f}"
            assert page.complaints == []
        assert sum(flight > 0 for _, flight, _, _ in counted(sender)) >= 3, "there was something to compare"


def test_from_waiting_to_the_verdict_and_beyond(pair: Pair, browser: Browser) -> None:
    """One page, opened before the transfer, left open until the service is gone."""
    receiver = pair.receiver(*METRICS, "--once", *LINGER)
    page = page_of(browser, receiver)
    assert "No transfer yet" in page.evaluate("document.querySelector('main').innerText")
    sender = pair.sender(pair.file("f", 12 * MIB), pair.address(receiver), *STEADY)
    page.wait_for("Number(document.querySelector('#percent').textContent) > 20")
    assert page.evaluate("document.querySelector('#phases [aria-current]').innerText") == "moving"
    assert page.evaluate("document.querySelector('#verdict').textContent") == ""
    page.wait_for("document.querySelectorAll('.lane').length === 4")
    page.wait_for("/MiB.s|KiB.s/.test(document.querySelector('#rate').textContent)")
    sender.succeeds()
    verdict = page.wait_for("document.querySelector('#verdict').textContent")
    assert verdict.startswith("Complete: 12.0 MiB in ")
    assert verdict.endswith("Bound by --rate-limit.")
    assert page.evaluate("document.querySelector('#verdict').getAttribute('aria-live')") == "polite"
    assert page.evaluate("document.querySelector('#map-sums').textContent").startswith("192 of 192 chunks")
    assert page.complaints == []
    origin = f"http://{metrics_address(receiver)}/"
    assert set(page.requests) == {origin, f"{origin}transfers"}, "it asks nobody else"
    receiver.end()
    page.wait_for("document.querySelector('#link').textContent.startsWith('ended or not reachable')")
    assert page.evaluate("document.querySelector('#verdict').textContent") == verdict
    assert page.evaluate("document.querySelector('#percent').textContent") == "100"


def test_a_service_that_comes_back_is_seen_again(pair: Pair, browser: Browser) -> None:
    receiver = pair.receiver(*METRICS)
    address = metrics_address(receiver)
    page = page_of(browser, receiver)
    receiver.end()
    page.wait_for("document.body.classList.contains('gone')")
    pair.receiver("--metrics", address)
    page.wait_for(LIVE)


def test_keys_reach_everything(pair: Pair, browser: Browser) -> None:
    """Two transfers: the switch between them, the map's cells and the lanes, without a pointer."""
    receiver = pair.receiver(*METRICS)
    for name in ("a", "b"):
        pair.sender(pair.file(name, 64 * MIB), pair.address(receiver), *STEADY)
    page = page_of(browser, receiver)
    page.wait_for("document.querySelectorAll('#switch input').length === 2")
    page.wait_for("document.querySelectorAll('.lane').length === 4")
    focused = "document.activeElement"
    shown = "document.querySelector('#what').textContent"
    page.press("Tab")
    assert page.evaluate(f"{focused}.type") == "radio"
    before = page.evaluate(shown)
    page.press("ArrowRight")
    page.wait_for(f"{shown} !== '{before}'")
    assert page.evaluate(f"{focused}.checked && {shown}.includes({focused}.value)")
    page.press("Tab")
    assert page.evaluate(f"{focused}.id") == "map"
    assert page.evaluate(f"getComputedStyle({focused}).outlineStyle") == "solid", "the focus is seen"
    page.press("ArrowRight")
    page.press("ArrowDown")
    cell = int(page.evaluate(f"{focused}.getAttribute('aria-valuenow')"))
    assert cell == 1 + 64, "to the right, and one row down"
    assert page.evaluate(f"{focused}.getAttribute('aria-valuetext')").startswith(f"Chunk {cell}:")
    page.press("Tab")
    assert page.evaluate(f"{focused}.getAttribute('aria-label')") == "Connection 0: show its chunks"
    page.press("End")
    page.press("Enter")
    assert page.evaluate(f"{focused}.getAttribute('aria-pressed')") == "true"
    assert page.evaluate("document.querySelector('#cell').textContent").endswith("over connection 3")
    page.press("Escape")
    assert page.evaluate(f"{focused}.getAttribute('aria-pressed')") == "false"
    assert page.complaints == []


@pytest.mark.parametrize("dark", [False, True])
def test_readable_on_a_phone_in_light_and_dark(pair: Pair, browser: Browser, dark: bool) -> None:
    """At 320 pixels nothing is cut off, text stands out, and what is still stays still where that is wanted."""
    receiver = pair.receiver(*METRICS)
    pair.sender(pair.file("f", 64 * MIB), pair.address(receiver), *STEADY)
    page = page_of(browser, receiver, width=320, dark=dark)
    page.wait_for("document.querySelectorAll('.lane').length === 4")
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    cut_off = """[...document.querySelectorAll('main *')].filter(each => each.checkVisibility()
        && each.getBoundingClientRect().right > 320).map(each => each.outerHTML.slice(0, 80))"""
    assert page.evaluate(cut_off) == []
    assert page.evaluate(CONTRASTS) == []
    page.emulate(dark=dark, still=True)
    assert page.evaluate("getComputedStyle(document.querySelector('.bar i')).transitionDuration") == "0s"
    assert page.complaints == []


CONTRASTS = """(() => {
    const parse = text => text.match(/[\\d.]+/g).map(Number);
    const luminance = ([r, g, b]) => [r, g, b].map(each => each / 255)
        .map(each => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)
        .reduce((sum, each, at) => sum + each * [0.2126, 0.7152, 0.0722][at], 0);
    const behind = node => {
        for (; node; node = node.parentElement) {
            const colour = parse(getComputedStyle(node).backgroundColor);
            if (colour.length === 3 || colour[3] === 1) return colour;
        }
        return [255, 255, 255];
    };
    const bad = [];
    for (const node of document.querySelectorAll('body *')) {
        const hasText = [...node.childNodes].some(each => each.nodeType === 3 && each.data.trim());
        if (!hasText || !node.checkVisibility()) continue;
        const pair = [parse(getComputedStyle(node).color), behind(node)].map(luminance);
        const contrast = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
        if (contrast < 4.5) bad.push(`${node.outerHTML.slice(0, 80)}: ${contrast.toFixed(2)}`);
    }
    return bad;
})()"""
"""Text whose contrast with what is behind it is less than WCAG's 4.5 to 1."""
