"""XXH3 in its three uses: checksum of a frame, digest of a segment, root digest of a transfer.

XXH3 detects damage, not an attacker who changes bytes: TLS does that (proto/README.md, "Security").
"""

from collections.abc import Callable, Iterable
from typing import Final

from xxhash import xxh3_64_digest, xxh3_128, xxh3_128_digest

from filestreamer.wire.limits import BLOCK_BYTES

__all__ = [
    "ZEROS",
    "checksum",
    "digest_by_blocks",
    "root_digest",
    "segment_digest",
    "segment_hasher",
    "update_with_zeros",
]

ZEROS: Final = memoryview(bytes(BLOCK_BYTES))
"""A block of zeros."""

checksum = xxh3_64_digest
"""XXH3-64 of a frame's body: 8 bytes, big-endian."""

segment_digest = xxh3_128_digest
"""XXH3-128 of a segment: 16 bytes, big-endian."""

segment_hasher = xxh3_128
"""The same digest, block by block: `.update(view)` for each block, then `.digest()`; `.reset()` starts over."""


def root_digest(digests: Iterable[bytes | bytearray | memoryview]) -> bytes:
    """Compute XXH3-128 over the digests of all segments in manifest order, whether sent or held: 16 bytes."""
    hasher = xxh3_128()
    for digest in digests:
        hasher.update(digest)
    return hasher.digest()


def digest_by_blocks(
    read_into: Callable[[memoryview, int], object],
    offset: int,
    length: int,
    block: memoryview,
    on_read: Callable[[int], object] | None = None,
) -> bytes:
    """Compute the digest of a segment that `read_into(view, offset)` reads into `block`, piece by piece.

    `on_read` is called with the number of bytes of each piece. Raises what `read_into` raises.
    """
    hasher = segment_hasher()
    end = offset + length
    while offset < end:
        view = block[: min(len(block), end - offset)]
        read_into(view, offset)
        hasher.update(view)
        offset += len(view)
        if on_read is not None:
            on_read(len(view))
    return hasher.digest()


def update_with_zeros(hasher: xxh3_128, count: int) -> None:
    """Hash `count` zeros, which stand for the bytes of a hole."""
    while count > 0:
        piece = ZEROS[:count]
        hasher.update(piece)
        count -= len(piece)
