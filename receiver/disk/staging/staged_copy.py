"""A copy of a complete staged file, on the other side of a boundary that only its rename has shown (EXDEV)."""

import contextlib
import errno
import os
from typing import Final

from receiver.disk.paths import OPEN_FLAGS
from receiver.disk.space import write_at
from receiver.disk.staging.staged_file import open_staged

_PIECE_BYTES: Final = 1 << 20


def copy_file(name: str, directory_fd: int, copy: str, copy_directory_fd: int) -> None:
    """Copy a file with its attributes and holes, durably. Raises OSError."""
    # Before it is opened: where its mode denies that, the file gets another one.
    status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    source_fd = open_staged(name, os.O_RDONLY, directory_fd)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(copy, dir_fd=copy_directory_fd)
        fd = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | OPEN_FLAGS, 0o600, dir_fd=copy_directory_fd)
        try:
            _copy_bytes(source_fd, fd)
            _copy_attributes(source_fd, status, fd)
            os.fsync(fd)
        finally:
            os.close(fd)
    finally:
        os.close(source_fd)


def _copy_bytes(source_fd: int, fd: int) -> None:
    size = os.fstat(source_fd).st_size
    at = 0
    while at < size:
        try:
            at = os.lseek(source_fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                break
        piece = os.pread(source_fd, _PIECE_BYTES, at)
        write_at(fd, memoryview(piece), at)
        at += len(piece)
    os.ftruncate(fd, size)


def _copy_attributes(source_fd: int, status: os.stat_result, fd: int) -> None:
    made = os.fstat(fd)
    if (made.st_uid, made.st_gid) != (status.st_uid, status.st_gid):
        os.fchown(fd, status.st_uid, status.st_gid)
    for attribute in os.listxattr(source_fd):
        os.setxattr(fd, attribute, os.getxattr(source_fd, attribute))
    os.fchmod(fd, status.st_mode & 0o7777)
    os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
