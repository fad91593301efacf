"""Compares what the receiver holds with the source, in a few threads of their own, beside the data connections.

The receiver hashes again what it finds on its disk, and sends the digests (Held in proto/README.md). The same segments
of the source are read and hashed here: those that are equal are done, those that differ are needed.
"""

import os
import threading
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final, NamedTuple

from filestreamer.process.threads import run_to_end, start_thread
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import limits
from filestreamer.wire.digests import segment_hasher
from filestreamer.wire.errors import TransferFailed
from filestreamer.wire.grid import Grid
from filestreamer.wire.messages import Segment
from sender.dispatch.manifest import Manifest
from sender.dispatch.send_queue import SendQueue
from sender.mailbox import Event, Failed, Mailbox
from sender.source.item import Item, Unsendable, changed
from sender.source.reader import Reader

THREADS_MAX: Final = 4
RETRY_SECONDS: Final = 1.0
"""How long a thread waits before it tries again to open a file, where this process has too many open files."""
BACKLOG_MAX: Final = 1024
"""How many runs of held segments may wait to be compared before reading of the control connection pauses."""


class Held(NamedTuple):
    """A run of segments of a file that the receiver holds: those of this sender's share, from `first_segment` on."""

    item: Item
    file_id: int
    grid: Grid
    first_segment: int
    first_chunk: int
    """The chunk of `first_segment`."""
    digests: bytes
    """The receiver's digest of each, one after the other."""
    epoch: int
    """The epoch in which the receiver sent Held (`send_queue`)."""
    whole: range | None = None
    """All chunks of the file, where it lies under its final name: if one segment differs, all of them are needed."""


@dataclass(frozen=True, slots=True)
class Compared(Event):
    """A small file that the receiver holds was compared with the source."""

    file_id: int
    epoch: int
    is_equal: bool


class Verifier:
    """A few threads that compare. None is started before there is something to compare."""

    def __init__(self, manifest: Manifest, queue: SendQueue, counters: TransferCounters, mailbox: Mailbox) -> None:
        self._manifest = manifest
        self._queue = queue
        self._counters = counters
        self._mailbox = mailbox
        self._mutex = threading.Lock()  # protects the byte counts in `counters`, which all these threads write
        self._work: SimpleQueue[Held | None] = SimpleQueue()  # None: a thread ends
        self._threads: list[threading.Thread] = []

    def compare(self, held: Held) -> None:
        """Queue a run of held segments to be compared."""
        self._work.put(held)
        if len(self._threads) < min(THREADS_MAX, os.cpu_count() or 1):
            thread = threading.Thread(target=self._run, name="verify", daemon=True)
            try:
                start_thread(thread, "comparing held chunks")
            except TransferFailed:
                if not self._threads:
                    raise
            else:
                self._threads.append(thread)

    def is_behind(self) -> bool:
        """Return whether nothing more should be read from the control connection.

        Held messages come much faster than segments are compared, and those that wait take memory.
        """
        return self._work.qsize() > BACKLOG_MAX

    def stop(self) -> None:
        """Ask the threads to end after the queued work, or when the transfer is over."""
        for _ in self._threads:
            self._work.put(None)

    def _run(self) -> None:
        if error := run_to_end("comparing held chunks", self._compare_all):
            self._mailbox.post(Failed(error))

    def _compare_all(self) -> None:
        block = memoryview(bytearray(limits.BLOCK_BYTES))
        reader = Reader()
        try:
            while (held := self._work.get()) is not None:
                try:
                    self._compare(reader, block, held)
                except Unsendable as error:
                    if withdrew := self._manifest.withdraw(held.file_id, error):
                        self._mailbox.post(withdrew)
        finally:
            reader.close()

    def _compare(self, reader: Reader, block: memoryview, held: Held) -> None:
        """Compare a run of segments. Raises Unsendable where the source is not what was listed."""
        for at in range(0, len(held.digests), limits.DIGEST_BYTES):
            if self._queue.is_over or held.epoch != self._queue.epoch:
                return
            if held.whole is not None and self._queue.is_needed_whole(held.whole):
                return
            step = at // limits.DIGEST_BYTES * self._queue.share.count
            chunk_id, segment = held.first_chunk + step, held.first_segment + step
            digest = self._digest(reader, block, held, segment)
            if self._queue.pin_digest(chunk_id, (Segment(held.file_id, 0, 0),), (digest,)):
                raise changed(held.item, "its bytes are not the same as when they were read first")
            is_equal = digest == held.digests[at : at + limits.DIGEST_BYTES]
            is_held, taken_back = is_equal, list[int]()
            if held.grid.segments == 1:
                self._mailbox.post(Compared(held.file_id, held.epoch, is_equal))
            else:
                is_held, taken_back = self._queue.compared(chunk_id, held.epoch, is_equal=is_equal, whole=held.whole)
            held_bytes = held.grid.length(segment) if is_held else 0
            held_bytes -= sum(held.grid.length(segment + other - chunk_id) for other in taken_back)
            self._count(held_bytes=held_bytes)

    def _digest(self, reader: Reader, block: memoryview, held: Held, segment: int) -> bytes:
        """Return the digest of a segment of the source. Raises Unsendable where the file is not what was listed."""
        while True:
            try:
                digest = self._read_and_hash(reader, block, held, segment)
                reader.check_unchanged(held.item)
                return digest
            except TransferFailed as error:
                # Retryable: this process has too many open files, which says nothing about this file.
                if not error.retryable or self._queue.wait_over(RETRY_SECONDS):
                    raise

    def _read_and_hash(self, reader: Reader, block: memoryview, held: Held, segment: int) -> bytes:
        hasher = segment_hasher()
        offset = held.grid.offset(segment)
        end = offset + held.grid.length(segment)
        while offset < end:
            view = block[: min(limits.BLOCK_BYTES, end - offset)]
            reader.read_into(held.item, view, offset)
            hasher.update(view)
            offset += len(view)
            # Counted by block: a slow disk takes minutes to read a large segment, and that is progress.
            self._count(rehashed_bytes=len(view))
        return hasher.digest()

    def _count(self, *, rehashed_bytes: int = 0, held_bytes: int = 0) -> None:
        with self._mutex:
            self._counters.rehashed_bytes += rehashed_bytes
            self._counters.held_bytes += held_bytes
