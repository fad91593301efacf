"""Who knows the token (proto/README.md, "Proofs"): HMAC-SHA-256 over the whole opening, the token never on the wire.

A role label keeps one end's proof from being echoed as the other's; the transcript keeps everything said before it from
being changed; with TLS the server certificate's SHA-256 ties the proof to the channel.
"""

import hmac
import struct

_SENDER = b"filestreamer/1 sender\x00"
_RECEIVER = b"filestreamer/1 receiver\x00"


def _transcript(greeting_body: bytes, hello_body: bytes, certificate_sha256: bytes) -> bytes:
    """Each body as received, behind its length in 4 bytes, big-endian; then the certificate's digest, if any."""
    parts = (struct.pack(">I", len(greeting_body)), greeting_body, struct.pack(">I", len(hello_body)), hello_body)
    return b"".join(parts) + certificate_sha256


def sender_proof(token: bytes, greeting_body: bytes, hello_body: bytes, certificate_sha256: bytes = b"") -> bytes:
    """Compute what a sender puts into Proof: 32 bytes."""
    return hmac.digest(token, _SENDER + _transcript(greeting_body, hello_body, certificate_sha256), "sha256")


def receiver_proof(
    token: bytes, greeting_body: bytes, hello_body: bytes, proof: bytes, certificate_sha256: bytes = b""
) -> bytes:
    """Compute what a receiver puts into Welcome, having checked the sender's proof: 32 bytes."""
    transcript = _transcript(greeting_body, hello_body, certificate_sha256)
    return hmac.digest(token, _RECEIVER + transcript + proof, "sha256")


def equal(a: bytes, b: bytes) -> bool:
    """Compare two proofs in constant time."""
    return hmac.compare_digest(a, b)
