"""What the kernel calls a file system (statfs(2)), and what follows from that for the space that a file takes."""

import ctypes
from typing import Final

_COMPRESSING: Final = frozenset(
    {
        0x9123683E,  # btrfs
        0x2FC12FC1,  # ZFS
        0xCA451A4E,  # bcachefs
        0xF2F52010,  # F2FS
    }
)
"""File systems that may store fewer bytes than a file has, and that write each block to a new place."""
_ELSEWHERE: Final = frozenset(
    {
        0x6969,  # NFS
        0x517B,  # SMB
        0xFE534D42,  # SMB 2
        0xFF534D42,  # CIFS
        0x65735546,  # FUSE, virtiofs
        0x01021997,  # 9P
        0x00C36400,  # Ceph
        0x0BD00BD0,  # Lustre
    }
)
"""File systems of which another machine, or another program, decides how they store a file."""
_STATFS_BYTES: Final = 256
"""More than struct statfs has. It begins with the type of the file system."""

_libc: Final = ctypes.CDLL(None, use_errno=True)
_fstatfs: Final = getattr(_libc, "fstatfs64", _libc.fstatfs)


def _kind(fd: int) -> int:
    """Return the number of the file system that an open file is on; 0 where it can't be told."""
    status = (ctypes.c_long * (_STATFS_BYTES // ctypes.sizeof(ctypes.c_long)))()
    return int(status[0]) & 0xFFFFFFFF if not _fstatfs(fd, status) else 0


def stores_every_byte(fd: int) -> bool:
    """Whether a file takes as much space as it has bytes: if not, free space does not say what fits."""
    return _kind(fd) not in _COMPRESSING | _ELSEWHERE


def writes_in_place(fd: int) -> bool:
    """Whether a block is written where space was taken for it ahead."""
    return _kind(fd) not in _COMPRESSING
