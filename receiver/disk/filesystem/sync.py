"""How files and directories become durable, by the file system that they lie on.

syncfs(2) makes all of a local file system durable in one call, and tells of a write that failed, since Linux 5.8. It
reaches no FUSE server, and not every server of a network file system; of an overlay it does not tell what failed in the
file system below. There, on any file system that is not known, and on older kernels, each file and each directory is
fsynced by itself (`syncs_each`).
"""

import ctypes
import errno
import os
from typing import Final

_SYNCED_AS_A_WHOLE: Final = frozenset(
    (
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # XFS
        0x9123683E,  # btrfs
        0xF2F52010,  # f2fs
        0xCA451A4E,  # bcachefs
        0x2FC12FC1,  # ZFS
        0x4D44,  # FAT
        0x2011BAB0,  # exFAT
        0x7366746E,  # NTFS
        0x01021994,  # tmpfs
        0x858458F6,  # ramfs
    )
)
"""File systems (`f_type` of statfs(2)) of which syncfs makes every byte durable, and tells of each that it lost."""
_REPORTS_SINCE: Final = (5, 8)
_STATFS_BYTES: Final = 256
_NO_DIRECTORY_SYNC: Final = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS)
"""What a file system says to an fsync of a directory, if its directories need none or can have none."""

_libc: Final = ctypes.CDLL(None, use_errno=True)


def sync_file_system(fd: int) -> None:
    """Make everything durable that was written to the file system of this descriptor. Raises OSError."""
    if _libc.syncfs(fd):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def sync_directory(fd: int) -> None:
    """Make the names in an open directory durable, if its file system can. Raises OSError."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise


def syncs_each(fd: int) -> bool:
    """Whether each file and directory of this file system has to be fsynced by itself."""
    return not (_reports_errors(os.uname().release) and _type_of(fd) in _SYNCED_AS_A_WHOLE)


def _type_of(fd: int) -> int:
    """Return the `f_type` of the file system of this descriptor; 0 where it can't be told."""
    found = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.fstatfs(fd, found):
        return 0
    return ctypes.c_long.from_buffer(found).value & 0xFFFFFFFF


def _reports_errors(release: str) -> bool:
    """Whether syncfs of this kernel ("5.10.0-8-amd64") tells of a write that failed."""
    numbers = release.split("-", maxsplit=1)[0].split(".")[:2]
    return all(number.isdigit() for number in numbers) and tuple(map(int, numbers)) >= _REPORTS_SINCE
