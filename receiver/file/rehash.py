"""Claimed chunks: what the ledger says is here is hashed again from the disk, by a few threads, in order.

Results are posted in batches, so that the answer to the sender flows in parts. Files of a tree that are there already
are hashed likewise, where the sender asked for that.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from filestreamer.process.threads import run_to_end, start_thread
from filestreamer.wire import limits
from filestreamer.wire.errors import FilestreamerError, TransferFailed
from filestreamer.wire.grid import Grid, Share
from filestreamer.wire.sockets import memory
from receiver.disk.destination import Destination
from receiver.disk.readable import Readable, open_below
from receiver.memory.budget import Account
from receiver.memory.connection_budget import THREAD_BYTES as STACK_BYTES

BATCH_CHUNKS: Final = 256
BATCH_BYTES: Final = 64 * limits.MIB
THREAD_BYTES: Final = limits.BLOCK_BYTES + STACK_BYTES
"""What a thread takes."""
PIECE_SEGMENTS: Final = 4096
"""Digests of a file under its final name that are held at once."""


class _Unreadable(Exception):
    """A file under its final name can't be read any more: it is received anew."""


class Rehashed(NamedTuple):
    """What a run of chunks of a share, from the one with ordinal `start`, hashes to."""

    file_id: int
    share: Share
    start: int
    digests: list[bytes]
    bytes: int


class FinalFile(NamedTuple):
    """A file of a tree that lies under its final name, and is to be compared."""

    file_id: int
    path: bytes
    grid: Grid


class FinalWork(NamedTuple):
    """Files to be hashed and posted as one."""

    destination: Destination
    files: list[FinalFile]
    keep: Callable[[int, int, bytes], None]
    """Takes the digests of large files, piece by piece: file_id, first segment, digests."""


class FinalsRehashed(NamedTuple):
    """What files under their final names hash to: file_id, and the digest of one segment; None where it is gone.

    Those of a file of several segments were kept elsewhere, as they may be many.
    """

    digests: list[tuple[int, bytes | None]]
    bytes: int


class Work(NamedTuple):
    """The chunks of a share with ordinals [start, stop), to be hashed."""

    file_id: int
    content: Readable
    grid: Grid
    share: Share
    start: int
    stop: int


def batches(grid: Grid, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Cut a run of chunks into runs [start, stop) that are posted as one."""
    step = _step(grid)
    for first in range(start, stop, step):
        yield first, min(first + step, stop)


def count_batches(grid: Grid, start: int, stop: int) -> int:
    """Count them."""
    return -(-(stop - start) // _step(grid))


def _step(grid: Grid) -> int:
    return max(1, min(BATCH_CHUNKS, BATCH_BYTES // grid.chunk_size))


def _cut(works: Iterable[Work]) -> Iterator[Work]:
    """Cut runs of chunks into batches."""
    for work in works:
        for start, stop in batches(work.grid, work.start, work.stop):
            yield work._replace(start=start, stop=stop)


class Rehasher:
    """Hashes runs of claimed chunks; none of its threads runs where nothing is claimed.

    What is to be done is cut into batches as they are begun: a file of many chunks has many.
    """

    def __init__(
        self,
        post: Callable[[Rehashed | FinalsRehashed], None],
        failed: Callable[[FilestreamerError], None],
        account: Account | None = None,
    ) -> None:
        """Borrow what all threads but the first take from `account`, until that is closed."""
        self._post = post
        self._failed = failed
        self._account = account
        self._work: queue.SimpleQueue[Iterator[Work | FinalWork] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._taking = threading.Lock()  # protects _current
        self._current: Iterator[Work | FinalWork] = iter(())
        self._ended = threading.Event()
        self._mutex = threading.Lock()  # protects _hashed_bytes
        self._hashed_bytes = 0

    @property
    def hashed_bytes(self) -> int:
        """Bytes that were hashed so far, those of segments under way included."""
        with self._mutex:
            return self._hashed_bytes

    def add(self, work: Work) -> int:
        """Hash these chunks soon; return in how many batches."""
        self.add_all(iter((work,)))
        return count_batches(work.grid, work.start, work.stop)

    def add_all(self, works: Iterable[Work]) -> None:
        """Hash these chunks soon. They are asked for when their turn comes, by another thread."""
        self._put(_cut(works))

    def _put(self, batches: Iterator[Work | FinalWork]) -> None:
        self._work.put(batches)
        self._begin_thread()

    def add_finals(
        self, destination: Destination, files: list[FinalFile], keep: Callable[[int, int, bytes], None]
    ) -> None:
        """Hash these files of a tree soon; they are posted in batches. `keep` takes the digests of large ones."""
        batch: list[FinalFile] = []
        size = 0
        for file in files:
            batch.append(file)
            size += file.grid.size
            if len(batch) == BATCH_CHUNKS or size >= BATCH_BYTES:
                self._put(iter((FinalWork(destination, batch, keep),)))
                batch, size = [], 0
        if batch:
            self._put(iter((FinalWork(destination, batch, keep),)))

    def _begin_thread(self) -> None:
        is_first = not self._threads or self._account is None
        if len(self._threads) < min(4, os.cpu_count() or 1) and (is_first or self._may_have_another()):
            thread = threading.Thread(target=self._run, name="rehash", daemon=True)
            try:
                start_thread(thread, "re-hashing")
            except TransferFailed:
                if not self._threads:
                    raise
            else:
                self._threads.append(thread)

    def _may_have_another(self) -> bool:
        assert self._account is not None
        return self._account.try_borrow(THREAD_BYTES, leave_bytes=self._account.budget.share_bytes)

    def stop(self, seconds: float | None = None) -> bool:
        """Stop soon, and wait until no thread reads a file any more; whether none does, `seconds` for each later."""
        self._ended.set()
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join(seconds)
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        if error := run_to_end("re-hashing", self._rehash_all):
            self._failed(error)

    def _rehash_all(self) -> None:
        block = memory.mapped(limits.BLOCK_BYTES)
        while (work := self._next()) is not None and not self._ended.is_set():
            if isinstance(work, FinalWork):
                self._rehash_finals(block, work)
            else:
                self._rehash(block, work)

    def _next(self) -> Work | FinalWork | None:
        """Wait for the next batch; None at the end."""
        while True:
            with self._taking:
                work = next(self._current, None)
                if work is None:  # those who wait for the lock have nothing to do either
                    following = self._work.get()
                    if following is None:
                        return None
                    self._current = following
            if work is not None:
                return work

    def _rehash_finals(self, block: memoryview, work: FinalWork) -> None:
        digests: list[tuple[int, bytes | None]] = []
        size = 0
        for file in work.files:
            try:
                content = open_below(work.destination, file.path)
            except FilestreamerError:  # changed since it was looked at: it is received anew
                digests.append((file.file_id, None))
                continue
            try:
                found = self._digest_final(block, content, file, work)
                size += file.grid.size
            except _Unreadable:
                found = None
            finally:
                os.close(content.fd)
            if self._ended.is_set():
                return
            digests.append((file.file_id, found))
        self._post(FinalsRehashed(digests, size))

    def _digest_final(self, block: memoryview, content: Readable, file: FinalFile, work: FinalWork) -> bytes:
        """Return the digest of a file of one segment; of a larger one, have those of all segments kept."""
        segments = file.grid.segments
        for first in range(0, segments, PIECE_SEGMENTS):
            found = []
            for index in range(first, min(first + PIECE_SEGMENTS, segments)):
                if self._ended.is_set():
                    return b""
                try:
                    found.append(content.digest(block, file.grid, index, self._count))
                except FilestreamerError as error:
                    raise _Unreadable from error
            if segments == 1:
                return found[0]
            work.keep(file.file_id, first, b"".join(found))
        return b""

    def _rehash(self, block: memoryview, work: Work) -> None:
        digests = []
        for ordinal in range(work.start, work.stop):
            if self._ended.is_set():
                return
            digests.append(work.content.digest(block, work.grid, work.share.chunk(ordinal), self._count))
        size = work.share.bytes_between(work.grid, work.start, work.stop)
        self._post(Rehashed(work.file_id, work.share, work.start, digests, size))

    def _count(self, read_bytes: int) -> None:
        with self._mutex:
            self._hashed_bytes += read_bytes
