"""Makes symlinks: complete as soon as they exist, so that none needs to be staged where nothing is to be replaced."""

import contextlib
import os
from collections.abc import Callable

from filestreamer.wire.messages import Entry
from receiver.disk.attributes.attributes import Attributes
from receiver.disk.final_name import put_in_place
from receiver.disk.paths import momentary_name, staging_key
from receiver.tree.commit.directories import Directory
from receiver.tree.commit.tree_staging import TreeStagings

Put = Callable[[Callable[[bool], None]], None]
"""Calls what gives a name to something staged, with whether it may replace what has the name."""


class Symlinks:
    """Makes the symlinks of one tree. For the thread that prepares entries."""

    def __init__(self, stagings: TreeStagings, attributes: Attributes) -> None:
        self._stagings = stagings
        self._attributes = attributes

    def make(self, directory: Directory, name: bytes, entry: Entry, file_id: int, put: Put) -> None:
        """Make a symlink, with what its directory hands down; `put` gives the name of what is there. Raises OSError."""
        try:
            os.symlink(entry.link_target, name, dir_fd=directory.fd)
        except FileExistsError:
            pass
        else:
            self._attributes.put_symlink(directory.fd, name, entry, file_id)
            return
        staging = self._stagings.of(entry.path)
        temporary_fd, temporary = staging.fd, staging.name(file_id)
        if directory.handed_down != staging.handed_down:
            temporary_fd, temporary = directory.fd, momentary_name(staging_key(entry.path))
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=temporary_fd)
        os.symlink(entry.link_target, temporary, dir_fd=temporary_fd)
        try:
            self._attributes.put_symlink(temporary_fd, temporary, entry, file_id)
            put(lambda replace: put_in_place(temporary, name, temporary_fd, directory.fd, replace=replace))
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=temporary_fd)
