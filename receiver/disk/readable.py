"""A file of the destination that can be read and hashed: in staging (`staging.Staging`), or under its final name.

A file under its final name is opened with `open_below` to be compared, and as `InPlace` where it was committed from
shards and one of the shards comes again.
"""

import os
import stat
from collections.abc import Callable

from filestreamer.wire.digests import segment_hasher
from filestreamer.wire.errors import Code, TransferFailed, from_os_error
from filestreamer.wire.grid import Grid
from filestreamer.wire.messages import Entry
from receiver.disk import ledger
from receiver.disk.destination import Destination, shown_path
from receiver.disk.paths import OPEN_FLAGS
from receiver.disk.sweep import drop_ledger


class Readable:
    """A file of the destination that can be read."""

    claims: ledger.Claims
    """Which segments are said to be there, on today's grid. Of `Staging` and `InPlace` only."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        """The full final path, for messages."""
        self.fd = fd

    def take_claims(self) -> ledger.Claims:
        """Return the claims, and drop them here, as they may take much memory."""
        claims, self.claims = self.claims, ledger.Claims.none(self.claims.grid)
        return claims

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` with the bytes at this offset. Raises TransferFailed(DESTINATION)."""
        done = 0
        try:
            while done < len(view):
                count = os.preadv(self.fd, [view[done:]], offset + done)
                if not count:
                    raise TransferFailed(
                        Code.DESTINATION, f"{self.path} became shorter while it was read: run the same command again"
                    )
                done += count
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't read what was received of {self.path}") from None

    def digest(
        self, block: memoryview, grid: Grid, index: int, on_read: Callable[[int], object] | None = None
    ) -> bytes:
        """Return the digest of a segment, read through `block` piece by piece. Raises TransferFailed(DESTINATION).

        `on_read` is called with the number of bytes of each piece.
        """
        hasher = segment_hasher()
        offset = grid.offset(index)
        end = offset + grid.length(index)
        while offset < end:
            view = block[: min(len(block), end - offset)]
            self.read_into(view, offset)
            hasher.update(view)
            offset += len(view)
            if on_read is not None:
                on_read(len(view))
        return hasher.digest()


class InPlace(Readable):
    """A file that was committed already, and is only compared. Every segment is claimed, with no digest."""

    def __init__(self, destination: Destination, fd: int, name: bytes, grid: Grid) -> None:
        super().__init__(shown_path(destination, name), fd)
        self.claims = ledger.Claims.all(grid)
        self._destination = destination
        self._name = name

    @classmethod
    def open(cls, destination: Destination, name: bytes, entry: Entry, grid: Grid) -> "InPlace | None":
        """Open the file under its final name if it has the size and the mtime of `entry`; None otherwise."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | OPEN_FLAGS, dir_fd=destination.fd)
        except OSError:  # the caller stages the file then, and meets the same error there
            return None
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and (status.st_size, status.st_mtime_ns) == (entry.size, entry.mtime_ns):
            return cls(destination, fd, name, grid)
        os.close(fd)
        return None

    def commit(self) -> None:
        """Complete a commit that a crash may have interrupted after the rename. Raises TransferFailed(DESTINATION)."""
        try:
            os.fsync(self.fd)
            os.fsync(self._destination.fd)
            drop_ledger(self._destination, self._name)
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't sync {self.path}") from None

    def close(self) -> None:
        """Release the descriptor. Once."""
        os.close(self.fd)


def open_below(destination: Destination, path: bytes) -> Readable:
    """Open a file under its final path, to be compared. No symlink is followed. Raises TransferFailed(DESTINATION)."""
    shown = shown_path(destination, path)
    parts = path.split(b"/")
    fd = destination.fd
    try:
        # Component by component: O_NOFOLLOW holds only for the last component of a path.
        for at, part in enumerate(parts):
            flags = os.O_NONBLOCK if at == len(parts) - 1 else os.O_DIRECTORY
            above, fd = fd, os.open(part, os.O_RDONLY | flags | OPEN_FLAGS, dir_fd=fd)
            if at:
                os.close(above)
    except OSError as error:
        if fd != destination.fd:
            os.close(fd)
        raise from_os_error(error, Code.DESTINATION, f"can't read {shown}") from None
    return Readable(shown, fd)
