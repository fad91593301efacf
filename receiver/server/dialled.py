"""Opens connections to a sender that listens (proto/README.md, "Where the receiver dials").

Control tries every address of the sender; data connections use the one that control reached. Nothing is read beyond
the last frame of the opening: what follows is for the thread that goes on with the connection.
"""

import contextlib
import select
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any

from filestreamer.credentials import trust_of
from filestreamer.credentials.tokens import Chosen, Tokens
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, ConnectionLost, FilestreamerError, Refused, RemoteProtocolError, UsageError
from filestreamer.wire.framing import frame, frame_of, read_body
from filestreamer.wire.receiver_dials import DiallingReceiverOpening
from filestreamer.wire.sockets.addresses import Address, format_address, format_host
from filestreamer.wire.sockets.route import Route
from filestreamer.wire.sockets.transport import USER_TIMEOUT_SECONDS, Channel, Patience, prepare
from receiver.settings import ReceiverSettings

if TYPE_CHECKING:
    from filestreamer.wire.sockets.tls_stream import TlsStream


class Dialled:
    """A connection that this receiver has dialled, and whose opening is over (`Arrival`)."""

    def __init__(self, address: Address, link: "_Link", hello: m.Hello, token: bytes | None) -> None:
        self.address = address
        self.host = format_host(address[1])
        self.socket = link.socket
        self.hello = hello
        self.token = token
        self.user = ""  # a receiver that dials has none
        self._link = link

    def welcome(self) -> None:
        """Return None: Welcome was said."""

    def into_channel(self, patience: Patience, user_timeout: float, *, payload_bytes: int = 0) -> Channel:
        """Return the channel that a thread of the transfer goes on with. Raises ConnectionLost, MemoryError."""
        try:
            prepare(self.socket, user_timeout)
        except OSError as error:
            raise ConnectionLost(f"{format_address(self.address[1])}: {error.strerror}") from None
        if self._link.tls is None:
            return Channel(self.socket, patience, payload_bytes=payload_bytes)
        from filestreamer.wire.sockets.tls_channel import TlsChannel

        return TlsChannel(self._link.tls, patience, payload_bytes=payload_bytes)

    def abort(self, code: Code, reason: str) -> None:
        """Say Abort, and close."""
        with contextlib.suppress(FilestreamerError, MemoryError):
            channel = self.into_channel(lambda: None, USER_TIMEOUT_SECONDS)
            channel.send_message(m.Abort(code, reason))
            channel.close_at_once()
        self.socket.close()


class Dialler:
    """Opens the connections of one receiver. Any thread may dial; `close` ends them all."""

    def __init__(self, settings: ReceiverSettings, route: Route, incarnation: bytes, log: Any) -> None:
        """`route` leads to the sender. Raises UsageError for an unusable TLS file."""
        self._route = route
        self._incarnation = incarnation
        self._job = settings.job or ""
        self._tokens = Tokens(settings, log)
        self._trust = trust_of(settings, log, "senders")
        self._mutex = threading.Lock()  # protects the fields below
        self._sockets: set[socket.socket] = set()  # on which an opening is under way
        self._is_closed = False

    def open(self, role: m.Role, address: Address | None = None) -> Dialled:
        """Open a connection, at this address where control has reached one.

        Raises ConnectionLost, Refused, RemoteProtocolError; TransferFailed.
        """
        addresses = None if address is None else [address]
        attempts = self._route.attempts(limits.OPENING_SILENCE_SECONDS, self._register, addresses)
        while True:
            reached, sock = attempts.connect()
            try:
                return self._open(role, reached, sock, attempts.pins)
            except FilestreamerError as error:
                sock.close()
                if not isinstance(error, ConnectionLost):
                    raise
                attempts.failed(reached, str(error))  # the next address may lead to a sender that answers
            except OSError as error:
                sock.close()
                attempts.failed(reached, f"{format_address(reached[1])}: {error.strerror or error}")
            finally:
                with self._mutex:
                    self._sockets.discard(sock)

    def _open(self, role: m.Role, address: Address, sock: socket.socket, pins: tuple[bytes, ...]) -> Dialled:
        token = self._tokens.choose(format_address(address[1]))
        link = self._secure(sock, token, pins)
        opening = DiallingReceiverOpening(
            self._incarnation,
            role,
            token.token,
            link.certificate_sha256,
            is_own=token.is_own,
            job=self._job,
        )
        link.send(frame_of(opening.greeting_body))
        try:
            link.send(frame_of(opening.answer(link.read("Hello"))))
            if opening.awaits_proof:
                opening.enter(link.read("Proof"))
        except RemoteProtocolError as error:
            self._refuse(link, opening, error)
            self._raise_or_retry(token, error)
            raise
        except Refused as error:
            self._raise_or_retry(token, error)
            raise
        if token.token is not None:
            self._tokens.accept(token.token)
        assert opening.hello is not None  # it was answered
        return Dialled(address, link, opening.hello, token.token)

    def _raise_or_retry(self, token: Chosen, error: Refused | RemoteProtocolError) -> None:
        """Raise ConnectionLost where a token was refused, and the one of before is to be tried."""
        if error.code is Code.TOKEN and token.token is not None and self._tokens.refuse(token.token):
            raise ConnectionLost(f"{error}; trying the one of before") from None

    @staticmethod
    def _refuse(link: "_Link", opening: DiallingReceiverOpening, error: RemoteProtocolError) -> None:
        """Tell the sender why the connection ends: Refusal before Welcome, Abort after it."""
        kind = m.Refusal if opening.hello is None else m.Abort
        with contextlib.suppress(OSError, FilestreamerError):
            link.send(frame(kind(error.code, error.reason)))
            link.socket.shutdown(socket.SHUT_WR)

    def _secure(self, sock: socket.socket, token: Chosen, pins: tuple[bytes, ...]) -> "_Link":
        if self._trust is None:
            sock.setblocking(False)
            return _Link(sock)
        from filestreamer.wire.sockets import tls
        from filestreamer.wire.sockets.tls_errors import exchange_ends

        secret = token.token.decode() if token.token is not None else None
        try:
            secured = self._trust.handshake(sock, self._route.host, secret, pins=pins, on_timeout=lambda _: None)
        except RemoteProtocolError as error:
            raise RemoteProtocolError(exchange_ends(error.reason), error.code) from None
        except UsageError as error:
            raise UsageError(exchange_ends(str(error))) from None
        return _Link(sock, secured.stream, tls.peer_certificate_sha256(secured.stream))

    def _register(self, sock: socket.socket) -> None:
        with self._mutex:
            self._sockets = {known for known in self._sockets if known.fileno() >= 0}
            self._sockets.add(sock)
            if self._is_closed:
                raise ConnectionLost("the transfer is over")

    def waits_for(self) -> str:
        """Return what is waited for, while there is no control connection."""
        return self._route.waits_for()

    def close(self) -> None:
        """End the openings that are under way, and let no other one begin. Idempotent."""
        with self._mutex:
            self._is_closed = True
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)


class _Link:
    """A connection in its opening; the socket does not block."""

    def __init__(self, sock: socket.socket, tls: "TlsStream | None" = None, certificate_sha256: bytes = b"") -> None:
        self.socket = sock
        self.tls = tls
        self.certificate_sha256 = certificate_sha256
        self._stream = tls or sock
        self._peer = format_address(sock.getpeername())
        self._until = 0.0
        self._awaits = ""

    def read(self, what: str) -> bytes:
        """Read the body of one frame, called `what` in messages. Raises ConnectionLost, RemoteProtocolError."""
        self._until = time.monotonic() + limits.OPENING_SILENCE_SECONDS
        self._awaits = what
        return read_body(self._read_exact, limits.OPENING_FRAME_BYTES)

    def _read_exact(self, count: int) -> bytes:
        received = bytearray()
        while len(received) < count:
            try:
                some = self._stream.recv(count - len(received))
            except (BlockingIOError, ssl.SSLWantReadError):
                self._wait(select.POLLIN)
                continue
            except OSError as error:
                raise self._lost(error) from None
            if not some:
                raise ConnectionLost(f"{self._peer} closed the connection before {self._awaits}")
            received += some
        return bytes(received)

    def send(self, data: bytes) -> None:
        """Send all of `data`. Raises ConnectionLost, RemoteProtocolError."""
        self._until = time.monotonic() + limits.OPENING_SILENCE_SECONDS
        while data:
            try:
                data = data[self._stream.send(data) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                self._wait(select.POLLOUT)
            except OSError as error:
                raise self._lost(error) from None

    def _lost(self, error: OSError) -> FilestreamerError:
        """Make the error of a connection that was lost."""
        if self.tls is not None:
            from filestreamer.wire.sockets.tls_errors import exchange_ends, explain_refusal

            if refusal := explain_refusal(error):
                return RemoteProtocolError(exchange_ends(refusal.reason), refusal.code)
        return ConnectionLost(f"{self._peer}: {error.strerror or error}")

    def _wait(self, events: int) -> None:
        poll = select.poll()
        poll.register(self.socket, events)
        if not poll.poll(max(0.0, self._until - time.monotonic()) * 1000):
            seconds = f"{limits.OPENING_SILENCE_SECONDS:.0f} s"
            raise ConnectionLost(f"{self._peer}: the sender's {self._awaits} did not come within {seconds}")
