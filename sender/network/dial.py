"""Connections to the receiver, opened and welcomed: one for control, N for data.

The control connection resolves the name anew each time and tries every address. The data connections use the address
that control reached, and insist on the same incarnation there: a restarted receiver, or a name that leads to several,
must not get half of a transfer each.

Each step of an opening takes a round-trip. At first, data connections go as far as they may while control is still on
its way: they connect where it has connected, say Hello when it was welcomed, and move chunks when it has an answer.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from filestreamer.wire import features, limits
from filestreamer.wire.errors import ConnectionLost, FilestreamerError
from filestreamer.wire.framing import frame_of
from filestreamer.wire.messages import Role
from filestreamer.wire.opening import SenderOpening
from filestreamer.wire.sockets.addresses import SockAddress, format_address, resolve
from filestreamer.wire.sockets.dial import connect
from filestreamer.wire.sockets.transport import Channel, Deadline, prepare
from sender.settings import SenderSettings

if TYPE_CHECKING:
    import ssl


Address = tuple[int, SockAddress]
"""An address family, and an address of it."""


class ControlState:
    """How far the control connection has come. The coordinator tells, data connections wait; any thread may ask."""

    def __init__(self, *, was_open: bool = False) -> None:
        self._changed = threading.Condition()
        self._address: Address | None = None
        self._incarnation: bytes | None = None
        self._is_answered = False
        self._is_over = False
        self.was_open = was_open
        """Whether data connections were ever allowed to dial."""

    @property
    def is_open(self) -> bool:
        """Whether data connections may dial."""
        return self._address is not None

    def tell(self, address: Address | None, incarnation: bytes | None = None, *, is_answered: bool = False) -> None:
        """Say where control is, as whom the receiver has welcomed it, and whether it has answered; None: it is lost."""
        with self._changed:
            self._address, self._incarnation, self._is_answered = address, incarnation, is_answered
            self.was_open = self.was_open or address is not None
            self._changed.notify_all()

    def end(self) -> None:
        """Wake everybody: the transfer is over."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def address(self) -> Address:
        """Wait until data connections may dial; return where. Raises ConnectionLost where the transfer is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or self._address is not None)
            self._check()
            assert self._address is not None
            return self._address

    def incarnation(self, address: Address) -> bytes | None:
        """Wait until the receiver has welcomed control there; return its incarnation, None where control is lost."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or self._address != address or self._incarnation is not None)
            self._check()
            return self._incarnation if self._address == address else None

    def is_answered(self, address: Address, incarnation: bytes | None = None) -> bool:
        """Wait until the receiver there, this one if so, has answered what was offered; False where control is lost."""

        def is_lost() -> bool:
            return self._address != address or incarnation not in (None, self._incarnation)

        with self._changed:
            self._changed.wait_for(lambda: self._is_over or is_lost() or self._is_answered)
            self._check()
            return not is_lost()

    def _check(self) -> None:
        if self._is_over:
            raise ConnectionLost("the transfer is over")


class _Greeted(NamedTuple):
    """A connection on which the receiver has said its Greeting, and waits for Hello."""

    channel: Channel
    body: bytes
    """Of the Greeting."""
    certificate_sha256: bytes
    """Of the receiver's TLS certificate, if it has one."""


def _ignore(_address: Address, _sock: socket.socket) -> None:
    pass


class Dialer:
    """Opens the connections of one transfer. Any thread may dial; `end` wakes them all."""

    def __init__(self, settings: SenderSettings, transfer_id: bytes, wanted: tuple[str, ...] = ()) -> None:
        """Prepare to dial receivers that have the `wanted` features. Raises UsageError where a TLS file can't be used."""
        self._to = settings.to
        self._transfer_id = transfer_id
        self._wanted = wanted
        self._connections = settings.connections or limits.CONNECTIONS_AUTO
        self._token = settings.token.encode() if settings.token else None
        self._own: bytes | None = None
        self._tls = _tls_context(settings)
        self._user_timeout = max(limits.DEAD_SECONDS, settings.give_up_after)
        self._mutex = threading.Lock()  # protects _sockets and _ended
        self._sockets: set[socket.socket] = set()
        self._ended = False

    def control(self, on_connected: Callable[[Address, socket.socket], None]) -> tuple[Channel, Address, bytes]:
        """Open the control connection; return it, where it leads, and the incarnation of the receiver.

        `on_connected` hears of each address that answers: over TLS with the Greeting, else before it. Raises
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
                    self.close(greeted.channel)
                if not isinstance(error, ConnectionLost):
                    raise
                failures.append(str(error))
        raise ConnectionLost("; ".join(failures))

    def data(self, control_state: ControlState, connection_id: int) -> Channel:
        """Open a data connection to where control is. Raises ConnectionLost, Refused, RemoteProtocolError."""
        while (channel := self._data(control_state, connection_id)) is None:
            pass
        return channel

    def _data(self, control_state: ControlState, connection_id: int) -> Channel | None:
        """Do so, unless control is lost meanwhile: its trouble is told once, and there is nobody to join."""
        address = control_state.address()
        greeted: _Greeted | None = None
        try:
            greeted = self._open(address)
            incarnation = control_state.incarnation(address)
            if incarnation is not None:
                self._enter(greeted, Role.DATA, connection_id, incarnation)
                if control_state.is_answered(address, incarnation):
                    return greeted.channel
            self.close(greeted.channel)
        except FilestreamerError:
            if greeted is not None:
                self.close(greeted.channel)
            if control_state.is_answered(address):
                raise
        return None

    def _open(self, address: Address, on_connected: Callable[[Address, socket.socket], None] = _ignore) -> _Greeted:
        """Connect and read the Greeting, which `_enter` answers."""
        sock = connect([address], limits.OPENING_SECONDS, self._register)
        shown = format_address(address[1])
        deadline = Deadline(limits.OPENING_SECONDS, f"{shown}: the receiver's answer")
        try:
            if self._tls is not None:
                greeted = self._open_tls(self._tls, sock, deadline)
                on_connected(address, greeted.channel.socket)  # not before: if TLS fails, it fails once
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
        from filestreamer.wire.sockets import tls

        secured = tls.handshake_as_sender(context, sock, self._to.host)
        self._register(secured)
        self._forget(sock)
        try:
            prepare(secured, self._user_timeout)
            channel = tls.TlsChannel(secured, deadline)
            body = channel.read_body(limits.OPENING_FRAME_BYTES)
            return _Greeted(channel, body, tls.peer_certificate_sha256(secured))
        except (OSError, FilestreamerError):
            self._forget(secured)
            raise

    def _enter(self, greeted: _Greeted, role: Role, connection_id: int, expected: bytes | None = None) -> bytes:
        """Say Hello, and read the Welcome; return the receiver's incarnation, which has to be the `expected` one.

        Raises TransferFailed(POLICY) where the receiver does not have a feature that is wanted.
        """
        channel = greeted.channel
        channel.patience = Deadline(limits.OPENING_SECONDS, f"{channel.peer}: the receiver's answer")
        own = self._own_token if _is_loopback(channel.peer) else None
        opening = SenderOpening(self._token, greeted.certificate_sha256, own)
        bodies = opening.answer(greeted.body, self._transfer_id, role, connection_id, self._connections)
        if expected not in (None, opening.incarnation):
            raise ConnectionLost(
                f"another receiver answers at {channel.peer}: it was restarted, or the name leads to several receivers"
            )
        features.require(opening.peer_features, *self._wanted)
        channel.send(b"".join(map(frame_of, bodies)))
        opening.enter(channel.read_body(limits.OPENING_FRAME_BYTES))
        return opening.incarnation

    def _own_token(self) -> bytes | None:
        """Return the user's own token, as it was read last: another connection may have taken the last descriptor."""
        from filestreamer.settings import own_token

        own = own_token.read(os.environ)
        if own is not None:
            self._own = own.token.encode()
        return self._own

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


def _is_loopback(peer: str) -> bool:
    """Whether a receiver is on this machine."""
    from filestreamer.settings import own_token

    return own_token.is_loopback(peer.rpartition(":")[0].strip("[]"))


def _tls_context(settings: SenderSettings) -> "ssl.SSLContext | None":
    """Make the context of this sender; None where it speaks clear text. Raises UsageError."""
    if not settings.tls:
        return None
    from filestreamer.wire.sockets import tls

    return tls.client_context(settings.tls_ca, settings.tls_cert, settings.tls_key)
