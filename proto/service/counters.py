"""Plain numbers of what a transfer does, written by the thread that does it and read by whoever shows it.

One thread writes each field, nobody locks: a reader may see one field a moment older than another. The progress
display, the log lines, the result object and the metrics all read these and nothing else.
"""

import time
from dataclasses import dataclass, field
from typing import Literal

Phase = Literal["offering", "moving", "syncing", "complete"]


@dataclass(slots=True)
class ConnectionCounters:
    """One data connection. Bytes are payload bytes: frames and digests are not counted."""

    connection_id: int
    moved_bytes: int = 0
    """Sender: handed to the kernel. Receiver: read off the socket."""
    acknowledged_bytes: int = 0
    abandoned_bytes: int = 0
    """Moved on a connection that ended before they were acknowledged."""
    chunks: int = 0
    """Chunks acknowledged."""
    reconnects: int = 0
    resent_chunks: int = 0
    stolen_chunks: int = 0
    up: bool = False
    finished_at: float | None = None
    """Monotonic time of the last acknowledgement."""
    stage_seconds: dict[str, float] = field(default_factory=dict)
    """Sender: read, digest, send, wait_ack. Receiver: receive, digest, write."""

    @property
    def bytes_in_flight(self) -> int:
        """Bytes moved and neither acknowledged nor abandoned."""
        return max(0, self.moved_bytes - self.acknowledged_bytes - self.abandoned_bytes)

    def add_stage(self, stage: str, seconds: float) -> None:
        """Add time spent in one stage; call it once a chunk, not once a block."""
        self.stage_seconds[stage] = self.stage_seconds.get(stage, 0.0) + seconds


@dataclass(slots=True)
class TransferCounters:
    """One transfer, on either side."""

    transfer_id: bytes
    name: str
    """The file's name, for people; never a metric label."""
    size_bytes: int = 0
    held_bytes: int = 0
    """Bytes that both sides agree are there already."""
    unchecked_bytes: int = 0
    rehashed_bytes: int = 0
    forgotten_bytes: int = 0
    """Acknowledged by a receiver that was restarted since; what it kept of them counts as held."""
    files: int = 1
    chunks: int = 0
    chunk_size: int = 0
    phase: Phase = "offering"
    started_at: float = field(default_factory=time.monotonic)
    ended_at: float | None = None
    last_progress_at: float = field(default_factory=time.monotonic)
    connections: list[ConnectionCounters] = field(default_factory=list)

    @property
    def acknowledged_bytes(self) -> int:
        """Bytes that the receiver has written and verified in this transfer."""
        return sum(connection.acknowledged_bytes for connection in self.connections) - self.forgotten_bytes

    def start_over(self) -> None:
        """Forget what was acknowledged and held: a restarted receiver answers anew."""
        self.held_bytes = 0
        self.forgotten_bytes += self.acknowledged_bytes

    @property
    def moved_bytes(self) -> int:
        return sum(connection.moved_bytes for connection in self.connections)

    @property
    def bytes_in_flight(self) -> int:
        return sum(connection.bytes_in_flight for connection in self.connections)

    @property
    def seconds(self) -> float:
        """Seconds since the start; fixed once the transfer has ended."""
        return (self.ended_at if self.ended_at is not None else time.monotonic()) - self.started_at
