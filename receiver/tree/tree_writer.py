"""What connections bring of a tree: small files whole, large ones by segment (proto/README.md, "Chunks and segments").

A file that is complete goes to the placer at once. Each portion has a lock; begin and end take it once for each segment
and once for each chunk. What waits, for memory or for a place in the cache, waits without it.
"""

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from filestreamer.process.threads import as_failure
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import messages as m
from filestreamer.wire.errors import (
    Code,
    ConnectionLost,
    FilestreamerError,
    RemoteProtocolError,
    TransferFailed,
    from_os_error,
)
from filestreamer.wire.grid import Grid
from receiver.disk.store import ClosedStaging, Destination, StagingMark, discard_staged, shown_path
from receiver.file.chunk_states import Delivery
from receiver.file.shared_file import File, SourceVersion
from receiver.file.target import LEAVE_SECONDS, Connection, IncomingSegment
from receiver.memory.budget import Account
from receiver.tree import part_state as state
from receiver.tree.archive import Archive, cost_bytes
from receiver.tree.cache import OpenFiles
from receiver.tree.committer import Committer, StagedFile, TreeStaging
from receiver.tree.open_large_file import TABLE, WHOLE_DIGESTS, Large, OpenLargeFile
from receiver.tree.part_state import PartState
from receiver.tree.small_file import DISCARD, SmallFile

COPIES: Final = 4
"""Portions that were settled and are looked at again."""
DESCRIPTOR_SECONDS: Final = 20.0
"""How long a large file waits for descriptors that the process should have and has not."""


class _Reopen(NamedTuple):
    """A portion that was settled, and of which a file is sent after all."""

    part_state: PartState


class _Open(NamedTuple):
    """A large file that is to be opened first."""

    part_state: PartState
    at: int


class TreeWriter:
    """The files of a tree as connections see them."""

    def __init__(
        self,
        chunk_size: int,
        destination: Destination,
        staging: TreeStaging,
        committer: Committer,
        *,
        archive: Archive,
        account: Account,
        counters: TransferCounters,
        failed: Callable[[FilestreamerError], None],
        settled: Callable[[], None],
    ) -> None:
        """`failed` ends the transfer; `settled` hears that nothing more is to come of a portion."""
        self.listed = 0
        """Entries of all portions that were taken."""
        self.open: dict[int, PartState] = {}
        """Portions that are under way, by number; the lock protects who is in it."""
        self.files = OpenFiles(account, self.set_aside, committer.hurry)
        self._chunk_size = chunk_size
        self._destination = destination
        self._staging = staging
        self._committer = committer
        self._archive = archive
        self._account = account
        self._counters = counters
        self._failed = failed
        self._settled = settled
        self._lock = threading.Lock()  # protects the tables of portions, and what is counted here; taken last
        self._copies: OrderedDict[int, PartState] = OrderedDict()
        self._is_closed = False

    # --- portions

    def keep(self, part_state: PartState) -> None:
        """Let connections find a portion of which something is under way."""
        with self._lock:
            part_state.is_kept = True
            self.open[part_state.number] = part_state
            self._copies.pop(part_state.number, None)

    def find(self, file_id: int) -> tuple[PartState, int]:
        """Return where a file is kept: under way, or a copy. Raises RemoteProtocolError where it was not offered."""
        if not 0 <= file_id < self.listed:
            raise RemoteProtocolError(f"file {file_id} was not offered")
        part_state = self.part_state(self._archive.number_with(file_id))
        return part_state, file_id - part_state.first

    def part_state(self, number: int) -> PartState:
        """Return a portion that was taken: the one that is under way, or a copy."""
        with self._lock:
            part_state = self.open.get(number) or self._copies.get(number)
        if part_state is None:
            copy = self._archive.restore(number)
            with self._lock:
                part_state = self.open.get(number) or self._copies.setdefault(number, copy)
                while len(self._copies) > COPIES:
                    self._copies.popitem(last=False)
        return part_state

    def retire(self) -> None:
        """Archive each portion of which nothing is under way; its large files that wait to be compared are set aside.

        For the thread that takes portions.
        """
        for part_state in self.under_way:
            with part_state.lock:
                if part_state.is_at_rest:
                    for index in part_state.large:
                        self._set_aside(part_state, index)
                    self._archive_portion(part_state)

    def _archive_portion(self, part_state: PartState) -> None:
        self._archive.save(part_state)
        part_state.is_retired = True
        with self._lock:
            del self.open[part_state.number]
        self._account.give_back(part_state.borrowed_bytes)

    @property
    def under_way(self) -> list[PartState]:
        """The portions that are under way."""
        with self._lock:
            return list(self.open.values())

    @property
    def has_settled(self) -> bool:
        """Whether a portion may be archived."""
        with self._lock:
            return any(not part_state.is_open for part_state in self.open.values())

    def _reopen(self, part_state: PartState, connection: Connection) -> None:
        """Take a portion up again that was settled: a file of it is sent, as it differs from what is HELD."""
        cost = cost_bytes(m.ManifestPart(part_state.first, part_state.entries, False), self._chunk_size)
        self._account.borrow(cost, lambda: self.files.wait(connection))
        with self._lock:
            is_new = part_state.number not in self.open and not part_state.is_retired
            if is_new:
                part_state.is_kept, part_state.borrowed_bytes = True, cost
                self.open[part_state.number] = part_state
                self._copies.pop(part_state.number, None)
        if not is_new:
            self._account.give_back(cost)

    # --- chunks

    def begin(self, connection: Connection, header: m.ChunkHeader) -> list[IncomingSegment]:
        """Check every segment of a chunk, and begin them."""
        number = self._archive.number_with(self._offered(header.segments[0].file_id))
        parts = []
        for segment in header.segments:
            if self._archive.number_with(self._offered(segment.file_id)) != number:
                raise RemoteProtocolError(f"chunk {header.chunk_id} has files of more than one ManifestPart")
            parts.append(self._begin(segment, connection, is_alone=len(header.segments) == 1))
        return parts

    def _offered(self, file_id: int) -> int:
        if not 0 <= file_id < self.listed:
            raise RemoteProtocolError(f"file {file_id} was not offered")
        return file_id

    def _begin(self, segment: m.Segment, connection: Connection, *, is_alone: bool) -> IncomingSegment:
        while True:
            part_state, index = self.find(segment.file_id)
            with part_state.lock:
                begun = None if part_state.is_retired else self._begin_in(part_state, index, segment, connection)
                if isinstance(begun, IncomingSegment) and not is_alone and index in part_state.large:
                    reason = f"a segment of file {segment.file_id}, which has several, is a chunk of its own"
                    raise RemoteProtocolError(reason)
            match begun:
                case None:
                    continue
                case IncomingSegment():
                    return begun
                case _Reopen(settled):
                    self._reopen(settled, connection)
                case _Open(its_portion, its_index):
                    self._open_for(its_portion, its_index, connection)
                case _:
                    if not begun.stop(LEAVE_SECONDS):
                        raise ConnectionLost(f"another connection does not leave file {segment.file_id}")

    def _begin_in(
        self, part_state: PartState, index: int, segment: m.Segment, connection: Connection
    ) -> IncomingSegment | Any:
        """Begin a segment; return what has to come first, if something has: a `_Reopen`, `_Open`, or a connection."""
        entry = part_state.entries[index]
        kind = part_state.state(index)
        if kind == state.NOTHING or self._position(entry, segment) is None:
            where = f"bytes {segment.offset} to {segment.offset + segment.length}"
            raise RemoteProtocolError(f"{where} are no segment of file {segment.file_id}")
        if kind == state.UNCHECKED:
            raise RemoteProtocolError(f"file {segment.file_id} was accepted unread")
        if kind in (state.VERIFIED, state.WITHDRAWN):
            return IncomingSegment(DISCARD, self._position(entry, segment) or 0, segment, False)
        if self._is_closed:
            raise RemoteProtocolError(f"file {segment.file_id} was sent after Finish")
        if not part_state.is_kept:
            return _Reopen(part_state)
        if index in part_state.large:
            return self._begin_large(part_state, index, segment, connection)
        return self._begin_small(part_state, index, segment, connection)

    def _position(self, entry: m.Entry, segment: m.Segment) -> int | None:
        if segment.length == entry.size <= self._chunk_size:  # most are small
            return None if segment.offset else 0
        return Grid(entry.size, self._chunk_size).index_of(segment.offset, segment.length)

    def _begin_small(
        self, part_state: PartState, index: int, segment: m.Segment, connection: Connection
    ) -> IncomingSegment | Any:
        """Begin a small file; return who has to leave it first, if somebody has."""
        if part_state.state(index) == state.WRITING:
            other = part_state.writing[index].connection
            if other is connection:
                raise RemoteProtocolError(f"file {segment.file_id} stands in a chunk twice")
            return other
        name = self._staging.name(segment.file_id, connection.connection_id)
        file = SmallFile(self._staging, name, part_state.entries[index], connection)
        part_state.writing[index] = file
        part_state.set(index, state.WRITING)
        return IncomingSegment(file, 0, segment, True)

    def _begin_large(
        self, part_state: PartState, index: int, segment: m.Segment, connection: Connection
    ) -> IncomingSegment | Any:
        """Begin a segment of a large file; return what has to come first, if something has."""
        large = part_state.large[index]
        position = large.grid.index_of(segment.offset, segment.length)
        assert position is not None  # it was checked
        open_file = large.open_file
        if open_file is None:
            return _Open(part_state, index)
        turn, other = open_file.begin(position, connection)
        if turn is Delivery.WAIT:
            return other
        open_file.inside.add(connection)
        self.files.touch(open_file)
        if turn is Delivery.WRITE:
            part_state.set(index, state.WRITING)
        return IncomingSegment(open_file, position, segment, turn is Delivery.WRITE, open_file)

    # --- large files

    def _open_for(self, part_state: PartState, index: int, connection: Connection | None) -> None:
        """Open a large file, as soon as there is room. Raises TransferFailed, ConnectionLost."""
        until = time.monotonic() + DESCRIPTOR_SECONDS
        while True:
            room = self.files.room(part_state.large[index], connection)
            try:
                with part_state.lock:
                    if part_state.is_retired or part_state.large[index].open_file is not None:
                        self.files.give_back(*room)
                    else:
                        self.open_large(part_state, index, room)
                return
            except BaseException as error:
                self.files.give_back(*room)
                is_short = isinstance(error, TransferFailed) and error.code is Code.LIMIT
                if not is_short or time.monotonic() > until:
                    raise
            if not self.files.make_room():
                self.files.wait(connection)

    def open_large(self, part_state: PartState, index: int, room: tuple[int, int]) -> OpenLargeFile:
        """Open a large file in room that was taken. Call it with the lock of its portion. Raises TransferFailed."""
        large, entry = part_state.large[index], part_state.entries[index]
        if large.kind == TABLE:
            self._check_mark(large, entry)
        file = File(entry.path, SourceVersion(1, entry.size, entry.mtime_ns, self._chunk_size))
        try:
            file.open(lambda: self._destination.stage_below(entry.path, entry, file.grid, 0), self._failed)
            open_file = OpenLargeFile(file)
            if large.kind == TABLE:
                large.restore(open_file, self._archive.spool)
        except BaseException:
            file.close()
            raise
        large.open_file = open_file
        self.files.add(open_file, part_state, index, room)
        if part_state.state(index) == state.FREE or large.kind == WHOLE_DIGESTS:  # a final file that differs
            part_state.set(index, state.WRITING)
        return open_file

    def _check_mark(self, large: Large, entry: m.Entry) -> None:
        """Look whether staging is as it was left. Raises TransferFailed(BUSY)."""
        shown = shown_path(self._destination, entry.path)
        try:
            found = StagingMark.of(self._staging.files_fd, entry.path)
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't look at the staging of {shown}") from None
        if large.mark is not None and found != large.mark:
            raise TransferFailed(Code.BUSY, f"another process wrote into the staging of {shown}")

    def set_aside(self, part_state: PartState, index: int) -> bool:
        """Close a large file, unless a connection is inside, or it is re-hashed; whether it was closed."""
        with part_state.lock:
            return self._set_aside(part_state, index)

    def _set_aside(self, part_state: PartState, index: int) -> bool:
        large = part_state.large[index]
        open_file = large.open_file
        if open_file is None or open_file.inside or open_file.rehashing or open_file.has_writers:
            return False
        open_file.finish()
        large.set_aside(self._archive.spool, is_whole=False)
        try:
            large.mark = open_file.staged.mark()
        except OSError as error:
            what = f"can't look at the staging of {shown_path(self._destination, open_file.file.name)}"
            raise from_os_error(error, Code.DESTINATION, what) from None
        self._close(large, open_file)
        return True

    def _close(self, large: Large, open_file: OpenLargeFile) -> None:
        large.open_file = None
        open_file.file.close()
        self.files.remove(open_file)

    def end(
        self, connection: Connection, parts: list[IncomingSegment], digests: list[bytes], computed: list[bytes]
    ) -> bool:
        """Settle the segments of a chunk; what is complete by it goes to the placer."""
        whole: list[StagedFile] = []
        part_state, good, is_open = self._end_in(connection, parts, digests, computed, whole)
        for part in parts:
            if isinstance(part.sink, OpenLargeFile):
                self.settle_large(part_state, part.segment.file_id - part_state.first)
        if whole:
            size = sum([part.segment.length for part in parts])
            self._committer.add(whole, size)
        if not is_open:
            self._settled()
        return good

    def _end_in(
        self,
        connection: Connection,
        parts: list[IncomingSegment],
        digests: list[bytes],
        computed: list[bytes],
        whole: list[StagedFile],
    ) -> tuple[PartState, bool, bool]:
        """Settle segments; return their portion, whether all digests were right, and whether something is open."""
        while True:
            part_state, _ = self.find(parts[0].segment.file_id)
            with part_state.lock:
                if part_state.is_retired:
                    continue
                good = True
                for part, digest, actual in zip(parts, digests, computed, strict=True):
                    good = (
                        self._end_segment(part_state, connection, part, digest=digest, actual=actual, whole=whole)
                        and good
                    )
                return part_state, good, part_state.is_open

    def _end_segment(
        self,
        part_state: PartState,
        connection: Connection,
        part: IncomingSegment,
        *,
        digest: bytes,
        actual: bytes,
        whole: list[StagedFile],
    ) -> bool:
        open_file = part.sink
        index = part.segment.file_id - part_state.first
        is_good = digest == actual
        if isinstance(open_file, SmallFile):
            if self._end_small(part_state, index, open_file, digest if is_good else None):
                whole.append(StagedFile(open_file.entry.path, open_file.name, open_file.entry.size))
        elif isinstance(open_file, OpenLargeFile):
            is_good = open_file.deliver(part.position, connection, digest, actual, connection.connection_id)
            if is_good and part.write:
                open_file.delivered(part.position)
            open_file.inside.discard(connection)
        elif is_good and part_state.state(index) == state.VERIFIED:
            large = part_state.large.get(index)
            spool, at = self._archive.spool, part.position
            is_good = digest == (large.digests_between(at, at + 1, spool) if large else part_state.digest(index))
        return is_good

    def _end_small(self, part_state: PartState, index: int, file: SmallFile, digest: bytes | None) -> bool:
        """Settle a small file that was written; whether it is to be put in place."""
        if part_state.writing.get(index) is file:
            del part_state.writing[index]
        if part_state.state(index) == state.WITHDRAWN:
            file.abandon()
            return False
        if digest is None:
            file.abandon()
            part_state.set(index, state.FREE)
            return False
        part_state.settle(index, state.VERIFIED, digest)
        return True

    def settle_large(self, part_state: PartState, index: int, *, is_finished: bool = False, waits: bool = True) -> None:
        """Close a large file that is complete or not wanted; `is_finished`: what is HELD is what the sender has."""
        with part_state.lock:
            large = part_state.large[index]
            open_file = large.open_file
            if open_file is None or open_file.rehashing or open_file.inside:
                return
            is_wanted = part_state.state(index) != state.WITHDRAWN
            is_whole = is_wanted and (open_file.is_verified or (is_finished and open_file.is_settled))
            if is_whole:
                self._complete(large, open_file)
                part_state.set(index, state.VERIFIED)
            elif is_wanted:
                part_state.set(index, state.HELD if open_file.is_settled else state.WRITING)
            else:
                self._drop(large, open_file)
            is_open = part_state.is_open
        if is_whole:
            self._place(open_file, waits=waits)
        if not is_open:
            self._settled()

    def _complete(self, large: Large, open_file: OpenLargeFile) -> None:
        """Let connections do without a file that is all here."""
        open_file.finish()
        large.set_aside(self._archive.spool, is_whole=True)
        large.open_file = None
        held_bytes = open_file.held_bytes()
        with self._lock:
            self._counters.held_bytes += held_bytes

    def _place(self, open_file: OpenLargeFile, *, waits: bool) -> None:
        """Have a file put in place. What a thread still writes back is closed by the placer: that may take a while."""
        later = open_file.file.is_writing_back
        try:
            staged = (lambda: self._keep_complete(open_file)) if later else self._keep_complete(open_file)
            self._committer.add(
                [StagedFile(open_file.file.name, staged, open_file.file.grid.size)],
                open_file.file.grid.size,
                waits=waits,
            )
        except Exception as error:  # it counts as received by now: nothing may be committed without it
            self._failed(as_failure("putting a file in place", error))
            raise

    def _keep_complete(self, open_file: OpenLargeFile) -> ClosedStaging:
        """Close a file that is all here, with its mode and times; return what is to be put in place."""
        try:
            open_file.file.stop_write_back()
            open_file.staged.prepare()
            return open_file.staged.kept()
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't finish {open_file.file.content.path}") from None
        finally:
            open_file.file.close()
            self.files.remove(open_file)

    def _drop(self, large: Large, open_file: OpenLargeFile) -> None:
        """Close a file that is not going to be sent, and drop its bytes."""
        open_file.forsake()
        open_file.discard()
        self._close(large, open_file)

    def drop_staged(self, part_state: PartState, index: int) -> None:
        """Drop what was set aside of a file that is not going to be sent."""
        if part_state.large[index].kind == TABLE:
            part_state.large[index].mark = None
            discard_staged(self._staging.files_fd, part_state.entries[index].path)

    # --- the end

    def abandon(self, connection: Connection) -> None:
        """Take back what a connection was writing."""
        for part_state in self.under_way:
            with part_state.lock:
                part_state.abandon(connection)
        for open_file, part_state, index in self.files.all():
            with part_state.lock:
                open_file.detach(connection)
                was_inside = connection in open_file.inside
                open_file.inside.discard(connection)
            if was_inside:  # it may have kept others from closing it
                self.settle_large(part_state, index, waits=False)
        self._settled()

    def shut(self) -> None:
        """Let no further write in."""
        self._is_closed = True
        for open_file, _, _ in self.files.all():
            open_file.stop_writes()

    def finish(self) -> None:
        """Put in place what is HELD in its staging: it is what the sender has, as it says Finish."""
        for number in range(self._archive.parts):
            part_state = self.open.get(number)
            if part_state is None and self._archive.has_partial(number):
                part_state = self.part_state(number)
                self.keep(part_state)
            if part_state is not None:
                self._finish(part_state)
                self.retire()
        for part_state in self.under_way:  # a connection still brings what was withdrawn
            with part_state.lock:
                self._archive.save(part_state)

    def _finish(self, part_state: PartState) -> None:
        for index, large in list(part_state.large.items()):
            if part_state.state(index) != state.WITHDRAWN and part_state.is_partial(index):
                if large.open_file is None:
                    self._open_for(part_state, index, None)
                for connection in list(large.open_file.inside) if large.open_file is not None else ():
                    connection.stop(LEAVE_SECONDS)  # its sender has given it up
                self.settle_large(part_state, index, is_finished=True)

    def end_waiting(self) -> None:
        """Let nobody wait for memory or for a place any more."""
        self.files.end()
        self._committer.let_go()

    def leave(self) -> None:
        """Close what is open, and keep its bytes for the next run."""
        with contextlib.ExitStack() as steps:  # each is taken, whatever the disk says to another
            steps.callback(self.files.close)
            for open_file, _, _ in self.files.all():
                open_file.forsake()
                steps.callback(self.files.remove, open_file)
                steps.callback(open_file.file.close)
