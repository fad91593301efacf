"""Tells what lies on another file system than the directory that the user named (--one-file-system).

A directory does if its device number or its mount is another one: a bind mount of the same disk has the same device,
and a btrfs subvolume is no mount. Other files do only if their mount is another one, as the device numbers of an
overlay file system differ from file to file; so a file that is mounted on another one is found, too.
"""

import os
import stat
from collections.abc import Callable

from filestreamer.process.mount import UNKNOWN, mount_of


class Mounts:
    """Finds what is mounted below a directory, and tells the first such path."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        """`warn` is called once, with the first path that is left out."""
        self._warn = warn
        self._was_told = False
        self._device, self._mount = 0, UNKNOWN

    def begin(self, fd: int) -> None:
        """Begin with the open directory that the user named: what is below it is compared with it. Raises OSError."""
        self._device, self._mount = os.fstat(fd).st_dev, mount_of(fd)

    def is_another(self, name: bytes, directory_fd: int, status: os.stat_result) -> bool:
        """Return whether an entry of an open directory lies on another file system. Raises OSError.

        `status` is that of the entry, or of what a symbolic link leads to where that is followed.
        """
        is_directory = stat.S_ISDIR(status.st_mode)
        if is_directory and status.st_dev != self._device:
            return True
        flags = os.O_PATH | os.O_CLOEXEC | (0 if is_directory else os.O_NOFOLLOW)
        fd = os.open(name, flags, dir_fd=directory_fd)
        try:
            return mount_of(fd) != self._mount
        finally:
            os.close(fd)

    def tell(self, path: bytes) -> None:
        """Tell that something is left out, if it is the first."""
        if not self._was_told:
            self._was_told = True
            self._warn(
                f"--one-file-system leaves out what is mounted below the named paths, such as {os.fsdecode(path)}"
            )
