"""Reading what was listed, and nothing else: a file that is no longer what the manifest says is an error.

What has a file's name is compared with what was listed right after it is opened: no byte of another file is read. To
open waits for nobody, whatever has taken the file's place, and follows no symbolic link below what the user named.
Files are never mmapped: one that shrinks would kill the process. What was read first is binding (`queue.SendQueue.pin_digest`);
this module notices that a file has changed since it was listed, after each chunk and before the chunk's digest goes
out.
"""

import errno
import os
import stat
from typing import Final, NamedTuple

from filestreamer.wire.errors import Code, TransferFailed, from_os_error
from filestreamer.wire.messages import Entry, SkipKind
from sender.source.directories import Directories, Root
from sender.source.stream import Stream

DIRECTORIES_OPEN: Final = 4
"""How many directories each reader keeps open."""
READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
"""Opens a file, and waits for nobody where something else has taken its place."""


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
    root: Root | None = None
    """The directory that the user named, with this in it; None where the user named this itself."""

    @property
    def sent_bytes(self) -> int:
        """Bytes of its segments: 0 for what is no file, and for all but the first of several hard links."""
        return self.entry.size if self.identity is not None else 0

    @property
    def shown(self) -> str:
        """Where it is, as people know it."""
        return os.fsdecode(self.path)


class Unsendable(TransferFailed):
    """A file that can't be sent as it was listed; everything else may go on."""

    def __init__(self, code: Code, reason: str, kind: SkipKind, why: str) -> None:
        """`reason` is a whole message; `why` is said where the file is named beside it."""
        super().__init__(code, reason)
        self.kind = kind
        self.why = why


def changed(item: Item, how: str, kind: SkipKind = SkipKind.CHANGED) -> Unsendable:
    """Make the error that says that a file changed, and what to do."""
    what = f"changed while it was sent ({how})"
    return Unsendable(Code.SOURCE_CHANGED, f"{item.shown} {what}: run again when nothing writes to it", kind, what)


def unreadable(item: Item, error: OSError) -> Unsendable:
    """Make the error that says why a file could not be opened or read: it is gone, replaced, or can't be."""
    kind = kind_of(error)
    if kind is SkipKind.VANISHED:
        return changed(item, "it is gone", kind)
    if kind is SkipKind.CHANGED:
        return changed(item, "another file took its place")
    failed = from_os_error(error, Code.SOURCE, f"can't read {item.shown}")
    return Unsendable(failed.code, failed.reason, kind, error.strerror or str(error))


def kind_of(error: OSError) -> SkipKind:
    """Return what it means that something in a tree could not be looked at, opened or read."""
    if error.errno in (errno.ENOENT, errno.ESTALE):
        return SkipKind.VANISHED
    if error.errno in (errno.ENOTDIR, errno.ELOOP):  # a step on the way is no directory any more, or a symbolic link
        return SkipKind.CHANGED
    return SkipKind.UNREADABLE


def check_in_place(item: Item) -> None:
    """Check that the path still leads to the file that was listed. Raises TransferFailed(SOURCE_CHANGED)."""
    if item.identity is None:
        return
    try:
        there = os.stat(item.path)
    except OSError as error:
        raise changed(item, error.strerror or "it is gone") from None
    _compare(item, there)


def check_readable(path: bytes) -> os.stat_result:
    """Open a file that the user named, to see early whether that is possible; return what it is.

    Raises TransferFailed(SOURCE).
    """
    try:
        status = os.stat(path)  # to open a FIFO or a device would already do something
        if stat.S_ISREG(status.st_mode):
            fd = os.open(path, READ_FLAGS)
            try:
                status = os.fstat(fd)
            finally:
                os.close(fd)
    except OSError as error:
        raise from_os_error(error, Code.SOURCE, f"can't read {os.fsdecode(path)}") from None
    if not stat.S_ISREG(status.st_mode):
        raise TransferFailed(Code.SOURCE, f"can't send {os.fsdecode(path)}: it is not a regular file")
    return status


def open_listed(item: Item, directories: Directories) -> int:
    """Open a file where it is still the one that was listed; return the descriptor. Raises Unsendable."""
    root, name, directory_fd, flags = item.root, item.path, None, READ_FLAGS
    try:
        if root is not None:
            parent, _, name = name.rpartition(b"/")
            directory_fd = directories.get(root, parent[root.skip :])
            flags = READ_FLAGS | os.O_NOFOLLOW
        fd = directories.open(name, flags, directory_fd)
    except OSError as error:
        raise unreadable(item, error) from None
    try:
        _compare(item, os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _compare(item: Item, now: os.stat_result) -> None:
    """Compare a file with what was listed. Raises Unsendable."""
    before = item.identity
    if before is None or before == (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns):
        return
    if (now.st_dev, now.st_ino) != (before.device, before.inode):
        raise changed(item, "another file took its place")
    if now.st_size != before.size:
        raise changed(item, f"its size went from {before.size} to {now.st_size} bytes")
    raise changed(item, "its times changed")


class Reader:
    """Reads listed files, keeping the last one open, and its directories. One thread owns it."""

    def __init__(self) -> None:
        self._item: Item | None = None
        self._fd = -1
        self._directories = Directories(DIRECTORIES_OPEN)

    def read_into(self, item: Item, view: memoryview, offset: int) -> None:
        """Fill `view` with what is in a file from `offset` on. Raises Unsendable."""
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
            raise unreadable(item, error) from None

    def check_unchanged(self, item: Item) -> None:
        """Compare the file that is open with what was listed. Raises Unsendable."""
        if item.stream is not None:
            return  # what was read of it can't change
        if item is not self._item:
            self._open(item)
            return
        try:
            now = os.fstat(self._fd)
        except OSError as error:
            raise unreadable(item, error) from None
        _compare(item, now)

    def _open(self, item: Item) -> None:
        self._close_file()
        self._fd = open_listed(item, self._directories)
        self._item = item

    def _close_file(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._item, self._fd = None, -1

    def close(self) -> None:
        """Release every descriptor. Idempotent."""
        self._close_file()
        self._directories.close()
