"""A real sshd on loopback or in a network namespace, and the ssh that reaches it (Debian: openssh-server, -client).

with sshd(tmp_path) as far:
    pair.start("sender", file, "--to", f"{far.host}:incoming", "--ssh", far.ssh)

Configuration, keys, known hosts, log and the remote home are in one directory. Who logs in is who runs the tests; what
is run there has HOME, PATH and working directory of the test, whatever the account has. A jump host, or a name that
leads to several machines, is written with `Sshd.block` and `Sshd.write_config`. Where more than ten connections have
not logged in yet, sshd drops some, as it does anywhere (MaxStartups).
"""

import contextlib
import os
import pwd
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.support.services import HANG, held_port

HOST: Final = "far"
"""What the client's configuration calls the machine."""
MARK: Final = "TESTS_SSHD"
"""The variable by which processes are known that a sshd has started, orphans included."""
SEPARATION: Final = Path("/run/sshd")
"""An empty directory that a sshd of root must have. Debian's service makes it at each start of the machine."""


class Process(NamedTuple):
    """A process that runs."""

    pid: int
    argv: Sequence[str]

    def signal(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send it a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


class Sshd:
    """A sshd that runs, its client's configuration, and what it has started."""

    host = HOST

    def __init__(self, root: Path, address: str, port: int) -> None:
        self.address = address
        self.port = port
        self.home = root / "home"
        """The remote user's home directory."""
        self.key = root / "key"
        """The client's private key."""
        self.authorized_keys = root / "authorized_keys"
        self.known_hosts = root / "known_hosts"
        self.config = root / "ssh_config"
        """The client's configuration."""
        self.banner = root / "banner"
        """What the login shell prints to standard output before it runs a command."""
        self.root = root
        self.mark = secrets.token_hex(8)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def ssh(self) -> str:
        """The value of --ssh."""
        return shlex.join(self.client)

    @property
    def client(self) -> Sequence[str]:
        """The command ssh, as far as the host."""
        return ("ssh", "-F", str(self.config))

    @property
    def log(self) -> str:
        """What the sshd has logged so far."""
        return (self.root / "sshd.log").read_text(errors="replace")

    def block(self, host: str = HOST, **options: object) -> str:
        """Return the client's configuration for this machine, called `host`; `options` go first, and win."""
        defaults: Mapping[str, object] = {
            "HostName": self.address,
            "Port": self.port,
            "User": pwd.getpwuid(os.geteuid()).pw_name,
            "IdentityFile": self.key,
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "UserKnownHostsFile": self.known_hosts,
            "GlobalKnownHostsFile": "/dev/null",
            "UpdateHostKeys": "no",
        }
        lines = [f"  {name} {value}\n" for name, value in {**defaults, **options}.items()]
        return f"Host {host}\n" + "".join(lines)

    def write_config(self, *blocks: str) -> None:
        """Make these all that `ssh` is configured with."""
        self.config.write_text("".join(blocks))

    def run(self, command: str, *, under: Sequence[str] = (), host: str = HOST) -> "subprocess.CompletedProcess[str]":
        """Run a command there by ssh, without asking anything."""
        argv = [*under, *self.client, "-o", "BatchMode=yes", host, command]
        return subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=HANG)

    def remote(self, word: str | None = None) -> list[Process]:
        """Return what was started by logins here and still runs, with `word` as one of its own; orphans, too."""
        return [found for found in _processes(f"{MARK}={self.mark}") if word is None or word in found.argv]

    def logins(self) -> list[Process]:
        """Return the sshd's own processes, one or two for each connection, without the one that listens."""
        if self.process is None:
            return []
        servers = {found.pid: found for found in _processes() if found.argv[0].startswith("sshd")}
        below, found = {self.process.pid}, list[Process]()
        while more := [each for pid, each in servers.items() if pid not in below and _parent(pid) in below]:
            below.update(each.pid for each in more)
            found += more
        return found

    def clients(self) -> list[Process]:
        """Return the ssh processes that use this configuration."""
        return [found for found in _processes() if found.argv[0].endswith("ssh") and str(self.config) in found.argv]

    def start(self, inside: Sequence[str]) -> None:
        """Start the server, and wait until it listens."""
        command = [*inside, _program("sshd"), "-D", "-e", "-f", str(self.root / "sshd_config")]
        with (self.root / "sshd.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/")
        end = time.monotonic() + HANG
        while f"Server listening on {self.address} port {self.port}." not in self.log:
            assert self.process.poll() is None, f"sshd has ended:\n{self.log}"
            assert time.monotonic() < end, f"sshd does not listen:\n{self.log}"
            time.sleep(0.01)

    def end(self) -> None:
        """End the server, its logins, and all that these have started. Idempotent."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGSTOP)  # no login comes any more, and those that are stay its children
        while left := [*self.logins(), *self.remote(), *self.clients()]:
            for process in left:
                process.signal()
            time.sleep(0.01)  # a process that was killed is there for a moment more
        self.process.kill()
        self.process.wait()
        self.process = None


@contextlib.contextmanager
def sshd(
    root: Path,
    *,
    name: str = "sshd",
    address: str = "127.0.0.1",
    port: int | None = None,
    inside: Sequence[str] = (),
    config: Mapping[str, object] | None = None,
    match: str = "",
    banner: bytes = b"",
    commands: Mapping[str, Sequence[str]] | None = None,
    env: Mapping[str, str] | None = None,
    shell: str = "/bin/sh",
    accepts_once: bool = False,
    passphrase: str = "",
    known: Sequence[str] | None = None,
) -> Iterator[Sshd]:
    """Run a sshd with its files in `root`/`name`. Skips the test without openssh; in CI it fails.

    `config` are keywords of sshd_config that replace the fixture's, `match` is text at the end of it. `commands` are
    those in PATH there, beside the system's: by default `receiver` and `sender`, as the tests start them; {} where they
    are not installed. What is run there has `env` besides, and is run by `shell`. With `accepts_once` the key is good
    for the first login that runs a command. `known` are the names and addresses under which the client knows the host
    key, by default `address`. With a `port` the sshd listens on it, as in a namespace of its own (`inside` runs a
    command there); else on a free one.
    """
    directory = root / name
    with contextlib.ExitStack() as stack:
        held = port if port is not None else stack.enter_context(held_port(address))
        made = Sshd(directory, address, held)
        made.home.mkdir(parents=True)
        stack.callback(made.end)
        _make_keys(made, passphrase, [address] if known is None else known)
        made.banner.write_bytes(banner)
        made.write_config(made.block())
        _write_commands(directory / "bin", _services() if commands is None else commands)
        _write_login(made, shell, {**(env or {}), MARK: made.mark}, accepts_once=accepts_once)
        keywords: Mapping[str, object] = {
            "ListenAddress": f"[{address}]:{held}" if ":" in address else f"{address}:{held}",
            "HostKey": directory / "host_key",
            "AuthorizedKeysFile": made.authorized_keys,
            "ForceCommand": f"/bin/sh {shlex.quote(str(directory / 'login'))}",
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
            "PermitRootLogin": "yes",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "Subsystem": "sftp /usr/lib/openssh/sftp-server",
            "LogLevel": "VERBOSE",
            **(config or {}),
        }
        lines = [f"{keyword} {value}\n" for keyword, value in keywords.items()]
        (directory / "sshd_config").write_text("".join(lines) + match)
        if os.geteuid() == 0:
            SEPARATION.mkdir(mode=0o755, exist_ok=True)
        made.start(inside)
        yield made


def _program(name: str) -> str:
    """Return where a program of openssh is. Without it the test is skipped; in CI it fails."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        missing = f"{name} is not installed (Debian: openssh-server, openssh-client)"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    return path


def _make_keys(made: Sshd, passphrase: str, known: Sequence[str]) -> None:
    for path, secret in ((made.root / "host_key", ""), (made.key, passphrase)):
        command = [_program("ssh-keygen"), "-q", "-t", "ed25519", "-N", secret, "-C", "test", "-f", str(path)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    shutil.copy(made.key.with_suffix(".pub"), made.authorized_keys)
    host_key = (made.root / "host_key.pub").read_text()
    names = [name if made.port == 22 else f"[{name}]:{made.port}" for name in known]
    made.known_hosts.write_text("".join(f"{each} {host_key}" for each in names))


def _services() -> Mapping[str, Sequence[str]]:
    return {command: (sys.executable, "-P", "-m", command) for command in ("receiver", "sender")}


def _write_commands(directory: Path, commands: Mapping[str, Sequence[str]]) -> None:
    directory.mkdir()
    for name, argv in commands.items():
        path = directory / name
        path.write_text(f'#!/bin/sh\nexec {shlex.join(argv)} "$@"\n')
        path.chmod(0o755)


def _write_login(made: Sshd, shell: str, env: Mapping[str, str], *, accepts_once: bool) -> None:
    """Write what takes the part of the login shell."""
    variables = {**env, "HOME": str(made.home), "PATH": f"{made.root / 'bin'}:/usr/bin:/bin"}
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    lines = [
        *([f": >{shlex.quote(str(made.authorized_keys))}"] if accepts_once else []),
        *exports,
        'cd "$HOME"',
        f"cat {shlex.quote(str(made.banner))}",
        f'exec {shlex.quote(shell)} -c "$SSH_ORIGINAL_COMMAND"',
    ]
    (made.root / "login").write_text("\n".join(lines) + "\n")


def _processes(variable: str = "") -> list[Process]:
    """Return what runs on this machine, as far as this user may look, with `variable` in its environment."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended, or belongs to somebody else
            argv = Path("/proc", name, "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
            environ = Path("/proc", name, "environ").read_bytes().split(b"\0") if variable else [b""]
            if argv != [b""] and variable.encode() in environ:
                found.append(Process(int(name), [os.fsdecode(word) for word in argv]))
    return found


def _parent(pid: int) -> int:
    """Return a process's parent, 0 where there is none any more."""
    with contextlib.suppress(OSError):
        return int(Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[1])
    return 0
