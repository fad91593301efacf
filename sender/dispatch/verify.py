"""Held chunks: what the receiver re-hashed from its disk is re-hashed here from the source, and compared.

Equal is settled, different is needed. Runs beside the data connections, so that missing chunks flow meanwhile.
"""

import os
import queue
import threading
from typing import Final, NamedTuple, Protocol

from filestreamer.process.threads import run_to_end, start_thread
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import limits
from filestreamer.wire.digests import segment_hasher
from filestreamer.wire.errors import FilestreamerError, TransferFailed
from filestreamer.wire.grid import Grid
from filestreamer.wire.messages import Segment
from sender.dispatch.send_queue import SendQueue
from sender.source.item import Item, Reader, Unsendable, changed

RETRY_SECONDS: Final = 1.0
WAITING_MOST: Final = 1024
"""Runs of held segments that wait to be compared, before the control connection is not read for a while."""


class Held(NamedTuple):
    """Segments of a file that the receiver holds: those of the deal's share, from the one in `first_chunk` on."""

    item: Item
    file_id: int
    grid: Grid
    first_segment: int
    first_chunk: int
    digests: bytes
    """16 bytes for each."""
    epoch: int
    whole: range | None = None
    """The chunks of all the file, where all of it is needed as soon as one segment differs."""


class Host(Protocol):
    """What comparing needs of its transfer."""

    queue: SendQueue
    counters: TransferCounters

    def withdraw(self, file_id: int, error: Unsendable) -> None:
        """Leave out a file that can't be read as it was listed. Raises `error` where nothing would be left."""

    def compared(self, file_id: int, epoch: int, *, is_equal: bool) -> None:
        """Take what came out for a small file."""

    def failed(self, error: FilestreamerError) -> None:
        """End the transfer."""


class Verifier:
    """A few threads that compare held chunks with the source; none runs where nothing is held."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._work: queue.SimpleQueue[Held | None] = queue.SimpleQueue()
        self._mutex = threading.Lock()  # protects the byte counts of the transfer
        self._threads: list[threading.Thread] = []

    def compare(self, held: Held) -> None:
        """Compare these segments with the source, soon."""
        self._work.put(held)
        if len(self._threads) < min(4, os.cpu_count() or 1):
            thread = threading.Thread(target=self._run, name="verify", daemon=True)
            try:
                start_thread(thread, "comparing held chunks")
            except TransferFailed:
                if not self._threads:
                    raise
            else:
                self._threads.append(thread)

    @property
    def is_behind(self) -> bool:
        """Whether so much waits to be compared that nothing more should be heard: a receiver says it far faster."""
        return self._work.qsize() > WAITING_MOST

    def end(self) -> None:
        """Let the threads run out."""
        for _ in self._threads:
            self._work.put(None)

    def _run(self) -> None:
        if error := run_to_end("comparing held chunks", self._compare_all):
            self._host.failed(error)

    def _compare_all(self) -> None:
        block = memoryview(bytearray(limits.BLOCK_BYTES))
        reader = Reader()
        try:
            while (held := self._work.get()) is not None:
                try:
                    self._compare(reader, block, held)
                except Unsendable as error:
                    self._host.withdraw(held.file_id, error)
        finally:
            reader.close()

    def _compare(self, reader: Reader, block: memoryview, held: Held) -> None:
        """Compare segments. Raises Unsendable where the source is not what was listed."""
        queue, size = self._host.queue, limits.DIGEST_BYTES
        for at in range(0, len(held.digests), size):
            if queue.is_over or held.epoch != queue.epoch:
                return
            step = at // size * queue.share.count
            chunk_id, segment = held.first_chunk + step, held.first_segment + step
            if held.whole is not None and queue.is_needed_whole(held.whole.start):
                return
            digest = self._read(reader, block, held, segment)
            if queue.pin_digest(chunk_id, (Segment(held.file_id, 0, 0),), (digest,)):
                raise changed(held.item, "it reads differently than before")
            is_equal = digest == held.digests[at : at + size]
            is_held, taken_back = is_equal, list[int]()
            if held.grid.segments == 1:
                self._host.compared(held.file_id, held.epoch, is_equal=is_equal)
            else:
                is_held, taken_back = queue.compared(chunk_id, held.epoch, is_equal=is_equal, whole=held.whole)
            length, base = held.grid.length(segment), chunk_id - segment
            held_bytes = length * is_held - sum(held.grid.length(other - base) for other in taken_back)
            self._count(0, held_bytes)

    def _read(self, reader: Reader, block: memoryview, held: Held, segment: int) -> bytes:
        """Return the digest of a segment of the source, as it was listed. Where there is no descriptor, it waits."""
        while True:
            try:
                digest = self._digest(reader, block, held, segment)
                reader.check_unchanged(held.item)
                return digest
            except TransferFailed as error:
                if not error.retryable or self._host.queue.wait_over(RETRY_SECONDS):
                    raise

    def _digest(self, reader: Reader, block: memoryview, held: Held, segment: int) -> bytes:
        hasher = segment_hasher()
        offset = held.grid.offset(segment)
        end = offset + held.grid.length(segment)
        while offset < end:
            view = block[: min(limits.BLOCK_BYTES, end - offset)]
            reader.read_into(held.item, view, offset)
            hasher.update(view)
            offset += len(view)
            self._count(len(view), 0)  # a large segment takes a slow disk minutes, which is progress
        return hasher.digest()

    def _count(self, length: int, held_bytes: int) -> None:
        with self._mutex:
            self._host.counters.rehashed_bytes += length
            self._host.counters.held_bytes += held_bytes
