"""The real services as processes: started, watched through their logs, ended by their own process id.

`Service` runs one command with its standard output and error in files; `wait_for` waits for a log event instead of
sleeping. What a test lasts is UNIT seconds times a factor, and every wait for something that comes ends after HANG
seconds; TEST_UNIT_SECONDS scales them all.
"""

import abc
import atexit
import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from filestreamer.settings import own_token
from tests.support import fork_server
from tests.support.fork_server import Forked

UNIT = float(os.environ.get("TEST_UNIT_SECONDS", "10"))
"""Seconds that anything on a busy machine may take which takes milliseconds on an idle one."""

HANG = 9 * UNIT
"""After so many seconds a wait fails: only what hangs takes as long. It is no bound that a service has to keep."""

PRIVATE = Path(tempfile.mkdtemp(prefix="filestreamer-tests-"))
"""Where the tests' own token lies, never the user's: what services and `RawSender` have as XDG_RUNTIME_DIR."""
atexit.register(shutil.rmtree, PRIVATE, ignore_errors=True)
own_token.make({"XDG_RUNTIME_DIR": str(PRIVATE)})

for _number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:  # the tests run in the background, or under nohup
        signal.signal(_number, signal.SIG_DFL)  # services would ignore it, too

INJECT = Path(__file__).parent / "inject"

_NUMBERS = itertools.count()
"""Of the services of this process; next() is atomic, so that threads may start services at once."""

FORKS = os.environ.get("TEST_FORK") != "off"
"""Whether services are forked where that can be (tests/support/fork_server.py)."""


def inject(call: str, how: str | float, *, nth: int = 1, path: str = "") -> Mapping[str, str]:
    """Return the environment of a service in which this happens (tests/support/inject)."""
    what = {"call": call, "nth": nth, "how": how, "path": path}
    search = os.pathsep.join(filter(None, [str(INJECT), os.environ.get("PYTHONPATH", "")]))
    return {"INJECT": json.dumps(what), "PYTHONPATH": search}


def fresh(command: str) -> tuple[str, ...]:
    """Return the `program` of a service that starts as it does at a user's, its imports included."""
    return (sys.executable, "-P", "-m", command)


def impatient(command: str, bounds: Mapping[str, float], env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return how `Pair.start` starts a service with other bounds than its own, named by module and constant."""
    program = (sys.executable, "-P", "-m", "tests.support.impatient", command)
    return {"program": program, "env": {"IMPATIENT": json.dumps(dict(bounds)), **(env or {})}}


EACH_TICK: Mapping[str, float] = {"filestreamer.wire.limits.HEARTBEAT_SECONDS": 0.5}
"""For `impatient`: a heartbeat twice a second, or with each tick of a coordinator that ticks once a second."""


def no_holes() -> Mapping[str, str]:
    """Return the environment of a service to which no file has holes: all of a sparse one is moved."""
    return inject("lseek", "EINVAL", nth=0)


class Command(abc.ABC):
    """A `sender` or `receiver` that was started, wherever it runs. Log lines and results are parsed JSON."""

    command: str
    stdout_is_taken = False
    """Whether standard output is a pipe to somebody else."""

    @property
    @abc.abstractmethod
    def stdout(self) -> str:
        """All that was written to standard output so far."""

    @property
    @abc.abstractmethod
    def stderr(self) -> str:
        """All that was written to standard error so far."""

    @abc.abstractmethod
    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""

    @abc.abstractmethod
    def wait(self, seconds: float = HANG) -> int:
        """Wait for the end; return the exit code (128+N where a signal ended it)."""

    @property
    def log(self) -> list[dict[str, Any]]:
        """The log lines so far."""
        return [line for line in self._stderr_objects() if "event" in line]

    def _stderr_objects(self) -> list[dict[str, Any]]:
        lines = self.stderr.splitlines(keepends=True)  # the last one may be written still, up to a brace in its middle
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}\n")]

    @property
    def results(self) -> list[dict[str, Any]]:
        """The result objects so far, one a transfer; on standard error where standard output is the destination."""
        if self.stdout_is_taken:
            return [line for line in self._stderr_objects() if "status" in line]
        return [json.loads(line) for line in self.stdout.splitlines(keepends=True) if line.endswith("\n")]

    @property
    def result(self) -> dict[str, Any]:
        """The one result object."""
        (result,) = self.results
        return result

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log lines of one event."""
        return [line for line in self.log if line["event"] == name]

    def times(self, event: str) -> int:
        """Return how often it happened, as its lines say: one with a `count` stands for so many."""
        return sum(line.get("count", 1) for line in self.events(event))

    def wait_for(self, event: str, *, count: int = 1, seconds: float = HANG) -> dict[str, Any]:
        """Wait until an event was logged `count` times; return that line. Fails where the process ends before."""
        end = time.monotonic() + seconds
        while True:
            code = self.poll()
            found = self.events(event)
            if len(found) >= count:
                return found[count - 1]
            assert code is None, f"{self.command} ended with {code} before {event}:\n{self.stderr}"
            assert time.monotonic() < end, f"no {event} from {self.command} within {seconds} s:\n{self.stderr}"
            time.sleep(0.01)

    def wait_for_results(self, count: int = 1, seconds: float = HANG) -> list[dict[str, Any]]:
        """Wait for so many result objects, of a service that stays (its log line comes a moment before); return all."""
        end = time.monotonic() + seconds
        while len(found := self.results) < count:
            assert time.monotonic() < end, f"no {count} results from {self.command} within {seconds} s:\n{self.stderr}"
            time.sleep(0.01)
        return found

    def succeeds(self, seconds: float = HANG) -> dict[str, Any]:
        """Wait for the end with exit 0; return the result object, which says complete and committed."""
        code = self.wait(seconds)
        assert code == 0, f"{self.command} exited with {code}:\n{self.stderr}"
        assert "Traceback" not in self.stderr
        result = self.result
        assert (result["status"], result["committed"], result["error"]) == ("complete", True, None)
        return result

    def falls_short(self, seconds: float = HANG) -> dict[str, Any]:
        """Wait for the end with exit 5; return the result, in which everything is durable that is not skipped."""
        code = self.wait(seconds)
        assert code == 5, f"{self.command} exited with {code}:\n{self.stderr}"
        assert "Traceback" not in self.stderr
        result = self.result
        assert (result["status"], result["committed"], result["exit_code"]) == ("failed", True, 5)
        assert result["error"]["code"] == "partial"
        assert "\n" not in result["error"]["message"]
        assert result["skipped_files"] == sum(result["skipped_kinds"].values()) > 0
        return result

    def fails(self, exit_code: int, error_code: str, *, status: str = "failed", seconds: float = HANG) -> str:
        """Wait for the end with `exit_code`; return the error, which is the same one line in log and result."""
        code = self.wait(seconds)
        assert code == exit_code, f"{self.command} exited with {code}, not {exit_code}:\n{self.stderr}"
        assert "Traceback" not in self.stderr
        result = self.result
        assert (status, False, exit_code) == (result["status"], result["committed"], result["exit_code"])
        assert error_code == result["error"]["code"]
        errors = [line for line in self.log if line["level"] == "error"]
        assert len(errors) == 1, f"{self.command} logged {len(errors)} errors:\n{self.stderr}"
        message: str = result["error"]["message"]
        assert message == errors[0]["reason"]
        assert message
        assert "\n" not in message
        return message


class Service(Command):
    """One process of this machine."""

    def __init__(
        self,
        command: str,
        *args: object,
        directory: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        under: Sequence[str] = (),
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
        stderr: IO[bytes] | None = None,
        program: Sequence[str] = (),
    ) -> None:
        """Start `python -P -m COMMAND ARGS`, or `program` with ARGS; its output goes to files in `directory`.

        Where nothing but arguments and settings are given, it is forked (tests/support/fork_server.py).
        `under` is a command that runs this one in its own place (as setpriv does), `cwd` the working directory. What it
        is to read and to write instead are `stdin`, `stdout` and `stderr`.
        """
        self.command = command
        self.stdout_is_taken = stdout is not None
        number = next(_NUMBERS)
        self._out = directory / f"{command}-{number}.out"
        self._err = directory / f"{command}-{number}.err"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("FILESTREAMER_")}
        # Many receivers run at once: each that wants metrics says where.
        environment |= {"FILESTREAMER_METRICS": "off", "XDG_RUNTIME_DIR": str(PRIVATE), **(env or {})}
        arguments = [str(each) for each in args]
        self.process: subprocess.Popen[bytes] | Forked
        with self._out.open("wb") as out, self._err.open("wb") as err:
            is_plain = not (under or program or stdin or stdout or stderr or cwd)
            if FORKS and is_plain and (server := fork_server.of(command)).can_start(environment):
                self.process = server.start(arguments, environment, out.fileno(), err.fileno())
            else:
                self.process = subprocess.Popen(
                    [*under, *(program or fresh(command)), *arguments],
                    stdin=stdin or subprocess.DEVNULL,
                    stdout=stdout or out,
                    stderr=stderr or err,
                    env=environment,
                    cwd=cwd,
                )

    @property
    def stdout(self) -> str:
        """All that was written to standard output so far."""
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        """All that was written to standard error so far."""
        return self._err.read_text(errors="replace")

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self.process.poll()

    def wait(self, seconds: float = HANG) -> int:
        """Wait for the end of the process; return its exit code (128+N where a signal ended it)."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.command} still runs after {seconds} s:\n{self.stderr}") from None
        return code if code >= 0 else 128 - code

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process."""
        self.process.send_signal(number)

    def end(self) -> None:
        """Kill the process if it still runs. Idempotent."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()


class Pair:
    """A scratch directory with a source and a destination, and the services that were started in it."""

    def __init__(self, root: Path) -> None:
        self.source = root / "source"
        self.destination = root / "destination"
        self.logs = root / "logs"
        for directory in (self.source, self.destination, self.logs):
            directory.mkdir()
        self._services: list[Service] = []
        self._ports = contextlib.ExitStack()

    def start(
        self,
        command: str,
        *args: object,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        under: Sequence[str] = (),
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
        stderr: IO[bytes] | None = None,
        program: Sequence[str] = (),
    ) -> Service:
        """Start a service; it is ended with the pair."""
        service = Service(
            command,
            *args,
            directory=self.logs,
            env=env,
            cwd=cwd,
            under=under,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            program=program,
        )
        self._services.append(service)
        return service

    def receiver(self, *args: object, listen: str | None = None, env: Mapping[str, str] | None = None) -> Service:
        """Start a receiver into `destination`, by default on a port that nobody else gets when it has ended."""
        at = listen or f"127.0.0.1:{self.port()}"
        return self.start("receiver", "--listen", at, "--directory", self.destination, *args, env=env)

    def sender(self, file: Path, to: str, *args: object, env: Mapping[str, str] | None = None) -> Service:
        """Start a sender."""
        return self.start("sender", file, "--to", to, *args, env=env)

    @staticmethod
    def address(receiver: Service) -> str:
        """Wait until a receiver listens; return HOST:PORT."""
        return str(receiver.wait_for("listening")["address"])

    def port(self) -> int:
        """Return a port of 127.0.0.1 on which nobody listens, and nobody will who is not told its number."""
        return self._ports.enter_context(held_port())

    def received(self) -> list[str]:
        """Every name in the destination, the staging directory included."""
        return sorted(os.listdir(self.destination))

    def file(self, name: str | bytes, size: int, seed: int = 0) -> Path:
        """Make a source file of random bytes."""
        return make_file(self.source / os.fsdecode(name), size, seed)

    def end(self) -> None:
        """End what still runs."""
        for service in self._services:
            service.end()
        self._ports.close()


@contextlib.contextmanager
def pair(root: Path) -> Iterator[Pair]:
    """Make a pair whose services end with the block."""
    made = Pair(root)
    try:
        yield made
    finally:
        made.end()


def make_file(path: Path, size: int, seed: int = 0) -> Path:
    """Write a file of `size` bytes that differ from block to block, the same for the same seed."""
    import random

    generator = random.Random(seed)
    with path.open("wb") as file:
        left = size
        while left:
            block = generator.randbytes(min(left, 1 << 20))
            file.write(block)
            left -= len(block)
    return path


def same(a: Path, b: Path) -> bool:
    """Whether two files have the same bytes."""
    if a.stat().st_size != b.stat().st_size:
        return False
    with a.open("rb", buffering=0) as left, b.open("rb", buffering=0) as right:
        while block := left.read(1 << 22):
            if block != right.read(1 << 22):
                return False
    return True


@contextlib.contextmanager
def held_port(host: str = "127.0.0.1") -> Iterator[int]:
    """Keep a port that nobody listens on from everybody but a listener that is told its number.

    The socket is bound and does not listen: the kernel gives the port to nobody else, and refuses who connects.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, 0))
        yield sock.getsockname()[1]


def tree(root: Path) -> dict[str, int | str]:
    """Everything below a directory: size of each file, target of each symlink, -1 for each directory."""
    found: dict[str, int | str] = {}
    for directory, names, files in os.walk(root):
        for name in [*names, *files]:
            path = Path(directory, name)
            shown = str(path.relative_to(root))
            if path.is_symlink():
                found[shown] = os.readlink(path)
            else:
                found[shown] = -1 if path.is_dir() else path.stat().st_size
    return found
