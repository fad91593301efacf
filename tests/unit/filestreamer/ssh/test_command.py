"""The command lines of ssh: what the user has configured, and what he passes, stays his."""

import sys
from pathlib import Path

import pytest

from filestreamer.ssh import command
from filestreamer.ssh.command import Ssh
from filestreamer.ssh.remote import Remote
from filestreamer.wire.errors import UsageError

NAS = Remote("nas", "x", "alice", 2222)


def fake(tmp_path: Path, said: str) -> str:
    """Return the command of an ssh that answers -G so."""
    program = tmp_path / "ssh"
    program.write_text(f'#!{sys.executable}\nimport sys\nif "-G" in sys.argv: print("""{said}""")\n')
    program.chmod(0o755)
    return f"{program} -i 'my key'"


def options(argv: list[str]) -> set[str]:
    return {argv[at + 1] for at, word in enumerate(argv) if word == "-o"}


def test_a_login(tmp_path: Path) -> None:
    ssh = Ssh(fake(tmp_path, "hostname nas"), NAS)
    argv = ssh.login("receiver serve", control_path="/tmp/a%b/c")
    assert argv[1:3] == ["-i", "my key"]
    assert argv[-5:] == ["-p", "2222", "--", "alice@nas", "receiver serve"]
    assert {"ControlMaster=yes", "ControlPath=/tmp/a%%b/c", "ClearAllForwardings=yes"} <= options(argv)
    assert "BatchMode=yes" not in options(argv)
    assert "BatchMode=yes" in options(ssh.login("receiver serve", asks=False))


def test_a_tunnel_leads_to_the_same_machine(tmp_path: Path) -> None:
    ssh = Ssh(fake(tmp_path, "hostname nas.example\nport 2222"), NAS)
    argv = ssh.tunnel("2001:db8::1", 7, address="fe80::1%eth0", control_path="/c", shares=False)
    assert argv[argv.index("-W") + 1] == "[2001:db8::1]:7"
    assert {
        "BatchMode=yes",
        "ControlPath=none",
        "HostName=fe80::1%%eth0",
        "HostKeyAlias=[nas.example]:2222",
    } <= options(argv)
    shared = options(ssh.tunnel("192.0.2.1", 7, address=None, control_path="/c", shares=True))
    assert {"ControlPath=/c", "ControlMaster=no"} <= shared
    assert not [option for option in shared if option.startswith("Host")]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("hostname nas\nport 22", "nas"),
        ("hostname nas\nport 2222", "[nas]:2222"),
        ("hostname nas\nport 2222\nhostkeyalias boxes", "boxes"),
        ("", "nas"),
    ],
)
def test_known_hosts_has_the_machine_by_its_name(tmp_path: Path, said: str, expected: str) -> None:
    assert Ssh(fake(tmp_path, said), NAS).host_key_alias == expected


def test_what_would_keep_the_command_from_being_run(tmp_path: Path) -> None:
    """Options that old versions lack are passed only where this one has them set."""
    said = "remotecommand tmux attach\nsessiontype none\nstdinnull yes\nforkafterauthentication yes\nloglevel QUIET"
    hindered = options(Ssh(fake(tmp_path, said), NAS).login("c"))
    wanted = {
        "remotecommand=none",
        "sessiontype=default",
        "stdinnull=no",
        "forkafterauthentication=no",
        "LogLevel=ERROR",
    }
    assert wanted <= hindered
    assert not wanted & options(Ssh(fake(tmp_path, "sessiontype default\nloglevel INFO"), NAS).login("c"))
    assert "ConnectTimeout=30" in options(Ssh(fake(tmp_path, "connecttimeout none"), NAS).login("c"))
    assert "ConnectTimeout=30" not in options(Ssh(fake(tmp_path, "connecttimeout 5"), NAS).login("c"))


def test_connections_that_the_user_shares_himself(tmp_path: Path) -> None:
    assert not Ssh(fake(tmp_path, "controlmaster false"), NAS).multiplexes
    assert not Ssh(fake(tmp_path, "controlmaster false\ncontrolpath /nowhere/c"), NAS).multiplexes
    assert Ssh(fake(tmp_path, "controlmaster auto\ncontrolpath /nowhere/c"), NAS).multiplexes


@pytest.mark.parametrize("text", ["", "  ", "'", "/nowhere/ssh", "/"])
def test_what_is_no_ssh(text: str) -> None:
    with pytest.raises(UsageError, match="ssh"):
        Ssh(text, NAS)


@pytest.mark.parametrize(
    ("environ", "terminal", "can"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"DISPLAY": ""}, False, False),
        ({"DISPLAY": ":0"}, False, True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, False, True),
        ({"SSH_ASKPASS": "/usr/bin/ask"}, False, True),
    ],
)
def test_whether_somebody_can_be_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environ: dict[str, str], *, terminal: bool, can: bool
) -> None:
    at = tmp_path / "tty"
    if terminal:
        at.touch()
    monkeypatch.setattr(command, "_TERMINAL", str(at))
    assert command.can_ask(environ) is can
