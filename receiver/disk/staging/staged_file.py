"""A staged file that has its final owner and mode already, opened again: these may deny it to us.

They are set before the sync and the rename. A crash between them, or a rename that fails, leaves the file so.
"""

import os
from typing import Final

from receiver.disk.paths import OPEN_FLAGS
from receiver.disk.staging.lock import has_one_name

STAGED_MODE: Final = 0o600
"""The mode of staged bytes while they are written."""


def open_staged(name: str, flags: int, staging_fd: int) -> int:
    """Open a staged file; take it back where its owner or mode denies that. Raises OSError."""
    try:
        return _open(name, flags, staging_fd)
    except PermissionError as error:
        try:
            _take_back_named(name, staging_fd)
        except FileNotFoundError:
            raise error from None  # it is to be made, and the directory is what denies that
    return _open(name, flags, staging_fd)


def _open(name: str, flags: int, staging_fd: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK | OPEN_FLAGS, STAGED_MODE, dir_fd=staging_fd)


def _take_back_named(name: str, staging_fd: int) -> None:
    """Take a file back, unless it may be under its final name, too. Raises OSError."""
    fd = os.open(name, os.O_PATH | OPEN_FLAGS, dir_fd=staging_fd)
    try:
        if has_one_name(os.fstat(fd)):
            take_back(f"/proc/self/fd/{fd}")  # chmod(2) and chown(2) refuse an O_PATH descriptor itself
    finally:
        os.close(fd)


def take_back(this: int | str, gid: int = -1) -> None:
    """Make a staged file ours alone again, by its descriptor or path; its group stays without `gid`. Raises OSError."""
    os.chmod(this, STAGED_MODE)  # first: setuid is for the owner that it had
    os.chown(this, os.geteuid(), gid)
