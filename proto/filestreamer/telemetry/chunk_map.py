"""Which chunks the receiver has, and which connection brought them: a map of a transfer with at most CELLS cells.

    cell k   chunks [k * chunks_per_cell, (k + 1) * chunks_per_cell); the last cell may have fewer
    brought  how many of them a connection brought in this transfer
    held     how many of them no connection had to bring: the receiver had them before, or they are zeros
    by       the connection that brought the last one; -1 where none did

A cell has an odd number of chunks. Connections take turns, and most transfers have an even number of them: with an even
number of chunks to a cell, only every other connection would ever be the one that brought the last chunk.

The map is written once for each chunk that is done, by the thread that marks it done and under its lock; it is read
without a lock.
"""

from typing import Final

CELLS: Final = 1024


class ChunkMap:
    """The counts of each cell."""

    __slots__ = ("brought", "by", "chunks", "chunks_per_cell", "held")

    def __init__(self, chunks: int = 0) -> None:
        self.chunks = chunks
        self.chunks_per_cell = -(-chunks // CELLS) | 1
        self.brought: list[int] = []
        self.held: list[int] = []
        self.by: list[int] = []
        self.clear()

    def extend(self, chunks: int) -> None:
        """Set the number of chunks, which has grown. Where there would be too many cells, three are merged into one."""
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
        """Clear all counts."""
        cells = -(-self.chunks // self.chunks_per_cell)
        self.brought = [0] * cells
        self.held = [0] * cells
        self.by = [-1] * cells

    def add(self, chunk_id: int, by: int | None) -> None:
        """Count a chunk that connection `by` brought; None: that the receiver had before."""
        cell = chunk_id // self.chunks_per_cell
        if by is None:
            self.held[cell] += 1
        else:
            self.brought[cell] += 1
            self.by[cell] = by

    def add_run(self, chunk_ids: range, by: int) -> None:
        """Count the chunks of a run that connection `by` brought."""
        at, step = chunk_ids.start, chunk_ids.step
        while at < chunk_ids.stop:
            cell = at // self.chunks_per_cell
            count = len(range(at, min(chunk_ids.stop, (cell + 1) * self.chunks_per_cell), step))
            self.brought[cell] += count
            self.by[cell] = by
            at += count * step

    def add_held(self, first: int, end: int) -> None:
        """Count the chunks [first, end) as those that no connection has to bring."""
        while first < end:
            cell = first // self.chunks_per_cell
            stop = min(end, (cell + 1) * self.chunks_per_cell)
            self.held[cell] += stop - first
            first = stop

    def remove(self, chunk_id: int, *, was_held: bool) -> None:
        """Take back a chunk that was counted, as it is missing or differs."""
        counts = self.held if was_held else self.brought
        counts[chunk_id // self.chunks_per_cell] -= 1
