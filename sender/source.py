"""The file that is sent: opened once, read at offsets by many threads, watched for changes.

Never mmapped: a file that shrinks would kill the process. What was read first is binding (`deal.Deal.bind`); this
module notices that the file is no longer what the manifest said.
"""

import os
import stat
from typing import NamedTuple

from wire.errors import Code, TransferFailed, from_os_error


class Identity(NamedTuple):
    """What must not change while a file is read."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Identity":
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Source:
    """One regular file, open for reading. `size` in bytes; `mode` is permission bits only."""

    def __init__(self, path: str) -> None:
        """Open `path`. Raises TransferFailed(SOURCE) where it is missing, unreadable, or no regular file."""
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise from_os_error(error, Code.SOURCE, f"can't read {path}") from None
        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(self.fd)
            raise TransferFailed(Code.SOURCE, f"can't send {path}: {_what_it_is(status.st_mode)}")
        self.identity = Identity.of(status)
        self.size = status.st_size
        self.mode = stat.S_IMODE(status.st_mode)
        self.mtime_ns = status.st_mtime_ns

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` from `offset`. Raises TransferFailed: SOURCE_CHANGED where the file ends first, SOURCE."""
        done = 0
        try:
            while done < len(view):
                count = os.preadv(self.fd, [view[done:]], offset + done)
                if not count:
                    raise self.changed("it is shorter than it was")
                done += count
        except OSError as error:
            raise from_os_error(error, Code.SOURCE, f"can't read {self.path}") from None

    def check_unchanged(self) -> None:
        """Compare with what the manifest said. Raises TransferFailed(SOURCE_CHANGED)."""
        try:
            now = Identity.of(os.fstat(self.fd))
        except OSError as error:
            raise from_os_error(error, Code.SOURCE, f"can't read {self.path}") from None
        if now != self.identity:
            raise self.changed(_difference(self.identity, now))

    def check_in_place(self) -> None:
        """Check also that the path still leads to this file. Raises TransferFailed(SOURCE_CHANGED)."""
        self.check_unchanged()
        try:
            there = Identity.of(os.stat(self.path))
        except OSError as error:
            raise self.changed(error.strerror or "it is gone") from None
        if there != self.identity:
            raise self.changed("another file took its place")

    def changed(self, how: str) -> TransferFailed:
        """Make the error that says that this file changed, and what to do."""
        return TransferFailed(
            Code.SOURCE_CHANGED, f"{self.path} changed while it was sent ({how}): run again when nothing writes to it"
        )

    def close(self) -> None:
        """Release the descriptor."""
        os.close(self.fd)


def _what_it_is(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "it is a directory, and this version sends single files (not yet trees)"
    return "it is not a regular file"


def _difference(before: Identity, now: Identity) -> str:
    if now.size != before.size:
        return f"its size went from {before.size} to {now.size} bytes"
    return "its times changed"
