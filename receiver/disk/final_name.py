"""The last step of a complete file: its final name, given in one step (rename(2)).

Where nothing may be replaced, the name is given only if nothing has it: by link(2), else by renameat2(2), else over an
empty file that was made for it (open(2) with O_EXCL).
"""

import contextlib
import ctypes
import errno
import os
from typing import Any, Final

from filestreamer.process.mount import mount_of

_RENAME_NOREPLACE: Final = 1
_UNABLE: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)
"""The errors of a file system that has no RENAME_NOREPLACE."""
NO_LINKS: Final = (*_UNABLE, errno.EACCES, errno.EXDEV)
"""The errors of link(2) where there are no hard links, not of this file, or no further one.

A policy of SELinux says EACCES (Android); EXDEV is said between directories by AFS, and between mounts by all.
"""

_libc: Final = ctypes.CDLL(None, use_errno=True)
_renameat2: Final[Any] = getattr(_libc, "renameat2", None)


def put_in_place(staged: str, final: bytes, staging_fd: int, directory_fd: int, *, replace: bool) -> None:
    """Give a staged file its final name. Raises OSError: FileExistsError where it may not replace what is there."""
    if replace:
        os.rename(staged, final, src_dir_fd=staging_fd, dst_dir_fd=directory_fd)
    else:
        rename_new(staged, final, staging_fd, directory_fd)


def check_replaceable(name: bytes, directory_fd: int, mount: int) -> None:
    """Check that what has a name, and is no directory, can be replaced, before bytes are sent for it in vain.

    `mount` is that of its directory (`mount_of`). Raises OSError.
    """
    # What rename(2) checks of what it replaces (permissions, a sticky directory, an immutable file) rmdir(2) checks in
    # the same way, before it finds that this is no directory.
    with contextlib.suppress(NotADirectoryError, FileNotFoundError):
        os.rmdir(name, dir_fd=directory_fd)
    if _mount_of(name, directory_fd, mount) != mount:
        raise OSError(errno.EBUSY, "something is mounted on it: unmount it, or mount its directory instead")


def _mount_of(name: bytes, directory_fd: int, otherwise: int) -> int:
    """Return the mount that what has a name lies on; `otherwise` where it is gone meanwhile."""
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    except OSError:
        return otherwise
    try:
        return mount_of(fd)
    finally:
        os.close(fd)


def rename_new(source: str | bytes, name: bytes, source_fd: int, directory_fd: int) -> None:
    """Rename a file or symlink if nothing has the new name. Each name is relative to its directory.

    Raises OSError: FileExistsError where something has the new name.
    """
    # link(2) works on nearly every file system, and refuses an existing name in the same step. A crash before the
    # unlink leaves the file under both names: staging never writes into a file that has another name.
    try:
        os.link(source, name, src_dir_fd=source_fd, dst_dir_fd=directory_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        _rename_noreplace(source, name, source_fd, directory_fd)
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(source, dir_fd=source_fd)


def _rename_noreplace(source: str | bytes, name: bytes, source_fd: int, directory_fd: int) -> None:
    if _renameat2 is None:
        _rename_over_own(source, name, source_fd, directory_fd)
    elif _renameat2(source_fd, os.fsencode(source), directory_fd, name, _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        if number not in _UNABLE:
            raise OSError(number, os.strerror(number))
        _rename_over_own(source, name, source_fd, directory_fd)


def _rename_over_own(source: str | bytes, name: bytes, source_fd: int, directory_fd: int) -> None:
    """Take a name with an empty file, which fails if something has it, and rename over that. Raises OSError.

    The last resort: a crash between the two steps leaves the empty file.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    os.close(os.open(name, flags, 0o600, dir_fd=directory_fd))
    try:
        os.rename(source, name, src_dir_fd=source_fd, dst_dir_fd=directory_fd)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=directory_fd)
        raise
