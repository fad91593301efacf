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

from receiver import portion as state
from receiver.archive import Archive, cost_bytes
from receiver.assembly import Turn
from receiver.budget import Account
from receiver.cache import OpenFiles
from receiver.cargo import Connection, Part
from receiver.files import LEAVE_SECONDS, File, Source
from receiver.large import TABLE, WHOLE_DIGESTS, Large, LargeStake
from receiver.place import Placer, TreeStaging, Whole
from receiver.portion import Portion
from receiver.small import COMPARED, SmallFile
from receiver.store import Destination, Kept, Mark, discard_staged, shown_path
from service.counters import TransferCounters
from service.threads import as_failure
from wire import messages as m
from wire.errors import Code, ConnectionLost, FilestreamerError, RemoteProtocolError, TransferFailed, from_os_error
from wire.grid import Grid

COPIES: Final = 4
"""Portions that were settled and are looked at again."""
DESCRIPTOR_SECONDS: Final = 20.0
"""How long a large file waits for descriptors that the process should have and has not."""


class _Reopen(NamedTuple):
    """A portion that was settled, and of which a file is sent after all."""

    portion: Portion


class _Open(NamedTuple):
    """A large file that is to be opened first."""

    portion: Portion
    at: int


class Arrivals:
    """The files of a tree as connections see them."""

    def __init__(
        self,
        chunk_size: int,
        destination: Destination,
        staging: TreeStaging,
        placer: Placer,
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
        self.open: dict[int, Portion] = {}
        """Portions that are under way, by number; the lock protects who is in it."""
        self.files = OpenFiles(account, self.set_aside, placer.hurry)
        self._chunk_size = chunk_size
        self._destination = destination
        self._staging = staging
        self._placer = placer
        self._archive = archive
        self._account = account
        self._counters = counters
        self._failed = failed
        self._settled = settled
        self._lock = threading.Lock()  # protects the tables of portions, and what is counted here; taken last
        self._copies: OrderedDict[int, Portion] = OrderedDict()
        self._is_closed = False

    # --- portions

    def keep(self, portion: Portion) -> None:
        """Let connections find a portion of which something is under way."""
        with self._lock:
            portion.is_kept = True
            self.open[portion.number] = portion
            self._copies.pop(portion.number, None)

    def find(self, file_id: int) -> tuple[Portion, int]:
        """Return where a file is kept: under way, or a copy. Raises RemoteProtocolError where it was not offered."""
        if not 0 <= file_id < self.listed:
            raise RemoteProtocolError(f"file {file_id} was not offered")
        portion = self.portion(self._archive.number_with(file_id))
        return portion, file_id - portion.first

    def portion(self, number: int) -> Portion:
        """Return a portion that was taken: the one that is under way, or a copy."""
        with self._lock:
            portion = self.open.get(number) or self._copies.get(number)
        if portion is None:
            copy = self._archive.restore(number)
            with self._lock:
                portion = self.open.get(number) or self._copies.setdefault(number, copy)
                while len(self._copies) > COPIES:
                    self._copies.popitem(last=False)
        return portion

    def retire(self) -> None:
        """Archive each portion of which nothing is under way; its large files that wait to be compared are set aside.

        For the thread that takes portions.
        """
        for portion in self.under_way:
            with portion.lock:
                if portion.is_at_rest:
                    for index in portion.large:
                        self._set_aside(portion, index)
                    self._archive_portion(portion)

    def _archive_portion(self, portion: Portion) -> None:
        self._archive.save(portion)
        portion.is_retired = True
        with self._lock:
            del self.open[portion.number]
        self._account.give_back(portion.borrowed_bytes)

    @property
    def under_way(self) -> list[Portion]:
        """The portions that are under way."""
        with self._lock:
            return list(self.open.values())

    @property
    def has_settled(self) -> bool:
        """Whether a portion may be archived."""
        with self._lock:
            return any(not portion.is_open for portion in self.open.values())

    def _reopen(self, portion: Portion, connection: Connection) -> None:
        """Take a portion up again that was settled: a file of it is sent, as it differs from what is HELD."""
        cost = cost_bytes(m.ManifestPart(portion.first, portion.entries, False), self._chunk_size)
        self._account.borrow(cost, lambda: self.files.wait(connection))
        with self._lock:
            is_new = portion.number not in self.open and not portion.is_retired
            if is_new:
                portion.is_kept, portion.borrowed_bytes = True, cost
                self.open[portion.number] = portion
                self._copies.pop(portion.number, None)
        if not is_new:
            self._account.give_back(cost)

    # --- chunks

    def begin(self, connection: Connection, header: m.ChunkHeader) -> list[Part]:
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

    def _begin(self, segment: m.Segment, connection: Connection, *, is_alone: bool) -> Part:
        while True:
            portion, index = self.find(segment.file_id)
            with portion.lock:
                begun = None if portion.is_retired else self._begin_in(portion, index, segment, connection)
                if isinstance(begun, Part) and not is_alone and index in portion.large:
                    reason = f"a segment of file {segment.file_id}, which has several, is a chunk of its own"
                    raise RemoteProtocolError(reason)
            match begun:
                case None:
                    continue
                case Part():
                    return begun
                case _Reopen(settled):
                    self._reopen(settled, connection)
                case _Open(its_portion, its_index):
                    self._open_for(its_portion, its_index, connection)
                case _:
                    if not begun.end(LEAVE_SECONDS):
                        raise ConnectionLost(f"another connection does not leave file {segment.file_id}")

    def _begin_in(self, portion: Portion, index: int, segment: m.Segment, connection: Connection) -> Part | Any:
        """Begin a segment; return what has to come first, if something has: a `_Reopen`, `_Open`, or a connection."""
        entry = portion.entries[index]
        kind = portion.state(index)
        if kind == state.NOTHING or self._position(entry, segment) is None:
            where = f"bytes {segment.offset} to {segment.offset + segment.length}"
            raise RemoteProtocolError(f"{where} are no segment of file {segment.file_id}")
        if kind == state.UNCHECKED:
            raise RemoteProtocolError(f"file {segment.file_id} was accepted unread")
        if kind in (state.VERIFIED, state.WITHDRAWN):
            return Part(COMPARED, self._position(entry, segment) or 0, segment, False)
        if self._is_closed:
            raise RemoteProtocolError(f"file {segment.file_id} was sent after Finish")
        if not portion.is_kept:
            return _Reopen(portion)
        if index in portion.large:
            return self._begin_large(portion, index, segment, connection)
        return self._begin_small(portion, index, segment, connection)

    def _position(self, entry: m.Entry, segment: m.Segment) -> int | None:
        if segment.length == entry.size <= self._chunk_size:  # most are small
            return None if segment.offset else 0
        return Grid(entry.size, self._chunk_size).index_of(segment.offset, segment.length)

    def _begin_small(self, portion: Portion, index: int, segment: m.Segment, connection: Connection) -> Part | Any:
        """Begin a small file; return who has to leave it first, if somebody has."""
        if portion.state(index) == state.WRITING:
            other = portion.writing[index].connection
            if other is connection:
                raise RemoteProtocolError(f"file {segment.file_id} stands in a chunk twice")
            return other
        name = self._staging.name(segment.file_id, connection.connection_id)
        file = SmallFile(self._staging, name, portion.entries[index], connection)
        portion.writing[index] = file
        portion.set(index, state.WRITING)
        return Part(file, 0, segment, True)

    def _begin_large(self, portion: Portion, index: int, segment: m.Segment, connection: Connection) -> Part | Any:
        """Begin a segment of a large file; return what has to come first, if something has."""
        large = portion.large[index]
        position = large.grid.index_of(segment.offset, segment.length)
        assert position is not None  # it was checked
        stake = large.stake
        if stake is None:
            return _Open(portion, index)
        turn, other = stake.begin(position, connection)
        if turn is Turn.WAIT:
            return other
        stake.inside.add(connection)
        self.files.touch(stake)
        if turn is Turn.WRITE:
            portion.set(index, state.WRITING)
        return Part(stake, position, segment, turn is Turn.WRITE)

    # --- large files

    def _open_for(self, portion: Portion, index: int, connection: Connection | None) -> None:
        """Open a large file, as soon as there is room. Raises TransferFailed, ConnectionLost."""
        until = time.monotonic() + DESCRIPTOR_SECONDS
        while True:
            room = self.files.room(portion.large[index], connection)
            try:
                with portion.lock:
                    if portion.is_retired or portion.large[index].stake is not None:
                        self.files.give_back(*room)
                    else:
                        self.open_large(portion, index, room)
                return
            except BaseException as error:
                self.files.give_back(*room)
                is_short = isinstance(error, TransferFailed) and error.code is Code.LIMIT
                if not is_short or time.monotonic() > until:
                    raise
            if not self.files.make_room():
                self.files.wait(connection)

    def open_large(self, portion: Portion, index: int, room: tuple[int, int]) -> LargeStake:
        """Open a large file in room that was taken. Call it with the lock of its portion. Raises TransferFailed."""
        large, entry = portion.large[index], portion.entries[index]
        if large.kind == TABLE:
            self._check_mark(large, entry)
        file = File(entry.path, Source(1, entry.size, entry.mtime_ns, self._chunk_size))
        try:
            file.open(lambda: self._destination.stage_below(entry.path, entry, file.grid, 0), self._failed)
            stake = LargeStake(file)
            if large.kind == TABLE:
                large.restore(stake, self._archive.spool)
        except BaseException:
            file.close()
            raise
        large.stake = stake
        self.files.add(stake, portion, index, room)
        if portion.state(index) == state.FREE or large.kind == WHOLE_DIGESTS:  # a final file that differs
            portion.set(index, state.WRITING)
        return stake

    def _check_mark(self, large: Large, entry: m.Entry) -> None:
        """Look whether staging is as it was left. Raises TransferFailed(BUSY)."""
        shown = shown_path(self._destination, entry.path)
        try:
            found = Mark.of(self._staging.files_fd, entry.path)
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't look at the staging of {shown}") from None
        if large.mark is not None and found != large.mark:
            raise TransferFailed(Code.BUSY, f"another process wrote into the staging of {shown}")

    def set_aside(self, portion: Portion, index: int) -> bool:
        """Close a large file, unless a connection is inside, or it is re-hashed; whether it was closed."""
        with portion.lock:
            return self._set_aside(portion, index)

    def _set_aside(self, portion: Portion, index: int) -> bool:
        large = portion.large[index]
        stake = large.stake
        if stake is None or stake.inside or stake.rehashing or stake.has_writers:
            return False
        stake.finish()
        large.set_aside(self._archive.spool, is_whole=False)
        try:
            large.mark = stake.staged.mark()
        except OSError as error:
            what = f"can't look at the staging of {shown_path(self._destination, stake.file.name)}"
            raise from_os_error(error, Code.DESTINATION, what) from None
        self._close(large, stake)
        return True

    def _close(self, large: Large, stake: LargeStake) -> None:
        large.stake = None
        stake.file.close()
        self.files.remove(stake)

    def end(self, connection: Connection, parts: list[Part], digests: list[bytes], computed: list[bytes]) -> bool:
        """Settle the segments of a chunk; what is complete by it goes to the placer."""
        whole: list[Whole] = []
        portion, good, is_open = self._end_in(connection, parts, digests, computed, whole)
        for part in parts:
            if isinstance(part.stake, LargeStake):
                self.settle_large(portion, part.segment.file_id - portion.first)
        if whole:
            size = sum([part.segment.length for part in parts])
            self._placer.add(whole, size)
        if not is_open:
            self._settled()
        return good

    def _end_in(
        self, connection: Connection, parts: list[Part], digests: list[bytes], computed: list[bytes], whole: list[Whole]
    ) -> tuple[Portion, bool, bool]:
        """Settle segments; return their portion, whether all digests were right, and whether something is open."""
        while True:
            portion, _ = self.find(parts[0].segment.file_id)
            with portion.lock:
                if portion.is_retired:
                    continue
                good = True
                for part, digest, actual in zip(parts, digests, computed, strict=True):
                    good = (
                        self._end_segment(portion, connection, part, digest=digest, actual=actual, whole=whole) and good
                    )
                return portion, good, portion.is_open

    def _end_segment(
        self,
        portion: Portion,
        connection: Connection,
        part: Part,
        *,
        digest: bytes,
        actual: bytes,
        whole: list[Whole],
    ) -> bool:
        stake = part.stake
        index = part.segment.file_id - portion.first
        is_good = digest == actual
        if isinstance(stake, SmallFile):
            if self._end_small(portion, index, stake, digest if is_good else None):
                whole.append(Whole(stake.entry.path, stake.name, stake.entry.size))
        elif isinstance(stake, LargeStake):
            is_good = stake.deliver(part.position, connection, digest, actual, connection.connection_id)
            if is_good and part.write:
                stake.delivered(part.position)
            stake.inside.discard(connection)
        elif is_good and portion.state(index) == state.VERIFIED:
            large = portion.large.get(index)
            spool, at = self._archive.spool, part.position
            is_good = digest == (large.digests_between(at, at + 1, spool) if large else portion.digest(index))
        return is_good

    def _end_small(self, portion: Portion, index: int, file: SmallFile, digest: bytes | None) -> bool:
        """Settle a small file that was written; whether it is to be put in place."""
        if portion.writing.get(index) is file:
            del portion.writing[index]
        if portion.state(index) == state.WITHDRAWN:
            file.abandon()
            return False
        if digest is None:
            file.abandon()
            portion.set(index, state.FREE)
            return False
        portion.settle(index, state.VERIFIED, digest)
        return True

    def settle_large(self, portion: Portion, index: int, *, is_finished: bool = False, waits: bool = True) -> None:
        """Close a large file that is complete or not wanted; `is_finished`: what is HELD is what the sender has."""
        with portion.lock:
            large = portion.large[index]
            stake = large.stake
            if stake is None or stake.rehashing or stake.inside:
                return
            is_wanted = portion.state(index) != state.WITHDRAWN
            is_whole = is_wanted and (stake.is_verified or (is_finished and stake.is_settled))
            if is_whole:
                self._complete(large, stake)
                portion.set(index, state.VERIFIED)
            elif is_wanted:
                portion.set(index, state.HELD if stake.is_settled else state.WRITING)
            else:
                self._drop(large, stake)
            is_open = portion.is_open
        if is_whole:
            self._place(stake, waits=waits)
        if not is_open:
            self._settled()

    def _complete(self, large: Large, stake: LargeStake) -> None:
        """Let connections do without a file that is all here."""
        stake.finish()
        large.set_aside(self._archive.spool, is_whole=True)
        large.stake = None
        held_bytes = stake.held_bytes()
        with self._lock:
            self._counters.held_bytes += held_bytes

    def _place(self, stake: LargeStake, *, waits: bool) -> None:
        """Have a file put in place. What a thread still writes back is closed by the placer: that may take a while."""
        later = stake.file.is_writing_back
        try:
            staged = (lambda: self._keep_complete(stake)) if later else self._keep_complete(stake)
            self._placer.add([Whole(stake.file.name, staged, stake.grid.size)], stake.grid.size, waits=waits)
        except Exception as error:  # it counts as received by now: nothing may be committed without it
            self._failed(as_failure("putting a file in place", error))
            raise

    def _keep_complete(self, stake: LargeStake) -> Kept:
        """Close a file that is all here, with its mode and times; return what is to be put in place."""
        try:
            stake.file.end_write_back()
            stake.staged.prepare()
            return stake.staged.kept()
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't finish {stake.content.path}") from None
        finally:
            stake.file.close()
            self.files.remove(stake)

    def _drop(self, large: Large, stake: LargeStake) -> None:
        """Close a file that is not going to be sent, and drop its bytes."""
        stake.forsake()
        stake.discard()
        self._close(large, stake)

    def drop_staged(self, portion: Portion, index: int) -> None:
        """Drop what was set aside of a file that is not going to be sent."""
        if portion.large[index].kind == TABLE:
            portion.large[index].mark = None
            discard_staged(self._staging.files_fd, portion.entries[index].path)

    # --- the end

    def abandon(self, connection: Connection) -> None:
        """Take back what a connection was writing."""
        for portion in self.under_way:
            with portion.lock:
                portion.abandon(connection)
        for stake, portion, index in self.files.all():
            with portion.lock:
                stake.abandon(connection)
                was_inside = connection in stake.inside
                stake.inside.discard(connection)
            if was_inside:  # it may have kept others from closing it
                self.settle_large(portion, index, waits=False)
        self._settled()

    def shut(self) -> None:
        """Let no further write in."""
        self._is_closed = True
        for stake, _, _ in self.files.all():
            stake.close()

    def finish(self) -> None:
        """Put in place what is HELD in its staging: it is what the sender has, as it says Finish."""
        for number in range(self._archive.parts):
            portion = self.open.get(number)
            if portion is None and self._archive.has_partial(number):
                portion = self.portion(number)
                self.keep(portion)
            if portion is not None:
                self._finish(portion)
                self.retire()
        for portion in self.under_way:  # a connection still brings what was withdrawn
            with portion.lock:
                self._archive.save(portion)

    def _finish(self, portion: Portion) -> None:
        for index, large in list(portion.large.items()):
            if portion.state(index) != state.WITHDRAWN and portion.is_partial(index):
                if large.stake is None:
                    self._open_for(portion, index, None)
                for connection in list(large.stake.inside) if large.stake is not None else ():
                    connection.end(LEAVE_SECONDS)  # its sender has given it up
                self.settle_large(portion, index, is_finished=True)

    def end_waiting(self) -> None:
        """Let nobody wait for memory or for a place any more."""
        self.files.end()
        self._placer.let_go()

    def leave(self) -> None:
        """Close what is open, and keep its bytes for the next run."""
        with contextlib.ExitStack() as steps:  # each is taken, whatever the disk says to another
            steps.callback(self.files.close)
            for stake, _, _ in self.files.all():
                stake.forsake()
                steps.callback(self.files.remove, stake)
                steps.callback(stake.file.close)
