"""What is left when the process ends, however that is: nothing of the guard's group, and no directory."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from filestreamer.ssh.guard import Guard
from tests.support.waiting import until

PROGRAM = """
import subprocess, sys, time
from filestreamer.ssh.guard import Guard
guard = Guard(sys.argv[1])
ignores = ["sh", "-c", "trap '' INT HUP TERM; echo; while :; do sleep 1; done"]
for _ in range(2):
    child = subprocess.Popen(ignores, stdout=subprocess.PIPE, process_group=guard.group)
    child.stdout.readline()
    print(child.pid, flush=True)
time.sleep(60)
"""


def is_there(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_killed_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """Neither processes that ignore what ends others, nor the directory of their socket."""
    directory = tmp_path / "it's a -directory"
    directory.mkdir()
    (directory / "c").touch()
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, directory], stdout=subprocess.PIPE, text=True)
    with program:
        assert program.stdout is not None
        children = [int(program.stdout.readline()) for _ in range(2)]
        assert all(map(is_there, children))
        program.send_signal(number)
    until(lambda: not any(map(is_there, children)), "the group ends")
    assert not directory.exists()


def test_an_end_in_order(tmp_path: Path) -> None:
    """Who is not of the group lives on, and so does this process."""
    (tmp_path / "d").mkdir()
    guard = Guard(str(tmp_path / "d"))
    with (
        subprocess.Popen(["sleep", "60"], process_group=guard.group) as child,
        subprocess.Popen(["sleep", "60"]) as other,
    ):
        guard.end()
        assert child.wait(10) == -signal.SIGKILL
        assert other.poll() is None
        other.kill()
    assert not (tmp_path / "d").exists()


def test_without_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f").touch()
    Guard(None).end()
    assert (tmp_path / "f").exists()
