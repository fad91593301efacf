"""The hard-link groups of a walk: which file has which group, and how many names of it are to come.

A file may have names that the walk never meets, so what is known of it is kept to the end. There may be millions of
such files: each takes 36 to 44 bytes, in arrays. Device and inode are compared as they are, not by a digest: two files
never get one group.
"""

from array import array
from typing import Final

from sender.source.item import Identity

FIRST_CELLS: Final = 1024
_LEFT_MOST: Final = (1 << 32) - 1


class HardLinkGroups:
    """The files with several names, of which one was listed. For one thread.

    A group is a row of the columns: the first group, 1, is the first row. A hash table with open addressing (linear
    probing) finds the latest group of a file. A cell that is 0 is empty. The number of cells is a power of two, and at
    most half of them are used.
    """

    def __init__(self) -> None:
        self._devices = array("Q")
        self._inodes = array("Q")
        self._states = array("q")
        """Hashes of what changes when a file is written to, or gets or loses a name."""
        self._left = array("I")
        """How many names are to come."""
        self._cells = array("I", [0]) * FIRST_CELLS

    def begin(self, identity: Identity, left: int) -> int:
        """Return a new group for a file of which so many names are to come."""
        self._devices.append(identity.device)
        self._inodes.append(identity.inode)
        self._states.append(_state(identity))
        self._left.append(min(left, _LEFT_MOST))
        group = len(self._inodes)
        if 2 * group > len(self._cells):
            self._grow()
        else:
            self._cells[self._find(identity.device, identity.inode)] = group
        return group

    def follow(self, identity: Identity) -> int:
        """Return the group of a file that was listed under another name; 0 where it was not, or no name is to come."""
        group = self._cells[self._find(identity.device, identity.inode)]
        if not group or self._states[group - 1] != _state(identity) or not self._left[group - 1]:
            return 0
        self._left[group - 1] -= 1
        return group

    def _find(self, device: int, inode: int) -> int:
        """Return the index of the cell that has the latest group of a file, or of the one where it would go."""
        mask = len(self._cells) - 1
        cell = hash((device, inode)) & mask
        while group := self._cells[cell]:
            if self._inodes[group - 1] == inode and self._devices[group - 1] == device:
                break
            cell = (cell + 1) & mask
        return cell

    def _grow(self) -> None:
        self._cells = array("I", [0]) * (2 * len(self._cells))
        for group, (device, inode) in enumerate(zip(self._devices, self._inodes, strict=True), 1):
            self._cells[self._find(device, inode)] = group  # a later group of the same file takes its cell


def _state(identity: Identity) -> int:
    return hash((identity.size, identity.mtime_ns, identity.ctime_ns))
