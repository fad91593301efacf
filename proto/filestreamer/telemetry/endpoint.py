"""A small HTTP server for what a service shows of itself: the page, /transfers, /metrics, /healthz, /readyz.

It asks nobody who they are, so it tells no paths and no names, only reads, and holds little: a few connections at once,
the oldest of which gives way, each for a few seconds and a few KiB. Until somebody connects it is a listening socket
and a thread; what it takes to answer is imported then.
"""

import contextlib
import errno
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from filestreamer.process.threads import run_to_end, start_thread

CONNECTIONS: Final = 16
REQUEST_SECONDS: Final = 5.0
"""How long a connection may take, from its first byte to its end."""
HEAD_BYTES: Final = 16 * 1024
"""How long a request line may be, together with its headers."""
REST_BYTES: Final = 1024 * 1024
"""How much is read, and dropped, behind a request: what is left unread would take the answer with it."""
ANSWERS_BYTES: Final = 8 * 1024 * 1024
"""Answers that clients have not taken yet, all of them together: the oldest connection gives way to more."""
_READ_BYTES: Final = 4096
_PAUSE_SECONDS: Final = 0.1
STOP_SECONDS: Final = 1.0


class Response(NamedTuple):
    """What a route answers."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200
    headers: Mapping[str, str] = {}


Route = Callable[[str], Response]
"""Makes the answer, given the request's Accept header."""


class Endpoint:
    """Serves GET and HEAD of a few routes from `start` to `stop`, each request in a thread of its own."""

    def __init__(self, listeners: list[socket.socket], routes: Mapping[str, Route], log: Any) -> None:
        """Take over sockets that are bound, listening, and not blocking; `stop` closes them."""
        self._listeners = listeners
        self._routes = routes
        self._log = log
        self._open: dict[socket.socket, float] = {}  # when each has to end (monotonic), oldest first; protected
        self._answers: dict[socket.socket, int] = {}  # bytes of each answer that is under way; protected
        self._changed = threading.Condition()
        self._answering = threading.Lock()
        """One answer is made at a time: what it takes to make one is many times what it is."""
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="endpoint", daemon=True)

    def start(self) -> None:
        """Begin to serve. Raises TransferFailed(LIMIT) where there is no thread for it."""
        start_thread(self._thread, "the metrics endpoint")

    def stop(self) -> None:
        """Take no more connections, and release the port."""
        self._stopping = True
        for listener in self._listeners:
            _shut(listener)  # which wakes the selector
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
        try:
            sock, _ = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):  # the port stays readable: don't spin
                time.sleep(_PAUSE_SECONDS)
            return
        if not self._admit(sock):
            sock.close()
            return
        try:
            threading.Thread(target=self._serve, args=(sock,), name="request", daemon=True).start()
        except RuntimeError:
            self._close(sock)

    def _admit(self, sock: socket.socket) -> bool:
        """Find room for a connection: where there is none the oldest one gives way, which takes it no time."""
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
            pass  # the client has left, gave way, or took too long
        finally:
            self._close(sock)

    def _answer_alone(self, sock: socket.socket, head: bytes, until: float) -> bytes:
        """Make the answer, while nobody else's is made. Raises OSError where that takes too long."""
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
                self._answers[other] = 0  # soon
                if size:
                    _shut(other)
            self._answers[sock] = len(answer)
        return answer

    def _answer(self, head: bytes) -> bytes:
        try:
            return answer(head, self._routes)
        except Exception as error:  # noqa: BLE001 - the top of a thread
            self._log.warning("not_shown", reason=f"{type(error).__name__}: {error}")
            return _http(Response(b"this went wrong: the log of the service says how\n", status=500))


def answer(head: bytes, routes: Mapping[str, Route]) -> bytes:
    """Return the answer to a request's head, as HTTP/1.0: every connection ends with its answer."""
    if len(head) > HEAD_BYTES:
        return _http(Response(f"more than {HEAD_BYTES} bytes of request line and headers\n".encode(), status=431))
    lines = head.decode("latin-1").split("\n")
    method, target, version = words if len(words := lines[0].split()) == 3 else ("", "", "")
    if not version.startswith("HTTP/") or not method.isalpha():
        return _http(Response(b"this is no HTTP request\n", status=400))
    if method not in ("GET", "HEAD"):
        return _http(Response(b"only GET and HEAD are answered here\n", status=501))
    route = routes.get(_path(target))
    if route is None:
        response = Response(f"not here: try {' '.join(sorted(routes))}\n".encode(), status=404)
    else:
        response = route(_header(lines[1:], "accept"))
    return _http(response, with_body=method == "GET")


def _path(target: str) -> str:
    """Return the path of a request's target, which is a whole URL where it was meant for a proxy."""
    scheme, separator, rest = target.partition("://")
    if separator and scheme.lower() in ("http", "https"):
        target = "/" + rest.partition("/")[2]
    return target.partition("?")[0]


def _header(lines: list[str], name: str) -> str:
    """Return a header's value, with those of its repetitions."""
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
    if not all(map(str.isprintable, lines)):  # whatever a route answers, no header of it begins another one
        raise ValueError("a header has a control character")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (response.body if with_body else b"")


# --- sockets


def _read_head(sock: socket.socket, until: float) -> bytes:
    """Read a request line and its headers: up to the empty line, or to where it is too long or none at all.

    Raises OSError where the client leaves first, or the time is over.
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
    """Close in order: what the client sent beyond its request is read first, or a reset would overtake the answer."""
    sock.shutdown(socket.SHUT_WR)
    dropped = 0
    while dropped < REST_BYTES:
        sock.settimeout(_left(until))
        some = sock.recv(_READ_BYTES)
        if not some:
            return
        dropped += len(some)


def _left(until: float) -> float:
    """Return the seconds that are left. Raises TimeoutError where none are."""
    seconds = until - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def _shut(sock: socket.socket) -> None:
    """Wake whoever waits on it."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
