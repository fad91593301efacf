"""Says what a transfer would do with an entry of a manifest, from what is on the disk now."""

import errno
import os
import stat
from collections import OrderedDict
from typing import Final, NamedTuple

from filestreamer.wire.errors import Code, from_os_error
from filestreamer.wire.messages import Entry, EntryType, Standing
from receiver.check.room import Room
from receiver.disk.attributes.stored_times import Likeness, StoredTimes
from receiver.disk.destination import Destination, shown_path
from receiver.disk.existing import Fate, Policy
from receiver.tree.commit.directories import is_closed_to_owner
from receiver.tree.mirror.removal import OPEN_DIRECTORY

GROUPS_MOST: Final = 4096
"""Hard-link groups of which the first name is remembered; further names of older ones are judged as files."""
_BLOCKED: Final = {
    errno.ENOTDIR: "something that is no directory leads there",
    errno.ELOOP: "a symbolic link leads there",
}


class Judgement(NamedTuple):
    """How an entry stands."""

    standing: Standing
    reason: str = ""
    is_comparable: bool = False
    """Whether a file of equal size is there: only its bytes tell whether it is the same (--checksum, or no times)."""


class _Parent(NamedTuple):
    """The directory of entries, or why there is none."""

    path: bytes
    fd: int
    """The directory, or the last one on the way there; -1: it can't be reached."""
    is_there: bool
    is_read_only: bool = False
    """Whether its file system is."""
    reason: str = ""


_FATES: Final = {
    Fate.REPLACED: Standing.DIFFERS,
    Fate.LEFT: Standing.LEFT,
    Fate.REFUSED: Standing.EXISTING,
}


class Judge:
    """Judges the entries of one manifest, in order. For one thread at a time."""

    def __init__(self, destination: Destination, policy: Policy, *, checksum: bool, name: bytes | None = None) -> None:
        """`name` replaces the name of the one file that is offered (--output-file)."""
        self._destination = destination
        self._policy = policy
        self._checksum = checksum
        self._name = name
        self.room = Room(destination)
        """The space that is needed for what is new or differs."""
        self._times = StoredTimes(None)
        self._parent = _Parent(b"", destination.fd, True)
        self._firsts: OrderedDict[int, tuple[tuple[int, int] | None, Judgement]] = OrderedDict()
        """Hard-link groups: device and inode of what has their first names, and how these stand.

        No paths, which the sender makes long.
        """

    def close(self) -> None:
        """Release the directory that was looked at last."""
        self._leave()

    def path_of(self, entry: Entry) -> bytes:
        """Return the path at the destination that an entry would get."""
        return self._name if self._name is not None else entry.path

    def judge(self, entry: Entry) -> Judgement:
        """Return how an entry stands. Nothing is written. Raises TransferFailed where the file system is read-only."""
        path = self.path_of(entry)
        directory, _, name = path.rpartition(b"/")
        parent = self._enter(directory)
        if parent.fd < 0:
            return Judgement(Standing.DECLINED, parent.reason)
        try:
            there = os.stat(name, dir_fd=parent.fd, follow_symlinks=False) if parent.is_there else None
        except FileNotFoundError:
            there = None
        except OSError as error:
            return Judgement(Standing.DECLINED, error.strerror or str(error))
        try:
            judgement = self._judge(entry, name, there, parent.fd)
            is_further_name = self.is_further_name(entry)
            if is_further_name and judgement.standing is not Standing.SAME:
                judgement = self._as_first(self._firsts[entry.hard_link_group][1], judgement)
            if entry.hard_link_group and not is_further_name:
                self._note_group(entry, there, judgement)
            is_written = judgement.standing in (Standing.NEW, Standing.DIFFERS)
            if is_written and parent.is_read_only:
                read_only = OSError(errno.EROFS, os.strerror(errno.EROFS))
                raise from_os_error(read_only, Code.DESTINATION, f"can't write {shown_path(self._destination, path)}")
            is_sent = entry.size and entry.type is EntryType.FILE and not is_further_name
            if is_written and is_sent and not judgement.is_comparable:
                self.room.take(parent.fd, path, entry, there)
            return judgement
        except OSError as error:
            return Judgement(Standing.DECLINED, error.strerror or str(error))

    def _judge(self, entry: Entry, name: bytes, there: os.stat_result | None, directory_fd: int) -> Judgement:
        """Compare an entry with what has its name. Raises OSError."""
        if there is None:
            return self._written(Judgement(Standing.NEW), directory_fd)
        is_directory = stat.S_ISDIR(there.st_mode)
        if entry.type is EntryType.DIRECTORY:
            what = "something else has its name"
            return Judgement(Standing.SAME) if is_directory else Judgement(Standing.DECLINED, what)
        if is_directory:
            return Judgement(Standing.DECLINED, "a directory has its name")
        if entry.type is EntryType.SYMLINK:
            is_link = stat.S_ISLNK(there.st_mode)
            likeness = Likeness.OTHER
            if is_link and os.readlink(name, dir_fd=directory_fd) == entry.link_target:
                likeness = Likeness.SAME
        else:
            likeness = self._likeness(entry, there, directory_fd)
        if likeness is Likeness.SAME or (likeness is Likeness.UNSURE and not entry.size):
            return Judgement(Standing.SAME)
        judgement = Judgement(_FATES[self._policy.fate(there, entry.mtime_ns)])
        if judgement.standing is Standing.EXISTING:
            judgement = judgement._replace(reason=self._policy.because)
        if judgement.standing is Standing.DIFFERS:
            judgement = self._written(judgement, directory_fd, there)
        return judgement._replace(is_comparable=likeness is Likeness.UNSURE)

    def _likeness(self, entry: Entry, there: os.stat_result, directory_fd: int) -> Likeness:
        """Compare what is there with a file, or with another name of one."""
        if self.is_further_name(entry) and stat.S_ISREG(there.st_mode) and there.st_size == entry.size:
            first, _ = self._firsts[entry.hard_link_group]
            if first == (there.st_dev, there.st_ino):
                return Likeness.SAME
            # Of equal bytes, but not the same file: with --checksum, or where it may not be replaced, that is no
            # difference.
            if not self._checksum and self._policy.fate(there, entry.mtime_ns) is Fate.REPLACED:
                return Likeness.OTHER
        return self._times.likeness(directory_fd, there, entry, checksum=self._checksum)

    def is_further_name(self, entry: Entry) -> bool:
        """Whether an entry is another name of a file that was judged, as far as that is remembered."""
        return entry.hard_link_group in self._firsts

    @staticmethod
    def _as_first(first: Judgement, judgement: Judgement) -> Judgement:
        """Return how a further name stands, given how the first one does: it can't be a name of what is not there."""
        if first.is_comparable or first.standing not in (Standing.LEFT, Standing.EXISTING, Standing.DECLINED):
            return judgement
        if first.standing is Standing.LEFT and judgement.standing is Standing.LEFT:
            return judgement
        what = "was left as it is (--existing)" if first.standing is Standing.LEFT else "can't be put in place"
        return Judgement(Standing.DECLINED, f"it is another name of a file that {what}")

    def _note_group(self, entry: Entry, there: os.stat_result | None, judgement: Judgement) -> None:
        first = None if there is None else (there.st_dev, there.st_ino)
        self._firsts[entry.hard_link_group] = (first, judgement)
        if len(self._firsts) > GROUPS_MOST:
            self._firsts.popitem(last=False)

    def _written(self, judgement: Judgement, directory_fd: int, there: os.stat_result | None = None) -> Judgement:
        """Decline instead where this process may not write into the directory, or not replace what is there."""
        directory = os.fstat(directory_fd)
        user = os.geteuid()
        # A directory of its own gets the permissions that are missing, for the time of a transfer.
        is_open = os.access(".", os.W_OK | os.X_OK, dir_fd=directory_fd, effective_ids=True)
        if not (is_open or is_closed_to_owner(directory) or os.fstatvfs(directory_fd).f_flag & os.ST_RDONLY):
            return Judgement(Standing.DECLINED, "its directory can't be written")
        is_sticky = directory.st_mode & stat.S_ISVTX and user not in (0, directory.st_uid)
        if there is not None and is_sticky and there.st_uid != user:
            return Judgement(Standing.DECLINED, "it belongs to another user, in a sticky directory")
        return judgement

    # --- directories

    def _enter(self, path: bytes) -> _Parent:
        """Open the directory at `path`, as far as it is there."""
        if path == self._parent.path:
            return self._parent
        self._leave()
        fd = os.open(".", OPEN_DIRECTORY, dir_fd=self._destination.fd)
        is_there, reason = True, ""
        try:
            for name in path.split(b"/") if path else ():
                below = os.open(name, OPEN_DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
        except FileNotFoundError:
            is_there = False
        except OSError as error:
            os.close(fd)
            fd, reason = -1, _BLOCKED.get(error.errno or 0, error.strerror or str(error))
        is_read_only = fd >= 0 and bool(os.fstatvfs(fd).f_flag & os.ST_RDONLY)
        self._parent = _Parent(path, fd, is_there, is_read_only, reason)
        return self._parent

    def _leave(self) -> None:
        if self._parent.fd not in (-1, self._destination.fd):
            os.close(self._parent.fd)
        self._parent = _Parent(b"", self._destination.fd, True)
