"""Names that the destination does not tell apart: A and a, the normal forms of one letter, a name with a dot behind it.

Where two entries of a tree would get one place, the second one is declined, and the first is named. Most destinations
tell all names apart, and nothing is kept for them. If a trial at the start, or what is found of an entry, shows that
this one does not, a table has a hash and the file_id of each entry from then on, and of all entries before.
"""

import os
import stat

from filestreamer.wire.messages import Entry
from receiver.disk.obstacles import Obstacle
from receiver.tree.cells import FIRST_CELLS, cells_for, empty_cells, find_cell, key_of
from receiver.tree.commit.traits import folded, has_another_name, listed_name, not_told_apart, takes_for_one
from receiver.tree.commit.tree_staging import TreeStagings
from receiver.tree.entries.locations import Location, Locations
from receiver.tree.manifest.archive import Archive


class Folding:
    """Finds entries of one tree whose names the destination takes for one. For one thread."""

    def __init__(self, stagings: TreeStagings, archive: Archive, locations: Locations) -> None:
        self._stagings = stagings
        self._archive = archive
        self._locations = locations
        self.is_needed = stagings.top.traits.folds_names
        """Whether names are known to be folded: each entry has to be compared with those before it."""
        self._noted = 0
        """Entries of the manifest that are in the table."""
        self._keys = empty_cells(FIRST_CELLS)
        self._file_ids = empty_cells(FIRST_CELLS)
        """The file_id of the key in the same cell."""
        self._count = 0
        self._trials = 0

    def table_bytes(self, entries: int) -> int:
        """Return how many bytes the table takes after so many more entries."""
        if not self.is_needed:
            return 0
        return 16 * cells_for(self._count + entries, len(self._keys))

    def begin(self, entry: Entry, file_id: int) -> None:
        """Take note that names are folded where an entry goes, if not at the top. Raises Obstacle as `check` does."""
        if not self.is_needed:
            self.is_needed = True
            self.check(entry, file_id)

    def check(self, entry: Entry, file_id: int) -> None:
        """Note an entry; raise Obstacle where an earlier one has its place. Entries come in the order of file_ids."""
        if not self.is_needed:
            return
        self._note_until(file_id)
        first_id = self._note(entry.path, file_id)
        if first_id is not None and first_id != file_id:
            self._compare(entry, self._path_of(first_id))

    def find(self, entry: Entry, file_id: int, location: Location) -> None:
        """Find out whether the place of an entry, where something is, is found under another name, too.

        Raises Obstacle as `check` does.
        """
        found = location.there
        if self.is_needed or found is None:
            return
        fd, name = location.directory.fd, location.name
        if has_another_name(fd, name, found) and _has_one_name(fd, name, found):
            self.is_needed = True
            self.check(entry, file_id)

    def _compare(self, entry: Entry, first: bytes) -> None:
        """Raise Obstacle if the destination takes two paths for one that are alike."""
        if first == entry.path:
            raise self._locations.obstacle(entry, "it was listed before")
        parent, _, name = first.rpartition(b"/")
        own = entry.path.rpartition(b"/")[2]
        # With a prefix that is new: the kernel may remember for a while what a name led to.
        self._trials += 1
        prefix = b"%d " % self._trials
        is_one = takes_for_one(self._stagings.of(entry.path).fd, prefix + name, prefix + own)
        if not is_one:  # but maybe this directory folds names, and the staging does not
            fd = self._locations.directories.get(parent, create=True).fd
            try:
                there = os.stat(name, dir_fd=fd, follow_symlinks=False)
                other = os.stat(own, dir_fd=fd, follow_symlinks=False)
            except OSError:
                return
            is_one = os.path.samestat(there, other) and _has_one_name(fd, own, other)
        if is_one:
            raise self.obstacle(entry, first)

    def obstacle(self, entry: Entry, first: bytes) -> Obstacle:
        """Return the error for an entry that would take the place of an earlier one."""
        obstacle = self._locations.obstacle(entry, not_told_apart(first))
        obstacle.directory = entry.path
        return obstacle

    # --- the table

    def _note_until(self, file_id: int) -> None:
        """Note all entries before this one that are not in the table yet."""
        while self._noted < file_id:
            part = self._archive.part(self._archive.number_with(self._noted))
            for at in range(self._noted - part.first_file_id, len(part.entries)):
                if self._noted >= file_id:
                    return
                self._note(part.entries[at].path, self._noted)

    def _note(self, path: bytes, file_id: int) -> int | None:
        """Note an entry, unless another has its key: return the file_id of that."""
        self._noted = max(self._noted, file_id + 1)
        if 2 * (self._count + 1) > len(self._keys):
            self._grow()
        parent, slash, name = path.rpartition(b"/")  # a directory above that was folded is declined itself
        key = key_of(parent + slash + folded(name))
        cell = find_cell(self._keys, key)
        if self._keys[cell]:
            return self._file_ids[cell]
        self._keys[cell], self._file_ids[cell] = key, file_id
        self._count += 1
        return None

    def _grow(self) -> None:
        keys, file_ids = empty_cells(2 * len(self._keys)), empty_cells(2 * len(self._keys))
        for key, file_id in zip(self._keys, self._file_ids, strict=True):
            if key:
                cell = find_cell(keys, key)
                keys[cell], file_ids[cell] = key, file_id
        self._keys, self._file_ids = keys, file_ids

    def _path_of(self, file_id: int) -> bytes:
        part = self._archive.part(self._archive.number_with(file_id))
        return part.entries[file_id - part.first_file_id].path


def _has_one_name(directory_fd: int, name: bytes, found: os.stat_result) -> bool:
    """Whether a file that is found under two names that are alike has only one: else they are hard links."""
    if found.st_nlink == 1 or stat.S_ISDIR(found.st_mode):
        return True
    return listed_name(directory_fd, name, found) != name
