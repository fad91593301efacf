"""What a manifest of a tree lists, and what lies there already: looked at and made, entry by entry, by one thread.

Directories, symlinks, and files without a byte of their own are made as they are listed; links between files, and the
modes and times of directories, wait for the end. Nothing is looked for where this transfer made the directory.
"""

import contextlib
import os
import stat
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from filestreamer.wire import limits
from filestreamer.wire.errors import Code, RemoteProtocolError, TransferFailed, from_os_error
from filestreamer.wire.messages import Entry, EntryType
from receiver.disk.exclusive import rename_new
from receiver.disk.store import Destination, owner, shown_path
from receiver.tree.commit.committer import MODE_BITS, Committer, Directories, StagedFile, TreeStaging, put_attributes
from receiver.tree.commit.small_file import make_file
from receiver.tree.manifest import part_state as state
from receiver.tree.manifest.part_state import PartState
from receiver.tree.manifest.spool import Spool
from receiver.tree.top_level_names import TopLevelNames

_FIRST: Final = struct.Struct("=QI")
"""Of the first entry of a hard-link group: its file_id, and the length of the path that follows."""


class EntryPreparer:
    """Takes entries in the order of the manifest. For the coordinator, and for the committing thread after that."""

    def __init__(
        self,
        destination: Destination,
        staging: TreeStaging,
        committer: Committer,
        roots: TopLevelNames,
        spool: Spool,
        *,
        checksum: bool,
    ) -> None:
        self._destination = destination
        self._staging = staging
        self._committer = committer
        self._roots = roots
        self._spool = spool
        self._checksum = checksum
        self._kept_root: bytes | None = None
        """The name in the destination that the entry taken last was below, if it is held to the end."""
        self._waits_in_staging = False
        """Whether the entry that was taken last is put in place later."""
        self._directories = Directories(destination)
        self._groups = array("Q")
        """Where the spool has the first entry of each hard-link group; they are numbered as they come, from 1."""

    def shown(self, path: bytes) -> str:
        """Return a path as people know it."""
        return shown_path(self._destination, path)

    def close(self) -> None:
        """Close what is open."""
        self._directories.close()

    # --- entries

    def is_follower(self, entry: Entry, file_id: int) -> bool:
        """Whether an entry that was taken is a further name of a file."""
        if entry.type is not EntryType.FILE or not entry.hard_link_group:
            return False
        return self._first(entry.hard_link_group)[0] != file_id

    def _first(self, group: int) -> tuple[int, bytes]:
        """Return the first entry of a hard-link group: file_id and path."""
        kept = self._spool.read(self._groups[group - 1], _FIRST.size + limits.PATH_BYTES)
        file_id, length = _FIRST.unpack_from(kept)
        return file_id, kept[_FIRST.size : _FIRST.size + length]

    def is_late(self, entry: Entry, file_id: int) -> bool:
        """Whether an entry that was taken is seen to when all files are in place."""
        return entry.type is EntryType.DIRECTORY or self.is_follower(entry, file_id)

    @property
    def groups(self) -> int:
        """How many hard-link groups there are."""
        return len(self._groups)

    def has_segments(self, entry: Entry, file_id: int) -> bool:
        """Whether an entry that was taken counts in the cut into chunks."""
        return entry.size > 0 and not self.is_follower(entry, file_id)

    def take(self, part_state: PartState, index: int, entry: Entry) -> int:
        """Look at one entry, and make it where nothing is to be sent for it; return its state.

        Raises TransferFailed: PATH, POLICY, BUSY, LIMIT, EXISTS, DESTINATION.
        """
        if entry.xattrs:
            raise TransferFailed(Code.POLICY, "this receiver does not take extended attributes yet")
        root, below, _ = entry.path.partition(b"/")
        passes = not below and self._passes(entry)
        if root != self._kept_root:
            self._roots.claim(root, passes=passes)
            self._kept_root = None if passes else root
        kind = self._take(part_state, index, entry)
        if passes and kind in (state.NOTHING, state.UNCHECKED) and not self._waits_in_staging:
            self._roots.release(root)
        return kind

    def _passes(self, entry: Entry) -> bool:
        """Whether the name of an entry is held only until it is in place."""
        is_compared = self._checksum and entry.type is EntryType.FILE  # and may be sent late, if it differs
        return not (entry.type is EntryType.DIRECTORY or entry.hard_link_group or is_compared)

    def _take(self, part_state: PartState, index: int, entry: Entry) -> int:
        self._waits_in_staging = False
        try:
            match entry.type:
                case EntryType.DIRECTORY:
                    self._directories.make(entry.path, entry.mode & MODE_BITS)
                    return state.NOTHING
                case EntryType.SYMLINK:
                    self._make_symlink(entry, part_state.first + index)
                    return state.NOTHING
                case EntryType.FILE:
                    return self._take_file(part_state.first + index, entry)
                case _:
                    raise TransferFailed(Code.POLICY, "a stream is sent alone")
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't write {self.shown(entry.path)}") from None

    def _there(self, entry: Entry) -> tuple[int, bytes, os.stat_result | None]:
        """Open the directory of an entry; return it, the name in it, and what lies there."""
        parent, _, name = entry.path.rpartition(b"/")
        directory = self._directories.get(parent, create=True)
        if directory.is_new:
            return directory.fd, name, None
        try:
            there = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            return directory.fd, name, None
        if stat.S_ISDIR(there.st_mode):
            raise TransferFailed(Code.DESTINATION, f"can't write {self.shown(entry.path)}: it is a directory")
        return directory.fd, name, there

    def _check_replace(self, entry: Entry, there: os.stat_result | None) -> None:
        if there is not None and not self._destination.replace:
            reason = f"{self.shown(entry.path)} exists, and --no-replace forbids to replace it"
            raise TransferFailed(Code.EXISTS, reason)

    def _take_file(self, file_id: int, entry: Entry) -> int:
        if entry.hard_link_group and not self._begins_group(entry, file_id):
            return state.NOTHING
        directory_fd, name, there = self._there(entry)
        has_payload = entry.size > sum(hole.length for hole in entry.holes)
        if there is not None and _is_same(there, entry):
            if not self._checksum or not has_payload:
                self._correct(directory_fd, name, entry, there)
                return state.UNCHECKED if has_payload else state.NOTHING
            self._correct(directory_fd, name, entry, there)
            return state.CLAIMED
        self._check_replace(entry, there)
        if has_payload:
            return state.FREE
        if there is not None or entry.size or not _make_empty(directory_fd, name, entry):
            staged = self._staging.name(file_id)
            make_file(self._staging, staged, entry)
            self._committer.add([StagedFile(entry.path, staged, entry.size)], 0, waits=False)
            self._waits_in_staging = True
        return state.NOTHING

    def _begins_group(self, entry: Entry, file_id: int) -> bool:
        """Whether a file is the first of its hard-link group, which is noted then."""
        group = entry.hard_link_group
        if group <= len(self._groups):
            return False
        if group != len(self._groups) + 1:
            raise RemoteProtocolError(f"hard-link group {group} comes when {len(self._groups) + 1} is next")
        self._groups.append(self._spool.append(_FIRST.pack(file_id, len(entry.path)) + entry.path))
        return True

    def _correct(self, directory_fd: int, name: bytes, entry: Entry, there: os.stat_result) -> None:
        """Give a file that is accepted as it is the mode and owner of its entry."""
        uid, gid = owner(entry)
        is_owned = uid in (-1, there.st_uid) and gid in (-1, there.st_gid)
        if is_owned and stat.S_IMODE(there.st_mode) == entry.mode & MODE_BITS:
            return
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
        try:
            this = f"/proc/self/fd/{fd}"  # whoever may not read a file may change its mode
            if not is_owned:
                os.chown(this, uid, gid)
            os.chmod(this, entry.mode & MODE_BITS)
        finally:
            os.close(fd)

    def _make_symlink(self, entry: Entry, file_id: int) -> None:
        directory_fd, name, there = self._there(entry)
        is_same = (
            there is not None
            and stat.S_ISLNK(there.st_mode)
            and os.readlink(name, dir_fd=directory_fd) == entry.link_target
        )
        if is_same:
            _put_link_attributes(directory_fd, name, entry)
            return
        self._check_replace(entry, there)
        temporary = self._staging.name(file_id).encode()
        os.symlink(entry.link_target, temporary, dir_fd=self._staging.fd)
        _put_link_attributes(self._staging.fd, temporary, entry)
        if self._destination.replace:
            os.rename(temporary, name, src_dir_fd=self._staging.fd, dst_dir_fd=directory_fd)
            return
        with self._refusing_what_appeared(entry):
            try:
                rename_new(temporary, name, self._staging.fd, directory_fd)
            except FileExistsError:
                raise
            except OSError:  # no way to rename so: a symlink is whole as soon as it is there
                os.symlink(entry.link_target, name, dir_fd=directory_fd)
                _put_link_attributes(directory_fd, name, entry)
            finally:
                self._staging.remove(os.fsdecode(temporary))

    @contextlib.contextmanager
    def _refusing_what_appeared(self, entry: Entry) -> Iterator[None]:
        try:
            yield
        except FileExistsError:
            reason = f"{self.shown(entry.path)} exists by now, and --no-replace forbids to replace it"
            raise TransferFailed(Code.EXISTS, reason) from None

    # --- the end

    def link(self, late: Sequence[tuple[int, Entry]], is_withdrawn: Callable[[int], bool]) -> None:
        """Make the further names of files, now that these are in place. Raises TransferFailed."""
        for file_id, entry in late:
            if entry.type is not EntryType.FILE:
                continue
            first_id, first = self._first(entry.hard_link_group)
            if is_withdrawn(file_id) or is_withdrawn(first_id):
                continue
            try:
                self._link(first, entry)
            except OSError as error:
                raise from_os_error(error, Code.DESTINATION, f"can't link {self.shown(entry.path)}") from None

    def _link(self, first: bytes, entry: Entry) -> None:
        parent, _, first_name = first.rpartition(b"/")
        directory_fd, name, there = self._there(entry)
        first_fd = self._directories.get(parent).fd
        file = os.stat(first_name, dir_fd=first_fd, follow_symlinks=False)
        if there is not None and os.path.samestat(there, file):
            return
        self._check_replace(entry, there)
        if not self._destination.replace:
            with self._refusing_what_appeared(entry):
                os.link(first_name, name, src_dir_fd=first_fd, dst_dir_fd=directory_fd, follow_symlinks=False)
            return
        os.link(first_name, "link", src_dir_fd=first_fd, dst_dir_fd=self._staging.fd, follow_symlinks=False)
        os.rename("link", name, src_dir_fd=self._staging.fd, dst_dir_fd=directory_fd)

    def finish_directories(self, late: Sequence[tuple[int, Entry]]) -> None:
        """Give directories their modes and times, deepest first: in reverse order. Raises TransferFailed."""
        for _, entry in reversed(late):
            if entry.type is EntryType.DIRECTORY:
                try:
                    put_attributes(self._directories.get(entry.path).fd, entry)
                except OSError as error:
                    what = f"can't set the mode and time of {self.shown(entry.path)}"
                    raise from_os_error(error, Code.DESTINATION, what) from None


def _is_same(there: os.stat_result, entry: Entry) -> bool:
    """Whether what lies there is a file of the entry's size and mtime."""
    same = (there.st_size, there.st_mtime_ns) == (entry.size, entry.mtime_ns)
    return same and stat.S_ISREG(there.st_mode)


def _make_empty(directory_fd: int, name: bytes, entry: Entry) -> bool:
    """Make an empty file where nothing is; whether nothing was. Raises OSError."""
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


def _put_link_attributes(directory_fd: int, name: bytes, entry: Entry) -> None:
    if owner(entry) != (-1, -1):
        os.chown(name, *owner(entry), dir_fd=directory_fd, follow_symlinks=False)
    os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=directory_fd, follow_symlinks=False)
