"""The data connections of one transfer: which are attached, how much memory they use, and what they have received.

A connection is admitted with a memory budget, attached when its thread runs, and detached when it ends. At most one
connection of each id is attached: a newer one stops the older one first.
"""

import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from filestreamer.telemetry.counters import ConnectionCounters, TransferCounters
from filestreamer.wire import limits
from filestreamer.wire.errors import Code, ConnectionLost, TransferFailed
from filestreamer.wire.sockets.transport import Channel
from receiver.file.target import LEAVE_SECONDS, Connection, Target
from receiver.memory.budget import Account
from receiver.memory.connection_budget import SMALL, ConnectionBudget, borrow, smaller
from receiver.memory.process_limit import SocketLimits, read_socket_limits

RESERVED: Final = 2
"""Small connections that a transfer has memory for without asking: one, and one that takes its place."""


class Member(Connection, Protocol):
    """A data connection (`receiver.transfer.connection`), as the set sees it."""

    channel: Channel
    new_bytes: int
    """Bytes of chunks that were received and right, each segment once."""
    idle_since: float | None
    """Since when the connection has received no chunk (monotonic); None while it receives one."""

    @property
    def stage(self) -> str | None:
        """What the connection does now, of RECEIVER_STAGES."""

    def stop(self, seconds: float | None) -> bool:
        """Stop the connection; return whether it has stopped within `seconds`. None waits without limit."""

    @property
    def under_way_bytes(self) -> int:
        """Bytes of the chunk that is being received, as far as it is new."""

    @property
    def is_settled(self) -> bool:
        """Whether every chunk that the connection has begun is acknowledged, or was refused."""

    @property
    def starved_since(self) -> float | None:
        """Since when the connection waits for bytes, and owes no answer to a chunk (monotonic); None: it does not."""


class ConnectionSet:
    """The data connections of one transfer. Any thread may call it."""

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

        Their memory comes out of `account`, which has RESERVED of the smallest ones in it. `socket_limits` is what
        sockets may take, read here where it is None.
        """
        self.target: Target | None = None
        """What the connections receive into. Set by the coordinator after the offer; read by all threads."""
        self.is_awaited = False
        """Whether the coordinator waits until all is settled: it is nudged when chunks were acknowledged."""
        self.most = connections
        self._counters = counters
        self._account = account
        self._socket_limits = socket_limits or read_socket_limits()
        self._is_over = is_over
        self._lock = threading.Lock()  # protects everything below
        self._connections: dict[int, Member] = {}
        self._counters_by_id: dict[int, ConnectionCounters] = {}
        self._admitted = 0
        self._reserved = 0
        """How many connections use reserved memory."""
        self._past_new_bytes = 0
        """The `new_bytes` of connections that have ended."""
        self._heard_at = time.monotonic()

    # --- connections come and go

    def counters_of(self, connection_id: int) -> ConnectionCounters:
        """Return the counters of a connection id, which all connections of this id have in turn."""
        with self._lock:
            counters = self._counters_by_id.get(connection_id)
            if counters is None:
                self._counters_by_id[connection_id] = counters = self._counters.add_connection(connection_id)
            else:
                counters.reconnects += 1
            return counters

    def admit(self, connection_id: int) -> ConnectionBudget:
        """Count a connection that is going to be attached; return the memory that it may use.

        Raises TransferFailed(LIMIT) where there are too many, or no memory.
        """
        with self._lock:
            # Twice as many: a connection may be replaced before its thread notices that it is lost.
            if self._admitted >= 2 * self.most:
                raise TransferFailed(Code.LIMIT, "too many connections: try again later")
            self._admitted += 1
            to_come = max(0, self.most - self._admitted)
        budget = borrow(self._account, self._socket_limits, connection_id, to_come)
        with self._lock:
            if budget is not None:
                return budget
            older = self._connections.get(connection_id)
            if self._reserved < (RESERVED if older is not None else 1):
                self._reserved += 1
                return SMALL._replace(bytes=0)
            self._admitted -= 1
        if older is not None:  # the sender has given up the older connection: its memory is free for the next try
            older.channel.shut()
        raise TransferFailed(
            Code.LIMIT, "this receiver has no memory left for another connection: the transfer goes on with fewer"
        )

    def cancel(self, budget: ConnectionBudget) -> None:
        """Undo `admit`: the connection could not be started."""
        with self._lock:
            self._admitted -= 1
        self.give_back(budget)

    def attach(self, connection: Member) -> None:
        """Add a connection; an older one with the same id is stopped before.

        Raises ConnectionLost where the older connection hangs, or the transfer is over.
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
                raise ConnectionLost(f"the older connection {connection.connection_id} does not end")

    def detach(self, connection: Member) -> None:
        """Remove a connection, and take back the segments that it was writing."""
        try:
            if self.target is not None:
                self.target.chunks.detach(connection)
        finally:  # whatever is wrong with the files: a connection with the same id may wait to be attached
            with self._lock:
                if self._connections.get(connection.connection_id) is connection:
                    del self._connections[connection.connection_id]
                self._admitted -= 1
                self._heard_at = max(self._heard_at, connection.channel.heard_at)
                self._past_new_bytes += connection.new_bytes

    def shut(self) -> list[Member]:
        """Shut every connection, so that no thread waits for the peer any more; return the connections."""
        with self._lock:
            connections = list(self._connections.values())
        for connection in connections:
            connection.channel.shut()
        return connections

    def shed(self, now: float, idle_seconds: float, *, busy: bool = False) -> bool:
        """Shut the connection that was idle longest, for at least `idle_seconds`; return whether there is one.

        With `busy`, a connection that is receiving a chunk may be shut as well.
        """
        with self._lock:
            since = {each: each.idle_since or now for each in self._connections.values() if busy or each.idle_since}
        longest = min(since, key=since.__getitem__, default=None)
        if longest is None or now - since[longest] < idle_seconds:
            return False
        longest.channel.shut()
        return True

    def stop(self) -> None:
        """Stop every connection, and wait until none uses a file any more, however long that takes."""
        # Shut first: the thread of a pipe may hang in an acknowledgement, and `stop_writes` waits for that thread.
        connections = self.shut()
        if self.target is not None:
            self.target.stop_writes()
        for connection in connections:
            connection.stop(None)

    # --- memory

    def shrunk(self, budget: ConnectionBudget) -> ConnectionBudget | None:
        """Return the smaller budget that a connection must use, as memory is short; None: it keeps its budget.

        The connection gives the difference back with `shrink`.
        """
        return smaller(budget, self._socket_limits) if self._account.budget.is_short else None

    def shrink(self, budget: ConnectionBudget, to: ConnectionBudget) -> None:
        """Give back the memory that a connection can do without."""
        self._account.give_back(budget.bytes - to.bytes)

    def give_back(self, budget: ConnectionBudget) -> None:
        """Give back the memory of a connection that is closed."""
        if budget.bytes:
            self._account.give_back(budget.bytes)
            return
        with self._lock:
            self._reserved -= 1

    # --- questions

    @property
    def admitted(self) -> int:
        """How many connections were admitted and have not ended."""
        return self._admitted

    @property
    def is_over(self) -> bool:
        """Whether the transfer has ended."""
        return self._is_over()

    @property
    def is_connected(self) -> bool:
        """Whether any data connection is attached."""
        with self._lock:
            return bool(self._connections)

    @property
    def attached(self) -> list[Member]:
        """The connections that are attached now."""
        with self._lock:
            return list(self._connections.values())

    def heard_at(self) -> float:
        """Return when the last byte came over any data connection (monotonic)."""
        with self._lock:
            self._heard_at = max([self._heard_at, *(c.channel.heard_at for c in self._connections.values())])
            return self._heard_at

    @property
    def is_settled(self) -> bool:
        """Whether every chunk that a connection has begun is acknowledged, or was refused."""
        with self._lock:
            return all(connection.is_settled for connection in self._connections.values())

    @property
    def new_bytes(self) -> int:
        """Bytes that were received and right, each segment once."""
        with self._lock:
            return self._past_new_bytes + sum(connection.new_bytes for connection in self._connections.values())

    def under_way_bytes(self) -> int:
        """Count the bytes of chunks that are being received."""
        with self._lock:
            return sum(connection.under_way_bytes for connection in self._connections.values())

    def starved(self, now: float) -> list[int]:
        """Return the ids of the connections over which no byte came for HEARTBEAT_SECONDS, for `Progress.starved`."""
        with self._lock:
            since = {each.connection_id: each.starved_since for each in self._connections.values()}
        return [each for each, at in since.items() if at is not None and now - at > limits.HEARTBEAT_SECONDS]
