"""The near side's view of the far side: what it needs on this machine."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from filestreamer.ssh import far_side, lines
from filestreamer.ssh.command import Ssh
from filestreamer.ssh.remote import Remote
from filestreamer.wire.errors import Code, ConnectionLost, TransferFailed
from filestreamer.wire.progress_clock import Patience
from filestreamer.wire.sockets.addresses import Address
from tests.support.services import UNIT
from tests.support.waiting import until


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


def test_nothing_is_shared_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container whose root is read-only may have no directory for temporary files: each connection logs in then."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc"])
    assert far_side._make_directory() is None


ANSWERING = f"""
import sys
if "-G" in sys.argv: sys.exit(1)
sys.stdin.readline()
print({lines.answer(lines.Answer("s", "192.0.2.7", 1, b"", 2, "m")).decode()!r}, flush=True)
sys.stdin.read()
"""


def start(tmp_path: Path, body: str) -> far_side.FarSide:
    """Return a far side whose ssh is a piece of Python."""
    program = tmp_path / "ssh.py"
    program.write_text(body)
    ssh = f"{sys.executable} -S {program}"
    patience = Patience(UNIT, UNIT)
    asked = far_side.Start(
        Remote("nas", ""),
        "receiver",
        {},
        ssh,
        "receiver",
        "ssh",
        tls=True,
        give_up_after=None,
        patience=patience,
        log_level="info",
    )
    return far_side.FarSide(asked, Mock())


def test_an_error_in_the_middle_of_a_login_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: Path
) -> None:
    """As where no thread can be started: that is what the user is told."""
    monkeypatch.setattr(tempfile, "tempdir", str(place))

    def fail(_thread: object, what: str) -> None:
        raise TransferFailed(Code.LIMIT, f"{what}: no thread")

    made = start(tmp_path, ANSWERING)
    monkeypatch.setattr(far_side, "start_thread", fail)
    with pytest.raises(TransferFailed, match="keeping the far side: no thread"):
        made.log_in()
    made.end()
    assert not os.listdir(place)


@pytest.mark.parametrize("steady_seconds", [UNIT, -1.0])
def test_a_login_that_does_not_last_is_not_made_anew_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: Path, steady_seconds: float
) -> None:
    """Nor does a far side that answers, and ends at once, have this side log in as fast as it can."""
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setattr(far_side, "STEADY_SECONDS", steady_seconds)
    pauses: list[int] = []

    class Pauses:
        def __init__(self) -> None:
            self._count = 0

        def next(self) -> float:
            pauses.append(self._count)
            self._count += 1
            return 0.01

        def reset(self) -> None:
            self._count = 0

    monkeypatch.setattr(far_side, "Backoff", Pauses)
    held = f"if 'BatchMode=yes' in sys.argv: print({lines.held('s').decode()!r}); sys.exit(1)\n"
    made = start(tmp_path, ANSWERING.replace("sys.stdin.readline()\n", f"sys.stdin.readline()\n{held}"))
    made.log_in()
    assert made._login is not None
    made._login.signal(signal.SIGKILL)
    until(lambda: len(pauses) >= 4, "it is made anew")
    made.end()
    assert pauses[:4] == ([0, 1, 2, 3] if steady_seconds > 0 else [0, 0, 0, 0])


def test_a_certificate_is_expected_of_the_service_whose_address_is_dialled() -> None:
    """A service that was started anew has another certificate: dialling the old one must not end the transfer."""
    route = far_side.FarRoute("nas:", Mock())
    services: list[tuple[lines.Answer, list[Address]]] = [
        (lines.Answer("s", "192.0.2.7", port, digest * 32, 2, "m"), [(socket.AF_INET, ("192.0.2.7", port))])
        for port, digest in ((1, b"a"), (2, b"b"))
    ]
    begun = []
    for answer, addresses in services:
        route.lead(answer, addresses, is_direct=True)
        begun.append(route.attempts(1.0, Mock()))
    assert [each.pins for each in begun] == [(b"a" * 32,), (b"b" * 32,)]
    assert route.attempts(1.0, Mock(), services[1][1]).pins == (b"b" * 32,)
    with pytest.raises(ConnectionLost, match="started anew"):
        route.attempts(1.0, Mock(), services[0][1])
