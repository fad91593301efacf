"""The staging of one tree: `.filestreamer/KEY.tree/`, where its small files are written and wait for their names."""

import contextlib
import errno
import os
from typing import Final

from filestreamer.wire.errors import Code, TransferFailed, from_os_error
from filestreamer.wire.messages import Entry
from receiver.disk.attributes import MODE_BITS
from receiver.disk.destination import Destination, make_private, shown_path
from receiver.disk.lock import is_named, lock
from receiver.disk.paths import TREE_SUFFIX, staging_key
from receiver.disk.sweep import clear_tree
from receiver.tree.commit.directories import OPEN_DIRECTORY
from receiver.tree.commit.traits import Traits, find_traits

BATCH_FILES: Final = 8192
"""Files that are put in place together."""
SUBDIRECTORIES: Final = 16
"""The kernel serializes changes of one directory: so connections write into several subdirectories."""
_TRIES: Final = 3


class TreeStaging:
    """The staging of one tree; a flock keeps a second process away, and is held until `close`."""

    def __init__(self, destination: Destination, root: bytes) -> None:
        """Make it for the tree with this root, and empty it. Raises TransferFailed: BUSY, DESTINATION."""
        self._destination = destination
        self._name = staging_key(root) + TREE_SUFFIX
        self._staging_fd, self.fd = -1, -1
        self._is_locked = False
        self.traits = Traits()
        """What the file system of the destination does otherwise."""
        try:
            self._open(shown_path(destination, root))
            clear_tree(self.fd)  # small files of a receiver that was killed: no ledger says which of them are complete
            self.traits = find_traits(self.fd)
            for subdirectory in range(SUBDIRECTORIES):
                os.mkdir(str(subdirectory), 0o700, dir_fd=self.fd)
        except OSError as error:
            self.close()
            raise from_os_error(error, Code.DESTINATION, f"can't write into {destination.path}") from None
        except TransferFailed:
            self.close()
            raise

    @property
    def files_fd(self) -> int:
        """`.filestreamer/` itself, where large files are staged."""
        return self._staging_fd

    def _open(self, shown: str) -> None:
        # Another process may remove an empty `.filestreamer/` between any two calls.
        for _ in range(_TRIES):
            with contextlib.suppress(FileNotFoundError):
                self._staging_fd = self._destination.open_staging(create=True)
                with contextlib.suppress(FileExistsError):
                    os.mkdir(self._name, 0o700, dir_fd=self._staging_fd)
                self.fd = os.open(self._name, OPEN_DIRECTORY, dir_fd=self._staging_fd)
                self._check_owner(shown)
                try:
                    lock(self.fd, self._name, self._staging_fd)
                except BlockingIOError:
                    raise TransferFailed(Code.BUSY, f"{shown} is locked by another process; retrying") from None
                self._is_locked = True
                return
            self._close_descriptors()
        raise FileNotFoundError(errno.ENOENT, "another process keeps removing the staging directory")

    def _check_owner(self, shown: str) -> None:
        """Check that no other user can change files in the directory. Raises TransferFailed(DESTINATION), OSError."""
        status = os.fstat(self.fd)
        if status.st_uid != os.geteuid():
            raise TransferFailed(Code.DESTINATION, f"the staging of {shown} belongs to another user: remove it")
        make_private(self.fd, status, 0o077)

    def name(self, file_id: int, connection_id: int = 0) -> str:
        """Return the name under which a connection stages a small file, relative to `fd`.

        Each connection uses two subdirectories in turn, so that it writes into none from which files are being renamed.
        """
        return f"{(2 * connection_id + file_id // BATCH_FILES % 2) % SUBDIRECTORIES}/{file_id}"

    def create(self, name: str, entry: Entry) -> int:
        """Open a new file with the mode of its entry, as far as the umask lets it (`has_mode`). Raises OSError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(name, flags, entry.mode & MODE_BITS, dir_fd=self.fd)

    def has_mode(self, entry: Entry) -> bool:
        """Whether a file from `create` has the mode of its entry: then no call is needed to set it."""
        dropped, added = self.traits.dropped_bits, self.traits.added_bits
        return not (entry.mode & dropped or added & ~entry.mode)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self.fd)

    def close(self) -> None:
        """Remove everything that has no final name, and unlock. Idempotent.

        A directory that another process has locked stays.
        """
        if self._is_locked:
            with contextlib.suppress(OSError):
                clear_tree(self.fd)
                if is_named(self.fd, self._name, self._staging_fd):
                    os.rmdir(self._name, dir_fd=self._staging_fd)
        self._close_descriptors()
        self._destination.tidy()

    def _close_descriptors(self) -> None:
        for fd in (self.fd, self._staging_fd):
            if fd >= 0:
                os.close(fd)
        self._staging_fd, self.fd = -1, -1
        self._is_locked = False
