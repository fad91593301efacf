"""How much memory peers may make this receiver hold: what the container allows, or --memory-limit.

A container's limit counts everything: the process, its threads, the kernel's socket buffers, and files of a RAM disk.
So the budget is well below it.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from filestreamer.wire import limits

DEFAULT_BYTES: Final = 512 * limits.MIB
"""The limit where neither a container nor the user sets one."""
PROCESS_BYTES: Final = 32 * limits.MIB
"""What the process holds for itself, with what it remembers of transfers that ended, and what shows them."""
BUDGET_MIN_BYTES: Final = 8 * limits.MIB
"""A budget below this would be none: two transfers."""
LIMIT_MIN_BYTES: Final = (PROCESS_BYTES + BUDGET_MIN_BYTES) * 4 // 3
"""The smallest limit that can be promised."""

Read = Callable[[str], str | None]
"""Reads a small file; None where there is none."""


class SocketLimits(NamedTuple):
    """What the kernel lets the receive buffer of a socket be, in bytes of the kernel's memory."""

    autotuned_bytes: int
    """What it grows to by itself (tcp_rmem)."""
    locked_bytes: int
    """What SO_RCVBUF sets at most (rmem_max), doubled as the kernel does."""
    secured_bytes: int = 0
    """What TLS holds for a connection, beside that."""


def budget_bytes(limit_bytes: int) -> int:
    """Return what of a limit is for peers: three quarters, less what the process needs for itself."""
    return max(BUDGET_MIN_BYTES, limit_bytes * 3 // 4 - PROCESS_BYTES)


def default_limit(read: Read | None = None) -> int:
    """Return the limit of this process's container; where it has none, DEFAULT_BYTES or what the machine has."""
    read = read or _read
    machine_bytes = memory_total(read("/proc/meminfo") or "")
    limit = container_limit(read)
    if limit is None or (machine_bytes is not None and limit >= machine_bytes):
        limit = DEFAULT_BYTES
    return limit if machine_bytes is None else min(limit, machine_bytes)


def container_limit(read: Read) -> int | None:
    """Return the smallest limit of this process's control groups and those above them; None where there is none."""
    found = [number for path in limit_files(read("/proc/self/cgroup") or "") if (number := _number(read(path)))]
    return min(found, default=None)


def limit_files(cgroups: str) -> Iterator[str]:
    """Yield where limits may stand, given /proc/self/cgroup.

    Inside a container the file may name a group as the host sees it, while only what is below the container's own group
    is mounted: so every part of the path is tried down to the mount itself.
    """
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
    """Yield the directory of a group, and of every group above it."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for end in range(len(parts), -1, -1):
        yield "/".join([mount, *parts[:end]])


def memory_total(meminfo: str) -> int | None:
    """Return the memory of the machine, given /proc/meminfo."""
    for line in meminfo.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if name == "MemTotal" and words:
            kibibytes = _number(words[0])
            return kibibytes * limits.KIB if kibibytes else None
    return None


def socket_reach(read: Read | None = None) -> SocketLimits:
    """Return how far the receive buffers of this machine's sockets reach."""
    read = read or _read
    autotuned = (read("/proc/sys/net/ipv4/tcp_rmem") or "").split()
    return SocketLimits(
        _number(autotuned[2] if len(autotuned) == 3 else None) or 32 * limits.MIB,
        2 * (_number(read("/proc/sys/net/core/rmem_max")) or 208 * limits.KIB),
    )


def _number(text: str | None) -> int | None:
    """Read a number of bytes; None for what is none, as `max`."""
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _read(path: str) -> str | None:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return Path(path).read_text(encoding="ascii")
    return None
