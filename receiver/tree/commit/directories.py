"""Directories below the destination, opened component by component without following a symlink.

On the way it shows which place each directory belongs to (`places`).
"""

import errno
import os
import stat
from collections import OrderedDict
from typing import Final, NamedTuple

from filestreamer.wire import limits
from filestreamer.wire.errors import Code, TransferFailed
from receiver.disk import descriptors
from receiver.disk.attributes.attributes import MODE_BITS, loses_setgid
from receiver.disk.attributes.inheritance import HandedDown, handed_down
from receiver.disk.destination import Destination, is_read_only, shown_path, tree_failure
from receiver.disk.filesystem import inodes
from receiver.disk.filesystem.sync import sync_directory
from receiver.disk.obstacles import Obstacle
from receiver.disk.paths import STAGING
from receiver.disk.place import Place
from receiver.tree.commit.places import Places

OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_TO_OPEN: Final = stat.S_IRUSR | stat.S_IXUSR


class Directory(NamedTuple):
    """An open directory of the destination."""

    fd: int
    is_new: bool
    """Whether this transfer made the directory: then it contains only what this transfer put there."""
    place: Place
    """The part of the destination inside which files can be renamed into this directory."""
    is_writable: bool = True
    """Whether names in it may be made and replaced, as far as its mode and flags say."""
    handed_down: HandedDown = ()
    """What files that are made in it get (`receiver.disk.attributes.inheritance`), if that was to be looked at."""


class Directories:
    """A cache of the directories that were used last, by path. For one thread."""

    def __init__(
        self, destination: Destination, places: Places, *, again: bool = False, looks_at_inheritance: bool = False
    ) -> None:
        """With `again`, all directories were opened before by another thread: none may have become another one."""
        self._destination = destination
        self._places = places
        self._again = again
        self._looks_at_inheritance = looks_at_inheritance
        self._most = descriptors.directories(descriptors.allowed())
        self._open: OrderedDict[bytes, Directory] = OrderedDict(
            {b"": Directory(destination.fd, False, destination, handed_down=self._handed_down(destination.fd))}
        )
        self._at_path: set[bytes] = set()
        """Open directories that were seen at their paths since `look_again`."""
        self._changed: set[bytes] = set()
        """Open directories that have to be fsynced by themselves."""

    def get(self, path: bytes, *, create: bool = False) -> Directory:
        """Open the directory at `path`, b"" being the destination; `create` makes the components that are missing.

        The descriptor is valid until the next call. Raises Obstacle where a component can't be opened or made, or has
        lost its path, TransferFailed(DESTINATION).
        """
        known = self._open.get(path)
        if known is not None:
            self._check_path(path)
            self._open.move_to_end(path)
            return known
        parts = path.split(b"/")
        depth = next(depth for depth in range(len(parts), -1, -1) if b"/".join(parts[:depth]) in self._open)
        nearest = b"/".join(parts[:depth])
        self._check_path(nearest)
        directory = self._open[nearest]
        for at in range(depth, len(parts)):
            # Each one on the way is cached: in a deep tree, the directory above is often the next that is asked for.
            below = b"/".join(parts[: at + 1])
            directory = self._cache(below, self._enter(directory, parts[at], below, create=create))
        return directory

    def look_again(self) -> None:
        """Have each open directory looked for at its path before it is used again: others may have moved it away.

        What is put into it would not be where the user looks for it, and maybe outside the destination. To look before
        each file would cost more than the file.
        """
        self._at_path.clear()

    def _check_path(self, path: bytes) -> None:
        """Check that an open directory is still at its path, unless it was seen there. Raises as `get` does."""
        if not path or path in self._at_path:
            return
        parts = path.split(b"/")
        for depth in range(1, len(parts) + 1):  # from the top, so that no symlink is followed
            above = b"/".join(parts[:depth])
            if above in self._at_path:
                continue
            known = self._open.get(above)
            if not self._is_at(above, known):
                why = "it was moved, removed, replaced or mounted over during the transfer"
                shown = shown_path(self._destination, above)
                raise Obstacle(Code.DESTINATION, f"can't write into {shown}: {why}", why, above)
            if known is not None:
                self._at_path.add(above)

    def _is_at(self, path: bytes, known: Directory | None) -> bool:
        """Whether a directory is at a path; if it is open, this one. Raises as `get` does."""
        try:
            there = os.stat(path, dir_fd=self._destination.fd, follow_symlinks=False)
            return stat.S_ISDIR(there.st_mode) and (known is None or os.path.samestat(there, os.fstat(known.fd)))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG and len(path) == limits.PATH_BYTES:
                return True  # one byte too many for the kernel, but all above it was looked at
            shown = shown_path(self._destination, path)
            raise tree_failure(self._destination, error, f"can't look at {shown}", path, path) from None

    def _enter(self, parent: Directory, name: bytes, path: bytes, *, create: bool) -> Directory:
        """Open the last component of `path`. Raises as `get` does."""
        try:
            is_new = create and _make_directory(parent.fd, name, MODE_BITS)
            if is_new and parent.place.syncs_each:
                sync_directory(parent.fd)
            return self._open_directory(parent, path, name, is_new=is_new)
        except OSError as error:
            raise self._failure(error, "open", path) from None

    def _open_directory(self, parent: Directory, path: bytes, name: bytes, *, is_new: bool) -> Directory:
        fd = descriptors.patiently(
            lambda: os.open(name, OPEN_DIRECTORY, dir_fd=parent.fd), lambda: self._shrink(1, parent.fd)
        )
        try:
            # A name of eight characters (FAT) leads to a directory of another name, and unknown foldings may, too.
            if (b"~" in name or not name.isascii()) and _is_staging(fd, parent.fd):
                raise TransferFailed(Code.PATH, f"unsafe path ({os.fsdecode(name)!a} is a name of staging, {STAGING})")
            # A directory that was made just now lies on the side of its parent: that need not be looked up.
            place = parent.place if is_new else self._places.enter(path, fd, parent.place, again=self._again)
            # A new directory below one that hands down nothing hands down nothing, either.
            inherited = () if is_new and not parent.handed_down else self._handed_down(fd)
            return Directory(fd, is_new, place, is_new or self._may_write(fd, place), inherited)
        except BaseException:
            os.close(fd)
            raise

    def _may_write(self, fd: int, place: Place) -> bool:
        """Whether this process may make names in a directory, as far as its mode and flags say.

        Raises Obstacle where a file system below the destination is read-only, OSError where that of the destination
        is.
        """
        if os.access(".", os.W_OK | os.X_OK, dir_fd=fd, effective_ids=os.access in os.supports_effective_ids):
            return True
        if is_read_only(fd):
            if place.prefix and not is_read_only(self._destination.fd):
                what = "its file system is read-only"
                shown = shown_path(self._destination, place.prefix)
                raise Obstacle(Code.DESTINATION, f"can't write into {shown}: {what}", what, place.prefix)
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return False

    def _handed_down(self, fd: int) -> HandedDown:
        return handed_down(fd) if self._looks_at_inheritance else ()

    def _cache(self, path: bytes, directory: Directory) -> Directory:
        self._open[path] = directory
        self._at_path.add(path)
        self._shrink(self._most, directory.fd)
        return directory

    def _shrink(self, most: int, kept_fd: int) -> None:
        """Close what was used least recently until at most so many are open; one is kept, beside the destination."""
        for path in list(self._open):
            if len(self._open) <= most:
                return
            if path and self._open[path].fd != kept_fd:
                try:
                    self._sync(path)
                finally:
                    self._at_path.discard(path)
                    os.close(self._open.pop(path).fd)

    # --- directories that have to be fsynced by themselves

    def note_change(self, path: bytes) -> None:
        """Note that names of an open directory were changed, after that was done: `sync` makes them durable."""
        directory = self._open.get(path)
        if directory is not None and directory.place.syncs_each:
            self._changed.add(path)

    def sync(self) -> None:
        """Make the changes durable that were noted, where no sync of the whole file system does. Raises OSError."""
        for path in list(self._changed):
            self._sync(path)

    def _sync(self, path: bytes) -> None:
        if path in self._changed:
            self._changed.discard(path)
            sync_directory(self._open[path].fd)

    # --- directories of the manifest

    def make(self, path: bytes, mode: int) -> Directory:
        """Make the directory at `path`, or take the one that is there, and let its owner write into it.

        The mode of the entry is set at the end of the transfer. Raises as `get` does.
        """
        parent, _, name = path.rpartition(b"/")
        above = self.get(parent, create=True)
        if path in self._open:
            return self.get(path)
        try:
            is_new = _make_directory(above.fd, name, mode | stat.S_IRWXU)
            if is_new:
                self.note_change(parent)
            else:
                _let_owner_in(above.fd, name)
            directory = self._cache(path, self._open_directory(above, path, name, is_new=is_new))
            if let_owner_in(directory.fd) is not None:
                directory = self._cache(
                    path, directory._replace(is_writable=is_new or self._may_write(directory.fd, directory.place))
                )
        except OSError as error:
            raise self._failure(error, "make the directory", path) from None
        return directory

    def _failure(self, error: OSError, what: str, path: bytes) -> TransferFailed:
        """Return the error of a directory that can't be made or opened."""
        shown = shown_path(self._destination, path)
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            why = "something that is no directory has this name"
            return Obstacle(Code.DESTINATION, f"can't write into {shown}: {why}", why, path)
        return tree_failure(self._destination, error, f"can't {what} {shown}", path, path)

    def close(self) -> None:
        """Close all directories but the destination."""
        self._changed.clear()
        for path, directory in self._open.items():
            if path:
                os.close(directory.fd)
        self._open.clear()


def _is_staging(fd: int, parent_fd: int) -> bool:
    """Whether an open directory is the one that the name of staging leads to."""
    try:
        staging = os.stat(STAGING, dir_fd=parent_fd, follow_symlinks=False)
    except OSError:
        return False
    return os.path.samestat(staging, os.fstat(fd))


def _let_owner_in(parent_fd: int, name: bytes) -> None:
    """Let the owner of a directory, if that is this process's user, open it; what is no directory stays as it is.

    A directory of an earlier run may have a mode under which not even its owner can open it. Raises OSError.
    """
    status = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & _TO_OPEN == _TO_OPEN:
        return
    fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
    try:
        let_owner_in(fd)  # what the descriptor has is what is changed, whatever has the name by now
    finally:
        os.close(fd)


def let_owner_in(fd: int) -> int | None:
    """Let the owner of a directory, if that is this process's user, read it and write into it. `fd` may be O_PATH.

    A directory that would hand down another group after that stays as it is. Return the mode that it had, if that was
    changed. Raises OSError where its status can't be read.
    """
    status = os.fstat(fd)
    if not is_closed_to_owner(status):
        return None
    mode = stat.S_IMODE(status.st_mode)
    try:
        os.chmod(f"/proc/self/fd/{fd}", mode | stat.S_IRWXU)
    except OSError:  # then it may be open to this process, nevertheless
        return None
    return mode


def is_closed_to_owner(status: os.stat_result) -> bool:
    """Return whether a directory belongs to this process's user, whose mode denies something, and can be changed."""
    is_own = status.st_uid == os.geteuid()
    return is_own and status.st_mode & stat.S_IRWXU != stat.S_IRWXU and not loses_setgid(status)


def _make_directory(parent_fd: int, name: bytes, mode: int) -> bool:
    """Make a directory unless the name is taken; whether it was made. Raises OSError."""
    try:
        os.mkdir(name, mode, dir_fd=parent_fd)
    except FileExistsError:
        return False
    except OSError as error:
        raise inodes.explain(error, parent_fd) from None
    return True
