"""A machine behind a real sshd, and a service of this machine that starts the other one there."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.support.services import HANG, Pair, Service
from tests.support.sshd import Process, Sshd, sshd
from tests.support.staging import statuses
from tests.support.waiting import until

MIB = 1 << 20
SLOW = ("--rate-limit", "8MiB/s")
"""For what is to be interrupted: a file of some MiB takes some seconds."""


class Far:
    """A machine behind ssh, and the service that reaches it."""

    def __init__(self, pair: Pair, machine: Sshd, temporary: Path) -> None:
        self.pair = pair
        self.machine = machine
        self.temporary = temporary

    def push(self, *args: object, to: str = "incoming", env: Mapping[str, str] | None = None) -> Service:
        """Start a sender."""
        machine = self.machine
        return self.pair.start(
            "sender",
            *args,
            "--to",
            f"{machine.host}:{to}",
            "--ssh",
            machine.ssh,
            env={"TMPDIR": str(self.temporary), **(env or {})},
        )

    def pull(self, *args: object, paths: tuple[str, ...], env: Mapping[str, str] | None = None) -> Service:
        """Start a receiver that fetches these paths into the destination of the pair."""
        machine = self.machine
        first, *others = paths
        return self.pair.start(
            "receiver",
            "--from",
            f"{machine.host}:{first}",
            *others,
            *(() if "--output-file" in args else ("--directory", self.pair.destination)),
            "--ssh",
            machine.ssh,
            *args,
            env={"TMPDIR": str(self.temporary), **(env or {})},
        )

    def is_left(self) -> list[object]:
        """Return what is left of both sides, where nothing should be."""
        return [*self.machine.remote(), *self.machine.clients(), *os.listdir(self.temporary)]

    def ends(self, seconds: float = HANG) -> None:
        """Wait until nothing is left."""
        until(lambda: not self.is_left(), f"nothing is left: {self.is_left()}", seconds)

    def clients(self, words: str) -> list[Process]:
        """Return the ssh processes whose command line has these words."""
        return [process for process in self.machine.clients() if words in " ".join(process.argv)]

    def holds(self, size: int) -> bool:
        """Whether so many bytes, at least, are in staging."""
        staging = self.incoming / ".filestreamer"
        return sum(each.st_blocks * 512 for each in statuses(staging)) >= size

    @property
    def incoming(self) -> Path:
        """Where the files go."""
        return self.machine.home / "incoming"


@contextlib.contextmanager
def behind_ssh(pair: Pair, tmp_path: Path, temporary: Path, **how: Any) -> Iterator[Far]:
    """Run a sshd; nothing of either side is left behind at the end."""
    with sshd(tmp_path, **{**how, "env": {"TMPDIR": str(temporary), **how.get("env", {})}}) as machine:
        far = Far(pair, machine, temporary)
        yield far
        far.ends()


def impatient(**bounds: float) -> dict[str, Any]:
    """Return how a machine starts a receiver that waits less for ssh."""
    return {
        "commands": {"receiver": (sys.executable, "-P", "-m", "tests.support.impatient", "receiver")},
        "env": {
            "IMPATIENT": json.dumps({f"filestreamer.ssh.{name}": value for name, value in bounds.items()}),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
    }
