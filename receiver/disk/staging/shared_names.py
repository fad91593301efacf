"""The names in staging of a file of a tree that several shards write, and which of them has it open.

    KEY-VERSION.shared     the bytes of all shards, each at its place
    KEY-VERSION-I.ledger   the ledger of share I, and its lock: only the shard that moves the share writes there

KEY is that of the path (`paths.staging_key`). VERSION is a digest of size, mtime, chunk size and number of shards: so
shards of two versions of a source, or of two numbers of shards, never write into one file.
"""

import os
import struct
import threading
from contextlib import AbstractContextManager
from typing import Final, NamedTuple

from filestreamer.wire.digests import checksum
from filestreamer.wire.grid import Grid, Share
from receiver.disk.paths import LEDGER_SUFFIX, SHARED_SUFFIX, staging_key

_VERSION: Final = struct.Struct(">QQqQ")
_GUARDS: Final = tuple(threading.RLock() for _ in range(64))


class SharedNames(NamedTuple):
    """One share of a file, and the names that it has in staging."""

    stem: str
    share: Share
    """Which segments of the file the share has: k with k % count == index."""
    grid: Grid
    mtime_ns: int

    @classmethod
    def of(cls, path: bytes, grid: Grid, mtime_ns: int, share: Share) -> "SharedNames":
        """Return the names of a share; `path` is that of the file in its place."""
        version = checksum(_VERSION.pack(grid.size, grid.chunk_size, mtime_ns, share.count))
        return cls(f"{staging_key(path)}-{version.hex()}", share, grid, mtime_ns)

    @property
    def data(self) -> str:
        """The name of the bytes."""
        return self.stem + SHARED_SUFFIX

    @property
    def key(self) -> str:
        """The name of the ledger of this share, without its suffix."""
        return self.key_of(self.share.index)

    def key_of(self, index: int) -> str:
        """Return the same of any share."""
        return f"{self.stem}-{index}"

    @property
    def indices(self) -> range:
        """The shares that have a segment: the file is complete when all of them are sealed."""
        return range(min(self.share.count, self.grid.segments))

    @property
    def guard(self) -> AbstractContextManager[object]:
        """Held by a thread of this process that opens a share, discards it, or puts the file in place.

        Each share has a lock of its own, so only this keeps the shares of one file from doing so at the same moment.
        """
        return guard_of(self.stem)

    def has_ledgers(self, staging_fd: int) -> bool:
        """Whether any share has a ledger. Raises OSError."""
        for index in self.indices:
            try:
                os.stat(self.key_of(index) + LEDGER_SUFFIX, dir_fd=staging_fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            return True
        return False


def guard_of(stem: str) -> AbstractContextManager[object]:
    """Return the guard of a shared file (`SharedNames.guard`)."""
    return _GUARDS[hash(stem) % len(_GUARDS)]


def path_key(stem: str) -> str:
    """Return the key of the path in the name of a shared file, or of a ledger of it, without suffix; or the name."""
    return stem.partition("-")[0]
