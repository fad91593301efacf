"""Opens the connections to the receiver: one for control, N for data.

The control connection resolves the receiver's name each time, and tries every address, side by side
(`filestreamer.wire.sockets.dial`). The data connections use the address that control reached, and insist on the same
incarnation of the receiver there. If the receiver was restarted, or its name leads to several receivers, none of them
must get half of a transfer.

Each step of an opening takes a round-trip, so the steps of the connections overlap. Data connections connect once
control is connected, say Hello once it is welcomed, and move chunks once its offer is answered (`control_state`).
Without a token, nobody waits for a Welcome before he says more: the offer follows the Hello of control, and chunks
follow that of a data connection (proto/README.md, "Opening").
"""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from filestreamer.credentials import trust_of
from filestreamer.credentials.tokens import Chosen, Tokens
from filestreamer.settings.address import Address as HostPort
from filestreamer.telemetry import tcp_info
from filestreamer.telemetry.tcp_info import TcpInfo
from filestreamer.wire import limits
from filestreamer.wire.errors import AddressNotReady, ConnectionLost, FilestreamerError
from filestreamer.wire.framing import frame_of
from filestreamer.wire.messages import Role
from filestreamer.wire.opening import SenderOpening
from filestreamer.wire.sockets import own_address
from filestreamer.wire.sockets.addresses import Address, format_address
from filestreamer.wire.sockets.route import Attempts, Route, TcpRoute
from filestreamer.wire.sockets.transport import USER_TIMEOUT_SECONDS, Channel, Deadline, prepare
from sender.network.connector import OnHello
from sender.network.control_state import ControlState
from sender.network.path_mtu import PathMtu
from sender.network.pending_opening import PendingOpening
from sender.settings import SenderSettings

if TYPE_CHECKING:
    from filestreamer.credentials.trust import Secured, Trust


class _Link(NamedTuple):
    """A connection on which nothing was said yet."""

    channel: Channel
    token: Chosen
    """The token for it."""
    certificate_sha256: bytes = b""
    """The digest of the receiver's TLS certificate; empty without TLS."""
    needs_proof: bool = False
    """Whether only the proof of the token shows whose certificate that is: then it counts, whoever has found it."""


class Dialer:
    """Opens the connections of one transfer. Any thread may dial; `close` ends them all."""

    def __init__(
        self,
        settings: SenderSettings,
        transfer_id: bytes,
        control_state: ControlState,
        needs: tuple[str, ...],
        log: Any,
        *,
        path_mtu: PathMtu | None = None,
        route: Route | None = None,
    ) -> None:
        """Prepare to dial receivers that have the features which the transfer `needs`.

        `path_mtu` is what earlier transfers know of the path. `route` leads to the receiver; None: that to --to.

        Raises UsageError for an unusable TLS file; AddressNotReady where this machine does not have --source-address,
        after some seconds.
        """
        if settings.source_address is not None and not control_state.was_open:
            _wait_for_source(settings.source_address, log)
        self._route = route or _tcp_route(settings)
        self._transfer_id = transfer_id
        self._control_state = control_state
        self._needs = needs
        self._job = settings.job or ""
        self._connections = settings.connections or limits.CONNECTIONS_AUTO
        self._tokens = Tokens(settings, log)
        self._trust = trust_of(settings, log, "receivers")
        self._speaks_tls = settings.tls
        self.path_mtu = path_mtu or PathMtu()
        self._user_timeout = USER_TIMEOUT_SECONDS
        self._mutex = threading.Lock()  # protects the fields below
        self._sockets: set[socket.socket] = set()  # of all connections, those that are being opened as well
        self._is_closed = False
        self._handshakes: list[str] = []  # addresses with which a TLS handshake is under way

    def open_control(self, on_hello: OnHello) -> tuple[Channel, Address, bytes]:
        """Open the control connection; return it, its address, and the incarnation of the receiver.

        Raises ConnectionLost, Refused, RemoteProtocolError, TransferFailed(POLICY) where the receiver lacks a feature
        that the transfer needs.
        """
        dialing = self._dial()
        while True:
            address, sock = dialing.connect()
            link: _Link | None = None
            try:
                link = self._open(address, sock, dialing.pins)
                pending = self._say_hello(link, Role.CONTROL, 0)
                on_hello(address, pending)
                pending.finish()
                return link.channel, address, pending.incarnation
            except FilestreamerError as error:
                if link is not None:
                    self.close_channel(link.channel)
                if not isinstance(error, ConnectionLost):
                    raise
                # The next address may lead to a receiver that answers.
                dialing.failed(address, str(error))

    def _dial(self, addresses: Iterable[Address] | None = None) -> Attempts:
        """Return the attempts to connect to the receiver, at one of these addresses where it has several."""
        return self._route.attempts(limits.OPENING_SILENCE_SECONDS, self._register, addresses)

    def open_data(self, connection_id: int, is_wanted: Callable[[], bool]) -> PendingOpening:  # noqa: ARG002
        """Open a data connection to the address of control, once control is that far.

        Chunks may be sent on it. Without a token, the receiver has not answered Hello yet: hand what comes first to the
        PendingOpening. Raises ConnectionLost, Refused, RemoteProtocolError.
        """
        while (pending := self._try_open_data(connection_id)) is None:
            pass
        return pending

    def _try_open_data(self, connection_id: int) -> PendingOpening | None:
        """Open a data connection; return None where control was lost meanwhile.

        Then the receiver has no transfer that this connection could join. Its error is not reported: the control
        connection met the same error, and reports it once, not N times.
        """
        address = self._control_state.wait_for_address()
        link: _Link | None = None
        try:
            dialing = self._dial([address])
            link = self._open(*dialing.connect(), dialing.pins)
            incarnation = self._control_state.wait_for_incarnation(address)
            if incarnation is not None:
                pending = self._say_hello(link, Role.DATA, connection_id, incarnation)
                if pending.must_finish:
                    pending.finish()
                if self._control_state.wait_until_answered(address, incarnation):
                    return pending
            self.close_channel(link.channel)
        except FilestreamerError:
            if link is not None:
                self.close_channel(link.channel)
            if self._control_state.wait_until_answered(address):
                raise
        return None

    def _open(self, address: Address, sock: socket.socket, pins: tuple[bytes, ...]) -> _Link:
        """Take over a socket that is connected, with TLS where that is wanted."""
        shown = format_address(address[1])
        deadline = Deadline(limits.OPENING_SILENCE_SECONDS, f"{shown}: the receiver's answer")
        try:
            token = self._tokens.choose(shown)
            if self._trust is not None:
                return self._secure(self._trust, sock, token, pins, deadline)
            return _Link(Channel(prepare(sock, self._user_timeout), deadline), token)
        except OSError as error:
            self._forget(sock)
            raise ConnectionLost(f"{shown}: {error.strerror or error}") from None
        except FilestreamerError:
            self._forget(sock)
            raise

    def _secure(
        self, trust: "Trust", sock: socket.socket, token: Chosen, pins: tuple[bytes, ...], deadline: Deadline
    ) -> _Link:
        from filestreamer.wire.sockets import tls, tls_channel

        stream, needs_proof = self._shake_hands(trust, sock, token, pins)
        prepare(sock, self._user_timeout)
        channel = tls_channel.TlsChannel(stream, deadline)
        return _Link(channel, token, tls.peer_certificate_sha256(stream), needs_proof)

    def _shake_hands(self, trust: "Trust", sock: socket.socket, token: Chosen, pins: tuple[bytes, ...]) -> "Secured":
        address = format_address(sock.getpeername())
        secret = token.token.decode() if token.token is not None else None
        with self._mutex:
            self._handshakes.append(address)
        try:
            return trust.handshake(sock, self._route.host, secret, pins=pins, on_timeout=self.path_mtu.handshake_failed)
        finally:
            with self._mutex:
                self._handshakes.remove(address)

    def _say_hello(
        self, link: _Link, role: Role, connection_id: int, expected_incarnation: bytes | None = None
    ) -> PendingOpening:
        """Say Hello, which need not wait for the Greeting: a proxy may wait for the first byte of this end."""
        (token, is_own), channel = link.token, link.channel
        opening = SenderOpening(
            token,
            link.certificate_sha256,
            is_own=is_own,
            vouches=link.needs_proof,
            needs=self._needs,
            job=self._job,
        )
        channel.send(frame_of(opening.hello(self._transfer_id, role, connection_id, self._connections)))
        return PendingOpening(channel, opening, self._tokens, expected_incarnation)

    def _register(self, sock: socket.socket) -> None:
        with self._mutex:
            # Without those that were closed since, because connecting failed.
            self._sockets = {known for known in self._sockets if known.fileno() >= 0}
            self._sockets.add(sock)
            if self._is_closed:
                raise ConnectionLost("the transfer is over")
        self.path_mtu.limit(sock)

    def _forget(self, sock: socket.socket) -> None:
        with self._mutex:
            self._sockets.discard(sock)
        sock.close()

    def waits_for(self) -> str:
        """Return what the control connection waits for, while it is being opened or is to be opened again."""
        with self._mutex:
            sockets = list(self._sockets)
            if self._handshakes:
                return f"the TLS handshake of {self._handshakes[0]}"
        infos = [(info, sock) for sock in sockets if (info := tcp_info.read(sock)) is not None]
        for info, sock in infos:
            if info.is_established:
                with contextlib.suppress(OSError):
                    return f"{_opening_step(info, speaks_tls=self._speaks_tls)} of {format_address(sock.getpeername())}"
        if infos:
            return f"{self._route} to take a TCP connection"
        return self._route.waits_for()

    def close_channel(self, channel: Channel, *, in_order: bool = False, at_once: bool = False) -> None:
        """Close a channel that was opened here; `at_once` behind Complete, in order if the transfer goes on."""
        if at_once:
            channel.close_at_once()
        elif in_order:
            channel.close_in_order()
        self._forget(channel.socket)

    def shut_all(self, keep: Iterable[socket.socket] = ()) -> None:
        """Shut down every connection but `keep`: a thread that is blocked on one gets ConnectionLost, and may dial."""
        with self._mutex:
            for sock in self._sockets.difference(keep):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def close(self, keep: Iterable[socket.socket] = ()) -> None:
        """Shut down every connection but `keep`, and let no thread open another. Idempotent."""
        with self._mutex:
            self._is_closed = True
        self.shut_all(keep)


def _tcp_route(settings: SenderSettings) -> TcpRoute:
    to = settings.to
    # Only a list of what would be offered goes without it, and ssh has a route of its own.
    assert isinstance(to, HostPort)
    return TcpRoute(to.host, to.port, str(to), settings.source_address)


def _wait_for_source(source: str, log: Any) -> None:
    """Wait until this machine has the address to connect from. Raises AddressNotReady, after some seconds."""

    def tell(reason: str) -> None:
        log.warning("waiting_for_address", setting="--source-address", reason=reason)

    try:
        own_address.wait_for(source, tell)
    except AddressNotReady as error:
        raise AddressNotReady(f"--source-address {error}") from None


def _opening_step(info: TcpInfo, *, speaks_tls: bool) -> str:
    """Name the step of the opening that a connection is in."""
    if info.received_bytes:
        return "the Welcome"
    return "the TLS handshake" if speaks_tls else "the Greeting"
