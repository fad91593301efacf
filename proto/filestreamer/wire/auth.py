"""Proofs that an end knows the token, which is never sent (proto/README.md, "Proofs"): HMAC-SHA-256 over the opening.

The label of the role keeps an end from sending the peer's proof back as its own. As all bodies before the proof are in
it, none can be changed on the way. With TLS, the SHA-256 of the TLS server's certificate ties the proof to this TLS
channel. One byte says which end was the TLS server, as each end did it itself: without that, a relay could stand as the
TLS server, with one certificate, between two ends that are both TLS clients. The end that was dialled proves last, and
its proof covers the other one.
"""

import hmac
import struct
from typing import Final

from filestreamer.wire.session import Side

_SENDER: Final = b"filestreamer/1 sender\x00"
_RECEIVER: Final = b"filestreamer/1 receiver\x00"
_CLEAR_TEXT: Final = b"\x00"
_TLS_SERVERS: Final[dict[Side, bytes]] = {"receiver": b"\x01", "sender": b"\x02"}


class Transcript:
    """What both proofs of one opening cover."""

    def __init__(
        self, greeting_body: bytes, hello_body: bytes, certificate_sha256: bytes = b"", tls_server: Side = "receiver"
    ) -> None:
        """Take the bodies as they were on the wire, and the digest of the TLS server's certificate; empty: no TLS.

        `tls_server` is the end that was the TLS server.
        """
        server = _TLS_SERVERS[tls_server] if certificate_sha256 else _CLEAR_TEXT
        bodies = [struct.pack(">I", len(body)) + body for body in (greeting_body, hello_body)]
        self._bytes = b"".join((*bodies, server, certificate_sha256))

    def sender_proof(self, token: bytes, before: bytes = b"") -> bytes:
        """Compute the MAC of a sender's Proof: 32 bytes. `before` is the receiver's proof, if that came first."""
        return hmac.digest(token, _SENDER + self._bytes + before, "sha256")

    def receiver_proof(self, token: bytes, before: bytes = b"") -> bytes:
        """Compute the MAC of a receiver's Welcome: 32 bytes. `before` is the sender's proof, if that came first."""
        return hmac.digest(token, _RECEIVER + self._bytes + before, "sha256")


def equal(a: bytes, b: bytes) -> bool:
    """Compare two proofs in constant time."""
    return hmac.compare_digest(a, b)
