"""A staged file that has its final mode already, opened again: that mode may deny it to its own owner.

The mode is set before the sync and the rename. A crash between them, or a rename that fails, leaves the file so.
"""

import os
from typing import Final

from receiver.disk.paths import OPEN_FLAGS
from receiver.disk.staging.lock import is_own

STAGED_MODE: Final = 0o600
"""The mode of staged bytes while they are written."""


def open_staged(name: str, flags: int, staging_fd: int) -> int:
    """Open a staged file, with the mode of one that is written where its own one denies that. Raises OSError."""
    try:
        return _open(name, flags, staging_fd)
    except PermissionError:
        _make_writable(name, staging_fd)
    return _open(name, flags, staging_fd)


def _open(name: str, flags: int, staging_fd: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK | OPEN_FLAGS, STAGED_MODE, dir_fd=staging_fd)


def _make_writable(name: str, staging_fd: int) -> None:
    """Give a file the mode of one that is written, unless it may be under its final name, too. Raises OSError."""
    fd = os.open(name, os.O_PATH | OPEN_FLAGS, dir_fd=staging_fd)
    try:
        if is_own(os.fstat(fd)):
            os.chmod(f"/proc/self/fd/{fd}", STAGED_MODE)  # fchmod(2) refuses an O_PATH descriptor
    finally:
        os.close(fd)
