"""Staged files of a tree that have what their final directories hand down (receiver.disk.attributes.inheritance).

Most trees go where nothing is handed down, or the same everywhere: then nothing is looked up for each file.
"""

import os
import threading

from filestreamer.wire.errors import TransferFailed
from receiver.disk.attributes.inheritance import HandedDown, create_like
from receiver.disk.destination import Destination
from receiver.disk.paths import staging_key
from receiver.disk.report import Report
from receiver.tree.commit.directories import Directories
from receiver.tree.commit.places import Places


class InheritedFiles:
    """Makes files in staging as their final directories would have them. Any thread may call all but `close`."""

    def __init__(self, destination: Destination, places: Places, report: Report) -> None:
        self.is_needed = False
        """Whether any directory of this tree hands down something else than staging."""
        self._report = report
        self._lock = threading.Lock()  # protects _directories
        self._directories = Directories(destination, places, looks_at_inheritance=True)

    def note(self, handed_down: HandedDown, own: HandedDown) -> None:
        """Note what a directory hands down that files of this tree go to, before any of them is staged.

        `own` is what staging hands down.
        """
        self.is_needed = self.is_needed or handed_down != own

    def create(self, path: bytes, staging_fd: int, name: str, own: HandedDown) -> int | None:
        """Make the staged file of a final path, if its directory hands down something else than staging does.

        Return its descriptor, and None where it is to be made in staging. Raises OSError.
        """
        if not self.is_needed:
            return None
        parent = path.rpartition(b"/")[0]
        with self._lock:
            try:
                directory = self._directories.get(parent)
            except TransferFailed:  # it is gone: what that means shows when the file is put in place
                return None
            if directory.handed_down == own:
                return None
            fd = create_like(directory.fd, staging_fd, name, staging_key(path))
        if fd is None:
            self._report.warn(
                "files of some directories are without what these hand down (group, ACL, flags): nothing can be made"
                f" directly in {os.fsdecode(parent)!a}"
            )
        return fd

    def close(self) -> None:
        """Close the directories."""
        self._directories.close()
