"""Gathers the names that the manifest lists in each directory, and returns the directory when all of it has come."""

from filestreamer.wire.messages import Deletion, Entry, EntryType
from receiver.tree.mirror.depth_first import DepthFirst
from receiver.tree.top_level_names import Names


class ListedDirectory:
    """A directory that the manifest lists, or the destination itself."""

    def __init__(self, path: bytes, root: bytes | None) -> None:
        """`root` is the root of the Deletion that the directory is in, or is; None: nothing is removed from it."""
        self.path = path
        self.root = root
        self.is_whole = True
        """Whether the manifest says everything that is in it at the source."""
        self.moved = Names()
        """The names of entries that are at the destination, too."""
        self.moved_count = 0
        self._kept: Names | None = None

    def keep(self, name: bytes) -> None:
        """Note a name that exists at the source and was not moved."""
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
        self._open = [ListedDirectory(b"", b"" if b"" in self._roots else None)]

    def take(self, entry: Entry, *, is_there: bool = True) -> list[ListedDirectory]:
        """Take the next entry; return the directories below the roots that are complete by that.

        `is_there` says whether the destination has the entry. Raises RemoteProtocolError.
        """
        complete = self._close(self._order.take(entry))
        directory = self._open[-1]
        if entry.type is EntryType.KEPT and entry.path == directory.path:
            directory.is_whole = False
            return complete
        name = entry.path.rpartition(b"/")[2]
        if directory.root is not None:
            if entry.type is EntryType.KEPT:
                directory.keep(name)
            else:
                directory.moved.add(name)
                directory.moved_count += is_there
        if entry.type is EntryType.DIRECTORY:
            root = entry.path if entry.path in self._roots else directory.root
            self._open.append(ListedDirectory(entry.path, root))
        return complete

    def end(self) -> list[ListedDirectory]:
        """Return what is still open: the manifest is over."""
        return self._close(len(self._open))

    def _close(self, count: int) -> list[ListedDirectory]:
        closed = [self._open.pop() for _ in range(count)]
        return [directory for directory in closed if directory.root is not None and directory.is_whole]
