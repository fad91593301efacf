"""What keeps the far side up, and ends it."""

import errno
import os
import queue
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from filestreamer.ssh import leases, places
from filestreamer.ssh.leases import Leases, Streams
from filestreamer.wire.errors import FarSideFailed
from filestreamer.wire.progress_clock import Patience
from tests.support.services import HANG

SESSION = f"{os.getpid():032x}"  # several processes run tests at once


class Service:
    """The streams that ssh has given, as pipes, and how the service is ended."""

    def __init__(self, directory: str, *, is_used: bool, seconds: float = 1e6) -> None:
        stdin, self.stdin = os.pipe()
        self.stdout, stdout = os.pipe()
        self.is_used = is_used
        self.ended: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.listener = places.listen_in(directory, places.LEASE)
        self.leases = Leases(
            Streams(stdin, stdout),
            self.listener,
            is_used=lambda: self.is_used,
            end=self.ended.put,
            patience=Patience(seconds, seconds),
        )
        self.leases.start()

    def end(self) -> None:
        """Do what the end of the process does."""
        self.leases.join(HANG)
        self.leases.tell()
        self.listener.close()
        for lease in self.leases._leases.values():
            lease.close()

    def lose_ssh(self) -> None:
        """Close both streams, as sshd does when the connection is gone."""
        os.close(self.stdin)
        os.close(self.stdout)


@pytest.fixture
def serve(directory: str) -> Iterator[Callable[..., Service]]:
    """Return what makes a service; it ends with the test."""
    made: list[Service] = []

    def make(**how: Any) -> Service:
        made.append(Service(directory, **how))
        return made[-1]

    yield make
    for service in made:
        service.end()


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the directory of a session; nothing waits for long."""
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    for name in ("WAIT_SECONDS", "FIRST_WAIT_SECONDS", "TICK_SECONDS"):
        monkeypatch.setattr(leases, name, 0.1)
    path = places.make_directory(SESSION)
    yield path
    places.remove_directory(path)


def test_it_ends_with_the_near_side(serve: Callable[..., Service]) -> None:
    service = serve(is_used=True)
    os.write(service.stdin, b"whatever")
    os.close(service.stdin)
    assert service.ended.get(timeout=HANG) is None


def test_a_lost_ssh_is_no_end_while_there_is_a_connection(serve: Callable[..., Service]) -> None:
    service = serve(is_used=True)
    service.lose_ssh()
    with pytest.raises(queue.Empty):
        service.ended.get(timeout=0.5)
    service.is_used = False
    assert "did not come back" in (service.ended.get(timeout=HANG) or "")


def test_another_ssh_holds_it(serve: Callable[..., Service]) -> None:
    service = serve(is_used=False)
    lease = places.connect_to(SESSION, places.LEASE)
    stdin, near_stdin = os.pipe()
    near_stdout, stdout = os.pipe()
    service.lose_ssh()
    with pytest.raises(queue.Empty):
        service.ended.get(timeout=0.5)
    os.close(near_stdin)
    codes = list[int]()
    holder = threading.Thread(target=lambda: codes.append(leases.hold(lease, Streams(stdin, stdout))))
    holder.start()
    assert service.ended.get(timeout=HANG) is None
    service.end()
    holder.join(HANG)
    assert codes == [0]
    os.close(near_stdout)


def test_a_lease_that_is_lost_is_no_end(serve: Callable[..., Service]) -> None:
    service = serve(is_used=True)
    service.lose_ssh()
    places.connect_to(SESSION, places.LEASE).close()
    with pytest.raises(queue.Empty):
        service.ended.get(timeout=0.5)
    service.is_used = False
    assert service.ended.get(timeout=HANG)


def test_a_line_that_is_cut_says_nothing(serve: Callable[..., Service]) -> None:
    service = serve(is_used=False, seconds=0.1)
    assert "had no connection" in (service.ended.get(timeout=HANG) or "")


def test_a_lease_without_a_descriptor_costs_no_processor(
    serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits at the socket, which stays readable: the service looks again after a pause, and not at once."""
    tries, paused = queue.SimpleQueue[None](), queue.SimpleQueue[None]()

    def refuse(_listener: socket.socket) -> tuple[socket.socket, object]:
        tries.put(None)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def pause(_seconds: float) -> None:
        paused.put(None)

    monkeypatch.setattr(socket.socket, "accept", refuse)
    monkeypatch.setattr("filestreamer.wire.sockets.listen.time", SimpleNamespace(sleep=pause))
    service = serve(is_used=True)
    with places.connect_to(SESSION, places.LEASE):
        for _ in range(3):
            tries.get(timeout=HANG)
            paused.get(timeout=HANG)
    os.close(service.stdin)
    assert service.ended.get(timeout=HANG) is None


@pytest.mark.parametrize(("said", "code"), [(b"E", 0), (b"", 1)])
def test_who_holds_it_ends_with_it(said: bytes, code: int) -> None:
    """An exit code of 1 has ssh made anew: the service was killed."""
    lease, service = socket.socketpair()
    stdin, _near_stdin = os.pipe()
    _near_stdout, stdout = os.pipe()
    service.send(said)
    service.close()
    assert leases.hold(lease, Streams(stdin, stdout)) == code


def test_a_directory_that_was_left_is_made_anew(directory: str) -> None:
    (Path(directory) / "lease").touch()
    assert places.make_directory(SESSION) == directory
    assert "lease" not in os.listdir(directory)


def test_a_directory_that_others_can_look_into_is_none(directory: str) -> None:
    with places.listen_in(directory, places.RELAY):
        os.chmod(directory, 0o755)
        with pytest.raises(OSError, match="No such file"):
            places.connect_to(SESSION, places.RELAY)
        with pytest.raises(FarSideFailed, match="File exists"):
            places.make_directory(SESSION)
        os.chmod(directory, 0o700)
        places.connect_to(SESSION, places.RELAY).close()


def test_what_a_killed_service_has_left_is_removed_by_the_next_one(directory: str) -> None:
    with places.listen_in(directory, places.LEASE):
        places.sweep()
        assert os.path.exists(directory)
    other = places.make_directory("e" + SESSION[1:])
    places.sweep()
    assert not os.path.exists(directory)
    assert os.path.exists(other)  # it may be about to listen
    places.remove_directory(other)
