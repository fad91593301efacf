"""Proofs that an end knows the token, which is never sent (proto/README.md, "Proofs"): HMAC-SHA-256 over the opening.

The label of the role keeps an end from sending the peer's proof back as its own. As all bodies before the proof are in
it, none can be changed on the way. With TLS, the SHA-256 of the server certificate ties the proof to this TLS channel.
"""

import hmac
import struct

_SENDER = b"filestreamer/1 sender\x00"
_RECEIVER = b"filestreamer/1 receiver\x00"


def _transcript(greeting_body: bytes, hello_body: bytes, certificate_sha256: bytes) -> bytes:
    """Return each body behind its length in 4 bytes (big-endian), and then the certificate's digest, if any."""
    parts = (struct.pack(">I", len(greeting_body)), greeting_body, struct.pack(">I", len(hello_body)), hello_body)
    return b"".join(parts) + certificate_sha256


def sender_proof(token: bytes, greeting_body: bytes, hello_body: bytes, certificate_sha256: bytes = b"") -> bytes:
    """Compute the MAC of a sender's Proof: 32 bytes."""
    return hmac.digest(token, _SENDER + _transcript(greeting_body, hello_body, certificate_sha256), "sha256")


def receiver_proof(
    token: bytes, greeting_body: bytes, hello_body: bytes, proof: bytes, certificate_sha256: bytes = b""
) -> bytes:
    """Compute the MAC of a receiver's Welcome, given the sender's proof: 32 bytes."""
    transcript = _transcript(greeting_body, hello_body, certificate_sha256)
    return hmac.digest(token, _RECEIVER + transcript + proof, "sha256")


def equal(a: bytes, b: bytes) -> bool:
    """Compare two proofs in constant time."""
    return hmac.compare_digest(a, b)
