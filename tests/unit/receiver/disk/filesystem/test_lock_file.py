"""Files that stand for locks: one process has it, and none waits for a process that is gone."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from receiver.disk.filesystem import lock_file
from receiver.disk.filesystem.lock_file import STALE_SECONDS, LockFile
from tests.support.waiting import until


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """Return a descriptor of the directory."""
    made = os.open(tmp_path, os.O_RDONLY)
    yield made
    os.close(made)


def left(path: Path, content: str, seconds_ago: float = 0.0) -> None:
    """Leave a lock of another process."""
    path.write_text(content)
    then = time.time() - seconds_ago  # noqa: TID251 - file times
    os.utime(path, (then, then))


def test_one_at_a_time(tmp_path: Path, fd: int) -> None:
    lock = LockFile("k", fd)
    assert lock.is_held
    with pytest.raises(BlockingIOError):
        LockFile("k", fd)
    LockFile("other", fd).release()
    lock.release()
    lock.release()
    assert os.listdir(tmp_path) == []
    LockFile("k", fd).release()


def test_a_process_that_is_gone_from_this_machine(tmp_path: Path, fd: int) -> None:
    """Its lock is taken at once, and nothing of it is left."""
    code = f"import os; from receiver.disk.filesystem.lock_file import LockFile; LockFile('k', {fd}); os._exit(0)"
    subprocess.run([sys.executable, "-c", code], pass_fds=[fd], check=True)
    assert os.listdir(tmp_path) == ["k.lock"]
    lock = LockFile("k", fd)
    assert lock.is_held
    lock.release()
    assert os.listdir(tmp_path) == []


def test_a_process_with_the_number_of_one_that_is_gone(tmp_path: Path, fd: int) -> None:
    machine, pid = lock_file._machine(), os.getpid()
    left(tmp_path / "k.lock", f"{machine} {pid} 1\n")  # it began at another time
    LockFile("k", fd).release()
    left(tmp_path / "k.lock", f"{machine} {pid} {lock_file._started(pid)}\n", seconds_ago=10 * STALE_SECONDS)
    with pytest.raises(BlockingIOError):
        LockFile("k", fd)


@pytest.mark.parametrize("content", ["another-machine 0 1 1\n", "", "\xff\0"])
def test_another_machine_is_waited_for(tmp_path: Path, fd: int, content: str) -> None:
    """Whether its process lives shows only in whether it touches the lock."""
    left(tmp_path / "k.lock", content, seconds_ago=STALE_SECONDS / 2)
    with pytest.raises(BlockingIOError):
        LockFile("k", fd)
    assert os.listdir(tmp_path) == ["k.lock"]
    left(tmp_path / "k.lock", content, seconds_ago=STALE_SECONDS + 5)
    LockFile("k", fd).release()
    assert os.listdir(tmp_path) == []


def test_a_lock_is_touched_as_long_as_it_is_held(tmp_path: Path, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_file, "HEARTBEAT_SECONDS", 0.01)
    lock = LockFile("k", fd)
    os.utime(tmp_path / "k.lock", (0, 0))
    until(lambda: (tmp_path / "k.lock").stat().st_mtime > 0, "the lock is touched")
    lock.release()


def test_a_lock_that_was_taken_away(tmp_path: Path, fd: int) -> None:
    """Who was silent for too long finds out, and does not remove the lock of the other."""
    lock = LockFile("k", fd)
    (tmp_path / "k.lock").rename(tmp_path / "taken")
    assert not lock.is_held
    (tmp_path / "k.lock").write_text("another")
    assert not lock.is_held
    lock.release()
    assert (tmp_path / "k.lock").read_text() == "another"


def test_a_stale_lock_that_another_process_takes_first(
    tmp_path: Path, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it takes aside is the new lock then: it is put back."""
    left(tmp_path / "k.lock", "another-machine 0 1 1\n", seconds_ago=10 * STALE_SECONDS)
    real = LockFile._take_away

    def take_away(self: LockFile, stale: os.stat_result) -> None:
        (tmp_path / "k.lock").rename(tmp_path / "stale")
        left(tmp_path / "k.lock", "a-third-machine 0 1 1\n")
        real(self, stale)

    monkeypatch.setattr(LockFile, "_take_away", take_away)
    with pytest.raises(BlockingIOError):
        LockFile("k", fd)
    assert (tmp_path / "k.lock").read_text() == "a-third-machine 0 1 1\n"
