"""TLS contexts, and what a failed handshake means (proto/README.md, "Security").

Only TLS 1.3, as both ends are of this program. A sender always verifies the certificate and the name of the receiver:
there is no switch against it, and no end falls back to clear text.
"""

import contextlib
import hashlib
import os
import socket
import ssl
import stat
from collections.abc import Callable, Iterator
from typing import Final

from filestreamer.wire import limits
from filestreamer.wire.errors import Code, RemoteProtocolError, UsageError
from filestreamer.wire.sockets import pem
from filestreamer.wire.sockets.tls_stream import TlsStream

CONTENT_BYTES: Final = 4 * limits.MIB
"""The most that is read of a file; more than certificates take."""
_NOT_THE_KEYS: Final = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
"""OpenSSL's reasons where a certificate is not that of the key."""

_pipe_contents: Final[dict[str, bytes]] = {}
"""What was read from pipes, by path. A pipe can be read once; several settings or transfers may need its content."""


def server_context(certificate: str, key: str, ca: str | None) -> tuple[ssl.SSLContext, bytes]:
    """Make a receiver's context from PEM files; with `ca`, senders must show a certificate that this CA has signed.

    Return it with the SHA-256 of the receiver's certificate, which both ends put into the proofs: 32 bytes. Raises
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
    """Make a sender's context: `ca` (or the system's CAs) must have signed the receiver's certificate.

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
    """Load a key and the chain that begins with its certificate; return this certificate as DER. Raises UsageError."""
    certificates = _parsed(pem.certificates, "--tls-cert", certificate)
    keys = _parsed(pem.private_keys, "--tls-key", key)
    for own in keys:
        for at, shown in enumerate(certificates):
            # The chain must go from the key's certificate to the CA. In some files the order is reversed.
            chain = [shown, *certificates[at + 1 :], *reversed(certificates[:at])]
            try:
                with _as_file(own + pem.chain(chain)) as path:
                    # Tried with another context first: a load that fails leaves traces in its context.
                    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path)
                    context.load_cert_chain(path)
            except ssl.SSLError as error:
                if error.reason in _NOT_THE_KEYS:
                    continue
                raise UsageError(f"--tls-cert {certificate}, --tls-key {key}: {_reason(error)}") from None
            return shown
    raise UsageError(f"--tls-cert {certificate}, --tls-key {key}: the key does not belong to the certificate")


def _load_ca(context: ssl.SSLContext, ca: str) -> None:
    try:
        context.load_verify_locations(cadata=b"".join(_parsed(pem.certificates, "--tls-ca", ca)))
    except ssl.SSLError as error:
        raise UsageError(f"--tls-ca {ca}: {_reason(error)}") from None


def _parsed(parse: Callable[[bytes], list[bytes]], flag: str, path: str) -> list[bytes]:
    """Read a file and parse its content. Raises UsageError."""
    try:
        return parse(_content(path))
    except OSError as error:
        raise UsageError(f"{flag} {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{flag} {path}: {error}") from None


def _content(path: str) -> bytes:
    """Read a file, or a pipe, which is read only once. Raises OSError, ValueError."""
    if path in _pipe_contents:
        return _pipe_contents[path]
    with open(path, "rb") as file:
        content = file.read(CONTENT_BYTES + 1)
        if len(content) > CONTENT_BYTES:
            raise ValueError(f"it has more than {CONTENT_BYTES >> 20} MiB")
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            _pipe_contents[path] = content
    return content


@contextlib.contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Give secret bytes a path, as OpenSSL reads files only: in memory or, where there is no /proc, on disk."""
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


def peer_certificate_sha256(stream: TlsStream) -> bytes:
    """Compute the SHA-256 of the certificate that the peer showed: 32 bytes."""
    return hashlib.sha256(stream.session.getpeercert(binary_form=True) or b"").digest()


def explain(error: ssl.SSLError) -> RemoteProtocolError:
    """Return the error that a failed handshake means. It is not retryable, as it never gets better by itself."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return RemoteProtocolError(
            f"the receiver's certificate is not trusted ({error.verify_message}): pass --tls-ca", Code.POLICY
        )
    reason = (error.reason or "").lower()
    if "wrong_version" in reason or "record" in reason or "packet_length" in reason:
        return RemoteProtocolError(
            "the other side does not speak TLS: leave out --tls, or give the receiver --tls-cert and --tls-key",
            Code.POLICY,
        )
    if "certificate" in reason or "unknown_ca" in reason:
        return RemoteProtocolError(
            f"the receiver does not accept this sender's certificate ({reason.replace('_', ' ')}):"
            " pass --tls-cert and --tls-key",
            Code.POLICY,
        )
    return RemoteProtocolError(f"TLS failed: {reason.replace('_', ' ') or error}", Code.POLICY)


def handshake_as_sender(context: ssl.SSLContext, sock: socket.socket, host: str) -> TlsStream:
    """Do the TLS handshake on a connected socket, within the timeout that it has; return the session.

    Raises RemoteProtocolError(POLICY) where it can't succeed, OSError where the connection failed.
    """
    try:
        stream = TlsStream(context, sock, host)
        stream.do_handshake_within(sock.gettimeout() or limits.OPENING_SECONDS)
        return stream
    except ssl.SSLEOFError as error:
        raise ConnectionResetError(error.errno, "the receiver closed the connection in the TLS handshake") from None
    except ssl.SSLError as error:
        raise explain(error) from None
