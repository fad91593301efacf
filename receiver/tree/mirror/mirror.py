"""Gathers the names that the manifest lists in each directory, and returns the directory when all of it has come."""

from typing import Final

from filestreamer.wire.messages import Deletion, Entry, EntryType
from receiver.tree.mirror.depth_first import DepthFirst
from receiver.tree.top_level_names import NAME_BYTES_MOST, Names

DIRECTORY_BYTES: Final = 1024
"""The most that a directory takes in memory beside its names, and with the first of these."""


class ListedDirectory:
    """A directory that the manifest lists, or the destination itself."""

    __slots__ = ("_kept", "_path_length", "_within", "is_whole", "moved", "moved_count", "names", "root")

    def __init__(self, path_length: int, root: bytes | None) -> None:
        """`root` is the root of the Deletion that the directory is in, or is; None: nothing is removed from it."""
        self._path_length = path_length
        self._within = b""
        self.root = root
        self.is_whole = True
        """Whether the manifest says everything that is in it at the source."""
        self.moved = Names()
        """The names of entries that are at the destination, too."""
        self.moved_count = 0
        self.names = 0
        """How many names are noted."""
        self._kept: Names | None = None

    def complete(self, within: bytes) -> None:
        """Take the path of a directory in it, or its own: while it was open, it had none of its own."""
        self._within = within

    @property
    def path(self) -> bytes:
        """Its path, once it is complete."""
        return self._within[: self._path_length]

    def move(self, name: bytes, *, is_there: bool) -> None:
        """Note the name of an entry; `is_there` says whether the destination has it."""
        self.names += 1
        self.moved.add(name)
        self.moved_count += is_there

    def keep(self, name: bytes) -> None:
        """Note a name that exists at the source and was not moved."""
        self.names += 1
        if self._kept is None:
            self._kept = Names()
        self._kept.add(name)

    def is_listed(self, name: bytes) -> bool:
        """Whether the manifest has this name in the directory."""
        return name in self.moved or (self._kept is not None and name in self._kept)


class Mirror:
    """Takes the entries of a manifest in order."""

    def __init__(self, deletion: Deletion) -> None:
        self._roots = frozenset(deletion.roots)
        self._order = DepthFirst()
        self._open = [ListedDirectory(0, b"" if b"" in self._roots else None)]
        self._names = 0
        """How many names these have."""

    def table_bytes(self, entries: int) -> int:
        """Return how much memory it takes at most, once so many more entries came."""
        return DIRECTORY_BYTES * (len(self._open) + entries) + NAME_BYTES_MOST * (self._names + entries)

    def take(self, entry: Entry, *, is_there: bool = True) -> list[ListedDirectory]:
        """Take the next entry; return the directories below the roots that are complete by that.

        `is_there` says whether the destination has the entry. Raises RemoteProtocolError.
        """
        within = self._order.path
        complete = self._close(self._order.take(entry), within)
        directory = self._open[-1]
        if entry.type is EntryType.KEPT and entry.path == self._order.path:
            directory.is_whole = False
            return complete
        name = entry.path.rpartition(b"/")[2]
        if directory.root is not None:
            if entry.type is EntryType.KEPT:
                directory.keep(name)
            else:
                directory.move(name, is_there=is_there)
            self._names += 1
        if entry.type is EntryType.DIRECTORY:
            root = entry.path if entry.path in self._roots else directory.root
            self._open.append(ListedDirectory(len(entry.path), root))
        return complete

    def end(self) -> list[ListedDirectory]:
        """Return what is still open: the manifest is over."""
        return self._close(len(self._open), self._order.path)

    def _close(self, count: int, within: bytes) -> list[ListedDirectory]:
        """Close the innermost directories, of which `within` is the first."""
        closed = [self._open.pop() for _ in range(count)]
        for directory in closed:
            directory.complete(within)
            self._names -= directory.names
        return [directory for directory in closed if directory.root is not None and directory.is_whole]
