"""Claimed chunks: what the ledger says is here is hashed again from the disk, by a few threads, in order.

Results are posted in batches, so that the answer to the sender flows in parts.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from receiver.assembly import Assembly
from receiver.store import Staged
from wire import limits
from wire.digests import segment_hasher
from wire.errors import Code, FilestreamerError, TransferFailed

BATCH_CHUNKS: Final = 256
BATCH_BYTES: Final = 64 * limits.MIB


class Rehashed(NamedTuple):
    """What a run of chunks from `first` hashes to."""

    file_id: int
    first: int
    digests: list[bytes]
    bytes: int


def batches(assembly: Assembly, first: int, end: int) -> Iterator[tuple[int, int]]:
    """Cut a run of chunks into runs [first, end) that are posted as one."""
    step = max(1, min(BATCH_CHUNKS, BATCH_BYTES // assembly.grid.chunk_size))
    for start in range(first, end, step):
        yield start, min(start + step, end)


class Rehasher:
    """Hashes runs of claimed chunks; none of its threads runs where nothing is claimed."""

    def __init__(self, post: Callable[[Rehashed], None], failed: Callable[[FilestreamerError], None]) -> None:
        self._post = post
        self._failed = failed
        self._work: queue.SimpleQueue[tuple[int, Staged, Assembly, int, int] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._ended = threading.Event()

    def add(self, file_id: int, staged: Staged, assembly: Assembly, first: int, end: int) -> None:
        """Hash the chunks [first, end) of a file soon."""
        for start, stop in batches(assembly, first, end):
            self._work.put((file_id, staged, assembly, start, stop))
        if len(self._threads) < min(4, os.cpu_count() or 1):
            thread = threading.Thread(target=self._run, name="rehash", daemon=True)
            self._threads.append(thread)
            thread.start()

    def end(self, seconds: float) -> None:
        """Stop soon, and wait until no thread reads a file any more."""
        self._ended.set()
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join(seconds)

    def _run(self) -> None:
        block = memoryview(bytearray(limits.BLOCK_BYTES))
        try:
            while (work := self._work.get()) is not None and not self._ended.is_set():
                self._rehash(block, *work)
        except FilestreamerError as error:
            self._failed(error)
        except Exception as error:  # the top of a thread: whatever it is, the transfer must hear of it
            self._failed(TransferFailed(Code.INTERNAL, f"re-hashing: {error!r} (a bug)"))

    def _rehash(
        self, block: memoryview, file_id: int, staged: Staged, assembly: Assembly, first: int, end: int
    ) -> None:
        digests = []
        for index in range(first, end):
            if self._ended.is_set():
                return
            digests.append(self._digest(block, staged, assembly, index))
        self._post(Rehashed(file_id, first, digests, assembly.grid.bytes_between(first, end)))

    def _digest(self, block: memoryview, staged: Staged, assembly: Assembly, index: int) -> bytes:
        hasher = segment_hasher()
        offset = assembly.grid.offset(index)
        end = offset + assembly.grid.length(index)
        while offset < end:
            view = block[: min(limits.BLOCK_BYTES, end - offset)]
            staged.read_into(view, offset)
            hasher.update(view)
            offset += len(view)
        return hasher.digest()
