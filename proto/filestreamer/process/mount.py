"""On which mount an open file lies: a bind mount of the same disk has the same device number, and is another mount."""

import contextlib
import ctypes
import errno
import os
import struct
from typing import Any, Final

_AT_EMPTY_PATH: Final = 0x1000
_AT_STATX_DONT_SYNC: Final = 0x4000  # no question to the server of a network file system: nothing here changes
_STATX_MNT_ID: Final = 0x1000
_STATX_BYTES: Final = 256
_MASK_AND_ATTRIBUTES: Final = struct.Struct("=I4xQ")
_MOUNT_AT: Final = 144
_IS_ENCRYPTED: Final = 0x800

UNKNOWN: Final = -1
"""The id of a mount that the kernel does not tell."""

_statx: Final[Any] = getattr(ctypes.CDLL(None, use_errno=True), "statx", None)


def mount_of(fd: int) -> int:
    """Return the id of the mount of an open file; UNKNOWN where the kernel does not tell.

    `fd` may be O_PATH. Raises OSError where this process lacks descriptors or memory to ask.
    """
    return look_at(fd)[0]


def device_and_mount(fd: int) -> tuple[int, int]:
    """Return the device number of an open file, and the id of its mount; without an id, the device stands for it.

    Then a bind mount of the same file system is not told apart. Raises OSError.
    """
    device, mount = os.fstat(fd).st_dev, mount_of(fd)
    return device, device if mount == UNKNOWN else mount


def is_mounted_below(directory_fd: int, path: bytes) -> bool:
    """Return whether something is mounted on a path below an open directory, or on the way.

    False also where that can't be known. No symlink is followed, and what is mounted need not answer.
    """
    with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
        mount, at = mount_of(directory_fd), directory_fd
        for name in path.split(b"/"):
            at = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            opened.callback(os.close, at)
            if mount_of(at) != mount:
                return True
    return False


def look_at(fd: int) -> tuple[int, bool]:
    """Return the id of the mount of an open file, and whether the file is encrypted (fscrypt). Raises as `mount_of`."""
    if _statx is not None:
        found = ctypes.create_string_buffer(_STATX_BYTES)
        if _statx(fd, b"", _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC, _STATX_MNT_ID, found) == 0:
            mask, attributes = _MASK_AND_ATTRIBUTES.unpack_from(found)
            is_encrypted = bool(attributes & _IS_ENCRYPTED)
            if mask & _STATX_MNT_ID:
                return struct.unpack_from("=Q", found, _MOUNT_AT)[0], is_encrypted
            return _mount_in_proc(fd), is_encrypted
    return _mount_in_proc(fd), False


def _mount_in_proc(fd: int) -> int:
    """Return the id of the mount of a descriptor, as kernels before 5.8 tell it. Raises as `mount_of`."""
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name == "mnt_id":
                    return int(value)
    except OSError as error:
        # UNKNOWN would be taken for another mount than the one that was told before.
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
    except ValueError:
        pass
    return UNKNOWN
