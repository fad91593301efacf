"""Connections to the receiver, opened and welcomed: one for control, N for data.

The control connection resolves the name anew each time and tries every address. The data connections use the address
that control reached, and insist on the same incarnation there: a restarted receiver, or a name that leads to several,
must not get half of a transfer each.
"""

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, NamedTuple

from sender.settings import SenderSettings
from wire import limits, transport
from wire.errors import ConnectionLost, FilestreamerError
from wire.framing import frame_of
from wire.messages import Role
from wire.opening import SenderOpening
from wire.transport import Channel, Deadline

if TYPE_CHECKING:
    import ssl


class Party(NamedTuple):
    """Who was reached by the control connection."""

    family: int
    address: transport.SockAddress
    incarnation: bytes


class Dialer:
    """Opens the connections of one transfer. Any thread may dial; `end` wakes them all."""

    def __init__(self, settings: SenderSettings, transfer_id: bytes) -> None:
        """Prepare to dial; raises UsageError where a TLS file can't be used."""
        self._to = settings.to
        self._transfer_id = transfer_id
        self._connections = settings.connections or limits.CONNECTIONS_AUTO
        self._token = settings.token.encode() if settings.token else None
        self._tls = _tls_context(settings)
        self._user_timeout = max(limits.DEAD_SECONDS, settings.give_up_after)
        self._mutex = threading.Lock()  # protects _sockets and _ended
        self._sockets: set[socket.socket] = set()
        self._ended = False

    def control(self) -> tuple[Channel, Party]:
        """Open the control connection. Raises ConnectionLost, Refused, RemoteProtocolError."""
        addresses = transport.resolve(self._to.host, self._to.port)
        failures = []
        for address in addresses:
            try:
                channel, incarnation = self._open(address, Role.CONTROL, 0)
            except ConnectionLost as error:
                failures.append(str(error))
                continue
            return channel, Party(*address, incarnation)
        raise ConnectionLost("; ".join(failures))

    def data(self, party: Party, connection_id: int) -> Channel:
        """Open a data connection to the party. Raises ConnectionLost, Refused, RemoteProtocolError."""
        channel, incarnation = self._open((party.family, party.address), Role.DATA, connection_id)
        if incarnation != party.incarnation:
            self.close(channel)
            raise ConnectionLost(
                f"another receiver answers at {channel.peer}: it was restarted, or the name leads to several receivers"
            )
        return channel

    def _open(
        self, address: tuple[int, transport.SockAddress], role: Role, connection_id: int
    ) -> tuple[Channel, bytes]:
        """Connect and live through the opening; return the channel and the receiver's incarnation."""
        sock = transport.connect([address], limits.OPENING_SECONDS, self._register)
        shown = transport.format_address(address[1])
        deadline = Deadline(limits.OPENING_SECONDS, f"{shown}: the receiver's answer")
        try:
            if self._tls is not None:
                return self._open_tls(self._tls, sock, deadline, role, connection_id)
            channel = Channel(transport.prepare(sock, self._user_timeout), deadline)
            return channel, self._greet(channel, role, connection_id, b"")
        except OSError as error:
            self._forget(sock)
            raise ConnectionLost(f"{shown}: {error.strerror or error}") from None
        except FilestreamerError:
            self._forget(sock)
            raise

    def _open_tls(
        self, context: "ssl.SSLContext", sock: socket.socket, deadline: Deadline, role: Role, connection_id: int
    ) -> tuple[Channel, bytes]:
        from wire import tls

        secured = tls.handshake_as_sender(context, sock, self._to.host)
        self._register(secured)
        self._forget(sock)
        try:
            transport.prepare(secured, self._user_timeout)
            channel = tls.TlsChannel(secured, deadline)
            return channel, self._greet(channel, role, connection_id, tls.peer_certificate_sha256(secured))
        except (OSError, FilestreamerError):
            self._forget(secured)
            raise

    def _greet(self, channel: Channel, role: Role, connection_id: int, certificate_sha256: bytes) -> bytes:
        """Live through the opening; return the receiver's incarnation."""
        opening = SenderOpening(self._token, certificate_sha256)
        greeting = channel.read_body(limits.OPENING_FRAME_BYTES)
        bodies = opening.answer(greeting, self._transfer_id, role, connection_id, self._connections)
        channel.send(b"".join(map(frame_of, bodies)))
        opening.enter(channel.read_body(limits.OPENING_FRAME_BYTES))
        return opening.incarnation

    def _register(self, sock: socket.socket) -> None:
        with self._mutex:
            self._sockets = {known for known in self._sockets if known.fileno() >= 0}  # without those that failed
            self._sockets.add(sock)
            if self._ended:
                raise ConnectionLost("the transfer is over")

    def _forget(self, sock: socket.socket) -> None:
        with self._mutex:
            self._sockets.discard(sock)
        sock.close()

    def close(self, channel: Channel, *, in_order: bool = False) -> None:
        """Close a channel that was opened here."""
        if in_order:
            channel.close_in_order()
        self._forget(channel.socket)

    def shut_all(self, keep: Channel | None = None) -> None:
        """Shut every connection but `keep`: who is blocked on one gets ConnectionLost, and may dial again."""
        kept = None if keep is None else keep.socket
        with self._mutex:
            for sock in self._sockets - {kept}:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def end(self, keep: Channel | None = None) -> None:
        """Shut every connection but `keep`, and let nobody open another."""
        with self._mutex:
            self._ended = True
        self.shut_all(keep)


def _tls_context(settings: SenderSettings) -> "ssl.SSLContext | None":
    """Make the context of this sender; None where it speaks clear text. Raises UsageError."""
    if not settings.tls:
        return None
    from wire import tls

    return tls.client_context(settings.tls_ca, settings.tls_cert, settings.tls_key)
