"""Opens directories below those that the user names, step by step: no symbolic link leads out of the tree.

A path may lead elsewhere by the time that it is opened. So each directory below a `Root` is opened by its name,
relative to the descriptor of its parent, down from the root: a component that has become a symbolic link is an error.
`Directories` keeps those open that were used last. Files come in the order of the tree, so most of them take one step,
and a path may be longer than the kernel takes in one call.
"""

import errno
import os
from typing import Final

from sender.source.file_systems import has_stable_inodes

_NO_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE)


class Root:
    """A directory that the user names. If its path leads through symbolic links, they are followed once."""

    __slots__ = ("_identity", "fd", "follows", "path", "skip")

    def __init__(self, path: bytes, *, is_held: bool, follows: bool = False) -> None:
        """Open it. If `is_held`, it stays open for as long as anything refers to this object. Raises OSError.

        If `follows`, symbolic links below it are followed (--dereference): they may lead out of the tree.
        """
        self.follows = follows
        self.fd = -1
        """Its descriptor; -1 where it is not held."""
        self.path = path
        self.skip = len(path.rstrip(b"/")) + 1
        """How many bytes of a path come before the part that is below the root."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        status = os.fstat(fd)
        self._identity = (status.st_dev, status.st_ino)
        if is_held:
            self.fd = fd
        else:
            os.close(fd)

    def reopen(self) -> int:
        """Open it again; return the descriptor. Raises OSError, also where another directory has its path by now."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != self._identity and has_stable_inodes(self._identity[0]):
            os.close(fd)
            raise OSError(errno.ENOTDIR, "another directory took its place")
        return fd

    def __del__(self) -> None:
        # Not closed before: other threads open files relative to the descriptor, and once it is closed the kernel may
        # give its number to another file.
        if self.fd >= 0:
            os.close(self.fd)


class Directories:
    """A chain of open directories: the last ones on the way to the directory that was used last. One thread owns it.

    Of a deep path only the last directories stay open. The names and identities of the others are kept, so that `get`
    can climb back by "..", and check that it arrives at the same directory.
    """

    def __init__(self, most: int, access: int = os.O_PATH) -> None:
        """Keep `most` directories open, beside the root. `access` is O_RDONLY where they are to be listed."""
        self._most = most
        self._flags = access | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._root: Root | None = None
        self._below: bytes | None = None
        """The path below the root of the directory that `get` returned last; None where it failed."""
        self._names: list[bytes] = []
        """The components of the chain."""
        self._identities: list[tuple[int, int]] = []
        """Device and inode of the directory of each name."""
        self._fds: list[int] = []
        """Descriptors of the root, and of the directory of each name; those in [1, _first_open) are -1: closed."""
        self._first_open = 1

    def get(self, root: Root, below: bytes) -> int:
        """Return the descriptor of a directory below a root; b"" is the root. It is valid until the next call.

        Raises OSError.
        """
        if root is self._root and below == self._below:
            return self._fds[-1]
        self._below = None
        if root is not self._root:
            self.close()
            self._fds = [root.fd if root.fd >= 0 else root.reopen()]
            self._root = root
        names = below.split(b"/") if below else []
        same = 0
        for name, known in zip(names, self._names, strict=False):
            if name != known:
                break
            same += 1
        # To climb to a closed directory takes a step for each level up to it; to go down again, one for each level
        # from the root.
        if self._first_open <= same or self._first_open > 2 * same:
            self._shorten(same)
        else:
            self._climb(same)
        if self._fds[-1] < 0:
            self._shorten(0)
        for name in names[len(self._names) :]:
            self._enter(name)
        self._below = below
        return self._fds[-1]

    def open(self, name: bytes, flags: int, directory_fd: int | None) -> int:
        """Open a file in the directory that `get` returned last. Raises OSError."""
        try:
            return os.open(name, flags, dir_fd=directory_fd)
        except OSError as error:
            if error.errno not in _NO_DESCRIPTORS or not self._close_spare():
                raise
        return os.open(name, flags, dir_fd=directory_fd)

    def _enter(self, name: bytes) -> None:
        """Go down one level."""
        follows = self._root is not None and self._root.follows
        fd = self.open(name, self._flags & ~os.O_NOFOLLOW if follows else self._flags, self._fds[-1])
        status = os.fstat(fd)
        self._fds.append(fd)
        self._names.append(name)
        self._identities.append((status.st_dev, status.st_ino))
        if len(self._fds) - self._first_open > self._most:
            self._close_first()

    def _climb(self, names: int) -> None:
        """Go up to the first `names` components, step by step, as long as each directory is still in its parent."""
        while len(self._names) > names and self._fds[-1] >= 0:
            if self._fds[-2] < 0 and (fd := self._open_parent()) >= 0:
                self._fds[-2] = fd
                self._first_open = len(self._fds) - 2
            self._shorten(len(self._names) - 1)

    def _open_parent(self) -> int:
        """Open the parent of the last directory; return -1 where it is not the directory that it was."""
        try:
            fd = self.open(b"..", self._flags, self._fds[-1])
        except OSError:
            return -1
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) == self._identities[-2]:
            return fd
        os.close(fd)
        return -1

    def _shorten(self, names: int) -> None:
        """Forget all but the first `names` components."""
        while len(self._names) > names:
            self._names.pop()
            self._identities.pop()
            if (fd := self._fds.pop()) >= 0:
                os.close(fd)
        self._first_open = min(self._first_open, len(self._fds))

    def _close_first(self) -> None:
        os.close(self._fds[self._first_open])
        self._fds[self._first_open] = -1
        self._first_open += 1

    def _close_spare(self) -> bool:
        """Close all but the last, as this process has too many open files; return whether any was closed."""
        self._most = 1
        had = self._first_open
        while self._first_open < len(self._fds) - 1:
            self._close_first()
        return self._first_open > had

    def close(self) -> None:
        """Close every descriptor. Idempotent."""
        self._shorten(0)
        if self._root is not None and self._root.fd < 0:
            os.close(self._fds[0])
        self._root, self._below, self._fds, self._first_open = None, None, [], 1
