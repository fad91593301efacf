"""The staging of one tree in one place: `.filestreamer/KEY.tree/`, where small files are written and wait for names.

`TreeStagings` has that of each place.
"""

import contextlib
import errno
import os
import threading
from typing import Final

from filestreamer.wire.errors import Code, TransferFailed
from filestreamer.wire.messages import Entry
from receiver.disk.attributes.attributes import MODE_BITS
from receiver.disk.attributes.inheritance import handed_down
from receiver.disk.descriptors import patiently
from receiver.disk.destination import Destination, shown_path
from receiver.disk.filesystem import inodes
from receiver.disk.obstacles import Obstacle, failure
from receiver.disk.paths import TREE_SUFFIX, staging_key
from receiver.disk.place import NO_LOCKS, Place, is_ours, make_private
from receiver.disk.report import Report
from receiver.disk.staging.lock import TreeLock, is_named
from receiver.disk.staging.sweep import clear_tree
from receiver.tree.commit.directories import OPEN_DIRECTORY
from receiver.tree.commit.inherited_files import InheritedFiles
from receiver.tree.commit.places import Places
from receiver.tree.commit.traits import Traits, find_traits

BATCH_FILES: Final = 8192
"""Files that are put in place together."""
SUBDIRECTORIES: Final = 16
"""The kernel serializes changes of one directory: so connections write into several subdirectories."""
_TRIES: Final = 3


class TreeStaging:
    """The staging of one tree in one place; a lock keeps a second process away, and is held until `close`."""

    def __init__(self, place: Place, root: bytes, inherited_files: InheritedFiles, shard: bytes = b"") -> None:
        """Make it for the tree with this root, and empty it. Raises TransferFailed: BUSY, DESTINATION.

        `shard` is what the name of the staging has beside that, of a shard of the tree.
        """
        self.place = place
        self._inherited_files = inherited_files
        # Two places may be the same directory, mounted twice: each has a name of its own in the staging there.
        name = b"\0".join((root, place.prefix)) if place.prefix else root
        self._name = staging_key(name + shard) + TREE_SUFFIX
        self._staging_fd, self.fd = -1, -1
        self._lock: TreeLock | None = None
        self.traits = Traits()
        """What the file system of the place does otherwise."""
        try:
            self._open(place.path if place.prefix else shown_path(place, root))
            clear_tree(self.fd)  # small files of a receiver that was killed: no ledger says which of them are complete
            self.traits = find_traits(self.fd)
            for subdirectory in range(SUBDIRECTORIES):
                os.mkdir(str(subdirectory), 0o700, dir_fd=self.fd)
            self.handed_down = handed_down(self.fd)
            """What its files get by being made in it."""
        except OSError as error:
            error = inodes.explain(error, place.fd)  # before the inodes of the staging are free again
            self.close()
            raise failure(error, f"can't write into {place.path}") from None
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
                self._staging_fd = self.place.open_staging(create=True)
                with contextlib.suppress(FileExistsError):
                    os.mkdir(self._name, 0o700, dir_fd=self._staging_fd)
                self.fd = os.open(self._name, OPEN_DIRECTORY, dir_fd=self._staging_fd)
                self._check_owner(shown)
                try:
                    self._lock = TreeLock(self.fd)
                except BlockingIOError:
                    raise TransferFailed(Code.BUSY, f"{shown} is locked by another process; retrying") from None
                except OSError:
                    with contextlib.suppress(OSError):  # nothing is left where there is no room for the lock
                        os.rmdir(self._name, dir_fd=self._staging_fd)
                    raise
                if self._lock.is_file:
                    self.place.lacks(NO_LOCKS)
                return
            self._close_descriptors()
        raise FileNotFoundError(errno.ENOENT, "another process keeps removing the staging directory")

    def _check_owner(self, shown: str) -> None:
        """Check that no other user can change files in the directory. Raises TransferFailed(DESTINATION), OSError."""
        status = os.fstat(self.fd)
        if not is_ours(status, self._staging_fd):
            why = f"the staging of {shown} belongs to another user: remove it"
            raise Obstacle(Code.DESTINATION, why, why)
        make_private(self.fd, status, 0o077)

    def name(self, file_id: int, connection_id: int = 0) -> str:
        """Return the name under which a connection stages a small file, relative to `fd`.

        Each connection uses two subdirectories in turn, so that it writes into none from which files are being renamed.
        """
        return f"{(2 * connection_id + file_id // BATCH_FILES % 2) % SUBDIRECTORIES}/{file_id}"

    def create(self, name: str, entry: Entry) -> int:
        """Open a new file with the mode of its entry, as far as the umask lets it (`has_mode`). Raises OSError.

        It has what its final directory hands down.
        """
        if (fd := self._inherited_files.create(entry.path, self.fd, name, self.handed_down)) is not None:
            return fd
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(name, flags, entry.mode & MODE_BITS, dir_fd=self.fd)
        except OSError:
            pass
        try:
            return patiently(lambda: os.open(name, flags, entry.mode & MODE_BITS, dir_fd=self.fd))
        except OSError as error:
            raise inodes.explain(error, self.fd) from None

    def has_mode(self, entry: Entry) -> bool:
        """Whether a file from `create` has the mode of its entry: then no call is needed to set it."""
        dropped, added = self.traits.dropped_bits, self.traits.added_bits
        return not (entry.mode & dropped or added & ~entry.mode or self._inherited_files.is_needed)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self.fd)

    def close(self) -> None:
        """Remove everything that has no final name, and unlock. Idempotent.

        A directory that another process has locked stays.
        """
        if self._lock is not None:
            with contextlib.suppress(OSError):
                if self._lock.is_held:  # else what is there may be another process's
                    clear_tree(self.fd)
            held, self._lock = self._lock, None
            with contextlib.suppress(OSError):
                held.release(with_name=True)
                if is_named(self.fd, self._name, self._staging_fd):
                    os.rmdir(self._name, dir_fd=self._staging_fd)
        is_ours = self._staging_fd >= 0
        self._close_descriptors()
        if is_ours:  # else it may be another user's
            self.place.tidy()

    def _close_descriptors(self) -> None:
        for fd in (self.fd, self._staging_fd):
            if fd >= 0:
                os.close(fd)
        self._staging_fd, self.fd = -1, -1


class TreeStagings:
    """The staging of one tree, in each place that its files go to. Any thread may call."""

    def __init__(self, destination: Destination, root: bytes, report: Report, shard: bytes = b"") -> None:
        """Make that at the top, for the tree with this root, or a shard of it. Raises as `TreeStaging`."""
        self.places = Places(destination)
        self.inherited_files = InheritedFiles(destination, self.places, report)
        self.top = TreeStaging(destination, root, self.inherited_files, shard)
        self._shard = shard
        self._report = report
        destination.tell_lacking(report.warn)
        self._root = root
        self._lock = threading.Lock()  # protects _below
        self._below: dict[Place, TreeStaging] = {}
        self._unusable: dict[Place, str] = {}
        """Why nothing can be staged in a place: that costs the files that go there, and nothing else."""

    def of(self, path: bytes) -> TreeStaging:
        """Return the staging of a file with this path; its directory was opened before. Raises as `TreeStaging`."""
        return self.at(self.places.of(path)) if self.places.is_divided else self.top

    def at(self, place: Place) -> TreeStaging:
        """Return the staging in a place, made now where there is none yet.

        Raises Obstacle where a place below the destination can't be used, TransferFailed as `TreeStaging` does.
        """
        if place is self.top.place:
            return self.top
        with self._lock:
            if (staging := self._below.get(place)) is not None:
                return staging
            if place not in self._unusable:
                try:
                    staging = self._below[place] = TreeStaging(place, self._root, self.inherited_files, self._shard)
                    place.tell_lacking(self._report.warn)
                    return staging
                except Obstacle as obstacle:
                    self._unusable[place] = obstacle.reason
            why = self._unusable[place]
        raise Obstacle(Code.DESTINATION, why, why)

    def close_below(self) -> None:
        """Close all but that at the top: to remove it later would change the times of the directory that it is in."""
        with self._lock:
            for staging in self._below.values():
                staging.close()
            for place in self._below:
                place.tidy()  # again: two places may have one directory, which was not empty before
            self._below.clear()

    def close(self) -> None:
        """Close all. Idempotent."""
        self.close_below()
        self.inherited_files.close()
        self.places.close()
        self.top.close()
