"""A file of the destination that can be read and hashed: in staging (`staging.Staging`), or under its final name.

Files of a tree under their final names are opened by `FinalFiles` to be compared; a single one as `InPlace`, also where
it was committed from shards and one of the shards comes again.
"""

import os
import stat
from collections.abc import Callable

from filestreamer.wire.digests import digest_by_blocks
from filestreamer.wire.errors import Code, TransferFailed, from_os_error
from filestreamer.wire.grid import Grid
from filestreamer.wire.messages import Entry, EntryType
from receiver.disk.attributes.attributes import MODE_BITS, Attributes, owner
from receiver.disk.attributes.stored_times import Likeness
from receiver.disk.destination import Destination, open_directory, shown_path
from receiver.disk.filesystem.sync import sync_directory
from receiver.disk.paths import OPEN_FLAGS
from receiver.disk.staging import ledger
from receiver.disk.staging.sweep import drop_leftovers, has_staged_bytes


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
        return digest_by_blocks(self.read_into, grid.offset(index), grid.length(index), block, on_read)


class InPlace(Readable):
    """A file that is complete under its final name, and is only compared. Every segment is claimed, with no digest."""

    def __init__(
        self, destination: Destination, fd: int, name: bytes, entry: Entry, grid: Grid, *, is_unchecked: bool = False
    ) -> None:
        super().__init__(shown_path(destination, name), fd)
        self.claims = ledger.Claims.all(grid)
        self.is_unchecked = is_unchecked
        """Whether it is accepted unread: it has the size and mtime of the entry, and nobody asked for `--checksum`."""
        self._destination = destination
        self._entry = entry
        self._name = name

    @classmethod
    def open(
        cls, destination: Destination, name: bytes, entry: Entry, grid: Grid, *, is_shard: bool, checksum: bool
    ) -> "InPlace | None":
        """Open the file under its final name if it may be what is sent; None otherwise.

        A shard of it that comes again is always compared by digest.
        """
        if entry.type is not EntryType.FILE:
            return None
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | OPEN_FLAGS, dir_fd=destination.fd)
        except OSError:  # the caller stages the file then, and meets the same error there
            return None
        try:
            there = os.fstat(fd)
            likeness = destination.times.likeness(destination.fd, there, entry, checksum=checksum and not is_shard)
            is_fit = likeness is Likeness.SAME or (likeness is Likeness.UNSURE and not is_shard)
            if likeness is Likeness.UNSURE and is_fit:
                # Of a file that an earlier run began to send, as it differs, what came is worth more.
                is_fit = not has_staged_bytes(destination, name)
            if is_fit and not is_shard:
                is_fit = os.geteuid() in (0, there.st_uid) or not _is_to_be_corrected(destination, there, entry)
            if is_fit:
                is_unchecked = likeness is Likeness.SAME and not is_shard
                in_place = cls(destination, fd, name, entry, grid, is_unchecked=is_unchecked)
                fd = -1
                return in_place
            return None
        finally:
            if fd >= 0:
                os.close(fd)

    def commit(self, attributes: Attributes | None = None) -> None:
        """Complete a commit that a crash may have interrupted after the rename; correct what the file is given.

        Raises TransferFailed(DESTINATION).
        """
        try:
            if attributes is not None:
                directory_fd, there = self._destination.fd, os.fstat(self.fd)
                times = self._destination.times
                attributes.correct_file(directory_fd, self._name, self._entry, 0, there, times=times)
            os.fsync(self.fd)
            sync_directory(self._destination.fd)
            self._destination.check_path()
            drop_leftovers(self._destination, self._name, os.fstat(self.fd))
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't sync {self.path}") from None

    def close(self) -> None:
        """Release the descriptor. Once."""
        os.close(self.fd)


def _is_to_be_corrected(destination: Destination, there: os.stat_result, entry: Entry) -> bool:
    """Whether a file has another owner, mode or mtime than its entry, as far as the destination keeps these."""
    uid, gid = owner(entry)
    is_owned = uid in (-1, there.st_uid) and gid in (-1, there.st_gid)
    has_mode = stat.S_IMODE(there.st_mode) == entry.mode & MODE_BITS
    times = destination.times
    has_time = times.is_same(destination.fd, there, entry.mtime_ns)
    return not (is_owned and has_mode and (has_time or not times.keeps_times(destination.fd, there.st_dev)))


class FinalFiles:
    """Opens files under their final paths, to be compared. No symlink is followed. One thread owns it.

    The directory of the last file stays open for the next one, until `close`, as long as it has its path.
    """

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._directory: bytes | None = None
        self._directory_fd = -1

    def open(self, path: bytes) -> Readable:
        """Open a file, which the caller closes. Raises TransferFailed(DESTINATION)."""
        directory, _, name = path.rpartition(b"/")
        shown = shown_path(self._destination, path)
        try:
            if not self._is_open(directory):
                self.close()
                self._directory_fd = open_directory(self._destination, directory or b".")
                self._directory = directory
            return Readable(shown, os.open(name, os.O_RDONLY | os.O_NONBLOCK | OPEN_FLAGS, dir_fd=self._directory_fd))
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't read {shown}") from None

    def _is_open(self, directory: bytes) -> bool:
        """Whether this directory is open, and nobody has put another one in its place. Raises OSError."""
        if directory != self._directory:
            return False
        there = os.stat(directory or b".", dir_fd=self._destination.fd, follow_symlinks=False)
        return os.path.samestat(there, os.fstat(self._directory_fd))

    def close(self) -> None:
        """Close the directory. Idempotent."""
        if self._directory is not None:
            os.close(self._directory_fd)
            self._directory = None
