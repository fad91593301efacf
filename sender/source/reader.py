"""Reads files that were listed, and nothing else: a file that is no longer the one in the manifest is an error.

A file is compared with what was listed right after it is opened, so no byte of another file is read. It is compared
again after each chunk is read, before the chunk's digest is sent. Files are never mmapped: one that is truncated would
kill this process.
"""

import os
from typing import Final

from sender.source.directories import Directories
from sender.source.holes import Extents
from sender.source.item import Item, changed, check_status, open_listed, unreadable

DIRECTORIES_OPEN: Final = 4
"""How many directories each reader keeps open."""


class Reader:
    """Reads listed files. Keeps the last one open, and its directories. One thread owns it."""

    def __init__(self) -> None:
        self._item: Item | None = None
        self._fd = -1
        self._extents = Extents(-1, 0)
        self._directories = Directories(DIRECTORIES_OPEN)

    def read_into(self, item: Item, view: memoryview, offset: int) -> None:
        """Fill `view` with the bytes of a file from `offset` on. Raises Unsendable."""
        if item.stream is not None:
            item.stream.read_into(view, offset)
            return
        if item is not self._item:
            self._open(item)
        try:
            done = os.preadv(self._fd, (view,), offset)
            while done < len(view):
                count = os.preadv(self._fd, [view[done:]], offset + done)
                if not count:
                    raise changed(item, "it is shorter than it was")
                done += count
        except OSError as error:
            raise unreadable(item, error) from None

    def extents(self, item: Item) -> Extents:
        """Return what tells the holes of a file, until another one is read. Raises Unsendable."""
        if item is not self._item:
            self._open(item)
        return self._extents

    def check_unchanged(self, item: Item) -> None:
        """Compare a file with what was listed. Raises Unsendable."""
        if item.stream is not None:
            return  # the bytes that were read of a stream stay as they are
        if item is not self._item:
            self._open(item)
            return
        try:
            status = os.fstat(self._fd)
        except OSError as error:
            raise unreadable(item, error) from None
        check_status(item, status)

    def _open(self, item: Item) -> None:
        self._close_file()
        self._fd = open_listed(item, self._directories)
        self._item = item
        self._extents = Extents(self._fd, item.entry.size)

    def _close_file(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._item, self._fd = None, -1

    def close(self) -> None:
        """Close every descriptor. Idempotent."""
        self._close_file()
        self._directories.close()
