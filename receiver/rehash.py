"""Claimed chunks: what the ledger says is here is hashed again from the disk, by a few threads, in order.

Results are posted in batches, so that the answer to the sender flows in parts.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from receiver.store import Readable
from service.threads import run_to_end
from wire import limits
from wire.digests import segment_hasher
from wire.errors import FilestreamerError
from wire.grid import Grid, Share

BATCH_CHUNKS: Final = 256
BATCH_BYTES: Final = 64 * limits.MIB


class Rehashed(NamedTuple):
    """What a run of chunks of a share, from the one with ordinal `start`, hashes to."""

    file_id: int
    share: Share
    start: int
    digests: list[bytes]
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
    step = max(1, min(BATCH_CHUNKS, BATCH_BYTES // grid.chunk_size))
    for first in range(start, stop, step):
        yield first, min(first + step, stop)


class Rehasher:
    """Hashes runs of claimed chunks; none of its threads runs where nothing is claimed."""

    def __init__(self, post: Callable[[Rehashed], None], failed: Callable[[FilestreamerError], None]) -> None:
        self._post = post
        self._failed = failed
        self._work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._ended = threading.Event()

    def add(self, work: Work) -> int:
        """Hash these chunks soon; return in how many batches."""
        count = 0
        for start, stop in batches(work.grid, work.start, work.stop):
            self._work.put(work._replace(start=start, stop=stop))
            count += 1
        if len(self._threads) < min(4, os.cpu_count() or 1):
            thread = threading.Thread(target=self._run, name="rehash", daemon=True)
            self._threads.append(thread)
            thread.start()
        return count

    def end(self, seconds: float) -> bool:
        """Stop soon, and wait until no thread reads a file any more; whether none does."""
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
        block = memoryview(bytearray(limits.BLOCK_BYTES))
        while (work := self._work.get()) is not None and not self._ended.is_set():
            self._rehash(block, work)

    def _rehash(self, block: memoryview, work: Work) -> None:
        digests = []
        for ordinal in range(work.start, work.stop):
            if self._ended.is_set():
                return
            digests.append(self._digest(block, work.content, work.grid, work.share.chunk(ordinal)))
        size = work.share.bytes_between(work.grid, work.start, work.stop)
        self._post(Rehashed(work.file_id, work.share, work.start, digests, size))

    def _digest(self, block: memoryview, content: Readable, grid: Grid, index: int) -> bytes:
        hasher = segment_hasher()
        offset = grid.offset(index)
        end = offset + grid.length(index)
        while offset < end:
            view = block[: min(limits.BLOCK_BYTES, end - offset)]
            content.read_into(view, offset)
            hasher.update(view)
            offset += len(view)
        return hasher.digest()
