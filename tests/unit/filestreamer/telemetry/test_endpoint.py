"""The metrics port: what it answers, that nobody can hold it, and what is remembered of transfers that ended."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filestreamer.settings.common import CommonSettings
from filestreamer.telemetry import endpoint, history, tcp_info
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.telemetry.endpoint import HEAD_BYTES, Endpoint, Response, answer
from filestreamer.telemetry.history import History, Snapshot
from filestreamer.wire.messages import SENDER_STAGES
from filestreamer.wire.sockets.listen import listen

SECONDS = 10.0


def broken(_accept: str) -> Response:
    raise LookupError("a path that nobody is told")


ROUTES: dict[str, Callable[[str], Response]] = {
    "/": lambda _: Response(b"root\n"),
    "/metrics": lambda accept: Response(f"you accept {accept}\n".encode(), "text/metrics"),
    "/readyz": lambda _: Response(b"not yet\n", status=503, headers={"Retry-After": "1"}),
}


def parse(raw: bytes) -> tuple[int, dict[str, str], bytes]:
    """Read an answer: its status, its headers, its body."""
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    version, status, _phrase = first.split(" ", 2)
    assert version == "HTTP/1.0"
    return int(status), dict(line.split(": ", 1) for line in lines), body


def ask(request: bytes) -> tuple[int, bytes]:
    status, headers, body = parse(answer(request, ROUTES))
    if not request.startswith(b"HEAD"):
        assert int(headers["Content-Length"]) == len(body)
    return status, body


def test_a_route_says_what_where_and_how() -> None:
    status, headers, body = parse(answer(b"GET /readyz HTTP/1.1\r\nHost: h\r\n\r\n", ROUTES))

    assert (status, body) == (503, b"not yet\n")
    assert headers["Retry-After"] == "1"
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert headers["Connection"] == "close"


@pytest.mark.parametrize(
    "target",
    [b"/metrics", b"/metrics?name=x", b"http://h:9464/metrics", b"HTTP://[::1]/metrics?x", b"https://h/metrics"],
)
def test_the_path_counts_however_it_is_written(target: bytes) -> None:
    status, body = ask(b"GET " + target + b" HTTP/1.1\r\nHost: h\r\naccept:  a\r\nACCEPT: b\r\n\r\n")

    assert (status, body) == (200, b"you accept a, b\n")


def test_a_url_without_a_path_is_the_page() -> None:
    assert ask(b"GET http://h HTTP/1.1\r\n\r\n") == (200, b"root\n")


def test_head_is_get_without_the_body() -> None:
    get = answer(b"GET /metrics HTTP/1.1\n\n", ROUTES)
    head = answer(b"HEAD /metrics HTTP/1.1\n\n", ROUTES)

    assert get == head + b"you accept \n"


def test_what_follows_a_request_is_no_request() -> None:
    assert ask(b"GET / HTTP/1.1\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n") == (200, b"root\n")


@pytest.mark.parametrize(
    ("request_", "status", "said"),
    [
        (b"POST /metrics HTTP/1.1\r\n\r\n", 501, b"only GET and HEAD"),
        (b"PUT / HTTP/1.1\r\n\r\n", 501, b"only GET and HEAD"),
        (b"CONNECT h:1 HTTP/1.1\r\n\r\n", 501, b"only GET and HEAD"),
        (b"GET /../etc/passwd HTTP/1.1\r\n\r\n", 404, b"try / /metrics /readyz"),
        (b"GET //metrics HTTP/1.1\r\n\r\n", 404, b"try"),
        (b"GET\r\n\r\n", 400, b"not an HTTP"),
        (b"GET /metrics\r\n\r\n", 400, b"not an HTTP"),
        (b"GET /metrics SMTP\r\n\r\n", 400, b"not an HTTP"),
        (b"\x16\x03\x01\x02\x00\x01", 400, b"not an HTTP"),
        (b"", 400, b"not an HTTP"),
        (b"GET /" + b"a" * HEAD_BYTES, 431, b"more than 16384 bytes"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * HEAD_BYTES, 431, b"more than 16384 bytes"),
    ],
)
def test_anything_else_is_one_clear_line(request_: bytes, status: int, said: bytes) -> None:
    found, body = ask(request_)

    assert status == found
    assert said in body
    assert body.count(b"\n") == 1
    assert body.endswith(b"\n")


@given(
    st.one_of(
        st.binary(max_size=200),
        st.builds(
            lambda words, rest: b" ".join(words) + rest,
            st.lists(st.sampled_from([b"GET", b"HEAD", b"/metrics", b"HTTP/1.1", b"http://", b"?", b"\x85", b"x"])),
            st.binary(max_size=50),
        ),
    )
)
def test_whatever_is_asked_is_answered(request_: bytes) -> None:
    status, headers, _ = parse(answer(request_, ROUTES))

    assert status in (200, 400, 404, 501, 503)
    assert headers["X-Content-Type-Options"] == "nosniff"


OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
OLDER_TEXT = "text/plain; version=0.0.4; charset=utf-8"


@given(st.one_of(st.text(), st.from_regex(r"(application/openmetrics-text|text/plain)(; ?(version|escaping|q)=.*)*")))
def test_metrics_are_told_whatever_format_is_asked_for(accept: str) -> None:
    from filestreamer.telemetry.metrics import Collector, exposition

    collector = Collector("sender", Looked(), connections=True)
    told = exposition(collector, accept)

    assert b"filestreamer_sender_build_info" in told.body
    assert told.content_type in (OPENMETRICS, OLDER_TEXT)
    assert (told.content_type == OPENMETRICS) == told.body.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", OLDER_TEXT),
        ("*/*", OLDER_TEXT),
        ("text/plain;version=1.0.0;escaping=allow-utf-8", OLDER_TEXT),
        ("application/openmetrics-text", OPENMETRICS),
        ("Application/OpenMetrics-Text; version=0.0.1, text/plain", OPENMETRICS),
        ("text/plain;q=0.2, application/openmetrics-text;version=1.0.0;q=0.5", OPENMETRICS),
        ("application/openmetrics-text; version=1.0.0.\rSet-Cookie: x=1", OPENMETRICS),
        ("application/openmetrics-text; version=9.9.9.secret; escaping=\x00", OPENMETRICS),
        ("application/openmetrics-text-of-another-kind", OLDER_TEXT),
    ],
)
def test_the_type_is_ours_and_nothing_of_what_is_asked_for(accept: str, content_type: str) -> None:
    from filestreamer.telemetry.metrics import Collector, exposition

    collector = Collector("receiver", Looked(), connections=True)
    request_ = f"GET /metrics HTTP/1.1\r\nAccept: {accept}\r\n\r\n".encode("latin-1")
    head, _, _ = answer(request_, {"/metrics": lambda accept: exposition(collector, accept)}).partition(b"\r\n\r\n")

    (found,) = [line for line in head.decode().split("\r\n") if line.startswith("Content-Type: ")]
    assert found == f"Content-Type: {content_type}"
    assert head.replace(b"\r\n", b"").decode().isprintable()


MARK = "reflected"


@pytest.mark.parametrize(
    "request_",
    [
        f"GET /{MARK} HTTP/1.1\r\n\r\n",
        f"GET /metrics?{MARK} HTTP/1.1\r\nAccept: {MARK}\r\n\r\n",
        f"GET http://{MARK}/ HTTP/1.1\r\nHost: {MARK}\r\nCookie: {MARK}\r\n\r\n",
        f"{MARK} / HTTP/1.1\r\n\r\n",
        f"GET / HTTP/{MARK}\r\nOrigin: {MARK}\r\n\r\n",
        f"{MARK}\r\n\r\n",
        f"GET /\r{MARK}: 1 HTTP/1.1\r\n\r\n",
    ],
)
def test_no_answer_repeats_the_request(request_: str) -> None:
    from filestreamer.telemetry import page
    from filestreamer.telemetry.metrics import Collector, exposition

    collector = Collector("sender", Looked(), connections=True)
    routes: dict[str, Callable[[str], Response]] = {
        "/": lambda _: page.page(),
        "/transfers": lambda _: page.transfers("sender", Looked().snapshot()),
        "/metrics": lambda accept: exposition(collector, accept),
    }
    assert MARK.encode() not in answer(request_.encode(), routes)


@pytest.mark.parametrize("value", ["a\rSet-Cookie: x=1", "a\nb", "a\x00", "a\x7f", "a\x85b"])
def test_no_header_begins_another_one(value: str) -> None:
    for response in (
        Response(b"", value),
        Response(b"", headers={"X-Name": value}),
        Response(b"", headers={value: ""}),
    ):
        with pytest.raises(ValueError, match="control character"):
            answer(b"GET / HTTP/1.1\r\n\r\n", {"/": lambda _, response=response: response})  # type: ignore[misc]


class Looked:
    """A source of metrics with nothing in it."""

    history = History(60)

    def snapshot(self) -> Snapshot:
        return self.history.snapshot([])

    def free_bytes(self) -> int | None:
        return None

    def memory(self) -> tuple[int, int] | None:
        return None

    def users(self) -> None:
        return None


# ------------------------------------------------------------------------------------------------- over real sockets


class Log:
    """Remembers warnings."""

    def __init__(self) -> None:
        self.warnings: list[dict[str, Any]] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.warnings.append({"event": event, **fields})


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def address(log: Log) -> Iterator[tuple[str, int]]:
    """Serve, and return where."""
    listeners = listen("127.0.0.1", 0)
    served = Endpoint(listeners, {**ROUTES, "/broken": broken}, log)
    served.start()
    where: tuple[str, int] = listeners[0].getsockname()
    yield where
    served.stop()
    assert all(listener.fileno() == -1 for listener in listeners)
    wait_until(lambda: not [each for each in threading.enumerate() if each.name in ("request", "endpoint")])


def wait_until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def exchange(address: tuple[str, int], request: bytes) -> bytes:
    """Send a request and read to the end of the answer."""
    with socket.create_connection(address, SECONDS) as sock:
        sock.sendall(request)
        return b"".join(iter(lambda: sock.recv(65536), b""))


GET = b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n"


def test_a_request_in_pieces(address: tuple[str, int]) -> None:
    with socket.create_connection(address, SECONDS) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in GET:
            sock.sendall(bytes([number]))
        assert parse(sock.recv(65536))[0] == 200


@pytest.mark.parametrize("behind", [GET * 100, b"x" * 900_000], ids=["pipelined requests", "a body"])
def test_the_answer_arrives_though_more_was_sent(address: tuple[str, int], behind: bytes) -> None:
    """Bytes that nobody read would become a reset, which overtakes the answer."""
    status, _, body = parse(exchange(address, b"POST /metrics HTTP/1.1\r\n\r\n" + behind))

    assert (status, body) == (501, b"only GET and HEAD are answered here\n")


def test_a_client_that_takes_and_says_nothing_keeps_nobody_out(address: tuple[str, int]) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(socket.create_connection(address, SECONDS))
            assert sum(each.name == "request" for each in threading.enumerate()) <= endpoint.CONNECTIONS
        assert parse(exchange(address, GET))[0] == 200


def test_time_ends_for_who_dribbles(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "REQUEST_SECONDS", 0.2)
    with socket.create_connection(address, SECONDS) as sock:
        end = time.monotonic() + SECONDS
        with contextlib.suppress(ConnectionError):
            while not_ended(sock):
                assert time.monotonic() < end, "it may dribble for ever"
                sock.sendall(b"G")


def not_ended(sock: socket.socket) -> bool:
    sock.settimeout(0.02)
    try:
        return bool(sock.recv(1))
    except TimeoutError:
        return True


def descriptors_of(address: tuple[str, int]) -> int:
    """Count the sockets of this process that are this address's: threads of other tests may have some, too."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                with socket.socket(fileno=os.dup(int(fd))) as opened:
                    count += opened.getsockname() == address
    return count


def test_no_descriptor_is_left(address: tuple[str, int]) -> None:
    before = descriptors_of(address)
    for request in (GET, b"\x16\x03\x01", b"GET /broken HTTP/1.1\r\n\r\n", b"G" * (HEAD_BYTES + 1)) * 8:
        exchange(address, request)
    held = socket.create_connection(address, SECONDS)
    wait_until(lambda: descriptors_of(address) == before + 1)
    held.close()
    for _ in range(20):
        socket.create_connection(address, SECONDS).close()

    wait_until(lambda: descriptors_of(address) == before)


def test_a_route_that_fails_is_a_warning_and_tells_strangers_nothing(address: tuple[str, int], log: Log) -> None:
    status, _, body = parse(exchange(address, b"GET /broken HTTP/1.1\r\n\r\n"))

    assert status == 500
    assert b"path" not in body
    assert log.warnings == [{"event": "not_shown", "reason": "LookupError: a path that nobody is told"}]


# ------------------------------------------------------------------------------------------------------------ history


def ended(number: int, **troubles: int) -> TransferCounters:
    """Return a transfer that moved something, with these troubles."""
    counters = TransferCounters(bytes([number]) * 16, "f", SENDER_STAGES)
    connection = counters.add_connection(0)
    for name, count in troubles.items():
        setattr(connection, name, count)
    return counters


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the time that clocks read, to be moved."""
    times = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: times[0])
    return times


def test_a_transfer_that_ended_is_kept_a_while_and_its_sums_for_ever(now: list[float]) -> None:
    kept = History(keep_seconds=10)
    first = ended(1, mismatches=3)
    kept.add(first, "complete")
    now[0] += 9
    second = ended(2, mismatches=4)
    assert [first, second] == kept.snapshot([second]).transfers
    kept.add(second, "failed")
    now[0] += 2
    snapshot = kept.snapshot([])

    assert snapshot.transfers == [second]
    assert snapshot.totals["digest_mismatches"] == 7
    assert (kept.results["complete"], kept.results["failed"], kept.ended_at) == (1, 1, 109.0)
    now[0] += 100
    assert kept.snapshot([]).transfers == []
    assert kept.snapshot([]).totals["digest_mismatches"] == 7


def test_at_most_so_many_are_kept() -> None:
    kept = History(keep_seconds=1e9)
    for number in range(200):
        kept.add(ended(number, resent_chunks=1), "complete")
    snapshot = kept.snapshot([])

    assert len(snapshot.transfers) == history.RECENT
    assert snapshot.transfers[-1].transfer_id == bytes([199]) * 16
    assert snapshot.totals["chunks_resent"] == 200


def test_those_that_are_kept_have_at_most_so_many_connections() -> None:
    kept = History(keep_seconds=1e9)
    for number in range(20):
        transfer = ended(number, resent_chunks=1)
        for connection_id in range(len(transfer.connections), 256):
            transfer.add_connection(connection_id)
        kept.add(transfer, "complete")
    snapshot = kept.snapshot([])

    assert len(snapshot.transfers) == history.RECENT_CONNECTIONS // 256
    assert snapshot.totals["chunks_resent"] == 20


def test_a_transfer_that_just_ended_is_counted_once() -> None:
    kept, transfer = History(keep_seconds=10), ended(1, stolen_chunks=5)
    kept.add(transfer, "complete")
    snapshot = kept.snapshot([transfer])

    assert (snapshot.transfers, snapshot.totals["chunks_stolen"]) == ([transfer], 5)


def test_a_transfer_that_began_again_is_shown_once() -> None:
    """Its sender comes back, with the same id, to a receiver that had given it up: no series may be there twice."""
    kept, again = History(keep_seconds=10), ended(1, mismatches=2)
    kept.add(ended(1, mismatches=1), "failed")
    snapshot = kept.snapshot([again])

    assert (snapshot.transfers, snapshot.totals["digest_mismatches"]) == ([again], 3)


# ----------------------------------------------------------------------------------------------------------- the kernel


@pytest.fixture
def link() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return both ends of a connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname(), SECONDS)
        far, _ = listener.accept()
        with near, far:
            yield near, far


def test_the_kernel_tells_what_it_holds(link: tuple[socket.socket, socket.socket]) -> None:
    near, far = link
    far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    near.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += near.send(bytes(65536))
    info = tcp_info.read(near)

    assert info is not None
    assert 0 < info.unsent_bytes < info.unacknowledged_bytes + info.unsent_bytes <= sent
    assert 0 < info.rtt_seconds < SECONDS
    assert info.congestion_window_bytes > 0
    assert info.retransmits == 0


def test_all_is_zero_where_all_has_arrived(link: tuple[socket.socket, socket.socket]) -> None:
    near, far = link
    near.sendall(b"hello")
    assert far.recv(5) == b"hello"

    def arrived() -> bool:
        info = tcp_info.read(near)
        return info is not None and (info.unacknowledged_bytes, info.unsent_bytes) == (0, 0) < (info.delivery_rate, 1)

    wait_until(arrived)


def test_a_socket_that_is_closed_has_nothing_to_tell(link: tuple[socket.socket, socket.socket]) -> None:
    near, _ = link
    near.close()

    assert tcp_info.read(near) is None


def test_another_system_has_nothing_to_tell(
    link: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(socket, "TCP_INFO")

    assert tcp_info.read(link[0]) is None


# ------------------------------------------------------------------------------------------------------------- the push


@pytest.mark.parametrize("url", ["http://[::1", "http://127.0.0.1:port", "http://h:99999/", "http:///metrics/job/x"])
def test_a_url_that_leads_nowhere_is_a_warning(url: str, log: Log) -> None:
    from filestreamer.telemetry.monitor import Monitor

    monitor = Monitor("sender", CommonSettings(pushgateway=url), log)
    monitor.ended(ended(1), "complete")
    monitor.push()

    assert [warning["event"] for warning in log.warnings] == ["not_pushed"]
