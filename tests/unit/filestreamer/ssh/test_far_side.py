"""The near side's view of the far side: what it needs on this machine."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestreamer.ssh import far_side
from filestreamer.ssh.command import Ssh
from filestreamer.ssh.remote import Remote


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a directory with a short path."""
    made = tempfile.mkdtemp(dir="/tmp")
    yield Path(made)
    shutil.rmtree(made)


@pytest.mark.parametrize(
    "name", ["t", "a-b_c.d", "a b", "it's", 'a"b', "$HOME", "${x}", "%h", "#x", "~", "a\\b", "ä", "a\n"]
)
@pytest.mark.skipif(shutil.which("ssh") is None, reason="ssh is not installed")
def test_ssh_finds_the_socket_of_a_shared_connection(monkeypatch: pytest.MonkeyPatch, place: Path, name: str) -> None:
    """Whatever the directory for temporary files is called."""
    temporary = place / name
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    directory = far_side._make_directory()
    assert directory is not None
    try:
        argv = Ssh("ssh -F /dev/null", Remote("nas", "")).login("receiver serve", control_path=f"{directory}/c")
        done = subprocess.run([argv[0], "-G", *argv[1:]], capture_output=True, text=True, check=False)
        assert f"controlpath {directory}/c" in done.stdout.splitlines(), done.stderr
        assert (os.stat(directory).st_mode & 0o777) == 0o700
    finally:
        os.rmdir(directory)
