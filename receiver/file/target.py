"""What a transfer receives, as its coordinator and its data connections see it: one file, or a tree.

The coordinator asks in the order of the control conversation (proto/README.md): `take` each manifest part, `rehashed`
and `more` as answers become known, `missing` and `close` at Finish, then `next_step` until that is Complete, and
`leave` at the end, whatever that is. All of that may wait for a disk, and is done by one thread at a time (`aside`).
Data connections `begin` and `end` chunks, and are `abandon`ed when they end.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol

from filestreamer.wire import messages as m
from receiver.file.chunk_states import Writer
from receiver.file.rehash import FinalsRehashed, Rehashed

LEAVE_SECONDS: Final = 10.0
"""How long a thread may take to leave a file after it was told to: one write to a slow disk."""


class LedgerWriter(Protocol):
    """What notes segments before they are acknowledged, so that another run finds them."""

    def record(self, records: list[tuple[int, bytes]]) -> None:
        """Note (position, digest) of what was written. Raises TransferFailed."""

    def digest(self, position: int) -> bytes:
        """Return the digest of a segment that is VERIFIED."""


class SegmentWriter(Protocol):
    """What the bytes of a segment are written into."""

    @property
    def ledger_writer(self) -> LedgerWriter | None:
        """What notes its segments; None where none are noted."""

    def write(self, view: memoryview, offset: int) -> None:
        """Write bytes of a segment that was begun, in order. Raises TransferFailed: NO_SPACE, DESTINATION."""


class IncomingSegment(NamedTuple):
    """One segment of a chunk that is being received."""

    sink: SegmentWriter
    position: int
    """Which segment of its file."""
    segment: m.Segment
    write: bool
    """False where the segment is VERIFIED already, and is only compared."""


class Connection(Writer, Protocol):
    """A data connection."""

    connection_id: int

    @property
    def is_ended(self) -> bool:
        """Whether it was told to end: what waits in its thread waits no longer."""

    def acknowledge(self) -> None:
        """Note and acknowledge what is complete, before its thread waits."""


Step = Callable[[], None] | m.Complete | None
"""Work for a thread that may wait for the disk; what the sender is told; None: wait for what is re-hashed."""


class ChunkWriter(Protocol):
    """Takes the chunks of a target. Each data connection calls in its own thread."""

    def begin_chunk(self, connection: Connection, header: m.ChunkHeader) -> list[IncomingSegment]:
        """Check and begin every segment of a chunk; another connection that is writing one is stopped first.

        Raises RemoteProtocolError for a segment that is none of an offered file's.
        """

    def end_chunk(
        self, connection: Connection, segments: list[IncomingSegment], digests: list[bytes], computed: list[bytes]
    ) -> bool:
        """Compare the digests that were told with those of the bytes that came; whether all are equal."""

    def detach(self, connection: Connection) -> None:
        """Take back what a connection was writing."""


class Target(Protocol):
    """One file (receiver/file), a tree (receiver/tree), or what is written in order (receiver/pipe)."""

    name: bytes
    """What it holds in the destination, while it is there."""

    @property
    def chunks(self) -> ChunkWriter:
        """What data connections talk to."""

    @property
    def has_more(self) -> bool:
        """Whether `more` has something to do."""

    # --- what the coordinator asks

    def take_part(self, part: m.ManifestPart, body: bytes) -> Iterable[m.Message]:
        """Take a part of the manifest, or the same again; return what can be answered now. `body` is its frame's."""

    def rejoin(self) -> None:
        """Hear that control was opened anew: the manifest is repeated."""

    def take_rehashed(self, batch: Rehashed | FinalsRehashed) -> Iterable[m.Message]:
        """Take what claimed segments hash to; return what is to be answered."""

    def more(self) -> Iterable[m.Message]:
        """Return what can be answered by now, and could not before."""

    def withdraw(self, file_ids: Sequence[int]) -> None:
        """Drop files that are not going to be sent. Raises RemoteProtocolError."""

    def missing(self) -> Iterable[m.Message]:
        """Return what is not here, at Finish, in Needed; answers that were still to be given may be among them."""

    def finish(self, finish: m.Finish) -> bytes:
        """Let no further write in, now that nothing is missing; return the root digest.

        Raises TransferFailed(DIGEST).
        """

    def next_step(self) -> Step:
        """Return what comes next, after `finish` and after each step."""

    def close(self, *, cleanly: bool) -> None:
        """Keep what is complete, at the end, whatever that is; `cleanly` is whether no thread hangs in a file."""

    def stop_writes(self) -> None:
        """Let no further write in: the transfer is over."""
