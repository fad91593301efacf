"""Descriptors of this process: how many it may have, which a path names, and waiting for one that does not block."""

import contextlib
import os
import select
from typing import Final

_LINKS: Final = 40
"""As many symbolic links as Linux follows in a path."""


def allow_all() -> None:
    """Allow this process as many descriptors as possible: each connection and each open file needs one."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def named_by(path: str) -> int | None:
    """Return the descriptor that a path such as /dev/stderr or /dev/fd/3 names; None for any other path."""
    own = f"/proc/{os.getpid()}/fd"
    for _ in range(_LINKS):
        directory, name = os.path.split(path)
        directory = os.path.realpath(directory)
        if directory == own and name.isascii() and name.isdecimal():
            return int(name)
        try:
            path = os.path.join(directory, os.readlink(os.path.join(directory, name)))
        except OSError:
            return None
    return None


def wait_readable(fd: int) -> None:
    """Wait for bytes, or their end, where a read would not: another process that has it open made it non-blocking."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.poll()
