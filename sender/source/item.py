"""An entry of the manifest with its source path; opens the file if it is still the listed one, else says what changed.

Opening a file never blocks, even if another kind of file (a FIFO, say) has taken its place, and follows no symbolic
link below the directory that the user named.
"""

import errno
import os
import stat
from typing import Final, NamedTuple

from filestreamer.wire.errors import Code, TransferFailed, from_os_error
from filestreamer.wire.messages import Entry, SkipKind
from sender.source.directories import Directories, Root
from sender.source.stream import Stream

READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
"""O_NONBLOCK: to open a FIFO that has taken a file's place would wait for a writer."""


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
    """An entry of the manifest, and where it is read from."""

    entry: Entry
    path: bytes
    identity: Identity | None = None
    """The identity of the file when it was listed; None for an entry without bytes of its own, and for a stream."""
    stream: Stream | None = None
    root: Root | None = None
    """The directory named by the user that contains this entry; None if the user named the entry itself."""

    @property
    def sent_bytes(self) -> int:
        """Bytes of its segments: 0 for anything but a file, and for all but the first of several hard links."""
        return self.entry.size if self.identity is not None else 0

    @property
    def shown(self) -> str:
        """Its path, for people."""
        return os.fsdecode(self.path)


class Unsendable(TransferFailed):
    """A file can't be sent as it was listed. In a tree it is withdrawn, and everything else goes on."""

    def __init__(self, code: Code, reason: str, kind: SkipKind, why: str) -> None:
        """`reason` names the file and is a whole message; `why` is for a line that has the file's name already."""
        super().__init__(code, reason)
        self.kind = kind
        self.why = why


def changed(item: Item, how: str, kind: SkipKind = SkipKind.CHANGED) -> Unsendable:
    """Return the error that says that a file changed, and what to do."""
    what = f"changed while it was sent ({how})"
    return Unsendable(
        Code.SOURCE_CHANGED, f"{item.shown} {what}: run the command again when no program writes to it", kind, what
    )


def unreadable(item: Item, error: OSError) -> Unsendable:
    """Return the error that says why a file could not be opened or read: it vanished, was replaced, or is refused."""
    kind = kind_of(error)
    if kind is SkipKind.VANISHED:
        return changed(item, "it is gone", kind)
    if kind is SkipKind.CHANGED:
        return changed(item, "another file took its place")
    failed = from_os_error(error, Code.SOURCE, f"can't read {item.shown}")
    return Unsendable(failed.code, failed.reason, kind, error.strerror or str(error))


def kind_of(error: OSError) -> SkipKind:
    """Return the reason to skip an entry of a tree that could not be looked at, opened or read."""
    if error.errno in (errno.ENOENT, errno.ESTALE):
        return SkipKind.VANISHED
    if error.errno in (errno.ENOTDIR, errno.ELOOP):  # a directory of its path was replaced, maybe by a symbolic link
        return SkipKind.CHANGED
    return SkipKind.UNREADABLE


def check_in_place(item: Item) -> None:
    """Check that the path still leads to the file that was listed. Raises TransferFailed(SOURCE_CHANGED)."""
    if item.identity is None:
        return
    try:
        status = os.stat(item.path)
    except OSError as error:
        raise changed(item, error.strerror or "it is gone") from None
    check_status(item, status)


def check_readable(path: bytes) -> os.stat_result:
    """Open a file that the user named, to find out early whether that is allowed; return its status.

    Raises TransferFailed(SOURCE).
    """
    try:
        status = os.stat(path)  # first: opening a FIFO or a device would already have an effect
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
    """Open a file if it is still the one that was listed; return the descriptor. Raises Unsendable."""
    root, name, directory_fd, flags = item.root, item.path, None, READ_FLAGS
    try:
        if root is not None:
            parent, _, name = name.rpartition(b"/")
            directory_fd = directories.get(root, parent[root.skip :])
            flags = READ_FLAGS if root.follows else READ_FLAGS | os.O_NOFOLLOW
        fd = directories.open(name, flags, directory_fd)
    except OSError as error:
        raise unreadable(item, error) from None
    try:
        check_status(item, os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_status(item: Item, now: os.stat_result) -> None:
    """Compare the status of a file with what was listed. Raises Unsendable."""
    before = item.identity
    if before is None or before == (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns):
        return
    if (now.st_dev, now.st_ino) != (before.device, before.inode):
        raise changed(item, "another file took its place")
    if now.st_size != before.size:
        raise changed(item, f"its size went from {before.size} to {now.st_size} bytes")
    raise changed(item, "its times changed")
