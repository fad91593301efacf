"""A small HTTP server: the live page, /transfers, /metrics, /healthz, /readyz.

It has no authentication. So its answers have no paths and no names, it only reads, and it takes few resources: a few
connections at once, each for a few seconds and a few KiB; where one more comes, the oldest is closed. Until a client
connects, there is only a listening socket and a thread; what the answers need is imported then.
"""

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from filestreamer.process.threads import run_to_end, start_thread
from filestreamer.wire.sockets.listen import accept

CONNECTIONS: Final = 16
REQUEST_SECONDS: Final = 5.0
"""How long a connection may last, from accept to close."""
HEAD_BYTES: Final = 16 * 1024
"""The most bytes of request line and headers."""
REST_BYTES: Final = 1024 * 1024
"""The most bytes that are read and dropped behind a request."""
ANSWERS_BYTES: Final = 8 * 1024 * 1024
"""The most bytes of all answers that clients have not taken yet; the oldest connection is closed for a new answer."""
_READ_BYTES: Final = 4096
STOP_SECONDS: Final = 1.0


class Response(NamedTuple):
    """The answer of a route."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200
    headers: Mapping[str, str] = {}


Route = Callable[[str], Response]
"""Makes the answer, given the Accept header of the request."""


class Endpoint:
    """Answers GET and HEAD of a few routes from `start` to `stop`, each request in a thread of its own."""

    def __init__(self, listeners: list[socket.socket], routes: Mapping[str, Route], log: Any) -> None:
        """Take over sockets that listen and do not block; `stop` closes them."""
        self._listeners = listeners
        self._routes = routes
        self._log = log
        self._changed = threading.Condition()  # protects _open and _answers
        self._open: dict[socket.socket, float] = {}  # the deadline of each connection (monotonic), oldest first
        self._answers: dict[socket.socket, int] = {}  # bytes of each answer that is being sent
        # Held while an answer is made: that takes many times the memory of the answer, so it is done one at a time.
        self._answering = threading.Lock()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="endpoint", daemon=True)

    def start(self) -> None:
        """Start to serve. Raises TransferFailed(LIMIT) where no thread can be started."""
        start_thread(self._thread, "the metrics endpoint")

    def stop(self) -> None:
        """Accept no more connections, and release the port."""
        self._stopping = True
        for listener in self._listeners:
            _shut(listener)  # wakes the selector
        self._thread.join(STOP_SECONDS)
        for listener in self._listeners:
            listener.close()

    def _run(self) -> None:
        if error := run_to_end("the metrics endpoint", self._serve_all):
            self._log.warning("not_shown", reason=str(error))

    def _serve_all(self) -> None:
        with selectors.DefaultSelector() as selector:
            for listener in self._listeners:
                selector.register(listener, selectors.EVENT_READ, listener)
            while not self._stopping:
                for key, _ in selector.select():
                    self._accept(key.data)

    def _accept(self, listener: socket.socket) -> None:
        sock = accept(listener)
        if sock is None:
            return
        if not self._admit(sock):
            sock.close()
            return
        try:
            threading.Thread(target=self._serve, args=(sock,), name="request", daemon=True).start()
        except RuntimeError:
            self._close(sock)

    def _admit(self, sock: socket.socket) -> bool:
        """Find room for a connection, if need be by closing the oldest; return whether there is room."""
        with self._changed:
            if len(self._open) >= CONNECTIONS:
                _shut(next(iter(self._open)))
                self._changed.wait_for(lambda: len(self._open) < CONNECTIONS, REQUEST_SECONDS)
            if len(self._open) >= CONNECTIONS:
                return False
            self._open[sock] = time.monotonic() + REQUEST_SECONDS
            return True

    def _close(self, sock: socket.socket) -> None:
        with self._changed:
            self._open.pop(sock, None)
            self._answers.pop(sock, None)
            sock.close()
            self._changed.notify_all()

    # --- one request

    def _serve(self, sock: socket.socket) -> None:
        try:
            until = self._open[sock]
            head = _read_head(sock, until)
            answer = self._answer_alone(sock, head, until)
            sock.settimeout(_left(until))
            sock.sendall(answer)
            _end(sock, until)
        except OSError:
            pass  # the client has gone or took too long, or its connection was closed to make room
        finally:
            self._close(sock)

    def _answer_alone(self, sock: socket.socket, head: bytes, until: float) -> bytes:
        """Make the answer while no other one is made. Raises TimeoutError where the wait is too long."""
        if not self._answering.acquire(timeout=_left(until)):
            raise TimeoutError
        try:
            answer = self._answer(head)
        finally:
            self._answering.release()
        with self._changed:
            for other, size in list(self._answers.items()):
                if sum(self._answers.values()) + len(answer) <= ANSWERS_BYTES:
                    break
                self._answers[other] = 0  # its memory is free as soon as its thread notices
                if size:
                    _shut(other)
            self._answers[sock] = len(answer)
        return answer

    def _answer(self, head: bytes) -> bytes:
        try:
            return answer(head, self._routes)
        except Exception as error:  # noqa: BLE001 - the top of a thread
            self._log.warning("not_shown", reason=f"{type(error).__name__}: {error}")
            return _http(Response(b"internal error: see the log of the service\n", status=500))


def answer(head: bytes, routes: Mapping[str, Route]) -> bytes:
    """Return the answer to a request, given its head. It is HTTP/1.0: the connection ends with the answer."""
    if len(head) > HEAD_BYTES:
        return _http(Response(f"more than {HEAD_BYTES} bytes of request line and headers\n".encode(), status=431))
    lines = head.decode("latin-1").split("\n")
    method, target, version = words if len(words := lines[0].split()) == 3 else ("", "", "")
    if not version.startswith("HTTP/") or not method.isalpha():
        return _http(Response(b"this is not an HTTP request\n", status=400))
    if method not in ("GET", "HEAD"):
        return _http(Response(b"only GET and HEAD are answered here\n", status=501))
    route = routes.get(_path(target))
    if route is None:
        response = Response(f"not found: try {' '.join(sorted(routes))}\n".encode(), status=404)
    else:
        response = route(_header(lines[1:], "accept"))
    return _http(response, with_body=method == "GET")


def _path(target: str) -> str:
    """Return the path of a request's target; the target is a whole URL where a client takes this for a proxy."""
    scheme, separator, rest = target.partition("://")
    if separator and scheme.lower() in ("http", "https"):
        target = "/" + rest.partition("/")[2]
    return target.partition("?")[0]


def _header(lines: list[str], name: str) -> str:
    """Return the value of a header; values of a repeated header are joined by commas."""
    fields = [line.partition(":") for line in lines]
    return ", ".join(value.strip() for field, _, value in fields if field.strip().lower() == name)


def _http(response: Response, *, with_body: bool = True) -> bytes:
    from http import HTTPStatus

    headers = {
        "Content-Type": response.content_type,
        "Content-Length": str(len(response.body)),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Connection": "close",
        **response.headers,
    }
    lines = [f"HTTP/1.0 {response.status} {HTTPStatus(response.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if not all(map(str.isprintable, lines)):  # a route must not be able to start another header
        raise ValueError("a header has a control character")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (response.body if with_body else b"")


# --- sockets


def _read_head(sock: socket.socket, until: float) -> bytes:
    """Read request line and headers: up to the empty line, too many bytes, or a first byte that is not HTTP.

    Raises OSError where the client closes first, or the time is over.
    """
    head = b""
    while len(head) <= HEAD_BYTES and b"\r\n\r\n" not in head and b"\n\n" not in head:
        sock.settimeout(_left(until))
        some = sock.recv(_READ_BYTES)
        if not some:
            raise ConnectionError("the client has left")
        head += some
        if not head[:1].isalpha():
            break
    return head


def _end(sock: socket.socket, until: float) -> None:
    """Close in order. Raises OSError where the time is over."""
    # Bytes that the client sent after its request are read first: with unread bytes, close sends a reset, which can
    # overtake the answer.
    sock.shutdown(socket.SHUT_WR)
    dropped = 0
    while dropped < REST_BYTES:
        sock.settimeout(_left(until))
        some = sock.recv(_READ_BYTES)
        if not some:
            return
        dropped += len(some)


def _left(until: float) -> float:
    """Return the seconds until a deadline. Raises TimeoutError where it has passed."""
    seconds = until - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def _shut(sock: socket.socket) -> None:
    """Shut a socket down: a thread that is blocked on it returns."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
