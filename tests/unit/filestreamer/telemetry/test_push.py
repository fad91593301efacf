"""The push to a Pushgateway: where it goes, and that whatever the gateway does costs one warning and a bounded time."""

import contextlib
import errno
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from filestreamer.settings import values
from filestreamer.settings.common import CommonSettings
from filestreamer.telemetry import push
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.telemetry.monitor import Monitor
from filestreamer.wire.messages import SENDER_STAGES
from tests.support.certificates import Authority
from tests.support.waiting import with_patience

SECONDS = 20.0
SECRET = "s3cr3t-w0rd"
SILENT = "127.0.0.2"


# --- where it goes

JOB = "filestreamer_sender"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h:9091", f"http://h:9091/metrics/job/{JOB}"),
        ("http://h:9091/", f"http://h:9091/metrics/job/{JOB}"),
        ("http://h/metrics", f"http://h/metrics/job/{JOB}"),
        ("http://h/metrics/", f"http://h/metrics/job/{JOB}"),
        ("http://h/metrics/job", f"http://h/metrics/job/{JOB}"),
        ("http://h/metrics/job/", f"http://h/metrics/job/{JOB}"),
        ("http://h/gateway", f"http://h/gateway/metrics/job/{JOB}"),
        ("http://h/gateway/metrics/", f"http://h/gateway/metrics/job/{JOB}"),
        ("http://h/metrics/job/nightly", "http://h/metrics/job/nightly"),
        ("http://h/metrics/job/nightly/", "http://h/metrics/job/nightly"),
        ("http://h/metrics/job/nightly/instance/node7", "http://h/metrics/job/nightly/instance/node7"),
        ("http://h/p/metrics/job/a/instance/b/zone/c/", "http://h/p/metrics/job/a/instance/b/zone/c"),
        ("http://h/metrics/job@base64/YS9i", "http://h/metrics/job@base64/YS9i"),
        (
            "http://h/metrics/job@base64/YS9i/path@base64/L3Zhcg==",
            "http://h/metrics/job@base64/YS9i/path@base64/L3Zhcg==",
        ),
        ("http://h/metrics/job/a/empty@base64/=", "http://h/metrics/job/a/empty@base64/="),
        ("http://h/metrics/job/a%2Fb%20c/instance/%C3%BC", "http://h/metrics/job/a%2Fb%20c/instance/%C3%BC"),
        ("http://h/metrics/job/büro", "http://h/metrics/job/b%C3%BCro"),
        ("http://h/metrics/job/a/metrics/job", "http://h/metrics/job/a/metrics/job"),
        ("http://h/metrics/job/a?tenant=b&c=%2F", "http://h/metrics/job/a?tenant=b&c=%2F"),
        ("http://h?tenant=b", f"http://h/metrics/job/{JOB}?tenant=b"),
        (f"https://me:{SECRET}@[::1]:9091/metrics/job/a", "https://[::1]:9091/metrics/job/a"),
        (f"http://me:{SECRET}%40%2F@[fe80::1%25eth0]", f"http://[fe80::1%25eth0]/metrics/job/{JOB}"),
    ],
)
def test_the_url_is_used_as_it_is_where_it_names_a_job(url: str, expected: str) -> None:
    assert push.endpoint(values.url(url), JOB) == expected


# --- gateways


class Gateway:
    """A TCP server that does to each connection what it is told, until the test ends."""

    def __init__(self, behave: Callable[[socket.socket], None], context: ssl.SSLContext | None = None) -> None:
        self.asked: list[bytes] = []
        self.ended = threading.Event()
        self._behave = behave
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Gateway":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(SECONDS)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                with contextlib.suppress(OSError), sock:
                    sock.settimeout(SECONDS)
                    if self._context is None:
                        self._answer(sock)
                    else:
                        with self._context.wrap_socket(sock, server_side=True) as wrapped:
                            self._answer(wrapped)

    def _answer(self, sock: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(65536)
        self.asked.append(head.partition(b"\r\n")[0])
        self._behave(sock)
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):  # else the answer may be lost in a reset
                pass


def answering(answer: bytes) -> Callable[[socket.socket], None]:
    return lambda sock: sock.sendall(answer)


class Log:
    """Remembers warnings."""

    def __init__(self) -> None:
        self.warnings: list[dict[str, Any]] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.warnings.append({"event": event, **fields})


def pushed(url: str, *, during: Callable[[Monitor], None] | None = None) -> list[dict[str, Any]]:
    """Push the metrics of a transfer that has ended; return the warnings. Fails where that does not come to an end."""
    log = Log()
    monitor = Monitor("sender", CommonSettings(pushgateway=values.url(url)), log)
    monitor.ended(TransferCounters(b"t" * 16, "f", SENDER_STAGES), "complete")
    thread = threading.Thread(target=monitor.push, daemon=True)
    thread.start()
    if during is not None:
        during(monitor)
    thread.join(SECONDS)
    assert not thread.is_alive(), "the end of a transfer waits for its gateway"
    assert all(warning["event"] == "not_pushed" and SECRET not in str(warning) for warning in log.warnings)
    return log.warnings


def refusal(url: str) -> str:
    """Push, and return the reason of the one warning."""
    (warning,) = pushed(url)
    assert warning["to"] == values.without_password(url)
    reason: str = warning["reason"]
    assert "\n" not in reason
    return reason


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.0 202 Accepted\r\n\r\n"])
def test_a_gateway_that_takes_it(answer: bytes) -> None:
    with Gateway(answering(answer)) as gateway:
        assert pushed(f"http://me:{SECRET}@127.0.0.1:{gateway.port}/metrics/job/a/instance/b") == []
    assert gateway.asked == [b"POST /metrics/job/a/instance/b HTTP/1.1"]


def test_transfers_that_end_while_a_gateway_takes_its_time_are_pushed_together() -> None:
    """There is one push at a time, and the last one has what ended meanwhile."""
    goes_on, seen = threading.Event(), threading.Event()

    def behave(sock: socket.socket) -> None:
        seen.set()
        assert goes_on.wait(SECONDS)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def during(monitor: Monitor) -> None:
        assert seen.wait(SECONDS)
        for _ in range(20):
            monitor.push()
        goes_on.set()

    with Gateway(behave) as gateway:
        assert pushed(f"http://127.0.0.1:{gateway.port}", during=during) == []
    assert len(gateway.asked) == 2


def test_a_gateway_with_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path, "ca")
    pem = authority.issue("gateway")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem.certificate, pem.key)
    with Gateway(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), context) as gateway:
        url = f"https://127.0.0.1:{gateway.port}"
        assert "certificate verify failed" in refusal(url)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
        assert pushed(url) == []


def endless(body: bytes) -> Callable[[socket.socket], None]:
    """Send the beginning of an answer, and `body` behind it for as long as it is taken."""

    def behave(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            sock.sendall(body)

    return behave


def test_a_body_without_end_is_not_waited_for() -> None:
    with Gateway(endless(b"x" * 65536)) as gateway:
        assert pushed(f"http://127.0.0.1:{gateway.port}") == []


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\npushed metrics are\ninvalid",
            "HTTP 400 Bad Request: pushed metrics are invalid",
        ),
        (b"HTTP/1.1 401 Unauthorized\r\n\r\n", "HTTP 401 Unauthorized"),
        (b"HTTP/1.1 503 Busy\r\n\r\n\x1b[2J" + b"x" * 5000, "HTTP 503 Busy: \\x1b[2J" + "x" * 193),
        (b"HTTP/1.1 502 Bad\r\nContent-Length: 9\r\n\r\n", "HTTP 502 Bad"),
        (b"HTTP/1.1 502 Bad\r\nTransfer-Encoding: chunked\r\n\r\n20\r\nabc", "HTTP 502 Bad"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "what answers there does not speak HTTP: SSH-2.0-OpenSSH_9.2p1"),
        (b"", "it closed the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200, "HTTPException: got more than 100 headers"),
        (
            f"HTTP/1.1 301 Moved\r\nLocation: https://me:{SECRET}@h/metrics/job/x\r\n\r\n".encode(),
            "HTTP 301 Moved: it redirects to https://h/metrics/job/x: a push is not redirected, write that URL",
        ),
        (
            b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /login\r\n\r\n",
            "HTTP 307 Temporary Redirect: it redirects to /login: a push is not redirected, write that URL",
        ),
    ],
)
def test_a_gateway_that_does_not_take_it_says_why(answer: bytes, reason: str) -> None:
    with Gateway(answering(answer)) as gateway:
        url = f"http://me:{SECRET}@127.0.0.1:{gateway.port}/metrics/job/x"
        assert refusal(url) == reason
    assert len(gateway.asked) == 1


def test_nobody_there() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        assert "Connection refused" in refusal(f"http://127.0.0.1:{held.getsockname()[1]}")
    assert refusal("http://no-such-host.invalid:9091").startswith("no-such-host.invalid does not resolve: ")


def test_a_gateway_with_an_address_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that has IPv6 and IPv4, on a network that passes one of them: the other is tried at its side."""
    look_up = socket.getaddrinfo
    with Gateway(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")) as gateway, silent(gateway.port):

        def both(_host: str, *args: Any, **more: Any) -> list[Any]:
            return [found for host in (SILENT, "127.0.0.1") for found in look_up(host, *args, **more)]

        monkeypatch.setattr(socket, "getaddrinfo", both)
        assert pushed(f"http://gateway.example:{gateway.port}") == []
    assert len(gateway.asked) == 1


@contextlib.contextmanager
def silent(port: int) -> Iterator[None]:
    """Have a port at SILENT that does not answer whoever connects, as its queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((SILENT, port))
        listener.listen(0)
        for _ in range(2):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((SILENT, port))
        yield


# --- one deadline


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "PUSH_SECONDS", 0.3)


def gives_up(monkeypatch: pytest.MonkeyPatch, url: str, where: str) -> None:
    """Push in vain; the reason says how far it came, which takes a busy machine longer."""

    def is_told(seconds: float) -> bool:
        monkeypatch.setattr(push, "PUSH_SECONDS", seconds / 3)
        return refusal(url) == f"{where} within {seconds / 3:.0f} s"

    with_patience(is_told, where)


def drip(sock: socket.socket, data: bytes, ended: threading.Event) -> None:
    """Send the bytes again and again, one at a time, each well within any time-out of a single read."""
    while True:
        for byte in data:
            sock.sendall(bytes([byte]))
            if ended.wait(0.02):
                return


@pytest.mark.parametrize("data", [b"H", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 500 No\r\n\r\n"])
def test_a_gateway_that_answers_byte_by_byte(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    ended = threading.Event()
    with Gateway(lambda sock: drip(sock, data, ended)) as gateway:
        gives_up(monkeypatch, f"http://me:{SECRET}@127.0.0.1:{gateway.port}", "no whole answer")
        ended.set()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_gateway_that_says_nothing(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    """Neither after the request nor, with TLS, in the handshake."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        expected = {"http": "no whole answer", "https": f"no connection to 127.0.0.1 port {port}"}
        gives_up(monkeypatch, f"{scheme}://me:{SECRET}@127.0.0.1:{port}", expected[scheme])


@pytest.mark.usefixtures("soon")
def test_a_name_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    answered, look_up = threading.Event(), socket.getaddrinfo

    def hang(*args: Any, **more: Any) -> Any:
        assert answered.wait(SECONDS)
        return look_up(*args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        assert refusal(f"http://me:{SECRET}@gateway.example:9091") == "gateway.example was not found within 0 s"
    finally:
        answered.set()


def test_a_push_that_can_not_even_begin_leaves_room_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where its modules can't be imported, because the process has too many open files."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    log = Log()
    with Gateway(answering(b"HTTP/1.0 202 Accepted\r\n\r\n")) as gateway:
        monitor = Monitor("sender", CommonSettings(pushgateway=values.url(f"http://127.0.0.1:{gateway.port}")), log)
        monitor.ended(TransferCounters(b"t" * 16, "f", SENDER_STAGES), "complete")
        with monkeypatch.context() as patched:
            patched.setattr(push, "Push", refuse)
            monitor.push()
        assert log.warnings[0]["reason"] == "[Errno 24] Too many open files"
        monitor.push()
        assert len(gateway.asked) == len(log.warnings) == 1


def test_a_signal_does_not_wait_for_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "PUSH_SECONDS", 10 * SECONDS)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def interrupt(monitor: Monitor) -> None:
            with listener.accept()[0] as taken:
                monitor.stop_lingering()
                while taken.recv(65536):  # until it is given up
                    pass

        (warning,) = pushed(f"http://127.0.0.1:{listener.getsockname()[1]}", during=interrupt)
    assert warning["reason"].startswith("no whole answer within ")


@pytest.mark.usefixtures("soon")
def test_what_comes_after_the_deadline_is_no_second_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also not where the thread of the push finds out later that it has failed."""
    answered, failed = threading.Event(), threading.Event()

    def fail(*_: Any, **__: Any) -> Any:
        assert answered.wait(SECONDS)
        failed.set()
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    warnings = pushed("http://gateway.example")
    answered.set()
    assert failed.wait(SECONDS)
    for thread in threading.enumerate():
        if thread.name == "push":
            thread.join(SECONDS)
    assert len(warnings) == 1


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask no proxy of this machine for 127.0.0.1."""
    monkeypatch.setenv("no_proxy", "*")
