"""What a transfer receives into: the interface that a file, a tree and a pipe have in common.

A transfer sees a `Target` from two sides:

    its coordinator   calls the methods of `Target`, in the order of the control conversation (proto/README.md):
                      `take_part` for each ManifestPart; `take_rehashed` and `more` as further answers become known;
                      at Finish `missing` and `finish`; then `next_step` until that returns Complete; at last
                      `stop_writes` and `close`. All of them may wait for a disk.
    data connections  call `Target.chunks`, each from its own thread: `begin_chunk`, `end_chunk`, `detach`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from filestreamer.wire import messages as m
from filestreamer.wire.errors import RemoteProtocolError
from receiver.disk.staging.staging import Staging
from receiver.file.chunk_states import Writer
from receiver.file.rehash import FinalsRehashed, Rehashed

LEAVE_SECONDS: Final = 10.0
"""How long a thread may take to stop using a file after `stop`: one write to a slow disk."""

# ---------------------------------------------------------------------------------------- the view of data connections


class SegmentWriter(Protocol):
    """What the bytes of a segment are written into: a staging, a small file, the window of a pipe."""

    def write(self, view: memoryview, offset: int) -> None:
        """Write bytes of a segment that was begun, in order. Raises TransferFailed: NO_SPACE, DESTINATION."""

    def begin_sparse(self, segment: m.Segment) -> None:
        """Make the holes of a segment zeros, before its data is written. Raises TransferFailed, as `write`."""


class LedgerWriter(Protocol):
    """What remembers verified segments on the disk, so that the next run finds them."""

    def record(self, records: list[tuple[int, bytes]]) -> None:
        """Append (position, digest) of segments that were written. Raises TransferFailed."""


class Discard:
    """Takes the place of a file where the bytes of a segment are only hashed and compared."""

    def write(self, view: memoryview, offset: int) -> None:
        """Drop the bytes."""

    def begin_sparse(self, segment: m.Segment) -> None:
        """Do nothing."""


DISCARD: Final = Discard()


class IncomingSegment(NamedTuple):
    """One segment of a chunk that is being received."""

    sink: SegmentWriter
    position: int
    """The number of the segment in its file."""
    segment: m.Segment
    write: bool
    """False where the segment is VERIFIED already: its bytes are hashed and compared, not written."""
    ledger: LedgerWriter | None = None
    """The ledger that records the segment before its chunk is acknowledged; None if it can't be resumed."""
    was_here: bool = False
    """Whether it is VERIFIED already: the acknowledgement was lost, and its bytes come again."""

    def count_holes(self) -> None:
        """Take in that the segment is here, and has the holes that its header lists."""
        if self.segment.runs and isinstance(self.sink, Staging):
            self.sink.known_holes.count(self.segment)


class RunWriter(SegmentWriter, Protocol):
    """What the bytes of a run of chunks are written into: the staging of a large file."""

    def write_run(self, view: memoryview, offset: int, length: int, distance: int) -> None:
        """Write whole segments of `length` bytes, the first one at `offset`, each further one `distance` behind.

        Raises TransferFailed, as `SegmentWriter.write`.
        """


class IncomingRun(NamedTuple):
    """The segments of a run of chunks that are being received: all of them are written, and have one ledger."""

    sink: RunWriter
    positions: range
    """The numbers of the segments in their file."""
    segment: m.Segment
    """The first one: all are as long."""
    ledger: LedgerWriter

    @property
    def distance(self) -> int:
        """Bytes from the beginning of each segment to that of the next one."""
        return self.positions.step * self.segment.length

    def each(self) -> Iterator[IncomingSegment]:
        """Yield the segments one by one, for who has no room for a whole one."""
        for position in self.positions:
            offset = self.segment.offset + (position - self.positions[0]) * self.segment.length
            yield IncomingSegment(self.sink, position, self.segment._replace(offset=offset), True, self.ledger)


Incoming = list[IncomingSegment] | IncomingRun
"""What a chunk, or a run, brings. A run that is not to be written as a whole is a list: one segment for each chunk."""


class Connection(Writer, Protocol):
    """A data connection, as a target sees it."""

    connection_id: int

    @property
    def is_ended(self) -> bool:
        """Whether the connection was told to stop: its thread must not wait for anything any more."""

    def acknowledge(self) -> None:
        """Record and acknowledge every chunk that is complete. For the connection's thread, before it waits."""


class ChunkWriter(Protocol):
    """Receives the chunks of a target. Every data connection calls it from its own thread."""

    def begin_chunk(self, connection: Connection, header: m.ChunkHeader) -> Incoming:
        """Check every segment of a chunk, or of a run of chunks, and begin them.

        Where another connection is writing one of them, that connection is stopped first. Raises RemoteProtocolError
        for a segment that does not belong to what was offered, ConnectionLost where the other connection hangs.
        """

    def end_chunk(
        self, connection: Connection, incoming: Incoming, digests: list[bytes], computed: list[bytes]
    ) -> list[bool]:
        """Return of each digest whether it is right, now that all bytes of the chunk, or run, were received.

        `digests` are those that the sender sent, `computed` those of the bytes that were received.
        """

    def detach(self, connection: Connection) -> None:
        """Take back the segments that a connection was writing: the connection has ended."""


# --------------------------------------------------------------------------------------------- the coordinator's view

NextStep = Callable[[], None] | m.Complete | None
"""Work for a thread that may wait for the disk; Complete for the sender; None while claimed chunks are re-hashed."""


class Target(Protocol):
    """One file (`FileTarget`), a tree (`TreeTarget`) or a pipe (`PipeTarget`)."""

    name: bytes
    """The name that it holds in the destination."""

    @property
    def chunks(self) -> ChunkWriter:
        """Where data connections bring its chunks."""

    @property
    def has_more(self) -> bool:
        """Whether `more` has something to do."""

    def take_part(self, part: m.ManifestPart, body: bytes) -> Iterable[m.Message]:
        """Take a part of the manifest, new or repeated; return what can be answered now. `body` is the frame's body."""

    def rejoin(self) -> None:
        """Expect the manifest again, from any part on: the sender has opened control anew."""

    def take_rehashed(self, batch: Rehashed | FinalsRehashed) -> Iterable[m.Message]:
        """Take the digests of claimed segments; return what can be answered by them."""

    def more(self) -> Iterable[m.Message]:
        """Return what can be answered by now, and could not before."""

    def take_zeros(self, message: m.Zeros) -> Iterable[m.Message]:
        """Make the segments zeros that are told; return the answer. Raises RemoteProtocolError, TransferFailed."""

    def withdraw(self, file_ids: Sequence[int]) -> None:
        """Drop files that the sender is not going to send. Raises RemoteProtocolError."""

    def missing(self) -> Iterable[m.Message]:
        """Return, at Finish, Needed for everything that is missing; deferred answers may be among the messages."""

    def finish(self, finish: m.Finish) -> bytes:
        """Stop all writes, now that nothing is missing; return the root digest. Raises TransferFailed(DIGEST)."""

    def next_step(self) -> NextStep:
        """Return what has to be done next; called after `finish`, and after each step."""

    def stop_writes(self) -> None:
        """Refuse further writes, and wake every thread that waits in the target: the transfer is over."""

    def close(self, *, cleanly: bool) -> None:
        """Keep what is complete, and release everything. `cleanly`: no thread hangs in a file."""


class OneFile:
    """What the targets of a transfer that is no tree have in common: a manifest of one part, with one entry."""

    def __init__(self, entry: m.Entry) -> None:
        self._manifest = (entry,)

    def _check_part(self, part: m.ManifestPart) -> None:
        if part.entries != self._manifest or part.first_file_id or not part.last:
            raise RemoteProtocolError("the manifest was repeated with other entries")

    def rejoin(self) -> None:
        """Do nothing: the one part is answered each time that it comes."""

    def withdraw(self, file_ids: Sequence[int]) -> None:
        """Refuse: a sender that can't send its one file has to end the transfer."""
        raise RemoteProtocolError(f"file {file_ids[0]} was withdrawn, which is possible in trees only")
