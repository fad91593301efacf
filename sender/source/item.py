"""An entry of the manifest with its source path; opens the file if it is still the listed one, else says what changed.

Opening a file never blocks, even if another kind of file (a FIFO, say) has taken its place, and follows no symbolic
link below the directory that the user named.

A file has changed if its size or mtime is another one, or if another file has its place. If only its ctime moved (ln,
chmod, setfattr), its bytes may be the same: who reads it compares its `Identity` before and after, and reads again
where these differ. The inode number counts as ctime does where the file system keeps none (`file_systems`).
"""

import errno
import os
import stat
from typing import Final, NamedTuple

from filestreamer.wire.errors import Code, TransferFailed, from_os_error
from filestreamer.wire.messages import Entry, SkipKind
from sender.source.directories import Directories, Root
from sender.source.file_systems import has_stable_inodes, has_true_sizes, hides_sizes
from sender.source.stream import Stream

READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
"""O_NONBLOCK: to open a FIFO that has taken a file's place would wait for a writer."""


_UNTOLD_SIZE: Final = (
    "its size is not known before it is read (as in /proc): send it through a pipe: cat FILE | sender - --as NAME"
)


class Identity(NamedTuple):
    """What is the same before and after as long as nobody touched a file."""

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


def changed(item: Item, how: str) -> Unsendable:
    """Return the error that says that a file changed, and what to do."""
    what = f"changed while it was sent ({how})"
    reason = f"{item.shown} {what}: run the command again when no program writes to it"
    return Unsendable(Code.SOURCE_CHANGED, reason, SkipKind.CHANGED, what)


def vanished(item: Item, how: str) -> Unsendable:
    """Return the error that says that a file is gone since it was listed."""
    what = f"vanished before it was sent ({how})"
    return Unsendable(Code.SOURCE_CHANGED, f"{item.shown} {what}", SkipKind.VANISHED, what)


def untold_size(item: Item) -> Unsendable:
    """Return the error that says that a file has more or fewer bytes than its size, as files of /proc and /sys have."""
    return Unsendable(Code.SOURCE, f"can't send {item.shown}: {_UNTOLD_SIZE}", SkipKind.UNREADABLE, _UNTOLD_SIZE)


def unreadable(item: Item, error: OSError) -> Unsendable:
    """Return the error that says why a file could not be opened or read: it vanished, was replaced, or is refused."""
    kind = kind_of(error)
    if kind is SkipKind.VANISHED:
        return vanished(item, error.strerror or "it is gone")
    if kind is SkipKind.CHANGED:
        return changed(item, "another file took its place")
    failed = from_os_error(error, Code.SOURCE, f"can't read {item.shown}")
    return Unsendable(failed.code, failed.reason, kind, error.strerror or str(error))


def kind_of(error: OSError) -> SkipKind:
    """Return the reason to skip an entry of a tree that could not be looked at, opened or read."""
    if error.errno in (errno.ENOENT, errno.ESTALE):
        return SkipKind.VANISHED
    # A directory of its path was replaced, maybe by a symbolic link; ENXIO: it is a socket by now.
    if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
        return SkipKind.CHANGED
    return SkipKind.UNREADABLE


def look_in_place(item: Item) -> Identity:
    """Return the identity of what the path leads to now. Raises Unsendable where that is not the file that was listed.

    Not for an entry that has no identity.
    """
    try:
        status = os.stat(item.path)
    except OSError as error:
        raise vanished(item, error.strerror or "it is gone") from None
    return check_status(item, status)


def check_readable(path: bytes) -> os.stat_result:
    """Open a file that the user named, to find out early whether that is allowed; return its status.

    Raises TransferFailed(SOURCE).
    """
    shown = os.fsdecode(path)
    try:
        status = os.stat(path)  # first: opening a FIFO or a device would already have an effect
        if stat.S_ISREG(status.st_mode):
            fd = os.open(path, READ_FLAGS)
            try:
                status = os.fstat(fd)
                is_untold = status.st_size == 0 and not has_true_sizes(status.st_dev)
                if is_untold and (hides_sizes(status.st_dev) or os.read(fd, 1)):
                    raise TransferFailed(Code.SOURCE, f"can't send {shown}: {_UNTOLD_SIZE}")
            finally:
                os.close(fd)
    except OSError as error:
        raise from_os_error(error, Code.SOURCE, f"can't read {shown}") from None
    if not stat.S_ISREG(status.st_mode):
        what = f"it is {type_name(status.st_mode)}, and not a regular file"
        how = f"to send its bytes, make it the standard input: sender - --as NAME < {shown}"
        raise TransferFailed(Code.SOURCE, f"can't send {shown}: {what}; {how}")
    return status


def type_name(mode: int) -> str:
    """Return what a file is that is no regular file, for people."""
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFBLK: "a device", stat.S_IFCHR: "a device"}
    return kinds.get(stat.S_IFMT(mode), "not a regular file")


def check_empty(item: Item, status: os.stat_result, directories: Directories) -> None:
    """Check that a file that says it is empty is empty. Raises Unsendable.

    On nearly all file systems nothing has to be looked at.
    """
    if has_true_sizes(status.st_dev):
        return
    if hides_sizes(status.st_dev):
        raise untold_size(item)
    fd, _ = open_listed(item, directories)
    try:
        has_bytes = bool(os.read(fd, 1)) and os.fstat(fd).st_size == 0
    except OSError as error:
        raise unreadable(item, error) from None
    finally:
        os.close(fd)
    if has_bytes:
        raise untold_size(item)


def open_listed(item: Item, directories: Directories) -> tuple[int, Identity]:
    """Open a file if it is still the one that was listed; return the descriptor, and its identity now.

    Raises Unsendable.
    """
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
        return fd, check_status(item, os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise


def check_status(item: Item, now: os.stat_result) -> Identity:
    """Compare the status of a file with what was listed; return its identity now. Raises Unsendable.

    If that is another one than when the file was read before, its bytes have to be read again and compared.
    """
    before = item.identity
    if before is not None and (  # nearly always nothing moved: no further tuple is made for each look
        now.st_ctime_ns == before.ctime_ns
        and now.st_mtime_ns == before.mtime_ns
        and now.st_size == before.size
        and now.st_ino == before.inode
        and now.st_dev == before.device
    ):
        return before
    after = Identity.of(now)
    if before is None:
        return after
    if not stat.S_ISREG(now.st_mode):
        raise changed(item, "another file took its place")
    if hides_sizes(before.device):  # there, times are those at which the kernel last made the file's inode
        raise untold_size(item)
    is_same_file = (after.device, after.inode) == (before.device, before.inode)
    if not is_same_file and has_stable_inodes(before.device):
        raise changed(item, "another file took its place")
    if after.size != before.size:
        raise changed(item, f"its size went from {before.size} to {after.size} bytes")
    if after.mtime_ns != before.mtime_ns:
        raise changed(item, "its times changed")
    return after
