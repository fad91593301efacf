"""The unacknowledged chunks of a data connection, and how many there may be."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from filestreamer.wire import limits
from filestreamer.wire.errors import RemoteProtocolError
from filestreamer.wire.sockets.transport import Channel


class SentChunk(NamedTuple):
    """A chunk that is not acknowledged."""

    payload_bytes: int
    hole_bytes: int
    """Bytes of its segments that lie in holes, and are not sent."""
    taken_at: float
    """When the queue gave it to the connection (monotonic)."""


class SendWindow:
    """The chunks of one connection. One thread owns it."""

    def __init__(self) -> None:
        self.chunks: dict[int, SentChunk] = {}
        """By chunk_id, in the order in which they were sent. The connection looks whether there are any."""
        self.bytes = 0
        """Payload of these chunks."""
        self.cuts = 0
        """How many connections were lost with chunks on them since the receiver has last answered one."""
        self._most_chunks = limits.WINDOW_CHUNKS_MAX
        self._max_bytes = limits.WINDOW_BYTES

    def add(self, chunk_ids: range, chunk: SentChunk) -> None:
        """Add a chunk that is sent, or those of a run, which are alike."""
        self.chunks.update(dict.fromkeys(chunk_ids, chunk))
        self.bytes += chunk.payload_bytes * len(chunk_ids)

    def remove(self, chunk_ids: Sequence[int]) -> list[tuple[SentChunk, int]]:
        """Remove chunks that the receiver has answered; return how many of them are alike, as those of a run are.

        Raises RemoteProtocolError for a chunk that was not sent.
        """
        removed: list[SentChunk] = []
        self.cuts = 0
        self._most_chunks = min(self._most_chunks + len(chunk_ids), limits.WINDOW_CHUNKS_MAX)
        try:
            removed += map(self.chunks.pop, chunk_ids)
        except KeyError as unknown:
            raise RemoteProtocolError(f"the receiver acknowledged chunk {unknown}, which was not sent") from None
        counted = [(chunk, len(list(alike))) for chunk, alike in itertools.groupby(removed)]
        self.bytes -= sum([chunk.payload_bytes * count for chunk, count in counted])
        return counted

    def clear(self, *, is_in_order: bool) -> list[int]:
        """Remove all chunks, as the connection is lost; return them.

        Something on the path may end each connection after so many bytes, or seconds, and a whole window may be more
        than that: none of it would ever be answered. So the next connection begins with one chunk, and has as many more
        under way as were answered over it. Not where the receiver passes chunks on `is_in_order`: the answer to that
        one chunk might wait for another one, for which no connection has room.
        """
        chunk_ids = list(self.chunks)
        if chunk_ids:
            self.cuts += 1
            if not is_in_order:
                self._most_chunks = 1
        self.chunks.clear()
        self.bytes = 0
        return chunk_ids

    @property
    def is_full(self) -> bool:
        """Whether an acknowledgement has to come before another chunk is sent.

        The acknowledgements of all these chunks fit into the kernel's buffers. So the receiver never blocks when it
        writes them, and both ends never block in a write at the same time.
        """
        return self.room <= 0 or (len(self.chunks) >= limits.WINDOW_CHUNKS_MIN and self.bytes >= self._max_bytes)

    @property
    def room(self) -> int:
        """How many more chunks may be sent, however small they are."""
        return self._most_chunks - len(self.chunks)

    def grow(self, channel: Channel) -> None:
        """Double the size where the path carries all of it and could carry more: nothing waits in the kernel."""
        may_grow = self._max_bytes <= self.bytes and self._max_bytes < limits.WINDOW_BYTES_MAX
        if may_grow and channel.is_window_bound():
            self._max_bytes *= 2
