"""Gathers small frames, digests and segments of a data connection, to send them with one system call."""

from typing import Final

from filestreamer.telemetry.counters import ConnectionCounters, StageClock
from filestreamer.wire import limits
from filestreamer.wire.sockets import memory
from filestreamer.wire.sockets.transport import Channel

GATHER_BYTES: Final = 64 * limits.KIB
"""Room for headers, digests and small segments behind a block."""


class Outbox:
    """A buffer that is filled from its beginning, and sent when it is full, or on `flush`. One thread owns it."""

    def __init__(self, counters: ConnectionCounters, clock: StageClock) -> None:
        self.gathered_bytes = 0
        self._counters = counters
        self._clock = clock
        self._buffer = memory.buffer(max(limits.BLOCK_BYTES, limits.RUN_BYTES) + GATHER_BYTES)
        self._payload_bytes = 0  # how many of the gathered bytes are payload

    def clear(self) -> None:
        """Drop the gathered bytes: the connection is lost."""
        self.gathered_bytes = self._payload_bytes = 0

    def reserve(self, channel: Channel, size: int) -> memoryview:
        """Return the next `size` bytes of the buffer, to be filled; what is gathered is sent if they would not fit.

        `size` is at most that of a block, or of a run.
        """
        assert size <= len(self._buffer)
        if self.gathered_bytes + size > len(self._buffer):
            self.flush(channel, more=True)
        return self._buffer[self.gathered_bytes : self.gathered_bytes + size]

    def add_payload(self, size: int) -> None:
        """Gather the `size` bytes that were reserved, and filled with payload."""
        self.gathered_bytes += size
        self._payload_bytes += size

    def add(self, channel: Channel, data: bytes) -> None:
        """Gather bytes that are not payload."""
        self.reserve(channel, len(data))[:] = data
        self.gathered_bytes += len(data)

    def flush(self, channel: Channel, *, more: bool = False) -> None:
        """Send what is gathered; `more` tells the kernel that the rest of a chunk follows at once."""
        self._clock.enter("send")
        if self.gathered_bytes:
            channel.send(self._buffer[: self.gathered_bytes], more=more)
            self._counters.moved_bytes += self._payload_bytes
            self.clear()
        self._clock.enter(None)
