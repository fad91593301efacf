"""The destination directory: the place at the top, what may be replaced in it, and whether it is still at its path.

Everything below it is opened relative to descriptors, and no symlink is followed.

A receiver follows the path that its user gave: each transfer goes to the directory that the path leads to when the
transfer begins (`at_path`). Where it leads elsewhere when files are put in place, the transfer fails (`check_path`):
"complete" must mean that the files are where the user looks for them.
"""

import contextlib
import errno
import os
import stat
from typing import Final

from filestreamer.process.mount import is_mounted_below
from filestreamer.wire.errors import Code, TransferFailed, from_os_error
from receiver.disk.descriptors import patiently
from receiver.disk.filesystem import inodes
from receiver.disk.filesystem.sync import sync_directory
from receiver.disk.final_name import check_replaceable
from receiver.disk.obstacles import BROKEN, Obstacle, failure
from receiver.disk.paths import OPEN_FLAGS
from receiver.disk.place import Place

_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Destination(Place):
    """The directory that files go to."""

    def __init__(
        self,
        directory: str,
        *,
        replace: bool = True,
        replace_special: bool = True,
        allow_privileged: bool = False,
        allow_delete: bool = False,
        may_be_link: bool = True,
        may_make: bool = False,
    ) -> None:
        """Open `directory`. Raises TransferFailed(DESTINATION) where it is missing or not writable.

        Without `may_be_link` the directory itself may be no symlink. With `may_make` it is made where it is missing.
        """
        self.replace = replace
        """Whether a file may take the place of an existing one."""
        self.replace_special = replace_special
        """Whether a file may take the place of an existing symlink, FIFO, socket or device."""
        self.allow_privileged = allow_privileged
        """Whether senders may choose owners, setuid and setgid bits, `trusted.*` and `security.*`."""
        self.allow_delete = allow_delete
        """Whether a sender may remove what it does not list."""
        try:
            self._absolute = _absolute(directory)
            # A symlink that takes the place of the directory later was not the user's wish: it may lead anywhere.
            self._is_link = may_be_link and os.path.islink(self._absolute)
            self._no_follow = 0 if self._is_link else os.O_NOFOLLOW
            self._may_make = may_make
            if may_make:
                _make(self._absolute)
            fd = patiently(lambda: os.open(self._absolute, _OPEN | self._no_follow))
            try:
                _check_writable(fd)
            except BaseException:
                os.close(fd)
                raise
            super().__init__(fd, directory, b"")
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't write into {directory}") from None

    # --- the path

    def at_path(self) -> "Destination":
        """Return the directory that has the path of this one now: this one, or another. Raises as `__init__` does."""
        if self._has_path():
            return self
        moved = self._another(self._absolute, may_be_link=self._is_link, may_make=self._may_make)
        moved.path, moved.tell = self.path, self.tell
        return moved

    def subdirectory(self, name: str) -> "Destination":
        """Return the directory of this name in this one, which is made where it is missing. Raises as `__init__` does.

        It may be no symlink: that would lead out of this one.
        """
        found = self._another(os.path.join(self._absolute, name), may_be_link=False, may_make=True)
        found.path = os.path.join(self.path, name)
        return found

    def _another(self, path: str, *, may_be_link: bool, may_make: bool) -> "Destination":
        return Destination(
            path,
            replace=self.replace,
            replace_special=self.replace_special,
            allow_privileged=self.allow_privileged,
            allow_delete=self.allow_delete,
            may_be_link=may_be_link,
            may_make=may_make,
        )

    def free_bytes_at_path(self) -> int:
        """Return how many bytes are free, for people: as df says, without the reserve of a file system that root has.

        Raises OSError, TransferFailed(DESTINATION).
        """
        place = self.at_path()
        space = os.fstatvfs(place.fd)
        return space.f_bavail * space.f_frsize + place.space.ahead_bytes()

    def check_path(self) -> None:
        """Check that this directory still has its path. Raises TransferFailed: DESTINATION, LIMIT."""
        if not self._has_path():
            reason = "was moved, removed or mounted over during the transfer: run the same command again"
            raise TransferFailed(Code.DESTINATION, f"the directory {self.path} {reason}")

    def _has_path(self) -> bool:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | self._no_follow
        return self.is_at(lambda: patiently(lambda: os.open(self._absolute, flags)))

    # --- names

    def check_final(self, name: bytes) -> None:
        """Check that a file may and can be put under this name. Raises TransferFailed: DESTINATION, EXISTS, LIMIT."""
        shown = shown_path(self, name)
        try:
            there = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
            if stat.S_ISDIR(there.st_mode):
                raise TransferFailed(Code.DESTINATION, f"can't write {shown}: it is a directory")
            if not (self.replace_special or stat.S_ISREG(there.st_mode)):
                raise TransferFailed(Code.DESTINATION, f"can't write {shown}: it is no plain file any more")
            if not self.replace:
                raise TransferFailed(Code.EXISTS, f"{shown} exists, and --no-replace forbids replacing it")
            check_replaceable(name, self.fd, self.side.mount)
        except FileNotFoundError:
            return
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't write {shown}") from None


def shown_path(place: Place, path: bytes) -> str:
    """Return the full path of a file, for messages; `path` is relative to the place, or to the whole destination."""
    return os.path.join(place.path, os.fsdecode(path))


def open_directory(place: Place, path: bytes) -> int:
    """Open a directory below a place, component by component, and follow no symlink. Raises OSError."""
    fd = place.fd
    for part in path.split(b"/"):
        try:
            above = fd
            below = patiently(lambda part=part, above=above: os.open(part, _OPEN | OPEN_FLAGS, dir_fd=above))  # type: ignore[misc]
        finally:
            if fd != place.fd:
                os.close(fd)
        fd = below
    return fd


def _absolute(directory: str) -> str:
    """Return the path that is followed, even if the working directory of this process is moved meanwhile."""
    try:
        return os.path.abspath(directory)
    except FileNotFoundError:  # the working directory was removed
        return directory


def _make(directory: str) -> None:
    """Make a directory where nothing has its path, and make its name durable. Raises OSError."""
    try:
        os.mkdir(directory)
    except FileExistsError:
        return
    fd = os.open(os.path.dirname(directory), _OPEN)
    try:
        sync_directory(fd)
    finally:
        os.close(fd)


def is_read_only(fd: int) -> bool:
    """Whether nothing can be changed through an open directory, as its file system or its mount is read-only."""
    return bool(os.fstatvfs(fd).f_flag & os.ST_RDONLY)


def tree_failure(
    place: Place, error: OSError, what: str, path: bytes, directory: bytes | None = None
) -> TransferFailed:
    """Return the error for an OSError at a path below a destination, as `failure` does.

    What is mounted below it may be read-only, damaged or gone, and the destination is not: that is an obstacle, too.
    """
    error = inodes.explain(error, place.fd)
    if error.errno in BROKEN:
        is_of_mount = is_mounted_below(place.fd, path)
    else:
        is_of_mount = error.errno == errno.EROFS and not is_read_only(place.fd) and _is_read_only_at(place, path)
    if is_of_mount:
        failed = from_os_error(error, Code.DESTINATION, what)
        return Obstacle(failed.code, failed.reason, error.strerror or str(error), directory)
    return failure(error, what, directory)


def _is_read_only_at(place: Place, path: bytes) -> bool:
    """Whether the directory that a path leads to, or what has the path, is mounted read-only."""
    parent, _, name = path.rpartition(b"/")
    with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
        parent_fd = place.fd
        if parent:
            parent_fd = open_directory(place, parent)
            opened.callback(os.close, parent_fd)
        if is_read_only(parent_fd):
            return True
        fd = os.open(name, os.O_PATH | OPEN_FLAGS, dir_fd=parent_fd)
        opened.callback(os.close, fd)
        return is_read_only(fd)
    return False


def _check_writable(fd: int) -> None:
    if is_read_only(fd):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    if not os.access(".", os.W_OK | os.X_OK, dir_fd=fd):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
