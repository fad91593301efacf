"""How a sender knows over TLS that it talks to its receiver (proto/README.md, "Security").

What the user names decides, a CA (--tls-ca), the digest of the certificate (--tls-pin), or both. Else a token does: any
certificate is accepted, as the proofs of both ends cover its digest, and nothing but Hello and Proof is sent before the
receiver has proved the token. Else the CAs of this system decide.
"""

import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from filestreamer.settings import renewed
from filestreamer.settings.common import CommonSettings
from filestreamer.settings.own_certificate import OwnCertificate
from filestreamer.wire.sockets import tls
from filestreamer.wire.sockets.tls_stream import TlsStream


class Secured(NamedTuple):
    """A connection after its TLS handshake."""

    stream: TlsStream
    needs_proof: bool
    """Whether only the receiver's proof of the token can show that this is the receiver: without it, close."""


class _Contexts(NamedTuple):
    checking: tls.OwnContext | None
    """Checks the receiver's certificate by CAs; None where it never does."""
    accepting: tls.OwnContext | None
    """Accepts any certificate, for a pin or a token; None where that never happens."""


class Trust:
    """Does the TLS handshakes of one transfer. Any thread may."""

    def __init__(self, settings: CommonSettings, log: Any, peers: str) -> None:
        """Read the certificates; `peers` may check the user's own. Raises UsageError, which names the file."""
        self._settings = settings
        self.is_by_token = not settings.is_certificate_named
        """Whether a token decides, where there is one."""
        files = [path for path in (settings.tls_ca, settings.tls_cert, settings.tls_key) if path is not None]
        seen = renewed.look(files)
        self._contexts = renewed.Renewed(self._read(), seen, self._read, log, look_seconds=0)
        self._own = None if settings.tls_cert is None else OwnCertificate("sender", settings.tls_cert, log, peers)
        self._look_at_own(self._contexts.get())

    def handshake(
        self,
        sock: socket.socket,
        host: str,
        token: str | None,
        *,
        pins: tuple[bytes, ...] = (),
        on_timeout: Callable[[socket.socket], None],
    ) -> Secured:
        """Do the handshake on a connected socket, within the timeout that it has; return the session.

        `token` is the one that is going to be proved on this connection: the given one, or the user's own. `pins` are
        digests of which the certificate must have one, beside what decides. `on_timeout` gets the socket where the
        receiver does not answer. Raises UsageError where the token is too short for that, RemoteProtocolError(POLICY)
        where the receiver is not trusted, CORRUPT where the handshake was damaged, OSError where the connection failed.
        """
        contexts = self._contexts.get()
        self._look_at_own(contexts)
        settings = self._settings
        needs_proof = token is not None and self.is_by_token
        if token is not None:
            settings.check_token(token)
        is_pinned = settings.tls_ca is None and bool(settings.pins)
        chosen = contexts.accepting if needs_proof or is_pinned else contexts.checking
        assert chosen is not None  # a token that is given is there for good
        stream = tls.handshake_as_sender(
            chosen.context,
            sock,
            host,
            pins=settings.pins or pins,
            has_ca=settings.tls_ca is not None,
            on_timeout=on_timeout,
        )
        return Secured(stream, needs_proof)

    def _look_at_own(self, contexts: _Contexts) -> None:
        shown = contexts.checking or contexts.accepting
        if self._own is not None and shown is not None:
            self._own.look(shown.certificate)

    def _read(self) -> _Contexts:
        settings = self._settings
        own = settings.tls_cert, settings.tls_key
        # A token that is given is always proved. The user's own is known only when the receiver's address is.
        is_checking = settings.tls_ca is not None or not (settings.pins or settings.token is not None)
        is_accepting = settings.tls_ca is None
        return _Contexts(
            tls.client_context(settings.tls_ca, *own) if is_checking else None,
            tls.client_context(None, *own, accepts_any=True) if is_accepting else None,
        )
