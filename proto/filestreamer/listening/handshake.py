"""One connection in its opening, at the end that was dialled: TLS handshake, then frames (proto/README.md, "Opening").

It never blocks: the acceptor calls it whenever its socket is readable, and it goes on as far as the bytes reach. What a
peer says behind its last frame of the opening stays unread in the socket.
"""

import contextlib
import socket
import ssl
import time
from typing import Final, Generic, Protocol, TypeVar

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, ConnectionLost, RemoteProtocolError
from filestreamer.wire.framing import check_body, frame, frame_of, parse_header
from filestreamer.wire.session import Side
from filestreamer.wire.sockets.addresses import format_address, format_host
from filestreamer.wire.sockets.tls_stream import TlsStream
from filestreamer.wire.sockets.transport import Channel, Patience, prepare

_FRAME: Final = b"\x00"
"""The first byte of a frame in clear text; a TLS client begins with 0x16 (RFC 8446, 5.1)."""
DRAIN_READS: Final = 16
"""How many times 64 KiB of further bytes are read and dropped before a refused connection is closed."""


class Opening(Protocol):
    """What the end that was dialled says and hears in the opening of one connection."""

    side: Side
    """Which end this is."""
    first_body: bytes
    """What it says as soon as it can; empty where the peer speaks first."""
    is_over: bool
    """Whether the peer may come in."""

    @property
    def has_heard(self) -> bool:
        """Whether the peer has said what the connection is for."""
        ...

    @property
    def awaits(self) -> str:
        """The name of the frame that is to come next."""
        ...

    def take(self, body: bytes) -> bytes | None:
        """Take a body from the peer; return the one that answers it, if any.

        Raises RemoteProtocolError, TransferFailed, Refused.
        """
        ...


O = TypeVar("O", bound=Opening)  # noqa: E741 - the opening


def _network(host: str) -> str | bytes:
    """Return the network of an address: of IPv6, a /64; else the address."""
    if ":" not in host or host.startswith("::ffff:"):  # IPv4, as a socket for both shows it
        return host
    return socket.inet_pton(socket.AF_INET6, host)[:8]


class Handshake(Generic[O]):
    """The opening on one socket that was accepted."""

    def __init__(self, sock: socket.socket, opening: O, tls: ssl.SSLContext | None, marker: bytes = b"") -> None:
        """Take over a socket; with `tls`, its TLS session begins. Raises OSError where the peer is gone already.

        `marker` is what is said before the opening, where the peer came through ssh.
        """
        self._begun_at = self._heard_at = time.monotonic()
        self.opening: O = opening
        address = sock.getpeername()
        self.peer = format_address(address)
        self.host = format_host(address).partition("%")[0]
        self.network = _network(self.host)
        """What one end has all addresses of."""
        sock.setblocking(False)
        self.socket = sock
        self._tls = None if tls is None else TlsStream(tls, sock)
        self._stream = self._tls or sock
        self._is_secured = tls is None
        self._is_first_byte_seen = False
        self._speaks_clear_text = False
        """Whether a peer that speaks clear text has connected to an end that speaks TLS."""
        self._received = bytearray()
        self._wanted = limits.FRAME_HEADER_BYTES
        self._checksum = b""
        self._unsent = marker
        self._wants_write = False
        self.is_refused = False
        """Whether the connection is refused, and only the Refusal is still being sent."""

    @property
    def wants_write(self) -> bool:
        """Whether the acceptor has to wait until the socket is writable, too."""
        return bool(self._unsent) or self._wants_write

    def is_overdue(self, now: float) -> bool:
        """Whether the peer is silent for too long, or the opening took too long as a whole."""
        is_silent = now - self._heard_at > limits.OPENING_SILENCE_SECONDS
        return is_silent or now - self._begun_at > limits.OPENING_SECONDS

    def waited(self, now: float) -> float:
        """Return for how many seconds the opening has gone on."""
        return now - self._begun_at

    def greet(self) -> None:
        """Say what this end says first; with TLS that is said after the handshake instead. Raises OSError."""
        if self._is_secured and self.opening.first_body:
            self._say(frame_of(self.opening.first_body))
        elif self._unsent:
            self._say(b"")

    def _say(self, data: bytes) -> None:
        """Send bytes, now or when the socket takes them. Raises OSError."""
        self._unsent += data
        self._send_unsent()

    def _send_unsent(self) -> None:
        with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            while self._unsent:
                self._unsent = self._unsent[self._stream.send(self._unsent) :]

    def receive(self) -> bool:
        """Go on with the opening; return whether the peer may come in.

        Nothing is read beyond the last frame of the opening. Raises ConnectionLost, RemoteProtocolError,
        TransferFailed, Refused.
        """
        self._wants_write = False
        try:
            self._heard_at = time.monotonic()
            self._send_unsent()
            if not self._is_secured:
                self._shake_hands()
            while not self.opening.is_over:
                self._read_on()
            return True
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except ssl.SSLWantWriteError:
            self._wants_write = True
            return False
        except ssl.SSLEOFError:
            raise ConnectionLost(f"the {self.peer_side} closed the connection in the TLS handshake") from None
        except ssl.SSLError as error:
            from filestreamer.wire.sockets import tls_errors

            assert self._tls is not None  # no other stream raises it
            chain, is_tls = tls_errors.verified_chain(self._tls.session), tls_errors.speaks_tls(self._tls.session)
            explained = tls_errors.explain_as_receiver(error, chain, speaks_tls=is_tls)
            if self.opening.side == "sender":
                reason = tls_errors.exchange_ends(explained.reason)
                explained = RemoteProtocolError(reason, explained.code)
            raise explained from None
        except OSError as error:
            raise ConnectionLost(str(error.strerror or error)) from None

    @property
    def peer_side(self) -> Side:
        """Which end the peer is."""
        return "sender" if self.opening.side == "receiver" else "receiver"

    @property
    def _speaks_tls(self) -> str:
        return f"this {self.opening.side} speaks TLS: pass the {self.peer_side} --tls"

    def _shake_hands(self) -> None:
        """Go on with the TLS handshake; until it is done, raise what OpenSSL raises.

        Raises RemoteProtocolError(POLICY) for a peer that speaks clear text: the first bytes are those of a frame.
        """
        if not self._is_first_byte_seen:
            first = self.socket.recv(1, socket.MSG_PEEK)
            self._is_first_byte_seen = True
            self._speaks_clear_text = first == _FRAME
            if self._speaks_clear_text:
                raise RemoteProtocolError(self._speaks_tls, Code.POLICY)
        if self._tls is not None:
            self._tls.do_handshake()
        self._is_secured = True
        self.greet()

    def _read_on(self) -> None:
        some = self._stream.recv(self._wanted - len(self._received))
        if not some:
            raise ConnectionLost(f"the {self.peer_side} closed the connection before {self.opening.awaits}")
        self._received += some
        if len(self._received) < self._wanted:
            return
        received, self._received = bytes(self._received), bytearray()
        if not self._checksum:
            self._wanted, self._checksum = parse_header(received, limits.OPENING_FRAME_BYTES)
            return
        check_body(received, self._checksum)
        self._wanted, self._checksum = limits.FRAME_HEADER_BYTES, b""
        answer = self.opening.take(received)
        if answer is not None:
            self._say(frame_of(answer))

    def refuse(self, code: Code, reason: str) -> bool:
        """Send a Refusal, and close; return False if the socket does not take it yet (then call `finish_refusal`)."""
        self.is_refused = True
        with contextlib.suppress(OSError, ValueError):
            if self._is_secured:
                # A sender that was dialled has said its last frame of the opening when that is over.
                has_ended = self.opening.is_over and self.opening.side == "sender"
                self._say(frame(m.Abort(code, reason) if has_ended else m.Refusal(code, reason)))
            elif self._speaks_clear_text:
                self.socket.send(frame(m.Refusal(Code.POLICY, self._speaks_tls)))
            if self._unsent:
                return False
        self.close()
        return True

    def finish_refusal(self) -> bool:
        """Go on sending a Refusal; return whether it is sent, and the socket closed."""
        with contextlib.suppress(OSError, ValueError):
            self._send_unsent()
            if self._unsent:
                return False
        self.close()
        return True

    def close(self) -> None:
        """Shut down writing, read and drop what is there, and close."""
        # Bytes that are unread at the close would have the kernel send a reset, which may overtake the Refusal.
        with contextlib.suppress(OSError, ValueError):
            self.socket.shutdown(socket.SHUT_WR)
            for _ in range(DRAIN_READS):
                if not self.socket.recv(65536):
                    break
        self.socket.close()

    def into_channel(self, patience: Patience, user_timeout: float, *, payload_bytes: int = 0) -> Channel:
        """Return the channel that a thread of the transfer goes on with; arguments are those of `Channel`, `prepare`.

        Raises ConnectionLost where the peer is gone, MemoryError.
        """
        try:
            prepare(self.socket, user_timeout)
        except OSError as error:
            raise ConnectionLost(str(error.strerror)) from None
        if self._tls is None:
            return Channel(self.socket, patience, payload_bytes=payload_bytes)
        from filestreamer.wire.sockets.tls_channel import TlsChannel

        return TlsChannel(self._tls, patience, payload_bytes=payload_bytes)
