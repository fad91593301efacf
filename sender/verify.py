"""Held chunks: what the receiver re-hashed from its disk is re-hashed here from the source, and compared.

Equal is settled, different is needed. Runs beside the data connections, so that missing chunks flow meanwhile.
"""

import os
import queue
import threading
from collections.abc import Callable

from sender.chunks import Layout
from sender.deal import Deal
from sender.source import Source
from service.counters import TransferCounters
from service.threads import run_to_end
from wire import limits
from wire.digests import segment_hasher
from wire.errors import FilestreamerError
from wire.messages import Segment

_Work = tuple[int, bytes, int]  # first chunk, their digests, epoch


class Verifier:
    """A few threads that compare held chunks with the source; none runs where nothing is held."""

    def __init__(
        self,
        source: Source,
        layout: Layout,
        deal: Deal,
        counters: TransferCounters,
        failed: Callable[[FilestreamerError], None],
    ) -> None:
        self._source = source
        self._layout = layout
        self._deal = deal
        self._counters = counters
        self._failed = failed
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._mutex = threading.Lock()  # protects the byte counts of _counters
        self._threads: list[threading.Thread] = []

    def compare(self, first_chunk: int, digests: bytes, epoch: int) -> None:
        """Compare the chunks of the share from `first_chunk` on with these digests, 16 bytes each, soon."""
        self._work.put((first_chunk, digests, epoch))
        if len(self._threads) < min(4, os.cpu_count() or 1):
            thread = threading.Thread(target=self._run, name="verify", daemon=True)
            self._threads.append(thread)
            thread.start()

    def end(self) -> None:
        """Let the threads run out."""
        for _ in self._threads:
            self._work.put(None)

    def _run(self) -> None:
        if error := run_to_end("comparing held chunks", self._compare_all):
            self._failed(error)

    def _compare_all(self) -> None:
        block = memoryview(bytearray(limits.BLOCK_BYTES))
        while (work := self._work.get()) is not None:
            self._compare(block, *work)

    def _compare(self, block: memoryview, first_chunk: int, digests: bytes, epoch: int) -> None:
        size = limits.DIGEST_BYTES
        for at in range(0, len(digests), size):
            if self._deal.is_over or epoch != self._deal.epoch:
                return
            chunk_id = first_chunk + at // size * self._deal.share.count
            (segment,) = self._layout.segments(chunk_id)
            digest = self._digest(block, segment)
            self._source.check_unchanged()
            if not self._deal.bind(chunk_id, digest):
                raise self._source.changed("it reads differently than before")
            equal = digest == digests[at : at + size]
            self._count(segment.length, equal)
            if equal:
                self._deal.settle((chunk_id,), epoch)
            else:
                self._deal.differs(chunk_id, epoch)

    def _digest(self, block: memoryview, segment: Segment) -> bytes:
        hasher = segment_hasher()
        offset, end = segment.offset, segment.offset + segment.length
        while offset < end:
            view = block[: min(limits.BLOCK_BYTES, end - offset)]
            self._source.read_into(view, offset)
            hasher.update(view)
            offset += len(view)
        return hasher.digest()

    def _count(self, length: int, equal: bool) -> None:
        with self._mutex:
            self._counters.rehashed_bytes += length
            if equal:
                self._counters.held_bytes += length
