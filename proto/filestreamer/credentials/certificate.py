"""The certificate that the end that listens shows over TLS: the one of --tls-cert, or one that is made for this run.

The files are read again when they have changed. The certificate of a run has no file, and lives in memory alone.
"""

import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from filestreamer.settings import renewed, values
from filestreamer.settings.common import CommonSettings
from filestreamer.settings.own_certificate import OwnCertificate
from filestreamer.wire.session import Side

if TYPE_CHECKING:
    from filestreamer.wire.sockets import tls

Current = Callable[[], tuple[ssl.SSLContext | None, bytes]]
"""Returns the TLS context of this end now, and the SHA-256 of its certificate; (None, b"") for clear text."""


def current(
    settings: CommonSettings, hosts: list[str], token: str | None, log: Any, side: Side = "receiver"
) -> Current:
    """Return what returns the certificate now, for a `side` that listens on `hosts`, and log that of now.

    `token` is what peers have to prove: it may vouch for the certificate. Raises UsageError.
    """
    peers = "senders" if side == "receiver" else "receivers"
    if not settings.tls:
        return renewed.constant((None, b""))
    read = _reader(settings, hosts)
    seen = renewed.look(path for path in (settings.tls_cert, settings.tls_key, settings.tls_ca) if path is not None)
    contexts = renewed.Renewed(read(), seen, read, log)
    own = OwnCertificate("receiver", settings.tls_cert, log, peers) if settings.tls_cert is not None else None
    told = contexts.get().sha256
    _report(settings, token, told, log, peers)

    def get() -> tuple[ssl.SSLContext | None, bytes]:
        nonlocal told
        now = contexts.get()
        if own is not None:
            own.look(now.certificate)
        if now.sha256 != told:
            told = now.sha256
            log.info("certificate", sha256=told.hex())
        return now.context, told

    get()  # what is wrong with it is told before anybody connects
    return get


def _reader(settings: CommonSettings, hosts: list[str]) -> "Callable[[], tls.OwnContext]":
    """Return what makes the context of what the files say now."""
    from filestreamer.wire.sockets import tls

    certificate, key, ca = settings.tls_cert, settings.tls_key, settings.tls_ca
    if certificate is not None and key is not None:
        return lambda: tls.server_context(certificate, key, ca)
    from filestreamer.wire.sockets.certificate import make_ephemeral

    made = make_ephemeral(hosts)
    return lambda: tls.ephemeral_server_context(made, ca)


def _report(settings: CommonSettings, token: str | None, certificate_sha256: bytes, log: Any, peers: str) -> None:
    """Log the certificate, and what `peers` pass so that they trust it."""
    shown = certificate_sha256.hex()
    enough = values.VOUCHING_CHARACTERS_MIN
    if token is not None and len(token) >= enough:
        log.info("certificate", sha256=shown, hint=f"{peers} pass --tls: the token vouches for the certificate")
        return
    why = "there is no token" if token is None else f"the token has fewer than {enough} characters"
    if settings.tls_cert is not None:
        log.info("certificate", sha256=shown, hint=f"{peers} pass --tls-ca, or --tls-pin {shown}: {why}")
        return
    reason = f"it is of this run alone, and {why}: {peers} have to pass --tls-pin {shown}"
    log.warning("certificate", sha256=shown, reason=reason)
