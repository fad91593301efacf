"""Walks the paths that the user names, and yields the entries of the manifest.

    PATH     a file, or a directory with all that is in it, under its own name
    PATH/    what is in a directory, straight into the destination

Names are bytes, in any encoding. A directory comes before its entries, and these in the order of their names, so two
walks of one tree are the same. A symbolic link is an entry; only one that the user names is followed. Everything below
is looked at by its name in its open directory (`directories`). An entry that can't be read, or is not a file, directory
or symbolic link, is reported, and the walk goes on. In memory is one list of names for each level.

With `listed` (--files-from) only these paths below the one directory are entries, and the directories on the way to
them. A directory in the list comes with all that is in it. With `follows` (--dereference) symbolic links are looked
through, and one that leads back to a directory that contains it is reported. With `mounts` (--one-file-system) a
directory on which another file system is mounted is an entry without content.
"""

import errno
import heapq
import itertools
import os
import stat
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from filestreamer.telemetry.counters import Skipped
from filestreamer.wire import limits
from filestreamer.wire.errors import Code, TransferFailed, UsageError, from_os_error
from filestreamer.wire.messages import Entry, EntryType, SkipKind
from filestreamer.wire.patterns import Wanted
from filestreamer.wire.staging_name import leads_to_staging
from filestreamer.wire.tree_shares import TreeShares, WalkDigest
from sender.listing.files_from import PathList, Selection
from sender.listing.hard_links import HardLinkGroups
from sender.listing.xattrs import XattrReader
from sender.source.chunk_size import too_many_chunks
from sender.source.directories import Directories, Root
from sender.source.item import Identity, Item, Unsendable, changed, check_empty, check_readable, kind_of, type_name

if TYPE_CHECKING:
    from sender.listing.mounts import Mounts

NOT_AT_A_ROOT: Final = b"lost+found"
"""A name that is no entry directly in a directory that the user names, which may be the root of a file system."""
LEFT_OUT: Final = "what has the name .filestreamer is left out, at any depth: that is the name of a receiver's staging"
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
        keeps: bool = False,
        xattrs: bool = False,
        warn: Callable[[str], None] = lambda _: None,
        listed: PathList | None = None,
        follows: bool = False,
        mounts: "Mounts | None" = None,
        chunk_size: int = limits.CHUNK_SIZE_MAX,
    ) -> None:
        """Prepare to walk. `as_name` replaces the name of a single path.

        If `is_sparing`, directories without a file that is `wanted` are left out. If `owner`, entries have numeric
        owners, if `xattrs`, extended attributes. If `keeps` (--delete), a KEPT entry stands for what is there and is
        not moved, such as a FIFO, and an empty directory is refused where the user names it. `warn` is called with what
        the user should know, maybe several times. A file that `chunk_size` cuts into too many chunks is left out,
        unless it is all that the user names. Raises UsageError where two paths have the same name at the destination.
        """
        self._roots = [(os.fsencode(path), destination_name(path, as_name)) for path in paths]
        _check_names(self._roots)
        self._skipped = skipped
        self._wanted = wanted
        self._is_sparing = is_sparing
        self._owner = owner
        self._keeps = keeps
        self._warn = warn
        self._xattrs = XattrReader(is_kept=xattrs, warn=warn)
        self._listed = listed
        self._chosen: Selection | None = None  # of the walk that is under way
        self._takes_all = False  # whether each file that it meets is to be sent
        self._follows = follows
        self._mounts = mounts
        self._not_whole: Item | None = None  # says that the directory that is yielded next is not listed whole
        self._groups = HardLinkGroups()
        self._directories = Directories(DIRECTORIES_OPEN, os.O_RDONLY)
        self._shares: TreeShares | None = None  # not a shard
        self._chunk_size = chunk_size
        self._size_max = limits.CHUNKS_PER_FILE * chunk_size
        self._digest: WalkDigest | None = None  # of the walk that is under way, if it is for a shard
        self._is_own = False  # whether the entry that is looked at was found to be this shard's
        self.passed_over = 0
        """How many entries were found so far and not yielded. For any thread."""

    def share_out(self, shares: TreeShares) -> None:
        """Yield only the entries of one shard from now on, and all directories."""
        self._shares = shares

    @property
    def digest(self) -> bytes:
        """The digest of all that the walk found, once it has ended; b"" if it was not for a shard."""
        return self._digest.digest() if self._digest is not None else b""

    def __iter__(self) -> Iterator[Item]:
        """Walk. Raises TransferFailed(SOURCE) where a path that the user names is not there or can't be read."""
        if self._shares is not None:
            self._digest = WalkDigest(self._shares, self._chunk_size)
        for path, name in self._roots:
            self._is_own = False
            root = self._root(path)
            if self._is_refused(path, name, root):
                continue
            if root is not None:
                yield from self._tree(root, name)
            elif (item := self._named_file(path, name)) is not None:
                yield item

    def _root(self, path: bytes) -> Root | None:
        """Open a directory that the user names; return None for anything else. Raises TransferFailed(SOURCE)."""
        try:
            if not stat.S_ISDIR(os.stat(path).st_mode):
                return None
            return Root(path.rstrip(b"/") or b"/", is_held=len(self._roots) <= ROOTS_HELD, follows=self._follows)
        except OSError as error:
            raise from_os_error(error, Code.SOURCE, f"can't read {os.fsdecode(path)}") from None

    def _is_refused(self, path: bytes, name: bytes, root: Root | None) -> bool:
        """Skip a path that the user names where a receiver would refuse all of the tree because of its name.

        Return whether it does. Raises TransferFailed(SOURCE) where there is no other path.
        """
        is_single = len(self._roots) == 1
        is_renamable = is_single and root is None  # a receiver may have another name for a single file
        if len(name) <= limits.NAME_BYTES or is_renamable:
            return False
        why = f"its name is longer than {limits.NAME_BYTES} bytes: send it alone, with --as"
        if is_single:
            raise TransferFailed(Code.SOURCE, f"can't send {os.fsdecode(path)}: {why}")
        self._skip(path, name, SkipKind.UNREADABLE, why)
        return True

    def _named_file(self, path: bytes, name: bytes) -> Item | None:
        """Return the item of a file that the user names; None where it is not sent."""
        status = check_readable(path)
        if not self._is_own_file(name, status):
            return None
        if len(self._roots) > 1:  # a file that is sent alone has a chunk size of its own
            try:
                self._check_size(path, status)
            except Unsendable as error:
                self._skip(path, name, error.kind, error.why)
                return None
        return self._file(path, None, name, status)

    def _tree(self, root: Root, name: bytes) -> Iterator[Item]:
        """Walk a directory, depth first."""
        self._chosen = Selection(self._listed) if self._listed is not None else None
        limiting = (self._chosen, self._wanted, self._mounts, self._shares)
        self._takes_all = all(each is None for each in limiting)
        try:
            levels = [self._open(root.path, root, name, b"", is_whole=self._chosen is None or self._chosen.take(b""))]
            if self._mounts is not None:
                self._mounts.begin(self._directories.get(root, b""))
        except OSError as error:
            raise from_os_error(error, Code.SOURCE, f"can't read {os.fsdecode(root.path)}") from None
        if self._chosen is None and levels[0].is_empty():
            self._tell_empty(levels[0].item)
        if not self._is_sparing and levels[0].is_to_be_listed():
            yield levels[0].item
        try:
            yield from self._below(levels)
        finally:
            self._directories.close()

    def _tell_empty(self, root: Item) -> None:
        """Warn of a directory that the user names and that is empty, as one is on which its volume is not mounted.

        Raises TransferFailed(SOURCE) with --delete: nothing would be left at the destination.
        """
        text = f"{root.shown} is empty: is what should be in it mounted?"
        if self._keeps:
            raise TransferFailed(Code.SOURCE, f"{text} With --delete, nothing would be left at the destination")
        self._warn(text)

    def _below(self, levels: "list[_Level]") -> Iterator[Item]:
        # Not recursive: a tree may be deeper than the stack.
        while levels:
            level = levels[-1]
            status: os.stat_result | None = None
            if self._takes_all and level.is_listed:
                name, status = yield from self._plain_files(level)
            else:
                name = next(level.names, None)
            if name is None:
                levels.pop()
                continue
            found = self._enter(level, name, status)
            if found is None:
                self.passed_over += 1
                continue
            if isinstance(found, _Level):
                levels.append(found)
                if self._is_sparing or not found.is_whole:
                    self.passed_over += 1  # until something in it is yielded, if ever
                    continue
            if not levels[-1].is_listed:  # else all above it are
                yield from (level.item for level in levels if level.is_to_be_listed())
            if isinstance(found, Item):
                yield found
                if self._not_whole is not None:
                    yield self._not_whole
                    self._not_whole = None

    def _plain_files(self, level: "_Level") -> Generator[Item, None, tuple[bytes | None, os.stat_result | None]]:
        """Yield the files of a directory, up to the first entry that needs a closer look.

        Return the name of that, None at the end, and its status if that could be read. A tree may have millions of
        files: nearly always, the status of a file is all that has to be looked at.
        """
        prefix, wire_prefix, root = level.prefix, level.wire_prefix, level.root
        longest, largest = min(limits.PATH_BYTES - len(wire_prefix), limits.NAME_BYTES), self._size_max
        try:
            directory_fd = self._directories.get(root, level.below)
        except OSError:
            return next(level.names, None), None  # `_enter` meets the same error, and tells
        for name in level.names:
            try:
                status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
            except OSError:
                return name, None
            if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= largest or len(name) > longest:
                return name, status
            yield self._file(prefix + name, root, wire_prefix + name, status)
        return None, None

    def _enter(self, level: "_Level", name: bytes, status: os.stat_result | None) -> "Item | _Level | None":
        """Look at one entry of a directory, whose status may be known; return None where it is left out."""
        self._is_own = False
        path, wire_path, below = level.prefix + name, level.wire_prefix + name, level.below_prefix + name
        is_listed = self._chosen is None or self._chosen.take(below) or level.is_whole
        try:
            found = self._find(level, name, status, (path, wire_path, below), is_listed=is_listed)
            if self._chosen is None or isinstance(found, _Level) or found is None:
                return found
            if found.entry.type is not EntryType.DIRECTORY:
                why = "it would be below something else than a directory"
                self._skip_below(path, wire_path, below, SkipKind.VANISHED, why)
            return found
        except Unsendable as error:
            if error.retryable:
                raise
            kind, reason = error.kind, error.why
        except OSError as error:
            failure = from_os_error(error, Code.SOURCE, f"can't read {os.fsdecode(path)}")
            if failure.retryable:  # this process has too many open files: nothing is wrong with the entry
                raise failure from None
            kind = kind_of(error)
            reason = _REASONS.get(kind) or error.strerror or str(error)
            if kind is SkipKind.VANISHED and not level.is_whole:
                reason = "it is in the list of --files-from, but not there"
                if name.endswith(b"\r"):
                    reason += ": its line ends with a carriage return (CR), which would belong to its name"
        if is_listed:
            self._skip(path, wire_path, kind, reason)
        self._skip_below(path, wire_path, below, kind, reason)
        return None

    def _find(
        self,
        level: "_Level",
        name: bytes,
        status: os.stat_result | None,
        paths: tuple[bytes, bytes, bytes],
        *,
        is_listed: bool,
    ) -> "Item | _Level | None":
        """Return what an entry is; None where it is left out. Raises OSError, Unsendable.

        `paths`: where it is, where it goes to, and where it is below the root.
        """
        (path, wire_path, below), root = paths, level.root
        directory_fd = self._directories.get(root, level.below)
        if status is None:
            status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
        if self._follows and stat.S_ISLNK(status.st_mode):
            status = _followed(name, directory_fd, path)
        is_directory = stat.S_ISDIR(status.st_mode)
        if self._wanted is not None and not self._wanted(below, is_directory):
            return None
        if len(wire_path) > limits.PATH_BYTES:
            raise _unreadable(path, f"its path is longer than {limits.PATH_BYTES} bytes")
        if len(name) > limits.NAME_BYTES:  # NTFS, exFAT and SMB count characters
            raise _unreadable(path, f"its name is longer than {limits.NAME_BYTES} bytes")
        if not is_directory and not is_listed:
            reason = f"{os.fsdecode(path)} is no directory"
            raise Unsendable(Code.SOURCE, reason, SkipKind.VANISHED, reason)
        if self._mounts is not None and self._mounts.is_another(name, directory_fd, status):
            self._mounts.tell(path)
            return self._mount_point(path, root, wire_path, status)
        if is_directory:
            return self._open(path, root, wire_path, below, is_whole=is_listed, parent=level)
        return self._item(path, root, wire_path, status)

    def _mount_point(self, path: bytes, root: Root, wire_path: bytes, status: os.stat_result) -> Item | None:
        """Return the item of an entry on which another file system is mounted: a directory arrives empty."""
        kept = Item(Entry(wire_path, EntryType.KEPT, 0, 0, 0), path) if self._keeps else None
        if not stat.S_ISDIR(status.st_mode) or self._is_sparing:
            return kept
        self._not_whole = kept
        entry = self._directory(wire_path, status)
        return Item(self._with_xattrs(entry, path, self._here(path, root)), path)

    def _skip_below(self, path: bytes, wire_path: bytes, below: bytes, kind: SkipKind, reason: str) -> None:
        """Skip each path of --files-from that is below an entry, as that can't be entered."""
        if self._chosen is not None:
            for rest in self._chosen.rest(below):
                end = rest[len(below) :]
                self._skip(path + end, wire_path + end, kind, reason)

    def _skip(self, path: bytes, wire_path: bytes, kind: SkipKind, reason: str) -> None:
        if self._shares is not None and not (self._is_own or self._shares.is_first(wire_path)):
            return  # each shard finds it, and one of them tells it
        self._skipped(Skipped(os.fsdecode(path), reason, kind, wire_path))

    def _open(
        self, path: bytes, root: Root, name: bytes, below: bytes, *, is_whole: bool, parent: "_Level | None" = None
    ) -> "_Level":
        """Open a directory and list it, in the order of its names. Raises OSError, Unsendable.

        If `is_whole`, all that is in it is sent; else only what --files-from lists.
        """
        fd = self._directories.get(root, below)
        status = os.fstat(fd)
        entry = self._directory(name, status)
        if name:  # else it is the destination itself, which keeps its own attributes
            entry = self._with_xattrs(entry, path, fd)
        level = _Level(Item(entry, path), root, below, iter(()), status=status, parent=parent, is_whole=is_whole)
        if self._follows and (above := level.find_again()) is not None:
            raise _unreadable(path, f"it is a symbolic link that leads back to {above.item.shown}")
        names: list[bytes] = []
        if is_whole:
            names = [each for each in map(os.fsencode, os.listdir(fd)) if below or each != NOT_AT_A_ROOT]
            names.sort()
        level.names = self._without_staging(
            names if self._chosen is None else _merged(names, self._chosen.names(below))
        )
        return level

    def _without_staging(self, names: Iterable[bytes]) -> Iterator[bytes]:
        if isinstance(names, list) and not leads_to_staging(b"/".join(names)):  # nearly always: one look for all
            return iter(names)
        return self._all_but_staging(names)

    def _all_but_staging(self, names: Iterable[bytes]) -> Iterator[bytes]:
        for name in names:
            if leads_to_staging(name):
                self._warn(LEFT_OUT)
            else:
                yield name

    def _directory(self, name: bytes, status: os.stat_result) -> Entry:
        if self._digest is not None:
            self._digest.directory(name)
        return self._entry(name, EntryType.DIRECTORY, status)

    def _entry(self, name: bytes, kind: EntryType, status: os.stat_result, size: int = 0) -> Entry:
        mode = status.st_mode & 0o7777
        if not self._owner:
            return Entry(name, kind, size, mode, _mtime_ns(status))
        return Entry(name, kind, size, mode, _mtime_ns(status), status.st_uid, status.st_gid)

    def _is_own_file(self, name: bytes, status: os.stat_result) -> bool:
        """Whether this sender moves a file, or a part of it. It is taken into the digest of the walk."""
        if self._shares is None or self._digest is None:
            return True
        is_linked = status.st_nlink > 1
        self._digest.file(name, status.st_size, _mtime_ns(status), is_linked=is_linked)
        self._is_own = self._shares.has_file(name, status.st_size, is_linked=is_linked)
        return self._is_own

    def _is_own_other(self, name: bytes, status: os.stat_result) -> bool:
        """Return the same for what is neither a file nor a directory."""
        if self._shares is None or self._digest is None:
            return True
        if stat.S_ISLNK(status.st_mode):
            self._digest.symlink(name, _mtime_ns(status))
        else:
            self._digest.other(name)
        return self._shares.is_first(name)

    def _item(self, path: bytes, root: Root, name: bytes, status: os.stat_result) -> Item | None:
        """Return the item of anything but a directory; None where it is not sent. Raises OSError, Unsendable."""
        if stat.S_ISREG(status.st_mode):
            if not self._is_own_file(name, status):
                return None
            self._check_size(path, status)
            return self._file(path, root, name, status)
        if not self._is_own_other(name, status):
            return None
        if stat.S_ISLNK(status.st_mode):
            entry = self._entry(name, EntryType.SYMLINK, status)
            target = self._target(path, root)
            if self._xattrs.is_due():
                entry = self._with_xattrs(entry, path, self._here(path, root))
            return Item(entry._replace(link_target=target), path)
        self._skip(path, name, SkipKind.SPECIAL, f"it is {type_name(status.st_mode)}")
        return Item(Entry(name, EntryType.KEPT, 0, 0, 0), path) if self._keeps else None

    def _target(self, path: bytes, root: Root) -> bytes:
        """Return the target of a symbolic link. Raises OSError."""
        parent, _, name = path.rpartition(b"/")
        try:
            return os.readlink(name, dir_fd=self._directories.get(root, parent[root.skip :]))
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise OSError(errno.ELOOP, "it is no longer a symbolic link") from None
            raise

    def _check_size(self, path: bytes, status: os.stat_result) -> None:
        """Check that a file has no more chunks than a file may have: tables are made for them. Raises Unsendable."""
        if status.st_size > self._size_max:
            raise _unreadable(path, f"--chunk-size {self._chunk_size} cuts it {too_many_chunks(status.st_size)}")

    def _file(self, path: bytes, root: Root | None, name: bytes, status: os.stat_result) -> Item:
        size, is_linked = status.st_size, status.st_nlink > 1
        entry = self._entry(name, EntryType.FILE, status, size)
        identity = Identity.of(status)
        if not size:
            check_empty(Item(entry, path, identity, root=root), status, self._directories)
        if is_linked and (group := self._groups.follow(identity)):
            return Item(entry._replace(hard_link_group=group), path, root=root)
        if (stored_bytes := status.st_blocks * 512) < size:
            entry = entry._replace(data_bytes=stored_bytes)
        if self._xattrs.is_due():
            entry = self._with_xattrs(entry, path, self._here(path, root), follows=root is None or self._follows)
        # Only now, as nothing has failed: the first name of a group carries the bytes of the file.
        if is_linked:
            entry = entry._replace(hard_link_group=self._groups.begin(identity, status.st_nlink - 1))
        return Item(entry, path, identity, None, root)

    def _here(self, path: bytes, root: Root | None) -> bytes:
        """Return a path to an entry below a root that leads through no symbolic link; `path` itself without a root."""
        if root is None:
            return path
        parent, _, name = path.rpartition(b"/")
        return b"/proc/self/fd/%d/%s" % (self._directories.get(root, parent[root.skip :]), name)

    def _with_xattrs(self, entry: Entry, path: bytes, this: int | bytes, **more: bool) -> Entry:
        """Return an entry with its extended attributes, if these are kept. Those that are not are told."""
        xattrs, problem = self._xattrs.read(this, **more)
        if problem:
            self._skip(path, entry.path, SkipKind.ATTRIBUTE, problem)
        return entry._replace(xattrs=xattrs) if xattrs else entry

    # --- files that changed since they were listed

    def look_again(self, item: Item) -> os.stat_result | None:
        """Return the status of a file as it is now; None where that is no regular file any more. Raises OSError.

        Only after the walk has ended.
        """
        name, directory_fd = item.path, None
        if item.root is not None:
            parent, _, name = item.path.rpartition(b"/")
            directory_fd = self._directories.get(item.root, parent[item.root.skip :])
        status = os.stat(name, dir_fd=directory_fd, follow_symlinks=item.root is None or self._follows)
        return status if stat.S_ISREG(status.st_mode) else None

    def list_again(self, item: Item, status: os.stat_result) -> Item:
        """Return the item of a file that was listed before, as it is now. Raises OSError, Unsendable.

        Only a file that is whole this shard's, before and now, is listed again: of another one, the other shards have
        the earlier version.
        """
        if self._shares is not None:
            was_linked, is_linked = bool(item.entry.hard_link_group), status.st_nlink > 1
            was_shared = self._shares.is_shared(item.entry.size, is_linked=was_linked)
            is_shared = self._shares.is_shared(status.st_size, is_linked=is_linked)
            if was_shared or is_shared or was_linked != is_linked:
                raise changed(item, "and other shards have it as it was")
            self._is_own = True
        self._check_size(item.path, status)
        return self._file(item.path, item.root, item.entry.path, status)


class _Level:
    """A directory that is being walked."""

    def __init__(
        self,
        item: Item,
        root: Root,
        below: bytes,
        names: Iterator[bytes],
        *,
        status: os.stat_result,
        parent: "_Level | None",
        is_whole: bool,
    ) -> None:
        """`below` is its path, relative to the root; `names` are its entries that were not looked at yet."""
        self.item = item
        self.prefix = os.path.join(item.path, b"")
        """Its path, as that of each of its entries begins; so do the next two."""
        self.wire_prefix = item.entry.path + b"/" if item.entry.path else b""
        self.below_prefix = below + b"/" if below else b""
        self.is_whole = is_whole
        self._identity = (status.st_dev, status.st_ino)
        self._parent = parent
        self.root = root
        self.below = below
        self.names = names
        self.is_listed = not item.entry.path
        """Whether it was listed; the destination itself is not an entry."""

    def is_empty(self) -> bool:
        """Return whether there is nothing in it that was not looked at yet."""
        first = list(itertools.islice(self.names, 1))
        self.names = itertools.chain(first, self.names)
        return not first

    def is_to_be_listed(self) -> bool:
        """Return whether it was not listed yet; from then on it counts as listed."""
        was_listed, self.is_listed = self.is_listed, True
        return not was_listed

    def find_again(self) -> "_Level | None":
        """Return the directory above this one that is the same one; None where there is none."""
        above = self._parent
        while above is not None and above._identity != self._identity:
            above = above._parent
        return above


def _mtime_ns(status: os.stat_result) -> int:
    mtime_ns = status.st_mtime_ns
    if -_MTIME_END <= mtime_ns < _MTIME_END:
        return mtime_ns
    return _MTIME_END - 1 if mtime_ns > 0 else -_MTIME_END


def _merged(names: list[bytes], listed: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the names in a directory and those of --files-from, each once. Both are in order."""
    last = None
    for name in heapq.merge(names, listed):
        if name != last:
            yield name
        last = name


def _followed(name: bytes, directory_fd: int, path: bytes) -> os.stat_result:
    """Return the status of what a symbolic link leads to. Raises OSError, Unsendable."""
    try:
        return os.stat(name, dir_fd=directory_fd)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise _unreadable(path, "it is a symbolic link that leads to nothing") from None
        if error.errno == errno.ELOOP:
            raise _unreadable(path, "it is a symbolic link that leads back to itself") from None
        raise


def _unreadable(path: bytes, why: str) -> Unsendable:
    return Unsendable(Code.SOURCE, f"can't read {os.fsdecode(path)}: {why}", SkipKind.UNREADABLE, why)


def _check_names(roots: Sequence[tuple[bytes, bytes]]) -> None:
    """Check that no two paths, each with its name, have the same at the destination. Raises UsageError."""
    counts = Counter(name for _, name in roots)
    if counts[b""] > 1:
        raise UsageError("DIR/ goes straight into the destination, and only one can: send the others one by one")
    alike = [name for name, count in counts.items() if count > 1]
    alike += [
        other
        for path, name in roots
        for other in counts
        if not name and other and os.path.lexists(os.path.join(path, other))
    ]
    if alike:
        raise UsageError(
            f"two of the paths would be {os.fsdecode(alike[0])!r} at the destination: send them one by one, with --as"
        )


def destination_name(path: str, as_name: str) -> bytes:
    """Return the name that a path gets at the destination; empty for the contents of a directory."""
    if as_name:
        return os.fsencode(as_name)
    return b"" if path.endswith(("/", "/.")) else os.path.basename(os.fsencode(os.path.abspath(path)))
