"""The share that one transfer has in a file: chunks are written, recorded and answered for these segments alone.

A transfer of a whole file has all segments, a shard those with its index modulo the number of shards. Within a share,
segments are counted by their ordinal; messages and the ledger count the segments of the file (`Share` converts).
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from filestreamer.telemetry.chunk_map import ChunkMap
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.digests import root_digest
from filestreamer.wire.errors import Code, ConnectionLost, RemoteProtocolError, TransferFailed
from filestreamer.wire.grid import Share
from filestreamer.wire.runs import runs
from receiver.disk.staging.staging import Staging
from receiver.file.answers import Runs, needed_messages, zeros_messages
from receiver.file.chunk_states import Delivery, Writer
from receiver.file.shared_file import File
from receiver.file.states import CLAIMED, FREE, HELD, UNCHECKED, VERIFIED, WRITING, ZERO
from receiver.file.target import DISCARD, LEAVE_SECONDS, Connection, Incoming, IncomingRun, IncomingSegment

MISSING_MOST: Final = 1 << 15
"""The most runs of missing chunks in one answer to Finish: once these are sent, the sender says Finish again."""

ZEROS_AT_ONCE: Final = 1 << 16
"""The most segments that are turned to zeros at once: the runs of all segments may take more than their table."""


class Answer(NamedTuple):
    """Which of some segments of its share the sender has to send, and which it has to compare."""

    needed: list[tuple[int, int]]
    held: list[tuple[int, int]]


class FileShare:
    """The segments of one file that one transfer receives. It is the `ChunkWriter` of a transfer of one file."""

    def __init__(self, file: File, share: Share) -> None:
        self.file = file
        self.share = share
        self.chunks = share.chunks(file.grid.segments)
        self.chunk_map = ChunkMap(self.chunks)
        """The chunks of the share, by ordinal; written under the file's lock."""
        self._is_closed = False  # protected by the file's lock

    @property
    def size_bytes(self) -> int:
        """Bytes of the share."""
        return self.share.bytes_of(self.file.grid)

    @property
    def is_unchecked(self) -> bool:
        """Whether the file is accepted unread: it stands under its final name, with the size and mtime that is sent."""
        return self.file.in_place is not None and self.file.in_place.is_unchecked

    def begin_again(self) -> None:
        """Turn the segments that an earlier transfer of this share brought to HELD: the sender has to compare them."""
        with self.file.lock:
            self.file.chunk_states.begin_again(self.share)
            for start, stop in self.file.chunk_states.runs(HELD, UNCHECKED, share=self.share):
                for ordinal in range(start, stop):
                    self.chunk_map.add(ordinal, None)

    # --- chunks, from the threads of data connections

    def begin_chunk(self, connection: Connection, header: m.ChunkHeader) -> Incoming:
        """Check every segment of a chunk, and begin them; a connection that is writing one of them is stopped first."""
        if header.chunks > 1:
            return self._begin_run(connection, header)
        # All are checked before the first is begun: a chunk that is refused changes nothing.
        positions = [self._checked(header.chunk_id, segment) for segment in header.segments]
        return [
            self._begin_segment(connection, position, segment)
            for position, segment in zip(positions, header.segments, strict=True)
        ]

    def _begin_run(self, connection: Connection, header: m.ChunkHeader) -> Incoming:
        segment, last = header.segments[0], header.run_segment(header.chunks - 1)
        first, end = self._checked(header.chunk_id, segment), self._checked(header.chunk_ids[-1], last) + 1
        positions = range(first, end, header.stride)
        if self.begin_run(positions, connection):
            staging = self.file.content
            assert isinstance(staging, Staging)  # `begin_run` begins nothing in a committed file
            return IncomingRun(staging, positions, segment, staging)
        return [
            self._begin_segment(connection, position, each)
            for position, each in zip(positions, header.all_segments, strict=True)
        ]

    def _checked(self, chunk_id: int, segment: m.Segment) -> int:
        """Return the position of a segment. Raises RemoteProtocolError where it is not one of this share."""
        if segment.file_id:
            raise RemoteProtocolError(f"chunk {chunk_id}: file {segment.file_id} was not offered")
        position = self.position(segment)
        if position is None:
            where = f"bytes {segment.offset} to {segment.offset + segment.length}"
            whose = f"shard {self.share}" if self.share.count > 1 else f"file {segment.file_id}"
            raise RemoteProtocolError(f"chunk {chunk_id}: {where} are not a segment of {whose}")
        return position

    def position(self, segment: m.Segment) -> int | None:
        """Return the number of a segment in the file; None where it is no segment, or of another share."""
        position = self.file.grid.index_of(segment.offset, segment.length)
        return position if position is not None and self.share.holds(position) else None

    def _begin_segment(self, connection: Connection, position: int, segment: m.Segment) -> IncomingSegment:
        while True:
            delivery, other = self.begin(position, connection)
            if delivery is Delivery.COMPARE:
                return IncomingSegment(DISCARD, position, segment, False, was_here=True)
            if delivery is Delivery.WRITE:
                staging = self.file.content
                assert isinstance(staging, Staging)  # `begin` refuses writes into a committed file
                return IncomingSegment(staging, position, segment, True, staging)
            if other is not None and not other.stop(LEAVE_SECONDS):
                raise ConnectionLost(f"another connection is still writing segment {position}")

    def begin(self, position: int, writer: Writer) -> tuple[Delivery, Writer | None]:
        """Begin one segment; where the answer is WAIT, return also the writer that has to stop first.

        Raises RemoteProtocolError after Finish, TransferFailed(SOURCE_CHANGED) where the file is complete already.
        """
        states = self.file.chunk_states
        self._receive_anew()
        with self.file.lock:
            if states.state(position) not in (VERIFIED, UNCHECKED):
                if self._is_closed:
                    raise RemoteProtocolError(f"segment {position} was sent after Finish")
                if self.file.is_full:
                    reason = (
                        f"{self.file.content.path} is complete, and differs from the source, though not in size and"
                        " mtime: remove it, or touch the source"
                    )
                    raise TransferFailed(Code.SOURCE_CHANGED, reason)
            was_held = states.state(position) == HELD
            delivery = states.begin(position, writer)
            if delivery is Delivery.WRITE:
                self.file.void(self.share)
            if was_held:  # the sender has other bytes for the segment
                self.chunk_map.remove(self.share.ordinal(position), was_held=True)
            return delivery, states.writer(position)

    def begin_run(self, positions: range, writer: Writer) -> bool:
        """Begin the segments of a run, if all of them are missing and may be written; return whether it has."""
        self._receive_anew()
        with self.file.lock:
            if self._is_closed or self.file.is_full or not self.file.chunk_states.begin_run(positions, writer):
                return False
            self.file.void(self.share)
            return True

    def end_chunk(
        self, connection: Connection, incoming: Incoming, digests: list[bytes], computed: list[bytes]
    ) -> list[bool]:
        """Return of each digest whether it is right, now that all bytes of the chunk were received."""
        by = connection.connection_id
        if isinstance(incoming, IncomingRun):
            return self.deliver_run(incoming.positions, connection, digests, computed, by)
        # A list, not a generator: every segment has to be ended, even after one whose digest is wrong.
        good = [
            self.deliver(segment.position, connection, digest, actual, by)
            for segment, digest, actual in zip(incoming, digests, computed, strict=True)
        ]
        for segment, is_good in zip(incoming, good, strict=True):
            if is_good:
                segment.count_holes()
        return good

    def deliver_run(
        self, positions: range, writer: Writer, digests: list[bytes], computed: list[bytes], by: int
    ) -> list[bool]:
        """End the segments of a run that connection `by` has brought; return of each whether its digest is right."""
        if digests == computed:
            with self.file.lock:
                if self.file.chunk_states.verify_run(positions, writer, digests):
                    self.chunk_map.add_run(self.share.ordinals_of(positions), by)
                    return [True] * len(positions)
        return [
            self.deliver(position, writer, digest, actual, by)
            for position, digest, actual in zip(positions, digests, computed, strict=True)
        ]

    def deliver(self, position: int, writer: Writer, digest: bytes, computed: bytes, by: int) -> bool:
        """End a segment that connection `by` has brought; return whether its digest is right."""
        with self.file.lock:
            was_written = self.file.chunk_states.writer(position) is writer
            is_good = self.file.chunk_states.deliver(position, writer, digest, computed)
            if was_written and is_good:
                self.chunk_map.add(self.share.ordinal(position), by)
            return is_good

    def _receive_anew(self) -> None:
        """Receive a file into staging that lies under its final name: the sender has other bytes.

        Raises TransferFailed.
        """
        if self.share.count == 1 and not (self._is_closed or self.is_unchecked) and self.file.receive_anew():
            with self.file.lock:
                self.chunk_map.clear()
                self.chunk_map.extend(self.chunks)

    # --- zeros, from the coordinator's thread

    def make_zeros(self, first: int, end: int, make: Callable[[Runs], None] | None = None) -> int:
        """Make those of the segments [first, end) zeros that are in the share; return the bytes that were not before.

        `make` makes ranges of bytes [start, end) zeros, if the staging itself is not to do it.
        Raises RemoteProtocolError, ConnectionLost where another connection hangs, TransferFailed.
        """
        ordinals = self.share.ordinals(first, end)
        if end > self.file.grid.segments or not ordinals:
            whose = f"shard {self.share}" if self.share.count > 1 else "the file"
            raise RemoteProtocolError(f"segments {first} to {end - 1} are told as zeros, and are not of {whose}")
        self._receive_anew()
        pieces = range(ordinals.start, ordinals.stop, ZEROS_AT_ONCE)
        return sum(self._make_zeros(start, min(start + ZEROS_AT_ONCE, ordinals.stop), make) for start in pieces)

    def _make_zeros(self, start: int, stop: int, make: Callable[[Runs], None] | None) -> int:
        """Make segments zeros, by ordinals; return the bytes that were not before."""
        new = self._take_zeros(start, stop)
        staging = self.file.content
        assert isinstance(staging, Staging)  # `_take_zeros` refuses a committed file
        for new_start, new_stop in new:
            (make or staging.make_zeros)(self.file.ranges(self.share, new_start, new_stop))
        return sum(self.share.bytes_between(self.file.grid, new_start, new_stop) for new_start, new_stop in new)

    def _take_zeros(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Turn segments to ZERO, by ordinals; return the runs of those that were not. No connection writes them."""
        states = self.file.chunk_states
        first, end = self.share.span(start, stop)
        while True:
            with self.file.lock:
                if self._is_closed or self.file.is_full or self.is_unchecked:
                    raise RemoteProtocolError(
                        f"segments {first} to {end - 1} are told as zeros after they were complete"
                    )
                writers = states.writers_between(first, end)
                if not writers:
                    before = states.make_zero(self.share, start, stop)
                    new = [(start + at, start + end) for at, end in runs(before, FREE, CLAIMED, HELD)]
                    if new:
                        self.file.void(self.share)
                    for new_start, new_stop in runs(before, FREE, CLAIMED):  # what was HELD is counted already
                        self.chunk_map.add_held(start + new_start, start + new_stop)
                    return new
            for writer in writers:  # the sender has given this connection up
                if not writer.stop(LEAVE_SECONDS):
                    raise ConnectionLost("another connection is still writing a segment that is told as zeros")

    def detach(self, connection: Writer) -> None:
        """Take back the segments that a connection was writing."""
        with self.file.lock:
            self.file.chunk_states.detach(connection)

    def stop_writes(self) -> None:
        """Refuse further writes: nothing is missing any more, or the transfer is over."""
        with self.file.lock:
            self._is_closed = True

    # --- answers, from the coordinator's thread

    def states(self) -> bytes:
        """Return the states of the segments of the share as they are now, one byte each, by ordinal."""
        with self.file.lock:
            return self.file.chunk_states.states(self.share)

    def answers(self) -> Iterator[m.Needed | m.Held | m.Zeros]:
        """Yield what is needed, held, and zeros by now. CLAIMED segments are answered when they are re-hashed."""
        states = self.states()
        if UNCHECKED in states:
            yield m.Held(0, 0, b"", (m.FileRange(0, 1),))
        yield from needed_messages(0, self.share, runs(states, FREE, WRITING))
        yield from self.held_messages(runs(states, HELD, VERIFIED))
        yield from zeros_messages(0, self.share, runs(states, ZERO))

    def missing(self, most: int | None = None) -> list[tuple[int, int]]:
        """Return the runs of ordinals that are not here: all of them, or the first `most`."""
        return list(itertools.islice(runs(self.states(), FREE, CLAIMED, WRITING), most))

    def rehashed(self, share: Share, start: int, digests: list[bytes]) -> Answer:
        """Take the digests of CLAIMED segments of any share, from ordinal `start` on.

        A segment is held where the disk has what the ledger says, and needed where not.
        """
        states = self.file.chunk_states
        answer = Answer([], [])
        with self.file.lock:
            for ordinal, digest in enumerate(digests, start):
                position = share.chunk(ordinal)
                was_claimed = states.state(position) == CLAIMED
                states.rehashed(position, digest)
                if states.state(position) == ZERO:  # the sender has told that meanwhile
                    continue
                is_held = states.state(position) in (HELD, VERIFIED)
                if was_claimed and is_held and share == self.share:
                    self.chunk_map.add(ordinal, None)
                _extend(answer.held if is_held else answer.needed, ordinal)
        return answer

    def held_messages(self, ordinals: Runs) -> Iterator[m.Held]:
        """Yield Held, with digests, for these ordinals, in messages that a frame has room for."""
        # If one segment of a file under its final name differs, all are needed: nothing is ever written into it.
        is_final = self.file.in_place is not None and self.share.count == 1
        for start, stop in ordinals:
            for at in range(start, stop, limits.DIGESTS_PER_HELD):
                end = min(at + limits.DIGESTS_PER_HELD, stop)
                digests = b"".join(self.file.chunk_states.digests(self.share, at, end))
                yield m.Held(0, self.share.chunk(at), digests, (), is_final)

    # --- the end, from the coordinator's thread

    def held_bytes(self) -> int:
        """Count the bytes that were in staging before this transfer, and are right."""
        with self.file.lock:
            return self.file.chunk_states.held_bytes(self.share)

    def digests(self) -> Iterator[memoryview]:
        """Yield the digests of all segments of the share that have one, in order."""
        return self.file.chunk_states.digests(self.share)

    def seal(self) -> None:
        """Make the share durable in staging, and note in the ledger that it is complete. Raises TransferFailed."""
        if isinstance(self.file.content, Staging):
            self.file.content.seal(self.share, root_digest(self.digests()))

    def discard(self) -> None:
        """Drop everything that was received: the root digest differs, although every chunk digest was equal."""
        if self.share.count == 1 and isinstance(self.file.content, Staging):
            self.file.content.discard()
        with self.file.lock:
            self.file.void(self.share)
            self.file.chunk_states.forget(self.share)


def _extend(runs: list[tuple[int, int]], ordinal: int) -> None:
    """Add the next ordinal to runs [start, stop)."""
    if runs and runs[-1][1] == ordinal:
        runs[-1] = (runs[-1][0], ordinal + 1)
    else:
        runs.append((ordinal, ordinal + 1))
