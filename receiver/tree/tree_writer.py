"""A chunk of a tree, from its header to its digests (proto/README.md, "Chunks and segments").

    begin_chunk   find the part and the file of each segment; begin a small file, or a segment of a large one
    (the connection writes the bytes into the `sink` of each segment)
    end_chunk     compare digests. Equal: a small file is complete, and goes to the committer; a segment of a large file
                  is verified, and the file goes to the committer when all are. Different: the segment is sent again.

The lock of a part is taken once for the chunk in `begin_chunk`, and once in `end_chunk`. A thread that has to wait, for
another connection, for memory or for descriptors, waits without it, and takes it again.
"""

import enum
import itertools
from collections.abc import Callable, Sequence

from filestreamer.wire import messages as m
from filestreamer.wire.errors import ConnectionLost, RemoteProtocolError
from filestreamer.wire.grid import Grid
from receiver.disk.attributes.attributes import Attributes
from receiver.file.chunk_states import Delivery, Writer
from receiver.file.states import DECLINED, FREE, LEFT, NOTHING, UNCHECKED, VERIFIED, WITHDRAWN, WRITING
from receiver.file.target import DISCARD, LEAVE_SECONDS, Connection, Incoming, IncomingRun, IncomingSegment
from receiver.tree.commit.committer import Committer, StagedFile
from receiver.tree.commit.declines import Declines
from receiver.tree.commit.small_file import SmallFile
from receiver.tree.commit.tree_staging import TreeStagings
from receiver.tree.large_files import LargeFiles
from receiver.tree.manifest.large_file import OpenLargeFile
from receiver.tree.manifest.part_state import PartState
from receiver.tree.manifest.spool import Spool
from receiver.tree.part_table import PartTable


class _First(enum.Enum):
    """What a thread has to do, without the lock of the part, before a segment can begin."""

    ACTIVATE_PART = enum.auto()
    OPEN_FILE = enum.auto()


class TreeWriter:
    """Receives the chunks of one tree. Each data connection calls it in its own thread."""

    def __init__(
        self,
        chunk_size: int,
        parts: PartTable,
        large_files: LargeFiles,
        stagings: TreeStagings,
        committer: Committer,
        *,
        attributes: Attributes,
        declines: Declines,
        spool: Spool,
        nudge: Callable[[], object],
    ) -> None:
        """`nudge` has the coordinator look whether a part is done."""
        self._chunk_size = chunk_size
        self._parts = parts
        self._large_files = large_files
        self._stagings = stagings
        self._committer = committer
        self._attributes = attributes
        self._declines = declines
        self._spool = spool
        self._nudge = nudge
        self._is_closed = False
        """Whether further writes are refused; bytes may still be compared."""

    # --- begin

    def begin_chunk(self, connection: Connection, header: m.ChunkHeader) -> Incoming:
        """Check and begin every segment of a chunk; another connection that is writing one is stopped first.

        Raises RemoteProtocolError for a segment that can't be sent, ConnectionLost, TransferFailed.
        """
        number = self._parts.number_with(header.segments[0].file_id)
        if header.chunks > 1 and (run := self._begin_run(number, header, connection)) is not None:
            return run
        segments = header.all_segments
        is_alone = len(header.segments) == 1
        begun: list[IncomingSegment] = []
        while True:
            part_state = self._parts.acquire(number)
            try:
                first = self._begin_segments(part_state, segments, begun, connection, is_alone=is_alone)
            finally:
                part_state.lock.release()
            if first is None:
                return begun
            file_id = segments[len(begun)].file_id
            match first:
                case _First.ACTIVATE_PART:
                    self._parts.activate_again(part_state, connection)
                case _First.OPEN_FILE:
                    self._large_files.open(part_state, file_id - part_state.first, connection)
                case other:
                    if not other.stop(LEAVE_SECONDS):
                        raise ConnectionLost(f"another connection does not stop writing file {file_id}")

    def _begin_run(self, number: int, header: m.ChunkHeader, connection: Connection) -> IncomingRun | None:
        """Begin the chunks of a run, if all of them are to be written now; else nothing, and return None."""
        segment = header.segments[0]
        part_state = self._parts.acquire(number)
        try:
            index = segment.file_id - part_state.first
            large = part_state.large.get(index)
            open_file = large.open_file if large is not None else None
            is_wanted = part_state.is_active and part_state.state(index) in (FREE, WRITING)
            if open_file is None or open_file.is_declined or not is_wanted or self._is_closed:
                return None
            first, last = open_file.position(segment), open_file.position(header.run_segment(header.chunks - 1))
            if first is None or last is None:
                return None
            positions = range(first, last + 1, header.stride)
            if not open_file.begin_run(positions, connection):
                return None
            open_file.inside.add(connection)
            self._large_files.open_files.touch(open_file)
            part_state.set(index, WRITING)
            return IncomingRun(self._large_files.sink(part_state, index, open_file), positions, segment, open_file)
        finally:
            part_state.lock.release()

    def _begin_segments(
        self,
        part_state: PartState,
        segments: Sequence[m.Segment],
        begun: list[IncomingSegment],
        connection: Connection,
        *,
        is_alone: bool,
    ) -> _First | Writer | None:
        """Add segments to `begun` until all are, or one can't begin yet: return what comes first, as `_try_begin`."""
        for segment in segments[len(begun) :]:
            index = segment.file_id - part_state.first
            # Small files of one part make a chunk: one lock is taken for all of them.
            if not 0 <= index < len(part_state.entries):
                raise RemoteProtocolError(f"a chunk has file {segment.file_id}, of another ManifestPart than its first")
            step = self._try_begin(part_state, index, segment, connection, is_alone=is_alone)
            if not isinstance(step, IncomingSegment):
                return step
            begun.append(step)
        return None

    def _try_begin(
        self, part_state: PartState, index: int, segment: m.Segment, connection: Connection, *, is_alone: bool
    ) -> IncomingSegment | _First | Writer:
        """Begin a segment; or return the action that comes first, or the connection that has to stop first."""
        entry = part_state.entries[index]
        state = part_state.state(index)
        position = self._position(entry, segment)
        if state == NOTHING or position is None:
            where = f"bytes {segment.offset} to {segment.offset + segment.length}"
            raise RemoteProtocolError(f"{where} are not a segment of file {segment.file_id}")
        if state in (UNCHECKED, LEFT):
            raise RemoteProtocolError(f"file {segment.file_id} was accepted unread, or left as it is")
        if not is_alone and index in part_state.large:  # else one chunk could have a thousand files open
            raise RemoteProtocolError(f"a segment of file {segment.file_id}, which has several, is a chunk of its own")
        if state in (VERIFIED, WITHDRAWN):
            return IncomingSegment(DISCARD, position, segment, False, was_here=state == VERIFIED)
        if self._is_closed:
            raise RemoteProtocolError(f"file {segment.file_id} was sent after Finish")
        if state == DECLINED and index in part_state.large and part_state.large[index].open_file is None:
            return IncomingSegment(DISCARD, position, segment, False)
        if not part_state.is_active:
            return _First.ACTIVATE_PART
        if index in part_state.large:
            return self._begin_large(part_state, index, position, segment, connection)
        return self._begin_small(part_state, index, segment, connection)

    def _position(self, entry: m.Entry, segment: m.Segment) -> int | None:
        """Return the index of a segment in its file; None if it is not a segment of the file."""
        if segment.length == entry.size <= self._chunk_size:  # most files are small: spare them the Grid
            return None if segment.offset else 0
        return Grid(entry.size, self._chunk_size).index_of(segment.offset, segment.length)

    def _begin_small(
        self, part_state: PartState, index: int, segment: m.Segment, connection: Connection
    ) -> IncomingSegment | Connection:
        if part_state.state(index) == WRITING:
            other = part_state.writing[index].connection
            if other is connection:
                raise RemoteProtocolError(f"a chunk has file {segment.file_id} twice")
            return other
        entry = part_state.entries[index]
        file = SmallFile(
            self._stagings.of(entry.path),
            entry,
            segment.file_id,
            connection,
            attributes=self._attributes,
            declines=self._declines,
            is_declined=part_state.state(index) == DECLINED,
        )
        part_state.writing[index] = file
        part_state.set(index, WRITING)
        return IncomingSegment(file, 0, segment, True)

    def _begin_large(
        self, part_state: PartState, index: int, position: int, segment: m.Segment, connection: Connection
    ) -> IncomingSegment | _First | Writer:
        open_file = part_state.large[index].open_file
        if open_file is None:
            return _First.OPEN_FILE
        delivery, other = open_file.begin(position, connection)
        if delivery is Delivery.WAIT:
            assert other is not None  # the writer was read under the same lock
            return other
        open_file.inside.add(connection)
        self._large_files.open_files.touch(open_file)
        is_written = delivery is Delivery.WRITE and not open_file.is_declined
        if is_written:
            part_state.set(index, WRITING)
        sink = self._large_files.sink(part_state, index, open_file) if is_written else DISCARD
        was_here = delivery is Delivery.COMPARE
        return IncomingSegment(sink, position, segment, is_written, open_file, was_here)

    # --- end

    def end_chunk(
        self,
        connection: Connection,
        incoming: Incoming,
        digests: list[bytes],
        computed: list[bytes],
    ) -> list[bool]:
        """Compare the sender's digests with those of the received bytes; return of each whether it is equal.

        Raises TransferFailed.
        """
        if isinstance(incoming, IncomingRun):
            return self._end_run(connection, incoming, digests, computed)
        complete: list[StagedFile] = []
        part_state = self._parts.acquire(self._parts.number_with(incoming[0].segment.file_id))
        try:
            good = [digest == actual for digest, actual in zip(digests, computed, strict=True)]
            for at, segment in enumerate(incoming):
                if isinstance(segment.sink, SmallFile):
                    self._end_small(part_state, segment.sink, digests[at] if good[at] else None, complete)
                else:
                    good[at] = self._end_segment(part_state, connection, segment, digests[at], computed[at])
            is_pending = part_state.is_pending
        finally:
            part_state.lock.release()
        # Without the lock, as both may wait for the committer.
        if isinstance(incoming[0].ledger, OpenLargeFile):  # all segments are of one large file
            self._large_files.close_if_done(part_state, incoming[0].segment.file_id - part_state.first)
        if complete:
            self._committer.add(complete, sum([segment.segment.length for segment in incoming]))
        if not is_pending:
            self._nudge()
        return good

    def _end_run(
        self, connection: Connection, run: IncomingRun, digests: list[bytes], computed: list[bytes]
    ) -> list[bool]:
        """End the segments of a run; return of each whether its digest is right. Raises TransferFailed."""
        open_file = run.ledger
        assert isinstance(open_file, OpenLargeFile)
        part_state = self._parts.acquire(self._parts.number_with(run.segment.file_id))
        try:
            good = open_file.deliver_run(run.positions, connection, digests, computed, connection.connection_id)
            if not open_file.is_declined:
                open_file.note_unrecorded(itertools.compress(run.positions, good))
            open_file.inside.discard(connection)
            is_pending = part_state.is_pending
        finally:
            part_state.lock.release()
        self._large_files.close_if_done(part_state, run.segment.file_id - part_state.first)
        if not is_pending:
            self._nudge()
        return good

    def _end_segment(
        self, part_state: PartState, connection: Connection, incoming: IncomingSegment, digest: bytes, actual: bytes
    ) -> bool:
        """End a segment of a large file, or one that is not written; return whether its digest is right."""
        open_file = incoming.ledger
        index = incoming.segment.file_id - part_state.first
        if isinstance(open_file, OpenLargeFile):
            is_good = open_file.deliver(incoming.position, connection, digest, actual, connection.connection_id)
            if is_good and incoming.write and not open_file.is_declined:
                open_file.note_unrecorded((incoming.position,))
                if incoming.segment.runs:
                    open_file.staging.known_holes.count(incoming.segment)
            open_file.inside.discard(connection)
            return is_good
        state, large = part_state.state(index), part_state.large.get(index)
        if digest == actual and state == DECLINED and large is not None:
            return large.take_declined(incoming.position, digest, self._spool)
        if digest != actual or state != VERIFIED:  # the bytes of a withdrawn file don't matter
            return digest == actual
        at = incoming.position
        verified = large.digests_between(at, at + 1, self._spool) if large is not None else part_state.digest(index)
        return digest == verified

    def _end_small(
        self, part_state: PartState, file: SmallFile, digest: bytes | None, complete: list[StagedFile]
    ) -> None:
        """End a small file, with its digest, or None if that is wrong; add what is to be put in place to `complete`."""
        index, entry = file.file_id - part_state.first, file.entry
        if part_state.writing.get(index) is file:
            del part_state.writing[index]
        if part_state.state(index) == WITHDRAWN:
            file.discard()
        elif digest is None:
            file.discard()
            part_state.set(index, DECLINED if file.is_declined else FREE)
        else:
            part_state.set_with_digest(index, VERIFIED, digest)
            if not file.is_declined:
                file.tell()
                group, is_new = entry.hard_link_group, part_state.is_new(index)
                complete.append(
                    StagedFile(entry.path, file.name, entry.size, file.staging, file.file_id, group, is_new)
                )

    # --- connections, and the end

    def detach(self, connection: Connection) -> None:
        """Take back the segments that a connection was writing; they have to be sent again."""
        for part_state in self._parts.active:
            with part_state.lock:
                part_state.detach(connection)
        self._large_files.detach(connection)
        self._nudge()

    def stop_writes(self) -> None:
        """Refuse further writes: the sender has said Finish, or the transfer is over."""
        self._is_closed = True
        self._large_files.stop_writes()
