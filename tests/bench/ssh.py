"""Who copies over ssh: each is given ssh's own configuration, an address, and a path there, and starts its far side.

The sshd has the settings that it has by itself, but for its keys, and is started before. All log in with a key, and use
the fastest cipher of ssh.
"""

import contextlib
import functools
import os
import pwd
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.bench import contestants as c

CIPHER = "aes128-gcm@openssh.com"
SEPARATION = Path("/run/sshd")
"""Where sshd gives its privileges up."""


class Login(NamedTuple):
    """What leads to the other end."""

    config: Path
    """Of ssh."""
    host: str
    port: int

    @property
    def ssh(self) -> str:
        """The command, as far as the host."""
        return f"ssh -F {self.config}"


Command = Callable[[Login, Path, Path], Sequence[object]]
"""Makes the client's command from login, source and target."""


@contextlib.contextmanager
def sshd(place: c.Place) -> Iterator[tuple[Login, c.Usage]]:
    """Run a sshd where the server is, and make keys and ssh's configuration, for the length of the block."""
    port = c.free_port()
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("host", "user"):
            make_key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{scratch}/{name}"]
            subprocess.run(make_key, check=True)
        Path(scratch, "server").write_text(
            f"Port {port}\nListenAddress {place.host}\nHostKey {scratch}/host\nPidFile none\nStrictModes no\n"
            f"AuthorizedKeysFile {scratch}/user.pub\nSubsystem sftp internal-sftp\nPermitRootLogin yes\n"
        )
        host_key = Path(scratch, "host.pub").read_text()
        Path(scratch, "known").write_text(f"[{place.host}]:{port} {host_key}")
        config = Path(scratch, "config")
        config.write_text(
            f"Port {port}\nUser {pwd.getpwuid(os.geteuid()).pw_name}\nIdentityFile {scratch}/user\nIdentitiesOnly yes\n"
            f"IdentityAgent none\nUserKnownHostsFile {scratch}/known\nGlobalKnownHostsFile /dev/null\n"
            f"UpdateHostKeys no\nBatchMode yes\nCiphers {CIPHER}\n"
        )
        SEPARATION.mkdir(exist_ok=True)
        server = [shutil.which("sshd"), "-D", "-f", f"{scratch}/server"]
        with c.serving(server, port, place, grace_seconds=c.SETTLE_SECONDS) as usage:
            yield Login(config, place.host, port), usage


def _copy(command: Command, place: c.Place, source: Path, target: Path) -> c.Run:
    with sshd(place) as (login, usage):
        seconds = c.timed(command(login, source, target), place, usage, env=c.COMPILED)
    return usage.run(seconds)


def _copy_into(command: Command, place: c.Place, source: Path, target: Path) -> c.Run:
    """Let those copy that give nothing another name: into a directory from which the copy is moved afterwards."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        run = _copy(command, place, source, Path(scratch))
        Path(scratch, source.name).rename(target)
    return run


def filestreamer(*flags: object, name: str) -> c.Contestant:
    """Return the pair: the sender with these flags starts the receiver over ssh."""

    def command(login: Login, source: Path, target: Path) -> Sequence[object]:
        remote = shlex.join([sys.executable, "-P", "-m", "receiver"])
        sent = [f"{source}/"] if source.is_dir() else [source, "--as", target.name]
        into = target if source.is_dir() else target.parent
        to = [*sent, "--to", f"{login.host}:{into}", "--ssh", login.ssh, "--remote-command", remote]
        return [sys.executable, "-P", "-m", "sender", *to, *flags]

    return c.Contestant(name, functools.partial(_copy, command), "sshd", verifies=True, is_ours=True)


def scp() -> c.Contestant:
    """Return scp."""
    return c.Contestant("scp", functools.partial(_copy, _scp), "sshd", keeps_times=False)


def rsync() -> c.Contestant:
    """Return rsync -e ssh; whole files, as there is nothing to compare with."""
    return c.Contestant("rsync -e ssh", functools.partial(_copy, _rsync), "rsync", verifies=True)


def mscp(connections: int) -> c.Contestant:
    """Return mscp, which moves parts of files over several ssh connections."""
    run = functools.partial(_copy, functools.partial(_mscp, connections))
    return c.Contestant(f"mscp -n {connections}", run, "mscp", keeps_times=False)


def bbcp(streams: int) -> c.Contestant:
    """Return bbcp, which moves over several TCP connections, in clear text."""
    run = functools.partial(_copy_into, functools.partial(_bbcp, streams))
    return c.Contestant(f"bbcp -s {streams}", run, "bbcp", keeps_times=False)


def escp(threads: int) -> c.Contestant:
    """Return EScp, which moves over several TCP connections with AES-GCM."""
    run = functools.partial(_copy_into, functools.partial(_escp, threads))
    return c.Contestant(f"EScp -t {threads}", run, "escp", verifies=True, keeps_times=False)


def _scp(login: Login, source: Path, target: Path) -> Sequence[object]:
    return ["scp", "-q", "-r", "-F", login.config, source, f"{login.host}:{target}"]


def _rsync(login: Login, source: Path, target: Path) -> Sequence[object]:
    end = "/" if source.is_dir() else ""
    return ["rsync", "-aW", "--inplace", "-e", login.ssh, f"{source}{end}", f"{login.host}:{target}{end}"]


def _mscp(connections: int, login: Login, source: Path, target: Path) -> Sequence[object]:
    flags = ["-q", "-n", connections, "-c", CIPHER, "-P", login.port]
    return ["mscp", "-F", login.config, *flags, source, f"{login.host}:{target}"]


def _bbcp(streams: int, login: Login, source: Path, target: Path) -> Sequence[object]:
    remote = f"{login.ssh} %H {shutil.which('bbcp')}"
    tree = ["-r"] if source.is_dir() else []
    return ["bbcp", "-n", "-s", streams, "-w", "2M", *tree, "-T", remote, source, f"{login.host}:{target}"]


def _escp(threads: int, login: Login, source: Path, target: Path) -> Sequence[object]:
    flags = ["-F", login.config, "-P", login.port, "-D", shutil.which("escp"), "-t", threads]
    tree = ["-r"] if source.is_dir() else []
    return ["escp", *flags, *tree, source, f"{login.host}:{target}/"]
