"""A memory cgroup for a service, of version 1 or 2: what the kernel counts of it, its sockets included. Takes root."""

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import pytest

from tests.support.services import HANG

V1 = Path("/sys/fs/cgroup/memory")
V2 = Path("/sys/fs/cgroup")
_NUMBERS = itertools.count()


class Group:
    """A cgroup with a limit. The most that it ever held is sampled for the length of the `watched` block."""

    def __init__(self, path: Path, *, is_v2: bool) -> None:
        self.path = path
        self._is_v2 = is_v2
        self.peak_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="cgroup", daemon=True)

    @property
    def under(self) -> Sequence[str]:
        """A command that runs another one in this group, in its own place."""
        return ["sh", "-c", f'echo $$ > {self.path}/cgroup.procs && exec "$0" "$@"']

    def limit(self, size_bytes: int) -> None:
        """Bound it. Raises OSError."""
        if self._is_v2:
            self._write("memory.max", size_bytes)
            with contextlib.suppress(OSError):  # without swap
                self._write("memory.swap.max", 0)
            return
        self._write("memory.limit_in_bytes", size_bytes)
        with contextlib.suppress(OSError):  # socket buffers are counted once they are bounded; they get as much again
            self._write("memory.kmem.tcp.limit_in_bytes", size_bytes)

    def _write(self, name: str, number: int) -> None:
        (self.path / name).write_text(str(number))

    def _read(self, name: str) -> int:
        try:
            return int((self.path / name).read_text())
        except (OSError, ValueError):
            return 0

    @property
    def held_bytes(self) -> int:
        """What cannot be taken back from it: memory of its own, the kernel's for it, and that of its sockets."""
        stat = dict(line.split() for line in (self.path / "memory.stat").read_text().splitlines())
        if self._is_v2:
            kernel = stat.get("kernel") or sum(
                int(stat.get(each, 0)) for each in ("kernel_stack", "slab", "pagetables")
            )
            return int(stat["anon"]) + int(kernel) + int(stat.get("sock", 0))
        return (
            int(stat["rss"]) + self._read("memory.kmem.usage_in_bytes") + self._read("memory.kmem.tcp.usage_in_bytes")
        )

    @property
    def oom_kills(self) -> int:
        """How many of its processes the kernel has killed for their memory."""
        name = "memory.events" if self._is_v2 else "memory.oom_control"
        lines = (self.path / name).read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(0.02):
            with contextlib.suppress(OSError):
                self.peak_bytes = max(self.peak_bytes, self.held_bytes)

    def remove(self) -> None:
        """Remove it, now that its processes have ended."""
        until = time.monotonic() + HANG
        while True:
            try:
                self.path.rmdir()
                return
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)  # the kernel takes a moment to see that they have


@contextlib.contextmanager
def memory_group(limit_bytes: int) -> Iterator[Group]:
    """Make a cgroup with this limit. Skips the test where none can be had; in CI, which has root, it fails then."""
    parent, is_v2 = (V1, False) if (V1 / "memory.limit_in_bytes").exists() else (V2, True)
    group = Group(parent / f"filestreamer-{os.getpid()}-{next(_NUMBERS)}", is_v2=is_v2)
    try:
        if is_v2:
            (V2 / "cgroup.subtree_control").write_text("+memory")
        group.path.mkdir()
        group.limit(limit_bytes)
    except OSError as error:
        reason = f"a memory cgroup takes root, and the controller: {error}"
        if os.environ.get("CI") and os.geteuid() == 0:
            pytest.fail(reason)
        pytest.skip(reason)
    try:
        yield group
    finally:
        group.remove()
