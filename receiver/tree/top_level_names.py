"""The names at the top of the destination that a tree holds, so that no other transfer writes there meanwhile.

The name of a plain file is passing: it is held from its listing until the file is in place. The name of a directory,
and each name of a file that has several, is held to the end. There may be millions of these: of each only a digest of
eight bytes is kept.
"""

import contextlib
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from receiver.disk.destination import Destination
from receiver.tree.cells import FIRST_CELLS, cells_for, empty_cells, find_cell, key_of

NAME_BYTES_MOST: Final = 32
"""The most that a name takes in large `Names`."""


class Names:
    """A set of names that only grows, 16 to 32 bytes each (`receiver.tree.cells`)."""

    __slots__ = ("_cells", "_count")

    def __init__(self) -> None:
        self._cells = empty_cells(FIRST_CELLS)
        self._count = 0

    def __contains__(self, name: bytes) -> bool:
        return self._cells[find_cell(self._cells, key_of(name))] != 0

    def add(self, name: bytes) -> None:
        """Add a name."""
        if 2 * (self._count + 1) > len(self._cells):
            self._grow()
        key = key_of(name)
        cell = find_cell(self._cells, key)
        self._count += not self._cells[cell]
        self._cells[cell] = key

    def growth_bytes(self, count: int) -> int:
        """Return how many more bytes the table takes after `count` more names."""
        return 8 * (cells_for(self._count + count, len(self._cells)) - len(self._cells))

    def table_bytes(self, count: int) -> int:
        """Return how many bytes the table takes after `count` more names."""
        return 8 * len(self._cells) + self.growth_bytes(count)

    def _grow(self) -> None:
        cells = empty_cells(2 * len(self._cells))
        for key in self._cells:
            if key:
                cells[find_cell(cells, key)] = key
        self._cells = cells


class TopLevelNames:
    """The names that one tree holds. Any thread may call."""

    def __init__(
        self,
        destination: Destination,
        check: Callable[[bytes], None],
        is_free: Callable[[bytes], bool] | None = None,
        closing: Callable[[], AbstractContextManager[bool]] | None = None,
    ) -> None:
        """`check` raises TransferFailed(BUSY) where another transfer holds a name; else it calls `take`.

        `is_free` calls `take` as well, unless another transfer holds the name; it displaces none. `closing` is for
        a shard of the tree.
        """
        self._closing = closing
        self.destination = destination
        self._check = check
        self._is_free = is_free
        self._lock = threading.Lock()  # protects what follows
        self._passing: set[bytes] = set()
        self._lasting = Names()

    def __contains__(self, name: bytes) -> bool:
        with self._lock:
            return name in self._passing or name in self._lasting

    def claim(self, name: bytes, *, passes: bool = False) -> None:
        """Hold a name to the end or, with `passes`, until it is released. Raises TransferFailed: POLICY, BUSY."""
        if name not in self:
            self._check(name)
        if not passes:
            with self._lock:
                self._passing.discard(name)
                self._lasting.add(name)

    def try_claim(self, name: bytes) -> bool:
        """Hold a name until it is released, if no transfer holds it, this one included; return whether it is held."""
        return name not in self and self._is_free is not None and self._is_free(name)

    def take(self, name: bytes) -> None:
        """Note a name that no other transfer holds."""
        with self._lock:
            self._passing.add(name)

    def release(self, path: bytes) -> None:
        """Release a passing name for other transfers. Do nothing for a path below a directory."""
        if b"/" not in path:
            with self._lock:
                self._passing.discard(path)

    def closing(self) -> AbstractContextManager[bool]:
        """Begin to set the modes and times of directories; enter returns whether no other shard writes into them.

        Waits while another shard does the same. If none writes, none begins in the meantime.
        """
        return self._closing() if self._closing is not None else contextlib.nullcontext(True)

    def growth_bytes(self, count: int) -> int:
        """Return how many more bytes it takes to hold `count` more names to the end."""
        with self._lock:
            return self._lasting.growth_bytes(count)
