"""Boundaries inside a directory tree: rename(2) moves no file from one side to the other (EXDEV).

A boundary is where a directory differs from the one above it in its `Side`: another mount (even a bind mount of the
same disk), another file system or btrfs subvolume (each has a device number of its own), another project whose
directories hand it down (XFS, ext4, f2fs), an encryption policy.
"""

import ctypes
import fcntl
import os
import struct
from typing import Any, Final, NamedTuple

_AT_EMPTY_PATH: Final = 0x1000
_STATX_MNT_ID: Final = 0x1000
_STATX_BYTES: Final = 256
_MASK_AND_ATTRIBUTES: Final = struct.Struct("=I4xQ")
_MOUNT_AT: Final = 144
_IS_ENCRYPTED: Final = 0x800
_GET_ATTRIBUTES: Final = 0x801C581F  # FS_IOC_FSGETXATTR
_ATTRIBUTES: Final = struct.Struct("=IIIII8x")  # flags, extent size, extents, project, extent size of copy-on-write
_HANDS_PROJECT_DOWN: Final = 0x200

_libc: Final = ctypes.CDLL(None, use_errno=True)
_statx: Final[Any] = getattr(_libc, "statx", None)


class Side(NamedTuple):
    """What two directories have in common if a file can be renamed from one to the other."""

    device: int
    mount: int
    """The id of the mount; -1 where the kernel does not tell."""
    project: int
    """The project that new files get; 0 without one."""
    is_encrypted: bool


def side_of(fd: int) -> Side:
    """Return the side on which an open directory lies. Raises OSError."""
    mount, is_encrypted = _look_at(fd)
    return Side(os.fstat(fd).st_dev, mount, _project_of(fd), is_encrypted)


def mount_of(fd: int) -> int:
    """Return the id of the mount of an open directory; -1 where the kernel does not tell. `fd` may be O_PATH."""
    return _look_at(fd)[0]


def _look_at(fd: int) -> tuple[int, bool]:
    """Return the id of the mount of an open directory, and whether the directory is encrypted."""
    if _statx is not None:
        found = ctypes.create_string_buffer(_STATX_BYTES)
        if _statx(fd, b"", _AT_EMPTY_PATH, _STATX_MNT_ID, found) == 0:
            mask, attributes = _MASK_AND_ATTRIBUTES.unpack_from(found)
            is_encrypted = bool(attributes & _IS_ENCRYPTED)
            if mask & _STATX_MNT_ID:
                return struct.unpack_from("=Q", found, _MOUNT_AT)[0], is_encrypted
            return _mount_in_proc(fd), is_encrypted
    return _mount_in_proc(fd), False


def _mount_in_proc(fd: int) -> int:
    """Return the id of the mount of a descriptor, as kernels before 5.8 tell it; -1 without /proc."""
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name == "mnt_id":
                    return int(value)
    except (OSError, ValueError):
        pass
    return -1


def _project_of(fd: int) -> int:
    """Return the project that new files of an open directory get."""
    found = bytearray(_ATTRIBUTES.size)
    try:
        fcntl.ioctl(fd, _GET_ATTRIBUTES, found)
    except OSError:  # a file system without projects
        return 0
    flags, _, _, project, _ = _ATTRIBUTES.unpack(found)
    return project if flags & _HANDS_PROJECT_DOWN else 0
