"""Which shard of a job moves which entry of a tree (proto/README.md, "Shards of trees"). Pure.

With h = XXH3-64 of the path, segment i of a file belongs to shard (h + i) mod COUNT. A file of one segment, an empty
one and a symlink have only i = 0. Whole files of shard 0 are those that have more than one link. With `checksum`,
every file is whole, as the receiver compares it as a whole with what is there. Every shard lists all directories.
"""

import struct
from typing import Final

from xxhash import xxh3_64_intdigest, xxh3_128_intdigest

from filestreamer.wire.grid import WHOLE, Grid, Share
from filestreamer.wire.messages import Entry, EntryType

_CHUNK_SIZE: Final = struct.Struct(">BQ")
_FOUND: Final = struct.Struct(">BQq")

# What a walk found, in the first byte of its record; 0 is for the chunk size.
_DIRECTORY: Final = 1
_SYMLINK: Final = 2
_WHOLE: Final = 3
_SHARED: Final = 4
_LINKED: Final = 5
_OTHER: Final = 6


def shard_of(path: bytes, segment: int, count: int) -> int:
    """Return which of `count` shards moves a segment of a shared file."""
    return (xxh3_64_intdigest(path) + segment) % count


class TreeShares:
    """The share of one shard in the entries of a tree."""

    def __init__(self, shard: Share, chunk_size: int, *, checksum: bool) -> None:
        """`checksum` is that of the Offer."""
        self.shard = shard
        self._chunk_size = chunk_size
        self._checksum = checksum

    def share(self, path: bytes) -> Share:
        """Return which segments of a shared file are this shard's: those k with k % count == index."""
        count = self.shard.count
        return Share((self.shard.index - xxh3_64_intdigest(path)) % count, count)

    def is_first(self, path: bytes) -> bool:
        """Whether segment 0 of a file is this shard's, and whatever else is not shared and has this path."""
        return shard_of(path, 0, self.shard.count) == self.shard.index

    def is_shared(self, size: int, *, is_linked: bool) -> bool:
        """Whether a file is moved by several shards; `is_linked`: it has more than one link."""
        return size > self._chunk_size and not (is_linked or self._checksum)

    def has_file(self, path: bytes, size: int, *, is_linked: bool) -> bool:
        """Whether this shard moves a file, or a part of it."""
        if is_linked:
            return self.shard.index == 0
        if self.is_shared(size, is_linked=False):
            return self.share(path).chunks(Grid(size, self._chunk_size).segments) > 0
        return self.is_first(path)

    def has(self, entry: Entry) -> bool:
        """Whether this shard lists an entry."""
        if entry.type is EntryType.DIRECTORY:
            return True
        if entry.type is EntryType.FILE:
            return self.has_file(entry.path, entry.size, is_linked=bool(entry.hard_link_group))
        return entry.type is EntryType.SYMLINK and self.is_first(entry.path)

    def share_of(self, entry: Entry) -> Share:
        """Return which segments of a FILE are this shard's, which has it."""
        if self.is_shared(entry.size, is_linked=bool(entry.hard_link_group)):
            return self.share(entry.path)
        return WHOLE


class WalkDigest:
    """The digest of all that one walk found, in any order: shards of one job must have found the same."""

    def __init__(self, shares: TreeShares, chunk_size: int) -> None:
        self._shares = shares
        self._sum = xxh3_128_intdigest(_CHUNK_SIZE.pack(0, chunk_size))

    def file(self, path: bytes, size: int, mtime_ns: int, *, is_linked: bool) -> None:
        """Take in a file."""
        kind = _SHARED if self._shares.is_shared(size, is_linked=is_linked) else _LINKED if is_linked else _WHOLE
        self._add(kind, path, size, mtime_ns)

    def directory(self, path: bytes) -> None:
        """Take in a directory. Each shard sets what it has beside its path."""
        self._add(_DIRECTORY, path)

    def symlink(self, path: bytes, mtime_ns: int) -> None:
        """Take in a symlink."""
        self._add(_SYMLINK, path, mtime_ns=mtime_ns)

    def other(self, path: bytes) -> None:
        """Take in what is never moved, such as a FIFO."""
        self._add(_OTHER, path)

    def _add(self, kind: int, path: bytes, size: int = 0, mtime_ns: int = 0) -> None:
        self._sum += xxh3_128_intdigest(_FOUND.pack(kind, size, mtime_ns) + path)

    def digest(self) -> bytes:
        """Return the digest so far: the sum of all records, modulo 2^128."""
        return (self._sum % (1 << 128)).to_bytes(16, "big")
