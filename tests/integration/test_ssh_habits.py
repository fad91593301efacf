"""What users have in their ssh configuration, and in the files of their login shells, on the way to the far side."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.services import HANG, Pair, Service, same
from tests.support.sshd import Sshd, sshd
from tests.support.waiting import until

CONNECT = """
import os, socket, sys, threading
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def read():
    while data := sock.recv(65536):
        os.write(1, data)
    os._exit(0)
threading.Thread(target=read).start()
while data := os.read(0, 65536):
    sock.sendall(data)
os._exit(0)
"""
"""What nc does, which has no such standard streams everywhere."""


def push(pair: Pair, far: Sshd, *args: object, size: int = 3_000_000) -> Service:
    """Send a file into a directory of the remote home."""
    to = ("--to", f"{far.host}:incoming", "--ssh", far.ssh)
    return pair.start("sender", pair.file("f", size), *to, *args)


def arrives(sender: Service, pair: Pair, far: Sshd) -> None:
    """Wait for the end: the file is there, and nobody is left."""
    sender.succeeds()
    assert same(pair.source / "f", far.home / "incoming" / "f")
    until(lambda: not far.remote(), "the far side ends")


# --------------------------------------------------------------------------------------------- what the shell prints


@pytest.mark.parametrize("via", ["direct", "ssh"])
@pytest.mark.parametrize(
    "banner",
    [b"Welcome to nas!\n", b"no end of the line", b"\x1b[31m\xff\0 red\r\n\n", b"a line of much text\n" * 1000],
    ids=["line", "no end", "bytes", "long"],
)
def test_a_shell_that_prints_something(pair: Pair, tmp_path: Path, banner: bytes, via: str) -> None:
    with sshd(tmp_path, banner=banner) as far:
        arrives(push(pair, far, "--via", via), pair, far)


@pytest.mark.parametrize("banner", [b"no end of the line", b"a line\n"])
def test_a_shell_that_prints_something_before_a_relay(pair: Pair, tmp_path: Path, banner: bytes) -> None:
    with sshd(tmp_path, banner=banner, config={"AllowTcpForwarding": "no"}) as far:
        arrives(push(pair, far, "--via", "ssh"), pair, far)


def test_a_shell_that_prints_without_end(pair: Pair, tmp_path: Path) -> None:
    """It is told where that comes from, in one line."""
    with sshd(tmp_path, banner=b"x" * 10_000_000) as far:
        sender = push(pair, far)
        assert sender.wait() == 1
        assert "standard output" in sender.result["error"]["message"]
        until(lambda: not far.remote(), "the far side ends")


def test_a_shell_that_hangs(pair: Pair, tmp_path: Path) -> None:
    """Where nobody can be asked for anything, as in a cron job, the login ends as every wait does."""
    shell = tmp_path / "hangs"
    shell.write_text("#!/bin/sh\nexec cat > /dev/null\n")
    shell.chmod(0o755)
    nobody = dict.fromkeys(("SSH_ASKPASS", "DISPLAY", "WAYLAND_DISPLAY"), "")
    with sshd(tmp_path, shell=str(shell)) as far:
        to = ("--to", f"{far.host}:incoming", "--ssh", far.ssh, "--give-up-after", 2)
        sender = pair.start("sender", pair.file("f", 1000), *to, env=nobody, under=("setsid",))
        assert sender.wait() == 1
        assert "no answer within 2 s" in sender.result["error"]["message"]


@pytest.mark.parametrize("shell", ["dash", "bash", "zsh", "fish", "tcsh", "busybox sh"])
def test_login_shells(pair: Pair, tmp_path: Path, shell: str) -> None:
    program, *applet = shell.split()
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    for name in applet:  # it is called by that name
        named = tmp_path / name
        named.symlink_to(path)
        path = str(named)
    with sshd(tmp_path, shell=path) as far:
        arrives(push(pair, far, "--via", "ssh"), pair, far)


# ------------------------------------------------------------------------------------------- the client's configuration


@pytest.mark.parametrize("via", ["direct", "ssh"])
def test_a_configuration_for_people(pair: Pair, tmp_path: Path, via: str) -> None:
    """What is set for interactive use would keep a command from being run, or its streams from being ours."""
    with sshd(tmp_path) as far:
        options: dict[str, object] = {
            "RequestTTY": "force",
            "RemoteCommand": "tmux attach",
            "LocalForward": f"{far.port} localhost:80",
            "DynamicForward": "1080",
            "ExitOnForwardFailure": "yes",
            "ForwardAgent": "yes",
            "ForwardX11": "yes",
            "PermitLocalCommand": "yes",
            "LocalCommand": f"touch {tmp_path}/run-here",
            "LogLevel": "QUIET",
            "Compression": "yes",
            "EscapeChar": "~",
            "StdinNull": "no",
            "SendEnv": "*",
            "VisualHostKey": "yes",
            "HashKnownHosts": "yes",
            "AddKeysToAgent": "yes",
        }
        far.write_config(far.block(far.host, **options))
        arrives(push(pair, far, "--via", via), pair, far)
        assert not (tmp_path / "run-here").exists()


@pytest.mark.parametrize("keyword", ["StdinNull", "ForkAfterAuthentication"])
def test_a_configuration_without_standard_input(pair: Pair, tmp_path: Path, keyword: str) -> None:
    with sshd(tmp_path) as far:
        far.write_config(far.block(far.host, **{keyword: "yes"}))
        arrives(push(pair, far, "--via", "ssh"), pair, far)


@pytest.mark.parametrize("via", ["direct", "ssh"])
@pytest.mark.parametrize("is_open", [True, False], ids=["open", "not yet"])
def test_connections_that_the_user_shares_himself(pair: Pair, tmp_path: Path, via: str, *, is_open: bool) -> None:
    """They outlive the transfer, as they are the user's."""
    # The path of a socket is short.
    with tempfile.TemporaryDirectory() as sockets, sshd(tmp_path) as far:
        shared = {"ControlMaster": "auto", "ControlPath": f"{sockets}/%C", "ControlPersist": "60"}
        far.write_config(far.block(far.host, **shared))
        if is_open:
            subprocess.run([*far.client, far.host, "true"], check=True, timeout=HANG, stderr=subprocess.DEVNULL)
        arrives(push(pair, far, "--via", via), pair, far)
        if is_open:
            assert (
                subprocess.run([*far.client, "-O", "check", far.host], check=False, capture_output=True).returncode == 0
            )


@pytest.mark.parametrize("via", ["direct", "ssh"])
def test_a_program_that_connects(pair: Pair, tmp_path: Path, via: str) -> None:
    """ProxyCommand: what ssh is connected to has no address."""
    with sshd(tmp_path) as far:
        (tmp_path / "connect.py").write_text(CONNECT)
        far.write_config(far.block(ProxyCommand=f"{sys.executable} {tmp_path}/connect.py %h %p"))
        arrives(push(pair, far, "--via", via), pair, far)


def test_a_wrapper_of_ssh(pair: Pair, tmp_path: Path) -> None:
    """--ssh names a script of the user's, which knows none of the options that only ask."""
    with sshd(tmp_path) as far:
        wrapper = tmp_path / "my ssh"
        wrapper.write_text(f'#!/bin/sh\nexec {far.ssh} "$@"\n')
        wrapper.chmod(0o755)
        to = ("--to", f"{far.host}:incoming", "--ssh", f"'{wrapper}' -o Compression=no")
        arrives(pair.start("sender", pair.file("f", 1000), *to, "--via", "ssh"), pair, far)
