"""What the tests take for a machine behind ssh (tests/support/sshd.py) is one."""

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.support.networks import network
from tests.support.sshd import MARK, sshd
from tests.support.waiting import until


def test_a_command_runs_in_the_remote_home(tmp_path: Path) -> None:
    with sshd(tmp_path, env={"WORD": "a 'b"}) as far:
        done = far.run('echo $HOME; pwd; echo "$WORD"; echo "${SSH_CONNECTION##* 127}"; receiver --version')
        home, directory, word, connection, version = done.stdout.splitlines()
        assert (home, directory, word) == (str(far.home), str(far.home), "a 'b")
        assert connection == f".0.0.1 {far.port}"
        assert version.startswith("receiver ")
        assert done.stderr == ""
        assert far.run("exit 7").returncode == 7


def test_what_is_not_installed(tmp_path: Path) -> None:
    with sshd(tmp_path, commands={}, banner=b"Welcome!\n") as far:
        done = far.run("receiver")
        assert (done.returncode, done.stdout) == (127, "Welcome!\n")


def test_processes_are_known_at_both_ends(tmp_path: Path) -> None:
    """The one that is told nothing of the end of its login is known as well."""
    with sshd(tmp_path) as far:
        command = [*far.client, far.host, "setsid sleep 50 & echo $!; cat"]
        started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert started.stdin is not None
        assert started.stdout is not None
        sleeping = int(started.stdout.readline())
        until(lambda: far.remote("cat"), "cat runs")
        assert [found.pid for found in far.remote("sleep")] == [sleeping]
        assert far.logins()
        (ssh,) = far.clients()
        assert ssh.pid == started.pid
        ssh.signal(signal.SIGTERM)
        started.communicate()
        until(lambda: not far.logins() and not far.remote("cat"), "the login ends")
        assert [found.pid for found in far.remote()] == [sleeping]
    assert not far.remote()


def test_a_key_that_is_good_once(tmp_path: Path) -> None:
    with sshd(tmp_path, accepts_once=True, config={"PasswordAuthentication": "yes"}) as far:
        assert far.run("true").returncode == 0
        done = far.run("true")
        assert done.returncode == 255
        assert "Permission denied (publickey,password)" in done.stderr


def test_a_key_with_a_passphrase(tmp_path: Path) -> None:
    with sshd(tmp_path, passphrase="open sesame") as far:
        assert "Permission denied" in far.run("true").stderr


@pytest.mark.parametrize("allowed", ["yes", "no"])
def test_forwarding(tmp_path: Path, allowed: str) -> None:
    with sshd(tmp_path, config={"AllowTcpForwarding": allowed}) as far:
        with socket.create_server(("127.0.0.1", 0)) as server:
            to = f"127.0.0.1:{server.getsockname()[1]}"
            started = subprocess.Popen(
                [*far.client, "-W", to, far.host], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            if allowed == "yes":
                server.accept()[0].close()
            _, told = started.communicate()
        assert ("administratively prohibited" in told) == (allowed == "no")


def test_a_jump_host(tmp_path: Path) -> None:
    with sshd(tmp_path, address="127.0.0.2") as far, sshd(tmp_path, name="jump", address="127.0.0.3") as jump:
        far.write_config(far.block(ProxyJump="jump"), jump.block("jump"))
        assert far.run(f"echo ${MARK}").stdout == f"{far.mark}\n"
        assert "Accepted publickey" in jump.log


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root")
def test_in_a_namespace(tmp_path: Path) -> None:
    with network() as (here, there):
        here.set_names({"nas.test": ["10.9.0.2"]})
        where = {"address": "10.9.0.2", "port": 22, "inside": there.inside}
        with sshd(tmp_path, known=["nas.test"], **where) as far:  # type: ignore[arg-type]
            far.write_config(far.block(HostName="nas.test"))
            done = far.run("echo $SSH_CONNECTION", under=here.inside)
            assert done.stdout.startswith("10.9.0.1 "), done.stderr
            assert done.stdout.endswith(" 10.9.0.2 22\n")
