"""A forked service does what a started one does: its arguments, settings, streams, signals and exit codes."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import services
from tests.support.fork_server import Forked
from tests.support.processes import descriptors
from tests.support.services import Pair, Service, fresh, same

STARTS: Mapping[str, Sequence[str]] = {"forked": (), "fresh": fresh("receiver")}


@pytest.fixture(params=STARTS)
def receiver(pair: Pair, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Service:
    """Return a receiver that listens; its directory is a setting in its environment."""
    monkeypatch.setattr(services, "FORKS", True)
    where = {"FILESTREAMER_DIRECTORY": str(pair.destination)}
    receiver = pair.start("receiver", "--listen", "127.0.0.1:0", env=where, program=STARTS[request.param])
    assert isinstance(receiver.process, Forked) == (request.param == "forked")
    receiver.wait_for("listening")
    return receiver


def test_a_transfer(pair: Pair, receiver: Service) -> None:
    file = pair.file("f", 100_000)
    pair.sender(file, pair.address(receiver)).succeeds()
    assert same(file, pair.destination / "f")
    receiver.wait_for_results()
    receiver.signal(signal.SIGTERM)
    assert receiver.wait() == 143
    assert receiver.poll() == 143


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_an_end_by_a_signal(receiver: Service, number: signal.Signals) -> None:
    assert receiver.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        receiver.process.wait(0)
    receiver.signal(number)
    assert receiver.wait() == 128 + number
    assert receiver.poll() == -number
    receiver.signal(signal.SIGTERM)  # to nobody
    receiver.end()


def test_it_has_no_descriptor_more(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "FORKS", True)
    flags = ("--listen", "127.0.0.1:0", "--directory", pair.destination)
    receivers = [pair.start("receiver", *flags, program=program) for program in STARTS.values()]
    for receiver in receivers:
        receiver.wait_for("listening")
    forked, started = (len(descriptors(receiver.process.pid)) for receiver in receivers)
    assert forked == started


def test_what_is_more_than_arguments_and_settings_is_not_forked(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "FORKS", True)
    with Path(os.devnull).open("r+b") as null:
        ways: tuple[dict[str, Any], ...] = (
            {"cwd": tmp_path},
            {"stdin": null},
            {"stdout": null},
            {"stderr": null},
            {"env": {"LC_ALL": "C"}},
        )
        for way in ways:
            assert not isinstance(pair.start("sender", "--version", **way).process, Forked)
