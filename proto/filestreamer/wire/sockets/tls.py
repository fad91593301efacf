"""TLS contexts with modern defaults, and what TLS says when it fails (proto/README.md, "Security").

TLS 1.3 only: both ends are ours. A sender always verifies the receiver's certificate and its name; there is no switch
to leave that out, and no silent fall-back to clear text on either end.
"""

import contextlib
import hashlib
import os
import select
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Iterator
from typing import Final, cast

from filestreamer.wire import limits
from filestreamer.wire.errors import Code, FilestreamerError, RemoteProtocolError, UsageError
from filestreamer.wire.sockets import pem
from filestreamer.wire.sockets.transport import TICK_SECONDS, Channel, Patience

CONTENT_BYTES: Final = 4 * limits.MIB
"""More than a file of certificates has."""
_NOT_THE_KEYS: Final = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
"""How OpenSSL says that a certificate is not that of a key."""

_kept: Final[dict[str, bytes]] = {}
"""What was read from pipes, by their paths: that comes once, and more than one transfer or setting may need it."""


def server_context(certificate: str, key: str, ca: str | None) -> tuple[ssl.SSLContext, bytes]:
    """Make a receiver's context from PEM files; with `ca`, senders must show a certificate that it signed.

    The SHA-256 of the certificate that it shows, as both ends put it into the proofs, comes with it: 32 bytes. Raises
    UsageError, which names the file.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    shown = _load_chain(context, certificate, key)
    if ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        _load_ca(context, ca)
    return context, hashlib.sha256(shown).digest()


def client_context(ca: str | None, certificate: str | None, key: str | None) -> ssl.SSLContext:
    """Make a sender's context: `ca` (or the system's) signs the receiver, `certificate` is shown to it.

    Raises UsageError, which names the file.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if ca is None:
        context.load_default_certs()
    else:
        _load_ca(context, ca)
    if certificate is not None and key is not None:
        _load_chain(context, certificate, key)
    return context


def _load_chain(context: ssl.SSLContext, certificate: str, key: str) -> bytes:
    """Load a key and its certificates, whichever of them is the key's own; return that one, as DER."""
    certificates = _parsed(pem.certificates, "--tls-cert", certificate)
    keys = _parsed(pem.private_keys, "--tls-key", key)
    for own in keys:
        for at, shown in enumerate(certificates):
            # Behind the key's own certificate comes what leads from it to a CA: some write a chain from its other end.
            chain = [shown, *certificates[at + 1 :], *reversed(certificates[:at])]
            try:
                with _as_file(own + pem.chain(chain)) as path:
                    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path)  # what does not fit leaves traces
                    context.load_cert_chain(path)
            except ssl.SSLError as error:
                if error.reason in _NOT_THE_KEYS:
                    continue
                raise UsageError(f"--tls-cert {certificate}, --tls-key {key}: {_reason(error)}") from None
            return shown
    raise UsageError(f"--tls-cert {certificate}, --tls-key {key}: the key is of another certificate")


def _load_ca(context: ssl.SSLContext, ca: str) -> None:
    try:
        context.load_verify_locations(cadata=b"".join(_parsed(pem.certificates, "--tls-ca", ca)))
    except ssl.SSLError as error:
        raise UsageError(f"--tls-ca {ca}: {_reason(error)}") from None


def _parsed(parse: Callable[[bytes], list[bytes]], flag: str, path: str) -> list[bytes]:
    """Read what a file has. Raises UsageError."""
    try:
        return parse(_content(path))
    except OSError as error:
        raise UsageError(f"{flag} {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{flag} {path}: {error}") from None


def _content(path: str) -> bytes:
    """Read a file, or a pipe, which is read once. Raises OSError, ValueError."""
    if path in _kept:
        return _kept[path]
    with open(path, "rb") as file:
        content = file.read(CONTENT_BYTES + 1)
        if len(content) > CONTENT_BYTES:
            raise ValueError(f"it has more than {CONTENT_BYTES >> 20} MiB")
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            _kept[path] = content
    return content


@contextlib.contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Give secret bytes a path for a moment, as OpenSSL wants one: in memory, or where there is no /proc on disk."""
    with open(os.memfd_create("pem", os.MFD_CLOEXEC), "wb") as memory:
        memory.write(content)
        memory.flush()
        path = f"/proc/self/fd/{memory.fileno()}"
        if os.path.exists(path):
            yield path
            return
    from tempfile import NamedTemporaryFile

    with NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        yield file.name


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")


def peer_certificate_sha256(sock: ssl.SSLSocket) -> bytes:
    """Compute the SHA-256 of the certificate that the peer showed: 32 bytes."""
    return hashlib.sha256(sock.getpeercert(binary_form=True) or b"").digest()


def explain(error: ssl.SSLError) -> RemoteProtocolError:
    """Say what a failed handshake means. It never gets better by itself: the error is not retryable."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return RemoteProtocolError(
            f"the receiver's certificate is not trusted ({error.verify_message}): pass --tls-ca", Code.POLICY
        )
    reason = (error.reason or "").lower()
    if "wrong_version" in reason or "record" in reason or "packet_length" in reason:
        return RemoteProtocolError(
            "the other side does not speak TLS: drop --tls, or give it a certificate", Code.POLICY
        )
    if "certificate" in reason or "unknown_ca" in reason:
        return RemoteProtocolError(
            f"the receiver does not accept this sender's certificate ({reason.replace('_', ' ')}):"
            " pass --tls-cert and --tls-key",
            Code.POLICY,
        )
    return RemoteProtocolError(f"TLS failed: {reason.replace('_', ' ') or error}", Code.POLICY)


class TlsChannel(Channel):
    """A channel whose bytes TLS transforms, with one thread at a time inside the library.

    One thread may be reading while another writes, which OpenSSL forbids: so its calls never block, a lock orders them,
    and waiting happens outside of it.
    """

    def __init__(self, sock: ssl.SSLSocket, patience: Patience, *, payload_bytes: int = 0) -> None:
        super().__init__(sock, patience, payload_bytes=payload_bytes)
        sock.setblocking(False)
        self._tls = sock
        self._lock = threading.Lock()  # protects the TLS state of the socket

    def _lost(self, error: OSError) -> FilestreamerError:
        """Tell a certificate that the peer does not accept, which TLS 1.3 says only after the handshake."""
        reason = (error.reason or "") if isinstance(error, ssl.SSLError) else ""
        if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
            return explain(cast("ssl.SSLError", error))
        return super()._lost(error)

    def _receive_some(self, view: memoryview, wait: bool) -> int | None:
        for last in (not wait, True):
            try:
                with self._lock:
                    return self._tls.recv_into(view)
            except ssl.SSLWantReadError:
                if last or not self._wait(select.POLLIN):
                    return None
            except ssl.SSLWantWriteError:
                if last or not self._wait(select.POLLOUT):
                    return None
        return None

    def _send_some(self, view: memoryview, more: bool) -> int | None:  # noqa: ARG002 - records go out as they are
        try:
            with self._lock:
                return self._tls.send(view)
        except ssl.SSLWantWriteError:
            events = select.POLLOUT
        except ssl.SSLWantReadError:
            events = select.POLLIN
        return 0 if self._wait(events) else None

    def _wait(self, events: int) -> bool:
        """Wait for a tick until the socket is ready; whether it is."""
        poll = select.poll()
        poll.register(self._tls, events)
        return bool(poll.poll(TICK_SECONDS * 1000))


def handshake_as_sender(context: ssl.SSLContext, sock: socket.socket, host: str) -> ssl.SSLSocket:
    """Do the handshake on a connected socket with a timeout; return the socket that replaces it.

    Raises RemoteProtocolError(POLICY) where it can't succeed, OSError where the connection failed.
    """
    try:
        return context.wrap_socket(sock, server_hostname=host)
    except ssl.SSLEOFError as error:
        raise ConnectionResetError(error.errno, "the receiver closed the connection in the TLS handshake") from None
    except ssl.SSLError as error:
        raise explain(error) from None
