"""How much memory this process may take: --memory-limit, or what its container allows; and what of that is for peers.

The limit of a container counts everything: the process, its threads, the kernel's socket buffers, and files of a RAM
disk. So the budget for peers is well below the limit.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from filestreamer.wire import limits

DEFAULT_BYTES: Final = 512 * limits.MIB
"""The limit where neither a container nor the user sets one."""
PROCESS_BYTES: Final = 32 * limits.MIB
"""The memory of the process itself: its code, ended transfers that it still shows, display and metrics."""
BUDGET_MIN_BYTES: Final = 8 * limits.MIB
"""The smallest useful budget: two transfers."""
LIMIT_MIN_BYTES: Final = (PROCESS_BYTES + BUDGET_MIN_BYTES) * 4 // 3
"""The smallest limit within which this process can stay."""

Read = Callable[[str], str | None]
"""Returns the content of a small file, given its path; None where there is no such file."""


class SocketLimits(NamedTuple):
    """How large the kernel lets the receive buffer of a socket be, in bytes of kernel memory."""

    autotuned_bytes: int
    """The size to which autotuning lets the buffer grow (tcp_rmem)."""
    locked_bytes: int
    """The largest size that SO_RCVBUF sets (rmem_max), doubled as the kernel does."""
    secured_bytes: int = 0
    """The memory of TLS for one connection, in addition to the buffer."""


def budget_bytes(limit_bytes: int) -> int:
    """Return how much of a limit is for peers: three quarters, less what the process needs for itself."""
    return max(BUDGET_MIN_BYTES, limit_bytes * 3 // 4 - PROCESS_BYTES)


def default_limit(read: Read | None = None) -> int:
    """Return the limit of this process's container; without one, DEFAULT_BYTES or, if less, what the machine has."""
    read = read or _read
    machine_bytes = memory_total(read("/proc/meminfo") or "")
    limit = container_limit(read)
    if limit is None or (machine_bytes is not None and limit >= machine_bytes):
        limit = DEFAULT_BYTES
    return limit if machine_bytes is None else min(limit, machine_bytes)


def container_limit(read: Read) -> int | None:
    """Return the smallest limit of this process's control groups and their parents; None where there is none."""
    found = [number for path in limit_files(read("/proc/self/cgroup") or "") if (number := _number(read(path)))]
    return min(found, default=None)


def limit_files(cgroups: str) -> Iterator[str]:
    """Yield the paths of all files that may have a limit, given the content of /proc/self/cgroup."""
    # Inside a container, /proc/self/cgroup may name the group as the host sees it, while only what is below the
    # container's own group is mounted. So every parent of the path is tried, up to the mount itself.
    for line in cgroups.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            for mount in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
                for directory in _above(mount, path):
                    yield from (f"{directory}/memory.max", f"{directory}/memory.high")
        elif "memory" in controllers.split(","):
            yield from (f"{directory}/memory.limit_in_bytes" for directory in _above("/sys/fs/cgroup/memory", path))


def _above(mount: str, path: str) -> Iterator[str]:
    """Yield the directory of a control group, and of each of its parents."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for end in range(len(parts), -1, -1):
        yield "/".join([mount, *parts[:end]])


def memory_total(meminfo: str) -> int | None:
    """Return the memory of the machine in bytes, given the content of /proc/meminfo."""
    for line in meminfo.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if name == "MemTotal" and words:
            kibibytes = _number(words[0])
            return kibibytes * limits.KIB if kibibytes else None
    return None


def read_socket_limits() -> SocketLimits:
    """Return what the kernel of this machine allows for receive buffers."""
    autotuned = (_read("/proc/sys/net/ipv4/tcp_rmem") or "").split()
    return SocketLimits(
        _number(autotuned[2] if len(autotuned) == 3 else None) or 32 * limits.MIB,
        2 * (_number(_read("/proc/sys/net/core/rmem_max")) or 208 * limits.KIB),
    )


def _number(text: str | None) -> int | None:
    """Return a number of bytes; None where the text is not a number, as `max`."""
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _read(path: str) -> str | None:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return Path(path).read_text(encoding="ascii")
    return None
