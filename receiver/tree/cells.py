"""Hash tables with open addressing (linear probing), for millions of names: keys of eight bytes in an array.

A cell that is 0 is empty. The number of cells is a power of two, and at most half of them are used. Two names are taken
for one in 1 of 2^64 cases.
"""

from array import array
from typing import Final

from filestreamer.wire.digests import checksum

FIRST_CELLS: Final = 16
"""Few, as there may be thousands of tables at once: one for each directory that leads to an entry."""


def empty_cells(count: int) -> "array[int]":
    """Return so many empty cells."""
    return array("Q", bytes(8 * count))


def cells_for(keys: int, cells: int) -> int:
    """Return how many cells a table of `cells` has once it holds so many keys."""
    while 2 * keys > cells:
        cells *= 2
    return cells


def key_of(name: bytes) -> int:
    """Return the key of a name, which is not 0."""
    return int.from_bytes(checksum(name), "big") or 1


def find_cell(cells: "array[int]", key: int) -> int:
    """Return the index of the cell that has a key, or of the one where it would go."""
    mask = len(cells) - 1
    cell = key & mask
    while cells[cell] not in (0, key):
        cell = (cell + 1) & mask
    return cell
