"""Hashes again what is on the disk already, by a few threads, in order.

    Work        CLAIMED chunks: the ledger of an earlier run says that they are in staging
    FinalWork   files of a tree that lie under their final names, where the sender asked for `--checksum`

The results, `Rehashed` and `FinalsRehashed`, are posted in batches, so that the sender gets the first answers while the
other chunks are still hashed.
"""

import contextlib
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
from receiver.disk.staging.readable import FinalFiles, Readable
from receiver.memory.budget import Account
from receiver.memory.connection_budget import THREAD_BYTES as STACK_BYTES

THREADS_MOST: Final = 4
BATCH_CHUNKS: Final = 256
BATCH_BYTES: Final = 64 * limits.MIB
"""A batch has at most so many chunks, and about so many bytes."""
THREAD_BYTES: Final = limits.BLOCK_BYTES + STACK_BYTES
"""The memory of one thread: a block that it reads into, and its stack."""
PIECE_SEGMENTS: Final = 4096
"""Digests of a file under its final name that are kept in memory at once."""


class _Unreadable(Exception):
    """A file under its final name can't be read any more: the sender has to send it."""


class Rehashed(NamedTuple):
    """The digests of a run of chunks of a share, from ordinal `start` on."""

    file_id: int
    share: Share
    start: int
    digests: list[bytes]
    bytes: int


class FinalFile(NamedTuple):
    """A file of a tree that lies under its final name, and has to be compared."""

    file_id: int
    path: bytes
    grid: Grid


class FinalWork(NamedTuple):
    """Files whose digests are posted as one batch."""

    destination: Destination
    files: list[FinalFile]
    keep: Callable[[int, int, bytes], None]
    """Stores the digests of large files, piece by piece: file_id, first segment, digests."""


class FinalsRehashed(NamedTuple):
    """The digests of files under their final names."""

    digests: list[tuple[int, bytes | None]]
    """Each file_id, with the digest of a file of one segment; None where the file is gone.

    It is empty for a file of several segments: its digests can be many, and went to `FinalWork.keep`.
    """
    bytes: int


class Work(NamedTuple):
    """The chunks of a share with ordinals [start, stop)."""

    file_id: int
    content: Readable
    grid: Grid
    share: Share
    start: int
    stop: int


def batches(grid: Grid, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield the runs [start, stop) into which a run of chunks is cut: each is posted as one batch."""
    step = _step(grid)
    for first in range(start, stop, step):
        yield first, min(first + step, stop)


def count_batches(grid: Grid, start: int, stop: int) -> int:
    """Return into how many batches a run of chunks is cut."""
    return -(-(stop - start) // _step(grid))


def _step(grid: Grid) -> int:
    return max(1, min(BATCH_CHUNKS, BATCH_BYTES // grid.chunk_size))


def _cut(works: Iterable[Work]) -> Iterator[Work]:
    """Yield the work in batches."""
    for work in works:
        for start, stop in batches(work.grid, work.start, work.stop):
            yield work._replace(start=start, stop=stop)


class Rehasher:
    """Hashes in threads that are started with the first work: where nothing is claimed, none runs.

    Work is cut into batches when a thread takes it: a file of many chunks has many batches.
    """

    def __init__(
        self,
        post: Callable[[Rehashed | FinalsRehashed], None],
        failed: Callable[[FilestreamerError], None],
        account: Account | None = None,
    ) -> None:
        """`post` takes results; `failed` takes the error that ended a thread.

        The memory of every thread but the first is borrowed from `account`, which gives it back when it is closed.
        """
        self._post = post
        self._failed = failed
        self._account = account
        self._work: queue.SimpleQueue[Iterator[Work | FinalWork] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._taking = threading.Lock()  # protects _current
        self._current: Iterator[Work | FinalWork] = iter(())
        self._stopped = threading.Event()
        self._mutex = threading.Lock()  # protects _hashed_bytes and _busy_threads
        self._hashed_bytes = 0
        self._busy_threads = 0

    @property
    def hashed_bytes(self) -> int:
        """Bytes that were hashed so far, including those of chunks that are not finished."""
        with self._mutex:
            return self._hashed_bytes

    @property
    def is_busy(self) -> bool:
        """Whether anything is being hashed."""
        with self._mutex:
            return self._busy_threads > 0

    def add(self, work: Work) -> int:
        """Have these chunks hashed; return in how many batches they are posted."""
        self.add_all(iter((work,)))
        return count_batches(work.grid, work.start, work.stop)

    def add_all(self, works: Iterable[Work]) -> None:
        """Have these chunks hashed. A hashing thread iterates over `works`, as their turn comes."""
        self._put(_cut(works))

    def _put(self, batches: Iterator[Work | FinalWork]) -> None:
        self._work.put(batches)
        self._begin_thread()

    def add_finals(
        self, destination: Destination, files: list[FinalFile], keep: Callable[[int, int, bytes], None]
    ) -> None:
        """Have these files of a tree hashed; `keep` stores the digests of large files (`FinalWork`)."""
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
        if len(self._threads) < min(THREADS_MOST, os.cpu_count() or 1) and (is_first or self._borrow_for_another()):
            thread = threading.Thread(target=self._run, name="rehash", daemon=True)
            try:
                start_thread(thread, "re-hashing")
            except TransferFailed:
                if not self._threads:
                    raise
            else:
                self._threads.append(thread)

    def _borrow_for_another(self) -> bool:
        assert self._account is not None
        return self._account.try_borrow(THREAD_BYTES, leave_bytes=self._account.budget.share_bytes)

    def stop(self, seconds: float | None = None) -> bool:
        """Stop, and wait `seconds` for each thread; return whether no thread reads a file any more."""
        self._stopped.set()
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
        while (work := self._next()) is not None and not self._stopped.is_set():
            self._count_busy(1)
            if isinstance(work, FinalWork):
                self._rehash_finals(block, work)
            else:
                self._rehash(block, work)
            self._count_busy(-1)

    def _count_busy(self, change: int) -> None:
        with self._mutex:
            self._busy_threads += change

    def _next(self) -> Work | FinalWork | None:
        """Wait for the next batch; return None where there are no more."""
        while True:
            with self._taking:
                work = next(self._current, None)
                if work is None:  # waiting with the lock held is fine: the other threads have no work either
                    following = self._work.get()
                    if following is None:
                        return None
                    self._current = following
            if work is not None:
                return work

    def _rehash_finals(self, block: memoryview, work: FinalWork) -> None:
        digests: list[tuple[int, bytes | None]] = []
        size = 0
        with contextlib.closing(FinalFiles(work.destination)) as finals:
            for file in work.files:
                try:
                    digest: bytes | None = self._digest_final(block, finals, file, work)
                    size += file.grid.size
                except _Unreadable:  # it was replaced or removed since it was listed: the sender has to send it
                    digest = None
                if self._stopped.is_set():
                    return
                digests.append((file.file_id, digest))
        self._post(FinalsRehashed(digests, size))

    def _digest_final(self, block: memoryview, finals: FinalFiles, file: FinalFile, work: FinalWork) -> bytes:
        """Return the digest of a file of one segment; hand those of a larger file to `work.keep`, and return b"".

        Raises _Unreadable.
        """
        segments = file.grid.segments
        try:
            content = finals.open(file.path)
        except FilestreamerError as error:
            raise _Unreadable from error
        try:
            for first in range(0, segments, PIECE_SEGMENTS):
                found = self._digests(block, content, file.grid, range(first, min(first + PIECE_SEGMENTS, segments)))
                if segments == 1 or self._stopped.is_set():
                    return b"".join(found)
                work.keep(file.file_id, first, b"".join(found))
        finally:
            os.close(content.fd)
        return b""

    def _digests(self, block: memoryview, content: Readable, grid: Grid, indices: range) -> list[bytes]:
        """Return the digests of segments, of the first ones where this is stopped. Raises _Unreadable."""
        try:
            return [content.digest(block, grid, index, self._count) for index in indices if not self._stopped.is_set()]
        except FilestreamerError as error:
            raise _Unreadable from error

    def _rehash(self, block: memoryview, work: Work) -> None:
        digests = []
        for ordinal in range(work.start, work.stop):
            if self._stopped.is_set():
                return
            digests.append(work.content.digest(block, work.grid, work.share.chunk(ordinal), self._count))
        size = work.share.bytes_between(work.grid, work.start, work.stop)
        self._post(Rehashed(work.file_id, work.share, work.start, digests, size))

    def _count(self, read_bytes: int) -> None:
        with self._mutex:
            self._hashed_bytes += read_bytes
