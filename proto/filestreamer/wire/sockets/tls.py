"""TLS contexts, and the handshake of a sender (proto/README.md, "Security").

Only TLS 1.3, as both ends are of this program. No end falls back to clear text. A sender checks the receiver's
certificate by CAs and name, by its digest (a pin), or by the proof of the token, which covers that digest: the caller
says by which, and no flag switches all of them off.
"""

import contextlib
import hashlib
import os
import socket
import ssl
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from filestreamer.wire import limits
from filestreamer.wire.errors import UsageError
from filestreamer.wire.sockets import pem
from filestreamer.wire.sockets.tls_errors import UNUSABLE_KEY, explain, speaks_tls, verified_chain, weakness, wrong_pin
from filestreamer.wire.sockets.tls_stream import TlsStream

if TYPE_CHECKING:
    from filestreamer.wire.sockets.certificate import Ephemeral

CONTENT_BYTES: Final = 4 * limits.MIB
"""The most that is read of a file; more than certificates take."""
_NOT_THE_KEYS: Final = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
"""OpenSSL's reasons where a certificate is not that of the key."""
_UNREADABLE: Final = "it is damaged (copy it anew), or of a kind that OpenSSL does not take"

_pipe_contents: Final[dict[str, bytes]] = {}
"""What was read from pipes, by path. A pipe can be read once; several settings or transfers may need its content."""


class OwnContext(NamedTuple):
    """A context, and what this side shows with it."""

    context: ssl.SSLContext
    certificate: bytes
    """This side's certificate (DER), of which both ends put the SHA-256 into the proofs if it is the receiver's; empty
    where this side shows none."""

    @property
    def sha256(self) -> bytes:
        """The digest of the certificate: 32 bytes, or none without a certificate."""
        return hashlib.sha256(self.certificate).digest() if self.certificate else b""


def server_context(certificate: str, key: str, ca: str | None) -> OwnContext:
    """Make a receiver's context from PEM files; with `ca`, senders must show a certificate that this CA has signed.

    Raises UsageError, which names the file.
    """
    context = _bare_server_context(ca)
    return OwnContext(context, _load_chain(context, certificate, key))


def ephemeral_server_context(made: "Ephemeral", ca: str | None) -> OwnContext:
    """Make a receiver's context of a certificate that is in no file; `ca` as in `server_context`. Raises UsageError."""
    context = _bare_server_context(ca)
    with _as_file(made.key + pem.chain([made.certificate]), is_on_disk_allowed=False) as path:
        context.load_cert_chain(path)
    return OwnContext(context, made.certificate)


def _bare_server_context(ca: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # No tickets: who resumes a session with one shows no certificate, so that one which has expired since would be good
    # for as long as the receiver runs.
    context.num_tickets = 0
    if ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        _load_ca(context, ca)
    return context


def client_context(
    ca: str | None, certificate: str | None, key: str | None, *, accepts_any: bool = False
) -> OwnContext:
    """Make a sender's context: `ca` (or the system's CAs) must have signed the receiver's certificate.

    With `accepts_any` nobody need have signed it, and its name does not count: the caller MUST check it by its digest.
    Raises UsageError, which names the file.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if accepts_any:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca is None:
        context.load_default_certs()
    else:
        _load_ca(context, ca)
    if certificate is None or key is None:
        return OwnContext(context, b"")
    return OwnContext(context, _load_chain(context, certificate, key))


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
                    trial = _bare_server_context(None)
                    trial.load_cert_chain(path)
                    context.load_cert_chain(path)
            except ssl.SSLError as error:
                if error.reason in _NOT_THE_KEYS:
                    continue
                if said := weakness(error):
                    raise UsageError(f"--tls-cert {certificate}, --tls-key {key}: {said}") from None
                unread = f"--tls-key {key}" if _are_certificates(chain) else f"--tls-cert {certificate}"
                raise UsageError(f"{unread}: {_UNREADABLE}{_reason(error)}") from None
            if fault := _fault_of_handshake(trial, certificates):
                raise UsageError(f"--tls-cert {certificate}, --tls-key {key}: {fault}")
            return shown
    raise UsageError(f"--tls-cert {certificate}, --tls-key {key}: the key does not belong to the certificate")


def _are_certificates(chain: list[bytes]) -> bool:
    """Whether OpenSSL reads each of these (DER)."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=b"".join(chain))
    except ssl.SSLError:
        return False
    return True


def _fault_of_handshake(context: ssl.SSLContext, shown: list[bytes]) -> str | None:
    """Say why no client can do a TLS handshake with a server that has this context; it is tried in memory.

    `shown` are the certificates that it has.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(down, up), context.wrap_bio(up, down, server_side=True)
    for end in (*ends, ends[0]):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError as error:
            if error.reason == "EXCESSIVE_MESSAGE_SIZE":
                return (
                    f"the {len(shown)} certificates of --tls-cert are more than a TLS peer takes: leave only the one of"
                    " the key, and those between it and its CA"
                )
            return UNUSABLE_KEY
    return None


def _load_ca(context: ssl.SSLContext, ca: str) -> None:
    try:
        context.load_verify_locations(cadata=b"".join(_parsed(pem.certificates, "--tls-ca", ca)))
        # What the file has is trusted, be it a root, an intermediate (companies hand out just that), or the peer's own.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    except ssl.SSLError as error:
        raise UsageError(f"--tls-ca {ca}: {_UNREADABLE}{_reason(error)}") from None


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
def _as_file(content: bytes, *, is_on_disk_allowed: bool = True) -> Iterator[str]:
    """Give secret bytes a path, as OpenSSL reads files only: in memory or, where there is no /proc, on disk.

    Raises UsageError where that is not allowed.
    """
    with open(os.memfd_create("pem", os.MFD_CLOEXEC), "wb") as memory:
        memory.write(content)
        memory.flush()
        path = f"/proc/self/fd/{memory.fileno()}"
        if os.path.exists(path):
            yield path
            return
    if not is_on_disk_allowed:
        raise UsageError("--tls without --tls-cert needs /proc: mount it, or pass --tls-cert and --tls-key")
    from tempfile import NamedTemporaryFile

    with NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        yield file.name


def _reason(error: ssl.SSLError) -> str:
    """Return what OpenSSL calls an error, for the end of a message; "" where that says no more than where it was."""
    return f" ({error.reason.lower().replace('_', ' ')})" if error.reason else ""


def peer_certificate_sha256(stream: TlsStream) -> bytes:
    """Compute the SHA-256 of the certificate that the peer showed: 32 bytes."""
    return hashlib.sha256(stream.session.getpeercert(binary_form=True) or b"").digest()


def handshake_as_sender(
    context: ssl.SSLContext,
    sock: socket.socket,
    host: str,
    *,
    pins: Sequence[bytes] = (),
    has_ca: bool = False,
    on_timeout: Callable[[socket.socket], None] = lambda _: None,
) -> TlsStream:
    """Do the TLS handshake on a connected socket, within the timeout that it has; return the session.

    With `pins`, the SHA-256 of the receiver's certificate (DER) must be one of them. `has_ca` is whether the context is
    of --tls-ca, for messages. `on_timeout` gets the socket where the receiver does not answer. Raises
    RemoteProtocolError: POLICY where it can't succeed, CORRUPT where it was damaged; OSError where the connection
    failed. The socket stays open.
    """
    stream = TlsStream(context, sock, server_name(host))
    try:
        stream.do_handshake_within(sock.gettimeout() or limits.OPENING_SILENCE_SECONDS)
    except TimeoutError:
        on_timeout(sock)
        raise
    except ssl.SSLEOFError as error:
        raise ConnectionResetError(error.errno, "the receiver closed the connection in the TLS handshake") from None
    except ssl.SSLError as error:
        session = stream.session
        chain, is_tls = verified_chain(session), speaks_tls(session)
        raise explain(error, chain=chain, host=host, has_ca=has_ca, speaks_tls=is_tls) from None
    if pins and (shown := peer_certificate_sha256(stream)) not in pins:
        raise wrong_pin(shown, pins)
    return stream


def server_name(host: str) -> str:
    """Return a host as certificates name it: without the dot that ends a full name, and without an IPv6 zone."""
    return host.partition("%")[0] if ":" in host else host.removesuffix(".")
