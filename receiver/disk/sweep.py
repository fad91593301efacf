"""What earlier runs left in staging: listed, discarded by age, and freed of space that no ledger covers.

At the start of a receiver:

1. `discard_older_than` removes staged files that no run has resumed for long, and small files of killed trees.
2. `give_back_space` frees the space that killed receivers had taken ahead.

During a transfer, for one file: `staged_keys`, `discard_staged`, `drop_ledger`, and `clear_tree` for a tree.
A file that a process is receiving is locked, and stays.
"""

import contextlib
import math
import os
from typing import Final

from filestreamer.wire import limits
from filestreamer.wire.errors import TransferFailed
from filestreamer.wire.grid import Grid
from receiver.disk import ledger
from receiver.disk.destination import Destination
from receiver.disk.ledger_file import read_ledger
from receiver.disk.lock import is_own, lock, locked
from receiver.disk.paths import DATA_SUFFIX, LEDGER_SUFFIX, OPEN_FLAGS, TREE_SUFFIX, staging_key
from receiver.disk.space import free_unclaimed

_SUFFIXES: Final = (DATA_SUFFIX, LEDGER_SUFFIX)

# -------------------------------------------------------------------------------------------------- at the start


def discard_older_than(destination: Destination, seconds: float | None, now: float) -> tuple[int, int]:
    """Remove staged files that nothing was added to for `seconds`; None removes none.

    `now` is the time since the epoch in seconds, as file times are. Return how many staged files were removed, and how
    many are left. Small files of a tree whose receiver was killed are removed in any case: no run resumes them.
    """
    try:
        staging_fd = destination.open_staging(create=False)
    except (OSError, TransferFailed):  # there is no staging directory, or none that a transfer would accept
        return 0, 0
    try:
        names = os.listdir(staging_fd)
        keys = {stem for stem, suffix in map(os.path.splitext, names) if suffix in _SUFFIXES}
        trees = [name for name in names if name.endswith(TREE_SUFFIX)]
        for name in trees:
            _discard_tree(staging_fd, name)
        removed = sum(_discard(staging_fd, key, seconds, now) for key in keys) if seconds is not None else 0
    finally:
        os.close(staging_fd)
    if removed or trees:
        destination.tidy()
    return removed, len(keys) - removed


def give_back_space(destination: Destination) -> int:
    """Free what killed receivers had taken ahead: all that no ledger covers of files that no process receives.

    Return about how many bytes were freed.
    """
    try:
        staging_fd = destination.open_staging(create=False)
    except (OSError, TransferFailed):
        return 0
    try:
        names = {os.path.splitext(name) for name in os.listdir(staging_fd)}
        return sum(_give_back(staging_fd, stem) for stem, suffix in names if suffix == DATA_SUFFIX)
    finally:
        os.close(staging_fd)


def _give_back(staging_fd: int, key: str) -> int:
    """Free what the ledger of one staged file does not cover, unless it is locked; return about how many bytes."""
    with contextlib.suppress(OSError), locked(staging_fd, key) as (ledger_fd, _):
        fd = os.open(key + DATA_SUFFIX, os.O_RDWR | os.O_NONBLOCK | OPEN_FLAGS, dir_fd=staging_fd)
        try:
            before = os.fstat(fd)
            if not (is_own(before) and is_own(os.fstat(ledger_fd))):
                return 0
            claims = read_ledger(ledger_fd) or ledger.Claims.none(Grid(before.st_size, limits.CHUNK_SIZE_DEFAULT))
            free_unclaimed(fd, claims)
            # `discard_older_than` goes by the mtime: it stays that of the last bytes that came.
            os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))
            return max(0, before.st_blocks - os.fstat(fd).st_blocks) * 512
        finally:
            os.close(fd)
    return 0


# ---------------------------------------------------------------------------------------- for one file of a transfer


def staged_keys(destination: Destination) -> set[str]:
    """Return the keys (`paths.staging_key`) of all files that earlier runs left a ledger of."""
    try:
        staging_fd = destination.open_staging(create=False)
    except (OSError, TransferFailed):
        return set()
    try:
        return {stem for stem, suffix in map(os.path.splitext, os.listdir(staging_fd)) if suffix == LEDGER_SUFFIX}
    finally:
        os.close(staging_fd)


def has_staged_bytes(destination: Destination, path: bytes) -> bool:
    """Whether an earlier run left bytes of a file."""
    with contextlib.suppress(OSError, TransferFailed):
        staging_fd = destination.open_staging(create=False)
        try:
            os.stat(staging_key(path) + DATA_SUFFIX, dir_fd=staging_fd, follow_symlinks=False)
            return True
        finally:
            os.close(staging_fd)
    return False


def discard_staged(staging_fd: int, path: bytes) -> None:
    """Remove what is staged of a file, unless a process has locked it."""
    _discard(staging_fd, staging_key(path), -math.inf, 0)


def drop_ledger(destination: Destination, path: bytes) -> None:
    """Remove the ledger that a crash between rename and unlink left of a committed file. Raises OSError."""
    with contextlib.suppress(FileNotFoundError, TransferFailed):
        staging_fd = destination.open_staging(create=False)
        try:
            _discard(staging_fd, staging_key(path), None, 0)
        finally:
            os.close(staging_fd)
        destination.tidy()


def _discard(staging_fd: int, key: str, seconds: float | None, now: float) -> bool:
    """Remove the staged bytes and the ledger of a file if both are older than `seconds`, and not locked.

    None removes only a ledger that has no staged bytes. Return whether they were removed. A directory with such a name
    stays.
    """
    names = [key + suffix for suffix in _SUFFIXES]
    with contextlib.suppress(OSError):
        # First look without the lock: locking a file that has no ledger creates one.
        if not _is_stale(staging_fd, names, seconds, now):
            return False
        with locked(staging_fd, key) as (_, is_new):
            # Another process may have added to it until now. A ledger that was made for the lock does not count.
            if not _is_stale(staging_fd, names[:1] if is_new else names, seconds, now):
                return False
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=staging_fd)
        return True
    return False


def _is_stale(staging_fd: int, names: list[str], seconds: float | None, now: float) -> bool:
    found = {}
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            found[name] = os.stat(name, dir_fd=staging_fd, follow_symlinks=False)
    if seconds is None:
        return len(found) == 1 and names[-1] in found
    return bool(found) and min(now - status.st_mtime for status in found.values()) >= seconds


# --------------------------------------------------------------------------------------------------------------- trees


def clear_tree(tree_fd: int) -> None:
    """Remove what lies in the staging of a tree: files, and directories of files. Raises OSError."""
    for name in os.listdir(tree_fd):
        try:
            os.unlink(name, dir_fd=tree_fd)
        except IsADirectoryError:
            subdirectory_fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | OPEN_FLAGS, dir_fd=tree_fd)
            try:
                for file in os.listdir(subdirectory_fd):
                    os.unlink(file, dir_fd=subdirectory_fd)
            finally:
                os.close(subdirectory_fd)
            os.rmdir(name, dir_fd=tree_fd)


def _discard_tree(staging_fd: int, name: str) -> None:
    """Remove the staging of a tree, unless a process has locked it."""
    with contextlib.suppress(OSError):
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | OPEN_FLAGS, dir_fd=staging_fd)
        try:
            lock(fd, name, staging_fd)
            clear_tree(fd)
            os.rmdir(name, dir_fd=staging_fd)
        finally:
            os.close(fd)
