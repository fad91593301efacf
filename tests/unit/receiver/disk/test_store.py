"""The destination directory: what is staged and where, who may, what a commit leaves, and what is refused."""

import errno
import fcntl
import os
import stat
import threading
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import Code, TransferFailed
from filestreamer.wire.grid import Grid
from filestreamer.wire.messages import Entry, EntryType, Hole
from receiver.disk import ledger, reserve
from receiver.disk.store import Destination, Staging, check_name

NAME = b"f"
KEY = segment_digest(NAME).hex()
CONTENT = b"0123456789" * 10
GRID = Grid(len(CONTENT), 30)
ENTRY = Entry(NAME, EntryType.FILE, len(CONTENT), 0o4640, 1_234_567_890_123_456_789)


def failure(code: Code, call: object, *args: object) -> str:
    """Call something that fails; return the line that says why."""
    assert callable(call)
    with pytest.raises(TransferFailed) as caught:
        call(*args)
    assert code is caught.value.code
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "destination").mkdir()
    return tmp_path / "destination"


@pytest.fixture
def destination(path: Path) -> Iterator[Destination]:
    destination = Destination(str(path))
    yield destination
    os.close(destination.fd)


def stage(destination: Destination, grid: Grid = GRID, entry: Entry = ENTRY, reserved_bytes: int = 0) -> Staging:
    return destination.stage(NAME, entry._replace(size=grid.size), grid, reserved_bytes)


def write(staged: Staging, *indices: int) -> None:
    """Write segments of CONTENT, and say so in the ledger."""
    for index in indices:
        offset = GRID.offset(index)
        block = CONTENT[offset : offset + GRID.length(index)]
        staged.write(memoryview(block), offset)
        staged.record([(index, segment_digest(block))])


# ---------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name", [b"f", b"x" * 255, b"..f", b"f..", b" ", b"\n", b"\xff\xfe", b".filestreamer2", b"-", b"a\\b"]
)
def test_names_that_may_be_written(name: bytes) -> None:
    assert name == check_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *(b"", b".", b"..", b"/", b"/f", b"//f", b"../f", b"f/..", b"f/../g", b"./f", b"f/.", b"f/", b"f//g"),
        *(b"\0", b"f\0", b"\0f", b".filestreamer", b".filestreamer/f", b"f/.filestreamer"),
        *(b"x" * 256, b"f/" + b"x" * 256),
    ],
    ids=repr,
)
def test_names_that_may_not(name: bytes) -> None:
    failure(Code.PATH, check_name, name)


@pytest.mark.parametrize("name", [b"f/g", b"a/b/c/d"])
def test_names_of_trees(name: bytes) -> None:
    failure(Code.POLICY, check_name, name)


def test_names_are_shown_escaped() -> None:
    message = failure(Code.PATH, check_name, b"\x1b[2J\n\xff\0" + b"x" * 1000)
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 500


# ---------------------------------------------------------------------------------------------------------- destination


def test_destinations_that_are_none(path: Path) -> None:
    (path / "file").write_bytes(b"")
    assert failure(Code.DESTINATION, Destination, str(path / "missing")).endswith("No such file or directory")
    assert failure(Code.DESTINATION, Destination, str(path / "file")).endswith("Not a directory")


def test_nothing_is_made_before_it_is_needed(path: Path, destination: Destination) -> None:
    assert destination.free_bytes() > 0
    assert os.listdir(path) == []


# -------------------------------------------------------------------------------------------------------------- staging


def test_what_is_staged(path: Path, destination: Destination) -> None:
    """In `.filestreamer`, for the owner alone, under the digest of the name; not under the name."""
    staged = stage(destination)
    assert sorted(os.listdir(path)) == [".filestreamer"]
    staging = path / ".filestreamer"
    assert (path / ".filestreamer").stat().st_mode == 0o40700
    assert sorted(os.listdir(staging)) == [f"{KEY}.data", f"{KEY}.ledger"]
    assert [(staging / name).stat().st_mode for name in os.listdir(staging)] == [0o100600] * 2
    assert (staging / f"{KEY}.data").stat().st_size == len(CONTENT)
    assert staged.claims.claimed == 0
    staged.close()


def test_a_later_run_finds_it(destination: Destination) -> None:
    first = stage(destination)
    write(first, 2, 0)
    first.close()
    second = stage(destination)
    assert list(second.claims.indices()) == [0, 2]
    assert second.claims.digest(2) == segment_digest(CONTENT[60:90])
    block = memoryview(bytearray(30))
    second.read_into(block, 60)
    assert CONTENT[60:90] == bytes(block)
    second.close()


def test_a_later_run_goes_on_in_the_same_ledger(path: Path, destination: Destination) -> None:
    for index in range(3):
        staged = stage(destination)
        write(staged, index)
        staged.close()
    content = (path / ".filestreamer" / f"{KEY}.ledger").read_bytes()
    assert len(content) == ledger.HEADER_BYTES + 3 * ledger.RECORD_BYTES
    staged = stage(destination)
    assert list(staged.claims.indices()) == [0, 1, 2]
    staged.close()


def test_a_torn_ledger_is_written_anew(path: Path, destination: Destination) -> None:
    staged = stage(destination)
    write(staged, 0, 1)
    staged.close()
    file = path / ".filestreamer" / f"{KEY}.ledger"
    os.truncate(file, file.stat().st_size - 3)
    staged = stage(destination)
    assert list(staged.claims.indices()) == [0]
    write(staged, 3)
    staged.close()
    claims = ledger.decode(file.read_bytes())
    assert claims is not None
    assert list(claims.indices()) == [0, 3]


def test_another_chunk_size_keeps_what_it_covers(destination: Destination) -> None:
    staged = stage(destination)
    write(staged, 0, 1)
    staged.close()
    staged = stage(destination, Grid(len(CONTENT), 20))
    assert list(staged.claims.indices()) == [0, 1, 2]
    assert staged.claims.digest(0) == ledger.UNKNOWN_DIGEST
    staged.close()


def test_a_ledger_without_its_data_claims_nothing(path: Path, destination: Destination) -> None:
    staged = stage(destination)
    write(staged, 0)
    staged.close()
    (path / ".filestreamer" / f"{KEY}.data").unlink()
    staged = stage(destination)
    assert staged.claims.claimed == 0
    staged.close()


def test_a_smaller_file_cuts_what_is_staged(path: Path, destination: Destination) -> None:
    staged = stage(destination)
    write(staged, 0, 1, 2, 3)
    staged.close()
    staged = stage(destination, Grid(30, 30))
    assert list(staged.claims.indices()) == [0]
    assert (path / ".filestreamer" / f"{KEY}.data").stat().st_size == 30
    staged.close()


def test_staging_that_is_shorter_than_it_was(path: Path, destination: Destination) -> None:
    staged = stage(destination)
    os.truncate(path / ".filestreamer" / f"{KEY}.data", 10)
    assert "shorter" in failure(Code.DESTINATION, staged.read_into, memoryview(bytearray(30)), 0)
    staged.close()


def test_one_at_a_time(path: Path, destination: Destination) -> None:
    """Another process, or another receiver in this one: BUSY, and nothing is changed."""
    first = stage(destination)
    write(first, 0)
    other = Destination(str(path))
    assert "another process" in failure(Code.BUSY, stage, other)
    write(first, 1)
    first.close()
    second = stage(other)
    assert list(second.claims.indices()) == [0, 1]
    second.close()
    os.close(other.fd)


def test_different_names_at_once(destination: Destination) -> None:
    first = stage(destination)
    second = destination.stage(b"g", ENTRY._replace(path=b"g"), GRID, 0)
    first.close()
    second.close()


def test_what_holds_nothing_is_not_left_behind(path: Path, destination: Destination) -> None:
    """Where staging can't begin, the directory is as before."""
    assert "no space" in failure(Code.NO_SPACE, stage, destination, GRID, ENTRY, 1 << 62)
    (path / "f").mkdir()
    failure(Code.DESTINATION, stage, destination)
    assert os.listdir(path) == ["f"]


def test_no_space_leaves_what_an_earlier_run_brought(destination: Destination) -> None:
    """Also where it was refused on another chunk size: an offer that comes to nothing costs no resuming."""
    staged = stage(destination)
    write(staged, 0)
    staged.close()
    failure(Code.NO_SPACE, stage, destination, Grid(len(CONTENT), 50), ENTRY, 1 << 62)
    staged = stage(destination)
    assert list(staged.claims.indices()) == [0]
    staged.close()


def test_what_is_there_needs_no_space_again(path: Path, destination: Destination) -> None:
    """A staged file that is written in part needs only the rest."""
    size = 1 << 20
    grid = Grid(size, size)
    staged = stage(destination, grid)
    staged.write(memoryview(bytes(range(256)) * (size // 256)), 0)
    staged.record([(0, bytes(16))])
    os.fsync(staged.fd)
    staged.close()
    staged = stage(destination, grid, reserved_bytes=destination.free_bytes())
    staged.close()


@pytest.mark.parametrize("suffix", [".data", ".ledger"])
def test_staged_files_that_are_symlinks(path: Path, destination: Destination, suffix: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"outside")
    (path / ".filestreamer").mkdir()
    (path / ".filestreamer" / f"{KEY}{suffix}").symlink_to(outside)
    failure(Code.DESTINATION, stage, destination)
    assert outside.read_bytes() == b"outside"


@pytest.mark.parametrize("suffix", [".data", ".ledger"])
def test_staged_files_that_are_no_files(path: Path, destination: Destination, suffix: str) -> None:
    (path / ".filestreamer").mkdir()
    (path / ".filestreamer" / f"{KEY}{suffix}").mkdir()
    failure(Code.DESTINATION, stage, destination)


def test_a_staging_directory_that_is_a_symlink(path: Path, destination: Destination, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (path / ".filestreamer").symlink_to(tmp_path / "outside")
    failure(Code.DESTINATION, stage, destination)
    assert os.listdir(tmp_path / "outside") == []


def test_every_descriptor_is_released(destination: Destination, path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    staged = stage(destination)
    staged.close()
    staged.close()
    staged = stage(destination)
    write(staged, 0)
    staged.commit()
    staged.close()
    failure(Code.NO_SPACE, stage, destination, GRID, ENTRY, 1 << 62)
    (path / "f").unlink()
    (path / "f").mkdir()
    failure(Code.DESTINATION, stage, destination)
    assert before == len(os.listdir("/proc/self/fd"))


# --------------------------------------------------------------------------------------------------------------- commit


def test_commit(path: Path, destination: Destination) -> None:
    """The file under its name with mode and mtime, without setuid; nothing else is left."""
    staged = stage(destination)
    write(staged, 0, 1, 2, 3)
    assert not (path / "f").exists()
    staged.commit()
    staged.close()
    assert os.listdir(path) == ["f"]
    status = (path / "f").stat()
    assert ((path / "f").read_bytes(), status.st_mode) == (CONTENT, 0o100640)
    assert status.st_mtime_ns == ENTRY.mtime_ns


def test_commit_of_an_empty_file(path: Path, destination: Destination) -> None:
    staged = stage(destination, Grid(0, 30))
    staged.commit()
    staged.close()
    assert (path / "f").read_bytes() == b""


def test_commit_cuts_what_is_too_long(path: Path, destination: Destination) -> None:
    staged = stage(destination)
    write(staged, 0, 1, 2, 3)
    with (path / ".filestreamer" / f"{KEY}.data").open("ab") as file:
        file.write(b"left by an earlier run")
    staged.commit()
    staged.close()
    assert (path / "f").read_bytes() == CONTENT


def test_commit_replaces(path: Path, destination: Destination) -> None:
    """Another file under the name: who has the old one open keeps it. A symlink is replaced, not followed."""
    outside = path.parent / "outside"
    outside.write_bytes(b"outside")
    (path / "f").symlink_to(outside)
    staged = stage(destination)
    write(staged, 0, 1, 2, 3)
    staged.commit()
    staged.close()
    assert stat.S_ISREG((path / "f").lstat().st_mode)
    assert ((path / "f").read_bytes(), outside.read_bytes()) == (CONTENT, b"outside")


def test_existing_file_where_nothing_may_be_replaced(path: Path) -> None:
    (path / "f").write_bytes(b"old")
    destination = Destination(str(path), replace=False)
    assert "--no-replace" in failure(Code.EXISTS, stage, destination)
    assert ((path / "f").read_bytes(), os.listdir(path)) == (b"old", ["f"])
    os.close(destination.fd)


def test_a_dangling_symlink_exists_too(path: Path) -> None:
    (path / "f").symlink_to("nowhere")
    destination = Destination(str(path), replace=False)
    failure(Code.EXISTS, stage, destination)
    os.close(destination.fd)


def test_a_file_that_appears_meanwhile_is_not_replaced(path: Path) -> None:
    destination = Destination(str(path), replace=False)
    staged = stage(destination)
    write(staged, 0, 1, 2, 3)
    (path / "f").write_bytes(b"newer")
    assert "--no-replace" in failure(Code.EXISTS, staged.commit)
    staged.close()
    assert (path / "f").read_bytes() == b"newer"
    os.close(destination.fd)


def test_commit_without_replacing(path: Path) -> None:
    destination = Destination(str(path), replace=False)
    staged = stage(destination)
    write(staged, 0, 1, 2, 3)
    staged.commit()
    staged.close()
    assert ((path / "f").read_bytes(), os.listdir(path)) == (CONTENT, ["f"])
    assert (path / "f").stat().st_nlink == 1
    os.close(destination.fd)


def test_a_directory_that_appears_meanwhile(path: Path, destination: Destination) -> None:
    staged = stage(destination)
    write(staged, 0, 1, 2, 3)
    (path / "f").mkdir()
    failure(Code.DESTINATION, staged.commit)
    staged.close()
    staged = Destination(str(path)).stage(b"g", ENTRY, GRID, 0)
    staged.close()


def test_the_same_name_again_after_a_commit(path: Path, destination: Destination) -> None:
    """Nothing of the first run is claimed: its bytes are under the final name, not in staging."""
    for round_ in range(2):
        staged = stage(destination)
        assert staged.claims.claimed == 0
        write(staged, *range(4))
        staged.commit()
        staged.close()
        assert (path / "f").read_bytes() == CONTENT, round_


@pytest.mark.parametrize("crash_after", ["rename", "unlink of the data"])
def test_a_crash_after_the_rename(path: Path, destination: Destination, crash_after: str) -> None:
    """The ledger is still there without its data: the next run begins anew, and the final file stays."""
    staged = stage(destination)
    write(staged, *range(4))
    data = path / ".filestreamer" / f"{KEY}.data"
    if crash_after == "rename":
        data.rename(path / "f")
    else:
        os.link(data, path / "f")
        data.unlink()
    staged.close()
    staged = stage(destination)
    assert staged.claims.claimed == 0
    assert (path / "f").read_bytes() == CONTENT
    staged.close()


def test_a_crash_between_link_and_unlink(path: Path) -> None:
    """With --no-replace: the next run says EXISTS, and does not write into what is final already."""
    destination = Destination(str(path), replace=False)
    staged = stage(destination)
    write(staged, *range(4))
    os.link(path / ".filestreamer" / f"{KEY}.data", path / "f")
    staged.close()
    failure(Code.EXISTS, stage, destination)
    assert (path / "f").read_bytes() == CONTENT
    os.close(destination.fd)


def test_staged_data_that_is_also_a_final_file_is_not_written_into(path: Path, destination: Destination) -> None:
    """The same crash, and then a receiver that may replace: the final file is never partial, so it is not touched."""
    staged = stage(destination)
    write(staged, *range(4))
    os.link(path / ".filestreamer" / f"{KEY}.data", path / "f")
    staged.close()
    staged = stage(destination)
    staged.write(memoryview(b"x" * 30), 0)
    assert (path / "f").read_bytes() == CONTENT
    staged.close()


def test_discard(path: Path, destination: Destination) -> None:
    staged = stage(destination)
    write(staged, 0)
    staged.discard()
    staged.close()
    assert os.listdir(path) == []


def test_tidy_keeps_what_is_not_empty(path: Path, destination: Destination) -> None:
    staged = stage(destination)
    write(staged, 0)
    staged.close()
    destination.tidy()
    assert os.listdir(path) == [".filestreamer"]


# ------------------------------------------------------------------------------------------------- the ledger's records


def records(path: Path) -> dict[int, bytes]:
    claims = ledger.decode((path / ".filestreamer" / f"{KEY}.ledger").read_bytes())
    assert claims is not None
    return {index: claims.digest(index) for index in claims.indices()}


def test_a_record_that_does_not_fit_leaves_no_part_of_it(
    path: Path, destination: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that follow, when there is space again, are read."""
    staged = stage(destination)
    write(staged, 0)
    real = os.write

    def full(fd: int, view: memoryview) -> int:
        if len(view) < ledger.RECORD_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, view[:10])

    monkeypatch.setattr(os, "write", full)
    failure(Code.NO_SPACE, staged.record, [(1, bytes(16))])
    monkeypatch.undo()
    write(staged, 2)
    staged.close()
    assert records(path).keys() == {0, 2}


def test_records_of_two_threads_do_not_run_into_each_other(
    path: Path, destination: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the kernel takes a part of one, and another thread comes in between."""
    staged = stage(destination)
    real = os.write
    other = threading.Thread(target=write, args=(staged, 1))

    def third(fd: int, view: memoryview) -> int:
        if other.ident is not None:
            return real(fd, view)
        written = real(fd, view[:10])
        other.start()
        other.join(0.2)  # it waits for its turn, or has spoilt it by then
        return written

    monkeypatch.setattr(os, "write", third)
    write(staged, 0)
    other.join()
    staged.close()
    assert records(path).keys() == {0, 1}


# -------------------------------------------------------------------------------------------------------- stale staging


def test_stale_staging_is_found_and_discarded(path: Path, destination: Destination) -> None:
    assert destination.discard_older_than(0.0, 0.0) == (0, 0)
    staged = stage(destination)
    write(staged, 0)
    staged.close()
    now = max(file.stat().st_mtime for file in (path / ".filestreamer").iterdir())
    assert destination.discard_older_than(None, now + 1000) == (0, 1)
    assert destination.discard_older_than(100.0, now + 50) == (0, 1)
    assert destination.discard_older_than(100.0, now + 150) == (1, 0)
    assert os.listdir(path) == []


def test_stale_staging_that_is_in_use_stays(path: Path, destination: Destination) -> None:
    staged = stage(destination)
    write(staged, 0)
    assert destination.discard_older_than(0.0, 1 << 40) == (0, 1)
    write(staged, 1)
    staged.close()
    assert len(os.listdir(path / ".filestreamer")) == 2


def test_the_token_is_no_staging(path: Path, destination: Destination) -> None:
    os.close(destination.staging(create=True))
    (path / ".filestreamer" / "token").write_text("x" * 20)
    assert destination.discard_older_than(0.0, 1 << 40) == (0, 0)
    assert os.listdir(path / ".filestreamer") == ["token"]


# --------------------------------------------------------------------------------------------------------------- space


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def staged_data(path: Path) -> Path:
    return path / ".filestreamer" / f"{KEY}.data"


def never() -> bool:
    return False


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have space be denied with this errno."""

    def fail(number: int) -> None:
        def fallocate(*_: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(reserve, "fallocate", fallocate)

    return fail


def test_space_is_taken_for_all_of_a_file_but_its_holes(destination: Destination, path: Path) -> None:
    grid = Grid(8 << 20, 1 << 20)
    staged = stage(destination, grid)
    staged.reserve(never)
    assert allocated(staged_data(path)) == staged.ahead_bytes == grid.size
    staged.close()
    staged = stage(destination, grid, ENTRY._replace(holes=(Hole(1 << 20, 4 << 20),)))
    staged.reserve(never)
    assert allocated(staged_data(path)) == staged.ahead_bytes == 4 << 20
    staged.close()


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS])
def test_space_that_a_file_system_can_not_take_ahead(
    destination: Destination, path: Path, failing: Callable[[int], None], number: int
) -> None:
    """It is taken when it is written, as ever."""
    failing(number)
    staged = stage(destination)
    staged.reserve(never)
    assert allocated(staged_data(path)) == staged.ahead_bytes == 0
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
    monkeypatch.setattr(reserve, "STEP_BYTES", 1 << 20)
    answers = iter([False, False, True])
    staged = stage(destination, Grid(8 << 20, 1 << 20))
    staged.reserve(lambda: next(answers))
    assert allocated(staged_data(path)) == 2 << 20
    staged.close()


def test_space_that_was_taken_ahead_counts_as_free(
    destination: Destination, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there for what is still to come of its file, and is not missing a second time."""
    monkeypatch.setattr(os, "fstatvfs", lambda _: SimpleNamespace(f_bavail=10 << 20, f_frsize=1))
    staged = stage(destination, Grid(8 << 20, 1 << 20))
    staged.reserve(never)
    assert (destination.free_bytes(), staged.taken_bytes) == (18 << 20, 0)
    staged.write(memoryview(bytes(3 << 20)), 0)
    assert (destination.free_bytes(), staged.taken_bytes) == (15 << 20, 3 << 20)
    staged.close()
    assert destination.free_bytes() == 10 << 20


MIB = 1 << 20
LARGE = Grid(64 * MIB, MIB)


def fill(staged: Staging, *indices: int) -> None:
    """Write segments of LARGE, each of another byte, and say so in the ledger."""
    for index in indices:
        block = bytes([index + 1]) * MIB
        staged.write(memoryview(block), index * MIB)
        staged.record([(index, segment_digest(block))])


def filled(path: Path, index: int) -> bool:
    with path.open("rb") as file:
        return bytes([index + 1]) * MIB == os.pread(file.fileno(), MIB, index * MIB)


def taken(path: Path) -> int:
    """Count the bytes that a file takes on the disk, without what the file system needs to find them."""
    return allocated(path) // MIB * MIB


def kill(staged: Staging) -> None:
    """Leave staging as a process that is killed does: the lock is gone, and nothing was cleaned up."""
    while staged._fds:
        os.close(staged._fds.pop())
    staged._destination.staged.discard(staged)


def free(staged: Staging, *indices: int) -> None:
    staged.give_back([(index * MIB, (index + 1) * MIB) for index in indices], (min(indices)) * MIB)


def test_what_may_be_taken_ahead_grows_with_what_has_come(
    destination: Destination, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fixed amount over all files, and beyond that as much again as was written of each."""
    monkeypatch.setattr(reserve, "STEP_BYTES", 2 * MIB)
    monkeypatch.setattr(reserve, "GRAIN_BYTES", MIB)
    monkeypatch.setattr(reserve, "AHEAD_BYTES", 8 * MIB)
    first = stage(destination, LARGE)
    assert not first.reserve(never)
    assert taken(staged_data(path)) == 8 * MIB
    second = destination.stage(b"g", ENTRY._replace(size=LARGE.size), LARGE, 0)
    assert not second.reserve(never)
    assert second.ahead_bytes == 0, "one peer's bytes were lent already"
    fill(first, *range(10))
    assert not first.reserve(never)
    assert taken(staged_data(path)) == 20 * MIB
    fill(second, 0)
    assert not second.reserve(never)
    assert second.ahead_bytes == MIB
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

    monkeypatch.setattr(reserve, "punch", punch)
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


def test_a_receiver_that_was_killed(destination: Destination, path: Path) -> None:
    """What the ledger covers stays, with its age; the rest is given back, once."""
    staged = stage(destination, LARGE)
    staged.reserve(never)
    fill(staged, 1, 63)
    kill(staged)
    os.utime(staged_data(path), ns=(7, 8_000_000_000))
    assert 62 <= destination.give_back_space() / MIB < 63
    status = staged_data(path).stat()
    assert (taken(staged_data(path)), status.st_size, status.st_mtime_ns) == (2 * MIB, LARGE.size, 8_000_000_000)
    assert destination.give_back_space() == 0
    staged = stage(destination, LARGE)
    assert list(staged.claims.indices()) == [1, 63]
    assert [filled(staged_data(path), index) for index in (1, 63)] == [True, True]
    staged.close()


@pytest.mark.parametrize("damage", ["torn", "empty", "no ledger", "another size", "no data"])
def test_a_receiver_that_was_killed_and_a_damaged_ledger(destination: Destination, path: Path, damage: str) -> None:
    """It costs time: whatever is claimed after that is there."""
    staged = stage(destination, LARGE)
    staged.reserve(never)
    fill(staged, 0, 1)
    kill(staged)
    noted = path / ".filestreamer" / f"{KEY}.ledger"
    match damage:
        case "torn":
            os.truncate(noted, ledger.HEADER_BYTES + ledger.RECORD_BYTES + 3)
        case "empty":
            os.truncate(noted, 0)
        case "no ledger":
            noted.unlink()
        case "another size":
            os.truncate(staged_data(path), 80 * MIB)
        case _:
            staged_data(path).unlink()
    names = sorted(os.listdir(path / ".filestreamer"))
    destination.give_back_space()
    assert names == sorted(os.listdir(path / ".filestreamer"))
    expected = {"torn": [0], "another size": [0, 1]}.get(damage, [])
    if damage != "no data":
        assert taken(staged_data(path)) == len(expected) * MIB
    staged = stage(destination, LARGE)
    assert list(staged.claims.indices()) == expected
    assert all(filled(staged_data(path), index) for index in expected)
    staged.close()


def test_space_of_what_somebody_receives_stays(destination: Destination, path: Path) -> None:
    staged = stage(destination, LARGE)
    staged.reserve(never)
    fill(staged, 0)
    other = Destination(str(path))
    assert other.give_back_space() == 0
    assert taken(staged_data(path)) == LARGE.size
    staged.close()
    os.close(other.fd)


@pytest.mark.parametrize("trap", ["final file", "symlink", "fifo"])
def test_space_of_what_is_not_staging_alone_stays(destination: Destination, path: Path, trap: str) -> None:
    """Data that has another name, too, may be a final file after a crash; a link leads elsewhere."""
    staged = stage(destination, LARGE)
    fill(staged, *range(64))
    kill(staged)
    os.truncate(path / ".filestreamer" / f"{KEY}.ledger", ledger.HEADER_BYTES)
    os.rename(staged_data(path), path / "f")
    if trap == "final file":
        os.link(path / "f", staged_data(path))
    elif trap == "symlink":
        staged_data(path).symlink_to(path / "f")
    else:
        os.mkfifo(staged_data(path))
    assert destination.give_back_space() == 0
    assert taken(path / "f") == LARGE.size
    assert all(filled(path / "f", index) for index in range(64))


def test_a_transfer_begins_with_the_space_of_what_is_claimed_alone(destination: Destination, path: Path) -> None:
    """What was taken by one that was killed counts neither as written nor as taken."""
    staged = stage(destination, LARGE)
    staged.reserve(never)
    fill(staged, 0, 1, 2)
    kill(staged)
    staged = stage(destination, LARGE)
    assert taken(staged_data(path)) == staged.taken_bytes // MIB * MIB == 3 * MIB
    assert staged.ahead_bytes == 0
    staged.close()


def test_a_committed_file_keeps_its_bytes(destination: Destination, path: Path) -> None:
    """Whoever gives back too late, or once more, does nothing to a file that has its name."""
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
    assert staged.taken_bytes == 8000
    staged.close()


# -------------------------------------------------------------------------------------------- what is changed meanwhile


def whole(destination: Destination) -> Staging:
    """Stage a file that is all there, and what its segments hash to."""
    staged = stage(destination, Grid(8 * MIB, MIB))
    fill(staged, *range(8))
    staged.expected_digest = lambda index: segment_digest(bytes([index + 1]) * MIB)
    return staged


@pytest.mark.parametrize("length", [0, 1, 3 * MIB, 8 * MIB - 1])
@pytest.mark.parametrize("is_longer_again", [False, True], ids=["shorter", "longer again"])
def test_staging_that_was_shortened_is_not_put_in_place(
    path: Path, destination: Destination, length: int, *, is_longer_again: bool
) -> None:
    """Nor where writes at its end, or the thread that takes space, made it as long as before."""
    (path / "f").write_bytes(b"old")
    staged = whole(destination)
    os.truncate(staged_data(path), length)
    if is_longer_again and length < 8 * MIB - 4096:  # less than a block is no hole
        os.truncate(staged_data(path), 8 * MIB)
    message = failure(Code.DESTINATION, staged.commit)
    assert str(path / "f") in message
    assert "changed" in message
    assert staged.is_lost
    staged.close()
    assert (path / "f").read_bytes() == b"old"


def test_a_file_of_a_tree_that_was_shortened(path: Path, destination: Destination) -> None:
    staged = whole(destination)
    os.truncate(staged_data(path), 5 * MIB)
    staged.prepare()
    assert "changed" in failure(Code.DESTINATION, staged.kept)
    staged.close()
    assert not (path / "f").exists()


def test_zeros_that_the_disk_does_not_keep_are_no_damage(path: Path, destination: Destination) -> None:
    """A file system may have a hole where zeros were written: what counts is what is read."""
    staged = stage(destination, Grid(8 * MIB, MIB))
    staged.expected_digest = lambda _: segment_digest(bytes(MIB))
    staged.commit()
    staged.close()
    assert (path / "f").read_bytes() == bytes(8 * MIB)


def test_holes_of_a_file_are_no_damage(path: Path, destination: Destination) -> None:
    holes = (Hole(0, MIB), Hole(2 * MIB + 5, 3 * MIB), Hole(7 * MIB, MIB))
    staged = stage(destination, Grid(8 * MIB, MIB), ENTRY._replace(holes=holes))
    content = bytearray(b"x" * 8 * MIB)
    for offset, length in holes:
        content[offset : offset + length] = bytes(length)
    staged.write(memoryview(content), 0)
    staged.commit()
    staged.close()
    assert (path / "f").read_bytes() == content


def test_a_stream_that_was_shortened(path: Path, destination: Destination) -> None:
    """It is noticed by the next bytes: they would make it long enough again."""
    staged = stage(destination, Grid(0, MIB))
    staged.append(memoryview(CONTENT), 0)
    os.truncate(staged_data(path), 3)
    assert "changed" in failure(Code.DESTINATION, staged.append, memoryview(CONTENT), len(CONTENT))
    staged.close()


# -------------------------------------------------------------------------------------------------- whose staging it is


@pytest.fixture
def usurper(destination: Destination, path: Path) -> Iterator[tuple[Staging, Staging]]:
    """Return a staging whose files somebody removed, and that of another process which began again."""
    first = stage(destination)
    write(first, 0, 1, 2, 3)
    for name in os.listdir(path / ".filestreamer"):
        (path / ".filestreamer" / name).unlink()
    other = Destination(str(path))
    second = stage(other)
    write(second, 0, 1)
    yield first, second
    first.close()
    second.close()
    os.close(other.fd)


@pytest.mark.parametrize("act", ["discard", "close", "commit", "put", "give_back"])
def test_who_lost_its_staging_leaves_another_ones_alone(
    path: Path, usurper: tuple[Staging, Staging], destination: Destination, act: str
) -> None:
    first, second = usurper
    match act:
        case "commit":
            failure(Code.DESTINATION, first.commit)
        case "put":
            failure(Code.DESTINATION, first.kept)
        case "give_back":
            first.give_back([(0, len(CONTENT))], 0)
        case _:
            getattr(first, act)()
    first.close()
    write(second, 2, 3)
    second.commit()
    assert (path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("missing", [".data", ".ledger"])
def test_who_lost_half_of_its_staging(path: Path, destination: Destination, missing: str) -> None:
    """It may share the other half with a process that began again: it puts nothing in place."""
    first = stage(destination)
    write(first, 0, 1, 2, 3)
    (path / ".filestreamer" / f"{KEY}{missing}").unlink()
    failure(Code.DESTINATION, first.commit)
    first.close()
    assert not (path / "f").exists()


@pytest.mark.parametrize("suffix", [".data", ".ledger"])
def test_a_second_name_is_no_reason_to_take_a_staging_away(
    path: Path, destination: Destination, tmp_path: Path, suffix: str
) -> None:
    """A backup of hard links is made of it, then another process comes: BUSY, and the first one completes."""
    first = stage(destination)
    write(first, 0)
    os.link(path / ".filestreamer" / f"{KEY}{suffix}", tmp_path / "backup")
    other = Destination(str(path))
    assert "another process" in failure(Code.BUSY, stage, other)
    os.close(other.fd)
    write(first, 1, 2, 3)
    first.commit()
    first.close()
    assert (path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("is_locked", [False, True])
def test_a_ledger_that_is_in_use_is_not_dropped(path: Path, destination: Destination, *, is_locked: bool) -> None:
    """Neither one that has its data, nor one that another process has just begun."""
    staged = stage(destination)
    write(staged, 0)
    if is_locked:
        staged_data(path).unlink()
    else:
        staged.close()
    destination.drop_ledger(NAME)
    assert (path / ".filestreamer" / f"{KEY}.ledger").exists()
    staged.close()


def test_staging_that_is_begun_anew_while_the_old_is_discarded(
    path: Path, destination: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock comes a moment after another process has removed what it locks, and made it anew."""
    staged = stage(destination)
    write(staged, 0)
    staged.close()
    other = Destination(str(path))
    news: list[Staging] = []
    real = fcntl.flock

    def flock(fd: int, how: int) -> None:
        monkeypatch.undo()
        for name in os.listdir(path / ".filestreamer"):
            (path / ".filestreamer" / name).unlink()
        news.append(stage(other))
        write(news[0], 1)
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert destination.discard_older_than(0.0, 1 << 40) == (0, 1)
    assert len(os.listdir(path / ".filestreamer")) == 2
    news[0].close()
    again = stage(destination)
    assert list(again.claims.indices()) == [1]
    again.close()
    os.close(other.fd)


# ------------------------------------------------------------------------------------- where nothing may be replaced


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a file system without hard links."""

    def link(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)


@pytest.mark.usefixtures("no_links")
def test_commit_without_replacing_and_without_hard_links(path: Path) -> None:
    destination = Destination(str(path), replace=False)
    staged = stage(destination)
    write(staged, *range(4))
    staged.commit()
    staged.close()
    assert ((path / "f").read_bytes(), os.listdir(path)) == (CONTENT, ["f"])
    os.close(destination.fd)


@pytest.mark.usefixtures("no_links")
def test_a_file_that_appears_where_there_are_no_hard_links(path: Path) -> None:
    destination = Destination(str(path), replace=False)
    staged = stage(destination)
    write(staged, *range(4))
    (path / "f").write_bytes(b"newer")
    assert "--no-replace" in failure(Code.EXISTS, staged.commit)
    staged.close()
    assert (path / "f").read_bytes() == b"newer"
    os.close(destination.fd)


@pytest.mark.parametrize("noted", [0, 1])
def test_a_file_of_which_nothing_was_noted_keeps_no_space(destination: Destination, path: Path, noted: int) -> None:
    staged = stage(destination)
    staged.write(memoryview(CONTENT), 0)
    write(staged, *range(noted))
    staged.close()
    assert staged_data(path).exists() == bool(noted)
    assert list(stage(destination).claims.indices()) == list(range(noted))


def test_what_is_closed_writes_into_no_other_file(destination: Destination, tmp_path: Path) -> None:
    """Its descriptors' numbers may be another file's by then."""
    staged = stage(destination)
    write(staged, 0)
    before = set(os.listdir("/proc/self/fd"))
    staged.close()
    others: list[FileIO] = []
    while before - set(os.listdir("/proc/self/fd")):
        others.append(FileIO(tmp_path / f"{len(others)}", "w+"))
        others[-1].write(b"x" * (ENTRY.size + 1))
    for touch in (
        lambda: staged.write(memoryview(b"y"), 0),
        lambda: staged.record([(0, segment_digest(b"y"))]),
        staged.prepare,
        staged.kept,
        staged.commit,
    ):
        with pytest.raises((TransferFailed, OSError)):
            touch()
    staged.discard()
    staged.close()
    for other in others:
        other.seek(0)
        assert other.read() == b"x" * (ENTRY.size + 1)
        other.close()
