"""The data connections of a transfer: how many there are, and starting and stopping them. For the coordinator."""

import socket
import time
from typing import Final

from filestreamer.process.backoff import Backoff
from filestreamer.process.threads import as_failure, start_thread, waited_seconds
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire.errors import TransferFailed
from sender.dispatch.parallelism import Change, Parallelism
from sender.dispatch.stragglers import Look, Stragglers
from sender.network.connection import DataConnection
from sender.network.control_state import ControlState
from sender.network.shared import Shared

CUTS: Final = 3
"""Where connections were lost so many times before a chunk was acknowledged on them, none lasts for a chunk."""


class DataConnections:
    """The threads of the data connections, by connection_id."""

    def __init__(
        self, shared: Shared, counters: TransferCounters, parallelism: Parallelism, control_state: ControlState
    ) -> None:
        self._shared = shared
        self._queue = shared.queue
        self._counters = counters
        self._parallelism = parallelism
        self._control_state = control_state
        self._connections: dict[int, DataConnection] = {}
        self._retry_at = 0.0
        """When to try again to start connections, after a thread or memory was missing; 0.0: neither was missing."""
        self._shortage = Backoff()
        self._stragglers = Stragglers()
        counters.parallelism = parallelism.connections

    def __len__(self) -> int:
        return len(self._connections)

    def start(self) -> bool:
        """Start as many as there are chunks for, those whose home has chunks first, once control is connected.

        Return False where not even one of them could be started, as this process may have no more threads or memory.
        """
        if not self._control_state.is_open:
            return True
        for connection_id in [known for known, connection in self._connections.items() if not connection.is_alive()]:
            del self._connections[connection_id]  # the queue had dismissed it
        if time.monotonic() < self._retry_at:
            return True
        for connection_id in self._queue.wanted_connections(set(self._connections)):
            try:
                connection = DataConnection(self._shared, self._counters.add_connection(connection_id))
                start_thread(connection, f"connection {connection_id}")
            except (TransferFailed, MemoryError) as error:
                failure = as_failure(f"connection {connection_id}", error)
                if not self._retry_at:  # logged once
                    self._shared.log.warning(
                        "fewer_connections", connections=len(self._connections), reason=str(failure)
                    )
                self._shared.peer.note_trouble(failure)
                self._retry_at = time.monotonic() + self._shortage.next()
                return bool(self._connections)
            self._connections[connection_id] = connection
        return True

    # --- how many

    @property
    def wanted(self) -> int:
        """How many connections are to be open: those that are, and those that wait for one."""
        connections = self._connections
        return sum(each.is_alive() and not self._queue.dismisses(at) for at, each in connections.items())

    @property
    def adapts(self) -> bool:
        """Whether the number of connections adapts, as the user did not choose it."""
        return self._parallelism.adapts

    def begin(self, rtt_seconds: float) -> None:
        """Choose the number to start with by the round-trip time of the control connection."""
        if self._parallelism.adapts:
            self._change(self._parallelism.begin(rtt_seconds, self._queue.unanswered))

    def tend(self, now: float) -> None:
        """Look at those that are up; start more or dismiss some while chunks move, and give up stragglers."""
        queue = self._queue
        adapts = self._parallelism.adapts and self._counters.phase == "moving" and now >= self._retry_at
        relieves = len(self._connections) > 1 and self._shared.rate_limit is None and not queue.strict_modulo
        if not adapts and not relieves:
            return
        looks = [look for connection in self._connections.values() if (look := connection.look()) is not None]
        if adapts:
            self._adapt(now, looks)
        if relieves and not queue.is_over:
            self._relieve(now, looks)

    def _adapt(self, now: float, looks: list[Look]) -> None:
        change = self._parallelism.observe(
            now,
            sum(look.delivered_bytes for look in looks),
            up=len(looks),
            remaining=self._queue.remaining,
            rtt_seconds=min((look.rtt_seconds for look in looks), default=0.0),
            waited_seconds=waited_seconds(self._connections.values()),
        )
        self._change(change)

    def _relieve(self, now: float, looks: list[Look]) -> None:
        """Give up connections for whose chunks all others wait, and which these would send sooner."""
        for connection_id in self._stragglers.look(now, looks):
            self._shared.log.info("straggler_given_up", connection=connection_id)
            self._connections[connection_id].give_up()

    def _change(self, change: Change | None) -> None:
        if change is not None:
            self._shared.log.info("parallelism", **change._asdict())
            self._counters.parallelism = change.connections
            self._counters.parallelism_changes[change.reason] += 1
            self._queue.resize(change.connections)

    # --- progress, and the end

    @property
    def delivered_bytes(self) -> int:
        """About how many bytes of chunks that are not acknowledged the receiver's kernel has taken."""
        return sum(connection.delivered_bytes for connection in self._connections.values())

    def sockets(self) -> list[socket.socket]:
        """Return the sockets of the connections that are up; one that is being opened is not among them."""
        opened = [connection.counters.link[0] for connection in self._connections.values()]
        return [sock for sock in opened if sock is not None]

    def unacknowledged(self) -> tuple[int, int]:
        """Return the bytes of chunks that were begun and are not acknowledged, and how many connections have some."""
        sizes = [size for each in self._connections.values() if (size := each.unacknowledged_bytes)]
        return sum(sizes), len(sizes)

    @property
    def is_cut_short(self) -> bool:
        """Whether connections are lost again and again before a chunk is acknowledged on them."""
        return sum(each.cuts for each in self._connections.values()) >= CUTS

    @property
    def reading(self) -> int:
        """How many of them wait for the source."""
        return sum(connection.stage == "read" for connection in self._connections.values())

    def shut(self) -> None:
        """Shut down those that are open: their threads connect again."""
        for connection in self._connections.values():
            connection.shut()

    def join(self, deadline: float) -> None:
        """Wait until all threads have ended, at most until `deadline` (monotonic)."""
        for connection in self._connections.values():
            connection.join(max(0.0, deadline - time.monotonic()))
