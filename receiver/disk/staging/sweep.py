"""What earlier runs left in staging: listed, discarded by age, and freed of space that no ledger covers.

At the start of a receiver:

1. `discard_older_than` removes staged files that no run has resumed for long, small files of killed trees, and what a
   killed receiver has left that had a name for a moment only.
2. `give_back_space` frees the space that killed receivers had taken ahead.

During a transfer, for one file: `staged_keys`, `discard_staged`, `drop_leftovers`, and `clear_tree` for a tree. After
a sync that failed: `discard_unsynced`.
A file that a process is receiving is locked, and stays.
"""

import contextlib
import itertools
import math
import os
from collections.abc import Iterator
from typing import Final

from filestreamer.wire import limits
from filestreamer.wire.errors import TransferFailed
from filestreamer.wire.grid import Grid
from receiver.disk.descriptors import patiently
from receiver.disk.destination import Destination, open_directory, shown_path
from receiver.disk.filesystem.lock_file import LockFile
from receiver.disk.paths import (
    DATA_SUFFIX,
    JOB_SUFFIX,
    LEDGER_SUFFIX,
    LOCK_SUFFIX,
    NOTE_SUFFIX,
    OPEN_FLAGS,
    PENDING_SUFFIX,
    RECEIPT_SUFFIX,
    SHARED_SUFFIX,
    SPOOL_PREFIX,
    STAGING,
    TIME_PREFIX,
    TREE_SUFFIX,
    check_path,
    staging_key,
)
from receiver.disk.place import Place
from receiver.disk.space import free_ranges
from receiver.disk.staging import ledger
from receiver.disk.staging.ledger_file import read_ledger
from receiver.disk.staging.lock import TreeLock, is_own, locked
from receiver.disk.staging.record_file import NEW_SUFFIX
from receiver.disk.staging.shared_names import SharedNames, guard_of

_SUFFIXES: Final = (DATA_SUFFIX, LEDGER_SUFFIX)

# -------------------------------------------------------------------------------------------------- at the start


def discard_older_than(destination: Destination, seconds: float | None, now: float) -> tuple[int, int]:
    """Remove staged files that nothing was added to for `seconds`; None removes none.

    `now` is the time since the epoch in seconds, as file times are. Return how many staged files were removed, and how
    many are left. Small files of a tree whose receiver was killed are removed in any case: no run resumes them.
    """
    removed, left = 0, 0
    for place in (*places_below(destination), destination):
        numbers = _discard_in(place, seconds, now)
        removed, left = removed + numbers[0], left + numbers[1]
    return removed, left


def _discard_in(place: Place, seconds: float | None, now: float) -> tuple[int, int]:
    with place.staging_there() as staging_fd:
        if staging_fd is None:
            return 0, 0
        names = os.listdir(staging_fd)
        keys = _keys(names)
        groups = _groups(names)
        trees = [name for name in names if name.endswith(TREE_SUFFIX)]
        for name in trees:
            _discard_tree(staging_fd, name)
        removed = 0
        if seconds is not None:
            removed = sum(_discard(staging_fd, key, seconds, now) for key in keys)
            removed += sum(_discard_group(staging_fd, group, seconds, now) for group in groups.values())
            _discard_jobs(staging_fd, names, seconds, now)
        for name in names:
            _discard_lock(staging_fd, name)
            if name.startswith((SPOOL_PREFIX, TIME_PREFIX)):
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=staging_fd)
    place.tidy()
    return removed, len(keys) + len(groups) - removed


def _keys(names: list[str]) -> set[str]:
    """Return the keys of the staged files that are not shared."""
    return {stem for stem, suffix in map(os.path.splitext, names) if suffix in _SUFFIXES and "-" not in stem}


def _groups(names: list[str]) -> dict[str, list[str]]:
    """Return the names that belong to each file that several shards of a tree write (`shared_names`)."""
    groups: dict[str, list[str]] = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix == SHARED_SUFFIX or (suffix == LEDGER_SUFFIX and "-" in stem):
            groups.setdefault("-".join(stem.split("-")[:2]), []).append(name)
    return groups


def _discard_group(staging_fd: int, names: list[str], seconds: float, now: float) -> bool:
    """Remove a shared file and its ledgers if nothing was added to any of them for long, and none is locked."""
    with contextlib.suppress(OSError), contextlib.ExitStack() as locks:
        if not _is_stale(staging_fd, names, seconds, now):
            return False
        for name in names:
            if name.endswith(LEDGER_SUFFIX):
                locks.enter_context(locked(staging_fd, name.removesuffix(LEDGER_SUFFIX)))
        if not _is_stale(staging_fd, names, seconds, now):
            return False
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=staging_fd)
        return True
    return False


def _discard_jobs(staging_fd: int, names: list[str], seconds: float, now: float) -> None:
    """Remove what is known of jobs and runs of which nothing has ended for long (`job_record`, `receipt`)."""
    for name in names:
        is_record = name.removesuffix(NEW_SUFFIX).endswith((JOB_SUFFIX, PENDING_SUFFIX, RECEIPT_SUFFIX))
        if is_record and _is_stale(staging_fd, [name], seconds, now):
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=staging_fd)


def give_back_space(destination: Destination) -> int:
    """Free what killed receivers had taken ahead: all that no ledger covers of files that no process receives.

    Return about how many bytes were freed.
    """
    return sum(map(_give_back_in, (*places_below(destination), destination)))


def _give_back_in(place: Place) -> int:
    with place.staging_there() as staging_fd:
        if staging_fd is None:
            return 0
        names = {os.path.splitext(name) for name in os.listdir(staging_fd)}
        return sum(_give_back(staging_fd, stem) for stem, suffix in names if suffix == DATA_SUFFIX)


def _give_back(staging_fd: int, key: str) -> int:
    """Free what the ledger of one staged file does not cover, unless it is locked; return about how many bytes."""
    with contextlib.suppress(OSError), locked(staging_fd, key) as (ledger_fd, _):
        fd = os.open(key + DATA_SUFFIX, os.O_RDWR | os.O_NONBLOCK | OPEN_FLAGS, dir_fd=staging_fd)
        try:
            before = os.fstat(fd)
            if not (is_own(before, staging_fd) and is_own(os.fstat(ledger_fd), staging_fd)):
                return 0
            claims = read_ledger(ledger_fd) or ledger.Claims.none(Grid(before.st_size, limits.CHUNK_SIZE_DEFAULT))
            free_unclaimed(fd, claims)
            # `discard_older_than` goes by the mtime: it stays that of the last bytes that came.
            os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))
            return max(0, before.st_blocks - os.fstat(fd).st_blocks) * 512
        finally:
            os.close(fd)
    return 0


def places_below(destination: Destination) -> Iterator[Place]:
    """Yield the places below a destination in which earlier runs left something; forget those that are gone."""
    with destination.staging_there() as staging_fd:
        if staging_fd is None:
            return
        notes = [name for name in os.listdir(staging_fd) if name.endswith(NOTE_SUFFIX)]
        for note in notes:
            place = _noted_place(destination, staging_fd, note)
            if place is not None:
                yield place
                continue
            with contextlib.suppress(OSError):
                os.unlink(note, dir_fd=staging_fd)


def _noted_place(destination: Destination, staging_fd: int, note: str) -> Place | None:
    """Open the place of a note; None where it is gone, or nothing is staged there."""
    with contextlib.suppress(OSError, TransferFailed):
        prefix = _read_note(staging_fd, note)
        fd = open_directory(destination, prefix)
        place = Place(fd, shown_path(destination, prefix), prefix, above=destination)
        os.stat(STAGING, dir_fd=fd, follow_symlinks=False)
        return place
    return None


def _read_note(staging_fd: int, name: str) -> bytes:
    """Return the path that a note has. Raises OSError, TransferFailed(PATH)."""
    with open(os.open(name, os.O_RDONLY | os.O_NONBLOCK | OPEN_FLAGS, dir_fd=staging_fd), "rb") as note:
        prefix = note.read(limits.PATH_BYTES + 1)
    check_path(prefix)
    return prefix


# ---------------------------------------------------------------------------------------- for one file of a transfer


def staged_keys(place: Place) -> Iterator[str]:
    """Yield the keys (`paths.staging_key`) of all files that earlier runs left a ledger of, in this place.

    There may be any number of them. Raises OSError where they can't be listed.
    """
    try:
        staging_fd = patiently(lambda: place.open_staging(create=False))
    except (FileNotFoundError, TransferFailed):
        return
    try:
        with patiently(lambda: os.scandir(staging_fd)) as found:
            stems = (os.path.splitext(each.name) for each in found)
            yield from (stem for stem, suffix in stems if suffix == LEDGER_SUFFIX)
    finally:
        os.close(staging_fd)


def has_staged_bytes(place: Place, path: bytes) -> bool:
    """Whether an earlier run left bytes of a file; `path` is that in its place."""
    with contextlib.suppress(OSError), place.staging_there() as staging_fd:
        if staging_fd is not None:
            os.stat(staging_key(path) + DATA_SUFFIX, dir_fd=staging_fd, follow_symlinks=False)
            return True
    return False


def discard_staged(staging_fd: int, path: bytes) -> None:
    """Remove what is staged of a file, unless a process has locked it."""
    _discard(staging_fd, staging_key(path), -math.inf, 0)


def discard_share(staging_fd: int, shared: SharedNames) -> None:
    """Remove the ledger of one share, unless a process has locked it; the bytes, too, if no share has another one."""
    with contextlib.suppress(OSError), shared.guard:
        with locked(staging_fd, shared.key) as (_, is_new):
            if not is_new:
                os.unlink(shared.key + LEDGER_SUFFIX, dir_fd=staging_fd)
        if not shared.has_ledgers(staging_fd):
            os.unlink(shared.data, dir_fd=staging_fd)


def discard_version(staging_fd: int, stem: str) -> None:
    """Remove all of one version of a shared file (`shared_names`) that no process has locked."""
    names = [name for name in os.listdir(staging_fd) if name.startswith((stem + "-", stem + "."))]
    _discard_group(staging_fd, names, -math.inf, 0)


def discard_unsynced(place: Place) -> None:
    """Remove what is staged of all files that no process has locked, after a sync that failed; sealed shares stay.

    The kernel may have dropped bytes of any file, also of one that an earlier run has left, and reports that once: the
    next run would hash pages that are only in memory. A share was synced before it was sealed.
    """
    with contextlib.suppress(OSError), place.staging_there() as staging_fd:
        if staging_fd is None:
            return
        names = os.listdir(staging_fd)
        for key in _keys(names):
            _discard(staging_fd, key, -math.inf, 0)
        for stem, group in _groups(names).items():
            _discard_unsealed(staging_fd, stem, group)


def _discard_unsealed(staging_fd: int, stem: str, names: list[str]) -> None:
    """Remove the ledgers of a shared file that have no seal; its bytes, too, where none is left."""
    ledgers = [name for name in names if name.endswith(LEDGER_SUFFIX)]
    with contextlib.suppress(OSError), guard_of(stem):
        for name in ledgers:
            with contextlib.suppress(BlockingIOError), locked(staging_fd, name.removesuffix(LEDGER_SUFFIX)) as (fd, _):
                claims = read_ledger(fd)
                if claims is None or not claims.seals:
                    os.unlink(name, dir_fd=staging_fd)
        if not any(name.startswith(stem + "-") for name in os.listdir(staging_fd)):
            os.unlink(stem + SHARED_SUFFIX, dir_fd=staging_fd)


def drop_leftovers(place: Place, path: bytes, there: os.stat_result) -> None:
    """Remove what a crash in the commit left of a file that is in place, with this status. Raises OSError.

    After rename(2) that is its ledger; after link(2), which replaces nothing, also its staged name.
    """
    with contextlib.suppress(FileNotFoundError, TransferFailed):
        staging_fd = place.open_staging(create=False)
        try:
            key = staging_key(path)
            is_linked = False
            with contextlib.suppress(FileNotFoundError):
                staged = os.stat(key + DATA_SUFFIX, dir_fd=staging_fd, follow_symlinks=False)
                is_linked = os.path.samestat(staged, there)
            _discard(staging_fd, key, -math.inf if is_linked else None, 0)
        finally:
            os.close(staging_fd)
        place.tidy()


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


def _discard_lock(staging_fd: int, name: str) -> None:
    """Remove the file that stands for a lock, if what it locked is gone, and no process holds it any more."""
    locked_name = name.removesuffix(LOCK_SUFFIX)
    with contextlib.suppress(OSError):
        if locked_name != name:
            try:
                os.stat(locked_name, dir_fd=staging_fd, follow_symlinks=False)
            except FileNotFoundError:
                LockFile(locked_name, staging_fd).release()


# --------------------------------------------------------------------------------------------------------------- trees


def clear_tree(tree_fd: int) -> None:
    """Remove what lies in the staging of a tree but its lock: files, and directories of files. Raises OSError."""
    # btrfs lists what was there when the directory was opened, or was set back to its beginning.
    os.lseek(tree_fd, 0, os.SEEK_SET)
    for name in set(os.listdir(tree_fd)).difference(TreeLock.NAMES):
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
            held = TreeLock(fd)
            try:
                clear_tree(fd)
            finally:
                held.release(with_name=True)
            os.rmdir(name, dir_fd=staging_fd)
        finally:
            os.close(fd)


def free_unclaimed(fd: int, claims: ledger.Claims) -> None:
    """Free the space of everything in a file that its ledger does not claim. Raises OSError."""
    tail = ((claims.grid.size, size),) if (size := os.fstat(fd).st_size) > claims.grid.size else ()
    free_ranges(fd, itertools.chain(ledger.unclaimed(claims), tail), ledger.claimed_end(claims))
