"""The entries of a tree that are declined, and what follows from it for other entries.

What lies below a directory that can't be made is declined with it, without a look at the disk. So are the further names
of a file, where its first name is declined: what has the first name at the destination is another file.
"""

import os
import threading
from typing import Final

from filestreamer.process.log import printable
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire.errors import Code
from receiver.disk.obstacles import Obstacle
from receiver.disk.report import Report
from receiver.tree.top_level_names import Names, TopLevelNames

_DECLINED: Final = 1
_LEFT: Final = 2


class Declines:
    """Reports the declined entries of one tree, and what is lacking of others. Any thread may call."""

    def __init__(self, report: Report, top_level_names: TopLevelNames, counters: TransferCounters) -> None:
        self.report = report
        self._top_level_names = top_level_names
        self._counters = counters
        self._lock = threading.Lock()  # protects what follows, and counters.files
        self._declined = _Entries()
        self._uncounted = _Entries()
        """Files that the result does not count, as they were declined or withdrawn: maybe both."""
        self._attributes: dict[int, tuple[bytes, str]] = {}
        """Path and reason of entries that lack an attribute, and may still be declined."""
        self._groups = bytearray()
        """_DECLINED or _LEFT for each hard-link group whose first name was not put in place, else 0."""
        self._directories = Names()
        """Directories that can't be made, without those below another one."""
        self.has_directories = False
        """Whether there are directories that can't be made."""
        self._latest: tuple[bytes, bytes | None] = (b"", None)
        """The directory that `above` was asked for last, and the answer."""

    def decline(self, path: bytes, file_id: int, group: int, obstacle: Obstacle, *, is_file: bool = True) -> None:
        """Decline an entry, once. `group` is its hard-link group if it is the first name of a file, else 0."""
        with self._lock:
            if not self._declined.add(file_id):
                return
            self._attributes.pop(file_id, None)
            if is_file and not obstacle.is_left and self._uncounted.add(file_id):
                self._counters.files -= 1
            if group:
                self._groups.extend(bytes(max(0, group + 1 - len(self._groups))))
                self._groups[group] = _LEFT if obstacle.is_left else _DECLINED
            if obstacle.directory is not None:
                self.has_directories = True
                self._directories.add(obstacle.directory)
                self._latest = (b"", None)
        self._top_level_names.release(path)
        if obstacle.is_left:
            self.report.leave()
        elif obstacle.is_existing:
            self.report.leave_existing(file_id, path, obstacle.why)
        else:
            self.report.decline(file_id, path, obstacle.why)

    def withdrew(self, file_id: int) -> None:
        """Note that the sender has withdrawn a file, declined or not."""
        with self._lock:
            if self._uncounted.add(file_id):
                self._counters.files -= 1

    # --- what lacks an attribute (`AttributeReport`)

    def skip_attribute(self, file_id: int, path: bytes, reason: str) -> None:
        """Note an attribute of an entry that is not set: reported when the entry is in place (`settle`)."""
        with self._lock:
            if file_id not in self._declined:
                self._attributes[file_id] = (path, reason)

    def warn(self, text: str) -> None:
        """Warn both users, once in a transfer for each text."""
        self.report.warn(text)

    def settle(self, file_id: int) -> None:
        """Report what is lacking of an entry, now that it is in place: it is not declined any more."""
        if self._attributes:
            with self._lock:
                told = self._attributes.pop(file_id, None)
            if told is not None:
                self.report.skip_attribute(file_id, *told)

    # --- what follows for other entries

    def is_group_declined(self, group: int) -> bool:
        """Whether the first name of a hard-link group was declined."""
        with self._lock:
            return group < len(self._groups) and self._groups[group] == _DECLINED

    def is_group_left(self, group: int) -> bool:
        """Whether what has the first name of a hard-link group was left as it is."""
        with self._lock:
            return group < len(self._groups) and self._groups[group] == _LEFT

    def above(self, path: bytes) -> Obstacle | None:
        """Return the obstacle for an entry that lies below a directory that can't be made; None if it does not."""
        if not self.has_directories:
            return None
        parent = path.rpartition(b"/")[0]
        with self._lock:
            if self._latest[0] != parent:
                self._latest = (parent, self._find(parent))
            directory = self._latest[1]
        if directory is None:
            return None
        why = f"it lies below {printable(os.fsdecode(directory))}, which can't be made or entered"
        return Obstacle(Code.DESTINATION, why, why)

    def _find(self, parent: bytes) -> bytes | None:
        """Return the directory that can't be made, and that is or contains this one."""
        end = parent.find(b"/")
        while end >= 0:
            if parent[:end] in self._directories:
                return parent[:end]
            end = parent.find(b"/", end + 1)
        return parent if parent and parent in self._directories else None

    def table_bytes(self, entries: int) -> int:
        """Return about how much memory the tables take when so many more entries were declined."""
        with self._lock:
            tables = len(self._groups) + self._directories.table_bytes(entries) + self.report.table_bytes
            return tables + self._declined.table_bytes + self._uncounted.table_bytes + entries // 4


class _Entries:
    """Entries by their file_id: a bit for each up to the last one."""

    def __init__(self) -> None:
        self._bits = bytearray()

    @property
    def table_bytes(self) -> int:
        return len(self._bits)

    def __contains__(self, file_id: int) -> bool:
        at, bit = divmod(file_id, 8)
        return at < len(self._bits) and bool(self._bits[at] >> bit & 1)

    def add(self, file_id: int) -> bool:
        """Add an entry; return whether it was none before."""
        if file_id in self:
            return False
        at, bit = divmod(file_id, 8)
        self._bits.extend(bytes(max(0, at + 1 - len(self._bits))))
        self._bits[at] |= 1 << bit
        return True
