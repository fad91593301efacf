"""What is claimed is re-hashed in batches that are cut as their turn comes, by threads that there is memory for."""

import itertools
import queue
import threading
from collections.abc import Iterator

import pytest

from filestreamer.wire.digests import segment_digest
from filestreamer.wire.grid import WHOLE, Grid
from receiver.disk.staging.readable import Readable
from receiver.file.rehash import THREAD_BYTES, FinalsRehashed, Rehashed, Rehasher, Work
from receiver.memory.budget import Budget
from tests.support.services import HANG

GRID = Grid(100_000, 10)


class Disk(Readable):
    """A file of zeros, which can be read once the test lets it."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.readers = threading.Semaphore(0)

    def read_into(self, view: memoryview, offset: int) -> None:
        del offset
        self.readers.release()
        assert self.open.wait(HANG)
        view[:] = bytes(len(view))


@pytest.fixture
def disk() -> Disk:
    return Disk()


def test_every_run_is_hashed_once_and_none_is_asked_for_ahead(disk: Disk) -> None:
    posted: queue.SimpleQueue[Rehashed | FinalsRehashed] = queue.SimpleQueue()
    asked = itertools.count()

    def works() -> Iterator[Work]:
        for at in range(0, GRID.segments, 2):  # as many runs as there can be
            next(asked)
            yield Work(0, disk, GRID, WHOLE, at, at + 1)

    rehasher = Rehasher(posted.put, lambda error: pytest.fail(str(error)))
    rehasher.add_all(works())
    assert disk.readers.acquire(timeout=HANG)
    assert next(asked) <= 8
    disk.open.set()
    found = [posted.get(timeout=HANG) for _ in range(GRID.segments // 2)]
    assert {batch.start for batch in found if isinstance(batch, Rehashed)} == set(range(0, GRID.segments, 2))
    assert all(batch.digests == [segment_digest(bytes(10))] for batch in found)
    assert rehasher.add(Work(0, disk, GRID, WHOLE, 0, 1000)) == 4
    batches = [posted.get(timeout=HANG) for _ in range(4)]
    assert sum(len(batch.digests) for batch in batches) == 1000
    assert rehasher.stop(HANG)
    assert posted.empty()


def test_further_threads_are_for_who_has_memory_for_them(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    posted: queue.SimpleQueue[Rehashed | FinalsRehashed] = queue.SimpleQueue()
    for total, threads in ((10, 1), (8 * THREAD_BYTES, 4)):
        budget = Budget(total)
        account = budget.admit("a", 1)
        rehasher = Rehasher(posted.put, lambda error: pytest.fail(str(error)), account)
        for at in range(8):
            rehasher.add(Work(0, disk, GRID, WHOLE, at, at + 1))
        assert budget.used_bytes == 1 + (threads - 1) * THREAD_BYTES
        disk.open.set()
        for _ in range(8):
            posted.get(timeout=HANG)
        assert rehasher.stop(HANG)
        account.close()
        assert budget.used_bytes == 0
