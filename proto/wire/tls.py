"""TLS contexts with modern defaults, and what TLS says when it fails (proto/README.md, "Security").

TLS 1.3 only: both ends are ours. A sender always verifies the receiver's certificate and its name; there is no switch
to leave that out, and no silent fall-back to clear text on either end.
"""

import hashlib
import select
import socket
import ssl
import threading
from typing import cast

from wire.errors import Code, FilestreamerError, RemoteProtocolError, UsageError
from wire.transport import TICK_SECONDS, Channel, Patience


def server_context(certificate: str, key: str, ca: str | None) -> ssl.SSLContext:
    """Make a receiver's context from PEM files; with `ca`, senders must show a certificate that it signed.

    Raises UsageError, which names the file.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _load_chain(context, certificate, key)
    if ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        _load_ca(context, ca)
    return context


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


def _load_chain(context: ssl.SSLContext, certificate: str, key: str) -> None:
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        raise UsageError(f"--tls-cert {certificate}, --tls-key {key}: {error.reason or 'not PEM'}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"--tls-cert {certificate}, --tls-key {key}: {reason}") from None


def _no_password() -> str:
    raise ValueError("the key is encrypted: decrypt it first")


def _load_ca(context: ssl.SSLContext, ca: str) -> None:
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise UsageError(f"--tls-ca {ca}: {error.reason or 'not PEM'}") from None
    except OSError as error:
        raise UsageError(f"--tls-ca {ca}: {error.strerror}") from None


def certificate_sha256(certificate: str) -> bytes:
    """Compute the SHA-256 of the first certificate of a PEM file, as both ends put it into the proofs: 32 bytes.

    Raises UsageError.
    """
    try:
        with open(certificate, encoding="latin-1") as file:
            pem = file.read()
        begin = pem.index("-----BEGIN CERTIFICATE-----")
        end = pem.index("-----END CERTIFICATE-----", begin) + len("-----END CERTIFICATE-----")
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem[begin:end])).digest()
    except (OSError, ValueError) as error:
        raise UsageError(f"--tls-cert {certificate}: {error}") from None


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
