"""What the threads of one transfer share: its data connections, and the cargo that their chunks belong to.

Connections join, begin the segments of a chunk, end them, and leave; the coordinator closes the cargo to them before it
commits. No write lands on a VERIFIED chunk, or after that.
"""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from filestreamer.telemetry.counters import ConnectionCounters, TransferCounters
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, ConnectionLost, RemoteProtocolError, TransferFailed
from receiver.file.target import LEAVE_SECONDS, IncomingSegment, Target
from receiver.memory.budget import Account
from receiver.memory.connection_budget import SMALL, ConnectionBudget, borrow, smaller
from receiver.memory.process_limit import SocketLimits, read_socket_limits

if TYPE_CHECKING:
    from receiver.transfer.connection import DataConnection

RESERVED_SEATS: Final = 2
"""Small connections that a transfer has memory for without asking: one, and one that takes its place."""


class ConnectionSet:
    """Chunks come in here. The lock protects the list of connections; each file has one for its chunk states."""

    def __init__(
        self,
        counters: TransferCounters,
        connections: int,
        account: Account,
        is_over: Callable[[], bool],
        *,
        socket_limits: SocketLimits | None = None,
    ) -> None:
        """Take at most `connections` data connections; `is_over` says whether the transfer has ended.

        What they take of memory comes out of `account`, which has reserved RESERVED_SEATS of the smallest. `socket_limits` is
        what their sockets may take, read where it is None.
        """
        self.target: Target | None = None
        """What is received; set by the coordinator when it is offered, read by all."""
        self._counters = counters
        self.most = connections
        self._account = account
        self._reach = socket_limits or read_socket_limits()
        self._is_over = is_over
        self._lock = threading.Lock()
        self._connections: dict[int, DataConnection] = {}
        self._counters_by_id: dict[int, ConnectionCounters] = {}
        self._threads = 0
        self._new_bytes = 0
        self._reserved_seats = 0
        """Those that are taken."""
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

    def admit(self, connection_id: int) -> ConnectionBudget:
        """Count a connection that is about to join, and one that it replaces; return what it may take of memory.

        Raises TransferFailed(LIMIT) where there is no place for it.
        """
        with self._lock:
            if self._threads >= 2 * self.most:
                raise TransferFailed(Code.LIMIT, "too many connections: try again later")
            self._threads += 1
            to_come = max(0, self.most - self._threads)
        connection_budget = borrow(self._account, self._reach, connection_id, to_come)
        with self._lock:
            if connection_budget is not None:
                return connection_budget
            older = self._connections.get(connection_id)
            if self._reserved_seats < (RESERVED_SEATS if older is not None else 1):
                self._reserved_seats += 1
                return SMALL._replace(bytes=0)
            self._threads -= 1
        if older is not None:  # its sender has given it up: what it takes is there for the next try
            older.channel.shut()
        raise TransferFailed(
            Code.LIMIT, "this receiver has no memory left for another connection: the transfer goes on with fewer"
        )

    def shrunk(self, connection_budget: ConnectionBudget) -> ConnectionBudget | None:
        """Return what a connection is to have instead of its seat, now that memory is short; None: it stays."""
        return smaller(connection_budget, self._reach) if self._account.budget.is_short else None

    def shrink(self, connection_budget: ConnectionBudget, to: ConnectionBudget) -> None:
        """Take back what a connection gave up of its seat."""
        self._account.give_back(connection_budget.bytes - to.bytes)

    def withdraw(self, connection_budget: ConnectionBudget) -> None:
        """Take back an `admit` that came to nothing."""
        with self._lock:
            self._threads -= 1
        self.give_back(connection_budget)

    def give_back(self, connection_budget: ConnectionBudget) -> None:
        """Take back what a connection had of memory, now that it is closed."""
        if connection_budget.bytes:
            self._account.give_back(connection_budget.bytes)
            return
        with self._lock:
            self._reserved_seats -= 1

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
            if not older.stop(LEAVE_SECONDS):
                raise ConnectionLost(f"the older connection {connection.connection_id} does not leave")

    def leave(self, connection: "DataConnection") -> None:
        """Take back what a connection was writing."""
        try:
            if self.target is not None:
                self.target.chunks.detach(connection)
        finally:  # one of the same id may wait for its place
            with self._lock:
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

    def shed(self, now: float, idle_seconds: float, *, busy: bool = False) -> bool:
        """Shut the connection that has been without a chunk for longest, at least so long; whether there is one.

        `busy` is whether it may also be one that brings a chunk.
        """
        with self._lock:
            since = {each: each.idle_since or now for each in self._connections.values() if busy or each.idle_since}
        longest = min(since, key=since.__getitem__, default=None)
        if longest is None or now - since[longest] < idle_seconds:
            return False
        longest.channel.shut()
        return True

    def end(self) -> None:
        """Shut every connection, and wait until its thread has left the files, however long that takes."""
        connections = self.shut()  # first: the cargo may wait for a thread that writes to one
        if self.target is not None:
            self.target.stop_writes()
        for connection in connections:
            connection.stop(None)

    # --- chunks

    def begin_chunk(self, connection: "DataConnection", header: m.ChunkHeader) -> list[IncomingSegment]:
        """Check every segment of a chunk against the files of the transfer, and begin them.

        Raises RemoteProtocolError for a segment that is none of an offered file's, and for more than a chunk's bytes.
        """
        if self.target is None:  # a sender that came back faster than its manifest was taken
            raise RemoteProtocolError("no file was offered yet", Code.UNKNOWN_TRANSFER)
        length = sum(segment.length for segment in header.segments)
        if length > self._counters.chunk_size:
            raise RemoteProtocolError(f"chunk {header.chunk_id} has {length} bytes, more than a chunk")
        return self.target.chunks.begin_chunk(connection, header)

    def end_chunk(
        self, connection: "DataConnection", parts: list[IncomingSegment], digests: list[bytes], computed: list[bytes]
    ) -> bool:
        """Settle the segments of a chunk whose bytes are all here; whether every digest was right."""
        assert self.target is not None  # what was begun was offered
        good = self.target.chunks.end_chunk(connection, parts, digests, computed)
        if good:
            new_bytes = sum([part.segment.length for part in parts if part.write])
            with self._lock:
                self._new_bytes += new_bytes
        return good

    @property
    def new_bytes(self) -> int:
        """Bytes that came and were right, each segment once: what comes again is not new."""
        with self._lock:
            return self._new_bytes

    def under_way_bytes(self) -> int:
        """Count the bytes of chunks that are coming."""
        with self._lock:
            return sum(connection.under_way_bytes for connection in self._connections.values())
