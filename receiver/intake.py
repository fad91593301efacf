"""What the threads of one transfer share: the files with their chunk states, and the data connections, under one lock.

Connections join, begin the segments of a chunk, end them, and leave; the coordinator reads the states to answer from
them, and closes the files to writers before it commits. No write lands on a VERIFIED chunk, or after that.
"""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from receiver.assembly import CLAIMED, FREE, HELD, VERIFIED, WRITING, Assembly, Turn
from receiver.store import Staged
from service.counters import ConnectionCounters, TransferCounters
from wire import limits
from wire import messages as m
from wire.digests import root_digest
from wire.errors import Code, ConnectionLost, RemoteProtocolError

if TYPE_CHECKING:
    from receiver.connection import DataConnection
    from receiver.rehash import Rehashed

LEAVE_SECONDS: Final = 10.0
"""How long a connection may take to leave a file after its socket was shut: one write to a slow disk."""


class File(NamedTuple):
    """One file of the manifest."""

    entry: m.Entry
    staged: Staged
    assembly: Assembly


class Part(NamedTuple):
    """One segment of a chunk that is being received."""

    file: File
    position: int
    """Which segment of its file."""
    segment: m.Segment
    write: bool
    """False where the segment is VERIFIED already, and is only compared."""


class Answer(NamedTuple):
    """What the sender is to hear of some chunks of a file, as runs [first, end)."""

    needed: list[tuple[int, int]]
    held: list[tuple[int, int]]


class Intake:
    """Chunks come in here. The lock protects the chunk states, the list of connections, and what is closed."""

    def __init__(self, counters: TransferCounters, connections: int, is_over: Callable[[], bool]) -> None:
        """Take at most `connections` data connections; `is_over` says whether the transfer has ended."""
        self.files: list[File] = []
        """Appended by the coordinator; read by all."""
        self._counters = counters
        self.most = connections
        self._is_over = is_over
        self._lock = threading.Lock()
        self._connections: dict[int, DataConnection] = {}
        self._counters_by_id: dict[int, ConnectionCounters] = {}
        self._threads = 0
        self._is_closed = False
        self._heard_at = time.monotonic()

    # --- data connections

    def counters_of(self, connection_id: int) -> ConnectionCounters:
        """Return the counters of a connection id: one for all connections that have it in turn."""
        with self._lock:
            counters = self._counters_by_id.get(connection_id)
            if counters is None:
                self._counters_by_id[connection_id] = counters = self._counters.add_connection(connection_id)
            else:
                counters.reconnects += 1
            return counters

    def admit(self) -> bool:
        """Count a connection that is about to join; whether there is a place for it, and for one that it replaces."""
        with self._lock:
            if self._threads >= 2 * self.most:
                return False
            self._threads += 1
            return True

    def withdraw(self) -> None:
        """Take back an `admit` that came to nothing."""
        with self._lock:
            self._threads -= 1

    def join(self, connection: "DataConnection") -> None:
        """Take the place of an older connection of the same id, which has left every file by then.

        Raises ConnectionLost where the older connection does not leave, or the transfer is over.
        """
        while True:
            with self._lock:
                if self._is_over():
                    raise ConnectionLost("the transfer is over")
                older = self._connections.get(connection.connection_id)
                if older is None:
                    self._connections[connection.connection_id] = connection
                    return
            if not older.end(LEAVE_SECONDS):
                raise ConnectionLost(f"the older connection {connection.connection_id} does not leave")

    def leave(self, connection: "DataConnection") -> None:
        """Take back what a connection was writing."""
        with self._lock:
            for file in self.files:
                file.assembly.abandon(connection)
            if self._connections.get(connection.connection_id) is connection:
                del self._connections[connection.connection_id]
            self._threads -= 1
            self._heard_at = max(self._heard_at, connection.channel.heard_at)

    @property
    def threads(self) -> int:
        """Connections that were admitted and have not left."""
        return self._threads

    @property
    def is_connected(self) -> bool:
        """Whether any data connection is there."""
        with self._lock:
            return bool(self._connections)

    def heard_at(self) -> float:
        """Return when a data connection last brought anything (monotonic)."""
        with self._lock:
            self._heard_at = max([self._heard_at, *(c.channel.heard_at for c in self._connections.values())])
            return self._heard_at

    def shut(self) -> list["DataConnection"]:
        """Shut every connection: whoever hangs on one wakes. Return them."""
        with self._lock:
            connections = list(self._connections.values())
        for connection in connections:
            connection.channel.shut()
        return connections

    def end(self) -> bool:
        """Shut every connection, and wait until its thread has left the files; whether all have."""
        with self._lock:
            self._is_closed = True
        connections = self.shut()
        left = [connection.end(LEAVE_SECONDS) for connection in connections]
        return all(left)

    # --- chunks

    def begin_chunk(self, connection: "DataConnection", header: m.ChunkHeader) -> list[Part]:
        """Check every segment of a chunk against the files of the transfer, and begin them.

        Raises RemoteProtocolError for a segment that is none of an offered file's, and for more than a chunk's bytes.
        """
        places = [self._place(header.chunk_id, segment) for segment in header.segments]
        length = sum(segment.length for segment in header.segments)
        if length > places[0][0].assembly.grid.chunk_size:
            raise RemoteProtocolError(f"chunk {header.chunk_id} has {length} bytes, more than a chunk")
        return [
            self._begin_segment(connection, file, position, segment)
            for (file, position), segment in zip(places, header.segments, strict=True)
        ]

    def _begin_segment(self, connection: "DataConnection", file: File, position: int, segment: m.Segment) -> Part:
        """Begin one segment; who else is writing it is shut and has left first."""
        while True:
            with self._lock:
                if self._is_closed and file.assembly.state(position) != VERIFIED:
                    raise RemoteProtocolError(f"segment {position} was sent after Finish")
                if file.assembly.state(position) == HELD:  # the source has another chunk there by now
                    self._counters.chunk_map.remove(position, was_held=True)
                turn = file.assembly.begin(position, connection)
                other = file.assembly.writer(position)
            if turn is not Turn.WAIT:
                return Part(file, position, segment, turn is Turn.WRITE)
            if other is not None and not other.end(LEAVE_SECONDS):
                raise ConnectionLost(f"another connection does not leave segment {position}")

    def _place(self, chunk_id: int, segment: m.Segment) -> tuple[File, int]:
        if not self.files:  # a sender that came back faster than its manifest was taken
            raise RemoteProtocolError("no file was offered yet", Code.UNKNOWN_TRANSFER)
        if segment.file_id >= len(self.files):
            raise RemoteProtocolError(f"chunk {chunk_id}: file {segment.file_id} was not offered")
        file = self.files[segment.file_id]
        position = file.assembly.grid.index_of(segment.offset, segment.length)
        if position is None:
            where = f"bytes {segment.offset} to {segment.offset + segment.length}"
            raise RemoteProtocolError(f"chunk {chunk_id}: {where} are no segment of file {segment.file_id}")
        return file, position

    def end_chunk(
        self, connection: "DataConnection", parts: list[Part], digests: list[bytes], computed: list[bytes]
    ) -> bool:
        """Settle the segments of a chunk whose bytes are all here; whether every digest was right."""
        with self._lock:
            good = [
                part.file.assembly.deliver(part.position, connection, digest, actual)
                for part, digest, actual in zip(parts, digests, computed, strict=True)
            ]
            for part, is_good in zip(parts, good, strict=True):
                if is_good and part.write:
                    self._counters.chunk_map.add(part.position, connection.connection_id)
        self._counters.last_progress_at = time.monotonic()
        return all(good)

    # --- answers

    def answer(self, file_id: int) -> Answer:
        """Read what is needed and what is held of a file now; what is claimed is told when it is re-hashed."""
        assembly = self.files[file_id].assembly
        with self._lock:
            return Answer(list(assembly.runs(FREE, WRITING)), list(assembly.runs(HELD, VERIFIED)))

    def missing(self, file_id: int) -> list[tuple[int, int]]:
        """Read which chunks of a file are not here, as runs [first, end)."""
        assembly = self.files[file_id].assembly
        with self._lock:
            return list(assembly.runs(FREE, CLAIMED, WRITING))

    def take_rehashed(self, batch: "Rehashed") -> Answer:
        """Settle claimed chunks: held, or needed where the disk differs from what the ledger says."""
        file = self.files[batch.file_id]
        needed: list[int] = []
        held: list[int] = []
        with self._lock:
            for position, digest in enumerate(batch.digests, batch.first):
                was_claimed = file.assembly.state(position) == CLAIMED
                file.assembly.rehashed(position, digest)
                is_held = file.assembly.state(position) in (HELD, VERIFIED)
                if was_claimed and is_held:
                    self._counters.chunk_map.add(position, None)
                (held if is_held else needed).append(position)
        return Answer(_runs(needed), _runs(held))

    def close(self) -> bytes:
        """Let no further write in, now that nothing is missing; return the root digest of all files."""
        with self._lock:
            self._is_closed = True
            self._counters.held_bytes = sum(file.assembly.held_bytes() for file in self.files)
            return root_digest([file.assembly.digests() for file in self.files])


def _runs(positions: list[int]) -> list[tuple[int, int]]:
    """Join positions, in order, into runs [first, end)."""
    runs: list[tuple[int, int]] = []
    for position in positions:
        if runs and runs[-1][1] == position:
            runs[-1] = (runs[-1][0], position + 1)
        else:
            runs.append((position, position + 1))
    return runs


def held_messages(file_id: int, assembly: Assembly, runs: list[tuple[int, int]]) -> list[m.Held]:
    """Say what is held, with digests, in messages that are small enough."""
    size = limits.DIGEST_BYTES
    digests = assembly.digests()
    return [
        m.Held(file_id, start, bytes(digests[start * size : min(start + limits.DIGESTS_PER_HELD, end) * size]))
        for first, end in runs
        for start in range(first, end, limits.DIGESTS_PER_HELD)
    ]


def needed_messages(file_id: int, runs: list[tuple[int, int]]) -> list[m.Needed]:
    """Say what is needed in messages that are small enough."""
    ranges = [m.SegmentRange(file_id, first, end - first) for first, end in runs]
    size = limits.RANGES_PER_NEEDED
    return [m.Needed((), tuple(ranges[at : at + size])) for at in range(0, len(ranges), size)]
