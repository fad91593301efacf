"""What earlier runs left: found, discarded by age, freed of space, and never while a process receives it."""

import fcntl
import os
from pathlib import Path

import pytest

from receiver.disk.destination import Destination
from receiver.disk.staging import ledger
from receiver.disk.staging.staging import Staging
from receiver.disk.staging.sweep import discard_older_than, drop_leftovers, give_back_space
from tests.support.staged_file import KEY, LARGE, MIB, NAME, fill, filled, kill, never, stage, staged_data, taken, write


def test_stale_staging_is_found_and_discarded(path: Path, destination: Destination) -> None:
    assert discard_older_than(destination, 0.0, 0.0) == (0, 0)
    staged = stage(destination)
    write(staged, 0)
    staged.close()
    now = max(file.stat().st_mtime for file in (path / ".filestreamer").iterdir())
    assert discard_older_than(destination, None, now + 1000) == (0, 1)
    assert discard_older_than(destination, 100.0, now + 50) == (0, 1)
    assert discard_older_than(destination, 100.0, now + 150) == (1, 0)
    assert os.listdir(path) == []


def test_stale_staging_that_is_in_use_stays(path: Path, destination: Destination) -> None:
    staged = stage(destination)
    write(staged, 0)
    assert discard_older_than(destination, 0.0, 1 << 40) == (0, 1)
    write(staged, 1)
    staged.close()
    assert len(os.listdir(path / ".filestreamer")) == 2


def test_what_had_a_name_for_a_moment_goes(path: Path, destination: Destination) -> None:
    """Where no file is without a name, a receiver that was killed just then has left it."""
    os.close(destination.open_staging(create=True))
    for name in ("spool-0123456789abcdef", "time-7-140737352"):
        (path / ".filestreamer" / name).touch()
    assert discard_older_than(destination, None, 0.0) == (0, 0)
    assert os.listdir(path) == []


def test_the_token_is_no_staging(path: Path, destination: Destination) -> None:
    os.close(destination.open_staging(create=True))
    (path / ".filestreamer" / "token").write_text("x" * 20)
    assert discard_older_than(destination, 0.0, 1 << 40) == (0, 0)
    assert os.listdir(path / ".filestreamer") == ["token"]


def test_a_receiver_that_was_killed(destination: Destination, path: Path) -> None:
    """What the ledger covers stays, with its age; the rest is given back, once."""
    staged = stage(destination, LARGE)
    staged.reserve(never)
    fill(staged, 1, 63)
    kill(staged)
    os.utime(staged_data(path), ns=(7, 8_000_000_000))
    assert 62 <= give_back_space(destination) / MIB < 63
    status = staged_data(path).stat()
    assert (taken(staged_data(path)), status.st_size, status.st_mtime_ns) == (2 * MIB, LARGE.size, 8_000_000_000)
    assert give_back_space(destination) == 0
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
    give_back_space(destination)
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
    assert give_back_space(other) == 0
    assert taken(staged_data(path)) == LARGE.size
    staged.close()
    other.close()


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
    assert give_back_space(destination) == 0
    assert taken(path / "f") == LARGE.size
    assert all(filled(path / "f", index) for index in range(64))


@pytest.mark.parametrize("is_locked", [False, True])
def test_a_ledger_that_is_in_use_is_not_dropped(path: Path, destination: Destination, *, is_locked: bool) -> None:
    """Neither one that has its data, nor one that another process has just begun."""
    staged = stage(destination)
    write(staged, 0)
    if is_locked:
        staged_data(path).unlink()
    else:
        staged.close()
    drop_leftovers(destination, NAME, os.stat(path))
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
    assert discard_older_than(destination, 0.0, 1 << 40) == (0, 1)
    assert len(os.listdir(path / ".filestreamer")) == 2
    news[0].close()
    again = stage(destination)
    assert list(again.claims.indices()) == [1]
    again.close()
    other.close()


def test_shares_of_one_file_go_together(path: Path, destination: Destination) -> None:
    """When nothing was added to any of them for long; no ledger covers the bytes of all, so their space stays."""
    staging = path / ".filestreamer"
    os.close(destination.open_staging(create=True))
    for name, age in (("k-v.shared", 500), ("k-v-0.ledger", 500), ("k-v-1.ledger", 100), ("k-w-0.ledger", 500)):
        (staging / name).write_bytes(b"x" * MIB)
        os.utime(staging / name, (1000 - age, 1000 - age))
    blocks = (staging / "k-v.shared").stat().st_blocks
    assert give_back_space(destination) == 0
    assert (staging / "k-v.shared").stat().st_blocks == blocks
    assert discard_older_than(destination, None, 1000) == (0, 2)
    assert discard_older_than(destination, 300.0, 1000) == (1, 1)
    with (staging / "k-v-1.ledger").open() as ledger_file:
        fcntl.flock(ledger_file, fcntl.LOCK_EX)
        assert discard_older_than(destination, 50.0, 1000) == (0, 1)
    assert sorted(os.listdir(staging)) == ["k-v-0.ledger", "k-v-1.ledger", "k-v.shared"]
    assert discard_older_than(destination, 50.0, 1000) == (1, 0)
    assert os.listdir(path) == []
