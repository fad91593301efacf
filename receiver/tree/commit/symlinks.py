"""Makes symlinks: complete as soon as they exist, so that none needs to be staged where nothing is to be replaced."""

import contextlib
import errno
import os
import secrets

from filestreamer.wire.messages import Entry
from receiver.disk.attributes import Attributes
from receiver.tree.commit.directories import Directory
from receiver.tree.commit.tree_staging import TreeStagings


class Symlinks:
    """Makes the symlinks of one tree. For the thread that prepares entries."""

    def __init__(self, stagings: TreeStagings, attributes: Attributes, *, replace: bool) -> None:
        self._stagings = stagings
        self._attributes = attributes
        self._replace = replace

    def make(self, directory: Directory, name: bytes, entry: Entry, file_id: int) -> None:
        """Make a symlink, with what its directory hands down. Raises OSError: FileExistsError without `replace`."""
        try:
            _symlink(entry.link_target, name, directory.fd)
        except FileExistsError:
            if not self._replace:
                raise
        else:
            self._attributes.put_symlink(directory.fd, name, entry, file_id)
            return
        staging = self._stagings.of(entry.path)
        if directory.handed_down == staging.handed_down:
            self._make_and_rename(staging.fd, staging.name(file_id), directory.fd, name, entry, file_id)
        else:
            temporary = f".filestreamer-{secrets.token_hex(8)}"
            self._make_and_rename(directory.fd, temporary, directory.fd, name, entry, file_id)

    def _make_and_rename(  # noqa: PLR0917 - two places
        self, temporary_fd: int, temporary: str, directory_fd: int, name: bytes, entry: Entry, file_id: int
    ) -> None:
        _symlink(entry.link_target, temporary, temporary_fd)
        try:
            self._attributes.put_symlink(temporary_fd, temporary, entry, file_id)
            os.rename(temporary, name, src_dir_fd=temporary_fd, dst_dir_fd=directory_fd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=temporary_fd)
            raise


def _symlink(target: bytes, name: str | bytes, directory_fd: int) -> None:
    try:
        os.symlink(target, name, dir_fd=directory_fd)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise OSError(error.errno, "the destination has no symlinks") from None
        raise
