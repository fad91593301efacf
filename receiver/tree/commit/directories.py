"""Directories below the destination, opened component by component without following a symlink.

On the way it shows which place each directory belongs to (`places`).
"""

import errno
import os
import stat
from collections import OrderedDict
from typing import Final, NamedTuple

from filestreamer.wire.errors import Code, TransferFailed, from_os_error
from receiver.disk import descriptors
from receiver.disk.attributes import MODE_BITS
from receiver.disk.destination import Destination, shown_path
from receiver.disk.filesystem import inodes
from receiver.disk.filesystem.sync import sync_directory
from receiver.disk.place import Place
from receiver.tree.commit.places import Places

OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Directory(NamedTuple):
    """An open directory of the destination."""

    fd: int
    is_new: bool
    """Whether this transfer made the directory: then it contains only what this transfer put there."""
    place: Place
    """The part of the destination inside which files can be renamed into this directory."""


class Directories:
    """A cache of the directories that were used last, by path. For one thread."""

    def __init__(self, destination: Destination, places: Places, *, again: bool = False) -> None:
        """With `again`, all directories were opened before by another thread: none may have become another one."""
        self._destination = destination
        self._places = places
        self._again = again
        self._most = descriptors.directories(descriptors.allowed())
        self._open: OrderedDict[bytes, Directory] = OrderedDict({b"": Directory(destination.fd, False, destination)})
        self._changed: set[bytes] = set()
        """Open directories that have to be fsynced by themselves."""

    def get(self, path: bytes, *, create: bool = False) -> Directory:
        """Open the directory at `path`, b"" being the destination; `create` makes the components that are missing.

        The descriptor is valid until the next call. Raises TransferFailed: PATH where a component is no directory,
        DESTINATION.
        """
        known = self._open.get(path)
        if known is not None:
            self._open.move_to_end(path)
            return known
        parts = path.split(b"/")
        depth = next(depth for depth in range(len(parts), -1, -1) if b"/".join(parts[:depth]) in self._open)
        directory, is_cached = self._open[b"/".join(parts[:depth])], True
        for end in range(depth + 1, len(parts) + 1):
            try:
                below = self._enter(directory, parts[:end], path, create=create)
            finally:
                if not is_cached:
                    os.close(directory.fd)
            directory, is_cached = below, False
        return self._cache(path, directory)

    def _enter(self, parent: Directory, parts: list[bytes], path: bytes, *, create: bool) -> Directory:
        """Open the last of these components of `path`. Raises TransferFailed: PATH, DESTINATION."""
        try:
            is_new = create and _make_directory(parent.fd, parts[-1], MODE_BITS)
            if is_new and parent.place.syncs_each:
                sync_directory(parent.fd)
            return self._open_directory(parent, b"/".join(parts), parts[-1], is_new=is_new)
        except OSError as error:
            shown = shown_path(self._destination, path)
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                what = f"can't write below {shown}: a component of the path is no directory"
                raise from_os_error(error, Code.PATH, what) from None
            raise from_os_error(error, Code.DESTINATION, f"can't open {shown}") from None

    def _open_directory(self, parent: Directory, path: bytes, name: bytes, *, is_new: bool) -> Directory:
        fd = descriptors.patiently(
            lambda: os.open(name, OPEN_DIRECTORY, dir_fd=parent.fd), lambda: self._shrink(1, parent.fd)
        )
        try:
            # A directory that was made just now lies on the side of its parent: that need not be looked up.
            place = parent.place if is_new else self._places.enter(path, fd, parent.place, again=self._again)
        except BaseException:
            os.close(fd)
            raise
        return Directory(fd, is_new, place)

    def _cache(self, path: bytes, directory: Directory) -> Directory:
        self._open[path] = directory
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

        The mode of the entry is set at the end of the transfer. Raises TransferFailed: PATH, DESTINATION.
        """
        parent, _, name = path.rpartition(b"/")
        above = self.get(parent, create=True)
        known = self._open.get(path)
        if known is not None:
            return known
        try:
            is_new = _make_directory(above.fd, name, mode | stat.S_IRWXU)
            if is_new:
                self.note_change(parent)
            directory = self._cache(path, self._open_directory(above, path, name, is_new=is_new))
            there = os.fstat(directory.fd)
            if there.st_mode & stat.S_IRWXU != stat.S_IRWXU and there.st_uid == os.geteuid():
                os.fchmod(directory.fd, stat.S_IMODE(there.st_mode) | stat.S_IRWXU)
        except OSError as error:
            shown = shown_path(self._destination, path)
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                reason = f"can't make the directory {shown}: something else has this name"
                raise TransferFailed(Code.DESTINATION, reason) from None
            raise from_os_error(error, Code.DESTINATION, f"can't make the directory {shown}") from None
        return directory

    def close(self) -> None:
        """Close all directories but the destination."""
        self._changed.clear()
        for path, directory in self._open.items():
            if path:
                os.close(directory.fd)
        self._open.clear()


def _make_directory(parent_fd: int, name: bytes, mode: int) -> bool:
    """Make a directory unless the name is taken; whether it was made. Raises OSError."""
    try:
        os.mkdir(name, mode, dir_fd=parent_fd)
    except FileExistsError:
        return False
    except OSError as error:
        raise inodes.explain(error, parent_fd) from None
    return True
