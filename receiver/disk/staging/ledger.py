"""The format of the ledger (pure): which segments of a staged file were written. A crash may tear it anywhere.

    header   "FSLEDGR1", size, chunk_size (8 bytes each, big-endian), XXH3-64 of these
    record   segment index (8 bytes, big-endian), XXH3-128 of the segment (16), XXH3-64 of these (8)
    seal     2^63 + COUNT * 2^32 + INDEX (8 bytes, big-endian), digest of a finished share (16), XXH3-64 of these (8)

A record is appended before its chunk is acknowledged. Records come in any order, and a later record of a segment
replaces an earlier one. All records have one size, so that a damaged record costs only itself.

What the ledger claims is a hint which segments are worth hashing again, never a proof: another chunk size, another
source and a lost write all show when the staged bytes are hashed. A seal says that a sender finished shard INDEX of
COUNT. Its digest covers the size and mtime of the source, the chunk size, and the digests of the share: it fits only
what that sender compared.
"""

import itertools
import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from filestreamer.wire import limits
from filestreamer.wire.digests import checksum, root_digest, segment_digest
from filestreamer.wire.grid import Grid, Share

_MAGIC: Final = b"FSLEDGR1"
_HEADER: Final = struct.Struct(">8sQQ")
_RECORD: Final = struct.Struct(">Q16s")
_SEALED: Final = struct.Struct(">QQqQQ")
_SEAL: Final = 1 << 63
"""Set in the first field of a seal: no segment has such an index."""
CHECK_BYTES: Final = 8
HEADER_BYTES: Final = _HEADER.size + CHECK_BYTES
RECORD_BYTES: Final = _RECORD.size + CHECK_BYTES
BYTES_MAX: Final = HEADER_BYTES + 2 * (limits.CHUNKS_PER_FILE + limits.SHARDS_MAX) * RECORD_BYTES
"""No run leaves a longer ledger: it begins with a record for each claim and seal, and appends one more for each."""
UNKNOWN_DIGEST: Final = bytes(limits.DIGEST_BYTES)
"""Stands for the digest of a segment whose bytes were claimed on another grid: only hashing tells its digest."""


class Claims(NamedTuple):
    """Which segments of `grid` a ledger claims, and the digests that they had: 17 bytes a segment."""

    grid: Grid
    present: bytearray
    """1 for each segment that is claimed, 0 for the others; empty where no segment is claimed."""
    digests: bytearray
    """16 bytes for each segment; UNKNOWN_DIGEST where the digest is not known."""
    seals: dict[Share, bytes]
    """The digest of the seal of each share that was finished; all shares have the same COUNT."""

    @classmethod
    def none(cls, grid: Grid) -> "Claims":
        """Claim nothing, and allocate nothing."""
        return cls(grid, bytearray(), bytearray(), {})

    @classmethod
    def all(cls, grid: Grid) -> "Claims":
        """Claim every segment, with no digest."""
        return cls(grid, bytearray(b"\x01" * grid.segments), bytearray(limits.DIGEST_BYTES * grid.segments), {})

    @classmethod
    def of(cls, grid: Grid, records: Iterable[tuple[int, bytes]], known: int | None = None) -> "Claims":
        """Claim these (segment index, digest) pairs, seals included; indices beyond the grid are left out.

        `known` keeps the digests of only the first so many segments, which saves the memory of the others.
        """
        claims = cls.none(grid)
        known = grid.segments if known is None else known
        for index, digest in records:
            if index >= _SEAL:
                claims._take_seal(Share(index & 0xFFFFFFFF, (index ^ _SEAL) >> 32), digest)
            elif index < grid.segments:
                if not claims.present:
                    claims.present.extend(bytes(grid.segments))
                    claims.digests.extend(bytes(limits.DIGEST_BYTES * known))
                claims.present[index] = 1
                if index < known:
                    at = index * limits.DIGEST_BYTES
                    claims.digests[at : at + limits.DIGEST_BYTES] = digest
        return claims

    def _take_seal(self, share: Share, digest: bytes) -> None:
        if share.index < share.count <= limits.SHARDS_MAX:
            # Seals of another COUNT are of an earlier job, with other shares.
            if any(share.count != other.count for other in itertools.islice(self.seals, 1)):
                self.seals.clear()
            self.seals[share] = digest

    def is_sealed(self, share: Share, mtime_ns: int) -> bool:
        """Return whether a sender finished this share, from a source of this mtime, and all of it is claimed.

        What is not claimed of such a share is zeros, which have no digest: else the digest of the seal would differ.
        """
        if share not in self.seals:
            return False
        root = root_digest(self.digest(index) for index in self.indices() if share.holds(index))
        return self.seals[share] == seal_digest(self.grid, mtime_ns, share, root)

    def records(self) -> Iterator[tuple[int, bytes]]:
        """Yield the records of a new ledger that claims the same, seals last."""
        for index in self.indices():
            yield index, self.digest(index)
        for share, digest in self.seals.items():
            yield seal_record(share, digest)

    @property
    def claimed(self) -> int:
        """How many segments are claimed."""
        return self.present.count(1)

    def digest(self, index: int) -> bytes:
        """Return the digest that a segment had, or UNKNOWN_DIGEST."""
        at = index * limits.DIGEST_BYTES
        return bytes(self.digests[at : at + limits.DIGEST_BYTES])

    def indices(self) -> Iterator[int]:
        """Yield the claimed segments, in order."""
        at = self.present.find(1)
        while at >= 0:
            yield at
            at = self.present.find(1, at + 1)


def encode_header(grid: Grid) -> bytes:
    """Return the header of a ledger: HEADER_BYTES."""
    header = _HEADER.pack(_MAGIC, grid.size, grid.chunk_size)
    return header + checksum(header)


def encode_records(records: Iterable[tuple[int, bytes]]) -> bytes:
    """Encode (segment index, digest) pairs: RECORD_BYTES each."""
    return b"".join([(body := _RECORD.pack(index, digest)) + checksum(body) for index, digest in records])


def seal_digest(grid: Grid, mtime_ns: int, share: Share, root: bytes) -> bytes:
    """Return the digest of the seal of a share that has this root digest: 16 bytes."""
    return segment_digest(_SEALED.pack(grid.size, grid.chunk_size, mtime_ns, share.index, share.count) + root)


def seal_record(share: Share, digest: bytes) -> tuple[int, bytes]:
    """Return the pair that `encode_records` takes for a seal with this digest."""
    return _SEAL | share.count << 32 | share.index, digest


def decode(content: bytes, more: Iterable[bytes] = (), today: Grid | None = None) -> Claims | None:
    """Return the claims of a ledger; None where its header is missing or damaged. Damaged records are left out.

    `content` begins with the header; `more` are further pieces, each of whole records. Where the ledger has another
    grid than `today`, only the digests that `claims_on` needs are kept, and each other segment takes 1 byte.
    """
    grid = decode_header(content)
    if grid is None:
        return None
    known = None
    if today is not None:
        known = min(grid.segments, today.segments) if grid.chunk_size == today.chunk_size else 0
    pieces = itertools.chain((content[HEADER_BYTES:],), more)
    return Claims.of(grid, (record for piece in pieces for record in _records(piece)), known)


def decode_header(content: bytes) -> Grid | None:
    """Return the grid that a ledger was written on; None where its header is missing or damaged."""
    header = content[: _HEADER.size]
    if len(content) < HEADER_BYTES or content[_HEADER.size : HEADER_BYTES] != checksum(header):
        return None
    magic, size, chunk_size = _HEADER.unpack(header)
    if magic != _MAGIC or not 0 < chunk_size <= limits.CHUNK_SIZE_MAX or size > limits.FILE_SIZE_MAX:
        return None
    grid = Grid(size, chunk_size)
    return grid if grid.segments <= limits.CHUNKS_PER_FILE else None


def _records(piece: bytes | memoryview) -> Iterator[tuple[int, bytes]]:
    view = memoryview(piece)
    for at in range(0, len(view) - RECORD_BYTES + 1, RECORD_BYTES):
        body = view[at : at + _RECORD.size]
        if view[at + _RECORD.size : at + RECORD_BYTES] == checksum(body):
            yield _RECORD.unpack(body)


def is_exact(content_bytes: int, claims: Claims, grid: Grid) -> bool:
    """Return whether a ledger may be appended to, on `grid`: it has `content_bytes` and was decoded to `claims`.

    So it is where it has one record for each claim and seal: none is damaged, none is there twice.
    """
    records = claims.claimed + len(claims.seals)
    return claims.grid == grid and content_bytes == HEADER_BYTES + records * RECORD_BYTES


def claims_on(claims: Claims, grid: Grid) -> Claims:
    """Translate claims to another grid of the same file: claimed are its segments that lie wholly in claimed bytes.

    On another chunk size, the digests are UNKNOWN_DIGEST.
    """
    if claims.grid == grid:
        return claims
    return Claims.of(grid, _translated(claims, grid))


def _translated(claims: Claims, grid: Grid) -> Iterator[tuple[int, bytes]]:
    same = claims.grid.chunk_size == grid.chunk_size
    for start, end in byte_runs(claims):
        first = -(-start // grid.chunk_size)
        last = grid.segments if end >= grid.size else end // grid.chunk_size
        for index in range(first, last):
            known = same and grid.length(index) == claims.grid.length(index)
            yield index, claims.digest(index) if known else UNKNOWN_DIGEST


def unclaimed(claims: Claims) -> Iterator[tuple[int, int]]:
    """Yield the byte ranges [start, end) of the file that are not claimed, in order."""
    at = 0
    for start, end in byte_runs(claims):
        if at < start:
            yield at, start
        at = end
    if at < claims.grid.size:
        yield at, claims.grid.size


def claimed_end(claims: Claims) -> int:
    """Return the end of the last claimed byte: its offset in the file, plus 1."""
    return min(claims.grid.offset(claims.present.rfind(1) + 1), claims.grid.size)


def byte_runs(claims: Claims) -> Iterator[tuple[int, int]]:
    """Yield the claimed byte ranges [start, end), merged, in order."""
    first = claims.present.find(1)
    while first >= 0:
        end = claims.present.find(0, first)
        end = len(claims.present) if end < 0 else end
        yield claims.grid.offset(first), min(claims.grid.offset(end), claims.grid.size)
        first = claims.present.find(1, end)
