"""Locks of staged files: an flock keeps other processes away from what one process is receiving.

Only files are locked, no directories (`TreeLock`). An flock belongs to an open file, not to a name. So `lock` checks,
once it has the lock, that the file still has its name. Where the file system has no flock, the lock is a file of its
own (`filesystem.lock_file`).
"""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from typing import Final

from receiver.disk.filesystem.lock_file import LockFile
from receiver.disk.paths import LEDGER_SUFFIX, LOCK_SUFFIX, OPEN_FLAGS
from receiver.disk.place import is_ours

_UNABLE: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""The errors of a file system without flock: NFS without its lock service, and many FUSE servers."""


class Lock:
    """A lock that is held until the locked file is closed; call `release` before that."""

    def __init__(self, fd: int, name: str, directory_fd: int, lock_file: LockFile | None) -> None:
        self._fd = fd
        self._name = name
        self._directory_fd = directory_fd
        self._lock_file = lock_file

    @property
    def is_file(self) -> bool:
        """Whether a file stands for the lock, as the file system has none."""
        return self._lock_file is not None

    @property
    def is_held(self) -> bool:
        """Whether the lock still protects the name: another process may have removed our file. Raises OSError."""
        is_ours = self._lock_file is None or self._lock_file.is_held
        return is_ours and is_named(self._fd, self._name, self._directory_fd)

    def release(self) -> None:
        """Release what closing the file does not. Idempotent."""
        if self._lock_file is not None:
            self._lock_file.release()


def lock(fd: int, name: str, directory_fd: int) -> Lock:
    """Lock an open file that was found under `name`, until it is closed.

    Raises BlockingIOError where another process has the lock, FileNotFoundError where the name is another file's now.
    """
    lock_file = None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _UNABLE:
            raise
        lock_file = LockFile(name, directory_fd)
    made = Lock(fd, name, directory_fd, lock_file)
    # Another process may have removed the file between our open and our lock, and made a new one under the name. Our
    # lock would protect a file that nobody finds any more.
    if not is_named(fd, name, directory_fd):
        made.release()
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    return made


class TreeLock:
    """The lock of the staging of a tree, held until `release`.

    It is on a file in that directory: on a directory itself, NFS, SMB and FUSE lock nothing for other machines, but say
    that they do.
    """

    NAME: Final = "lock"
    NAMES: Final = (NAME, NAME + LOCK_SUFFIX)
    """What the lock has in the directory."""

    def __init__(self, tree_fd: int) -> None:
        """Lock an open directory. Raises as `lock` does."""
        self._tree_fd = tree_fd
        self._fd = os.open(self.NAME, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | OPEN_FLAGS, 0o600, dir_fd=tree_fd)
        try:
            self._lock = lock(self._fd, self.NAME, tree_fd)
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def is_file(self) -> bool:
        """Whether a file stands for the lock, as the file system has none."""
        return self._lock.is_file

    @property
    def is_held(self) -> bool:
        """Whether the lock still protects the directory. Raises OSError."""
        return self._lock.is_held

    def release(self, *, with_name: bool = False) -> None:
        """Release the lock; `with_name` removes its file, so that the directory is empty. Once."""
        try:
            if with_name and self._lock.is_held:
                os.unlink(self.NAME, dir_fd=self._tree_fd)
        finally:
            self._lock.release()
            # NFS and FUSE keep an open file that was removed under another name: it has to be closed for an rmdir.
            os.close(self._fd)


@contextlib.contextmanager
def locked(staging_fd: int, key: str) -> Iterator[tuple[int, bool]]:
    """Lock the staging of a file that no transfer has open, for the length of the block.

    Yields the descriptor of its ledger, and whether the ledger was made for this lock: such a ledger is removed again.
    Raises OSError: BlockingIOError where a transfer receives the file; where its ledger is no file.
    """
    name = key + LEDGER_SUFFIX
    flags = os.O_RDWR | os.O_NONBLOCK | OPEN_FLAGS
    try:
        fd, is_new = os.open(name, flags, dir_fd=staging_fd), False
    except FileNotFoundError:
        fd, is_new = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=staging_fd), True
    try:
        held = lock(fd, name, staging_fd)
        try:
            yield fd, is_new
        finally:
            if is_new and held.is_held:
                os.unlink(name, dir_fd=staging_fd)
            held.release()
    finally:
        os.close(fd)


def is_named(fd: int, name: str, directory_fd: int) -> bool:
    """Return whether an open file or directory still has this name; False where the name is another file's by now."""
    try:
        return os.path.samestat(os.stat(name, dir_fd=directory_fd, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False


def is_own(status: os.stat_result, staging_fd: int) -> bool:
    """Return whether this is a plain file of our own, in this directory of ours, that has no other name."""
    return has_one_name(status) and is_ours(status, staging_fd)


def has_one_name(status: os.stat_result) -> bool:
    """Return whether this is a plain file that has no other name.

    A file that has another name may be under a final name, too: a crash between link and unlink leaves it so.
    """
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1
