"""The destination directory: its descriptor, its staging directory, its free space, and what may be replaced in it.

Everything below it is opened relative to descriptors, and no symlink is followed.
"""

import contextlib
import errno
import os
import stat

from filestreamer.wire.errors import Code, TransferFailed, from_os_error
from receiver.disk.paths import OPEN_FLAGS, STAGING
from receiver.disk.space import SpaceLender


class Destination:
    """The directory that files go to. Its descriptor stays open as long as the process runs."""

    def __init__(
        self,
        directory: str,
        *,
        replace: bool = True,
        replace_special: bool = True,
        allow_privileged: bool = False,
        allow_delete: bool = False,
    ) -> None:
        """Open `directory`. Raises TransferFailed(DESTINATION) where it is missing or not writable."""
        self.path = directory
        self.replace = replace
        """Whether a file may take the place of an existing one."""
        self.replace_special = replace_special
        """Whether a file may take the place of an existing symlink, FIFO, socket or device."""
        self.allow_delete = allow_delete
        """Whether a sender may remove what it does not list."""
        self.allow_privileged = allow_privileged
        """Whether senders may choose owners, setuid and setgid bits, `trusted.*` and `security.*`."""
        self.space = SpaceLender()
        try:
            self.fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            if not os.access(".", os.W_OK | os.X_OK, dir_fd=self.fd):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't write into {directory}") from None

    def open_staging(self, *, create: bool) -> int:
        """Return a descriptor of the staging directory; `create` makes the directory where it is missing.

        Raises TransferFailed(DESTINATION) where the directory is not safe to use, OSError.
        """
        if create:
            with contextlib.suppress(FileExistsError):
                os.mkdir(STAGING, 0o700, dir_fd=self.fd)
        fd = os.open(STAGING, os.O_RDONLY | os.O_DIRECTORY | OPEN_FLAGS, dir_fd=self.fd)
        status = os.fstat(fd)
        problem = None
        if status.st_dev != os.fstat(self.fd).st_dev:
            # A commit is a rename, and there is none from one file system to another.
            problem = f"is on another file system than {self.path}: unmount it"
        elif status.st_uid != os.geteuid():
            problem = "belongs to another user: remove it"
        if problem:
            os.close(fd)
            raise TransferFailed(Code.DESTINATION, f"{self.path}/{STAGING} {problem}")
        make_private(fd, status, 0o022)
        return fd

    def tidy(self) -> None:
        """Remove the staging directory if it is empty."""
        with contextlib.suppress(OSError):
            os.rmdir(STAGING, dir_fd=self.fd)

    def free_bytes(self) -> int:
        """Return how many bytes may still be written here, including space that staged files have taken ahead."""
        space = os.fstatvfs(self.fd)
        return space.f_bavail * space.f_frsize + self.space.ahead_bytes()

    def check_final(self, name: bytes) -> None:
        """Check that a file may be put under this name. Raises TransferFailed (DESTINATION, EXISTS), OSError."""
        shown = shown_path(self, name)
        try:
            there = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(there.st_mode):
            raise TransferFailed(Code.DESTINATION, f"can't write {shown}: it is a directory")
        if not (self.replace_special or stat.S_ISREG(there.st_mode)):
            raise TransferFailed(Code.DESTINATION, f"can't write {shown}: it is no plain file any more")
        if not self.replace:
            raise TransferFailed(Code.EXISTS, f"{shown} exists, and --no-replace forbids replacing it")


def make_private(fd: int, status: os.stat_result, bits: int) -> None:
    """Take these mode bits from a directory of staging, which has this status. Raises OSError.

    A file system without modes refuses that: then others may do there what they may do everywhere on it.
    """
    if not status.st_mode & bits:
        return
    try:
        os.fchmod(fd, 0o700)
    except PermissionError:
        if status.st_mode & 0o022:
            raise


def shown_path(destination: Destination, path: bytes) -> str:
    """Return the full path of a file in the destination, for messages."""
    return os.path.join(destination.path, os.fsdecode(path))
