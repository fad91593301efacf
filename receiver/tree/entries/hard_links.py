"""The further names of files: hard links, made when all files are in place; copies where the destination has none."""

import contextlib
import errno
import os
import stat
import struct
from array import array
from collections.abc import Iterator
from typing import Final

from filestreamer.wire import limits
from filestreamer.wire.errors import Code, RemoteProtocolError, from_os_error
from filestreamer.wire.messages import Entry, EntryType
from receiver.disk.attributes.attributes import Attributes
from receiver.disk.attributes.stored_times import Likeness
from receiver.disk.destination import Destination, tree_failure
from receiver.disk.existing import Fate
from receiver.disk.final_name import NO_LINKS, put_in_place
from receiver.disk.obstacles import Obstacle
from receiver.disk.paths import OPEN_FLAGS
from receiver.file.states import DECLINED, WITHDRAWN
from receiver.tree.commit.committer import Committer, StagedFile
from receiver.tree.commit.declines import Declines
from receiver.tree.commit.traits import has_another_name, listed_name, not_told_apart
from receiver.tree.commit.tree_staging import TreeStagings
from receiver.tree.entries.locations import Location, Locations
from receiver.tree.manifest.archive import Archive

_FIRST: Final = struct.Struct("=QI")
"""The first entry of a hard-link group in the spool: its file_id, and the length of the path that follows."""
_LINK: Final = "link"
_COPY_BYTES: Final = 8 * limits.MIB


class HardLinks:
    """The hard-link groups of one tree. For one thread at a time: that takes parts, or commits."""

    def __init__(
        self,
        destination: Destination,
        stagings: TreeStagings,
        committer: Committer,
        archive: Archive,
        locations: Locations,
        *,
        attributes: Attributes,
        declines: Declines,
        checksum: bool,
    ) -> None:
        """`checksum` has copies compared by their bytes, whatever their times are."""
        self._destination = destination
        self._stagings = stagings
        self._committer = committer
        self._archive = archive
        self._locations = locations
        self._attributes = attributes
        self._declines = declines
        self._checksum = checksum
        self._firsts = array("Q")
        """Offset in the spool of the first entry of each hard-link group; groups are numbered from 1."""

    def __len__(self) -> int:
        return len(self._firsts)

    def note(self, entry: Entry, file_id: int) -> bool:
        """Note the first entry of a group; return whether the entry is a further name. Raises RemoteProtocolError."""
        group = entry.hard_link_group
        if entry.type is not EntryType.FILE or not group:
            return False
        if group <= len(self._firsts):
            return True
        if group != len(self._firsts) + 1:
            raise RemoteProtocolError(f"hard-link group {group} comes when {len(self._firsts) + 1} is next")
        self._firsts.append(self._archive.spool.append(_FIRST.pack(file_id, len(entry.path)) + entry.path))
        return False

    def is_further_name(self, entry: Entry, file_id: int) -> bool:
        """Whether an entry that was noted is a further name of a file."""
        if entry.type is not EntryType.FILE or not entry.hard_link_group:
            return False
        return self._first_of(entry.hard_link_group)[0] != file_id

    def _first_of(self, group: int) -> tuple[int, bytes]:
        """Return the first entry of a group: file_id and path."""
        saved = self._archive.spool.read(self._firsts[group - 1], _FIRST.size + limits.PATH_BYTES)
        file_id, length = _FIRST.unpack_from(saved)
        return file_id, saved[_FIRST.size : _FIRST.size + length]

    # --- the end

    def link(self, number: int) -> None:
        """Make the further names of a part, now that all files are in place; decline those that can't be made.

        Copies are handed to the committer. Raises TransferFailed.
        """
        for file_id, entry in self._archive.deferred(number):
            if entry.type is not EntryType.FILE or self._archive.state(file_id) in (WITHDRAWN, DECLINED):
                continue
            first_id, first = self._first_of(entry.hard_link_group)
            is_kept_away = self._is_kept_away(entry)
            if not is_kept_away and self._archive.is_withdrawn(first_id):
                continue
            try:
                self._make(entry, file_id, first, is_kept_away=is_kept_away)
                self._locations.directories.note_change(entry.path.rpartition(b"/")[0])
            except Obstacle as obstacle:
                self._declines.decline(entry.path, file_id, 0, obstacle)

    def _is_kept_away(self, entry: Entry) -> bool:
        """Whether the first name of a file was not put in place: then nothing can be linked to it."""
        group = entry.hard_link_group
        return self._declines.is_group_declined(group) or self._declines.is_group_left(group)

    def _make(self, entry: Entry, file_id: int, first: bytes, *, is_kept_away: bool) -> None:
        """Make one further name. Raises Obstacle, TransferFailed."""
        if (above := self._declines.above(entry.path)) is not None:
            raise above
        try:
            location = self._locations.look(entry, everywhere=True)
            if is_kept_away:
                if not self._stays(entry, file_id, location, None):
                    raise self._kept_away(entry, location.there)
                return
            # The cache of directories may close this one to open the other.
            with _duplicate(location.directory.fd) as directory_fd:
                parent, _, first_name = first.rpartition(b"/")
                first_fd = self._locations.directories.get(parent).fd
                file = os.stat(first_name, dir_fd=first_fd, follow_symlinks=False)
                if location.there is not None and os.path.samestat(location.there, file):
                    return
                location = location._replace(directory=location.directory._replace(fd=directory_fd))
                self._check_told_apart(entry, location)
                if not self._stays(entry, file_id, location, (first_fd, first_name)):
                    self._link_or_copy(entry, file_id, location, (first_fd, first_name))
        except OSError as error:
            raise tree_failure(
                self._destination, error, f"can't link {self._locations.shown(entry)}", entry.path
            ) from None

    def _stays(self, entry: Entry, file_id: int, location: Location, first: tuple[int, bytes] | None) -> bool:
        """Whether a file of its own is there that may not be replaced, and is equal: it stays, with what its entry has.

        Raises Obstacle, OSError.
        """
        there = location.there
        if there is None or self._locations.policy.fate(there, entry.mtime_ns) is Fate.REPLACED:
            return False
        return self._is_copied(entry, file_id, location, first)

    def _kept_away(self, entry: Entry, there: os.stat_result | None) -> Obstacle:
        """Return the obstacle of a further name of a file whose first name was not put in place."""
        if self._declines.is_group_declined(entry.hard_link_group):
            return self._locations.obstacle(entry, "it is another name of a file that could not be put in place")
        if there is not None and not stat.S_ISDIR(there.st_mode):
            return self._locations.existing(entry, "it exists", Fate.LEFT)
        return self._locations.obstacle(entry, "it is another name of a file that was left as it is (--existing)")

    def _check_told_apart(self, entry: Entry, location: Location) -> None:
        """Check that what is there is no file of another name, which would be lost. Raises Obstacle.

        Where staging folds names, that was found when the entries were prepared; a directory below it may alone do so.
        """
        (fd, *_), name, there = location
        if there is None or self._stagings.of(entry.path).traits.folds_names:
            return
        if not has_another_name(fd, name, there):  # nearly always: spare each name the whole directory
            return
        by = listed_name(fd, name, there)
        if by is not None and by != name:
            raise self._locations.obstacle(entry, not_told_apart(by))

    def _link_or_copy(self, entry: Entry, file_id: int, location: Location, first: tuple[int, bytes]) -> None:
        """Give a file another name. `first` is its first one: the descriptor of a directory, and the name in it."""
        first_fd, first_name = first
        # Link under a name in staging first: link(2) replaces nothing, but rename(2) does.
        staging_fd = self._stagings.of(entry.path).fd
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_LINK, dir_fd=staging_fd)
            os.link(first_name, _LINK, src_dir_fd=first_fd, dst_dir_fd=staging_fd, follow_symlinks=False)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            why = error.strerror or str(error)
            self._declines.report.warn(f"some further names of files are copies instead of hard links: {why}")
            self._copy(entry, file_id, location, first)
            return
        self._locations.check(entry, location)
        directory_fd = location.directory.fd
        self._locations.put(
            lambda replace: put_in_place(_LINK, location.name, staging_fd, directory_fd, replace=replace),
            entry,
            location,
        )

    def _copy(self, entry: Entry, file_id: int, location: Location, first: tuple[int, bytes]) -> None:
        """Stage a copy of the first name, and hand it to the committer. Raises Obstacle, TransferFailed, OSError."""
        if self._is_copied(entry, file_id, location, first):
            return
        first_fd, first_name = first
        self._locations.check(entry, location)
        staging = self._stagings.of(entry.path)
        staged = staging.name(file_id)
        source_fd = os.open(first_name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=first_fd)
        try:
            copy_fd = staging.create(staged, entry)
            try:
                self._copy_bytes(source_fd, copy_fd, entry)
                self._attributes.put_file(copy_fd, entry, file_id)
                if staging.place.syncs_each:
                    os.fsync(copy_fd)
            finally:
                os.close(copy_fd)
        except BaseException:
            staging.remove(staged)
            raise
        finally:
            os.close(source_fd)
        is_new = location.there is None
        self._committer.add([StagedFile(entry.path, staged, entry.size, staging, file_id, 0, is_new)], entry.size)

    def _is_copied(self, entry: Entry, file_id: int, location: Location, first: tuple[int, bytes] | None) -> bool:
        """Whether an equal file is there, as of an earlier run: then it gets what its entry has now.

        Where its time does not tell, its bytes do, if there is a first name. Raises Obstacle, OSError.
        """
        directory, name, there = location
        if there is None:
            return False
        times, syncs = directory.place.times, directory.place.syncs_each
        likeness = times.likeness(directory.fd, there, entry, checksum=self._checksum)
        if likeness is Likeness.OTHER:
            return False
        if likeness is Likeness.UNSURE and not (
            first is not None and _have_equal_bytes(first, (directory.fd, name), entry.size)
        ):
            return False
        self._attributes.correct_file(directory.fd, name, entry, file_id, there, times=times, syncs=syncs)
        self._declines.settle(file_id)
        return True

    def _copy_bytes(self, source_fd: int, copy_fd: int, entry: Entry) -> None:
        """Copy what is not a hole. Raises TransferFailed, OSError."""
        at = 0
        with contextlib.suppress(StopIteration):
            while at < entry.size:
                start, end = _next_data(source_fd, at, entry.size)
                try:
                    while start < end:
                        data = os.pread(source_fd, min(_COPY_BYTES, end - start), start)
                        if not data:
                            raise self._locations.obstacle(entry, "another process has shortened its first name")
                        start += os.pwrite(copy_fd, data, start)
                except OSError as error:  # of the bytes of a file: a full disk, and not an obstacle
                    if error.errno == errno.EFBIG:
                        raise
                    raise from_os_error(error, Code.DESTINATION, f"can't copy {self._locations.shown(entry)}") from None
                at = end
        os.ftruncate(copy_fd, entry.size)


def _have_equal_bytes(one: tuple[int, bytes], other: tuple[int, bytes], size: int) -> bool:
    """Whether two files of this size are equal, as far as they may be read. Raises OSError.

    Each is the descriptor of a directory, and the name in it.
    """
    with contextlib.ExitStack() as opened:
        fds = []
        for directory_fd, name in (one, other):
            try:
                fds.append(os.open(name, os.O_RDONLY | os.O_NONBLOCK | OPEN_FLAGS, dir_fd=directory_fd))
            except PermissionError:
                return False
            opened.callback(os.close, fds[-1])
        for at in range(0, size, _COPY_BYTES):
            if os.pread(fds[0], _COPY_BYTES, at) != os.pread(fds[1], _COPY_BYTES, at):
                return False
    return True


def _next_data(fd: int, at: int, size: int) -> tuple[int, int]:
    """Return the next range with data; all that is left where the file system does not say. Raises StopIteration."""
    try:
        start = os.lseek(fd, at, os.SEEK_DATA)
        return start, min(size, os.lseek(fd, start, os.SEEK_HOLE))
    except OSError as error:
        if error.errno == errno.ENXIO:  # nothing but a hole is left
            raise StopIteration from None
        return at, size


@contextlib.contextmanager
def _duplicate(fd: int) -> Iterator[int]:
    """Duplicate a descriptor; close the copy at the end."""
    copy = os.dup(fd)
    try:
        yield copy
    finally:
        os.close(copy)
