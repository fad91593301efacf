"""The large files of a tree: opened, set aside, opened again, and handed to the committer when they are complete.

    open          its staging, when its first chunk comes: as soon as there is room (`open_files`)
    set aside     where room is short: states and digests of its segments go to the spool, and the staging is closed
    close_if_done when its last segment is here: the file gets its mode and mtime, and goes to the committer;
                  a withdrawn file is discarded instead

The lock of the part protects each large file in it. A thread that waits for room holds no lock, and nothing that
another thread waits for.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from filestreamer.process.threads import as_failure
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import messages as m
from filestreamer.wire.digests import root_digest
from filestreamer.wire.errors import Code, ConnectionLost, FilestreamerError, TransferFailed, from_os_error
from filestreamer.wire.grid import WHOLE, Grid
from receiver.disk.attributes.attributes import Attributes
from receiver.disk.attributes.inheritance import handed_down
from receiver.disk.destination import Destination, shown_path
from receiver.disk.obstacles import Obstacle
from receiver.disk.staging.closed_share import ClosedShare, is_sealed
from receiver.disk.staging.closed_staging import ClosedStaging, StagingMark
from receiver.disk.staging.shared_names import SharedNames
from receiver.disk.staging.staging import Staging
from receiver.disk.staging.sweep import discard_share, discard_staged, discard_unsynced
from receiver.file.shared_file import File, SourceVersion
from receiver.file.states import DECLINED, FREE, HELD, VERIFIED, WITHDRAWN, WRITING
from receiver.file.target import Connection
from receiver.memory.budget import Account
from receiver.tree.commit.committer import Committer, StagedFile
from receiver.tree.commit.declines import Declines
from receiver.tree.commit.tree_staging import TreeStagings
from receiver.tree.manifest.large_file import LargeFile, OpenLargeFile, Spooled
from receiver.tree.manifest.part_state import PartState
from receiver.tree.manifest.spool import Spool
from receiver.tree.open_files import OWN_BYTES, OpenFiles, Room, table_bytes

ROOM_SECONDS: Final = 20.0
"""How long `open` tries again without descriptors, which other threads took, or without space on the disk, since bytes
last came of the files that may free some."""
WAIT_SECONDS: Final = 0.1


class LargeFiles:
    """The large files of one tree."""

    def __init__(
        self,
        chunk_size: int,
        destination: Destination,
        stagings: TreeStagings,
        committer: Committer,
        *,
        attributes: Attributes,
        declines: Declines,
        spool: Spool,
        account: Account,
        counters: TransferCounters,
        failed: Callable[[FilestreamerError], None],
        nudge: Callable[[], object],
    ) -> None:
        """`failed` ends the transfer; `nudge` has the coordinator look whether a part is done."""
        self.open_files = OpenFiles(account)
        self._chunk_size = chunk_size
        self._destination = destination
        self._stagings = stagings
        self._committer = committer
        self._attributes = attributes
        self._declines = declines
        self._spool = spool
        self._account = account
        self._counters = counters
        self._counting = threading.Lock()  # protects counters.held_bytes, which several threads add to
        self._failed = failed
        self._nudge = nudge
        self._is_over = False
        """The transfer is over: no thread waits any more."""

    # --- open

    def open(self, part_state: PartState, index: int, connection: Connection | None) -> None:
        """Open a file as soon as there is room; `connection` waits until then. Raises TransferFailed, ConnectionLost.

        When this returns, it may be open already, complete, declined or withdrawn, or its part may be archived: the
        caller looks again.
        """
        until, moved_bytes = time.monotonic() + ROOM_SECONDS, self._counters.moved_bytes
        while True:
            # What is under way may replace other files, and free their space.
            is_freeing = self._committer.has_files or len(self.open_files) > 0
            room = self._take_room(part_state.large[index], connection)
            try:
                with part_state.lock:
                    # Complete by now, it waits for its final name: opened again, its staging would not be as it was.
                    is_over = part_state.is_archived or part_state.state(index) in (VERIFIED, WITHDRAWN, DECLINED)
                    if is_over or part_state.large[index].open_file is not None:
                        self.open_files.give_back(room)
                    else:
                        self._open_or_decline(room, part_state, index)
                return
            except BaseException as error:
                self.open_files.give_back(room)
                code = error.code if isinstance(error, TransferFailed) else None
                is_full = code is Code.NO_SPACE and is_freeing
                if not (is_full or code is Code.LIMIT) or time.monotonic() > until:
                    raise
            if is_full or not self._make_room():
                self.wait(connection)
            if is_full and moved_bytes != (moved_bytes := self._counters.moved_bytes):
                until = time.monotonic() + ROOM_SECONDS

    def try_open(self, part_state: PartState, index: int) -> OpenLargeFile | None:
        """Open a file if there is room now, and it is not declined. Call it with the lock of the part.

        Raises TransferFailed.
        """
        room = self.open_files.try_take_room(part_state.large[index])
        if room is None:
            return None
        try:
            return self._open_or_decline(room, part_state, index)
        except BaseException:
            self.open_files.give_back(room)
            raise

    def _open_or_decline(self, room: Room, part_state: PartState, index: int) -> OpenLargeFile | None:
        try:
            return self._open_in(room, part_state, index)
        except Obstacle as obstacle:
            self._decline(part_state, index, obstacle)
            self.open_files.give_back(room)  # last: where the line above raises, the caller gives it back
            return None

    def _open_in(self, room: Room, part_state: PartState, index: int) -> OpenLargeFile:
        """Open a file in room that was taken. Call it with the lock of the part. Raises TransferFailed."""
        large, entry = part_state.large[index], part_state.entries[index]
        if large.spooled is Spooled.TABLE:
            self._check_mark(large, entry)
        file = File(entry.path, SourceVersion(1, entry.size, entry.mtime_ns, self._chunk_size))
        try:
            grid = file.grid  # the function must not refer to the file, which keeps it: no table would be freed at once
            shared = self._shared_names(large, entry)
            file.open(lambda: self._open_staging(entry, grid, shared), self._failed_beside)
            open_file = OpenLargeFile(file, large.share)
            if large.spooled is Spooled.TABLE:
                large.restore(open_file, self._spool)
        except BaseException:
            file.close()
            raise
        large.open_file = open_file
        self.open_files.add(open_file, part_state, index, room)
        # A file that is complete under its final name was HELD, but the sender has other bytes now.
        if part_state.state(index) == FREE or large.spooled is Spooled.DIGESTS:
            part_state.set(index, WRITING)
        return open_file

    def _shared_names(self, large: LargeFile, entry: m.Entry) -> SharedNames | None:
        """Return the names of a share of a file that several shards move; None for any other file."""
        if large.share is WHOLE:
            return None
        below = self._stagings.places.of(entry.path).below(entry.path)
        return SharedNames.of(below, large.grid, entry.mtime_ns, large.share)

    def _open_staging(self, entry: m.Entry, grid: Grid, shared: SharedNames | None) -> Staging:
        def create(staging_fd: int, name: str) -> int | None:
            return self._stagings.inherited_files.create(entry.path, staging_fd, name, handed_down(staging_fd))

        place = self._stagings.places.of(entry.path)
        return Staging.open(place, place.below(entry.path), entry, grid, create=create, shared=shared)

    def _failed_beside(self, error: FilestreamerError) -> None:
        """End the transfer for what the write-back thread of a file met; an obstacle shows with the next write."""
        if not isinstance(error, Obstacle):
            self._failed(error)

    def _check_mark(self, large: LargeFile, entry: m.Entry) -> None:
        """Check that the staging of a file is as it was when the file was set aside. Raises TransferFailed(BUSY).

        Its lock was released then, so another process may have written to it, and the spool would be wrong.
        """
        shown = shown_path(self._destination, entry.path)
        try:
            staging = self._stagings.of(entry.path)
            below = staging.place.below(entry.path)
            found = StagingMark.of(staging.files_fd, below, self._shared_names(large, entry))
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't look at the staging of {shown}") from None
        if large.mark is not None and found != large.mark:
            raise TransferFailed(Code.BUSY, f"another process wrote into the staging of {shown}; retrying")

    def take_sealed(self, part_state: PartState, index: int) -> bool:
        """Take the share of a file that several shards move as it is, if an earlier run has sealed it; whether it has.

        It is accepted unread, as a file of equal size and mtime is under its final name. Call it with the lock of the
        part. Raises TransferFailed(DESTINATION).
        """
        large, entry, file_id = part_state.large[index], part_state.entries[index], part_state.first + index
        names = self._shared_names(large, entry)
        assert names is not None
        try:
            staging = self._stagings.of(entry.path)
            if not is_sealed(staging.files_fd, names):
                return False
        except Obstacle:  # it shows when the file is written
            return False
        except OSError as error:
            shown = shown_path(self._destination, entry.path)
            raise from_os_error(error, Code.DESTINATION, f"can't look at the staging of {shown}") from None
        place = staging.place
        share = ClosedShare(names, None, entry, file_id, self._attributes, place.sealed_shares, place.syncs_each)
        self._committer.add(
            [StagedFile(entry.path, share, 0, staging, file_id, 0, part_state.is_new(index))], 0, waits=False
        )
        return True

    # --- room

    def _take_room(self, large: LargeFile, connection: Connection | None) -> Room:
        """Take room for a file, waiting for it. Raises ConnectionLost, TransferFailed."""
        while (room := self.open_files.try_take_room(large)) is None:
            if self._make_room():
                continue
            self.wait(connection)
            # A table that is larger than OWN_BYTES is always borrowed. Wait in the queue of the budget: otherwise
            # smaller requests of other transfers would be served first, for ever.
            size = table_bytes(large)
            if size > OWN_BYTES:
                self._account.borrow(size, lambda: self._check_over(connection))
                room = self.open_files.try_take_place(size)
                if room is not None:
                    return room
        return room

    def _make_room(self) -> bool:
        """Set aside the least recently used file that can be; return whether there was one."""
        return any(self._set_aside_locking(part_state, index) for _, part_state, index in self.open_files.all())

    def wait(self, connection: Connection | None) -> None:
        """Wait a moment for room. Raises ConnectionLost where the connection is to end, or the transfer is over."""
        self._check_over(connection)
        if connection is not None:
            # Otherwise its chunks may stay unacknowledged for long, while the sender waits for the acknowledgements.
            connection.acknowledge()
        self._committer.request_flush()  # complete files keep their room until they are closed
        time.sleep(WAIT_SECONDS)
        self._check_over(connection)

    def _check_over(self, connection: Connection | None) -> None:
        if self._is_over or (connection is not None and connection.is_ended):
            raise ConnectionLost("the transfer is over, or goes on over another connection")

    def stop_waiting(self) -> None:
        """Let no thread wait for room any more: the transfer is over."""
        self._is_over = True

    @property
    def is_to_be_trimmed(self) -> bool:
        """Whether this tree has idle room that other transfers could use."""
        return self.open_files.has_excess_places or bool(self.open_files.idle())

    def trim(self) -> None:
        """Give back borrowed tables that are idle, and places beyond the share of this tree."""
        for part_state, index in self.open_files.idle():
            self._set_aside_locking(part_state, index)
        while self.open_files.has_excess_places and self._make_room():
            pass

    # --- declined

    def sink(self, part_state: PartState, index: int, open_file: OpenLargeFile) -> "_Sink":
        """Return what the bytes of a segment are written into, and which declines the file where that can't be."""
        return _Sink(open_file, lambda obstacle: self.decline(part_state, index, obstacle))

    def decline(self, part_state: PartState, index: int, obstacle: Obstacle) -> None:
        """Decline a file: nothing more of it is written."""
        with part_state.lock:
            self._decline(part_state, index, obstacle)

    def _decline(self, part_state: PartState, index: int, obstacle: Obstacle) -> None:
        """Decline a file, once, unless it is withdrawn. Call it with the lock of the part."""
        if part_state.state(index) in (DECLINED, WITHDRAWN):
            return
        large, entry = part_state.large[index], part_state.entries[index]
        part_state.set(index, DECLINED)
        if large.open_file is not None:  # it is closed behind the last connection that is receiving a chunk of it
            large.open_file.is_declined = True
        else:
            self.discard_set_aside(part_state, index)
            large.begin_declined(self._spool)
        self._declines.decline(entry.path, part_state.first + index, entry.hard_link_group, obstacle)

    def begin_declined(self, part_state: PartState, index: int) -> None:
        """Begin with a file that was declined when its entry was prepared. Call it with the lock of the part."""
        part_state.large[index].begin_declined(self._spool)

    def _close_unwanted(self, large: LargeFile, open_file: OpenLargeFile) -> None:
        """Close a file that is withdrawn or declined, and discard what is staged of it."""
        open_file.close_ledger(records_rest=False)
        if open_file.is_declined:
            large.save(self._spool, Spooled.DECLINED)
        open_file.discard()
        self._close(large, open_file)

    # --- set aside

    def _set_aside_locking(self, part_state: PartState, index: int) -> bool:
        with part_state.lock:
            return self.set_aside(part_state, index)

    def set_aside(self, part_state: PartState, index: int) -> bool:
        """Close a file, if no connection is receiving it and it is not being re-hashed; return whether it was closed.

        Call it with the lock of the part.
        """
        large = part_state.large[index]
        open_file = large.open_file
        if open_file is None or open_file.inside or open_file.rehashing or open_file.has_writers:
            return False
        if open_file.is_declined:
            self._close_unwanted(large, open_file)
            return True
        open_file.close_ledger()
        large.save(self._spool, Spooled.TABLE)
        try:
            large.mark = open_file.staging.mark()
        except OSError as error:
            what = f"can't look at the staging of {shown_path(self._destination, open_file.file.name)}"
            raise from_os_error(error, Code.DESTINATION, what) from None
        self._close(large, open_file)
        return True

    def _close(self, large: LargeFile, open_file: OpenLargeFile) -> None:
        large.open_file = None
        open_file.file.close()
        self.open_files.remove(open_file)

    # --- done

    def close_if_done(
        self, part_state: PartState, index: int, *, is_finishing: bool = False, waits: bool = True
    ) -> None:
        """Hand a complete file to the committer, discard one that is not wanted; else set the state of the file.

        With `is_finishing` the sender has said Finish, so that it will send no segment that is HELD. With `waits`, wait
        while the committer is far behind.
        """
        with part_state.lock:
            large = part_state.large[index]
            open_file = large.open_file
            if open_file is None or open_file.rehashing or open_file.inside:
                return
            is_wanted = part_state.state(index) not in (WITHDRAWN, DECLINED)
            is_complete = is_wanted and (open_file.is_verified or (is_finishing and open_file.is_all_here))
            if is_complete:
                self._complete(large, open_file)
                part_state.set(index, VERIFIED)
            elif is_wanted:
                part_state.set(index, HELD if open_file.is_all_here else WRITING)
            else:
                self._close_unwanted(large, open_file)
            is_pending = part_state.is_pending
        if is_complete:
            self._commit(part_state, index, open_file, waits=waits)
        if not is_pending:
            self._nudge()

    def _complete(self, large: LargeFile, open_file: OpenLargeFile) -> None:
        """Keep the digests of a complete file, and let no connection find it open any more."""
        open_file.close_ledger()
        large.save(self._spool, Spooled.DIGESTS)
        large.open_file = None
        held_bytes = open_file.held_bytes()
        with self._counting:
            self._counters.held_bytes += held_bytes

    def _commit(self, part_state: PartState, index: int, open_file: OpenLargeFile, *, waits: bool) -> None:
        """Hand a complete file to the committer."""
        # Closing waits for the write-back thread, which may hang on a slow disk: so the committer closes the file, not
        # a connection.
        is_closed_later = open_file.file.is_writing_back
        try:
            staged = partial(self._close_complete, open_file, part_state.first + index)
            size_bytes, entry = open_file.size_bytes, part_state.entries[index]
            file = StagedFile(
                entry.path,
                staged if is_closed_later else staged(),
                size_bytes,
                self._stagings.at(open_file.staging.place),
                part_state.first + index,
                entry.hard_link_group,
                part_state.is_new(index),
            )
            self._committer.add([file], size_bytes, waits=waits)
        except Obstacle as obstacle:  # all of it came in: only its place is refused
            entry = part_state.entries[index]
            self._declines.decline(entry.path, part_state.first + index, entry.hard_link_group, obstacle)
        except Exception as error:
            # The file already counts as received: the transfer must not be committed without it.
            self._failed(as_failure("putting a file in place", error))
            raise

    def _close_complete(self, open_file: OpenLargeFile, file_id: int) -> ClosedStaging | ClosedShare:
        """Set the attributes of a complete file, and close it. Raises TransferFailed."""
        try:
            open_file.file.stop_write_back()
            root = root_digest(open_file.digests()) if open_file.share is not WHOLE else b""
            return open_file.staging.prepare(self._attributes, file_id, root)
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't finish {open_file.file.content.path}") from None
        finally:
            open_file.file.close()
            self.open_files.remove(open_file)

    def discard_set_aside(self, part_state: PartState, index: int) -> None:
        """Discard the staging of a withdrawn file that is set aside. Call it with the lock of the part."""
        large = part_state.large[index]
        if large.spooled is Spooled.TABLE:
            large.mark = None
            entry = part_state.entries[index]
            staging = self._stagings.of(entry.path)
            if (shared := self._shared_names(large, entry)) is not None:
                discard_share(staging.files_fd, shared)
            else:
                discard_staged(staging.files_fd, staging.place.below(entry.path))

    # --- connections, and the end

    def detach(self, connection: Connection) -> None:
        """Take back what a connection was writing of any large file."""
        for open_file, part_state, index in self.open_files.all():
            with part_state.lock:
                open_file.detach(connection)
                was_inside = connection in open_file.inside
                open_file.inside.discard(connection)
            if was_inside:  # a complete or withdrawn file may have stayed open only for this connection
                self.close_if_done(part_state, index, waits=False)

    def stop_writes(self) -> None:
        """Refuse further segments: the sender has said Finish, or the transfer is over."""
        for open_file, _, _ in self.open_files.all():
            open_file.stop_writes()

    def close(self) -> None:
        """Close the open files, and keep their staging for the next run, unless a sync failed.

        Raises an error after all are closed.
        """
        with contextlib.ExitStack() as steps:
            if self._committer.is_lost:  # last, when nothing is locked any more
                # Everywhere: what has another device number may be on the same disk, as a subvolume of btrfs is.
                for place in self._stagings.places.all:
                    steps.callback(discard_unsynced, place)
            steps.callback(self.open_files.close)
            for open_file, _, _ in self.open_files.all():
                open_file.close_ledger(records_rest=False)
                steps.callback(self.open_files.remove, open_file)
                steps.callback(open_file.file.close)


class _Sink:
    """Writes a segment of a large file into its staging, as long as the file is not declined."""

    __slots__ = ("_decline", "_open_file")

    def __init__(self, open_file: OpenLargeFile, decline: Callable[[Obstacle], None]) -> None:
        self._open_file = open_file
        self._decline = decline

    def write(self, view: memoryview, offset: int) -> None:
        """Write bytes; where the file can't have them, decline it. Raises TransferFailed."""
        self._unless_declined(lambda: self._open_file.staging.write(view, offset))

    def write_run(self, view: memoryview, offset: int, length: int, distance: int) -> None:
        """Write segments; where the file can't have them, decline it. Raises TransferFailed."""
        self._unless_declined(lambda: self._open_file.staging.write_run(view, offset, length, distance))

    def begin_sparse(self, segment: m.Segment) -> None:
        """Make the holes of a segment zeros; where the file can't have them, decline it. Raises TransferFailed."""
        self._unless_declined(lambda: self._open_file.staging.begin_sparse(segment))

    def make_zeros(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Make bytes [start, end) zeros; where the file can't have them, decline it. Raises TransferFailed."""
        self._unless_declined(lambda: self._open_file.staging.make_zeros(ranges))

    def _unless_declined(self, step: Callable[[], None]) -> None:
        if self._open_file.is_declined:
            return
        try:
            step()
        except Obstacle as obstacle:
            self._decline(obstacle)
