"""Locks of staged files: an flock keeps other processes away from what one process is receiving.

A lock belongs to an open file, not to a name. So `lock` checks, once it has the lock, that the file still has its name.
"""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator

from receiver.disk.paths import LEDGER_SUFFIX, OPEN_FLAGS


def lock(fd: int, name: str, directory_fd: int) -> None:
    """Lock an open file or directory that was found under `name`, until it is closed.

    Raises BlockingIOError where another process has the lock, FileNotFoundError where the name is another file's now.
    """
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    # Another process may have removed the file between our open and our lock, and made a new one under the name. Our
    # lock would protect a file that nobody finds any more.
    if not is_named(fd, name, directory_fd):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


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
        lock(fd, name, staging_fd)
        try:
            yield fd, is_new
        finally:
            if is_new and is_named(fd, name, staging_fd):
                os.unlink(name, dir_fd=staging_fd)
    finally:
        os.close(fd)


def is_named(fd: int, name: str, directory_fd: int) -> bool:
    """Return whether an open file or directory still has this name; False where the name is another file's by now."""
    try:
        return os.path.samestat(os.stat(name, dir_fd=directory_fd, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False


def is_own(status: os.stat_result) -> bool:
    """Return whether this is a plain file of our own user that has no other name.

    A file that has another name may be under a final name, too: a crash between link and unlink leaves it so.
    """
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_nlink == 1
