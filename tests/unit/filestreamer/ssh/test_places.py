"""Where the far side is."""

import contextlib
import errno
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from filestreamer.ssh import places
from filestreamer.wire.errors import FarSideFailed

CONNECTION = "192.0.2.1 50000 192.0.2.7 22"


def test_the_address_that_ssh_has_reached() -> None:
    assert places.server_address({"SSH_CONNECTION": CONNECTION}) == "192.0.2.7"
    assert places.server_address({"SSH_CONNECTION": "fe80::1%eth0 5 fe80::2%eth0 22"}) == "fe80::2%eth0"


def test_a_command_that_drops_the_environment() -> None:
    """As sudo does: the process that has started it still has it."""
    program = "import os; from filestreamer.ssh import places; print(places.server_address(os.environ))"
    done = subprocess.run(
        ["/bin/sh", "-c", f"env -u SSH_CONNECTION {sys.executable} -P -c '{program}'; true"],
        env={**os.environ, "SSH_CONNECTION": CONNECTION},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "192.0.2.7\n", done.stderr


@pytest.mark.parametrize("value", ["", "UNKNOWN", "1 2 3"])
def test_no_ssh_has_started_it(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setattr(places, "ANCESTORS_MAX", 0)
    with pytest.raises(FarSideFailed, match="SSH_CONNECTION is not set there"):
        places.server_address({"SSH_CONNECTION": value})


def test_an_address_of_another_machine() -> None:
    """As in a container that has a network of its own."""
    with pytest.raises(FarSideFailed, match="--network host"):
        places.listen_on("192.0.2.7")


@pytest.mark.parametrize("session", ["", "../../etc", "A" * 32, "f" * 31, "f" * 33, "f" * 31 + "\n"])
def test_what_is_no_session(session: str) -> None:
    with pytest.raises(FarSideFailed):
        places.path_of(session)


# ------------------------------------------------------------------------------------------------ the private directory


SESSION, OTHER = "a" * 32, "b" * 32


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a directory for temporary files, whose path is short."""
    made = tempfile.mkdtemp(dir="/tmp")
    monkeypatch.setattr(tempfile, "tempdir", made)
    yield Path(made)
    shutil.rmtree(made)


def test_what_a_killed_service_has_left_is_removed(temporary: Path) -> None:
    left, live = places.make_directory(SESSION), places.make_directory(OTHER)
    places.listen_in(left, places.LEASE).close()
    with places.listen_in(live, places.LEASE):
        places.sweep()
        assert os.listdir(temporary) == [os.path.basename(live)]


def test_a_service_of_another_machine_is_left_alone(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a network file system nobody seems to listen on the socket of another machine."""
    path = places.make_directory(SESSION)
    places.listen_in(path, places.LEASE).close()
    monkeypatch.setattr(places, "machine", lambda: "another")
    places.sweep()
    assert os.listdir(temporary) == [os.path.basename(path)]


def test_a_socket_that_is_there_listens(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the sweep of a service that starts at the same moment would take it for one that was left."""
    path, seen = places.make_directory(SESSION), []
    listen = socket.socket.listen

    class Watched(socket.socket):
        def listen(self, backlog: int = 0) -> None:
            places.sweep()
            seen.append(os.path.exists(path))
            listen(self, backlog)

    monkeypatch.setattr(socket, "socket", Watched)
    with places.listen_in(path, places.LEASE):
        places.sweep()
        assert [*seen, os.path.exists(path)] == [True, True]


def test_a_service_that_is_stopped_holds_nobody_up(temporary: Path) -> None:
    path = places.make_directory(SESSION)
    with places.listen_in(path, places.LEASE), contextlib.ExitStack() as stack:
        with contextlib.suppress(BlockingIOError):
            while True:
                stack.enter_context(places.connect_to(SESSION, places.LEASE, waits=False))
        places.sweep()
        assert os.path.exists(path)


def test_where_nothing_can_be_written_the_directory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc"])
    monkeypatch.setattr(os, "mkdir", Mock(side_effect=OSError(errno.EROFS, os.strerror(errno.EROFS))))
    with pytest.raises(FarSideFailed, match=f"can't make a private directory: /tmp/.*{SESSION}: Read-only file system"):
        places.make_directory(SESSION)


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701])
def test_a_directory_that_others_may_enter_is_not_trusted(temporary: Path, mode: int) -> None:
    path = places.make_directory(SESSION)
    with places.listen_in(path, places.LEASE):
        os.chmod(path, mode)
        with pytest.raises(FileNotFoundError):
            places.connect_to(SESSION, places.LEASE)
