"""Large files whose ctime moved while they were sent: what was read of them has to be read again and compared. Pure.

Each segment is read as long as nobody touches its file (`source.reader`), so its digest belongs to an identity of the
file. As long as all segments of a file have the same one, they are of one version. Where that moves, what was read
before may be of another version than what is read from then on. So all of it is read again, under one identity, and
compared with the pinned digests (`verify`). Until that is done, one chunk of the file is held back: without it the
receiver can't complete the file.

A file of one segment needs none of this.
"""

import threading
from dataclasses import dataclass, field

from sender.source.item import Identity, Item


@dataclass(slots=True, eq=False, repr=False)
class _Moved:
    """A file that moved."""

    listed: tuple[int, int]
    """Its device and inode number when it was listed."""
    latest: Identity
    keeps_inode: bool = True
    """Whether it has had one inode number so far. Once it was read again under another one, these say nothing."""
    is_settled: bool = True
    """Whether all that was read is known to be what the file has under its latest identity."""
    version: int = 0
    """How often a segment was pinned under another identity than the latest one."""
    held: dict[int, int | None] = field(default_factory=dict)
    """Chunks that are held back, each with the epoch in which the receiver rejected it, if it has: it can be queued
    again."""

    def is_latest(self, seen: Identity) -> bool:
        """Whether a file that has this identity has not moved."""
        has_inode = (seen.device, seen.inode) == (self.latest.device, self.latest.inode)
        return seen.ctime_ns == self.latest.ctime_ns and (has_inode or not self.keeps_inode)


class MovedFiles:
    """The large files that moved, by file_id. Any thread may call."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()  # protects all fields
        self._moved: dict[int, _Moved] = {}

    @property
    def is_settled(self) -> bool:
        """Whether no file has to be read again."""
        with self._mutex:
            return all(moved.is_settled for moved in self._moved.values())

    # --- who reads a segment

    def saw(self, file_id: int, item: Item, seen: Identity, chunk_id: int | None = None) -> tuple[bool, bool]:
        """Note the identity that a file had while a segment was read, after the digest of the segment was pinned.

        Return whether the caller has to have the file read again, and whether it has to hold `chunk_id` back.
        """
        before = item.identity
        if before is None or (seen == before and file_id not in self._moved):
            return False, False
        with self._mutex:
            moved = self._moved.get(file_id)
            if moved is None:
                moved = self._moved[file_id] = _Moved((before.device, before.inode), before)
            was_settled, is_latest = moved.is_settled, moved.is_latest(seen)
            if not is_latest:
                # The segment may have been pinned after the others were read again, or be of an earlier version.
                moved.is_settled = False
                moved.version += 1
                if seen.ctime_ns >= moved.latest.ctime_ns:
                    moved.latest = seen
            must_hold = not moved.is_settled and (not is_latest or not moved.held or chunk_id in moved.held)
            if must_hold and chunk_id is not None:
                moved.held.setdefault(chunk_id, None)
            return was_settled and not moved.is_settled, must_hold

    def knows(self, file_id: int) -> bool:
        """Whether a file has moved."""
        return file_id in self._moved

    def rejected(self, chunk_id: int, epoch: int) -> bool:
        """Note that the receiver has rejected a chunk; return whether it can be queued again now."""
        with self._mutex:
            for moved in self._moved.values():
                if chunk_id in moved.held:
                    moved.held[chunk_id] = epoch
                    return False
        return True

    # --- who reads a file again

    def begin_pass(self, file_id: int, seen: Identity) -> int | None:
        """Begin to read a file again, under this identity; return its version. None: it was withdrawn."""
        with self._mutex:
            moved = self._moved.get(file_id)
            if moved is None:
                return None
            moved.keeps_inode = moved.keeps_inode and (seen.device, seen.inode) == moved.listed
            moved.latest = seen
            return moved.version

    def end_pass(self, file_id: int, version: int) -> list[tuple[int, int]] | None:
        """Settle a file that was read again, and did not move meanwhile; None where it has to be read once more.

        Return the chunks that can be queued again, each with the epoch in which it was rejected.
        """
        with self._mutex:
            moved = self._moved.get(file_id)
            if moved is None:
                return []
            if moved.version != version:
                return None
            moved.is_settled = True
            held, moved.held = moved.held, {}
            return [(chunk_id, epoch) for chunk_id, epoch in held.items() if epoch is not None]

    def forget(self, file_id: int) -> None:
        """Forget a file that is withdrawn."""
        with self._mutex:
            self._moved.pop(file_id, None)
