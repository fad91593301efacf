"""What the kernel says of a process: its memory, descriptors, threads and command line."""

import contextlib
import gc
import os
import threading
from pathlib import Path
from typing import Self

KIB = 1024


def _status(pid: int, field: str) -> int:
    """Read one number of /proc/PID/status; 0 where the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(found[0]) if found else 0


def resident_bytes(pid: int) -> int:
    """Return the memory that a process holds now (VmRSS)."""
    return _status(pid, "VmRSS") * KIB


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process held since it began, or since `forget_peak` (VmHWM)."""
    return _status(pid, "VmHWM") * KIB


def forget_peak(pid: int) -> None:
    """Make what a process holds now its peak."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def thread_count(pid: int) -> int:
    """Return how many threads a process has."""
    return _status(pid, "Threads")


def descriptors(pid: int) -> list[str]:
    """Return what each open descriptor of a process leads to."""
    found = []
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(entry.path))
    return found


def own_descriptors() -> set[str]:
    """Return the numbers of this process's open descriptors, once the garbage that other tests left has closed its."""
    gc.collect()
    return set(os.listdir("/proc/self/fd"))


def command_line(pid: int) -> bytes:
    """Return what `ps` shows of a process, which is its own: it was not forked (`services.fresh`)."""
    shown = Path(f"/proc/{pid}/cmdline").read_bytes()
    assert b"fork_server" not in shown
    return shown


class Watch:
    """Samples processes in a thread for the length of the block: the most of each that was ever seen.

    Peaks of memory need no sampling, the kernel keeps them (`peak_bytes`); descriptors and threads it does not.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="watch", daemon=True)
        self.most_descriptors = 0
        self.most_threads = 0

    def __enter__(self) -> Self:
        forget_peak(self._pid)
        self.resident_bytes = resident_bytes(self._pid)
        """What the process held at the beginning."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def grown_bytes(self) -> int:
        """How far the process's memory ever rose above what it was at the beginning."""
        return max(0, peak_bytes(self._pid) - self.resident_bytes)

    def _sample(self) -> None:
        while not self._ended.wait(0.05):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                self.most_descriptors = max(self.most_descriptors, len(descriptors(self._pid)))
                self.most_threads = max(self.most_threads, thread_count(self._pid))
