"""The space of a file: taken ahead, never more than it may be, and given back."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from filestreamer.wire.errors import Code
from filestreamer.wire.grid import Grid
from receiver.disk import space
from receiver.disk.destination import Destination
from receiver.disk.staging.staging import Staging
from tests.support.staged_file import (
    CONTENT,
    ENTRY,
    GRID,
    LARGE,
    MIB,
    allocated,
    failure,
    fill,
    filled,
    kill,
    never,
    stage,
    staged_data,
    taken,
    write,
)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have space be denied with this errno."""

    def fail(number: int) -> None:
        def fallocate(*_: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(space, "fallocate", fallocate)

    return fail


def test_space_is_taken_for_all_of_a_file_and_none_for_a_sparse_one(destination: Destination, path: Path) -> None:
    grid = Grid(8 << 20, 1 << 20)
    staged = stage(destination, grid)
    staged.reserve(never)
    assert allocated(staged_data(path)) == staged.space.ahead_bytes == grid.size
    staged.close()
    staged = stage(destination, grid, ENTRY._replace(data_bytes=4 << 20))
    staged.reserve(never)
    assert allocated(staged_data(path)) == staged.space.ahead_bytes == 0
    staged.close()


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS])
def test_space_that_a_file_system_can_not_take_ahead(
    destination: Destination, path: Path, failing: Callable[[int], None], number: int
) -> None:
    """It is taken when it is written, as ever."""
    failing(number)
    staged = stage(destination)
    staged.reserve(never)
    assert allocated(staged_data(path)) == staged.space.ahead_bytes == 0
    write(staged, *range(GRID.segments))
    staged.commit()
    assert (path / "f").read_bytes() == CONTENT
    staged.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_or_a_quota_that_is_full_is_known_ahead(
    destination: Destination, path: Path, failing: Callable[[int], None], number: int
) -> None:
    failing(number)
    staged = stage(destination)
    assert os.strerror(number) in failure(Code.NO_SPACE, staged.reserve, never)
    staged.close()
    assert os.listdir(path) == []


def test_taking_space_ends_when_it_is_told_to(
    destination: Destination, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "STEP_BYTES", 1 << 20)
    answers = iter([False, False, True])
    staged = stage(destination, Grid(8 << 20, 1 << 20))
    staged.reserve(lambda: next(answers))
    assert allocated(staged_data(path)) == 2 << 20
    staged.close()


ROOT, ROOTLESS = (
    "         0          0 4294967295\n",
    "         0       1000          1\n         1     100000      65536\n",
)


@pytest.mark.parametrize(("user", "uid_map", "is_free"), [(0, ROOT, True), (0, ROOTLESS, False), (1000, ROOT, False)])
def test_the_reserve_of_a_file_system_is_free_for_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: int, uid_map: str, is_free: bool
) -> None:
    """Root of a rootless container is another user outside of it, where the file system is."""
    shown = tmp_path / "uid_map"
    shown.write_text(uid_map)
    monkeypatch.setattr(space, "_UID_MAP", shown)
    monkeypatch.setattr(os, "fstatvfs", lambda _: SimpleNamespace(f_bfree=3, f_bavail=2, f_frsize=100))
    monkeypatch.setattr(os, "geteuid", lambda: user)
    space._is_root_outside.cache_clear()
    try:
        assert space.free_bytes(0) == (300 if is_free else 200)
    finally:
        space._is_root_outside.cache_clear()


def test_space_that_was_taken_ahead_counts_as_free(
    destination: Destination, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there for what is still to come of its file, and is not missing a second time."""
    monkeypatch.setattr(os, "fstatvfs", lambda _: SimpleNamespace(f_bfree=10 << 20, f_bavail=10 << 20, f_frsize=1))
    staged = stage(destination, Grid(8 << 20, 1 << 20))
    staged.reserve(never)
    assert (destination.free_bytes(), staged.space.taken_bytes) == (18 << 20, 0)
    staged.write(memoryview(bytes(3 << 20)), 0)
    assert (destination.free_bytes(), staged.space.taken_bytes) == (15 << 20, 3 << 20)
    staged.close()
    assert destination.free_bytes() == 10 << 20


def free(staged: Staging, *indices: int) -> None:
    staged.give_back([(index * MIB, (index + 1) * MIB) for index in indices], (min(indices)) * MIB)


def test_what_may_be_taken_ahead_grows_with_what_has_come(
    destination: Destination, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fixed amount over all files, and beyond that as much again as was written of each."""
    monkeypatch.setattr(space, "STEP_BYTES", 2 * MIB)
    monkeypatch.setattr(space, "GRAIN_BYTES", MIB)
    monkeypatch.setattr(space, "AHEAD_BYTES", 8 * MIB)
    first = stage(destination, LARGE)
    assert not first.reserve(never)
    assert taken(staged_data(path)) == 8 * MIB
    second = Staging.open_single_file(destination, b"g", ENTRY._replace(size=LARGE.size), LARGE, 0)
    assert not second.reserve(never)
    assert second.space.ahead_bytes == 0, "one peer's bytes were lent already"
    fill(first, *range(10))
    assert not first.reserve(never)
    assert taken(staged_data(path)) == 20 * MIB
    fill(second, 0)
    assert not second.reserve(never)
    assert second.space.ahead_bytes == MIB
    fill(first, *range(10, 40))
    assert first.reserve(never)
    assert taken(staged_data(path)) == LARGE.size
    first.close()
    second.close()


def test_the_space_of_what_was_not_written_is_given_back(destination: Destination, path: Path) -> None:
    staged = stage(destination, LARGE)
    staged.reserve(never)
    fill(staged, 0, 5)
    free(staged, *range(1, 5), *range(6, 64))
    assert taken(staged_data(path)) == 2 * MIB
    assert staged_data(path).stat().st_size == LARGE.size
    assert [filled(staged_data(path), index) for index in (0, 5)] == [True, True]
    staged.close()


def test_less_than_a_block_beside_what_was_written(destination: Destination, path: Path) -> None:
    """Nothing beyond the ranges is touched, wherever blocks begin."""
    grid = Grid(100_001, 10_001)
    content = os.urandom(grid.size)
    staged = stage(destination, grid)
    staged.reserve(never)
    staged.write(memoryview(content), 0)
    staged.give_back([(0, 10_001), (20_002, 30_003), (90_009, 100_001)], 90_009)
    there = staged_data(path).read_bytes()
    assert len(there) == grid.size
    for start, end in ((10_001, 20_002), (30_003, 90_009)):
        assert there[start:end] == content[start:end]
    staged.close()


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_can_not_punch_holes(
    destination: Destination, path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """What lies behind the last byte that counts is cut off, and the file has its size again when it is resumed."""

    def punch(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(space, "punch", punch)
    staged = stage(destination, LARGE)
    staged.reserve(never)
    fill(staged, 0, 2)
    staged.give_back([(MIB, 2 * MIB), (3 * MIB, 64 * MIB)], 3 * MIB)
    assert taken(staged_data(path)) == staged_data(path).stat().st_size == 3 * MIB
    staged.close()
    staged = stage(destination, LARGE)
    assert list(staged.claims.indices()) == [0, 2]
    assert staged_data(path).stat().st_size == LARGE.size
    assert [filled(staged_data(path), index) for index in (0, 2)] == [True, True]
    staged.close()


def test_a_transfer_begins_with_the_space_of_what_is_claimed_alone(destination: Destination, path: Path) -> None:
    """What a killed receiver had taken counts neither as written nor as taken."""
    staged = stage(destination, LARGE)
    staged.reserve(never)
    fill(staged, 0, 1, 2)
    kill(staged)
    staged = stage(destination, LARGE)
    assert taken(staged_data(path)) == staged.space.taken_bytes // MIB * MIB == 3 * MIB
    assert staged.space.ahead_bytes == 0
    staged.close()


def test_a_committed_file_keeps_its_bytes(destination: Destination, path: Path) -> None:
    """Space that is given back too late, or twice, takes nothing from a file that has its final name."""
    staged = stage(destination, Grid(4 * MIB, MIB))
    fill(staged, *range(4))
    staged.commit()
    free(staged, *range(4))
    staged.close()
    assert all(filled(path / "f", index) for index in range(4))


class Block:
    """A block in whose counting another thread gets its turn."""

    def __len__(self) -> int:
        os.sched_yield()
        return 1


def test_what_several_threads_wrote_is_counted(destination: Destination, monkeypatch: pytest.MonkeyPatch) -> None:
    """No block is lost from the count, whenever threads take turns."""
    monkeypatch.setattr(os, "pwrite", lambda _fd, view, _offset: len(view))
    staged = stage(destination, LARGE)
    block: Any = Block()

    def write_all() -> None:
        for _ in range(2000):
            staged.write(block, 0)

    threads = [threading.Thread(target=write_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert staged.space.taken_bytes == 8000
    staged.close()


# ---------------------------------------------------------------------------------------------------------------- zeros


@pytest.mark.parametrize("start", [0, 5, 4096, 9000])
@pytest.mark.parametrize("end", [9001, 12288, 20_000, 40_000])
@pytest.mark.parametrize("trouble", ["none", "can't punch", "can't tell"])
def test_bytes_become_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int, end: int, trouble: str
) -> None:
    """And no others, whatever was there, and whatever the file system can't do."""

    def fail(*_: int) -> int:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    path = tmp_path / "f"
    content = b"x" * 10_000 + bytes(10_000) + b"y" * 20_000
    path.write_bytes(content)
    if trouble != "none":
        monkeypatch.setattr(space, "punch", fail)
    if trouble == "can't tell":
        monkeypatch.setattr(os, "lseek", fail)
    with path.open("r+b") as file:
        space.make_zeros(file.fileno(), start, end)
    assert path.read_bytes() == content[:start] + bytes(end - start) + content[end:]


@pytest.mark.parametrize("tells", [True, False])
def test_zeros_of_a_new_file_take_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, tells: bool) -> None:
    def fail(*_: int) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    if not tells:
        monkeypatch.setattr(os, "lseek", fail)
    with (tmp_path / "f").open("w+b") as file:
        file.truncate(10 << 20)
        space.make_zeros(file.fileno(), 5, 10 << 20)
        assert os.fstat(file.fileno()).st_blocks == 0


def test_no_space_is_taken_ahead_where_blocks_are_written_to_new_places(
    destination: Destination, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "writes_in_place", lambda _: False)
    staged = stage(destination, Grid(8 << 20, 1 << 20))
    assert staged.reserve(never)
    assert allocated(staged_data(path)) == 0
    staged.close()
