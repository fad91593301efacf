"""Opens the connections to the receiver: one for control, N for data.

The control connection resolves the receiver's name each time, and tries every address. The data connections use the
address that control reached, and insist on the same incarnation of the receiver there. If the receiver was restarted,
or its name leads to several receivers, none of them must get half of a transfer.

Each step of an opening takes a round-trip. So data connections do not wait until control has done all of them: they
connect once control is connected, say Hello once it is welcomed, and move chunks once its offer is answered
(`control_state`).

Each connection uses the token and the certificates that their files have now. Both sides may not see a new token at the
same moment: where one is refused, the next connection uses the one that was accepted before.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from filestreamer.settings import renewed, values
from filestreamer.wire import features, limits
from filestreamer.wire.errors import Code, ConnectionLost, FilestreamerError, Refused, RemoteProtocolError
from filestreamer.wire.framing import frame_of
from filestreamer.wire.messages import Role
from filestreamer.wire.opening import SenderOpening
from filestreamer.wire.sockets.addresses import format_address, resolve
from filestreamer.wire.sockets.dial import connect
from filestreamer.wire.sockets.transport import Channel, Deadline, prepare
from sender.network.control_state import Address, ControlState
from sender.settings import SenderSettings

if TYPE_CHECKING:
    import ssl


class _Greeted(NamedTuple):
    """A connection on which the receiver has said Greeting, and waits for Hello."""

    channel: Channel
    body: bytes
    """The Greeting."""
    certificate_sha256: bytes
    """The digest of the receiver's TLS certificate; empty without TLS."""


def _do_nothing(_address: Address, _sock: socket.socket) -> None:
    pass


class Dialer:
    """Opens the connections of one transfer. Any thread may dial; `close` ends them all."""

    def __init__(
        self,
        settings: SenderSettings,
        transfer_id: bytes,
        control_state: ControlState,
        needed: tuple[str, ...],
        log: Any,
    ) -> None:
        """Prepare to dial receivers that have the `needed` features. Raises UsageError for an unusable TLS file."""
        assert settings.to is not None  # only a list of what would be offered goes without it
        self._to = settings.to
        self._transfer_id = transfer_id
        self._control_state = control_state
        self._features = needed
        self._connections = settings.connections or limits.CONNECTIONS_AUTO
        self._token = _token(settings, log)
        self._own: str | None = None  # this user's own token on this machine, as it was read last
        self._tls = _tls_context(settings, log)
        self._user_timeout = max(limits.DEAD_SECONDS, settings.give_up_after)
        self._mutex = threading.Lock()  # protects the fields below
        self._accepted_token: str | None = None  # the one with which a connection was opened last
        self._refused_tokens: set[str] = set()  # those that were refused since
        self._sockets: set[socket.socket] = set()  # of all connections, those that are being opened as well
        self._is_closed = False

    def open_control(self, on_connected: Callable[[Address, socket.socket], None]) -> tuple[Channel, Address, bytes]:
        """Open the control connection; return it, its address, and the incarnation of the receiver.

        `on_connected` is called with each address that answers: over TLS after the Greeting, else before it. Raises
        ConnectionLost, Refused, RemoteProtocolError.
        """
        addresses = resolve(self._to.host, self._to.port)
        failures = []
        for address in addresses:
            greeted: _Greeted | None = None
            try:
                greeted = self._open(address, on_connected)
                return greeted.channel, address, self._enter(greeted, Role.CONTROL, 0)
            except FilestreamerError as error:
                if greeted is not None:
                    self.close_channel(greeted.channel)
                if not isinstance(error, ConnectionLost):
                    raise
                failures.append(str(error))
        raise ConnectionLost("; ".join(failures))

    def open_data(self, connection_id: int) -> Channel:
        """Open a data connection to the address of control, once control is that far.

        Raises ConnectionLost, Refused, RemoteProtocolError.
        """
        while (channel := self._try_open_data(connection_id)) is None:
            pass
        return channel

    def _try_open_data(self, connection_id: int) -> Channel | None:
        """Open a data connection; return None where control was lost meanwhile.

        Then the receiver has no transfer that this connection could join. Its error is not reported: the control
        connection met the same error, and reports it once, not N times.
        """
        address = self._control_state.wait_for_address()
        greeted: _Greeted | None = None
        try:
            greeted = self._open(address)
            incarnation = self._control_state.wait_for_incarnation(address)
            if incarnation is not None:
                self._enter(greeted, Role.DATA, connection_id, incarnation)
                if self._control_state.wait_until_answered(address, incarnation):
                    return greeted.channel
            self.close_channel(greeted.channel)
        except FilestreamerError:
            if greeted is not None:
                self.close_channel(greeted.channel)
            if self._control_state.wait_until_answered(address):
                raise
        return None

    def _open(self, address: Address, on_connected: Callable[[Address, socket.socket], None] = _do_nothing) -> _Greeted:
        """Connect and read the Greeting; `_enter` answers it."""
        sock = connect([address], limits.OPENING_SECONDS, self._register)
        shown = format_address(address[1])
        deadline = Deadline(limits.OPENING_SECONDS, f"{shown}: the receiver's answer")
        try:
            if (context := self._tls()) is not None:
                greeted = self._open_tls(context, sock, deadline)
                # Only after TLS: if TLS fails, it fails on the control connection alone, not on N data connections.
                on_connected(address, greeted.channel.socket)
                return greeted
            on_connected(address, sock)
            channel = Channel(prepare(sock, self._user_timeout), deadline)
            return _Greeted(channel, channel.read_body(limits.OPENING_FRAME_BYTES), b"")
        except OSError as error:
            self._forget(sock)
            raise ConnectionLost(f"{shown}: {error.strerror or error}") from None
        except FilestreamerError:
            self._forget(sock)
            raise

    def _open_tls(self, context: "ssl.SSLContext", sock: socket.socket, deadline: Deadline) -> _Greeted:
        from filestreamer.wire.sockets import tls, tls_channel

        stream = tls.handshake_as_sender(context, sock, self._to.host)
        prepare(sock, self._user_timeout)
        channel = tls_channel.TlsChannel(stream, deadline)
        body = channel.read_body(limits.OPENING_FRAME_BYTES)
        return _Greeted(channel, body, tls.peer_certificate_sha256(stream))

    def _enter(self, greeted: _Greeted, role: Role, connection_id: int, expected: bytes | None = None) -> bytes:
        """Say Hello, and read Welcome; return the receiver's incarnation.

        Raises ConnectionLost where that is not the `expected` one, if one is, or where another token is to be tried;
        TransferFailed(POLICY) where the receiver lacks a feature that the transfer needs.
        """
        channel = greeted.channel
        channel.patience = Deadline(limits.OPENING_SECONDS, f"{channel.peer}: the receiver's answer")
        own = self._own_token if _is_loopback(channel.peer) else None
        opening = SenderOpening(self._choose(self._token()), greeted.certificate_sha256, own)
        bodies = opening.answer(greeted.body, self._transfer_id, role, connection_id, self._connections)
        if expected not in (None, opening.incarnation):
            raise ConnectionLost(
                f"another receiver answers at {channel.peer}: it was restarted, or the name leads to several receivers"
            )
        features.require(opening.peer_features, *self._features)
        channel.send(b"".join(map(frame_of, bodies)))
        answer = channel.read_body(limits.OPENING_FRAME_BYTES)
        try:
            opening.enter(answer)
        except (Refused, RemoteProtocolError) as error:
            if error.code is Code.TOKEN and opening.token is not None and self._has_another_than(opening.token):
                raise ConnectionLost(f"{channel.peer}: {error}; trying the one of before") from None
            raise
        if opening.token is not None:
            with self._mutex:
                self._accepted_token = opening.token.decode()
                self._refused_tokens.clear()
        return opening.incarnation

    def _choose(self, token: str | None) -> bytes | None:
        """Return the token to prove: this one or, where it was refused, the one that was accepted before."""
        with self._mutex:
            if token in self._refused_tokens and self._accepted_token is not None:
                token = self._accepted_token
        return token.encode() if token else None

    def _has_another_than(self, refused: bytes) -> bool:
        """Note that a token was refused; return whether another one is left to be tried."""
        with self._mutex:
            self._refused_tokens.add(refused.decode())
            return self._accepted_token is not None and self._accepted_token not in self._refused_tokens

    def _own_token(self) -> bytes | None:
        """Return this user's own token on this machine, if there is one."""
        from filestreamer.settings import own_token

        # If it can't be read, the token that was read last is used: this process may have too many open files now.
        own = own_token.read(os.environ)
        if own is not None:
            self._own = own.token
        return self._choose(self._own)

    def _register(self, sock: socket.socket) -> None:
        with self._mutex:
            # Without those that were closed since, because connecting failed.
            self._sockets = {known for known in self._sockets if known.fileno() >= 0}
            self._sockets.add(sock)
            if self._is_closed:
                raise ConnectionLost("the transfer is over")

    def _forget(self, sock: socket.socket) -> None:
        with self._mutex:
            self._sockets.discard(sock)
        sock.close()

    def close_channel(self, channel: Channel, *, in_order: bool = False) -> None:
        """Close a channel that was opened here."""
        if in_order:
            channel.close_in_order()
        self._forget(channel.socket)

    def shut_all(self, keep: Channel | None = None) -> None:
        """Shut down every connection but `keep`: a thread that is blocked on one gets ConnectionLost, and may dial."""
        kept = None if keep is None else keep.socket
        with self._mutex:
            for sock in self._sockets - {kept}:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def close(self, keep: Channel | None = None) -> None:
        """Shut down every connection but `keep`, and let no thread open another. Idempotent."""
        with self._mutex:
            self._is_closed = True
        self.shut_all(keep)


def _is_loopback(peer: str) -> bool:
    """Whether the receiver at this address is on this machine."""
    from filestreamer.settings import own_token

    return own_token.is_loopback(peer.rpartition(":")[0].strip("[]"))


def _token(settings: SenderSettings, log: Any) -> Callable[[], str | None]:
    """Return what returns the token that was given, as its file has it now."""
    given = settings.token
    if not isinstance(given, values.Token) or given.path is None:
        return renewed.constant(given)
    path = given.path
    return renewed.Renewed[str | None](
        given, {path: given.signature}, lambda: values.token(path), log, look_seconds=0
    ).get


def _tls_context(settings: SenderSettings, log: Any) -> "Callable[[], ssl.SSLContext | None]":
    """Return what returns the TLS context of this sender now; that is None without TLS. Raises UsageError."""
    if not settings.tls:
        return renewed.constant(None)
    from filestreamer.wire.sockets import tls

    def read() -> "ssl.SSLContext | None":
        return tls.client_context(settings.tls_ca, settings.tls_cert, settings.tls_key)

    files = [path for path in (settings.tls_ca, settings.tls_cert, settings.tls_key) if path is not None]
    seen = renewed.look(files)
    return renewed.Renewed(read(), seen, read, log, look_seconds=0).get
