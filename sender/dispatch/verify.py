"""Compares the source with digests, in a few threads of their own, beside the data connections.

The receiver hashes again what it finds on its disk, and sends the digests (Held in proto/README.md). The same segments
of the source are read and hashed here: those that are equal are done, those that differ are needed.

A large file whose ctime moved is read again here, too, and compared with the digests that are pinned (`moved_files`).
"""

import os
import threading
from queue import SimpleQueue
from typing import Final, NamedTuple

from filestreamer.process.threads import run_to_end, start_thread
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import limits
from filestreamer.wire.digests import segment_hasher, update_with_zeros
from filestreamer.wire.errors import TransferFailed
from filestreamer.wire.grid import Grid
from filestreamer.wire.messages import Segment
from sender.dispatch.manifest import Manifest
from sender.dispatch.moved_files import MovedFiles
from sender.dispatch.part import Part
from sender.dispatch.send_queue import SendQueue
from sender.mailbox import Event, Failed, Mailbox
from sender.source.item import Identity, Item, Unsendable, changed
from sender.source.known_digests import KnownDigests
from sender.source.reader import OTHER_BYTES, Reader

THREADS_MAX: Final = 4
RETRY_SECONDS: Final = 1.0
"""How long a thread waits before it tries again to open a file, where this process has too many open files."""
PASSES_MAX: Final = 5
"""How often a file is read again in a row while its ctime moves each time."""
PASS_SECONDS: Final = 0.25
"""The pause before a file is read again for the second time; it is doubled each time."""
BACKLOG_MAX: Final = 1024
"""How many runs of held segments, or groups of held files, may wait before reading of the control connection pauses."""
FILES_AT_ONCE: Final = 64
"""The most small files that a thread compares before it tells the results."""


class Held(NamedTuple):
    """A run of segments of a large file that the receiver holds: of this sender's share, from `first_segment` on."""

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


class HeldFiles(NamedTuple):
    """Small files that the receiver holds."""

    part: Part
    """The part that lists them."""
    digests: list[tuple[int, bytes]]
    """The receiver's digest of each, by file ID, in order."""
    epoch: int


class Compared(Event):
    """Small files that the receiver holds were compared with the source."""

    part: Part
    equal: list[int]
    """Those that are equal, in order."""
    different: list[int]
    epoch: int


class ReadAgain(NamedTuple):
    """A file that moved, of which everything that was read has to be read again."""

    item: Item
    file_id: int
    part: Part


class Settled(Event):
    """A file that moved was read again, and has the same bytes, or need not be read again any more."""


class Verifier:
    """A few threads that compare. None is started before there is something to compare."""

    def __init__(
        self,
        manifest: Manifest,
        queue: SendQueue,
        counters: TransferCounters,
        mailbox: Mailbox,
        digests: KnownDigests | None = None,
    ) -> None:
        """`digests` are those of what this process has read, for other transfers; None where there are none."""
        self._digests = digests
        self._manifest = manifest
        self._queue = queue
        self._counters = counters
        self._mailbox = mailbox
        self._mutex = threading.Lock()  # protects the byte counts in `counters`, which all these threads write
        self._work: SimpleQueue[Held | HeldFiles | ReadAgain | None] = SimpleQueue()  # None: the threads end
        self._beginning = threading.Lock()  # protects _threads
        self._threads: list[threading.Thread] = []
        self._most_threads = min(THREADS_MAX, os.cpu_count() or 1)  # asked once: the kernel is asked each time
        self._moved = MovedFiles()

    def compare(self, held: Held | HeldFiles) -> None:
        """Queue a run of held segments, or held files, to be compared."""
        self._work.put(held)
        self._begin_thread()

    # --- files that moved

    def saw(self, file_id: int, item: Item, seen: Identity, chunk_id: int | None = None) -> bool:
        """Note the identity that a file of several segments had while one was read, once its digest is pinned.

        Return whether chunk `chunk_id`, which carries the segment, is to be held back. Any thread may call.
        """
        is_new, must_hold = self._moved.saw(file_id, item, seen, chunk_id)
        if not is_new:
            return must_hold
        part = self._manifest.part_of_file(file_id)
        if part is None:
            # Its part was dropped while a chunk of it was still read: it is withdrawn, or all of it has arrived.
            self._moved.forget(file_id)
            self._mailbox.post(Settled())
            return False
        self._work.put(ReadAgain(item, file_id, part))
        self._begin_thread()
        return must_hold

    def has_moved(self, file_id: int) -> bool:
        """Whether a file was found to have moved: of each chunk of it, `saw` has to say whether it is held back."""
        return self._moved.knows(file_id)

    def may_queue_again(self, chunk_id: int, epoch: int) -> bool:
        """Whether a chunk that was rejected, as it was sent with a wrong digest, can be queued now; else later."""
        return self._moved.rejected(chunk_id, epoch)

    @property
    def is_settled(self) -> bool:
        """Whether no file that moved is still to be read again."""
        return self._moved.is_settled

    def forget(self, file_id: int) -> None:
        """Do not read a file again: it is withdrawn."""
        self._moved.forget(file_id)

    # --- the threads

    def _begin_thread(self) -> None:
        """Begin another thread, unless there are enough. Raises TransferFailed(LIMIT) where none can be started."""
        with self._beginning:
            if len(self._threads) >= self._most_threads:
                return
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
        self._work.put(None)

    def _run(self) -> None:
        if error := run_to_end("comparing held chunks", self._compare_all):
            self._mailbox.post(Failed(error))

    def _compare_all(self) -> None:
        block = memoryview(bytearray(limits.BLOCK_BYTES))
        reader = Reader()
        try:
            while (work := self._work.get()) is not None:
                if isinstance(work, HeldFiles):
                    self._compare_files(reader, block, work)
                    continue
                try:
                    if isinstance(work, ReadAgain):
                        self._read_again(reader, block, work)
                    else:
                        self._compare(reader, block, work)
                except Unsendable as error:
                    self._withdraw(work.file_id, error)
            self._work.put(None)  # for the next thread: a connection that still reads may begin one after `stop`
        finally:
            reader.close()

    def _withdraw(self, file_id: int, error: Unsendable) -> None:
        # Before it is forgotten: a single file ends the transfer here, and must not look settled by then.
        withdrew = self._manifest.withdraw(file_id, error)
        self._moved.forget(file_id)
        # Also where it was withdrawn before, and seen since: the coordinator waits for that before it says Finish.
        self._mailbox.post(withdrew or Settled())

    def _compare_files(self, reader: Reader, block: memoryview, held: HeldFiles) -> None:
        """Compare small files. Those that are not what was listed are withdrawn."""
        part, results = held.part, Compared(held.part, [], [], held.epoch)
        for file_id, told in held.digests:
            if self._queue.is_over or held.epoch != self._queue.epoch:
                return
            item, size = part.item(file_id), part.size_bytes(file_id)
            try:
                digest, _ = self._digest(reader, block, item, 0, size)
                if self._queue.pin_digest(part.chunk_of(file_id, 0), (Segment(file_id, 0, 0),), (digest,)):
                    raise changed(item, OTHER_BYTES)
            except Unsendable as error:
                self._withdraw(file_id, error)
                continue
            if digest == told:
                results.equal.append(file_id)
                self._count(held_bytes=size)
            else:
                results.different.append(file_id)
        self._mailbox.post(results)

    def _compare(self, reader: Reader, block: memoryview, held: Held) -> None:
        """Compare a run of segments of a large file. Raises Unsendable where the source is not what was listed."""
        for at in range(0, len(held.digests), limits.DIGEST_BYTES):
            if self._queue.is_over or held.epoch != self._queue.epoch:
                return
            if held.whole is not None and self._queue.is_needed_whole(held.whole):
                return
            step = at // limits.DIGEST_BYTES * self._queue.share.count
            chunk_id, segment = held.first_chunk + step, held.first_segment + step
            digest, seen = self._digest(reader, block, held.item, held.grid.offset(segment), held.grid.length(segment))
            if self._queue.pin_digest(chunk_id, (Segment(held.file_id, 0, 0),), (digest,)):
                raise changed(held.item, OTHER_BYTES)
            self.saw(held.file_id, held.item, seen)
            is_equal = digest == held.digests[at : at + limits.DIGEST_BYTES]
            is_held, taken_back = self._queue.compared(chunk_id, held.epoch, is_equal=is_equal, whole=held.whole)
            held_bytes = held.grid.length(segment) if is_held else 0
            held_bytes -= sum(held.grid.length(segment + other - chunk_id) for other in taken_back)
            self._count(held_bytes=held_bytes)

    def _digest(
        self, reader: Reader, block: memoryview, item: Item, offset: int, length: int
    ) -> tuple[bytes, Identity]:
        """Return the digest of a segment of the source, and the identity of the file. Raises Unsendable."""
        while True:
            try:
                before = reader.look(item)
                if self._digests is not None and (known := self._digests.get(before, offset, length)) is not None:
                    return known, before
                digest = reader.digest(item, offset, length, block, self._count_rehashed)
                seen = reader.confirm(item, before, offset, length, digest)
                if self._digests is not None:
                    self._digests.add(seen, offset, length, digest)
                return digest, seen
            except TransferFailed as error:
                # Retryable: this process has too many open files, which says nothing about this file.
                if not error.retryable or self._queue.wait_over(RETRY_SECONDS):
                    raise

    def _read_again(self, reader: Reader, block: memoryview, work: ReadAgain) -> None:
        """Read everything again that was read of a file, until it does not move meanwhile.

        Raises Unsendable where the bytes are others.
        """
        passes = 0
        while passes < PASSES_MAX:
            try:
                if self._pass(reader, block, work):
                    return
                passes += 1
                pause = PASS_SECONDS * 2**passes
            except TransferFailed as error:
                if not error.retryable:
                    raise
                pause = RETRY_SECONDS  # as in `_digest`
            if self._queue.wait_over(pause):
                return
        raise changed(work.item, "its status changes all the time")

    def _pass(self, reader: Reader, block: memoryview, work: ReadAgain) -> bool:
        """Read everything again that was read of a file; return whether nothing more has to be done."""
        seen = reader.look(work.item)
        version = self._moved.begin_pass(work.file_id, seen)
        if version is None:
            return True
        if not self._is_same_throughout(reader, block, work, seen):
            return False
        rejected = self._moved.end_pass(work.file_id, version)
        if rejected is None:
            return False
        for chunk_id, epoch in rejected:
            self._queue.put_back([chunk_id], epoch)
        self._mailbox.post(Settled())
        return True

    def _is_same_throughout(self, reader: Reader, block: memoryview, work: ReadAgain, seen: Identity) -> bool:
        """Compare what is pinned of a file with its bytes; return False as soon as it moves. Raises Unsendable."""
        part, file_id, share = work.part, work.file_id, self._queue.share
        grid = part.grid(file_id)
        first = part.chunk_of(file_id, 0)
        for segment in filter(share.holds, range(grid.segments)):
            chunk_id = first + segment
            if self._queue.is_over:
                return False
            offset, length = grid.offset(segment), grid.length(segment)
            if not self._queue.digests.is_pinned(share.ordinal(chunk_id)):
                if self._queue.is_known_as_zeros(chunk_id) and not _is_zeros(reader, work.item, offset, length, block):
                    raise changed(work.item, OTHER_BYTES)
                continue
            digest = reader.digest(work.item, offset, length, block, self._count_rehashed)
            if reader.look(work.item) != seen:
                return False
            if self._queue.pin_digest(chunk_id, (Segment(file_id, 0, 0),), (digest,)):
                raise changed(work.item, OTHER_BYTES)
        return reader.look(work.item) == seen

    def _count_rehashed(self, size: int) -> None:
        # Counted by block: a slow disk takes minutes to read a large segment, and that is progress.
        self._count(rehashed_bytes=size)

    def _count(self, *, rehashed_bytes: int = 0, held_bytes: int = 0) -> None:
        with self._mutex:
            self._counters.rehashed_bytes += rehashed_bytes
            self._counters.held_bytes += held_bytes


def _is_zeros(reader: Reader, item: Item, offset: int, length: int, block: memoryview) -> bool:
    """Whether a segment is zeros; where it lies in a hole, it need not be read. Raises Unsendable."""
    if reader.extents(item).hole_end(offset) >= offset + length:
        return True
    hasher = segment_hasher()
    update_with_zeros(hasher, length)
    return reader.digest(item, offset, length, block) == hasher.digest()
