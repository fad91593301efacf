"""Reads files that were listed, and nothing else: a file that is no longer the one in the manifest is an error.

A file is compared with what was listed right after it is opened, so no byte of another file is read. It is compared
again after each segment is read, before the digest of the segment is sent. If only its ctime moved meanwhile, the
segment is read again, until nothing moved: a digest always is that of a file that nobody touched while it was read.
Files are never mmapped: one that is truncated would kill this process.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from filestreamer.wire import limits
from filestreamer.wire.digests import digest_by_blocks
from filestreamer.wire.messages import Segment
from sender.source.directories import Directories
from sender.source.file_systems import has_true_sizes
from sender.source.holes import Extents
from sender.source.item import Identity, Item, changed, check_status, open_listed, unreadable, untold_size

DIRECTORIES_OPEN: Final = 4
"""How many directories each reader keeps open."""
READS_MAX: Final = 4
"""How often bytes are read while the ctime of their file moves each time."""
SPAN_MOST: Final = 2
"""How many times the bytes that are wanted a read may span."""
GAP_BYTES: Final = 8 * limits.KIB
"""The largest gap between these that is read, too: to copy more takes longer than another system call."""
OTHER_BYTES: Final = "its bytes are not the same as when they were read first"
_RESTLESS: Final = "its status changes all the time"
_STREAM: Final = Identity(0, 0, 0, 0, 0)
"""The identity of a stream: its bytes, once they are read, stay as they are."""


class Reader:
    """Reads listed files. Keeps the last one open, and its directories. One thread owns it."""

    def __init__(self) -> None:
        self._item: Item | None = None
        self._fd = -1
        self._opened = (0, 0)  # device and inode number when it was opened
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
                    self.look(item)  # raises where the size is another one by now
                    raise untold_size(item)
                done += count
        except OSError as error:
            raise unreadable(item, error) from None

    def read_whole(self, item: Item, view: memoryview) -> None:
        """Fill `view` with all the bytes of a file, as they are while nobody touches it. Raises Unsendable."""
        before = self.look(item)
        for _ in range(READS_MAX):
            self.read_into(item, view, 0)
            after = self.look(item)
            if after == before:
                self._check_end(item)
                return
            before = after
        raise changed(item, _RESTLESS)

    def read_run(self, item: Item, view: memoryview, offsets: range, length: int) -> None:
        """Fill `view` with the `length` bytes at each of these offsets. Raises Unsendable."""
        if item.stream is None and offsets.step == length:
            self.read_into(item, view, offsets[0])
            return
        pieces = [view[at : at + length] for at in range(0, len(view), length)]
        if item.stream is None and self._read_pieces(item, pieces, offsets):
            return
        for piece, at in zip(pieces, offsets, strict=True):
            self.read_into(item, piece, at)

    def _read_pieces(self, item: Item, pieces: list[memoryview], offsets: range) -> bool:
        """Read pieces of equal length; return whether all of them came whole."""
        if item is not self._item:
            self._open(item)
        fd, length, preadv = self._fd, len(pieces[0]), os.preadv
        try:
            if offsets.step > min(SPAN_MOST * length, length + GAP_BYTES):
                read = [preadv(fd, (piece,), at) for piece, at in zip(pieces, offsets, strict=True)]
                return read.count(length) == len(read)
            # With one system call, what lies between them included.
            gap = memoryview(bytearray(offsets.step - length))
            spans = [*itertools.chain.from_iterable(zip(pieces, itertools.repeat(gap)))][:-1]
            return preadv(fd, spans, offsets[0]) == offsets[-1] - offsets[0] + length
        except OSError as error:
            raise unreadable(item, error) from None

    def extents(self, item: Item) -> Extents:
        """Return what tells the holes of a file, until another one is read. Raises Unsendable."""
        if item is not self._item:
            self._open(item)
        return self._extents

    def has_holes(self, item: Item, segment: Segment) -> bool:
        """Whether a file still has the holes that its segment has, or others of these places. Raises Unsendable."""
        extents = self.extents(item)
        return all(is_data or extents.hole_end(start) >= end for start, end, is_data in segment.pieces())

    def look(self, item: Item) -> Identity:
        """Return the identity of a file as it is now. Raises Unsendable where it is not what was listed."""
        if item.stream is not None:
            return _STREAM
        if item is not self._item:
            return self._open(item)
        try:
            status = os.fstat(self._fd)
        except OSError as error:
            raise unreadable(item, error) from None
        now = check_status(item, status)
        if now[:2] != self._opened:  # an open file stays the same one, whatever number its file system gives it
            return now._replace(device=self._opened[0], inode=self._opened[1])
        return now

    def digest(
        self, item: Item, offset: int, length: int, block: memoryview, on_read: Callable[[int], object] | None = None
    ) -> bytes:
        """Return the digest of a segment, read through `block` piece by piece. Raises Unsendable.

        `on_read` is called with the number of bytes of each piece.
        """
        return digest_by_blocks(partial(self.read_into, item), offset, length, block, on_read)

    def confirm(self, item: Item, before: Identity, offset: int, length: int, digest: bytes) -> Identity:
        """Return the identity that a file had all the while that a segment with this digest was read.

        `before` is what `look` returned before. Where that moved meanwhile, the segment is read again. Raises
        Unsendable where it has other bytes then, or where the file moves each time.
        """
        return self.confirm_run(item, before, range(offset, offset + 1), length, (digest,))

    def confirm_run(
        self, item: Item, before: Identity, offsets: range, length: int, digests: Sequence[bytes]
    ) -> Identity:
        """Do the same for several segments of one length, which were read together."""
        for _ in range(READS_MAX):
            after = self.look(item)
            if after == before:
                if offsets[-1] + length == item.entry.size:
                    self._check_end(item)
                return after
            before = after
            block = memoryview(bytearray(min(limits.BLOCK_BYTES, length)))
            for offset, digest in zip(offsets, digests, strict=True):
                if self.digest(item, offset, length, block) != digest:
                    raise changed(item, OTHER_BYTES)
        raise changed(item, _RESTLESS)

    def _check_end(self, item: Item) -> None:
        """Check that a file ends where its size says, on a file system that may lie about that. Raises Unsendable."""
        if item.stream is not None or has_true_sizes(self._opened[0]):
            return
        try:
            has_more = bool(os.pread(self._fd, 1, item.entry.size))
        except OSError as error:
            raise unreadable(item, error) from None
        if has_more:
            self.look(item)  # raises where the file has grown meanwhile
            raise untold_size(item)

    def _open(self, item: Item) -> Identity:
        """Open a file; return the identity that it had then. Raises Unsendable."""
        self._close_file()
        self._fd, now = open_listed(item, self._directories)
        self._opened = now[:2]
        self._item = item
        self._extents = Extents(self._fd, item.entry.size)
        return now

    def _close_file(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._item, self._fd = None, -1

    def close(self) -> None:
        """Close every descriptor. Idempotent."""
        self._close_file()
        self._directories.close()
