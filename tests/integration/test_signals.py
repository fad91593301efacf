"""How signals end the services: SIGHUP as every other one, none that was ignored, and with a result from the start."""

import contextlib
import json
import os
import pty
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.support.services import Pair, Service, same
from tests.support.waiting import until

SLOW = ("--rate-limit", "1MB", "--connections", 1, "--chunk-size", "256KiB")
SIZE = 8_000_000
FASTER = ("--rate-limit", "4MB", *SLOW[2:])
"""Where the transfer goes on to its end."""
SIDES = ("sender", "receiver")


def moving(pair: Pair, *under: str, side: str = "sender", speed: tuple[object, ...] = SLOW) -> tuple[Service, Service]:
    """Return a sender and a receiver in the middle of a transfer; that of `side` runs under a command."""
    before = {side: under}
    receiver = pair.start(
        "receiver", "--listen", "127.0.0.1:0", "--directory", pair.destination, under=before.get("receiver", ())
    )
    file = pair.file("f", SIZE)
    sender = pair.start("sender", file, "--to", pair.address(receiver), *speed, under=before.get("sender", ()))
    receiver.wait_for("transfer_started")
    return sender, receiver


def ignoring(*numbers: signal.Signals) -> tuple[str, ...]:
    """Return the command under which a service starts with these signals ignored."""
    names = " ".join(number.name.removeprefix("SIG") for number in numbers)
    return ("sh", "-c", f'trap "" {names}; exec "$0" "$@"')


def begun_with(statement: str) -> tuple[str, ...]:
    """Return the command under which a service starts in the state that a statement of Python makes."""
    return (sys.executable, "-c", f"import os, signal, sys; {statement}; os.execvp(sys.argv[1], sys.argv[1:])")


@pytest.mark.parametrize("side", SIDES)
def test_a_hangup_ends_it_in_order(pair: Pair, side: str) -> None:
    sender, receiver = moving(pair)
    ended = sender if side == "sender" else receiver
    ended.signal(signal.SIGHUP)
    assert ended.wait() == 129
    assert ended.results[-1]["status"] == "interrupted"
    if side == "sender":
        assert receiver.wait_for_results()[0]["error"]["code"] == "shutting_down"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("side", SIDES)
def test_a_signal_that_was_ignored_stays_ignored(pair: Pair, side: str, number: signal.Signals) -> None:
    sender, receiver = moving(pair, *ignoring(number), side=side, speed=FASTER)
    (sender if side == "sender" else receiver).signal(number)
    sender.succeeds()
    assert same(pair.source / "f", pair.destination / "f")
    assert receiver.poll() is None
    assert receiver.wait_for_results()[0]["status"] == "complete"


@pytest.mark.parametrize("side", SIDES)
def test_a_signal_that_was_blocked_ends_it_in_order(pair: Pair, side: str) -> None:
    """So the threads of some runtimes start programs: with most signals blocked, which outlives exec."""
    sender, receiver = moving(pair, *begun_with("signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))"), side=side)
    ended = sender if side == "sender" else receiver
    ended.signal(signal.SIGTERM)
    assert ended.wait() == 143
    assert ended.results[-1]["status"] == "interrupted"


def test_how_ssh_ended_is_known_where_the_ends_of_children_were_ignored(pair: Pair, tmp_path: Path) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/sh\necho 'ssh: connect to host nas port 22: Connection refused' >&2\nexit 255\n")
    ssh.chmod(0o755)
    under = begun_with("signal.signal(signal.SIGCHLD, signal.SIG_IGN)")
    sender = pair.start("sender", pair.file("f", 1), "--to", "nas:there", "--ssh", ssh, under=under)
    assert sender.wait() == 1
    assert (
        sender.result["error"]["message"]
        == "nas can't be reached: ssh: connect to host nas port 22: Connection refused"
    )


def test_nohup(pair: Pair) -> None:
    sender, _ = moving(pair, _found("nohup"), speed=FASTER)
    sender.signal(signal.SIGHUP)
    sender.succeeds()


def test_other_signals_still_end_what_ignores_one(pair: Pair) -> None:
    sender, _ = moving(pair, *ignoring(signal.SIGHUP, signal.SIGINT))
    sender.signal(signal.SIGHUP)
    sender.signal(signal.SIGINT)
    sender.signal(signal.SIGTERM)
    assert sender.wait() == 143
    assert sender.result["status"] == "interrupted"


@pytest.mark.parametrize(
    "numbers",
    [(signal.SIGHUP, signal.SIGHUP), (signal.SIGTERM, signal.SIGHUP), (signal.SIGHUP, signal.SIGTERM)],
    ids=["kernel and shell", "systemd", "a shell, then its session"],
)
def test_a_hangup_that_comes_with_another_signal_hurries_nobody(
    pair: Pair, numbers: tuple[signal.Signals, ...]
) -> None:
    """They come at once: the second one must not cut the orderly end short."""
    sender, receiver = moving(pair)
    sender.signal(signal.SIGSTOP)  # so that both are pending when it goes on
    for number in numbers:
        sender.signal(number)
    sender.signal(signal.SIGCONT)
    assert sender.wait() in {128 + number for number in numbers}
    assert sender.result["status"] == "interrupted"
    assert receiver.wait_for_results()[0]["error"]["code"] == "shutting_down"


def test_a_terminal_that_is_closed(pair: Pair) -> None:
    """The kernel sends SIGHUP, and nothing can be written to the terminal any more."""
    receiver = pair.receiver()
    address = pair.address(receiver)
    result_file = pair.logs / "result"
    ours, theirs = pty.openpty()
    with open(theirs, "r+b", buffering=0) as terminal:
        sender = pair.start(
            "sender",
            pair.file("f", SIZE),
            *("--to", address, "--result-file", result_file, *SLOW),
            under=(_found("setsid"), "--ctty"),
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
        )
        receiver.wait_for("transfer_started")
    os.close(ours)
    assert sender.wait() == 129
    assert json.loads(result_file.read_text())["status"] == "interrupted"
    assert receiver.wait_for_results()[0]["error"]["code"] == "shutting_down"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("side", SIDES)
def test_a_signal_before_the_settings_are_read(pair: Pair, tmp_path: Path, side: str, number: signal.Signals) -> None:
    """A token is to come from a pipe into which nobody writes; there is a result nevertheless."""
    token = tmp_path / "token"
    os.mkfifo(token)
    what = [pair.file("f", 1), "--to", "127.0.0.1:1"] if side == "sender" else ["--directory", pair.destination]
    service = pair.start(side, *what, "--token-file", token)
    writers: list[int] = []
    until(lambda: _opens(token, writers), "the service opens the pipe")
    service.signal(number)
    assert service.wait() == 128 + number
    os.close(writers[0])
    assert [(result["status"], result["exit_code"]) for result in service.results] == [("interrupted", 128 + number)], (
        service.stderr
    )
    assert "Traceback" not in service.stderr


def _opens(pipe: Path, writers: list[int]) -> bool:
    """Open a pipe for writing, which succeeds once somebody reads it."""
    with contextlib.suppress(OSError):
        writers.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    return bool(writers)


def _found(name: str) -> str:
    path = shutil.which(name)
    assert path, f"the command {name} is missing"
    return path
