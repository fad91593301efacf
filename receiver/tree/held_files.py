"""Gives files that were compared by their bytes, and stay as they are, the owner, mode and mtime of their entries."""

import os
import stat

from filestreamer.wire.errors import Code, from_os_error
from receiver.disk.destination import Destination, shown_path
from receiver.file.states import HELD
from receiver.tree.commit.attributes import correct_file
from receiver.tree.commit.directories import Directories
from receiver.tree.manifest.archive import Archive


def correct_held_files(destination: Destination, archive: Archive, directories: Directories, number: int) -> None:
    """Correct the files of a part that the sender found equal: it has said Finish. Raises TransferFailed."""
    if HELD not in archive.states(number):
        return
    part_state = archive.restore(number)
    for entry, state in zip(part_state.entries, part_state.states(), strict=True):
        if state != HELD:
            continue
        parent, _, name = entry.path.rpartition(b"/")
        try:
            directory_fd = directories.get(parent).fd
            there = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
            if stat.S_ISREG(there.st_mode) and there.st_size == entry.size:
                correct_file(destination, directory_fd, name, entry, there)
        except OSError as error:
            what = f"can't set the mode and time of {shown_path(destination, entry.path)}"
            raise from_os_error(error, Code.DESTINATION, what) from None
