"""The command lines of ssh: the user's own `ssh`, with his configuration, as far as it fits.

`ssh -G` says how the user has configured it, without a connection. Options that are not in OpenSSH 7.4, the oldest that
is in use, are passed only where `ssh -G` names them. What --ssh says itself wins: ssh takes the first value of an
option.
"""

import os
import shlex
import stat
import subprocess
from collections.abc import Mapping, Sequence
from typing import Final

from filestreamer.ssh.remote import Remote
from filestreamer.wire.errors import UsageError

ASKING_SECONDS: Final = 10.0
"""How long `ssh -G` may take; it runs the commands of `Match exec`."""
CONNECT_SECONDS: Final = 30
"""How long ssh tries to connect, unless the user's configuration says it."""
_ALWAYS: Final = (
    "RequestTTY=no",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "PermitLocalCommand=no",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=3",
)
_WHERE_NAMED: Final = {
    "remotecommand": "none",
    "sessiontype": "default",
    "stdinnull": "no",
    "forkafterauthentication": "no",
}
"""Options of newer versions that would keep the remote command from being run, or its input from reaching it."""
_TERMINAL: Final = "/dev/tty"


def can_ask(environ: Mapping[str, str]) -> bool:
    """Whether ssh can ask its user something: in a window, or on the terminal of this process. That may take any time.

    A cron job or a service has neither.
    """
    if any(environ.get(name) for name in ("SSH_ASKPASS", "DISPLAY", "WAYLAND_DISPLAY")):
        return True
    try:
        os.close(os.open(_TERMINAL, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY))
    except OSError:
        return False
    return True


class Ssh:
    """Makes the command lines of ssh for one remote machine."""

    def __init__(self, text: str, remote: Remote) -> None:
        """`text` is that of --ssh. Raises UsageError where it is no command, or no such program is there."""
        try:
            self._words = shlex.split(text)
        except ValueError as error:
            raise UsageError(f"--ssh {text!r} is not a command: {error}") from None
        if not self._words:
            raise UsageError("--ssh: it must name a command")
        self._remote = remote
        self._said = self._ask()

    @property
    def by_hand(self) -> str:
        """What a user types to log in there."""
        return shlex.join([*self._words, *self._port, self._remote.destination])

    # --- what the user has configured

    def _ask(self) -> dict[str, str]:
        """Return the configuration by lower-case keyword; nothing where the program is no OpenSSH."""
        argv = [*self._words, "-T", *self._port, "-G", "--", self._remote.destination]
        try:
            done = subprocess.run(
                argv, capture_output=True, stdin=subprocess.DEVNULL, timeout=ASKING_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return {}
        except OSError as error:
            raise UsageError(
                f"{self._words[0]} can't be started ({error.strerror}): install OpenSSH's client, or name another ssh"
                " with --ssh"
            ) from None
        if done.returncode:
            return {}
        lines = [line.partition(" ") for line in done.stdout.decode(errors="surrogateescape").splitlines()]
        return {key: value for key, _, value in reversed(lines)}

    @property
    def has_proxy(self) -> bool:
        """Whether ssh reaches the machine through another one, or through a program."""
        return any(self._said.get(key, "none") != "none" for key in ("proxyjump", "proxycommand"))

    @property
    def interface(self) -> str:
        """The interface of this machine behind a link-local address; empty where it is none."""
        return self._said.get("hostname", self._remote.host).partition("%")[2]

    @property
    def host_key_alias(self) -> str:
        """The name under which known_hosts has the key of the machine."""
        alias = self._said.get("hostkeyalias", "none")
        if alias != "none":
            return alias
        name = self._said.get("hostname", self._remote.host)
        port = self._said.get("port", "22")
        return name if port == "22" else f"[{name}]:{port}"

    @property
    def multiplexes(self) -> bool:
        """Whether the user has ssh share connections by himself."""
        path = self._said.get("controlpath", "none")
        if path == "none":
            return False
        try:
            return self._said.get("controlmaster", "false") != "false" or stat.S_ISSOCK(os.stat(path).st_mode)
        except OSError:
            return False

    # --- command lines

    def login(self, command: str, *, control_path: str | None = None, asks: bool = True) -> list[str]:
        """Return the command line that runs a remote command.

        With `control_path`, other connections may share this one by it. Unless it `asks`, ssh ends where it would ask.
        """
        options = [] if asks else ["BatchMode=yes"]
        if control_path is not None:
            options += ["ControlMaster=yes", f"ControlPath={_escaped(control_path)}", "ControlPersist=no"]
        return [*self._words, "-T", *self._options(options), *self._port, "--", self._remote.destination, command]

    def tunnel(self, host: str, port: int, *, address: str | None, control_path: str | None, shares: bool) -> list[str]:
        """Return the command line whose standard streams are a connection from there to a host and port.

        See `further` for the other arguments.
        """
        to = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return self._further(["-W", to], [], address=address, control_path=control_path, shares=shares)

    def further(self, command: str, *, address: str | None, control_path: str | None, shares: bool) -> list[str]:
        """Return the command line that runs a remote command once the user has logged in; it asks nothing.

        `address` is that of the machine to reach, whatever the name leads to by now. With `shares`, it is done over the
        connection of the login: by `control_path` or, where that is None, the user's own.
        """
        return self._further([], [command], address=address, control_path=control_path, shares=shares)

    def _further(
        self, flags: Sequence[str], rest: Sequence[str], *, address: str | None, control_path: str | None, shares: bool
    ) -> list[str]:
        options = ["BatchMode=yes", "UpdateHostKeys=no", "ControlMaster=no"]
        if not shares:
            options.append("ControlPath=none")
        elif control_path is not None:
            options.append(f"ControlPath={_escaped(control_path)}")
        if address is not None:
            options += [f"HostName={_escaped(address)}", f"HostKeyAlias={self.host_key_alias}", "CheckHostIP=no"]
        return [
            *self._words,
            "-T",
            *flags,
            *self._options(options),
            *self._port,
            "--",
            self._remote.destination,
            *rest,
        ]

    def _options(self, more: Sequence[str]) -> list[str]:
        options = [*_ALWAYS, *more]
        if self._said.get("connecttimeout", "none") == "none":
            options.append(f"ConnectTimeout={CONNECT_SECONDS}")
        if self._said.get("loglevel", "INFO") in ("QUIET", "FATAL"):
            options.append("LogLevel=ERROR")
        options += [f"{key}={value}" for key, value in _WHERE_NAMED.items() if self._said.get(key, value) != value]
        return [word for option in options for word in ("-o", option)]

    @property
    def _port(self) -> list[str]:
        return [] if self._remote.port is None else ["-p", str(self._remote.port)]


def _escaped(value: str) -> str:
    """Write the value of an option in which `%` has a meaning."""
    return value.replace("%", "%%")
