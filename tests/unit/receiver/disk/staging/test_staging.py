"""The staging of one file: where it is, who may open it, what a later run finds, and when nothing is left behind."""

import os
import stat
from io import FileIO
from pathlib import Path

import pytest

from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import Code, TransferFailed
from filestreamer.wire.grid import Grid
from receiver.disk.destination import Destination
from receiver.disk.staging import ledger
from receiver.disk.staging.staging import Staging
from tests.support.staged_file import CONTENT, ENTRY, GRID, KEY, failure, kill, stage, staged_data, write


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
    other.close()


def test_different_names_at_once(destination: Destination) -> None:
    first = stage(destination)
    second = Staging.open_single_file(destination, b"g", ENTRY._replace(path=b"g"), GRID, 0)
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
    size = 1 << 20
    halves = Grid(size, size // 2)
    staged = stage(destination, halves)
    staged.write(memoryview(b"x" * (size // 2)), 0)
    staged.record([(0, bytes(16))])
    staged.close()
    failure(Code.NO_SPACE, stage, destination, Grid(size, size // 4), ENTRY, 1 << 62)
    staged = stage(destination, halves)
    assert list(staged.claims.indices()) == [0]
    staged.close()


def test_what_is_there_needs_no_space_again(path: Path, destination: Destination) -> None:
    """A staged file that is written in part needs only the rest, however much others have been promised."""
    size = 1 << 20
    grid = Grid(size, size)
    staged = stage(destination, grid)
    staged.write(memoryview(bytes(range(256)) * (size // 256)), 0)
    staged.record([(0, bytes(16))])
    os.fsync(staged.fd)
    staged.close()
    staged = stage(destination, grid, reserved_bytes=destination.free_bytes() + size)
    staged.close()


@pytest.mark.parametrize("suffix", [".data", ".ledger"])
def test_staged_files_that_are_symlinks(path: Path, destination: Destination, suffix: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"outside")
    (path / ".filestreamer").mkdir()
    (path / ".filestreamer" / f"{KEY}{suffix}").symlink_to(outside)
    assert f".filestreamer/{KEY}{suffix}" in failure(Code.DESTINATION, stage, destination)
    assert outside.read_bytes() == b"outside"


@pytest.mark.parametrize("suffix", [".data", ".ledger"])
def test_staged_files_that_are_no_files(path: Path, destination: Destination, suffix: str) -> None:
    (path / ".filestreamer").mkdir()
    (path / ".filestreamer" / f"{KEY}{suffix}").mkdir()
    reason = failure(Code.DESTINATION, stage, destination)
    assert f".filestreamer/{KEY}{suffix}" in reason, "the file itself is no directory"


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


def test_discard(path: Path, destination: Destination) -> None:
    staged = stage(destination)
    write(staged, 0)
    staged.discard()
    staged.close()
    assert os.listdir(path) == []


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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_staging_that_was_given_away_before_a_crash_begins_anew(path: Path, destination: Destination) -> None:
    """The owner of a file is set before its rename: a crash between the two must not block the file for ever."""
    staged = stage(destination)
    write(staged, 0, 1, 2, 3)
    os.fchown(staged.fd, 1234, 1234)
    os.fchmod(staged.fd, 0o4755)
    kill(staged)
    again = stage(destination)
    status = os.fstat(again.fd)
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o600)
    write(again, 0, 1, 2, 3)
    again.commit()
    again.close()
    assert (path / "f").read_bytes() == CONTENT


def test_a_file_that_another_name_leads_to_keeps_its_mode(path: Path, destination: Destination) -> None:
    """A crash between link and unlink: what is staged may be in place already, and its mode is that of the user."""
    staged = stage(destination)
    write(staged, 0, 1, 2, 3)
    os.fchmod(staged.fd, 0o444)
    os.link(staged_data(path), path / "in place")
    kill(staged)
    again = stage(destination)
    write(again, 0)
    again.close()
    status = (path / "in place").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_nlink) == (0o444, 1)
