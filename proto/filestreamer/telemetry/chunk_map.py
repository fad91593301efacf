"""Which chunks are there, and which connection brought them: a picture of the transfer, as coarse as it has to be.

    cell k   chunks [k * chunks_per_cell, (k + 1) * chunks_per_cell); the last cell may have fewer
    brought  how many of them a connection brought in this transfer
    held     how many of them were there before
    by       the connection that brought the last one; -1 where none did

At most CELLS cells, whatever the number of chunks, each of an odd number of them: an even one would show, of an even
number of connections that take turns, only every other. Written once a chunk, by whoever settles it and under the lock
that settling takes anyway; read without one.
"""

from typing import Final

CELLS: Final = 1024


class ChunkMap:
    """Counts the chunks of each cell."""

    __slots__ = ("brought", "by", "chunks", "chunks_per_cell", "held")

    def __init__(self, chunks: int = 0) -> None:
        self.chunks = chunks
        self.chunks_per_cell = -(-chunks // CELLS) | 1
        self.brought: list[int] = []
        self.held: list[int] = []
        self.by: list[int] = []
        self.clear()

    def extend(self, chunks: int) -> None:
        """Count so many chunks from now on; where cells run out, three become one."""
        self.chunks = chunks
        while chunks > CELLS * self.chunks_per_cell:
            self.chunks_per_cell *= 3
            self.brought = [sum(self.brought[at : at + 3]) for at in range(0, len(self.brought), 3)]
            self.held = [sum(self.held[at : at + 3]) for at in range(0, len(self.held), 3)]
            self.by = [max(self.by[at : at + 3]) for at in range(0, len(self.by), 3)]
        more = -(-chunks // self.chunks_per_cell) - len(self.by)
        self.brought += [0] * more
        self.held += [0] * more
        self.by += [-1] * more

    def clear(self) -> None:
        """Forget every chunk."""
        cells = -(-self.chunks // self.chunks_per_cell)
        self.brought = [0] * cells
        self.held = [0] * cells
        self.by = [-1] * cells

    def add(self, chunk_id: int, by: int | None) -> None:
        """Count a chunk that this connection brought; None: that was held."""
        cell = chunk_id // self.chunks_per_cell
        if by is None:
            self.held[cell] += 1
        else:
            self.brought[cell] += 1
            self.by[cell] = by

    def remove(self, chunk_id: int, *, was_held: bool) -> None:
        """Take back a chunk that turned out to be missing, or to be another one."""
        counts = self.held if was_held else self.brought
        counts[chunk_id // self.chunks_per_cell] -= 1
