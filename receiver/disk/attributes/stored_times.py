"""Whether a file at the destination is the one that is sent, as far as its size and mtime tell.

File systems keep times in steps: 1 s where ext4 has small inodes, 2 s on FAT, 100 ns over SMB; and some keep none, or
end in 2038. What a destination makes of a time is found out by setting it on a file and reading it back.
"""

import contextlib
import enum
import os
import stat
import threading
from collections.abc import Callable, Iterator
from typing import Final

from filestreamer.wire.errors import TransferFailed
from filestreamer.wire.messages import Entry
from receiver.disk.paths import OPEN_FLAGS, TIME_PREFIX

_ODD_NS: Final = 1_000_000_001_123_456_789
"""A time that is no multiple of any step."""
_STEPS_NS: Final = (1, 100, 1_000, 1_000_000, 10_000_000, 1_000_000_000, 2_000_000_000)
_KEPT_BY_ALL_NS: Final = range(315_619_200_000_000_000, 2_147_397_248_000_000_000)
"""From 1980 to 2038, but for a day: every file system has these times."""
_NONE: Final = 0
"""The step of a file system that keeps no times."""
_CACHE_MOST: Final = 1000


class Likeness(enum.Enum):
    """How much a file that is there is like the one that is sent."""

    OTHER = enum.auto()
    SAME = enum.auto()
    """It has the size and the mtime of the entry."""
    UNSURE = enum.auto()
    """It has the size of the entry. Whether it has the bytes, its digests tell."""


class StoredTimes:
    """What the file systems of a destination keep of a time. Any thread may call."""

    def __init__(self, open_staging: Callable[[], int] | None, tidy: Callable[[], None] = lambda: None) -> None:
        """`open_staging` makes and opens a directory for files of ours; `tidy` removes that if it is empty.

        None: no file gets a name. Where one without a name can't be made, times count as not kept.
        """
        self._open_staging = open_staging
        self._tidy = tidy
        self._lock = threading.Lock()  # protects what follows
        self._steps_ns: dict[int, int] = {}  # by device
        self._stored: dict[tuple[int, int], int | None] = {}  # by device and time

    def likeness(self, directory_fd: int, there: os.stat_result, entry: Entry, *, checksum: bool) -> Likeness:
        """Compare a file of this directory with an entry of type FILE; with `checksum`, times say nothing."""
        if there.st_size != entry.size or not stat.S_ISREG(there.st_mode):
            return Likeness.OTHER
        if checksum:
            return Likeness.UNSURE
        if there.st_mtime_ns == entry.mtime_ns or self.is_same(directory_fd, there, entry.mtime_ns):
            return Likeness.SAME
        return Likeness.OTHER if self.keeps_times(directory_fd, there.st_dev) else Likeness.UNSURE

    def is_same(self, directory_fd: int, there: os.stat_result, mtime_ns: int) -> bool:
        """Whether the mtime of a file of this directory is what its file system makes of `mtime_ns`."""
        if there.st_mtime_ns == mtime_ns:
            return True
        if mtime_ns not in _KEPT_BY_ALL_NS:
            return self._stored_ns(directory_fd, there.st_dev, mtime_ns) == there.st_mtime_ns
        step_ns = self._step_ns(directory_fd, there.st_dev)
        return step_ns > 1 and mtime_ns // step_ns * step_ns == there.st_mtime_ns

    def keeps_times(self, directory_fd: int, device: int) -> bool:
        """Whether the file system of this directory, which has this device, keeps the times that are set."""
        return self._step_ns(directory_fd, device) != _NONE

    def _step_ns(self, directory_fd: int, device: int) -> int:
        with self._lock:
            step_ns = self._steps_ns.get(device)
        if step_ns is None:
            stored_ns = self._stored_ns(directory_fd, device, _ODD_NS)
            fitting = [step for step in _STEPS_NS if _ODD_NS // step * step == stored_ns]
            step_ns = fitting[0] if fitting else _NONE
            with self._lock:
                self._steps_ns[device] = step_ns
        return step_ns

    def _stored_ns(self, directory_fd: int, device: int, time_ns: int) -> int | None:
        """Return what becomes of a time; None where it can't be set. Where no file can be made, it counts as kept.

        (Not so without a staging: `__init__`.)
        """
        key = (device, time_ns)
        with self._lock:
            if key in self._stored:
                return self._stored[key]
        stored_ns = time_ns if self._open_staging is not None else None
        with contextlib.suppress(OSError, TransferFailed), self._file(directory_fd, device) as fd:
            stored_ns = _store(fd, time_ns)
        with self._lock:
            if len(self._stored) >= _CACHE_MOST:
                self._stored.clear()
            self._stored[key] = stored_ns
        return stored_ns

    @contextlib.contextmanager
    def _file(self, directory_fd: int, device: int) -> Iterator[int]:
        """Make a file on the file system of this directory, for a moment. Raises OSError."""
        try:
            fd = os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=directory_fd)
        except OSError:
            with self._named_file(device) as fd:
                yield fd
            return
        try:
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _named_file(self, device: int) -> Iterator[int]:
        if self._open_staging is None:
            raise OSError("no file with a name may be made")
        staging_fd = self._open_staging()
        name = f"{TIME_PREFIX}{os.getpid()}-{threading.get_ident()}"
        fd = -1
        try:
            if os.fstat(staging_fd).st_dev != device:
                raise OSError("the staging directory is on another file system")
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | OPEN_FLAGS, 0o600, dir_fd=staging_fd)
            yield fd
        finally:
            if fd >= 0:
                os.close(fd)
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=staging_fd)
            os.close(staging_fd)
            self._tidy()


def _store(fd: int, time_ns: int) -> int | None:
    """Set the mtime of a file; return what it is then, None where it can't be set."""
    try:
        os.utime(fd, ns=(time_ns, time_ns))
        return os.fstat(fd).st_mtime_ns
    except OSError:
        return None
