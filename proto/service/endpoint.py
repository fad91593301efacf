"""A small HTTP server for what a service shows of itself: the page, /transfers, /metrics, /healthz, /readyz.

It asks nobody who they are, so it tells no paths and no names, only reads, and holds little: a few connections at once,
the oldest of which gives way, each for a few seconds. Until somebody connects it is a listening socket and a thread;
what it takes to answer is imported then.
"""

import contextlib
import functools
import selectors
import socket
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler

CONNECTIONS: Final = 16
REQUEST_SECONDS: Final = 5.0


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

    def __init__(self, listeners: list[socket.socket], routes: Mapping[str, Route]) -> None:
        """Take over sockets that are bound, listening, and not blocking; `stop` closes them."""
        self._listeners = listeners
        self._routes = routes
        self._open: list[socket.socket] = []  # oldest first; protected
        self._lock = threading.Lock()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="endpoint", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more connections, and release the port."""
        self._stopping = True
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # which wakes the selector
        self._thread.join()
        for listener in self._listeners:
            listener.close()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for listener in self._listeners:
                selector.register(listener, selectors.EVENT_READ, listener)
            while not self._stopping:
                for key, _ in selector.select():
                    self._accept(key.data)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, address = listener.accept()
        except OSError:
            return
        with self._lock:
            if len(self._open) >= CONNECTIONS:
                with contextlib.suppress(OSError):
                    self._open[0].shutdown(socket.SHUT_RDWR)
            if len(self._open) >= 2 * CONNECTIONS:
                sock.close()
                return
            self._open.append(sock)
        try:
            threading.Thread(target=self._serve, args=(sock, address), name="request", daemon=True).start()
        except RuntimeError:
            self._close(sock)

    def _serve(self, sock: socket.socket, address: object) -> None:
        try:
            sock.settimeout(REQUEST_SECONDS)
            _handler()(sock, address, self._routes)  # type: ignore[arg-type]  # it only passes the third one on
        except OSError:
            pass  # the client has left
        finally:
            self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        with self._lock, contextlib.suppress(ValueError):
            self._open.remove(sock)
        sock.close()


@functools.cache
def _handler() -> "type[BaseHTTPRequestHandler]":
    from http.server import BaseHTTPRequestHandler

    class Handler(BaseHTTPRequestHandler):
        """One request: HTTP/1.0, so that every connection ends with its answer."""

        server_version = "filestreamer"
        sys_version = ""
        timeout = REQUEST_SECONDS

        def do_GET(self) -> None:
            routes: Mapping[str, Route] = self.server  # type: ignore[assignment]
            route = routes.get(self.path.partition("?")[0])
            if route is None:
                self._answer(Response(b"not here: try " + " ".join(sorted(routes)).encode() + b"\n", status=404))
                return
            self._answer(route(self.headers.get("Accept", "")))

        do_HEAD = do_GET

        def _answer(self, response: Response) -> None:
            self.send_response(response.status)
            self.send_header("Content-Type", response.content_type)
            self.send_header("Content-Length", str(len(response.body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            for name, value in response.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(response.body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: a scrape every few seconds is no news."""

    return Handler
