"""The last step of a complete file: its final name, given in one step (rename(2)).

Where nothing may be replaced, the name is given only if nothing has it (link(2), renameat2(2)).
"""

import contextlib
import ctypes
import errno
import os
from typing import Any, Final

_RENAME_NOREPLACE: Final = 1
_UNABLE: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)
"""The errors of a file system that has no hard links, or no RENAME_NOREPLACE."""

_libc: Final = ctypes.CDLL(None, use_errno=True)
_renameat2: Final[Any] = getattr(_libc, "renameat2", None)


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
