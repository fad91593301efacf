"""Putting a file under a name in one step, unless something has that name (link(2), renameat2(2))."""

import contextlib
import ctypes
import errno
import os
from typing import Any, Final

_RENAME_NOREPLACE: Final = 1
_UNABLE: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)
"""What a file system says that has no hard links, or does not rename so."""

_libc: Final = ctypes.CDLL(None, use_errno=True)
_renameat2: Final[Any] = getattr(_libc, "renameat2", None)


def rename_new(source: str | bytes, name: bytes, source_fd: int, directory_fd: int) -> None:
    """Rename a file or symlink, each name relative to its directory, if nothing has the new name.

    Raises FileExistsError where something has; OSError.
    """
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
