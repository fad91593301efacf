"""Prepares the entries of a manifest part one by one: looks at the destination, and makes what needs no bytes.

    directory                     made now; its mode and times are set at the end of the transfer
    symlink                       made now
    empty file                    made now
    file with bytes               its state says whether it is to be sent, re-hashed, or accepted as it is
    further name of a file        a hard link, made at the end of the transfer

In a directory that this transfer made, nothing has to be looked up.
"""

import contextlib
import os
import stat
import struct
from array import array
from collections.abc import Iterator
from typing import Final

from filestreamer.wire import limits
from filestreamer.wire.errors import Code, RemoteProtocolError, TransferFailed, from_os_error
from filestreamer.wire.messages import Entry, EntryType
from receiver.disk.destination import Destination, shown_path
from receiver.disk.final_name import MODE_BITS, put_attributes, rename_new
from receiver.file.states import CLAIMED, FREE, NOTHING, UNCHECKED
from receiver.tree.commit.attributes import correct_attributes, put_symlink_attributes
from receiver.tree.commit.committer import Committer, StagedFile
from receiver.tree.commit.directories import Directories
from receiver.tree.commit.small_file import make_file
from receiver.tree.commit.tree_staging import TreeStaging
from receiver.tree.manifest.archive import Archive
from receiver.tree.top_level_names import TopLevelNames

_FIRST: Final = struct.Struct("=QI")
"""The first entry of a hard-link group in the spool: its file_id, and the length of the path that follows."""


class EntryPreparer:
    """Prepares entries in the order of the manifest. For one thread at a time: that takes parts, or commits."""

    def __init__(
        self,
        destination: Destination,
        staging: TreeStaging,
        committer: Committer,
        top_level_names: TopLevelNames,
        archive: Archive,
        *,
        checksum: bool,
    ) -> None:
        """`checksum` has files of equal size and mtime re-hashed, which are accepted unread otherwise."""
        self._destination = destination
        self._staging = staging
        self._committer = committer
        self._top_level_names = top_level_names
        self._archive = archive
        self._checksum = checksum
        self._lasting_root: bytes | None = None
        """The top-level name of the latest entry, if it is held to the end: it need not be claimed again."""
        self.freed_bytes: list[int] = []
        """For each file that is to be sent: the bytes that are free when it has replaced what is there. The caller
        clears it."""
        self._is_staged = False
        """Whether the latest entry was handed to the committer."""
        self._directories = Directories(destination)
        self._groups = array("Q")
        """Offset in the spool of the first entry of each hard-link group; groups are numbered from 1."""

    def close(self) -> None:
        """Close the directories."""
        self._directories.close()

    # --- what an entry is

    def is_further_name(self, entry: Entry, file_id: int) -> bool:
        """Whether an entry that was prepared is a further name of a file, to be linked at the end."""
        if entry.type is not EntryType.FILE or not entry.hard_link_group:
            return False
        return self._first_of(entry.hard_link_group)[0] != file_id

    def is_deferred(self, entry: Entry, file_id: int) -> bool:
        """Whether an entry that was prepared has work to do when all files are in place."""
        return entry.type is EntryType.DIRECTORY or self.is_further_name(entry, file_id)

    def has_segments(self, entry: Entry, file_id: int) -> bool:
        """Whether an entry that was prepared counts when the tree is cut into chunks."""
        return entry.size > 0 and not self.is_further_name(entry, file_id)

    @property
    def groups(self) -> int:
        """How many hard-link groups there are."""
        return len(self._groups)

    def _first_of(self, group: int) -> tuple[int, bytes]:
        """Return the first entry of a hard-link group: file_id and path."""
        saved = self._archive.spool.read(self._groups[group - 1], _FIRST.size + limits.PATH_BYTES)
        file_id, length = _FIRST.unpack_from(saved)
        return file_id, saved[_FIRST.size : _FIRST.size + length]

    def _begins_group(self, entry: Entry, file_id: int) -> bool:
        """Whether a file is the first of its hard-link group; note it if so. Raises RemoteProtocolError."""
        group = entry.hard_link_group
        if group <= len(self._groups):
            return False
        if group != len(self._groups) + 1:
            raise RemoteProtocolError(f"hard-link group {group} comes when {len(self._groups) + 1} is next")
        self._groups.append(self._archive.spool.append(_FIRST.pack(file_id, len(entry.path)) + entry.path))
        return True

    # --- prepare

    def prepare(self, entry: Entry, file_id: int) -> int:
        """Look at one entry, and make it if no bytes are sent for it; return its state.

        Raises RemoteProtocolError, TransferFailed: PATH, POLICY, BUSY, LIMIT, EXISTS, DESTINATION.
        """
        if entry.xattrs:
            raise TransferFailed(Code.POLICY, "this receiver does not take extended attributes")
        root, below, _ = entry.path.partition(b"/")
        passes = not below and self._passes(entry)
        if root != self._lasting_root:
            self._top_level_names.claim(root, passes=passes)
            self._lasting_root = None if passes else root
        state = self._prepare(entry, file_id)
        if passes and state in (NOTHING, UNCHECKED) and not self._is_staged:
            self._top_level_names.release(root)
        return state

    def _passes(self, entry: Entry) -> bool:
        """Whether the name of an entry is held only until the entry is in place."""
        is_rehashed = self._checksum and entry.type is EntryType.FILE  # it may be sent much later, if it differs
        return not (entry.type is EntryType.DIRECTORY or entry.hard_link_group or is_rehashed)

    def _prepare(self, entry: Entry, file_id: int) -> int:
        self._is_staged = False
        try:
            match entry.type:
                case EntryType.DIRECTORY:
                    self._directories.make(entry.path, entry.mode & MODE_BITS)
                    return NOTHING
                case EntryType.SYMLINK:
                    self._make_symlink(entry, file_id)
                    return NOTHING
                case EntryType.FILE:
                    return self._prepare_file(entry, file_id)
                case _:
                    raise TransferFailed(Code.POLICY, "a stream can't be sent with other entries")
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't write {self._shown(entry)}") from None

    def _prepare_file(self, entry: Entry, file_id: int) -> int:
        if entry.hard_link_group and not self._begins_group(entry, file_id):
            return NOTHING
        directory_fd, name, there = self._look(entry)
        if there is not None and _is_same(there, entry):
            correct_attributes(directory_fd, name, entry, there)
            if not entry.size:
                return NOTHING
            return CLAIMED if self._checksum else UNCHECKED
        self._check_replace(entry, there)
        if entry.size:
            if there is not None and there.st_nlink == 1:
                self.freed_bytes.append(there.st_blocks * 512)
            else:
                self.freed_bytes.append(0)
            return FREE
        # If a file exists, the new one is staged, and gets its name when it is complete.
        if there is not None or not _make_empty(directory_fd, name, entry):
            staged = self._staging.name(file_id)
            make_file(self._staging, staged, entry)
            self._committer.add([StagedFile(entry.path, staged, entry.size)], 0, waits=False)
            self._is_staged = True
        return NOTHING

    def _make_symlink(self, entry: Entry, file_id: int) -> None:
        directory_fd, name, there = self._look(entry)
        is_same = (
            there is not None
            and stat.S_ISLNK(there.st_mode)
            and os.readlink(name, dir_fd=directory_fd) == entry.link_target
        )
        if is_same:
            put_symlink_attributes(directory_fd, name, entry)
            return
        self._check_replace(entry, there)
        temporary = self._staging.name(file_id).encode()
        os.symlink(entry.link_target, temporary, dir_fd=self._staging.fd)
        put_symlink_attributes(self._staging.fd, temporary, entry)
        if self._destination.replace:
            os.rename(temporary, name, src_dir_fd=self._staging.fd, dst_dir_fd=directory_fd)
            return
        with self._refusing_new(entry):
            try:
                rename_new(temporary, name, self._staging.fd, directory_fd)
            except FileExistsError:
                raise
            except OSError:
                # The file system can neither rename without replacing, nor link a symlink. Making the symlink under its
                # final name is as good: a symlink is complete as soon as it exists.
                os.symlink(entry.link_target, name, dir_fd=directory_fd)
                put_symlink_attributes(directory_fd, name, entry)
            finally:
                self._staging.remove(os.fsdecode(temporary))

    def _look(self, entry: Entry) -> tuple[int, bytes, os.stat_result | None]:
        """Open the directory of an entry; return its descriptor, the entry's name, and the stat(2) of that name."""
        parent, _, name = entry.path.rpartition(b"/")
        directory = self._directories.get(parent, create=True)
        if directory.is_new:
            return directory.fd, name, None
        try:
            there = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            return directory.fd, name, None
        if stat.S_ISDIR(there.st_mode):
            raise TransferFailed(Code.DESTINATION, f"can't write {self._shown(entry)}: it is a directory")
        return directory.fd, name, there

    def _check_replace(self, entry: Entry, there: os.stat_result | None) -> None:
        if there is not None and not self._destination.replace:
            reason = f"{self._shown(entry)} exists, and --no-replace forbids replacing it"
            raise TransferFailed(Code.EXISTS, reason)

    @contextlib.contextmanager
    def _refusing_new(self, entry: Entry) -> Iterator[None]:
        """Raise TransferFailed(EXISTS) if the name was taken after `_look`."""
        try:
            yield
        except FileExistsError:
            reason = f"{self._shown(entry)} exists by now, and --no-replace forbids replacing it"
            raise TransferFailed(Code.EXISTS, reason) from None

    def _shown(self, entry: Entry) -> str:
        return shown_path(self._destination, entry.path)

    # --- the end

    def link(self, number: int) -> None:
        """Make the hard links of a part, now that all files are in place. Raises TransferFailed."""
        for file_id, entry in self._archive.deferred(number):
            if entry.type is not EntryType.FILE:
                continue
            first_id, first = self._first_of(entry.hard_link_group)
            if self._archive.is_withdrawn(file_id) or self._archive.is_withdrawn(first_id):
                continue
            try:
                self._link(first, entry)
            except OSError as error:
                raise from_os_error(error, Code.DESTINATION, f"can't link {self._shown(entry)}") from None

    def _link(self, first: bytes, entry: Entry) -> None:
        directory_fd, name, there = self._look(entry)
        # The cache of directories may close this one to open the other.
        directory_fd = os.dup(directory_fd)
        try:
            self._link_in(directory_fd, name, there, first, entry)
        finally:
            os.close(directory_fd)

    def _link_in(
        self, directory_fd: int, name: bytes, there: os.stat_result | None, first: bytes, entry: Entry
    ) -> None:
        parent, _, first_name = first.rpartition(b"/")
        first_fd = self._directories.get(parent).fd
        file = os.stat(first_name, dir_fd=first_fd, follow_symlinks=False)
        if there is not None and os.path.samestat(there, file):
            return
        self._check_replace(entry, there)
        if not self._destination.replace:
            with self._refusing_new(entry):
                os.link(first_name, name, src_dir_fd=first_fd, dst_dir_fd=directory_fd, follow_symlinks=False)
            return
        # Link under a name in staging first: link(2) replaces nothing, but rename(2) does.
        os.link(first_name, "link", src_dir_fd=first_fd, dst_dir_fd=self._staging.fd, follow_symlinks=False)
        os.rename("link", name, src_dir_fd=self._staging.fd, dst_dir_fd=directory_fd)

    def finish_directories(self, number: int) -> None:
        """Set the modes and times of the directories of a part, deepest first. Raises TransferFailed.

        The caller goes from the last part to the first, as writing into a directory changes its mtime.
        """
        for _, entry in reversed(self._archive.deferred(number)):
            if entry.type is EntryType.DIRECTORY:
                try:
                    put_attributes(self._directories.get(entry.path).fd, entry)
                except OSError as error:
                    what = f"can't set the mode and time of {self._shown(entry)}"
                    raise from_os_error(error, Code.DESTINATION, what) from None


def _is_same(there: os.stat_result, entry: Entry) -> bool:
    """Whether what is there is a plain file with the size and mtime of the entry."""
    same = (there.st_size, there.st_mtime_ns) == (entry.size, entry.mtime_ns)
    return same and stat.S_ISREG(there.st_mode)


def _make_empty(directory_fd: int, name: bytes, entry: Entry) -> bool:
    """Make an empty file unless the name is taken; whether it was made. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, entry.mode & MODE_BITS, dir_fd=directory_fd)
    except FileExistsError:
        return False
    try:
        put_attributes(fd, entry)
    finally:
        os.close(fd)
    return True
