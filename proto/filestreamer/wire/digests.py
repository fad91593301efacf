"""XXH3 in its three uses: a frame's checksum, a segment's digest, a transfer's root digest.

XXH3 finds damage, not malice: who must not be able to change bytes is kept out by TLS (proto/README.md, "Security").
"""

from collections.abc import Iterable

from xxhash import xxh3_64_digest, xxh3_128, xxh3_128_digest

__all__ = ["checksum", "root_digest", "segment_digest", "segment_hasher"]

checksum = xxh3_64_digest
"""XXH3-64 of a frame's body: 8 bytes, big-endian."""

segment_digest = xxh3_128_digest
"""XXH3-128 of a segment: 16 bytes, big-endian."""

segment_hasher = xxh3_128
"""The same in steps: `.update(view)` for each block, then `.digest()`; `.reset()` starts over."""


def root_digest(digests: Iterable[bytes | bytearray | memoryview]) -> bytes:
    """XXH3-128 over all segment digests in manifest order, held ones included: 16 bytes."""
    hasher = xxh3_128()
    for digest in digests:
        hasher.update(digest)
    return hasher.digest()
