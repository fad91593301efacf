"""Prepares the entries of a manifest part one by one: looks at the destination, and makes what needs no bytes.

    directory                     made now; its mode and times are set at the end of the transfer
    symlink                       made now
    empty file                    made now
    file with bytes               its state says whether it is to be sent, re-hashed, or accepted as it is
    further name of a file        a hard link, made at the end of the transfer (`hard_links`)
    anything that can't be made   declined: one obstacle costs one entry

In a directory that this transfer made, nothing has to be looked up.
"""

import errno
import itertools
import os
import stat
from collections.abc import Sequence

from filestreamer.wire.errors import Code, TransferFailed
from filestreamer.wire.messages import Entry, EntryType
from receiver.disk.attributes.attributes import Attributes
from receiver.disk.attributes.stored_times import Likeness
from receiver.disk.destination import Destination, tree_failure
from receiver.disk.existing import Fate, Policy
from receiver.disk.obstacles import Obstacle
from receiver.file.states import CLAIMED, DECLINED, FREE, LEFT, NOTHING, UNCHECKED
from receiver.tree.commit.committer import Committer, StagedFile
from receiver.tree.commit.declines import Declines
from receiver.tree.commit.small_file import make_file
from receiver.tree.commit.symlinks import Symlinks
from receiver.tree.commit.tree_staging import TreeStagings
from receiver.tree.entries.folding import Folding
from receiver.tree.entries.hard_links import HardLinks
from receiver.tree.entries.held_files import correct_held_files
from receiver.tree.entries.locations import Location, Locations
from receiver.tree.manifest.archive import Archive
from receiver.tree.top_level_names import TopLevelNames


class EntryPreparer:
    """Prepares entries in the order of the manifest. For one thread at a time: that takes parts, or commits."""

    def __init__(
        self,
        destination: Destination,
        stagings: TreeStagings,
        committer: Committer,
        top_level_names: TopLevelNames,
        archive: Archive,
        *,
        attributes: Attributes,
        declines: Declines,
        policy: Policy,
        checksum: bool,
    ) -> None:
        """`checksum` has files of equal size and mtime re-hashed, which are accepted unread otherwise."""
        self._destination = destination
        self._stagings = stagings
        self._committer = committer
        self._top_level_names = top_level_names
        self._archive = archive
        self._attributes = attributes
        self._symlinks = Symlinks(stagings, attributes)
        self._declines = declines
        self._keeps_times = stagings.top.traits.keeps_times
        self._checksum = checksum or not self._keeps_times
        if not self._keeps_times:
            declines.report.warn("the destination keeps no times: files of equal size are compared by their digests")
        self._lasting_root: bytes | None = None
        """The top-level name of the latest entry, if it is held to the end: it need not be claimed again."""
        self.freed_bytes: dict[int, int] = {}
        """By file ID: the bytes that are free when a file that is to be sent has replaced what is there. Files that
        free nothing are missing. The caller clears it."""
        self._is_staged = False
        """Whether the latest entry was handed to the committer."""
        self.was_found = False
        """Whether something has the name of the latest entry at the destination."""
        self._locations = Locations(destination, stagings.places, policy)
        self._folding = Folding(stagings, archive, self._locations)
        self.hard_links = HardLinks(
            destination,
            stagings,
            committer,
            archive,
            self._locations,
            attributes=attributes,
            declines=declines,
            checksum=self._checksum,
        )

    def close(self) -> None:
        """Close the directories."""
        self._locations.directories.close()

    # --- what an entry is

    def is_further_name(self, entry: Entry, file_id: int) -> bool:
        """Whether an entry that was prepared is a further name of a file, to be linked at the end."""
        return bool(entry.hard_link_group) and self.hard_links.is_further_name(entry, file_id)

    def is_deferred(self, entry: Entry, file_id: int) -> bool:
        """Whether an entry that was prepared has work to do when all files are in place."""
        if not entry.hard_link_group:  # as nearly all
            return entry.type is EntryType.DIRECTORY
        return self.is_further_name(entry, file_id)

    def has_segments(self, entry: Entry, file_id: int) -> bool:
        """Whether an entry that was prepared counts when the tree is cut into chunks."""
        return entry.size > 0 and not (entry.hard_link_group and self.is_further_name(entry, file_id))

    def table_bytes(self, entries: int) -> int:
        """Return how much memory the tables take when so many more entries were prepared."""
        tables = self._folding.table_bytes(entries) + self._declines.table_bytes(entries)
        return tables + 8 * (len(self.hard_links) + entries)

    # --- prepare

    def prepare(self, entry: Entry, file_id: int) -> int:
        """Look at one entry, and make it if no bytes are sent for it; return its state.

        An entry that meets an obstacle is declined. Raises RemoteProtocolError, TransferFailed: POLICY, BUSY, LIMIT,
        NO_SPACE, DESTINATION.
        """
        if entry.type is not EntryType.FILE:  # as nearly all are: what is common is asked first, here and below
            if entry.type is EntryType.KEPT:  # it only says what a Deletion keeps
                return NOTHING
            if entry.type is EntryType.STREAM:
                raise TransferFailed(Code.POLICY, "a stream can't be sent with other entries")
        root, below, _ = entry.path.partition(b"/")
        passes = not below and self._passes(entry)
        if root != self._lasting_root:
            self._top_level_names.claim(root, passes=passes)
            self._lasting_root = None if passes else root
        self._is_staged = self.was_found = False
        is_further_name = bool(entry.hard_link_group) and self.hard_links.note(entry, file_id)
        try:
            state = self._prepare(entry, file_id, is_further_name=is_further_name)
        except Obstacle as obstacle:
            group = 0 if is_further_name else entry.hard_link_group
            self._declines.decline(entry.path, file_id, group, obstacle, is_file=entry.type is EntryType.FILE)
            if obstacle.is_left:
                return LEFT if _has_payload(entry) else NOTHING
            return DECLINED if is_further_name or _has_payload(entry) else NOTHING
        if not self._is_staged:
            self._declines.settle(file_id)
        if passes and state in (NOTHING, UNCHECKED) and not self._is_staged:
            self._top_level_names.release(root)
        return state

    def look_again(self) -> None:
        """Look again whether directories are at their paths: the caller has waited for others."""
        self._locations.directories.look_again()

    def count_alike(self, entries: Sequence[Entry], index: int, state: int, most_bytes: int) -> int:
        """Return how many of the files behind entries[index] have the same state, as far as that shows at one look.

        entries[index] was prepared just now, with this state; the others need not be. They are in its directory, and
        have at most `most_bytes`. A tree may have millions of files, and nearly all are new, or are as they were.
        """
        path = entries[index].path
        parent = path.rpartition(b"/")[0]
        if not parent or self._folding.is_needed or self._declines.has_directories:
            return 0
        directory = self._locations.directories.get(parent)  # which is open: it was used last
        is_new = state == FREE and directory.is_new
        if not is_new and (state != UNCHECKED or self._checksum):
            return 0
        if is_new:  # else nothing is to be staged: there may be no place for it
            most_bytes = min(most_bytes, self._stagings.of(path).traits.largest_bytes)
        count = 0
        for entry in itertools.islice(entries, index + 1, None):
            head, _, name = entry.path.rpartition(b"/")
            is_small_file = entry.type is EntryType.FILE and 0 < entry.size <= most_bytes
            if head != parent or not is_small_file or entry.hard_link_group:
                break
            if not is_new and not self._is_same(entry, directory.fd, name):
                break
            count += 1
        return count

    def is_there(self, entry: Entry) -> bool:
        """Whether another shard has put a file in place since it was prepared; False: it may have.

        That shard has set its attributes, too. Its name is released, as nothing is to come.
        """
        try:
            directory, _, there = self._locations.look(entry, everywhere=True)
            if there is None:
                return False
            likeness = directory.place.times.likeness(directory.fd, there, entry, checksum=self._checksum)
        except (Obstacle, OSError):  # it shows when the file is written
            return False
        if likeness is Likeness.SAME and self._passes(entry):
            self._top_level_names.release(entry.path)
        return likeness is Likeness.SAME

    def _is_same(self, entry: Entry, directory_fd: int, name: bytes) -> bool:
        """Whether a file is as it is sent, with all that its entry has; False: it may be."""
        try:
            there = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
        except OSError:
            return False
        return there.st_size == entry.size and stat.S_ISREG(there.st_mode) and self._attributes.has_all(there, entry)

    def _passes(self, entry: Entry) -> bool:
        """Whether the name of an entry is held only until the entry is in place."""
        is_rehashed = self._checksum and entry.type is EntryType.FILE  # it may be sent much later, if it differs
        return not (entry.type is EntryType.DIRECTORY or entry.hard_link_group or is_rehashed)

    def _prepare(self, entry: Entry, file_id: int, *, is_further_name: bool) -> int:
        above = self._declines.above(entry.path)
        if above is not None:
            raise above
        try:
            self._folding.check(entry, file_id)
            if entry.type is EntryType.FILE:
                return NOTHING if is_further_name else self._prepare_file(entry, file_id)
            if entry.type is EntryType.DIRECTORY:
                self._make_directory(entry, file_id)
            else:
                self._make_symlink(entry, file_id)
                self._note_change(entry)
        except OSError as error:
            raise tree_failure(
                self._destination, error, f"can't write {self._locations.shown(entry)}", entry.path
            ) from None
        return NOTHING

    def _make_directory(self, entry: Entry, file_id: int) -> None:
        mode = self._attributes.new_directory_mode(entry, file_id)
        directory = self._locations.directories.make(entry.path, mode)
        if not directory.is_new:
            self._folding.find(entry, file_id, self._locations.look(entry, everywhere=True))

    def _prepare_file(self, entry: Entry, file_id: int) -> int:
        location = self._locations.look(entry)
        there = location.there
        self.was_found = there is not None
        likeness = Likeness.OTHER
        if there is not None:
            directory_fd, place = location.directory.fd, location.directory.place
            likeness = place.times.likeness(directory_fd, there, entry, checksum=self._checksum)
            if likeness is Likeness.SAME or (likeness is Likeness.UNSURE and not entry.size):
                self._attributes.correct_file(
                    directory_fd, location.name, entry, file_id, there, times=place.times, syncs=place.syncs_each
                )
                return UNCHECKED if entry.size else NOTHING
        elif not entry.size and self._locations.policy.replaces_all:
            # Where anything stays that is there, it is staged: a crash before it has its time would leave one that
            # differs, and no later run would replace that.
            self._locations.check(entry, location)
            if self._make_empty(location, entry, file_id):
                self._note_change(entry)
                return NOTHING
        staging = self._stagings.of(entry.path)  # where nothing can be staged, that is found before the bytes come
        self._stagings.inherited_files.note(location.directory.handed_down, staging.handed_down)
        if likeness is Likeness.UNSURE:
            assert there is not None
            # Bytes are compared only if that matters: what is to be left is left at once.
            if (fate := self._locations.policy.fate(there, entry.mtime_ns)) is Fate.LEFT:
                raise self._locations.existing(entry, "it exists", fate)
            return CLAIMED
        self._locations.check(entry, location)
        if staging.traits.folds_names:
            self._folding.begin(entry, file_id)
        if entry.size > staging.traits.largest_bytes:
            raise self._locations.obstacle(entry, os.strerror(errno.EFBIG))
        self._folding.find(entry, file_id, location)
        if entry.size:
            self._note_freed(file_id, there)
            return FREE
        # As a file exists, the new one is staged, and gets its name when it is complete.
        staged = staging.name(file_id)
        make_file(staging, self._attributes, staged, entry, file_id)
        file = StagedFile(entry.path, staged, entry.size, staging, file_id, entry.hard_link_group, there is None)
        self._committer.add([file], 0, waits=False)
        self._is_staged = True
        return NOTHING

    def _note_freed(self, file_id: int, there: os.stat_result | None) -> None:
        if there is not None and there.st_nlink == 1:
            self.freed_bytes[file_id] = there.st_blocks * 512

    def _make_empty(self, location: Location, entry: Entry, file_id: int) -> bool:
        """Make an empty file unless the name is taken; whether it was made. Raises OSError, Obstacle."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(location.name, flags, 0o600, dir_fd=location.directory.fd)
        except FileExistsError:
            return False
        try:
            self._attributes.put_file(fd, entry, file_id)
            if location.directory.place.syncs_each:  # it has its name already, and no bytes that could be missing
                os.fsync(fd)
        except Obstacle:
            os.unlink(location.name, dir_fd=location.directory.fd)
            raise
        finally:
            os.close(fd)
        return True

    def _make_symlink(self, entry: Entry, file_id: int) -> None:
        location = self._locations.look(entry, everywhere=True)
        directory_fd, name, there = location.directory.fd, location.name, location.there
        if there is not None and location.directory.is_new:
            raise self._locations.obstacle(entry, "another entry of this transfer, or another process, has its place")
        is_same = (
            there is not None
            and stat.S_ISLNK(there.st_mode)
            and os.readlink(name, dir_fd=directory_fd) == entry.link_target
        )
        if is_same:
            self._attributes.put_symlink(directory_fd, name, entry, file_id)
            return
        self._locations.check(entry, location)
        self._folding.find(entry, file_id, location)
        try:
            self._symlinks.make(
                location.directory, name, entry, file_id, lambda put: self._locations.put(put, entry, location)
            )
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise self._locations.obstacle(entry, "the destination has no symlinks") from None
            raise

    def _note_change(self, entry: Entry) -> None:
        """Note that the directory of an entry has to become durable (`sync`)."""
        self._locations.directories.note_change(entry.path.rpartition(b"/")[0])

    # --- the end

    def correct_held(self, number: int) -> None:
        """Correct the files of a part that the sender found equal. Raises TransferFailed."""
        correct_held_files(
            self._destination,
            self._archive,
            self._locations.directories,
            number,
            attributes=self._attributes,
            declines=self._declines,
        )

    def sync(self) -> None:
        """Make the directories durable that no sync of a whole file system reaches. Raises OSError."""
        self._locations.directories.sync()

    def finish_directories(self, number: int, *, keeps_open: bool = False) -> None:
        """Set the attributes of the directories of a part, deepest first. Raises TransferFailed.

        With `keeps_open` their owner may go on to write into them: other shards of the tree do.
        The caller goes from the last part to the first, as writing into a directory changes its mtime.
        """
        for file_id, entry in reversed(self._archive.deferred(number)):
            if entry.type is not EntryType.DIRECTORY:
                continue
            if self._declines.above(entry.path + b"/"):  # it was declined, unless that showed after it was made
                gone = self._locations.obstacle(entry, "it can't be entered any more")
                self._declines.decline(entry.path, file_id, 0, gone, is_file=False)
                continue
            if keeps_open:
                entry = entry._replace(mode=entry.mode | stat.S_IRWXU)  # noqa: PLW2901
            try:
                self._attributes.put_directory(self._locations.directories.get(entry.path).fd, entry, file_id)
                self._declines.settle(file_id)
                self._locations.directories.note_change(entry.path)
            except Obstacle as obstacle:
                self._declines.decline(entry.path, file_id, 0, obstacle, is_file=False)
            except OSError as error:
                failed = tree_failure(
                    self._destination,
                    error,
                    f"can't set the mode and time of {self._locations.shown(entry)}",
                    entry.path,
                )
                if not isinstance(failed, Obstacle):
                    raise failed from None
                self._declines.decline(entry.path, file_id, 0, failed, is_file=False)


def _has_payload(entry: Entry) -> bool:
    """Whether bytes of a file are sent; none are of an entry of another type."""
    return entry.type is EntryType.FILE and entry.size > 0
