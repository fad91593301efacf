"""What a new file gets from the directory that it is made in, and how a staged file gets it from its final directory.

A directory may hand down a group (setgid), an ACL, a project, flags (compression, no copy on write, ...), a layout, an
encryption policy. Much of that can't be given to a file afterwards. So a file whose final directory hands down
something else than its staging is made in the final directory, without a name, and linked into staging: it keeps what
it got. Where nothing differs, which is nearly everywhere, files are made in staging.
"""

import contextlib
import errno
import fcntl
import os
import stat
import struct
from typing import Final

from receiver.disk.obstacles import BROKEN
from receiver.disk.paths import momentary_name

_GETFLAGS: Final = 0x80086601
_FSGETXATTR: Final = 0x801C581F
_FSSETXATTR: Final = 0x401C5820
_FSX: Final = struct.Struct("=IIIII8x")
"""struct fsxattr: flags, extent size, extents, project, copy-on-write extent size."""
_FLAGS: Final = 0x22804CCF
"""Flags of FS_IOC_GETFLAGS that files get: secrm, unrm, compr, sync, nodump, noatime, nocomp, encrypt, journal_data,
nocow, dax, projinherit."""
_PROJECT: Final = 0x200
_EXTENT_SIZE: Final = 0x1000
_COW_EXTENT_SIZE: Final = 0x10000
_XFLAGS: Final = 0x100 | _PROJECT | _EXTENT_SIZE | 0x2000 | 0x8000 | _COW_EXTENT_SIZE
"""Flags of FS_IOC_FSGETXATTR that files get: realtime, project, extent sizes, nodefrag, dax."""
_XATTRS: Final = ("system.posix_acl_default", "btrfs.compression", "lustre.lov", "trusted.lov")
"""Extended attributes of a directory that say what its files get."""
_FATAL: Final = BROKEN | {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM}

HandedDown = tuple[object, ...]


def handed_down(directory_fd: int) -> HandedDown:
    """Return what a directory hands down to the files that are made in it; () for nothing. To be compared only."""
    found: list[object] = []
    status = os.fstat(directory_fd)
    if status.st_mode & stat.S_ISGID:
        found.append(("group", status.st_gid))
    with contextlib.suppress(OSError):
        for name in os.listxattr(directory_fd):
            if name in _XATTRS:
                found.append((name, os.getxattr(directory_fd, name)))
    with contextlib.suppress(OSError):
        (flags,) = struct.unpack("=Q", fcntl.ioctl(directory_fd, _GETFLAGS, bytes(8)))
        if flags & _FLAGS:
            found.append(("flags", flags & _FLAGS))
    with contextlib.suppress(OSError):
        flags, extent_bytes, _, project, cow_extent_bytes = _FSX.unpack(
            fcntl.ioctl(directory_fd, _FSGETXATTR, bytes(_FSX.size))
        )
        if flags & _XFLAGS:
            found.append(
                (
                    flags & _XFLAGS,
                    project if flags & _PROJECT else 0,
                    extent_bytes if flags & _EXTENT_SIZE else 0,
                    cow_extent_bytes if flags & _COW_EXTENT_SIZE else 0,
                )
            )
    return tuple(found)


def create_as_in(directory_fd: int, staging_fd: int, name: str) -> int | None:
    """Make a file in staging as a new one of another directory is, if that hands down something else than staging.

    Return its descriptor; None where it need not, or can't be made so. Raises OSError.
    """
    if handed_down(directory_fd) == handed_down(staging_fd):
        return None
    return create_like(directory_fd, staging_fd, name, name)


def create_like(directory_fd: int, staging_fd: int, name: str, key: str) -> int | None:
    """Make a file with what a new one of another directory gets, and give it a name in staging.

    `key` begins with that of its final path. Its mode is at most 0600. What has the name is removed. Return its
    descriptor; None where the file can't be made so: the caller makes it in staging. Raises OSError where the disk
    fails, or the process lacks descriptors.
    """
    try:
        try:
            fd = os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=directory_fd)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT, errno.ENOSYS):
                raise
            return _create_named(directory_fd, staging_fd, name, momentary_name(key))
        try:
            _link(fd, staging_fd, name)
        except OSError as error:
            os.close(fd)
            if error.errno != errno.EXDEV:
                raise
            return _create_with_project(directory_fd, staging_fd, name)
    except OSError as error:
        if error.errno in _FATAL:
            raise
        return None
    return fd


def _link(fd: int, staging_fd: int, name: str) -> None:
    this = f"/proc/self/fd/{fd}"
    try:
        os.link(this, name, dst_dir_fd=staging_fd, follow_symlinks=True)
    except FileExistsError:  # left by a delivery that failed
        os.unlink(name, dir_fd=staging_fd)
        os.link(this, name, dst_dir_fd=staging_fd, follow_symlinks=True)


def _create_named(directory_fd: int, staging_fd: int, name: str, temporary: str) -> int:
    """Do as `create_like` on a file system where every file has a name: for a moment it is in the directory."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=directory_fd)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600, dir_fd=directory_fd)
    try:
        os.rename(temporary, name, src_dir_fd=directory_fd, dst_dir_fd=staging_fd)
    except OSError:
        os.close(fd)
        os.unlink(temporary, dir_fd=directory_fd)
        raise
    return fd


def _create_with_project(directory_fd: int, staging_fd: int, name: str) -> int:
    """Make a file in a staging of one project that goes to a directory of another: no link leads there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=staging_fd)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=staging_fd)
    try:
        wanted, *_, project, _ = _FSX.unpack(fcntl.ioctl(directory_fd, _FSGETXATTR, bytes(_FSX.size)))
        flags, extent_bytes, extents, _, cow_extent_bytes = _FSX.unpack(fcntl.ioctl(fd, _FSGETXATTR, bytes(_FSX.size)))
        project = project if wanted & _PROJECT else 0
        fcntl.ioctl(fd, _FSSETXATTR, _FSX.pack(flags, extent_bytes, extents, project, cow_extent_bytes))
    except OSError:
        os.close(fd)
        raise
    return fd
