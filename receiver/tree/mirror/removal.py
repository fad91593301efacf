"""Removes a name of a directory, with all that is in it; or only tells what would be removed.

Everything is looked up from the descriptor of the directory, component by component, without following a symlink.
What is on another mount stays, and so does what the caller wants kept, and each directory that leads to such a thing.
A directory may have a mode that closes it to its owner: that is lifted while it is emptied.
"""

import contextlib
import enum
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Final

from filestreamer.process.mount import device_and_mount, is_mounted_below
from receiver.disk.paths import OPEN_FLAGS
from receiver.tree.commit.directories import is_closed_to_owner, let_owner_in

OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | OPEN_FLAGS

IsKept = Callable[[bytes, bool], bool]
"""Returns whether a path below the destination is kept; True: it is a directory."""
Remove = Callable[[int, bytes, bytes, bool], None]
"""Removes, or tells: descriptor of the directory, name, path below the destination, whether it is a directory."""
Failed = Callable[[bytes, OSError], None]
"""Told of what could not be removed: path below the destination, error."""


def unlink(directory_fd: int, name: bytes, path: bytes, is_directory: bool) -> None:
    """Remove a name; a directory has to be empty. Raises OSError."""
    del path
    if is_directory:
        os.rmdir(name, dir_fd=directory_fd)
    else:
        os.unlink(name, dir_fd=directory_fd)


class _Found(enum.Enum):
    """What became of a name."""

    GONE = enum.auto()
    STAYS = enum.auto()
    """It is kept, or can't be removed."""
    DIRECTORY = enum.auto()
    """It is a directory, which is still to be removed."""


class _Level:
    """A directory that is being removed."""

    def __init__(self, below: list[bytes]) -> None:
        self.below = below
        """Its components, from the directory where the removal began."""
        self.directories: list[bytes] | None = None
        """Directories in it that are to be removed; None: it was not looked into."""
        self.is_kept = False
        self.mode: int | None = None
        """The mode that it gets again if it stays; None: it has that."""


class Removal:
    """Removes names of one directory."""

    def __init__(
        self, fd: int, path: bytes, *, is_kept: IsKept, remove: Remove, failed: Failed, is_dry: bool = False
    ) -> None:
        """`fd` is the open directory at `path`, below the destination. `is_dry`: `remove` only tells."""
        self._fd = fd
        self._path = path
        self._device_and_mount = device_and_mount(fd)
        self._is_kept = is_kept
        self._remove = remove
        self._failed = failed
        self._is_dry = is_dry

    def remove(self, name: bytes) -> Iterator[None]:
        """Remove a name of the directory, with all that is in it, but for what is kept; yield after each step."""
        # Not recursive: a tree may be deeper than the stack, and than a process may have open files.
        levels: list[_Level] = []
        if self._remove_unless_directory(self._fd, [name]) is _Found.DIRECTORY:
            levels.append(_Level([name]))
        while levels:
            yield
            level = levels[-1]
            if level.directories is None:
                yield from self._empty(level)
                assert level.directories is not None
            if level.directories:
                levels.append(_Level([*level.below, level.directories.pop()]))
                continue
            levels.pop()
            if not level.is_kept:
                level.is_kept = not self._remove_directory(level.below)
            if level.is_kept:
                self._set_mode_again(level)
                if levels:
                    levels[-1].is_kept = True

    def _remove_unless_directory(self, directory_fd: int, below: list[bytes]) -> _Found:
        """Remove a name that is no directory, unless it is kept."""
        path = self._full(below)
        try:
            is_directory = stat.S_ISDIR(os.stat(below[-1], dir_fd=directory_fd, follow_symlinks=False).st_mode)
            if self._is_kept(path, is_directory):
                return _Found.STAYS
            if is_directory:
                return _Found.DIRECTORY
            self._remove(directory_fd, below[-1], path, False)
        except FileNotFoundError:
            pass
        except OSError as error:
            # Busy: a mount point. One whose file system is gone can't even be looked at.
            if error.errno != errno.EBUSY and not is_mounted_below(directory_fd, below[-1]):
                self._failed(path, error)
            return _Found.STAYS
        return _Found.GONE

    def _empty(self, level: _Level) -> Iterator[None]:
        """Remove what is in a directory, but for the directories in it; yield after each name."""
        level.directories = []
        try:
            with self._opened(level.below) as path_fd:
                if device_and_mount(path_fd) != self._device_and_mount:
                    level.is_kept = True
                    return
                if not self._is_dry:
                    level.mode = let_owner_in(path_fd)
                elif _hides_names(path_fd):
                    return  # only the directory itself is told: what is in it shows when `let_owner_in` has opened it
                with opened(path_fd, [b"."]) as fd:
                    names = list(map(os.fsencode, os.listdir(fd)))
                for name in names:
                    found = self._remove_unless_directory(path_fd, [*level.below, name])
                    if found is _Found.DIRECTORY:
                        level.directories.append(name)
                    level.is_kept = level.is_kept or found is _Found.STAYS
                    yield
        except FileNotFoundError:
            pass
        except OSError as error:
            level.is_kept = True
            self._failed(self._full(level.below), error)

    def _remove_directory(self, below: list[bytes]) -> bool:
        """Remove a directory that should be empty by now; return whether it is gone."""
        path = self._full(below)
        try:
            with self._opened(below[:-1]) as fd:
                self._remove(fd, below[-1], path, True)
        except FileNotFoundError:
            pass
        except OSError as error:
            # Not empty: something in it is kept, was told before, or was put there meanwhile. Busy: a mount point.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
                self._failed(path, error)
            return False
        return True

    def _set_mode_again(self, level: _Level) -> None:
        """Give a directory that stays the mode that it had."""
        if level.mode is not None:
            with contextlib.suppress(OSError), self._opened(level.below) as fd:
                os.chmod(f"/proc/self/fd/{fd}", level.mode)

    def _full(self, below: list[bytes]) -> bytes:
        return b"/".join([self._path, *below] if self._path else below)

    def _opened(self, below: list[bytes]) -> contextlib.AbstractContextManager[int]:
        """Open a directory below as O_PATH, for which no mode has to let this process in. Raises OSError."""
        return opened(self._fd, below, os.O_PATH)


def _hides_names(fd: int) -> bool:
    """Return whether a directory, which may be open as O_PATH, can't be listed until `let_owner_in` has opened it."""
    if not is_closed_to_owner(os.fstat(fd)):
        return False
    return not os.access(".", os.R_OK | os.X_OK, dir_fd=fd, effective_ids=os.access in os.supports_effective_ids)


@contextlib.contextmanager
def opened(fd: int, components: list[bytes], flags: int = 0) -> Iterator[int]:
    """Open a directory by its components, without following a symlink, for the length of the block. Raises OSError."""
    at, is_own = fd, False
    try:
        for name in components:
            below = os.open(name, OPEN_DIRECTORY | flags, dir_fd=at)
            if is_own:
                os.close(at)
            at, is_own = below, True
        yield at
    finally:
        if is_own:
            os.close(at)
