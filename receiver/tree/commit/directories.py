"""Directories below the destination, opened component by component without following a symlink."""

import contextlib
import errno
import os
import stat
from collections import OrderedDict
from typing import Final, NamedTuple

from filestreamer.wire.errors import Code
from receiver.disk import descriptors
from receiver.disk.attributes import MODE_BITS
from receiver.disk.destination import Destination, shown_path
from receiver.disk.obstacles import Obstacle, failure

OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Directory(NamedTuple):
    """An open directory of the destination."""

    fd: int
    is_new: bool
    """Whether this transfer made the directory: then it contains only what this transfer put there."""
    is_writable: bool = True
    """Whether names in it may be made and replaced, as far as its mode and flags say."""


class Directories:
    """A cache of the directories that were used last, by path. For one thread."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._device = os.fstat(destination.fd).st_dev
        self._most = descriptors.directories(descriptors.allowed())
        self._open: OrderedDict[bytes, Directory] = OrderedDict({b"": Directory(destination.fd, False)})

    def get(self, path: bytes, *, create: bool = False) -> Directory:
        """Open the directory at `path`, b"" being the destination; `create` makes the components that are missing.

        The descriptor is valid until the next call. Raises Obstacle where a component can't be opened or made,
        TransferFailed(DESTINATION).
        """
        known = self._open.get(path)
        if known is not None:
            self._open.move_to_end(path)
            return known
        parts = path.split(b"/")
        depth = next(depth for depth in range(len(parts), -1, -1) if b"/".join(parts[:depth]) in self._open)
        directory, is_cached = self._open[b"/".join(parts[:depth])], True
        for at in range(depth, len(parts)):
            try:
                below = self._enter(directory, parts[at], b"/".join(parts[: at + 1]), create=create)
            finally:
                if not is_cached:
                    os.close(directory.fd)
            directory, is_cached = below, False
        return self._cache(path, directory)

    def _enter(self, parent: Directory, name: bytes, path: bytes, *, create: bool) -> Directory:
        """Open the last component of `path`. Raises as `get` does."""
        try:
            is_new = create and _make_directory(parent.fd, name, MODE_BITS)
            return self._open_directory(parent.fd, name, is_new=is_new)
        except OSError as error:
            shown = shown_path(self._destination, path)
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise _no_directory(shown, path) from None
            raise failure(error, f"can't open {shown}", path) from None

    def _open_directory(self, parent_fd: int, name: bytes, *, is_new: bool) -> Directory:
        fd = os.open(name, OPEN_DIRECTORY, dir_fd=parent_fd)
        # A file is staged in the destination's own file system, and can't be renamed into another one.
        if os.fstat(fd).st_dev != self._device:
            os.close(fd)
            raise OSError(errno.EXDEV, "it is on another file system than the destination")
        return Directory(fd, is_new, is_new or _may_write(fd))

    def _cache(self, path: bytes, directory: Directory) -> Directory:
        self._open[path] = directory
        while len(self._open) > self._most:
            oldest = next(key for key in self._open if key and key != path)
            os.close(self._open.pop(oldest).fd)
        return directory

    def make(self, path: bytes, mode: int) -> Directory:
        """Make the directory at `path`, or take the one that is there, and let its owner write into it.

        The mode of the entry is set at the end of the transfer. Raises as `get` does.
        """
        parent, _, name = path.rpartition(b"/")
        above = self.get(parent, create=True)
        known = self._open.get(path)
        if known is not None:
            return known
        try:
            is_new = _make_directory(above.fd, name, mode | stat.S_IRWXU)
            directory = self._cache(path, self._open_directory(above.fd, name, is_new=is_new))
            there = os.fstat(directory.fd)
            if there.st_mode & stat.S_IRWXU != stat.S_IRWXU and there.st_uid == os.geteuid():
                # A file system that refuses this may still let this process write: that shows with the first entry.
                with contextlib.suppress(OSError):
                    os.fchmod(directory.fd, stat.S_IMODE(there.st_mode) | stat.S_IRWXU)
                directory = self._cache(path, directory._replace(is_writable=is_new or _may_write(directory.fd)))
        except OSError as error:
            shown = shown_path(self._destination, path)
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise _no_directory(shown, path) from None
            raise failure(error, f"can't make the directory {shown}", path) from None
        return directory

    def close(self) -> None:
        """Close all directories but the destination."""
        for path, directory in self._open.items():
            if path:
                os.close(directory.fd)
        self._open.clear()


def _no_directory(shown: str, path: bytes) -> Obstacle:
    why = "something that is no directory has this name"
    return Obstacle(Code.DESTINATION, f"can't write into {shown}: {why}", why, path)


def _may_write(fd: int) -> bool:
    """Whether this process may make names in a directory. Raises OSError where the file system is read-only."""
    if os.access(".", os.W_OK | os.X_OK, dir_fd=fd, effective_ids=os.access in os.supports_effective_ids):
        return True
    if os.fstatvfs(fd).f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    return False


def _make_directory(parent_fd: int, name: bytes, mode: int) -> bool:
    """Make a directory unless the name is taken; whether it was made. Raises OSError."""
    try:
        os.mkdir(name, mode, dir_fd=parent_fd)
    except FileExistsError:
        return False
    return True
