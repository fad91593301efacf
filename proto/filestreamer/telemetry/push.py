"""One push of metrics to a Pushgateway: where to, with which password, and within which time.

The module is imported only where a push is asked for: http.client takes as long to import as a small transfer.
"""

import contextlib
import re
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from functools import partial
from http.client import BadStatusLine, HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, RemoteDisconnected
from string import punctuation
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, quote, unquote, urlsplit
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from filestreamer.process.log import printable
from filestreamer.settings.values import without_password
from filestreamer.wire.errors import ConnectionLost
from filestreamer.wire.sockets import dial
from filestreamer.wire.sockets.addresses import LOOKUP_SECONDS_MAX, Address, resolve

PUSH_SECONDS: Final = 5.0
"""How long a push may take: looking up the name, connecting, TLS, and the answer together."""
ANSWER_CHARACTERS: Final = 200
"""The most characters of a gateway's own words that an error repeats."""
_JOB: Final = re.compile(r"/metrics/job(@base64)?/[^/]")


def endpoint(url: str, job: str) -> str:
    """Return where metrics are pushed: `url` itself where it names a job, else the group of `job` below it.

    What names a job is `/metrics/job/NAME` or `/metrics/job@base64/NAME`; any labels may follow. User and password are
    left out, a query is kept.
    """
    parts = urlsplit(url)
    path = parts.path.rstrip("/")
    if _JOB.search(path) is None:
        path = f"{path.removesuffix('/metrics/job').removesuffix('/metrics')}/metrics/job/{job}"
    # What is escaped stays so; a character that can't be in a request is escaped.
    path, query = (quote(part, safe=punctuation) for part in (path, parts.query))
    return SplitResult(parts.scheme, parts.netloc.rpartition("@")[2], path, query, "").geturl()


class Push:
    """One push: `send` in a thread of its own, and `abandon` from another one when it has taken too long."""

    def __init__(self, url: str, job: str) -> None:
        parts = urlsplit(url)
        self._url = endpoint(url, job)
        self._headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        if parts.username is not None:
            words = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = f"Basic {b64encode(words.encode()).decode()}"
        self._begun = time.monotonic()
        self._lock = threading.Lock()  # protects what follows
        self._waits_for = "the metrics were not collected"
        self._sock: socket.socket | None = None
        self._is_abandoned = False

    def send(self, metrics: bytes) -> None:
        """Replace the metrics of these names in the group that the URL names; what others pushed there stays.

        User and password are sent to the gateway only, not to where it redirects, and no error has them. Raises OSError
        where the gateway can't be reached or refuses the metrics.
        """
        opener = build_opener(_Http(self), _Https(self), _NoRedirection)
        try:
            request = Request(self._url, metrics, self._headers, method="POST")
            opener.open(request, timeout=PUSH_SECONDS).close()
        except HTTPError as error:
            raise OSError(_refusal(error)) from error
        except TimeoutError as error:
            raise OSError(self._too_late()) from error
        except URLError as error:
            is_late = isinstance(error.reason, TimeoutError)
            raise OSError(self._too_late() if is_late else str(error.reason)) from error
        except RemoteDisconnected as error:
            raise OSError("it closed the connection without an answer") from error
        except BadStatusLine as error:
            raise OSError(f"what answers there does not speak HTTP: {_shown(str(error))}") from error
        except (HTTPException, ValueError) as error:  # nonsense further on; the URL has no host
            raise OSError(f"{type(error).__name__}: {_shown(str(error))}") from error

    def abandon(self) -> str:
        """End the push; return what it was waiting for."""
        with self._lock:
            self._is_abandoned = True
            if self._sock is not None:
                try:
                    self._sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads a byte a second
                except OSError:
                    pass
        return self._too_late()

    def step(self, waits_for: str, sock: socket.socket | None = None) -> None:
        """Note what the push waits for from now on, and the open connection. Raises TimeoutError once abandoned."""
        with self._lock:
            if self._is_abandoned:
                raise TimeoutError
            self._waits_for, self._sock = waits_for, sock

    def _too_late(self) -> str:
        return f"{self._waits_for} within {time.monotonic() - self._begun:.0f} s"


def _refusal(error: HTTPError) -> str:
    """Return what a gateway has to say against the metrics, or where it wants them to be sent."""
    location = error.headers.get("Location", "")
    if 300 <= error.code < 400 and location:
        words = f"it redirects to {without_password(location)}: a push is not redirected, write that URL"
    else:
        words = ""
        with contextlib.suppress(OSError, HTTPException):  # the status says enough, where its text is cut short
            words = error.read(4 * ANSWER_CHARACTERS).decode(errors="replace")
    words = _shown(words)
    return f"HTTP {error.code} {error.reason}{': ' if words else ''}{words}"


def _shown(words: str) -> str:
    """Return what a gateway said on one line, which has an end."""
    return printable(" ".join(words.split()))[:ANSWER_CHARACTERS]


def _connect(push: Push, connection: HTTPConnection, connect: Callable[[], None]) -> None:
    # Before `connect`, which would do it as well, so that an error can tell a dead name server from a dead gateway.
    push.step(f"{connection.host} was not found")
    try:
        found = resolve(connection.host, connection.port, seconds=LOOKUP_SECONDS_MAX)
    except ConnectionLost as error:
        raise OSError(str(error)) from error
    push.step(f"no connection to {connection.host} port {connection.port}")
    # http.client would try one address after the other: one that is silent would take all the time.
    connection._create_connection = partial(_dial, found)  # type: ignore[attr-defined]
    connect()
    push.step("no whole answer", connection.sock)


def _dial(found: list[Address], *_: object) -> socket.socket:
    try:
        return dial.connect(found, PUSH_SECONDS)
    except ConnectionLost as error:
        raise OSError(str(error)) from error


class _PlainConnection(HTTPConnection):
    def __init__(self, push: Push, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._push = push

    def connect(self) -> None:
        _connect(self._push, self, super().connect)


class _TlsConnection(HTTPSConnection):
    def __init__(self, push: Push, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._push = push

    def connect(self) -> None:
        _connect(self._push, self, super().connect)


class _Http(HTTPHandler):
    def __init__(self, push: Push) -> None:
        super().__init__()
        self._push = push

    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(partial(_PlainConnection, self._push), req)


class _Https(HTTPSHandler):
    def __init__(self, push: Push) -> None:
        super().__init__()
        self._push = push

    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(partial(_TlsConnection, self._push, context=_tls_context()), req)


def _tls_context() -> Any:
    """Make a TLS context that compares certificates with the host as they name it, without a dot at its end."""
    import ssl

    from filestreamer.wire.sockets.tls import server_name

    class Context(ssl.SSLContext):
        def wrap_socket(self, sock: Any, *, server_hostname: Any) -> ssl.SSLSocket:  # type: ignore[override]
            """As http.client calls it."""
            return super().wrap_socket(sock, server_hostname=server_name(server_hostname))

    context = Context(ssl.PROTOCOL_TLS_CLIENT)
    context.load_default_certs()
    return context


class _NoRedirection(HTTPRedirectHandler):
    """Makes a redirection an error: to follow it would send the password elsewhere, and the metrics nowhere."""

    def redirect_request(self, *_: object) -> None:
        return None
