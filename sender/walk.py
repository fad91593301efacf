"""From the paths that a user names to the entries of a manifest, in one walk that keeps a list of names a level.

    PATH     a file, or a directory with all that is in it, under its own name
    PATH/    what is in a directory, straight into the destination

Names are bytes, in whatever encoding they have. Directories come before what is in them, and names in order, so that
two walks of one tree are the same. Symlinks are entries; only those that the user names are followed. What can't be
read, or is neither file, directory nor symlink, is told, and the walk goes on.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from sender.source import Identity, Item, check_readable
from service.counters import Skipped
from wire import limits
from wire.errors import Code, UsageError, from_os_error
from wire.messages import Entry, EntryType, Hole

STAGING: Final = b".filestreamer"
"""What a receiver keeps in a directory; it is never an entry."""
NOT_AT_A_ROOT: Final = (STAGING, b"lost+found")
_MTIME_END: Final = 1 << 63
"""An entry's time is signed, in 64 bits: later ones, after 2262, become the last one that it can be."""
HOLE_BYTES_MIN: Final = 64 * limits.KIB
"""Smaller holes are sent as the zeros that they read as, unless the file is smaller itself."""


Wanted = Callable[[bytes, bool], bool]
"""Whether a path below a root (and whether that is a directory) is to be moved."""


class Walk:
    """An iterator of items; `skipped` hears, in between, of what is left out."""

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
        """`as_name` replaces the name of a single path; `is_sparing` leaves out directories without a wanted file.

        Raises UsageError where two paths would have one name.
        """
        self._roots = [(os.fsencode(path), _name(path, as_name)) for path in paths]
        names = [name for _, name in self._roots]
        if len(set(names)) < len(names) or any(
            not name and any(os.path.lexists(os.path.join(path, other)) for other in names if other)
            for path, name in self._roots
        ):
            raise UsageError(
                "two of the paths have the same name at the destination: send them one by one, or use --as"
            )
        self._skipped = skipped
        self._wanted = wanted
        self._is_sparing = is_sparing
        self._owner = owner
        self._links: dict[Identity, tuple[int, int]] = {}
        """Of files with several names: their hard-link group, and how many names are still to come."""
        self._groups = 0

    def __iter__(self) -> Iterator[Item]:
        """Walk. Raises TransferFailed(SOURCE) where a path that the user named is not there or can't be read."""
        for path, name in self._roots:
            try:
                status = os.stat(path)
            except OSError as error:
                raise from_os_error(error, Code.SOURCE, f"can't read {os.fsdecode(path)}") from None
            if stat.S_ISDIR(status.st_mode):
                yield from self._tree(path, name, status)
            else:
                check_readable(path)
                yield self._file(path, name, status)

    def _tree(self, root: bytes, name: bytes, status: os.stat_result) -> Iterator[Item]:
        """Walk a directory, depth first, without recursion: a tree may be deeper than the stack."""
        root = root.rstrip(b"/") or root
        try:
            levels = [_Level(self._directory(root, name, status), b"", iter(self._list(root, NOT_AT_A_ROOT)))]
        except OSError as error:
            raise from_os_error(error, Code.SOURCE, f"can't read {os.fsdecode(root)}") from None
        if not self._is_sparing and levels[0].is_to_be_told():
            yield levels[0].item
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
                yield from (level.item for level in levels if level.is_to_be_told())
            if isinstance(found, Item):
                yield found

    def _enter(self, level: "_Level", name: bytes) -> "Item | _Level | None":
        """Look at one entry of a directory; None where it is not moved."""
        parent = level.item
        path = os.path.join(parent.path, name)
        below = level.below + b"/" + name if level.below else name
        wire_path = parent.entry.path + b"/" + name if parent.entry.path else name
        try:
            status = os.lstat(path)
            is_directory = stat.S_ISDIR(status.st_mode)
            if self._wanted is not None and not self._wanted(below, is_directory):
                return None
            if len(wire_path) > limits.PATH_BYTES:
                self._skip(path, f"its path is longer than {limits.PATH_BYTES} bytes", is_failure=True)
                return None
            if is_directory:
                return _Level(self._directory(path, wire_path, status), below, iter(self._list(path)))
            return self._item(path, wire_path, status)
        except FileNotFoundError:
            self._skip(path, "it vanished while the tree was walked")
        except OSError as error:
            failure = from_os_error(error, Code.SOURCE, f"can't read {os.fsdecode(path)}")
            if failure.retryable:  # no descriptor is left: nothing is wrong with the entry
                raise failure from None
            self._skip(path, error.strerror or str(error), is_failure=True)
        return None

    def _skip(self, path: bytes, reason: str, *, is_failure: bool = False) -> None:
        self._skipped(Skipped(os.fsdecode(path), reason, is_failure))

    def _list(self, path: bytes, skip: Iterable[bytes] = (STAGING,)) -> list[bytes]:
        """List a directory, in the order of its names. Raises OSError."""
        names = os.listdir(path)
        for name in skip:
            if name in names:
                names.remove(name)
        names.sort()
        return names

    def _directory(self, path: bytes, name: bytes, status: os.stat_result) -> Item:
        return Item(self._entry(name, EntryType.DIRECTORY, status), path)

    def _entry(self, name: bytes, kind: EntryType, status: os.stat_result, size: int = 0) -> Entry:
        owner = (status.st_uid, status.st_gid) if self._owner else (None, None)
        mtime_ns = min(max(status.st_mtime_ns, -_MTIME_END), _MTIME_END - 1)
        return Entry(name, kind, size, status.st_mode & 0o777, mtime_ns, *owner)

    def _item(self, path: bytes, name: bytes, status: os.stat_result) -> Item | None:
        """Return the item of what is no directory; None where it can't be moved. Raises OSError."""
        if stat.S_ISREG(status.st_mode):
            return self._file(path, name, status)
        if stat.S_ISLNK(status.st_mode):
            target = os.readlink(path)
            return Item(self._entry(name, EntryType.SYMLINK, status)._replace(link_target=target), path)
        self._skip(path, f"it is {_what_it_is(status.st_mode)}")
        return None

    def _file(self, path: bytes, name: bytes, status: os.stat_result) -> Item:
        entry = self._entry(name, EntryType.FILE, status, status.st_size)
        identity = Identity.of(status)
        if status.st_nlink > 1 and (group := self._follow(identity)):
            return Item(entry._replace(hard_link_group=group), path)
        if status.st_blocks * 512 < status.st_size:
            entry = entry._replace(holes=holes(path, status.st_size))
        if status.st_nlink > 1:  # and nothing has failed: the first of a group is sent
            self._groups += 1
            self._links[identity] = (self._groups, status.st_nlink - 1)
            entry = entry._replace(hard_link_group=self._groups)
        return Item(entry, path, identity)

    def _follow(self, identity: Identity) -> int:
        """Return the hard-link group of a file of which another name was listed; 0 where none was."""
        group, left = self._links.pop(identity, (0, 0))
        if left > 1:
            self._links[identity] = (group, left - 1)
        return group


class _Level:
    """A directory that is being walked."""

    def __init__(self, item: Item, below: bytes, names: Iterator[bytes]) -> None:
        """`below` is its path below the one that the user named."""
        self.item = item
        self.below = below
        self.names = names
        self._is_told = not item.entry.path  # the destination itself is no entry

    def is_to_be_told(self) -> bool:
        """Whether it is not told yet; it is then."""
        is_told, self._is_told = self._is_told, True
        return not is_told


def _name(path: str, as_name: str) -> bytes:
    """Return the name that a path gets at the destination; empty for the contents of a directory."""
    if as_name:
        return os.fsencode(as_name)
    return b"" if path.endswith(("/", "/.")) else os.path.basename(os.fsencode(os.path.abspath(path)))


def _what_it_is(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFBLK: "a device", stat.S_IFCHR: "a device"}
    return kinds.get(stat.S_IFMT(mode), "no regular file")


def holes(path: bytes, size: int) -> tuple[Hole, ...]:
    """Return the holes of a sparse file, in order, as far as they are worth it and an entry can tell them.

    None are known where the file system can't tell them. Raises OSError where the file can't be opened.
    """
    least = min(HOLE_BYTES_MIN, size)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = [hole for hole in _all_holes(fd, size) if hole.length >= least]
    except OSError:
        return ()
    finally:
        os.close(fd)
    largest = sorted(found, key=lambda hole: -hole.length)[: limits.HOLES_PER_FILE]
    return tuple(sorted(largest))


def _all_holes(fd: int, size: int) -> Iterator[Hole]:
    """Yield the holes in the first `size` bytes. Raises OSError where they can't be told."""
    end = 0
    while end < size and (start := os.lseek(fd, end, os.SEEK_HOLE)) < size:
        try:
            end = min(os.lseek(fd, start, os.SEEK_DATA), size)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            end = size  # no data follows
        yield Hole(start, end - start)


def pattern_filter(include: Sequence[str], exclude: Sequence[str]) -> Wanted:
    """Return what chooses by patterns in gitignore's syntax, relative to each path that the user names.

    A directory that is excluded is not entered. With `include`, only files that match one of these are moved. Raises
    UsageError for what is no pattern.
    """
    from pathspec import GitIgnoreSpec

    try:
        included, excluded = (GitIgnoreSpec.from_lines(map(_on_one_line, each)) for each in (include, exclude))
    except ValueError as error:
        raise UsageError(f"--include, --exclude: {error}") from None

    def wanted(path: bytes, is_directory: bool) -> bool:
        name = _on_one_line(os.fsdecode(path)) + ("/" if is_directory else "")
        if excluded.match_file(name):
            return False
        return is_directory or not include or included.match_file(name)

    return wanted


def _on_one_line(text: str) -> str:
    """Replace newlines by what is in no name: in the regular expressions of patterns they are no character."""
    return text.replace("\n", "\udc0a")
