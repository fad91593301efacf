"""Makes a tree an exact mirror, once all of its files are in place (proto/README.md, "Deleting")."""

import os
from collections.abc import Iterable
from typing import Any, Final

from filestreamer.process.log import printable
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire.messages import Deletion, Finish, ManifestPart
from receiver.disk.report import Report
from receiver.tree.mirror.depth_first import DepthFirst
from receiver.tree.mirror.extras import Extras, is_short
from receiver.tree.mirror.mirror import ListedDirectory, Mirror
from receiver.tree.mirror.removal import unlink
from receiver.tree.top_level_names import NAME_BYTES_MOST, Names, TopLevelNames

LOGGED_MOST: Final = 100
"""Removed entries of a transfer that are logged; all of them are counted."""


class Deleter:
    """Removes what the manifest of one tree does not list. For one thread at a time."""

    def __init__(
        self, deletion: Deletion, names: TopLevelNames, report: Report, counters: TransferCounters, log: Any
    ) -> None:
        """Check the Deletion. Raises TransferFailed: PATH, POLICY."""
        self._deletion = deletion
        self._report = report
        self._counters = counters
        self._log = log
        self._order = DepthFirst()
        self._withdrawn = Names()
        """The paths of files that were withdrawn: each may be listed again, anywhere behind."""
        self._missing = 0
        """How many of them were not listed again."""
        self._is_short = False
        """Whether the sender has left something out."""
        self._extras = Extras(
            deletion,
            names.destination,
            remove=self._remove,
            warn=report.warn,
            try_claim=names.try_claim,
            release=names.release,
        )

    def check(self, part: ManifestPart) -> None:
        """Check the order of a new part, before it is acted on. Raises RemoteProtocolError."""
        for entry in part.entries:
            if entry.path in self._withdrawn:
                self._missing -= 1
            else:
                self._order.take(entry)

    def table_bytes(self, entries: int) -> int:
        """Return the most memory that the names of so many entries take, when it is deleted."""
        return NAME_BYTES_MOST * entries

    def withdrew(self, path: bytes) -> None:
        """Note that a file was withdrawn."""
        self._withdrawn.add(path)
        self._missing += 1

    def take_finish(self, finish: Finish) -> None:
        """Note what the sender has left out."""
        self._is_short = self._is_short or is_short(finish)

    def delete(self, parts: Iterable[ManifestPart]) -> None:
        """Remove what these parts, all of the manifest, do not list. Raises TransferFailed."""
        if self._is_short or self._missing > 0 or self._report.is_short:
            self._report.warn("nothing was removed (--delete), as not everything could be moved")
            return
        mirror = Mirror(self._deletion)
        taken = Names()
        for part in parts:
            for entry in part.entries:
                if entry.path in self._withdrawn:
                    if entry.path in taken:  # its name is known from the first time
                        continue
                    taken.add(entry.path)
                self._remove_extras(mirror.take(entry))
        self._remove_extras(mirror.end())
        self._counters.undeletable_files = self._extras.failed

    def _remove_extras(self, directories: list[ListedDirectory]) -> None:
        for directory in directories:
            for _ in self._extras.look(directory):
                pass

    def _remove(self, directory_fd: int, name: bytes, path: bytes, is_directory: bool) -> None:
        unlink(directory_fd, name, path, is_directory)
        self._counters.deleted_files += 1
        if self._counters.deleted_files <= LOGGED_MOST:
            self._log.info("entry_removed", path=printable(os.fsdecode(path)))
