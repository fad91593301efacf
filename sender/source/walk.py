"""Walks the paths that the user names, and yields the entries of the manifest.

    PATH     a file, or a directory with all that is in it, under its own name
    PATH/    what is in a directory, straight into the destination

Names are bytes, in any encoding. A directory comes before its entries, and these in the order of their names, so two
walks of one tree are the same. A symbolic link is an entry; only one that the user names is followed. Everything below
is looked at by its name in its open directory (`directories`). An entry that can't be read, or is not a file, directory
or symbolic link, is reported, and the walk goes on. In memory is one list of names for each level.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from filestreamer.telemetry.counters import Skipped
from filestreamer.wire import limits
from filestreamer.wire.errors import Code, UsageError, from_os_error
from filestreamer.wire.messages import Entry, EntryType, SkipKind
from sender.source.directories import Directories, Root
from sender.source.item import Identity, Item, Unsendable, check_readable, kind_of
from sender.source.patterns import Wanted

STAGING: Final = b".filestreamer"
"""The directory of a receiver's staging; it is never an entry."""
NOT_AT_A_ROOT: Final = (STAGING, b"lost+found")
"""Names that are not entries directly in a directory that the user names, which may be the root of a file system."""
_MTIME_END: Final = 1 << 63
"""The end of the range of an entry's mtime, in nanoseconds: signed, 64 bits. Times after 2262 become the last one."""
_REASONS: Final = {
    SkipKind.VANISHED: "it vanished while the tree was walked",
    SkipKind.CHANGED: "it was replaced while the tree was walked",
}
ROOTS_HELD: Final = 64
"""If the user names more paths than these, the directories among them are not kept open."""
DIRECTORIES_OPEN: Final = 32
"""How many directories the walk keeps open: a tree may be deeper than a process may have open files."""


class Walk:
    """An iterable of items. Meanwhile it calls `skipped` with each entry that is left out."""

    def __init__(
        self,
        paths: Sequence[str],
        skipped: Callable[[Skipped], None],
        *,
        as_name: str = "",
        wanted: Wanted | None = None,
        is_sparing: bool = False,
        owner: bool = False,
    ) -> None:
        """Prepare to walk. `as_name` replaces the name of a single path.

        If `is_sparing`, directories without a file that is `wanted` are left out. If `owner`, entries have numeric
        owners. Raises UsageError where two paths have the same name at the destination.
        """
        self._roots = [(os.fsencode(path), _name(path, as_name)) for path in paths]
        names = [name for _, name in self._roots]
        if len(set(names)) < len(names) or any(
            not name and any(os.path.lexists(os.path.join(path, other)) for other in names if other)
            for path, name in self._roots
        ):
            raise UsageError(
                "two of the paths have the same name at the destination: send them one by one, each with --as"
            )
        self._skipped = skipped
        self._wanted = wanted
        self._is_sparing = is_sparing
        self._owner = owner
        self._links: dict[Identity, tuple[int, int]] = {}
        """Files of which more names are to come: their hard-link group, and how many names that are."""
        self._groups = 0  # hard-link groups so far
        self._directories = Directories(DIRECTORIES_OPEN, os.O_RDONLY)

    def __iter__(self) -> Iterator[Item]:
        """Walk. Raises TransferFailed(SOURCE) where a path that the user names is not there or can't be read."""
        for path, name in self._roots:
            try:
                status = os.stat(path)
                root = None
                if stat.S_ISDIR(status.st_mode):
                    root = Root(path.rstrip(b"/") or b"/", is_held=len(self._roots) <= ROOTS_HELD)
            except OSError as error:
                raise from_os_error(error, Code.SOURCE, f"can't read {os.fsdecode(path)}") from None
            if root is not None:
                yield from self._tree(root, name)
            else:
                yield self._file(path, None, name, check_readable(path))

    def _tree(self, root: Root, name: bytes) -> Iterator[Item]:
        """Walk a directory, depth first."""
        try:
            levels = [self._open(root.path, root, name, b"")]
        except OSError as error:
            raise from_os_error(error, Code.SOURCE, f"can't read {os.fsdecode(root.path)}") from None
        if not self._is_sparing and levels[0].is_to_be_listed():
            yield levels[0].item
        try:
            yield from self._below(levels)
        finally:
            self._directories.close()

    def _below(self, levels: "list[_Level]") -> Iterator[Item]:
        # Not recursive: a tree may be deeper than the stack.
        while levels:
            found = None
            for entry_name in levels[-1].names:
                if found := self._enter(levels[-1], entry_name):
                    break
            else:
                levels.pop()
                continue
            if isinstance(found, _Level):
                levels.append(found)
            if not (self._is_sparing and isinstance(found, _Level)):
                yield from (level.item for level in levels if level.is_to_be_listed())
            if isinstance(found, Item):
                yield found

    def _enter(self, level: "_Level", name: bytes) -> "Item | _Level | None":
        """Look at one entry of a directory; return None where it is left out."""
        root, parent = level.root, level.item
        path = os.path.join(parent.path, name)
        below = level.below + b"/" + name if level.below else name
        wire_path = parent.entry.path + b"/" + name if parent.entry.path else name
        try:
            directory_fd = self._directories.get(root, level.below)
            status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
            is_directory = stat.S_ISDIR(status.st_mode)
            if self._wanted is not None and not self._wanted(below, is_directory):
                return None
            if len(wire_path) > limits.PATH_BYTES:
                reason = f"its path is longer than {limits.PATH_BYTES} bytes"
                self._skip(path, wire_path, SkipKind.UNREADABLE, reason)
                return None
            if is_directory:
                return self._open(path, root, wire_path, below)
            return self._item(path, root, wire_path, status)
        except Unsendable as error:
            if error.retryable:
                raise
            self._skip(path, wire_path, error.kind, error.why)
        except OSError as error:
            failure = from_os_error(error, Code.SOURCE, f"can't read {os.fsdecode(path)}")
            if failure.retryable:  # this process has too many open files: nothing is wrong with the entry
                raise failure from None
            kind = kind_of(error)
            self._skip(path, wire_path, kind, _REASONS.get(kind) or error.strerror or str(error))
        return None

    def _skip(self, path: bytes, wire_path: bytes, kind: SkipKind, reason: str) -> None:
        self._skipped(Skipped(os.fsdecode(path), reason, kind, wire_path))

    def _open(self, path: bytes, root: Root, name: bytes, below: bytes) -> "_Level":
        """Open a directory and list it, in the order of its names. Raises OSError."""
        fd = self._directories.get(root, below)
        entry = self._entry(name, EntryType.DIRECTORY, os.fstat(fd))
        left_out = (STAGING,) if below else NOT_AT_A_ROOT
        names = [name for name in map(os.fsencode, os.listdir(fd)) if name not in left_out]
        names.sort()
        return _Level(Item(entry, path), root, below, iter(names))

    def _entry(self, name: bytes, kind: EntryType, status: os.stat_result, size: int = 0) -> Entry:
        owner = (status.st_uid, status.st_gid) if self._owner else (None, None)
        mtime_ns = min(max(status.st_mtime_ns, -_MTIME_END), _MTIME_END - 1)
        return Entry(name, kind, size, status.st_mode & 0o777, mtime_ns, *owner)

    def _item(self, path: bytes, root: Root, name: bytes, status: os.stat_result) -> Item | None:
        """Return the item of anything but a directory; None where it can't be sent. Raises OSError, Unsendable."""
        if stat.S_ISREG(status.st_mode):
            return self._file(path, root, name, status)
        if stat.S_ISLNK(status.st_mode):
            entry = self._entry(name, EntryType.SYMLINK, status)
            return Item(entry._replace(link_target=self._target(path, root)), path)
        self._skip(path, name, SkipKind.SPECIAL, f"it is {_type_name(status.st_mode)}")
        return None

    def _target(self, path: bytes, root: Root) -> bytes:
        """Return the target of a symbolic link. Raises OSError."""
        parent, _, name = path.rpartition(b"/")
        try:
            return os.readlink(name, dir_fd=self._directories.get(root, parent[root.skip :]))
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise OSError(errno.ELOOP, "it is no longer a symbolic link") from None
            raise

    def _file(self, path: bytes, root: Root | None, name: bytes, status: os.stat_result) -> Item:
        entry = self._entry(name, EntryType.FILE, status, status.st_size)
        identity = Identity.of(status)
        if status.st_nlink > 1 and (group := self._follow(identity)):
            return Item(entry._replace(hard_link_group=group), path)
        if (stored_bytes := status.st_blocks * 512) < status.st_size:
            entry = entry._replace(data_bytes=stored_bytes)
        # Only now, as nothing has failed: the first name of a group carries the bytes of the file.
        if status.st_nlink > 1:
            self._groups += 1
            self._links[identity] = (self._groups, status.st_nlink - 1)
            entry = entry._replace(hard_link_group=self._groups)
        return Item(entry, path, identity, None, root)

    def _follow(self, identity: Identity) -> int:
        """Return the hard-link group of a file that was listed under another name; 0 where it was not."""
        group, left = self._links.pop(identity, (0, 0))
        if left > 1:
            self._links[identity] = (group, left - 1)
        return group


class _Level:
    """A directory that is being walked."""

    def __init__(self, item: Item, root: Root, below: bytes, names: Iterator[bytes]) -> None:
        """`below` is its path, relative to the root; `names` are its entries that were not looked at yet."""
        self.item = item
        self.root = root
        self.below = below
        self.names = names
        self._is_listed = not item.entry.path  # the destination itself is not an entry

    def is_to_be_listed(self) -> bool:
        """Return whether it was not listed yet; from then on it counts as listed."""
        was_listed, self._is_listed = self._is_listed, True
        return not was_listed


def _name(path: str, as_name: str) -> bytes:
    """Return the name that a path gets at the destination; empty for the contents of a directory."""
    if as_name:
        return os.fsencode(as_name)
    return b"" if path.endswith(("/", "/.")) else os.path.basename(os.fsencode(os.path.abspath(path)))


def _type_name(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFBLK: "a device", stat.S_IFCHR: "a device"}
    return kinds.get(stat.S_IFMT(mode), "not a regular file")
