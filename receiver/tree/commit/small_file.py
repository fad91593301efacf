"""A small file, of one segment at most: written whole into the staging of its tree.

No ledger records it: a small file that is not complete when its connection ends, or the receiver is killed, is sent
again.
"""

import os
from collections.abc import Sequence

from filestreamer.wire.errors import TransferFailed
from filestreamer.wire.messages import Entry
from receiver.disk.attributes import Attributes
from receiver.disk.obstacles import Obstacle, write_failure
from receiver.disk.space import write_at
from receiver.file.target import Connection
from receiver.tree.commit.declines import Declines
from receiver.tree.commit.tree_staging import TreeStaging


class SmallFile:
    """One delivery of a small file by one connection. For the thread of that connection."""

    __slots__ = (
        "_attributes",
        "_declines",
        "_fd",
        "_reasons",
        "_staging",
        "connection",
        "entry",
        "file_id",
        "is_declined",
        "name",
    )

    def __init__(
        self,
        staging: TreeStaging,
        entry: Entry,
        file_id: int,
        connection: Connection,
        *,
        attributes: Attributes,
        declines: Declines,
        is_declined: bool = False,
    ) -> None:
        """Write the file into staging; it is made with its first byte. Of a declined file, nothing is written."""
        self.name = staging.name(file_id, connection.connection_id)
        self.entry = entry
        self.file_id = file_id
        self.connection = connection
        self.is_declined = is_declined
        self._staging = staging
        self._attributes = attributes
        self._declines = declines
        self._reasons: Sequence[str] = ()
        self._fd = -1

    def write(self, view: memoryview, offset: int) -> None:
        """Write the next bytes; after the last ones, set all its attributes, and close. Raises TransferFailed.

        The file is declined where it is too large for the file system, or can't have a mode as narrow as it must.
        """
        if self.is_declined:
            return
        try:
            self._write(view, offset)
        except Obstacle as obstacle:
            self.discard()
            self.is_declined = True
            self._declines.decline(self.entry.path, self.file_id, self.entry.hard_link_group, obstacle)

    def _write(self, view: memoryview, offset: int) -> None:
        entry = self.entry
        try:
            if not offset:
                self._fd = self._staging.create(self.name, entry)
            fd = self._fd
            write_at(fd, view, offset, entry.holes)
            if offset + len(view) == entry.size:
                if entry.holes:  # the last hole may be the end of the file, where nothing was written
                    os.ftruncate(fd, entry.size)
                mode_is_right = self._staging.has_mode(entry)
                self._reasons = self._attributes.try_file(fd, entry, self.file_id, mode_is_right=mode_is_right)
                self._fd = -1  # first: a close(2) that fails has closed the descriptor all the same
                os.close(fd)
        except OSError as error:
            raise _failure(error, entry) from None

    def tell(self) -> None:
        """Report what could not be set of the file, now that its digest is right."""
        self._attributes.tell(self.entry, self.file_id, self._reasons)

    def discard(self) -> None:
        """Close and remove the file: its digest is wrong, its connection has ended, or it is not wanted any more."""
        if self.is_declined:
            return
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._staging.remove(self.name)


def make_file(staging: TreeStaging, attributes: Attributes, name: str, entry: Entry, file_id: int) -> None:
    """Stage a file that no byte is sent for: an empty one, or one of holes only. Raises Obstacle, TransferFailed."""
    try:
        fd = staging.create(name, entry)
        try:
            os.ftruncate(fd, entry.size)
            attributes.put_file(fd, entry, file_id)
        finally:
            os.close(fd)
    except Obstacle:
        staging.remove(name)
        raise
    except OSError as error:
        staging.remove(name)
        raise _failure(error, entry) from None


def _failure(error: OSError, entry: Entry) -> TransferFailed:
    return write_failure(error, f"can't write {os.fsdecode(entry.path)!a}")
