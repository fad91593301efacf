"""A small file, of one segment at most: written whole into the staging of its tree.

No ledger records it: a small file that is not complete when its connection ends, or the receiver is killed, is sent
again.
"""

import os
from collections.abc import Sequence

from filestreamer.wire.errors import Code, from_os_error
from filestreamer.wire.messages import Entry
from receiver.disk.attributes import Attributes
from receiver.disk.space import write_at
from receiver.file.target import Connection
from receiver.tree.commit.tree_staging import TreeStaging


class SmallFile:
    """One delivery of a small file by one connection. For the thread of that connection."""

    __slots__ = ("_attributes", "_fd", "_file_id", "_reasons", "connection", "entry", "name", "staging")

    def __init__(
        self,
        staging: TreeStaging,
        name: str,
        entry: Entry,
        connection: Connection,
        *,
        file_id: int,
        attributes: Attributes,
    ) -> None:
        """Write the file under `name` in staging; it is made with its first byte."""
        self.name = name
        self.entry = entry
        self.connection = connection
        self.staging = staging
        self._attributes = attributes
        self._file_id = file_id
        self._reasons: Sequence[str] = ()
        self._fd = -1

    def write(self, view: memoryview, offset: int) -> None:
        """Write the next bytes; after the last ones, set all its attributes, and close. Raises TransferFailed."""
        entry = self.entry
        try:
            if not offset:
                self._fd = self.staging.create(self.name, entry)
            fd = self._fd
            write_at(fd, view, offset, entry.holes)
            if offset + len(view) == entry.size:
                if entry.holes:  # the last hole may be the end of the file, where nothing was written
                    os.ftruncate(fd, entry.size)
                mode_is_right = self.staging.has_mode(entry)
                self._reasons = self._attributes.try_file(fd, entry, self._file_id, mode_is_right=mode_is_right)
                if self.staging.place.syncs_each:
                    os.fsync(fd)
                self._fd = -1  # first: a close(2) that fails has closed the descriptor all the same
                os.close(fd)
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't write {os.fsdecode(entry.path)!a}") from None

    def tell(self) -> None:
        """Report what could not be set of the file, now that its digest is right."""
        self._attributes.tell(self.entry, self._file_id, self._reasons)

    def discard(self) -> None:
        """Close and remove the file: its digest is wrong, its connection has ended, or it was withdrawn."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self.staging.remove(self.name)


def make_file(staging: TreeStaging, attributes: Attributes, name: str, entry: Entry, file_id: int) -> None:
    """Stage a file that no byte is sent for: an empty one, or one of holes only. Raises TransferFailed."""
    try:
        fd = staging.create(name, entry)
        try:
            os.ftruncate(fd, entry.size)
            attributes.put_file(fd, entry, file_id)
            if staging.place.syncs_each:
                os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise from_os_error(error, Code.DESTINATION, f"can't write {os.fsdecode(entry.path)!a}") from None
