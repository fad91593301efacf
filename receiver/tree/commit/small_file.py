"""A file of one segment: written whole into the staging of its tree, in one go where it comes in one block."""

import os
from typing import Final

from filestreamer.wire.errors import Code, from_os_error
from filestreamer.wire.messages import Entry
from receiver.disk.store import write_at
from receiver.file.target import Connection
from receiver.tree.commit.committer import TreeStaging, put_attributes


class SmallFile:
    """One delivery of a small file: it is open between its first byte and its last. For one connection's thread.

    No ledger notes it: what is not complete when a receiver is killed is sent again.
    """

    __slots__ = ("_fd", "_staging", "connection", "entry", "name")
    ledger_writer: Final = None

    def __init__(self, staging: TreeStaging, name: str, entry: Entry, connection: Connection) -> None:
        """Write it under `name` in staging."""
        self.name = name
        self.entry = entry
        self.connection = connection
        self._staging = staging
        self._fd = -1

    def write(self, view: memoryview, offset: int) -> None:
        """Write the next bytes; after the last ones it has its mode and times. Raises TransferFailed."""
        entry = self.entry
        try:
            if not offset:
                self._fd = self._staging.create(self.name, entry)
            fd = self._fd
            write_at(fd, view, offset, entry.holes)
            if offset + len(view) == entry.size:
                if entry.holes:
                    os.ftruncate(fd, entry.size)
                put_attributes(fd, entry, mode_is_right=self._staging.has_mode(entry))
                self._fd = -1
                os.close(fd)
        except OSError as error:
            shown = ascii(os.fsdecode(entry.path))
            raise from_os_error(error, Code.DESTINATION, f"can't write {shown}") from None

    def abandon(self) -> None:
        """Close and remove it: its connection has left, or it is not wanted."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._staging.remove(self.name)


class Discard:
    """Takes the place of a file whose bytes are only compared."""

    ledger_writer: Final = None

    def write(self, view: memoryview, offset: int) -> None:
        """Nobody writes."""


DISCARD: Final = Discard()


def make_file(staging: TreeStaging, name: str, entry: Entry) -> None:
    """Make a file without a byte of its own: an empty one, or one of holes alone. Raises TransferFailed."""
    try:
        fd = staging.create(name, entry)
        try:
            os.ftruncate(fd, entry.size)
            put_attributes(fd, entry)
        finally:
            os.close(fd)
    except OSError as error:
        raise from_os_error(error, Code.DESTINATION, f"can't write {os.fsdecode(entry.path)!a}") from None
