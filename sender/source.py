"""Reading what was listed, and nothing else: a file that is no longer what the manifest says is an error.

Files are never mmapped: one that shrinks would kill the process. What was read first is binding (`deal.Deal.bind`);
this module notices that a file has changed since it was listed, after each chunk and before the chunk's digest goes
out.
"""

import os
import stat
from typing import NamedTuple

from sender.stream import Stream
from wire.errors import Code, TransferFailed, from_os_error
from wire.messages import Entry


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


class Item(NamedTuple):
    """An entry of the manifest, and where it is read from.

    `identity` is None where no file is read: of what has no bytes, and of a `stream`.
    """

    entry: Entry
    path: bytes
    identity: Identity | None = None
    stream: Stream | None = None

    @property
    def sent_bytes(self) -> int:
        """Bytes of its segments: 0 for what is no file, and for all but the first of several hard links."""
        return self.entry.size if self.identity is not None else 0

    @property
    def shown(self) -> str:
        """Where it is, as people know it."""
        return os.fsdecode(self.path)


def changed(item: Item, how: str) -> TransferFailed:
    """Make the error that says that a file changed, and what to do."""
    return TransferFailed(
        Code.SOURCE_CHANGED, f"{item.shown} changed while it was sent ({how}): run again when nothing writes to it"
    )


def check_in_place(item: Item) -> None:
    """Check that the path still leads to the file that was listed. Raises TransferFailed(SOURCE_CHANGED)."""
    if item.identity is None:
        return
    try:
        there = Identity.of(os.stat(item.path))
    except OSError as error:
        raise changed(item, error.strerror or "it is gone") from None
    _compare(item, there)


def check_readable(path: bytes) -> None:
    """Open a file that the user named, to see early whether that is possible. Raises TransferFailed(SOURCE)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise from_os_error(error, Code.SOURCE, f"can't read {os.fsdecode(path)}") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise TransferFailed(Code.SOURCE, f"can't send {os.fsdecode(path)}: it is not a regular file")
    finally:
        os.close(fd)


def _compare(item: Item, now: Identity) -> None:
    before = item.identity
    if before is None or now == before:
        return
    if (now.device, now.inode) != (before.device, before.inode):
        raise changed(item, "another file took its place")
    if now.size != before.size:
        raise changed(item, f"its size went from {before.size} to {now.size} bytes")
    raise changed(item, "its times changed")


class Reader:
    """Reads listed files, keeping the last one open. One thread owns it."""

    def __init__(self) -> None:
        self._item: Item | None = None
        self._fd = -1

    def read_into(self, item: Item, view: memoryview, offset: int) -> None:
        """Fill `view` with what is in a file from `offset` on. Raises TransferFailed (SOURCE_CHANGED, SOURCE)."""
        if item.stream is not None:
            item.stream.read_into(view, offset)
            return
        if item is not self._item:
            self._open(item)
        try:
            done = os.preadv(self._fd, (view,), offset)
            while done < len(view):
                count = os.preadv(self._fd, [view[done:]], offset + done)
                if not count:
                    raise changed(item, "it is shorter than it was")
                done += count
        except OSError as error:
            raise from_os_error(error, Code.SOURCE, f"can't read {item.shown}") from None

    def check_unchanged(self, item: Item) -> None:
        """Compare the file that is open with what was listed. Raises TransferFailed (SOURCE_CHANGED, SOURCE)."""
        if item.stream is not None:
            return  # what was read of it can't change
        if item is not self._item:
            self._open(item)
        try:
            now = Identity.of(os.fstat(self._fd))
        except OSError as error:
            raise from_os_error(error, Code.SOURCE, f"can't read {item.shown}") from None
        _compare(item, now)

    def _open(self, item: Item) -> None:
        self.close()
        try:
            self._fd = os.open(item.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise changed(item, "it is gone") from None
        except OSError as error:
            raise from_os_error(error, Code.SOURCE, f"can't read {item.shown}") from None
        self._item = item

    def close(self) -> None:
        """Release the descriptor. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
        self._item, self._fd = None, -1
