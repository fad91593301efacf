"""Directories below what a user names, opened step by step: no symbolic link there leads out of the tree.

A path may have come to lead elsewhere since it was looked at. So what lies below a `Root` is opened by its name,
relative to a descriptor of its directory, and that relative to its own, down from the root: a component that has become
a symbolic link is an error. The directories that were in use last stay open (`Directories`), as files come in the order
of the tree: a file costs one step, and its path may be longer than the kernel takes at once.
"""

import errno
import os
from typing import Final

_NO_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE)


class Root:
    """A directory that a user names; whatever symbolic link leads there was followed, once."""

    __slots__ = ("_identity", "fd", "path", "skip")

    def __init__(self, path: bytes, *, is_held: bool) -> None:
        """Open it; it stays open for as long as anything refers to it, if it `is_held`. Raises OSError."""
        self.fd = -1
        self.path = path
        self.skip = len(path.rstrip(b"/")) + 1
        """How many bytes of a path are not below it."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        status = os.fstat(fd)
        self._identity = (status.st_dev, status.st_ino)
        if is_held:
            self.fd = fd
        else:
            os.close(fd)

    def reopen(self) -> int:
        """Open it once more. Raises OSError, also where another directory has its name by now."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != self._identity:
            os.close(fd)
            raise OSError(errno.ENOTDIR, "another directory took its place")
        return fd

    def __del__(self) -> None:
        # Not sooner: other threads open files relative to it, and its number may be another file's next.
        if self.fd >= 0:
            os.close(self.fd)


class Directories:
    """The last directories of the path that was in use last. One thread owns it."""

    def __init__(self, most: int, access: int = os.O_PATH) -> None:
        """Keep `most` of them open, beside their root; `access` is O_RDONLY where they are to be listed."""
        self._most = most
        self._flags = access | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._root: Root | None = None
        self._below: bytes | None = None
        """Which one the last descriptor is of; None where the last step failed."""
        self._names: list[bytes] = []
        self._identities: list[tuple[int, int]] = []
        """Of the directory of each name: device and inode."""
        self._fds: list[int] = []
        """Of the root and of each name; -1 from 1 on to `_first`."""
        self._first = 1

    def get(self, root: Root, below: bytes) -> int:
        """Return the descriptor of a directory below a root (b"": of the root), until the next call. Raises OSError."""
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
        if self._first <= same or self._first > 2 * same:
            self._leave(same)
        else:
            self._climb(same)
        if self._fds[-1] < 0:
            self._leave(0)  # to go down again takes fewer steps than to climb, or climbing failed
        for name in names[len(self._names) :]:
            self._enter(name)
        self._below = below
        return self._fds[-1]

    def open(self, name: bytes, flags: int, directory_fd: int | None) -> int:
        """Open something in the directory that was asked for last. Raises OSError."""
        try:
            return os.open(name, flags, dir_fd=directory_fd)
        except OSError as error:
            if error.errno not in _NO_DESCRIPTORS or not self._give_back():
                raise
        return os.open(name, flags, dir_fd=directory_fd)

    def _enter(self, name: bytes) -> None:
        fd = self.open(name, self._flags, self._fds[-1])
        status = os.fstat(fd)
        self._fds.append(fd)
        self._names.append(name)
        self._identities.append((status.st_dev, status.st_ino))
        if len(self._fds) - self._first > self._most:
            self._close_first()

    def _climb(self, names: int) -> None:
        """Go up to a directory that is not open any more, step by step, where each is still in the one before."""
        while len(self._names) > names and self._fds[-1] >= 0:
            if self._fds[-2] < 0 and (fd := self._parent()) >= 0:
                self._fds[-2] = fd
                self._first = len(self._fds) - 2
            self._leave(len(self._names) - 1)

    def _parent(self) -> int:
        """Open the directory that the last one is in; -1 where that is another one than it was."""
        try:
            fd = self.open(b"..", self._flags, self._fds[-1])
        except OSError:
            return -1
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) == self._identities[-2]:
            return fd
        os.close(fd)
        return -1

    def _leave(self, names: int) -> None:
        """Forget all but the first names."""
        while len(self._names) > names:
            self._names.pop()
            self._identities.pop()
            if (fd := self._fds.pop()) >= 0:
                os.close(fd)
        self._first = min(self._first, len(self._fds))

    def _close_first(self) -> None:
        os.close(self._fds[self._first])
        self._fds[self._first] = -1
        self._first += 1

    def _give_back(self) -> bool:
        """Close all but the last, as there are too few descriptors; whether that were any."""
        self._most = 1
        had = self._first
        while self._first < len(self._fds) - 1:
            self._close_first()
        return self._first > had

    def close(self) -> None:
        """Release every descriptor. Idempotent."""
        self._leave(0)
        if self._root is not None and self._root.fd < 0:
            os.close(self._fds[0])
        self._root, self._below, self._fds, self._first = None, None, [], 1
