"""The parts of the manifest that were taken up: active ones in memory, the others in the archive.

A part is active from when it is taken up until no file of it is pending or in use. Then it is archived, and a copy of
it is read where its chunks come again, or the manifest is listed again. A file that was HELD may be sent after all, as
its source has changed: then its part becomes active again.
"""

import threading
from collections import OrderedDict
from typing import Final

from filestreamer.wire.errors import RemoteProtocolError
from receiver.file.target import Connection
from receiver.memory.budget import Account
from receiver.tree.large_files import LargeFiles
from receiver.tree.manifest.archive import Archive, memory_bytes
from receiver.tree.manifest.part_state import PartState

COPIES: Final = 4
"""Archived parts of which a copy stays in memory."""


class PartTable:
    """The parts by number. Any thread may call; `archive_done` is for the coordinator."""

    def __init__(self, chunk_size: int, archive: Archive, large_files: LargeFiles, account: Account) -> None:
        self._chunk_size = chunk_size
        self._archive = archive
        self._large_files = large_files
        self._account = account
        self.entries = 0
        """Entries of all parts that were taken up. Only the thread that takes up parts changes it."""
        self._lock = threading.Lock()  # protects what follows; a thread may hold the lock of a part when it takes it
        self._active: dict[int, PartState] = {}
        self._copies: OrderedDict[int, PartState] = OrderedDict()

    # --- look up

    def number_with(self, file_id: int) -> int:
        """Return the number of the part that lists a file. Raises RemoteProtocolError where it was not taken up."""
        if not 0 <= file_id < self.entries:
            raise RemoteProtocolError(f"file {file_id} was not offered")
        return self._archive.number_with(file_id)

    def find(self, file_id: int) -> tuple[PartState, int]:
        """Return the part that lists a file, and the file's index in it. Raises RemoteProtocolError."""
        part_state = self.get(self.number_with(file_id))
        return part_state, file_id - part_state.first

    def get(self, number: int) -> PartState:
        """Return a part that was taken up: the active one, or a copy."""
        with self._lock:
            part_state = self._active.get(number) or self._copies.get(number)
        if part_state is None:
            copy = self._archive.restore(number)
            with self._lock:
                part_state = self._active.get(number) or self._copies.setdefault(number, copy)
                while len(self._copies) > COPIES:
                    self._copies.popitem(last=False)
        return part_state

    def get_active(self, number: int) -> PartState | None:
        """Return a part that is active; None where it is not."""
        with self._lock:
            return self._active.get(number)

    def acquire(self, number: int) -> PartState:
        """Return a part as `get` does, with its lock held: the caller releases it."""
        while True:
            part_state = self.get(number)
            part_state.lock.acquire()
            if not part_state.is_archived:
                return part_state
            part_state.lock.release()  # archived while this thread waited for the lock

    @property
    def active(self) -> list[PartState]:
        """The active parts."""
        with self._lock:
            return list(self._active.values())

    @property
    def has_done(self) -> bool:
        """Whether an active part can be archived, as far as is known without its lock."""
        with self._lock:
            return any(not part_state.is_pending for part_state in self._active.values())

    # --- change

    def add(self, part_state: PartState) -> None:
        """Add a part that is taken up."""
        self.activate(part_state)
        self.entries += len(part_state.entries)

    def activate(self, part_state: PartState) -> None:
        """Make this object the active one: connections write into it from now on."""
        with self._lock:
            self._activate(part_state)

    def _activate(self, part_state: PartState) -> None:
        part_state.is_active = True
        self._active[part_state.number] = part_state
        self._copies.pop(part_state.number, None)

    def activate_again(self, part_state: PartState, connection: Connection | None) -> None:
        """Make the copy of a part the active one, as soon as there is memory; `connection` waits until then.

        Another thread may have done so meanwhile: the caller looks the part up again. Raises ConnectionLost.
        """
        size = memory_bytes(part_state.entries, self._chunk_size)
        self._account.borrow(size, lambda: self._large_files.wait(connection))
        # The caller's copy may be older than the archive: while this thread waited, the part was active and was
        # archived again.
        copy = self.get(part_state.number)
        with self._lock:
            is_first = self._copies.get(copy.number) is copy
            if is_first:
                copy.borrowed_bytes = size
                self._activate(copy)
        if not is_first:
            self._account.give_back(size)

    def archive_done(self) -> None:
        """Archive each active part without pending or used files; set its open large files aside."""
        for part_state in self.active:
            with part_state.lock:
                if not part_state.is_idle:
                    continue
                for index in part_state.large:
                    self._large_files.set_aside(part_state, index)
                self._archive.save(part_state)
                part_state.is_archived = True
                with self._lock:
                    del self._active[part_state.number]
                self._account.give_back(part_state.borrowed_bytes)
