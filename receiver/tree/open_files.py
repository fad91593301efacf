"""Large files of a tree that are open: a cache, in the order in which they were used.

Descriptors and tables are what an open file takes. Where there is no place for another one, or no memory for its table,
one that no connection is inside is set aside: what is known of it goes to the spool, and it is opened again when its
next chunk comes. Who waits has nothing that others wait for.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from filestreamer.wire import limits
from filestreamer.wire.errors import ConnectionLost
from receiver.disk.descriptors import PLACES, DescriptorPool
from receiver.file.target import Connection
from receiver.memory.budget import Account
from receiver.tree.manifest.large_file import Large, OpenLargeFile
from receiver.tree.manifest.part_state import PartState

SEGMENT_BYTES: Final = 1 + limits.DIGEST_BYTES
TABLE_BYTES: Final = SEGMENT_BYTES * 64 * limits.KIB
"""Tables that a transfer has of its own: those of one file at least."""
WAIT_SECONDS: Final = 0.1
IDLE_SECONDS: Final = 1.0
"""How long a table that is borrowed may lie unused."""


def table_bytes(large: Large) -> int:
    """Return what an open file keeps of its segments."""
    return SEGMENT_BYTES * large.grid.segments


class OpenFiles:
    """The cache of one tree. The lock protects every field with an underscore, and is taken last."""

    def __init__(
        self,
        account: Account,
        set_aside: Callable[[PartState, int], bool],
        hurry: Callable[[], None],
        places: DescriptorPool | None = None,
    ) -> None:
        """`set_aside` closes a file, unless somebody is inside; whether it did. `hurry` has complete ones closed soon.

        What waits here is called without any lock.
        """
        self._account = account
        self._set_aside = set_aside
        self._hurry = hurry
        self._places = places or PLACES
        self._lock = threading.Lock()
        self._files: OrderedDict[OpenLargeFile, tuple[PartState, int, float]] = OrderedDict()
        self._free_bytes = TABLE_BYTES
        self._is_over = False
        self._places.enter(self)

    def __len__(self) -> int:
        with self._lock:
            return len(self._files)

    def all(self) -> list[tuple[OpenLargeFile, PartState, int]]:
        """Return what is open, the one that was used longest ago first."""
        with self._lock:
            return [(open_file, part_state, index) for open_file, (part_state, index, _) in self._files.items()]

    def check(self, large: Large) -> None:
        """Raise TransferFailed(TOO_LARGE) for a file whose table never fits."""
        self._account.check(table_bytes(large))

    # --- room for another one

    def try_room(self, large: Large) -> tuple[int, int] | None:
        """Take room for another open file if there is some: free and borrowed bytes of its table."""
        size = table_bytes(large)
        with self._lock:
            free = size if size <= self._free_bytes else 0
            self._free_bytes -= free
        borrowed = size - free
        if borrowed and not self._account.try_borrow(borrowed):
            return None
        if self._places.try_take(self):
            return free, borrowed
        self._give_back(free, borrowed)
        return None

    def room(self, large: Large, connection: Connection | None) -> tuple[int, int]:
        """Take room for another open file, waiting for it. Raises ConnectionLost where the connection is to end."""
        while (room := self.try_room(large)) is None:
            if self.make_room():
                continue
            self.wait(connection)
            size = table_bytes(large)
            if size > TABLE_BYTES:
                self._account.borrow(size, lambda: self._check_over(connection))
                if self._places.try_take(self):
                    return 0, size
                self._account.give_back(size)
        return room

    def wait(self, connection: Connection | None) -> None:
        """Wait a little. Raises ConnectionLost where the connection is to end."""
        self._check_over(connection)
        if connection is not None:
            connection.acknowledge()
        self._hurry()
        time.sleep(WAIT_SECONDS)
        self._check_over(connection)

    def _check_over(self, connection: Connection | None) -> None:
        if self._is_over or (connection is not None and connection.is_ended):
            raise ConnectionLost("the transfer is over, or goes on over another connection")

    def make_room(self) -> bool:
        """Set aside the file that was used longest ago and that nobody is inside; whether there was one."""
        return any(self._set_aside(part_state, index) for _, part_state, index in self.all())

    def give_back(self, free: int, borrowed: int) -> None:
        """Take back the room of a file that was not opened after all."""
        self._places.give_back(self)
        self._give_back(free, borrowed)

    def _give_back(self, free: int, borrowed: int) -> None:
        with self._lock:
            self._free_bytes += free
        if borrowed:
            self._account.give_back(borrowed)

    # --- what is open

    def add(self, open_file: OpenLargeFile, part_state: PartState, index: int, room: tuple[int, int]) -> None:
        """Keep a file that was opened in room that was taken."""
        open_file.free_bytes, open_file.borrowed_bytes = room
        with self._lock:
            self._files[open_file] = (part_state, index, time.monotonic())

    def touch(self, open_file: OpenLargeFile) -> None:
        """Note that a file is used."""
        with self._lock:
            if open_file in self._files:
                part_state, index, _ = self._files[open_file]
                self._files[open_file] = (part_state, index, time.monotonic())
                self._files.move_to_end(open_file)

    def remove(self, open_file: OpenLargeFile) -> None:
        """Forget a file that was closed."""
        with self._lock:
            known = self._files.pop(open_file, None)
        if known is not None:
            self.give_back(open_file.free_bytes, open_file.borrowed_bytes)

    @property
    def is_to_be_trimmed(self) -> bool:
        """Whether others could use what lies idle here."""
        return bool(self._places.excess(self) or self._idle())

    def _idle(self) -> list[tuple[PartState, int]]:
        before = time.monotonic() - IDLE_SECONDS
        with self._lock:
            return [
                (part_state, index)
                for open_file, (part_state, index, used_at) in self._files.items()
                if open_file.borrowed_bytes and used_at < before
            ]

    def trim(self) -> None:
        """Give back borrowed tables that lie idle, and places beyond the share of this tree."""
        for part_state, index in self._idle():
            self._set_aside(part_state, index)
        while self._places.excess(self) and self.make_room():
            pass

    def end(self) -> None:
        """Let nobody wait any more."""
        self._is_over = True

    def close(self) -> None:
        """Give all places back."""
        self._places.leave(self)
