"""The last steps of a complete file: owner, mode and times, then the final name in one step (rename(2)).

Where nothing may be replaced, the name is given only if nothing has it (link(2), renameat2(2)).
"""

import contextlib
import ctypes
import errno
import os
from typing import Any, Final

from filestreamer.wire.messages import Entry

MODE_BITS: Final = 0o777
"""The bits of a sender's mode that are applied: without setuid, setgid and sticky."""
_RENAME_NOREPLACE: Final = 1
_UNABLE: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)
"""The errors of a file system that has no hard links, or no RENAME_NOREPLACE."""

_libc: Final = ctypes.CDLL(None, use_errno=True)
_renameat2: Final[Any] = getattr(_libc, "renameat2", None)


def owner(entry: Entry) -> tuple[int, int]:
    """Return the (uid, gid) that an entry asks for; -1 leaves the one that the file has."""
    return (-1 if entry.uid is None else entry.uid, -1 if entry.gid is None else entry.gid)


def put_attributes(fd: int, entry: Entry, *, mode_is_right: bool = False) -> None:
    """Give an open file or directory the owner, mode and times of its entry. Raises OSError.

    `mode_is_right` saves a call where the file was created with its mode.
    """
    if owner(entry) != (-1, -1):
        os.fchown(fd, *owner(entry))
        mode_is_right = False  # chown(2) may change mode bits
    if not mode_is_right:
        os.fchmod(fd, entry.mode & MODE_BITS)
    os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))


def put_in_place(staged: str, final: bytes, staging_fd: int, directory_fd: int, *, replace: bool) -> None:
    """Give a staged file its final name. Raises OSError: FileExistsError where it may not replace what is there."""
    if replace:
        os.rename(staged, final, src_dir_fd=staging_fd, dst_dir_fd=directory_fd)
    else:
        rename_new(staged, final, staging_fd, directory_fd)


def rename_new(source: str | bytes, name: bytes, source_fd: int, directory_fd: int) -> None:
    """Rename a file or symlink if nothing has the new name. Each name is relative to its directory.

    Raises OSError: FileExistsError where something has the new name.
    """
    # link(2) works on nearly every file system, and refuses an existing name in the same step. A crash before the
    # unlink leaves the file under both names: staging never writes into a file that has another name.
    try:
        os.link(source, name, src_dir_fd=source_fd, dst_dir_fd=directory_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _UNABLE:
            raise
        _rename_noreplace(source, name, source_fd, directory_fd, error)
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(source, dir_fd=source_fd)


def _rename_noreplace(
    source: str | bytes, name: bytes, source_fd: int, directory_fd: int, why_not_linked: OSError
) -> None:
    if _renameat2 is None:
        raise why_not_linked
    if _renameat2(source_fd, os.fsencode(source), directory_fd, name, _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        if number in _UNABLE:
            raise why_not_linked
        raise OSError(number, os.strerror(number))
