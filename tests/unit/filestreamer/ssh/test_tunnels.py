"""Connections through ssh, with an ssh that does what a test says: which kind is tried next, and what is left."""

import contextlib
import os
import resource
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from filestreamer.ssh import children, lines, tunnels
from filestreamer.ssh.children import Children
from filestreamer.ssh.command import Ssh
from filestreamer.ssh.remote import Remote
from filestreamer.ssh.tunnels import Tunnels
from filestreamer.wire.errors import ConnectionLost
from tests.support.services import HANG, UNIT
from tests.support.waiting import until

SESSION = "0123456789abcdef" * 2
ANSWER = lines.Answer(SESSION, "192.0.2.7", 1, b"", 7802, "m")
MARKER = lines.marker(SESSION).decode()
ECHO = f"""
sys.stdout.write({MARKER!r} + "more"); sys.stdout.flush()
while data := os.read(0, 100): os.write(1, data)
"""
PROLOGUE = """
import os, sys, time
text = " ".join(sys.argv[1:])
if "-G" in sys.argv: print(CONFIGURATION); sys.exit()
with open(CALLS, "a") as file: file.write(text + "\\n")
def fail(words): sys.stderr.write(words + "\\n"); sys.exit(255)
"""


class Log:
    """What was logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))

    debug = info


class Fake:
    """An ssh whose behaviour is a piece of Python, and the tunnels that use it."""

    def __init__(self, tmp_path: Path, body: str, configuration: str = "", control_path: str | None = "/c") -> None:
        self._calls = tmp_path / "calls"
        self._calls.touch()
        program = tmp_path / "ssh.py"
        constants = f"CALLS = {str(self._calls)!r}\nCONFIGURATION = {configuration!r}\n"
        program.write_text(constants + PROLOGUE + body)
        self.log = Log()
        self.children = Children(None)
        self.tunnels = Tunnels(
            Ssh(f"{sys.executable} -S {program}", Remote("nas", "")),
            "receiver",
            self.children,
            control_path=control_path,
            host="nas",
            log=self.log,
        )
        self.tunnels.lead_to(ANSWER, "192.0.2.1")

    @property
    def calls(self) -> list[str]:
        """The command lines so far."""
        return self._calls.read_text().splitlines()

    def open(self) -> socket.socket:
        """Open a tunnel."""
        return self.tunnels.open(UNIT, lambda _: None)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Any]:
    """Return how a Fake is made; all of its processes end with the test."""
    made: list[Fake] = []

    def make(body: str, **how: Any) -> Fake:
        made.append(Fake(tmp_path, body, **how))
        return made[0]

    yield make
    for each in made:
        each.children.close(UNIT)


def test_what_follows_the_marker_is_left(fake: Any) -> None:
    ssh = fake('sys.stdout.write("Welcome!\\n")\n' + ECHO)
    with ssh.open() as sock:
        sock.sendall(b"abc")
        sock.setblocking(True)
        assert sock.recv(7, socket.MSG_WAITALL) == b"moreabc"
    (call,) = ssh.calls
    assert "-W 192.0.2.7:7802" in call
    assert "HostName=192.0.2.1" in call
    assert "ControlPath=none" in call
    assert ssh.tunnels.shares is False


@pytest.mark.parametrize(
    ("condition", "words", "expected"),
    [
        ("'HostName' in text", "Host key verification failed.", ["HostName=192.0.2.1", "-W"]),
        (
            "'HostName' in text",
            "ssh: connect to host 192.0.2.1 port 22: Invalid argument",
            ["HostName=192.0.2.1", "-W"],
        ),
        (
            "'ControlPath=none' in text",
            "alice@nas: Permission denied (publickey,password).",
            ["HostName=192.0.2.1", "ControlPath=none", "ControlPath=/c"],
        ),
        ("'-W' in text", "channel 0: open failed: administratively prohibited: open failed", ["-W", "receiver relay"]),
        ("'-W' in text", "channel 0: open failed: connect failed: Connection refused", ["-W", "receiver relay"]),
        ("'-W' in text", "Stdio forwarding request failed: Session open refused by peer", ["-W", "receiver relay"]),
    ],
)
def test_another_kind_is_tried(fake: Any, condition: str, words: str, expected: list[str]) -> None:
    """What one has met, no other one tries again."""
    ssh = fake(f"if {condition}: fail({words!r})\n" + ECHO)
    ssh.open().close()
    assert len(ssh.calls) == len(expected)
    assert all(part in call for part, call in zip(expected, ssh.calls, strict=True))
    ssh.open().close()
    assert len(ssh.calls) == len(expected) + 1
    told = [fields["reason"] for event, fields in ssh.log.lines if event == "way"]
    assert len(told) == ("HostName" not in condition)


def test_a_relay_is_told_the_session_first(fake: Any) -> None:
    refuse = "if '-W' in text: fail('administratively prohibited')\n"
    ssh = fake(
        refuse
        + "request = sys.stdin.buffer.readline()\nassert SESSION in request.decode()\n".replace(
            "SESSION", repr(SESSION)
        )
        + ECHO
    )
    ssh.open().close()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("fail('kex_exchange_identification: Connection closed by remote host')", "Connection closed by remote host"),
        ("fail('odd \\x1b[2J')", "odd \\x1b[2J"),
        ("sys.exit(3)", "exit code 3"),
        ("os.kill(os.getpid(), 9)", "signal 9"),
        (f"print({lines.marker('f' * 32).decode()!r})", "leads to another service"),
        ("sys.stdout.write('x' * 100_000)", "prints too much"),
        ("sys.stdout.write('x\\n' * 100_000)", "prints too much"),
    ],
)
def test_what_no_other_kind_helps(fake: Any, body: str, said: str) -> None:
    ssh = fake(body)
    with pytest.raises(ConnectionLost) as caught:
        ssh.open()
    assert str(caught.value).startswith("nas, through ssh: ")
    assert said in str(caught.value)
    assert len(ssh.calls) == 1


def test_a_refusal_after_others_were_up_changes_nothing(fake: Any, tmp_path: Path) -> None:
    mark = tmp_path / "refuse"
    ssh = fake(f"if os.path.exists({str(mark)!r}): fail('Permission denied (publickey).')\n" + ECHO)
    ssh.open().close()
    mark.touch()
    with pytest.raises(ConnectionLost, match="Permission denied"):
        ssh.open()
    assert len(ssh.calls) == 2


def test_nothing_is_shared_that_is_not_there(fake: Any) -> None:
    ssh = fake("fail('Permission denied (publickey).')", control_path=None)
    with pytest.raises(ConnectionLost, match="Permission denied"):
        ssh.open()
    assert not [call for call in ssh.calls if "ControlPath=none" not in call]


def test_one_that_takes_too_long_is_ended(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnels, "OPENING_SECONDS", 0.3)
    ssh = fake("time.sleep(1000)")
    with pytest.raises(ConnectionLost, match="signal 15"):
        ssh.open()


def test_those_to_the_service_of_before_are_shut(fake: Any) -> None:
    """Who has its port by now could be in between, and the new service would let him through."""
    ssh = fake(ECHO)
    with ssh.open() as before:
        ssh.tunnels.lead_to(ANSWER._replace(tunnel_port=7803), None)
        while before.recv(100):
            pass
    with ssh.open() as after:
        after.sendall(b"abc")
        after.setblocking(True)
        assert after.recv(7, socket.MSG_WAITALL) == b"moreabc"
    assert "-W 192.0.2.7:7803" in ssh.calls[-1]


def test_one_that_does_not_end_by_itself(fake: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As `ssh -W`, where bytes were on the way to this side when it closed the connection."""
    monkeypatch.setattr(children, "USELESS_SECONDS", 0.1)
    ended = tmp_path / "ended"
    marks = f"import signal\nsignal.signal(15, lambda *_: (open({str(ended)!r}, 'w').close(), os._exit(0)))\n"
    ssh = fake(marks + f"sys.stdout.write({MARKER!r}); sys.stdout.flush()\nwhile True: time.sleep(1000)\n")
    with ssh.open(), ssh.open():
        assert not ended.exists()
    until(ended.exists, "it is ended")


@pytest.mark.parametrize("free", range(9))
def test_few_descriptors_are_left(fake: Any, free: int) -> None:
    """There may be more later: that is no bug, whatever needs one."""
    ssh = fake(ECHO)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(open(os.devnull)) for _ in range(20)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1].fileno() + 1, hard))
        try:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(stack.enter_context(open(os.devnull)))
            for file in taken[:free]:
                file.close()
            with contextlib.suppress(ConnectionLost):
                ssh.open().close()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_one_that_waits_for_an_answer(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the ssh to a jump host may, which does not know that it must not ask."""
    monkeypatch.setattr(tunnels, "OPENING_SECONDS", 2.0)
    ssh = fake("if 'ControlPath=none' in text: time.sleep(1000)\n" + ECHO)
    ssh.open().close()
    assert ssh.tunnels.shares
    assert [fields["reason"] for event, fields in ssh.log.lines if event == "way"] == [
        "further logins would need your answer: all connections share the one of the first login"
    ]


def test_four_are_opened_at_once_and_each_can_be_shut(fake: Any) -> None:
    """The others wait; a thread that shuts the socket of one ends its wait."""
    ssh = fake("time.sleep(1000)")
    sockets: list[socket.socket] = []
    failed = []

    def open_one() -> None:
        with contextlib.suppress(ConnectionLost):
            ssh.tunnels.open(UNIT, sockets.append)
        failed.append(1)

    threads = [threading.Thread(target=open_one) for _ in range(10)]
    for thread in threads:
        thread.start()
    while len(sockets) < 10 or len(ssh.calls) < 4:
        pass
    assert len(ssh.calls) == 4
    for sock in sockets:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join(HANG)
    assert len(failed) == 10
