"""Which large files of a tree are open, in the order in which they were used, and the room that they take.

An open file takes descriptors (a place of the process-wide `DescriptorPool`) and memory for the table of its segments.
`large_files` opens a file when there is room, and sets aside the one that was used longest ago when there is none.
"""

import threading
import time
from collections import OrderedDict
from typing import Final, NamedTuple

from filestreamer.wire import limits
from receiver.disk.descriptors import PLACES
from receiver.memory.budget import Account
from receiver.tree.manifest.large_file import LargeFile, OpenLargeFile
from receiver.tree.manifest.part_state import PartState

SEGMENT_BYTES: Final = 1 + limits.DIGEST_BYTES
OWN_BYTES: Final = SEGMENT_BYTES * 64 * limits.KIB
"""Memory for tables that a transfer has without borrowing: a file whose table fits can always be opened."""
IDLE_SECONDS: Final = 1.0
"""How long an unused file may keep a borrowed table."""


def table_bytes(large: LargeFile) -> int:
    """Return what the table of a large file takes in memory while the file is open."""
    return SEGMENT_BYTES * large.grid.segments


class Room(NamedTuple):
    """What an open file takes: a place for its descriptors, and memory for its table."""

    own_bytes: int
    """Out of OWN_BYTES."""
    borrowed_bytes: int
    """Out of the account of the transfer."""


class _Entry(NamedTuple):
    part_state: PartState
    file_index: int
    room: Room
    used_at: float
    """Monotonic seconds."""


class OpenFiles:
    """The open large files of one tree. Any thread may call; the lock is taken last, and never held while waiting."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._places = PLACES
        self._lock = threading.Lock()  # protects what follows
        self._entries: OrderedDict[OpenLargeFile, _Entry] = OrderedDict()
        """The file that was used longest ago is the first."""
        self._own_bytes = OWN_BYTES
        """What is left of OWN_BYTES."""
        self._places.add_tree(self)

    def __len__(self) -> int:
        with self._lock:
            return len(self._entries)

    def all(self) -> list[tuple[OpenLargeFile, PartState, int]]:
        """Return the open files with their part and index in it, the one that was used longest ago first."""
        with self._lock:
            return [(open_file, entry.part_state, entry.file_index) for open_file, entry in self._entries.items()]

    # --- room

    def check(self, large: LargeFile) -> None:
        """Raise TransferFailed(TOO_LARGE) for a file whose table can never be in memory."""
        self._account.check(table_bytes(large))

    def try_take_room(self, large: LargeFile) -> Room | None:
        """Take room for a file, if there is some now."""
        size = table_bytes(large)
        with self._lock:
            own_bytes = size if size <= self._own_bytes else 0
            self._own_bytes -= own_bytes
        room = Room(own_bytes, size - own_bytes)
        if room.borrowed_bytes and not self._account.try_borrow(room.borrowed_bytes):
            return None
        if self._places.try_take(self):
            return room
        self._give_back_memory(room)
        return None

    def try_take_place(self, borrowed_bytes: int) -> Room | None:
        """Take a place for a file whose memory was borrowed before; give the memory back if there is no place."""
        if self._places.try_take(self):
            return Room(0, borrowed_bytes)
        self._account.give_back(borrowed_bytes)
        return None

    def give_back(self, room: Room) -> None:
        """Give back the room of a file that was closed, or was not opened after all."""
        self._places.give_back(self)
        self._give_back_memory(room)

    def _give_back_memory(self, room: Room) -> None:
        with self._lock:
            self._own_bytes += room.own_bytes
        if room.borrowed_bytes:
            self._account.give_back(room.borrowed_bytes)

    @property
    def has_excess_places(self) -> bool:
        """Whether this tree has more places than its share, which becomes smaller when other trees begin."""
        return bool(self._places.excess(self))

    # --- open files

    def add(self, open_file: OpenLargeFile, part_state: PartState, index: int, room: Room) -> None:
        """Add a file that was opened in this room."""
        with self._lock:
            self._entries[open_file] = _Entry(part_state, index, room, time.monotonic())

    def touch(self, open_file: OpenLargeFile) -> None:
        """Note that a file is used now."""
        with self._lock:
            entry = self._entries.get(open_file)
            if entry is not None:
                self._entries[open_file] = entry._replace(used_at=time.monotonic())
                self._entries.move_to_end(open_file)

    def remove(self, open_file: OpenLargeFile) -> None:
        """Remove a file that was closed, and give its room back. Idempotent."""
        with self._lock:
            entry = self._entries.pop(open_file, None)
        if entry is not None:
            self.give_back(entry.room)

    def idle(self) -> list[tuple[PartState, int]]:
        """Return the files whose table is borrowed, and which were not used for IDLE_SECONDS."""
        before = time.monotonic() - IDLE_SECONDS
        with self._lock:
            return [
                (entry.part_state, entry.file_index)
                for entry in self._entries.values()
                if entry.room.borrowed_bytes and entry.used_at < before
            ]

    def close(self) -> None:
        """Give back all places."""
        self._places.remove_tree(self)
