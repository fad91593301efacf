"""TLS contexts, what a failed handshake means, and a channel over TLS (proto/README.md, "Security").

Only TLS 1.3, as both ends are of this program. A sender always verifies the certificate and the name of the receiver:
there is no switch against it, and no end falls back to clear text.
"""

import contextlib
import errno
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


def peer_certificate_sha256(sock: ssl.SSLSocket) -> bytes:
    """Compute the SHA-256 of the certificate that the peer showed: 32 bytes."""
    return hashlib.sha256(sock.getpeercert(binary_form=True) or b"").digest()


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


class TlsChannel(Channel):
    """A channel over TLS.

    One thread may read while another writes, but OpenSSL allows only one thread in its calls. So the calls never block,
    a lock keeps them apart, and threads wait for the socket outside of the lock.
    """

    def __init__(self, sock: ssl.SSLSocket, patience: Patience, *, payload_bytes: int = 0) -> None:
        super().__init__(sock, patience, payload_bytes=payload_bytes)
        sock.setblocking(False)
        self._tls = sock
        self._lock = threading.Lock()  # protects the TLS state of the socket

    def _lost(self, error: OSError) -> FilestreamerError:
        """Make the error of a connection that was lost."""
        # In TLS 1.3, a peer refuses this side's certificate only after the handshake.
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

    def _send_some(self, view: memoryview, more: bool) -> int | None:  # noqa: ARG002 - TLS sends whole records
        try:
            with self._lock:
                return self._tls.send(view)
        except ssl.SSLWantWriteError:
            events = select.POLLOUT
        except ssl.SSLWantReadError:
            events = select.POLLIN
        return 0 if self._wait(events) else None

    def _wait(self, events: int) -> bool:
        """Wait at most a tick until the socket is ready; return whether it is."""
        poll = select.poll()
        poll.register(self._tls, events)
        return bool(poll.poll(TICK_SECONDS * 1000))


def handshake_as_sender(
    context: ssl.SSLContext,
    sock: socket.socket,
    host: str,
    on_timeout: Callable[[socket.socket], None] = lambda _: None,
) -> ssl.SSLSocket:
    """Do the TLS handshake on a connected socket that has a timeout; return the socket that replaces it.

    `on_timeout` gets the socket where the receiver does not answer, before the socket is closed. Raises
    RemoteProtocolError(POLICY) where it can't succeed, OSError where the connection failed.
    """
    secured = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    try:
        secured.do_handshake()
    except BaseException as error:
        if isinstance(error, TimeoutError):
            on_timeout(secured)
        secured.close()
        if isinstance(error, TimeoutError):
            raise TimeoutError(errno.ETIMEDOUT, "the TLS handshake was not answered in time") from None
        if isinstance(error, ssl.SSLEOFError):
            raise ConnectionResetError(error.errno, "the receiver closed the connection in the TLS handshake") from None
        if isinstance(error, ssl.SSLError):
            raise explain(error) from None
        raise
    return secured
