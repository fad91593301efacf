"""The space of a file on the disk: taken ahead of its bytes, given back where no bytes came, freed where zeros are.

1. `FileSpace` takes space ahead of the bytes of one staged file (posix_fallocate(3)).
2. `SpaceLender` decides how much, over all files that are staged in a destination.
3. `write_at` writes bytes, and `make_zeros` zeros, without space where that is possible; `holes` asks the disk where
   there are no bytes.
4. `free_ranges` and `free_unclaimed` give space back (punching holes, fallocate(2)).

Why ahead: connections write at many offsets of one file at once. A file system that knows the size beforehand lays the
file out in few extents, and each write has less to do under the lock of the inode. And no other process gets that space
meanwhile.

What a file may take ahead grows with what was written of it, so that a sender of few bytes never takes a large part of
the disk: all of the file as long as all files together take no more than AHEAD_BYTES; beyond that, as much again as has
been written of the file.

No space is taken ahead for a sparse file, whose holes are known only as its chunks come; nor where a file system writes
each block to a new place: there it would be of no use, and may switch compression off (btrfs).
"""

import ctypes
import errno
import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from filestreamer.wire.digests import ZEROS
from filestreamer.wire.limits import BLOCK_BYTES, MIB
from filestreamer.wire.messages import Entry
from receiver.disk.filesystem.kind import writes_in_place

STEP_BYTES: Final = 256 * MIB
"""How much one call takes: in a file system in memory each page costs time, during which writers wait."""
GRAIN_BYTES: Final = 64 * MIB
"""The least that is taken in one step, except for the end of the file: many small extents are no layout."""
AHEAD_BYTES: Final = 1024 * MIB
"""How much space all staged files of a destination may take together, beyond twice what was written of each."""
FILE_SYSTEM_BLOCK_BYTES: Final = 4096
"""Holes that are smaller than this free no space."""
_PUNCH_HOLE: Final = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_UNABLE: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM)
"""The errors of a file system that can't punch holes."""
_UID_MAP: Final = "/proc/self/uid_map"

_libc: Final = ctypes.CDLL(None, use_errno=True)
_fallocate: Final = getattr(_libc, "fallocate64", _libc.fallocate)
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def free_bytes(fd: int) -> int:
    """Return how many bytes this process may still write to a file system. Raises OSError.

    A file system may have a reserve (ext4: 5 %), which is root's to use (statvfs(3)).
    """
    space = os.fstatvfs(fd)
    has_reserve = os.geteuid() == 0 and _is_root_outside()
    return (space.f_bfree if has_reserve else space.f_bavail) * space.f_frsize


@functools.cache  # a process does not change its namespace, and this is asked for each file of a dry run
def _is_root_outside() -> bool:
    """Whether root is root for file systems, too: that of a rootless container is another user there."""
    try:
        with open(_UID_MAP, encoding="ascii") as lines:
            return lines.readline().split()[:2] == ["0", "0"]  # user_namespaces(7): 0 here is 0 outside
    except OSError:  # a kernel without user namespaces, or a container without /proc
        return True


def data_bytes(entry: Entry) -> int:
    """Return how many bytes a file is going to take on a disk that stores each of them, as far as its sender says."""
    return entry.size if entry.data_bytes is None else entry.data_bytes


class SpaceLender:
    """Lends space ahead of their bytes to the files that are staged in one destination."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects `granted_bytes` and `is_on_its_own` of all files
        self._files: set[FileSpace] = set()  # staged now; changed in one step each, and copied before it is walked

    def add(self, file: "FileSpace") -> None:
        """Count a file that is staged from now on."""
        self._files.add(file)

    def remove(self, file: "FileSpace") -> None:
        """Count a file no longer. Idempotent."""
        self._files.discard(file)

    def ahead_bytes(self) -> int:
        """Return about how much space the files have taken that they have not written to yet."""
        return sum([file.ahead_bytes for file in tuple(self._files)])

    def grant(self, file: "FileSpace", count: int) -> int:
        """Return how many of `count` bytes a file may take ahead; 0 where that is less than is worth a call.

        A file that was refused once, because AHEAD_BYTES were lent, gets no more than it has earned from then on.
        """
        enough_bytes = min(count, GRAIN_BYTES)
        if file.is_on_its_own and file.earned_bytes < enough_bytes:
            return 0
        with self._lock:
            lent_bytes = sum([max(0, -other.earned_bytes) for other in tuple(self._files)])
            left_bytes = 0 if file.is_on_its_own else max(0, AHEAD_BYTES - lent_bytes)
            granted_bytes = min(count, left_bytes + max(0, file.earned_bytes))
            if granted_bytes < enough_bytes:
                file.is_on_its_own = True
                return 0
            file.granted_bytes += granted_bytes
            return granted_bytes


class FileSpace:
    """The space of one staged file: what was taken ahead, and what was written. One thread takes, any thread writes."""

    def __init__(self, lender: SpaceLender, size: int) -> None:
        """Take nothing yet of a file of `size` bytes; 0 for one that is not to take any."""
        self._lender = lender
        self.granted_bytes = 0
        """Bytes that were taken ahead, or are about to be."""
        self.is_on_its_own = False
        """Whether the lender has refused this file once: it may take no more than it has earned."""
        self._at, self._end = 0, size
        """The range that is to be taken next."""
        self._fd = -1
        self._was_there_bytes = 0
        """Bytes of the file on the disk, left by earlier runs."""
        self._written_bytes: dict[int, int] = {}
        """Bytes written, by thread ident. No lock: each thread changes only its own count."""

    def open(self, fd: int) -> None:
        """Begin with the space that the open file has by now."""
        self._was_there_bytes = os.fstat(fd).st_blocks * 512
        self._fd = fd
        self._lender.add(self)

    def close(self) -> None:
        """Take nothing any more, and count no longer for other files. Idempotent."""
        self._lender.remove(self)
        self._fd = -1  # once the descriptor is closed, another file may get its number

    def take(self, is_over: Callable[[], bool]) -> bool:
        """Take space ahead, as much as the lender grants by now, until `is_over`.

        Return whether nothing is left to be taken. Raises OSError where the disk or a quota is full (ENOSPC, EDQUOT). A
        file system that can't take space ahead is left alone.
        """
        try:
            if not self._at and not writes_in_place(self._fd):
                self._end = 0
            while self._at < self._end:
                if is_over():
                    return False
                count = self._lender.grant(self, min(STEP_BYTES, self._end - self._at))
                if not count:
                    return False
                fallocate(self._fd, self._at, count)
                self._at += count
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
        return True

    def count_written(self, count: int) -> None:
        """Count bytes that this thread has written."""
        thread = threading.get_ident()
        self._written_bytes[thread] = self._written_bytes.get(thread, 0) + count

    @property
    def taken_bytes(self) -> int:
        """About how many bytes the file has on the disk by now; what was written twice counts twice."""
        return self._was_there_bytes + sum(list(self._written_bytes.values()))

    @property
    def earned_bytes(self) -> int:
        """How much more the file may take for what was written of it; below zero: what it has borrowed beyond that."""
        return 2 * self.taken_bytes - self.granted_bytes

    @property
    def ahead_bytes(self) -> int:
        """About how much of the space that was taken ahead is still to be written to."""
        try:
            return max(0, os.fstat(self._fd).st_blocks * 512 - self.taken_bytes)
        except OSError:  # the file was closed a moment ago
            return 0


# ------------------------------------------------------------------------------------------------------ bytes and zeros


def write_at(fd: int, view: memoryview, offset: int) -> None:
    """Write all of `view` at this offset of a file. Raises OSError."""
    written = os.pwrite(fd, view, offset)
    while written < len(view):
        written += os.pwrite(fd, view[written:], offset + written)


def write_apart(fd: int, view: memoryview, offset: int, length: int, distance: int) -> None:
    """Write pieces of `length` bytes, the first one at this offset of a file, the others each `distance` further.

    Raises OSError.
    """
    if distance == length:
        write_at(fd, view, offset)
        return
    pwrite = os.pwrite
    for at in range(0, len(view), length):
        piece = view[at : at + length]
        if pwrite(fd, piece, offset) < length:
            write_at(fd, piece, offset)
        offset += distance


def make_zeros(fd: int, start: int, end: int) -> None:
    """Make the bytes [start, end) of a file zeros, and free their space if that is possible. Raises OSError.

    In a new file they are: then nothing is written.
    """
    at = _first_data(fd, start)
    if at is None:
        _overwrite(fd, start, end)
    elif at < end:
        try:
            punch(fd, at, end - at)
        except OSError as error:
            if error.errno not in _UNABLE:
                raise
            _overwrite(fd, at, end)


def _first_data(fd: int, at: int) -> int | None:
    """Return where there are bytes from an offset on; None where the file system can't tell. Raises OSError."""
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:  # no bytes follow
            return 1 << 63
        if error.errno in _UNABLE:
            return None
        raise


def _overwrite(fd: int, start: int, end: int) -> None:
    """Write zeros over what is not zeros: what is may be a hole, although the file system does not tell."""
    block = bytearray(BLOCK_BYTES)
    at = start
    while at < end:
        view = memoryview(block)[: min(BLOCK_BYTES, end - at)]
        count = os.preadv(fd, [view], at)
        if not count:  # the end of the file
            return
        if view[:count] != ZEROS[:count]:
            write_at(fd, ZEROS[:count], at)
        at += count


def holes(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges [first, end) between two offsets of a file for which the disk has no bytes."""
    at = start
    while (at := _seek(fd, at, os.SEEK_HOLE, end)) < end:
        yield at, (at := min(end, _seek(fd, at, os.SEEK_DATA, end)))


def _seek(fd: int, at: int, how: int, otherwise: int) -> int:
    try:
        return os.lseek(fd, at, how)
    except OSError:  # there is none, or the file system can't tell
        return otherwise


def inner_bytes(start: int, end: int, size: int) -> int:
    """Return how many of the bytes [start, end) are whole blocks: no file system has fewer of them in a hole.

    The last block of a file of `size` bytes is whole, too, as far as the file has it.
    """
    first = -(-start // FILE_SYSTEM_BLOCK_BYTES) * FILE_SYSTEM_BLOCK_BYTES
    last = end if end >= size else end // FILE_SYSTEM_BLOCK_BYTES * FILE_SYSTEM_BLOCK_BYTES
    return max(0, last - first)


# -------------------------------------------------------------------------------------------------------- giving back


def free_ranges(fd: int, ranges: Iterable[tuple[int, int]], kept_end: int) -> None:
    """Free the space of ranges [start, end) of a file whose bytes do not count. Raises OSError.

    The last byte that counts ends at `kept_end`: a file system that can't punch holes has the file cut there.
    """
    size = os.fstat(fd).st_size
    try:
        for start, end in ranges:
            # Only whole blocks can be freed; the last block of a file may be cut short by its end.
            first = -(-start // FILE_SYSTEM_BLOCK_BYTES) * FILE_SYSTEM_BLOCK_BYTES
            blocks = -(-end // FILE_SYSTEM_BLOCK_BYTES) if end >= size else end // FILE_SYSTEM_BLOCK_BYTES
            last = blocks * FILE_SYSTEM_BLOCK_BYTES
            if first < last:
                punch(fd, first, last - first)
    except OSError as error:
        if error.errno not in _UNABLE:
            raise
        if kept_end < size:
            os.ftruncate(fd, kept_end)


def fallocate(fd: int, offset: int, count: int) -> None:
    """Take space for these bytes of a file. Raises OSError.

    Not os.posix_fallocate: where a file system can't do it, that writes zeros instead.
    """
    _call_fallocate(fd, 0, offset, count)


def punch(fd: int, offset: int, count: int) -> None:
    """Free the space of these bytes, which read as zeros then; the size of the file stays. Raises OSError."""
    _call_fallocate(fd, _PUNCH_HOLE, offset, count)


def _call_fallocate(fd: int, mode: int, offset: int, count: int) -> None:
    while _fallocate(fd, mode, offset, count):
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
