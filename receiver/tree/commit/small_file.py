"""A small file, of one segment at most: written whole into the staging of its tree.

No ledger records it: a small file that is not complete when its connection ends, or the receiver is killed, is sent
again.
"""

import os

from filestreamer.wire.errors import Code, TransferFailed, from_os_error
from filestreamer.wire.messages import Entry, Segment
from receiver.disk.final_name import put_attributes
from receiver.disk.space import write_at
from receiver.file.target import Connection
from receiver.tree.commit.tree_staging import TreeStaging


class SmallFile:
    """One delivery of a small file by one connection. For the thread of that connection."""

    __slots__ = ("_data_end", "_fd", "_staging", "connection", "entry", "name")

    def __init__(self, staging: TreeStaging, name: str, entry: Entry, connection: Connection) -> None:
        """Write the file under `name` in staging; it is made with its first byte."""
        self.name = name
        self.entry = entry
        self.connection = connection
        self._staging = staging
        self._fd = -1
        self._data_end = entry.size
        """The end of its last byte that is written."""

    def begin_sparse(self, segment: Segment) -> None:
        """Begin a file with holes, of which only the data is written. Raises TransferFailed."""
        self._data_end = max([end for _, end, is_data in segment.pieces() if is_data], default=0)
        try:
            self._fd = self._staging.create(self.name, self.entry)
            os.ftruncate(self._fd, self.entry.size)
            if not self._data_end:
                self._finish()
        except OSError as error:
            raise self._failed(error) from None

    def write(self, view: memoryview, offset: int) -> None:
        """Write the next bytes; after the last ones, set mode and times, and close. Raises TransferFailed."""
        try:
            if self._fd < 0:
                self._fd = self._staging.create(self.name, self.entry)
            write_at(self._fd, view, offset)
            if offset + len(view) == self._data_end:
                self._finish()
        except OSError as error:
            raise self._failed(error) from None

    def _finish(self) -> None:
        """Set mode and times, and close. Raises OSError."""
        fd = self._fd
        put_attributes(fd, self.entry, mode_is_right=self._staging.has_mode(self.entry))
        self._fd = -1  # first: a close(2) that fails has closed the descriptor all the same
        os.close(fd)

    def _failed(self, error: OSError) -> TransferFailed:
        return from_os_error(error, Code.DESTINATION, f"can't write {os.fsdecode(self.entry.path)!a}")

    def discard(self) -> None:
        """Close and remove the file: its digest is wrong, its connection has ended, or it was withdrawn."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._staging.remove(self.name)


def make_file(staging: TreeStaging, name: str, entry: Entry) -> None:
    """Stage an empty file. Raises TransferFailed."""
    try:
        fd = staging.create(name, entry)
        try:
            put_attributes(fd, entry)
        finally:
            os.close(fd)
    except OSError as error:
        raise from_os_error(error, Code.DESTINATION, f"can't write {os.fsdecode(entry.path)!a}") from None
