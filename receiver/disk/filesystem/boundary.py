"""Boundaries inside a directory tree: rename(2) moves no file from one side to the other (EXDEV).

A boundary is where a directory differs from the one above it in its `Side`: another mount (even a bind mount of the
same disk), another file system or btrfs subvolume (each has a device number of its own), another project whose
directories hand it down (XFS, ext4, f2fs), an encryption policy.
"""

import fcntl
import os
import struct
from typing import Final, NamedTuple

from filestreamer.process.mount import look_at

_GET_ATTRIBUTES: Final = 0x801C581F  # FS_IOC_FSGETXATTR
_ATTRIBUTES: Final = struct.Struct("=IIIII8x")  # flags, extent size, extents, project, extent size of copy-on-write
_HANDS_PROJECT_DOWN: Final = 0x200


class Side(NamedTuple):
    """What two directories have in common if a file can be renamed from one to the other."""

    device: int
    mount: int
    """The id of the mount, or UNKNOWN (`filestreamer.process.mount`)."""
    project: int
    """The project that new files get; 0 without one."""
    is_encrypted: bool


def side_of(fd: int) -> Side:
    """Return the side on which an open directory lies. Raises OSError."""
    mount, is_encrypted = look_at(fd)
    return Side(os.fstat(fd).st_dev, mount, _project_of(fd), is_encrypted)


def _project_of(fd: int) -> int:
    """Return the project that new files of an open directory get."""
    found = bytearray(_ATTRIBUTES.size)
    try:
        fcntl.ioctl(fd, _GET_ATTRIBUTES, found)
    except OSError:  # a file system without projects
        return 0
    flags, _, _, project, _ = _ATTRIBUTES.unpack(found)
    return project if flags & _HANDS_PROJECT_DOWN else 0
