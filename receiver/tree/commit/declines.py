"""The entries of a tree that are declined, and what follows from it for other entries.

What lies below a directory that can't be made is declined with it, without a look at the disk. So are the further names
of a file, where its first name is declined: what has the first name at the destination is another file.
"""

import os
import threading
from typing import Final

from filestreamer.process.log import printable
from filestreamer.wire.errors import Code
from receiver.disk.obstacles import Obstacle
from receiver.disk.report import Report
from receiver.tree.top_level_names import Names, TopLevelNames

_DECLINED: Final = 1
_LEFT: Final = 2


class Declines:
    """Reports the declined entries of one tree. Any thread may call."""

    def __init__(self, report: Report, top_level_names: TopLevelNames) -> None:
        self.report = report
        self._top_level_names = top_level_names
        self._lock = threading.Lock()  # protects what follows
        self._groups = bytearray()
        """_DECLINED or _LEFT for each hard-link group whose first name was not put in place, else 0."""
        self._directories = Names()
        """Directories that can't be made, without those below another one."""
        self._has_directories = False
        self._latest: tuple[bytes, bytes | None] = (b"", None)
        """The directory that `above` was asked for last, and the answer."""

    def decline(self, path: bytes, file_id: int, group: int, obstacle: Obstacle) -> None:
        """Decline an entry. `group` is its hard-link group if it is the first name of a file, else 0."""
        with self._lock:
            if group:
                self._groups.extend(bytes(max(0, group + 1 - len(self._groups))))
                self._groups[group] = _LEFT if obstacle.is_left else _DECLINED
            if obstacle.directory is not None:
                self._has_directories = True
                self._directories.add(obstacle.directory)
                self._latest = (b"", None)
        self._top_level_names.release(path)
        if obstacle.is_left:
            self.report.leave()
        elif obstacle.is_existing:
            self.report.leave_existing(file_id, path, obstacle.why)
        else:
            self.report.decline(file_id, path, obstacle.why)

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
        if not self._has_directories:
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
            return len(self._groups) + self._directories.table_bytes(entries)
