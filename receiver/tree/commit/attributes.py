"""Sets owner, mode and times of files that are not open, from the sender's entry. All functions raise OSError."""

import os
import stat

from filestreamer.wire.messages import Entry
from receiver.disk.destination import Destination
from receiver.disk.final_name import MODE_BITS, owner
from receiver.disk.paths import OPEN_FLAGS
from receiver.disk.space import has_data


def put_symlink_attributes(directory_fd: int, name: bytes, entry: Entry) -> None:
    """Set owner and times of a symlink itself; a symlink has no mode."""
    if owner(entry) != (-1, -1):
        os.chown(name, *owner(entry), dir_fd=directory_fd, follow_symlinks=False)
    os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=directory_fd, follow_symlinks=False)


def correct_attributes(directory_fd: int, name: bytes, entry: Entry, there: os.stat_result) -> None:
    """Set owner and mode of a file that stays as it is, where they differ; `there` is its stat(2)."""
    uid, gid = owner(entry)
    is_owned = uid in (-1, there.st_uid) and gid in (-1, there.st_gid)
    if is_owned and stat.S_IMODE(there.st_mode) == entry.mode & MODE_BITS:
        return
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        # By its /proc path: fchmod(2) refuses an O_PATH descriptor, and a file that may not be read can't be opened
        # otherwise, though its owner may change its mode.
        this = f"/proc/self/fd/{fd}"
        if not is_owned:
            os.chown(this, uid, gid)
        os.chmod(this, entry.mode & MODE_BITS)
    finally:
        os.close(fd)


def correct_file(destination: Destination, directory_fd: int, name: bytes, entry: Entry, there: os.stat_result) -> None:
    """Set owner, mode and mtime of a file that stays as it is, where they differ from what would be stored."""
    correct_attributes(directory_fd, name, entry, there)
    times = destination.times
    if not times.is_same(directory_fd, there, entry.mtime_ns) and times.keeps_times(directory_fd, there.st_dev):
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=directory_fd, follow_symlinks=False)


def has_bytes_in_holes(directory_fd: int, name: bytes, entry: Entry) -> bool:
    """Whether a file may have bytes where the entry has holes: these are not compared by digest."""
    if not entry.holes:
        return False
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | OPEN_FLAGS, dir_fd=directory_fd)
    except PermissionError:  # then it can't be compared by digest either
        return True
    try:
        return any(has_data(fd, hole) for hole in entry.holes)
    finally:
        os.close(fd)
