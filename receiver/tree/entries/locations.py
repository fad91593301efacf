"""The location of an entry in the destination: its directory, its name, and what is there; what may take that place.

Each obstacle that shows before a byte is sent is found here, so that no run sends the bytes in vain.
"""

import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from filestreamer.wire.errors import Code
from filestreamer.wire.messages import Entry
from receiver.disk.destination import Destination, shown_path
from receiver.disk.existing import Fate, Policy
from receiver.disk.final_name import check_replaceable
from receiver.disk.obstacles import Obstacle, existing
from receiver.tree.commit.directories import Directories, Directory
from receiver.tree.commit.places import Places


class Location(NamedTuple):
    """Where an entry goes. The descriptor of the directory is valid until the next one is opened."""

    directory: Directory
    name: bytes
    there: os.stat_result | None
    """What has the name; None where nothing has it, or the directory is this transfer's own."""


class Locations:
    """The locations of the entries of one tree. For one thread."""

    def __init__(self, destination: Destination, places: Places, policy: Policy) -> None:
        """`policy` says what becomes of what is there."""
        self._destination = destination
        self.policy = policy
        self.directories = Directories(destination, places, looks_at_inheritance=True)

    def shown(self, entry: Entry) -> str:
        """Return the full path of an entry, for messages."""
        return shown_path(self._destination, entry.path)

    def look(self, entry: Entry, *, everywhere: bool = False) -> Location:
        """Open the directory of an entry, and look for its name; with `everywhere`, in directories of our own, too.

        Raises Obstacle, TransferFailed, OSError.
        """
        parent, _, name = entry.path.rpartition(b"/")
        directory = self.directories.get(parent, create=True)
        if directory.is_new and not everywhere:
            return Location(directory, name, None)
        try:
            there = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            return Location(directory, name, None)
        return Location(directory, name, there)

    def check(self, entry: Entry, location: Location) -> None:
        """Check that an entry may take a location. Raises Obstacle, OSError."""
        directory, name, there = location
        if there is None:
            if not directory.is_writable:
                raise self.obstacle(entry, "its directory can't be written")
            return
        if stat.S_ISDIR(there.st_mode):
            raise self.obstacle(entry, "it is a directory")
        fate = self.policy.fate(there, entry.mtime_ns)
        if fate is not Fate.REPLACED:
            raise self.existing(entry, "it exists", fate)
        check_replaceable(name, directory.fd, directory.place.side.mount)

    def obstacle(self, entry: Entry, why: str) -> Obstacle:
        """Return the error for something in the way of an entry."""
        return Obstacle(Code.DESTINATION, f"can't write {self.shown(entry)}: {why}", why)

    def existing(self, entry: Entry, what: str, fate: Fate) -> Obstacle:
        """Return the error for what is there and is not replaced."""
        return existing(self.shown(entry), what, self.policy.because, is_left=fate is Fate.LEFT)

    def put(self, put: Callable[[bool], None], entry: Entry, location: Location) -> None:
        """Give an entry its name with `put` (`Policy.put`). Raises Obstacle, OSError."""
        fate = self.policy.put(put, location.name, location.directory.fd, lambda: entry.mtime_ns)
        if fate is not Fate.REPLACED:
            raise self.existing(entry, "it exists by now", fate)
