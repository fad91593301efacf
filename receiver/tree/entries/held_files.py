"""Gives files that were compared by their bytes, and stay as they are, the attributes and times of their entries."""

import os
import stat

from receiver.disk.attributes.attributes import Attributes
from receiver.disk.destination import Destination, shown_path, tree_failure
from receiver.disk.obstacles import Obstacle
from receiver.file.states import HELD
from receiver.tree.commit.declines import Declines
from receiver.tree.commit.directories import Directories
from receiver.tree.manifest.archive import Archive


def correct_held_files(
    destination: Destination,
    archive: Archive,
    directories: Directories,
    number: int,
    *,
    attributes: Attributes,
    declines: Declines,
) -> None:
    """Correct the files of a part that the sender found equal: it has said Finish. Raises TransferFailed."""
    if HELD not in archive.states(number):
        return
    part_state = archive.restore(number)
    for index, (entry, state) in enumerate(zip(part_state.entries, part_state.states(), strict=True)):
        if state != HELD:
            continue
        parent, _, name = entry.path.rpartition(b"/")
        file_id = part_state.first + index
        try:
            directory = directories.get(parent)
            directory_fd = directory.fd
            there = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
            if stat.S_ISREG(there.st_mode) and there.st_size == entry.size:
                place = directory.place
                attributes.correct_file(
                    directory_fd, name, entry, file_id, there, times=place.times, syncs=place.syncs_each
                )
            declines.settle(file_id)
        except Obstacle as obstacle:
            declines.decline(entry.path, file_id, entry.hard_link_group, obstacle)
        except OSError as error:
            failed = tree_failure(
                destination, error, f"can't set the mode and time of {shown_path(destination, entry.path)}", entry.path
            )
            if not isinstance(failed, Obstacle):
                raise failed from None
            declines.decline(entry.path, file_id, entry.hard_link_group, failed)
