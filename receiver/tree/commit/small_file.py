"""A small file, of one segment at most: written whole into the staging of its tree.

No ledger records it: a small file that is not complete when its connection ends, or the receiver is killed, is sent
again.
"""

import os
from collections.abc import Callable, Sequence

from filestreamer.wire.errors import TransferFailed
from filestreamer.wire.messages import Entry, Segment
from receiver.disk.attributes.attributes import Attributes
from receiver.disk.obstacles import Obstacle, write_failure
from receiver.disk.space import write_at
from receiver.file.target import Connection
from receiver.tree.commit.declines import Declines
from receiver.tree.commit.tree_staging import TreeStaging


class SmallFile:
    """One delivery of a small file by one connection. For the thread of that connection."""

    __slots__ = (
        "_attributes",
        "_data_end",
        "_declines",
        "_fd",
        "_reasons",
        "connection",
        "entry",
        "file_id",
        "is_declined",
        "name",
        "staging",
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
        self.staging = staging
        self._attributes = attributes
        self._declines = declines
        self._reasons: Sequence[str] = ()
        self._fd = -1
        self._data_end = entry.size
        """The end of its last byte that is written."""

    def begin_sparse(self, segment: Segment) -> None:
        """Begin a file with holes, of which only the data is written. Raises TransferFailed."""
        self._data_end = max([end for _, end, is_data in segment.pieces() if is_data], default=0)
        self._unless_declined(self._begin_sparse)

    def _begin_sparse(self) -> None:
        self._fd = self.staging.create(self.name, self.entry)
        os.ftruncate(self._fd, self.entry.size)
        if not self._data_end:
            self._finish()

    def write(self, view: memoryview, offset: int) -> None:
        """Write the next bytes; after the last ones, set all its attributes, and close. Raises TransferFailed.

        The file is declined where it is too large for the file system, or can't have a mode as narrow as it must.
        """
        try:  # as `_unless_declined` does, without a call more for each file
            if not self.is_declined:
                self._write(view, offset)
        except (OSError, Obstacle) as error:
            self._take_failure(error)

    def _unless_declined(self, step: Callable[[], None]) -> None:
        """Take a step, unless the file is declined; an obstacle declines it. Raises TransferFailed."""
        if self.is_declined:
            return
        try:
            step()
        except (OSError, Obstacle) as error:
            self._take_failure(error)

    def _take_failure(self, error: OSError | Obstacle) -> None:
        """Decline the file where an obstacle is in its way. Raises TransferFailed."""
        failed = _failure(error, self.entry) if isinstance(error, OSError) else error
        if not isinstance(failed, Obstacle):
            raise failed from None
        self.discard()
        self.is_declined = True
        self._declines.decline(self.entry.path, self.file_id, self.entry.hard_link_group, failed)

    def _write(self, view: memoryview, offset: int) -> None:
        if self._fd < 0:
            self._fd = self.staging.create(self.name, self.entry)
        write_at(self._fd, view, offset)
        if offset + len(view) == self._data_end:
            self._finish()

    def _finish(self) -> None:
        """Set all attributes of the file, and close it. Raises Obstacle, OSError."""
        fd, entry = self._fd, self.entry
        mode_is_right = self.staging.has_mode(entry)
        self._reasons = self._attributes.try_file(fd, entry, self.file_id, mode_is_right=mode_is_right)
        if self.staging.place.syncs_each:
            os.fsync(fd)
        self._fd = -1  # first: a close(2) that fails has closed the descriptor all the same
        os.close(fd)

    def tell(self) -> None:
        """Report what could not be set of the file, now that its digest is right."""
        if self._reasons:
            self._attributes.tell(self.entry, self.file_id, self._reasons)

    def discard(self) -> None:
        """Close and remove the file: its digest is wrong, its connection has ended, or it is not wanted any more."""
        if self.is_declined:
            return
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self.staging.remove(self.name)


def make_file(staging: TreeStaging, attributes: Attributes, name: str, entry: Entry, file_id: int) -> None:
    """Stage an empty file. Raises Obstacle, TransferFailed."""
    try:
        fd = staging.create(name, entry)
        try:
            attributes.put_file(fd, entry, file_id)
            if staging.place.syncs_each:
                os.fsync(fd)
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
