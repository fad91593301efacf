"""Gathers the names that the manifest lists in each directory, and hands the directory on when all of it has come."""

from collections.abc import Callable

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
    """Takes the entries of a manifest in order; `look` gets each directory below the roots when it is complete."""

    def __init__(self, deletion: Deletion, look: Callable[[ListedDirectory], None]) -> None:
        self._roots = frozenset(deletion.roots)
        self._look = look
        self._order = DepthFirst()
        self._open = [ListedDirectory(b"", b"" if b"" in self._roots else None)]

    def take(self, entry: Entry, *, is_there: bool = True) -> None:
        """Take the next entry; `is_there` says whether the destination has it. Raises RemoteProtocolError."""
        for _ in range(self._order.take(entry)):
            self._close()
        directory = self._open[-1]
        if entry.type is EntryType.KEPT and entry.path == directory.path:
            directory.is_whole = False
            return
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

    def end(self) -> None:
        """Hand on what is still open: the manifest is over."""
        while self._open:
            self._close()

    def _close(self) -> None:
        directory = self._open.pop()
        if directory.root is not None and directory.is_whole:
            self._look(directory)
