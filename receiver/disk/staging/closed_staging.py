"""A large file of a tree that was closed in staging: recognised when it is opened again, or committed with others.

A tree has more large files than a process may have descriptors. So a file is closed between two chunks (`StagingMark`),
and a complete file is closed before the one sync that covers a whole batch of files (`ClosedStaging`).
"""

import contextlib
import errno
import os
from typing import Final, NamedTuple

from receiver.disk.final_name import put_in_place
from receiver.disk.paths import DATA_SUFFIX, LEDGER_SUFFIX, staging_key
from receiver.disk.staging.lock import locked
from receiver.disk.staging.shared_names import SharedNames
from receiver.disk.staging.staged_copy import copy_file

_CHANGED: Final = "another process changed or replaced its staging: run the same command again"


class StagingMark(NamedTuple):
    """Tells whether the staging of a file is as it was when it was closed.

    The inodes show a staging that was begun anew; the length of the ledger grows with each write of another process.
    """

    inode: int
    ledger_inode: int
    ledger_bytes: int

    @classmethod
    def of(cls, staging_fd: int, path: bytes, shared: SharedNames | None = None) -> "StagingMark | None":
        """Look at the staging of a file, or of a share of it; None where there is none. Raises OSError."""
        key = staging_key(path) if shared is None else shared.key
        try:
            data_name = key + DATA_SUFFIX if shared is None else shared.data
            data = os.stat(data_name, dir_fd=staging_fd, follow_symlinks=False)
            noted = os.stat(key + LEDGER_SUFFIX, dir_fd=staging_fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return cls(data.st_ino, noted.st_ino, noted.st_size)


class ClosedStaging(NamedTuple):
    """A complete file of a tree that was closed in staging, and waits for its final name."""

    key: str
    identity: tuple[int, ...]
    """Identity and last change of the staged file (`identity_of`)."""

    def put(self, staging_fd: int, directory_fd: int, final: bytes, *, replace: bool) -> None:
        """Rename the file to its final name, after it was synced, and remove its ledger. Raises OSError.

        FileExistsError where the file may not replace what is there.
        """
        try:
            # Keep other processes out: one that opens the staging now would write into the file under its final name.
            with locked(staging_fd, self.key):
                there = os.stat(self.key + DATA_SUFFIX, dir_fd=staging_fd, follow_symlinks=False)
                if identity_of(there) != self.identity:
                    raise OSError(errno.ESTALE, _CHANGED)
                put_in_place(self.key + DATA_SUFFIX, final, staging_fd, directory_fd, replace=replace)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.key + LEDGER_SUFFIX, dir_fd=staging_fd)
        except BlockingIOError:
            raise OSError(
                errno.ESTALE, "its staging is locked by another process: run the same command again"
            ) from None

    def copy(self, staging_fd: int, name: str, directory_fd: int) -> None:
        """Copy the file into another directory, durably. Raises OSError."""
        copy_file(self.key + DATA_SUFFIX, staging_fd, name, directory_fd)
        if identity_of(self.status(staging_fd)) != self.identity:
            raise OSError(errno.ESTALE, _CHANGED)

    def status(self, staging_fd: int) -> os.stat_result:
        """Return the stat(2) of the staged bytes. Raises OSError."""
        return os.stat(self.key + DATA_SUFFIX, dir_fd=staging_fd, follow_symlinks=False)

    def discard(self, staging_fd: int) -> None:
        """Remove the staged bytes and their ledger."""
        for suffix in (DATA_SUFFIX, LEDGER_SUFFIX):
            with contextlib.suppress(OSError):
                os.unlink(self.key + suffix, dir_fd=staging_fd)


def identity_of(status: os.stat_result) -> tuple[int, ...]:
    """Return the values of a status that change when a file is replaced or written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
