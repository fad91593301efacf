"""Services that begin where their imports have ended: forked from a process that has imported their modules once.

The interpreter's start and the imports take most of the CPU time of a small transfer, and the tests run thousands. A
forked service runs the same `main`, with arguments, environment, standard output and standard error of its own.
`Service` forks where nothing else is asked for: a service that runs under another command, from another directory, with
other streams or in another environment of the interpreter starts as it does at a user's, and so does each with
TEST_FORK=off. What a forked service can't show is how it was started: its command line is the server's, and a trap for
imports catches nothing. A test of that says `program=fresh(COMMAND)`.

1. `of` starts `python -P -m tests.support.fork_server COMMAND` once and keeps a socket to it;
2. `ForkServer.start` sends what the service gets, and the server forks;
3. the server stays the parent, and tells how the service has ended when it is asked: till then, no other process gets
   its number.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

IMPORTED: Final[Mapping[str, Sequence[str]]] = {
    "sender": (
        "filestreamer.settings.own_token",
        "filestreamer.telemetry.report",
        "filestreamer.terminal.display",
        "filestreamer.wire.auth",
        "sender.__main__",
        "sender.push",
        "structlog",
    ),
    "receiver": (
        "filestreamer.credentials.certificate",
        "filestreamer.listening.listeners",
        "filestreamer.settings.own_token",
        "filestreamer.telemetry.report",
        "filestreamer.terminal.display",
        "filestreamer.wire.auth",
        "receiver.__main__",
        "receiver.pipe.standard_output",
        "receiver.server.server",
        "receiver.server.token",
        "receiver.settings",
        "receiver.tree.tree_target",
        "structlog",
    ),
}
"""What a transfer of each service imports anyway; what only some import, such as TLS, they import themselves."""

_LENGTH: Final = struct.Struct("!I")


class Forked:
    """A forked service, with the methods of a Popen that tests use."""

    def __init__(self, server: "ForkServer", pid: int) -> None:
        self.pid = pid
        self._server = server
        self._descriptor = os.pidfd_open(pid)  # readable when the process has ended
        self._lock = threading.Lock()  # protects _exit_code, and _descriptor from being closed while it is used
        self._exit_code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code (-N where signal N ended it), None while it runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit code. Raises subprocess.TimeoutExpired."""
        code = self._ended(timeout)
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, to nobody where it has ended."""
        with self._lock:
            if self._exit_code is None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._descriptor, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def _ended(self, timeout: float | None) -> int | None:
        with self._lock:
            if self._exit_code is None:
                poll = select.poll()
                poll.register(self._descriptor, select.POLLIN)
                if poll.poll(None if timeout is None else timeout * 1000):
                    self._exit_code = self._server.exit_code(self.pid)
                    os.close(self._descriptor)
            return self._exit_code


class ForkServer:
    """The process from which services of one command are forked."""

    def __init__(self, command: str) -> None:
        """Start it. It ends when this process does."""
        self._started_in = _place(os.environ)
        self._lock = threading.Lock()  # keeps what two threads ask for apart
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                (sys.executable, "-P", "-m", "tests.support.fork_server", command, str(theirs.fileno())),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )

    def can_start(self, environment: Mapping[str, str]) -> bool:
        """Return whether the interpreter of a service with this environment would start as the server's did."""
        return _place(environment) == self._started_in

    def start(self, args: Sequence[str], environment: Mapping[str, str], out: int, err: int) -> Forked:
        """Fork a service; `out` and `err` are its standard output and standard error."""
        return Forked(self, self._ask({"args": args, "environment": environment}, out, err))

    def exit_code(self, pid: int) -> int:
        """Return how a service has ended that has; once."""
        return os.waitstatus_to_exitcode(self._ask({"pid": pid}))

    def _ask(self, wanted: Mapping[str, Any], *descriptors: int) -> int:
        with self._lock:
            _send(self._socket, wanted, *descriptors)
            answer, _ = _receive(self._socket)
        assert isinstance(answer, int), "the server of forked services has ended"
        return answer


_servers: dict[str, ForkServer] = {}
_starting = threading.Lock()  # protects _servers


def of(command: str) -> ForkServer:
    """Return the server of a command, which is started for the first who asks."""
    with _starting:
        if command not in _servers:
            _servers[command] = ForkServer(command)
        return _servers[command]


def _place(environment: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return where an interpreter starts: the working directory, and the variables that not only services read."""
    of_services = ("FILESTREAMER_", "PYTEST_", "XDG_RUNTIME_DIR")
    return os.getcwd(), {name: value for name, value in environment.items() if not name.startswith(of_services)}


def _send(sock: socket.socket, message: object, *descriptors: int) -> None:
    text = json.dumps(message).encode()
    socket.send_fds(sock, [_LENGTH.pack(len(text))], descriptors)
    sock.sendall(text)


def _receive(sock: socket.socket) -> tuple[Any, list[int]]:
    """Return a message and its descriptors; None where the other side has ended."""
    head, descriptors, _, _ = socket.recv_fds(sock, _LENGTH.size, 2)
    if not head:
        return None, []
    (length,) = _LENGTH.unpack(head)
    return json.loads(sock.recv(length, socket.MSG_WAITALL)), descriptors


def _fork_each(sock: socket.socket, program: str) -> None:
    """Fork what is asked for till nobody asks; return in each process that was forked."""
    while True:
        wanted, descriptors = _receive(sock)
        if wanted is None:
            os._exit(0)
        if "pid" in wanted:
            _send(sock, os.waitpid(wanted["pid"], 0)[1])
            continue
        pid = os.fork()
        if not pid:
            break
        for descriptor in descriptors:
            os.close(descriptor)
        _send(sock, pid)
    sock.close()
    for standard, descriptor in enumerate(descriptors, 1):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(wanted["environment"])
    sys.argv = [program, *wanted["args"]]


if __name__ == "__main__":
    for _module in IMPORTED[sys.argv[1]]:
        importlib.import_module(_module)
    _main = importlib.import_module(f"{sys.argv[1]}.__main__")
    _fork_each(socket.socket(fileno=int(sys.argv[2])), str(_main.__file__))
    _main.main()
