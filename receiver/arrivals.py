"""What connections bring of a tree: small files whole, large ones by segment (proto/README.md, "Chunks and segments").

A file that is complete goes to the placer at once. Each portion has a lock; begin and end take it once for each segment
and once for each chunk.
"""

from bisect import bisect_right
from collections.abc import Callable
from typing import Any, Final

from receiver import portion as state
from receiver.assembly import Turn
from receiver.cargo import Connection, Part
from receiver.files import LEAVE_SECONDS, SEGMENTS, File, Source
from receiver.large import Large, LargeStake
from receiver.place import Placer, TreeStaging, Whole
from receiver.portion import Portion
from receiver.small import COMPARED, SmallFile
from receiver.store import Destination
from service.counters import TransferCounters
from wire import messages as m
from wire.errors import Code, ConnectionLost, FilestreamerError, RemoteProtocolError, TransferFailed
from wire.grid import Grid

LARGE_OPEN: Final = 512
"""Large files that are open at once: three descriptors each."""


class Arrivals:
    """The files of a tree as connections see them."""

    def __init__(
        self,
        chunk_size: int,
        destination: Destination,
        staging: TreeStaging,
        placer: Placer,
        counters: TransferCounters,
        *,
        failed: Callable[[FilestreamerError], None],
        settled: Callable[[], None],
    ) -> None:
        """`failed` ends the transfer; `settled` hears that nothing more is to come of a portion."""
        self.portions: list[Portion] = []
        self.listed = 0
        """Entries of all portions."""
        self.open: dict[int, Portion] = {}
        """Portions that were open when somebody last looked, by their first file_id."""
        self.stakes: dict[LargeStake, tuple[Portion, int]] = {}
        """Large files that are open."""
        self._chunk_size = chunk_size
        self._destination = destination
        self._staging = staging
        self._placer = placer
        self._counters = counters
        self._failed = failed
        self._settled = settled
        self._firsts: list[int] = []
        self._segments = 0
        """Of large files that are open."""
        self._is_closed = False

    # --- portions

    def add(self, portion: Portion) -> None:
        """Let connections find another portion: the one that follows the last."""
        self.portions.append(portion)
        self._firsts.append(portion.first)
        self.listed += portion.count

    def beginning_with(self, first: int) -> Portion | None:
        """Return the portion that begins with this file_id, if there is one."""
        at = bisect_right(self._firsts, first) - 1
        return self.portions[at] if at >= 0 and self._firsts[at] == first else None

    def find(self, file_id: int) -> tuple[Portion, int]:
        """Return where a file is kept. Raises RemoteProtocolError where it was not offered."""
        if not 0 <= file_id < self.listed:
            raise RemoteProtocolError(f"file {file_id} was not offered")
        portion = self.portions[bisect_right(self._firsts, file_id) - 1]
        return portion, file_id - portion.first

    def forget_settled(self) -> None:
        """Look at each portion that was open, whether it is."""
        for first, portion in list(self.open.items()):
            with portion.lock:
                if not portion.is_open:
                    del self.open[first]

    # --- chunks

    def begin(self, connection: Connection, header: m.ChunkHeader) -> list[Part]:
        """Check every segment of a chunk, and begin them."""
        portion, _ = self.find(header.segments[0].file_id)
        parts = []
        for segment in header.segments:
            index = segment.file_id - portion.first
            if not 0 <= index < portion.count:
                raise RemoteProtocolError(f"chunk {header.chunk_id} has files of more than one ManifestPart")
            parts.append(self._begin(portion, index, segment, connection))
        return parts

    def _begin(self, portion: Portion, index: int, segment: m.Segment, connection: Connection) -> Part:
        while True:
            with portion.lock:
                entry = portion.wake()[index]
                kind = portion.state(index)
                if kind == state.NOTHING or self._position(entry, segment) is None:
                    where = f"bytes {segment.offset} to {segment.offset + segment.length}"
                    raise RemoteProtocolError(f"{where} are no segment of file {segment.file_id}")
                if kind == state.UNCHECKED:
                    raise RemoteProtocolError(f"file {segment.file_id} was accepted unread")
                if self._is_closed and kind not in (state.VERIFIED, state.WITHDRAWN):
                    raise RemoteProtocolError(f"file {segment.file_id} was sent after Finish")
                if index in portion.large:
                    begun = self._begin_large(portion, index, segment, connection)
                else:
                    begun = self._begin_small(portion, index, segment, connection)
                self.open.setdefault(portion.first, portion)
            if isinstance(begun, Part):
                return begun
            if not begun.end(LEAVE_SECONDS):
                raise ConnectionLost(f"another connection does not leave file {segment.file_id}")

    def _position(self, entry: m.Entry, segment: m.Segment) -> int | None:
        if segment.length == entry.size <= self._chunk_size:  # most are small
            return None if segment.offset else 0
        return Grid(entry.size, self._chunk_size).index_of(segment.offset, segment.length)

    def _begin_small(self, portion: Portion, index: int, segment: m.Segment, connection: Connection) -> Part | Any:
        """Begin a small file; return who has to leave it first, if somebody has."""
        kind = portion.state(index)
        if kind in (state.VERIFIED, state.WITHDRAWN):
            return Part(COMPARED, 0, segment, False)
        if kind == state.WRITING:
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
        """Begin a segment of a large file; return who has to leave it first, if somebody has."""
        large = portion.large[index]
        position = large.grid.index_of(segment.offset, segment.length)
        assert position is not None  # it was checked
        if portion.state(index) in (state.VERIFIED, state.WITHDRAWN):
            return Part(COMPARED, position, segment, False)
        stake = large.stake or self.open_large(portion, index, portion.entries[index])
        turn, other = stake.begin(position, connection)
        if turn is Turn.WAIT:
            return other
        if turn is Turn.WRITE:
            portion.set(index, state.WRITING)
        return Part(stake, position, segment, turn is Turn.WRITE)

    def open_large(self, portion: Portion, index: int, entry: m.Entry) -> LargeStake:
        large = portion.large[index]
        if len(self.stakes) >= LARGE_OPEN or self._segments + large.grid.segments > SEGMENTS:
            raise TransferFailed(Code.LIMIT, "too many large files are under way at once")
        source = Source(1, entry.size, entry.mtime_ns, self._chunk_size)
        file = File(entry.path, source)
        file.open(lambda: self._destination.stage_below(entry.path, entry, file.grid, 0), self._failed)
        large.stake = stake = LargeStake(file)
        large.digests = b""
        self.stakes[stake] = (portion, index)
        self._segments += large.grid.segments
        portion.set(index, state.WRITING)
        return stake

    def end(self, connection: Connection, parts: list[Part], digests: list[bytes], computed: list[bytes]) -> bool:
        """Settle the segments of a chunk; what is complete by it goes to the placer."""
        portion, _ = self.find(parts[0].segment.file_id)
        whole: list[Whole] = []
        whole_bytes = 0
        large = []
        good = True
        with portion.lock:
            for part, digest, actual in zip(parts, digests, computed, strict=True):
                stake = part.stake
                index = part.segment.file_id - portion.first
                is_good = digest == actual
                if isinstance(stake, SmallFile):
                    if self._end_small(portion, index, stake, digest if is_good else None):
                        whole.append(Whole(stake.entry.path, stake.name, stake.entry.size))
                        whole_bytes += stake.entry.size
                elif isinstance(stake, LargeStake):
                    is_good = stake.deliver(part.position, connection, digest, actual, connection.connection_id)
                    large.append(index)
                elif is_good and portion.state(index) == state.VERIFIED:
                    known = portion.large.get(index)
                    is_good = digest == (known.digest(part.position) if known else portion.digest(index))
                good = good and is_good
            portion.rest()
            is_open = portion.is_open
        for index in large:
            self.settle_large(portion, index)
        if whole:
            self._placer.add(whole, whole_bytes)
        if not is_open:
            self._settled()
        return good

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

    def settle_large(self, portion: Portion, index: int, *, is_finished: bool = False) -> None:
        """Close a large file that is complete or not wanted; `is_finished`: what is HELD is what the sender has."""
        with portion.lock:
            large = portion.large[index]
            stake = large.stake
            if stake is None or stake.rehashing:
                return
            if portion.state(index) == state.WITHDRAWN:
                if not stake.has_writers:
                    self._forget(large, stake)
                    stake.discard()
                    stake.file.close()
                return
            is_whole = stake.is_verified or (is_finished and stake.is_settled)
            if is_whole:
                self._counters.held_bytes += stake.held_bytes()
                self._forget(large, stake)
                portion.set(index, state.VERIFIED)
            else:
                portion.set(index, state.HELD if stake.is_settled else state.WRITING)
            portion.rest()
        if is_whole:
            self._placer.add([Whole(stake.file.name, stake.file, stake.grid.size)], stake.grid.size)
        if not portion.is_open:
            self._settled()

    def _forget(self, large: Large, stake: LargeStake) -> None:
        large.finish()
        del self.stakes[stake]
        self._segments -= stake.grid.segments

    def abandon(self, connection: Connection) -> None:
        """Take back what a connection was writing."""
        for portion in list(self.open.values()):
            with portion.lock:
                portion.abandon(connection)
        for stake, (portion, index) in list(self.stakes.items()):
            stake.abandon(connection)
            if portion.state(index) == state.WITHDRAWN:
                self.settle_large(portion, index)

    def shut(self) -> None:
        """Let no further write in."""
        self._is_closed = True
        for stake in list(self.stakes):
            stake.close()

    def finish(self) -> None:
        """Close what is still open: what is HELD of it is what the sender has, as it says Finish."""
        for portion, index in list(self.stakes.values()):
            self.settle_large(portion, index, is_finished=True)
