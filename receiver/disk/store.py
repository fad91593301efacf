"""The destination directory: staging, commit, and nothing outside of it (proto/README.md, "Paths").

Everything is opened relative to directory descriptors, without following a symlink. An incomplete file lives in
`.filestreamer/` (0700), under the digest of its destination path, so that any later run finds it:

    KEY.data     its bytes, at their places
    KEY.ledger   which of them are there; its flock keeps a second process away

Commit (`Staging.commit`): truncate, mode, times; sync the file; rename it; sync the directory; drop the ledger. A crash
between any two of these leaves either the staged file or the final one, never half of it under the final name.
A file that was committed from shards is looked at where it is (`InPlace`) when one of them comes again.
"""

import contextlib
import errno
import fcntl
import itertools
import math
import os
import re
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from filestreamer.wire import limits
from filestreamer.wire.digests import segment_digest, segment_hasher
from filestreamer.wire.errors import Code, TransferFailed, from_os_error
from filestreamer.wire.grid import Grid, Share, outside_holes
from filestreamer.wire.messages import Entry, Hole
from receiver.disk import ledger, reserve
from receiver.disk.exclusive import rename_new

STAGING: Final = ".filestreamer"
_OPEN: Final = os.O_CLOEXEC | os.O_NOFOLLOW
_SUFFIXES: Final = (".data", ".ledger")
TREE_SUFFIX: Final = ".tree"
_UNSOUND: Final = re.compile(
    rb"(?:^|/)(?:\.{0,2}|%s|[^/]{%d,})(?:/|\Z)|\0" % (re.escape(STAGING.encode()), limits.NAME_BYTES + 1)
)
"""A path with any of these may not be written."""
_RENAME_TRIES: Final = 3
_RECORDS_AT_ONCE: Final = 8192
_TRANSLATING: Final = threading.Lock()


def check_path(path: bytes) -> None:
    """Check a manifest path. Raises TransferFailed(PATH).

    NUL, '.', '..', empty components, `.filestreamer`, absolute and overlong names are refused, whatever the sender
    meant by them.
    """
    if not _UNSOUND.search(path):
        return
    parts = path.split(b"/")
    if b"\0" in path or any(part in (b"", b".", b"..") for part in parts):
        raise TransferFailed(Code.PATH, f"the name {_shown(path)} may not be written: it is no path inside a directory")
    raise TransferFailed(Code.PATH, f"the name {_shown(path)} may not be written: reserved, or too long")


def check_name(path: bytes) -> bytes:
    """Return a manifest path that is one plain name. Raises TransferFailed: as `check_path`, POLICY."""
    check_path(path)
    if b"/" in path:
        raise TransferFailed(Code.POLICY, f"the name {_shown(path)} has directories, and one plain name is wanted")
    return path


def _shown(path: bytes) -> str:
    return ascii(os.fsdecode(path[:80]))


def shown_path(destination: "Destination", path: bytes) -> str:
    """Return where a path leads, as people know it."""
    return os.path.join(destination.path, os.fsdecode(path))


class Destination:
    """The directory that files go to. Descriptors are opened once and kept."""

    def __init__(self, directory: str, *, replace: bool = True, replace_special: bool = True) -> None:
        """Open `directory`. Raises TransferFailed(DESTINATION) where it is missing or not writable."""
        self.path = directory
        self.replace = replace
        self.replace_special = replace_special
        """Whether a file may take the place of a single symlink, FIFO, socket or device, too."""
        self.staged: set[Staging] = set()
        """What is staged here now."""
        self._ahead_lock = threading.Lock()  # protects what each of them was granted
        try:
            self.fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            if not os.access(".", os.W_OK | os.X_OK, dir_fd=self.fd):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't write into {directory}") from None

    def staging(self, *, create: bool) -> int:
        """Open the staging directory, making it where it is missing. Raises OSError, TransferFailed(DESTINATION)."""
        if create:
            with contextlib.suppress(FileExistsError):
                os.mkdir(STAGING, 0o700, dir_fd=self.fd)
        fd = os.open(STAGING, os.O_RDONLY | os.O_DIRECTORY | _OPEN, dir_fd=self.fd)
        status = os.fstat(fd)
        wrong = None
        if status.st_dev != os.fstat(self.fd).st_dev:
            wrong = f"is on another file system than {self.path}: unmount it"
        elif status.st_uid != os.geteuid():
            wrong = "belongs to somebody else: remove it"
        if wrong:
            os.close(fd)
            raise TransferFailed(Code.DESTINATION, f"{self.path}/{STAGING} {wrong}")
        if status.st_mode & 0o022:
            os.fchmod(fd, 0o700)
        return fd

    def free_bytes(self) -> int:
        """Bytes that may still be written here, what was taken ahead for files under way included."""
        space = os.fstatvfs(self.fd)
        return space.f_bavail * space.f_frsize + sum([staged.ahead_bytes for staged in tuple(self.staged)])

    def grant_ahead(self, staged: "Staging", count: int) -> int:
        """Return how many of `count` bytes may be taken ahead of what a file has; none where that is not worth it.

        Where AHEAD_BYTES are lent, a file gets what it has earned alone, from then on.
        """
        enough = min(count, reserve.GRAIN_BYTES)
        if staged.ahead.is_on_its_own and staged.earned_bytes < enough:
            return 0
        with self._ahead_lock:
            lent = sum([max(0, -other.earned_bytes) for other in tuple(self.staged)])
            room = 0 if staged.ahead.is_on_its_own else max(0, reserve.AHEAD_BYTES - lent)
            granted = min(count, room + max(0, staged.earned_bytes))
            if granted < enough:
                staged.ahead.is_on_its_own = True
                return 0
            staged.ahead.granted_bytes += granted
            return granted

    def give_back_space(self) -> int:
        """Free what receivers that were killed had taken ahead: what no ledger covers, of files that nobody receives.

        Return about how many bytes.
        """
        try:
            staging = self.staging(create=False)
        except (OSError, TransferFailed):
            return 0
        try:
            names = {os.path.splitext(name) for name in os.listdir(staging)}
            return sum(_give_back(staging, stem) for stem, suffix in names if suffix == _SUFFIXES[0])
        finally:
            os.close(staging)

    def discard_older_than(self, seconds: float | None, now: float) -> tuple[int, int]:
        """Remove staged files that nothing was added to for `seconds`; None removes none.

        `now` is the time since the epoch, as file times are. Return how many staged files were removed, and how many
        are left. A file that another process is receiving stays. Small files of a tree whose receiver was killed are
        removed in any case, as nobody goes on with them.
        """
        try:
            staging = self.staging(create=False)
        except (OSError, TransferFailed):  # none, or none that a transfer will take either
            return 0, 0
        try:
            names = os.listdir(staging)
            keys = {stem for stem, suffix in map(os.path.splitext, names) if suffix in _SUFFIXES}
            trees = [name for name in names if name.endswith(TREE_SUFFIX)]
            for name in trees:
                _discard_tree(staging, name)
            removed = sum(_discard(staging, key, seconds, now) for key in keys) if seconds is not None else 0
        finally:
            os.close(staging)
        if removed or trees:
            self.tidy()
        return removed, len(keys) - removed

    def drop_ledger(self, name: bytes) -> None:
        """Remove the ledger of a file that was committed, which a crash may have left. Raises OSError."""
        key = Staging.key(name)
        with contextlib.suppress(FileNotFoundError, TransferFailed):
            staging = self.staging(create=False)
            try:
                _discard(staging, key, None, 0)
            finally:
                os.close(staging)
            self.tidy()

    def tidy(self) -> None:
        """Remove the staging directory where nothing is left in it."""
        with contextlib.suppress(OSError):
            os.rmdir(STAGING, dir_fd=self.fd)

    def stage(self, name: bytes, entry: Entry, grid: Grid, reserved_bytes: int) -> "Staging":
        """Open the staging of one file, new or left by an earlier run, and lock it against other processes.

        `reserved_bytes` is what other transfers are still going to write here. Raises TransferFailed: BUSY, EXISTS,
        DESTINATION, NO_SPACE (before anything is written).
        """
        try:
            self.check_final(name)
            return self.stage_below(name, entry, grid, reserved_bytes)
        except OSError as error:
            self.tidy()
            raise from_os_error(error, Code.DESTINATION, f"can't write {shown_path(self, name)}") from None
        except TransferFailed:
            self.tidy()
            raise

    def stage_below(self, path: bytes, entry: Entry, grid: Grid, reserved_bytes: int) -> "Staging":
        """Do the same for a file of a tree, whose final place is looked at by whoever opens its directory."""
        shown = shown_path(self, path)
        try:
            for _ in range(_RENAME_TRIES):
                with contextlib.suppress(FileNotFoundError):  # somebody tidied the staging directory just now
                    return Staging(
                        self,
                        self.staging(create=True),
                        name=path,
                        shown=shown,
                        entry=entry,
                        grid=grid,
                        reserved_bytes=reserved_bytes,
                    )
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't write {shown}") from None
        raise TransferFailed(Code.DESTINATION, f"can't write {shown}: the staging directory vanishes")

    def staged_keys(self) -> set[str]:
        """Return the keys of what earlier runs left in staging."""
        try:
            staging = self.staging(create=False)
        except (OSError, TransferFailed):
            return set()
        try:
            return {stem for stem, suffix in map(os.path.splitext, os.listdir(staging)) if suffix == _SUFFIXES[1]}
        finally:
            os.close(staging)

    def in_place(self, name: bytes, entry: Entry, grid: Grid) -> "InPlace | None":
        """Open what stands under the final name if it has the size and the mtime of `entry`; None if it has not."""
        shown = os.path.join(self.path, os.fsdecode(name))
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | _OPEN, dir_fd=self.fd)
        except OSError:  # whatever is wrong with it, staging is going to tell
            return None
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and (status.st_size, status.st_mtime_ns) == (entry.size, entry.mtime_ns):
            return InPlace(self, fd, name, shown, grid)
        os.close(fd)
        return None

    def check_final(self, name: bytes) -> None:
        """Check that a file may be put under this name. Raises TransferFailed (DESTINATION, EXISTS), OSError."""
        shown = os.path.join(self.path, os.fsdecode(name))
        try:
            there = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(there.st_mode):
            raise TransferFailed(Code.DESTINATION, f"can't write {shown}: it is a directory")
        if not (self.replace_special or stat.S_ISREG(there.st_mode)):
            raise TransferFailed(Code.DESTINATION, f"can't write {shown}: it is no plain file any more")
        if not self.replace:
            raise TransferFailed(Code.EXISTS, f"{shown} exists, and --no-replace forbids to replace it")


def clear_tree(tree_fd: int) -> None:
    """Remove what lies in the staging of a tree: files, and directories of files. Raises OSError."""
    for name in os.listdir(tree_fd):
        try:
            os.unlink(name, dir_fd=tree_fd)
        except IsADirectoryError:
            subdirectory = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _OPEN, dir_fd=tree_fd)
            try:
                for file in os.listdir(subdirectory):
                    os.unlink(file, dir_fd=subdirectory)
            finally:
                os.close(subdirectory)
            os.rmdir(name, dir_fd=tree_fd)


def _discard_tree(staging_fd: int, name: str) -> None:
    """Remove the staging of a tree that no process is receiving."""
    with contextlib.suppress(OSError):
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _OPEN, dir_fd=staging_fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_named(fd, name, staging_fd):
                clear_tree(fd)
                os.rmdir(name, dir_fd=staging_fd)
        finally:
            os.close(fd)


def discard_staged(staging_fd: int, path: bytes) -> None:
    """Remove what is staged of a file, unless somebody is receiving it."""
    _discard(staging_fd, Staging.key(path), -math.inf, 0)


def is_named(fd: int, name: str, directory_fd: int) -> bool:
    """Whether an open file or directory still has this name. Where it has not, another process's may have it."""
    try:
        return os.path.samestat(os.stat(name, dir_fd=directory_fd, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _locked(staging_fd: int, key: str) -> Iterator[tuple[int, bool]]:
    """Lock a staged file that nobody receives, by its ledger: its descriptor, and whether it had to be made for that.

    One that was made is removed again. Raises OSError where somebody receives it, and where its ledger is no file.
    """
    name = key + _SUFFIXES[1]
    flags = os.O_RDWR | os.O_NONBLOCK | _OPEN
    try:
        fd, is_new = os.open(name, flags, dir_fd=staging_fd), False
    except FileNotFoundError:
        fd, is_new = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=staging_fd), True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            if not is_named(fd, name, staging_fd):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            yield fd, is_new
        finally:
            if is_new and is_named(fd, name, staging_fd):
                os.unlink(name, dir_fd=staging_fd)
    finally:
        os.close(fd)


def _discard(staging_fd: int, key: str, seconds: float | None, now: float) -> bool:
    """Remove one staged file and its ledger if they are older than `seconds` and not in use; whether they were.

    None removes a ledger that has no staged file. What lies there that is no such file stays.
    """
    names = [key + suffix for suffix in _SUFFIXES]
    with contextlib.suppress(OSError):
        if not _is_stale(staging_fd, names, seconds, now):
            return False
        with _locked(staging_fd, key) as (_, is_new):
            if not _is_stale(staging_fd, names[:1] if is_new else names, seconds, now):
                return False  # somebody added to it until now
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=staging_fd)
        return True
    return False


def _is_stale(staging_fd: int, names: list[str], seconds: float | None, now: float) -> bool:
    found = {name: status for name in names if (status := _status(staging_fd, name)) is not None}
    if seconds is None:
        return len(found) == 1 and names[-1] in found
    return bool(found) and min(now - status.st_mtime for status in found.values()) >= seconds


def _status(directory_fd: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_own(status: os.stat_result) -> bool:
    """Whether it is a plain file of our own, which has no other name."""
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_nlink == 1


def _give_back(staging_fd: int, key: str) -> int:
    """Free what the ledger of a staged file does not cover, unless somebody receives it; return about how much."""
    with contextlib.suppress(OSError), _locked(staging_fd, key) as (ledger_fd, _):
        fd = os.open(key + _SUFFIXES[0], os.O_RDWR | os.O_NONBLOCK | _OPEN, dir_fd=staging_fd)
        try:
            before = os.fstat(fd)
            if not (_is_own(before) and _is_own(os.fstat(ledger_fd))):
                return 0
            claims = _read_ledger(ledger_fd) or ledger.Claims.none(Grid(before.st_size, limits.CHUNK_SIZE_DEFAULT))
            _free_unclaimed(fd, claims)
            os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))  # its age is that of what came last
            return max(0, before.st_blocks - os.fstat(fd).st_blocks) * 512
        finally:
            os.close(fd)
    return 0


def _free_unclaimed(fd: int, claims: ledger.Claims) -> None:
    """Free the space of what is not claimed, up to the end of the file. Raises OSError."""
    tail = ((claims.grid.size, size),) if (size := os.fstat(fd).st_size) > claims.grid.size else ()
    reserve.give_back(fd, itertools.chain(ledger.unclaimed(claims), tail), ledger.claimed_end(claims))


def _read_ledger(fd: int, today: Grid | None = None) -> ledger.Claims | None:
    """Read a ledger, for the grid of `today`; None where it is empty, damaged at its head, or longer than any.

    Raises OSError.
    """
    length = os.fstat(fd).st_size
    if not 0 < length <= ledger.BYTES_MAX:
        return None
    step = _RECORDS_AT_ONCE * ledger.RECORD_BYTES
    pieces = (os.pread(fd, step, at) for at in range(ledger.HEADER_BYTES, length, step))
    return ledger.decode(os.pread(fd, ledger.HEADER_BYTES, 0), pieces, today)


def owner(entry: Entry) -> tuple[int, int]:
    """Return the (uid, gid) that an entry asks for, -1 being any."""
    return (-1 if entry.uid is None else entry.uid, -1 if entry.gid is None else entry.gid)


class Readable:
    """A file of the destination that can be read: staged, or under its final name."""

    path: str
    """As people know it: its final name."""
    fd: int
    claims: ledger.Claims
    holes: tuple[Hole, ...] = ()
    """Where the file has no bytes of its own, and none is written."""

    def take_claims(self) -> ledger.Claims:
        """Return what is claimed to be there, on today's grid, and forget it here."""
        claims, self.claims = self.claims, ledger.Claims.none(self.claims.grid)
        return claims

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` with bytes of the file. Raises TransferFailed(DESTINATION)."""
        done = 0
        try:
            while done < len(view):
                count = os.preadv(self.fd, [view[done:]], offset + done)
                if not count:
                    raise TransferFailed(Code.DESTINATION, f"what is here of {self.path} is shorter than it was")
                done += count
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't read what is here of {self.path}") from None

    def digest(
        self, block: memoryview, grid: Grid, index: int, on_read: Callable[[int], object] | None = None
    ) -> bytes:
        """Return what a segment hashes to, read into `block` bit by bit. Raises TransferFailed(DESTINATION).

        `on_read` hears of the bytes as they are read.
        """
        hasher = segment_hasher()
        offset = grid.offset(index)
        end = offset + grid.length(index)
        while offset < end:
            view = block[: min(len(block), end - offset)]
            self.read_into(view, offset)
            hasher.update(view)
            offset += len(view)
            if on_read is not None:
                on_read(len(view))
        return hasher.digest()


def _has_data(fd: int, hole: Hole) -> bool:
    """Whether anything but zeros lies in a hole; all of it is read where the disk can't tell. Raises OSError."""
    at, end = hole.offset, hole.offset + hole.length
    while at < end:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but holes up to the end of the file
                return False
        content = os.pread(fd, max(0, min(end - at, limits.BLOCK_BYTES)), at)
        if any(content):
            return True
        at += len(content)
        if not content:
            return False
    return False


def _new_holes(fd: int, size: int, holes: Sequence[Hole]) -> Iterator[tuple[int, int]]:
    """Yield the ranges [start, end) outside of its holes for which the disk has no bytes of a file."""
    for start, end in outside_holes(0, size, holes):
        at = start
        while (at := _seek(fd, at, os.SEEK_HOLE, end)) < end:
            yield at, (at := min(end, _seek(fd, at, os.SEEK_DATA, end)))


def _seek(fd: int, at: int, how: int, otherwise: int) -> int:
    try:
        return os.lseek(fd, at, how)
    except OSError:  # there is none, or the file system can't tell
        return otherwise


def open_below(destination: Destination, path: bytes) -> Readable:
    """Open a file under its final name, to read it, following no symlink. Raises TransferFailed(DESTINATION)."""
    content = Readable()
    content.path = shown_path(destination, path)
    parts = path.split(b"/")
    fd = destination.fd
    try:
        for at, part in enumerate(parts):
            flags = os.O_NONBLOCK if at == len(parts) - 1 else os.O_DIRECTORY
            above, fd = fd, os.open(part, os.O_RDONLY | flags | _OPEN, dir_fd=fd)
            if at:
                os.close(above)
    except OSError as error:
        if fd != destination.fd:
            os.close(fd)
        raise from_os_error(error, Code.DESTINATION, f"can't read {content.path}") from None
    content.fd = fd
    return content


def write_at(fd: int, view: memoryview, offset: int, holes: Sequence[Hole]) -> None:
    """Write all of a file's bytes from `offset` on, but for its holes. Raises OSError."""
    if holes:
        for start, end in outside_holes(offset, offset + len(view), holes):
            write_at(fd, view[start - offset : end - offset], start, ())
        return
    written = os.pwrite(fd, view, offset)
    while written < len(view):
        written += os.pwrite(fd, view[written:], offset + written)


class InPlace(Readable):
    """A file that was committed before, and is only compared. Everything is claimed, with no digest."""

    def __init__(self, destination: Destination, fd: int, name: bytes, shown: str, grid: Grid) -> None:
        self.path = shown
        self._name = name
        self.fd = fd
        self.claims = ledger.Claims.all(grid)
        self._destination = destination

    def commit(self) -> None:
        """End what a crash may have interrupted after the rename. Raises TransferFailed(DESTINATION)."""
        try:
            os.fsync(self.fd)
            os.fsync(self._destination.fd)
            self._destination.drop_ledger(self._name)
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't sync {self.path}") from None

    def close(self) -> None:
        """Release the descriptor. Once."""
        os.close(self.fd)


class StagingMark(NamedTuple):
    """What tells whether staging that was closed is still as it was left: each write there is noted in its ledger."""

    inode: int
    ledger_inode: int
    ledger_bytes: int

    @classmethod
    def of(cls, staging_fd: int, path: bytes) -> "StagingMark | None":
        """Look at the staging of a file; None where there is none. Raises OSError."""
        key = Staging.key(path)
        try:
            data, noted = (os.stat(key + each, dir_fd=staging_fd, follow_symlinks=False) for each in _SUFFIXES)
        except FileNotFoundError:
            return None
        return cls(data.st_ino, noted.st_ino, noted.st_size)


class ClosedStaging(NamedTuple):
    """A complete file of a tree that was closed in staging, and waits to be put in place."""

    key: str
    looks: tuple[int, ...]
    """Which file it is, and when it was changed last."""

    def put(self, staging_fd: int, directory_fd: int, final: bytes, *, replace: bool) -> None:
        """Put it under its final name, after it was synced. Raises OSError.

        It is locked again for that: who has just opened it would write into what is under its final name.
        """
        try:
            data_name, ledger_name = (self.key + suffix for suffix in _SUFFIXES)
            with _locked(staging_fd, self.key):
                there = os.stat(data_name, dir_fd=staging_fd, follow_symlinks=False)
                if _looks(there) != self.looks:
                    raise OSError(errno.ESTALE, "somebody changed or replaced its staging: run it again")
                put_in_place(data_name, final, staging_fd, directory_fd, replace=replace)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(ledger_name, dir_fd=staging_fd)
        except BlockingIOError:
            raise OSError(errno.EBUSY, "another process receives it by now: run it again") from None

    def discard(self, staging_fd: int) -> None:
        """Remove the staged bytes and their ledger."""
        for suffix in _SUFFIXES:
            with contextlib.suppress(OSError):
                os.unlink(self.key + suffix, dir_fd=staging_fd)


def _looks(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def put_in_place(staged: str, final: bytes, staging_fd: int, directory_fd: int, *, replace: bool) -> None:
    """Give a staged file its final name. Raises OSError: FileExistsError where it may not replace what is there."""
    if replace:
        os.rename(staged, final, src_dir_fd=staging_fd, dst_dir_fd=directory_fd)
        return
    rename_new(staged, final, staging_fd, directory_fd)


class Staging(Readable):
    """One file in staging; its lock is held until `close`. `claims` is what its ledger says, on today's grid."""

    def __init__(
        self,
        destination: Destination,
        staging_fd: int,
        *,
        name: bytes,
        shown: str,
        entry: Entry,
        grid: Grid,
        reserved_bytes: int,
    ) -> None:
        self.path = shown
        self.entry = entry
        self.holes = entry.holes
        self._grid = grid
        self._destination = destination
        self._name = name
        key = self.key(name)
        self._data_name, self._ledger_name = f"{key}.data", f"{key}.ledger"
        self._fds = [staging_fd]
        self._staging_fd = staging_fd
        self._is_locked = False
        self._ledger_mutex = threading.Lock()  # protects the end of the ledger
        self._sync_mutex = threading.Lock()  # protects is_lost
        self.is_lost = False
        """What was written can't be trusted: a sync failed and the staging was discarded, or somebody changed it."""
        self.expected_digest: Callable[[int], bytes] = lambda _: ledger.UNKNOWN_DIGEST
        """Returns what each segment hashes to, once all are here."""
        self.ahead = reserve.Ahead(entry.size, entry.holes)
        self.fd = -1
        self._was_there_bytes = 0
        self._written: dict[int, int] = {}
        """Bytes that each thread has written, by its ident: no lock, as each changes its own alone."""
        try:
            self._ledger_fd = self._open_ledger()
            self._check_space(entry.size - sum(hole.length for hole in entry.holes), reserved_bytes)
            self._drop_filled_holes()
            self.claims = self._load(grid)
            self.fd = self._open(self._data_name, os.O_RDWR | os.O_CREAT)
            os.ftruncate(self.fd, entry.size)
            self._free_unclaimed()
            destination.staged.add(self)
        except BaseException:
            self._discard_if_empty()
            self.close()
            raise

    @staticmethod
    def key(path: bytes) -> str:
        """Return under which name a file is staged that goes to this path."""
        return segment_digest(path).hex()

    def _open(self, name: str, flags: int, *, with_lock: bool = False) -> int:
        """Open a staged file, making it where it is missing. One that has other names, too, is left to those."""
        fd = os.open(name, flags | os.O_NONBLOCK | _OPEN, 0o600, dir_fd=self._staging_fd)
        self._fds.append(fd)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise TransferFailed(Code.DESTINATION, f"{self.path}: its staging is no plain file of our own: remove it")
        if with_lock:  # before anything is changed: it may be another process's
            self._lock(fd, name)
        if status.st_nlink > 1:
            os.unlink(name, dir_fd=self._staging_fd)
            return self._open(name, flags | os.O_EXCL, with_lock=with_lock)
        return fd

    def _open_ledger(self) -> int:
        """Open and lock the ledger. Raises TransferFailed (BUSY, DESTINATION), OSError."""
        fd = self._open(self._ledger_name, os.O_RDWR | os.O_CREAT | os.O_APPEND, with_lock=True)
        self._is_locked = True
        return fd

    def _lock(self, fd: int, name: str) -> None:
        """Lock a file; what was locked must still have that name. Raises TransferFailed(BUSY)."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TransferFailed(Code.BUSY, f"{self.path} is being received by another process") from None
        if not is_named(fd, name, self._staging_fd):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def _load(self, grid: Grid) -> ledger.Claims:
        """Read what an earlier run left; write the ledger anew where it is not exactly that, on today's grid."""
        length = os.fstat(self._ledger_fd).st_size
        found, is_exact = None, False
        if 0 < length <= ledger.BYTES_MAX and self._data_exists():
            is_todays = ledger.decode_header(os.pread(self._ledger_fd, ledger.HEADER_BYTES, 0)) == grid
            # One at a time: what is loaded of another grid is up to CHUNKS_PER_FILE bytes, whatever today's is.
            with contextlib.nullcontext() if is_todays else _TRANSLATING:
                found = _read_ledger(self._ledger_fd, grid)
                if found is not None:
                    is_exact = ledger.is_exact(length, found, grid)
                    found = ledger.claims_on(found, grid)
        claims = ledger.Claims.none(grid) if found is None else found
        if not is_exact:
            self._begin_ledger(grid, claims)
        return claims

    def _begin_ledger(self, grid: Grid, claims: ledger.Claims) -> None:
        """Write the ledger anew, a piece at a time: as a whole it would be twice as large as the claims."""
        os.ftruncate(self._ledger_fd, 0)
        self._write_ledger(ledger.encode_header(grid))
        records = claims.records()
        while some := list(itertools.islice(records, _RECORDS_AT_ONCE)):
            self._write_ledger(ledger.encode_records(some))

    def _drop_filled_holes(self) -> None:
        """Start anew where an earlier run left anything but zeros in what is a hole now: nobody writes there again."""
        if self.holes and self._data_exists():
            fd = self._open(self._data_name, os.O_RDWR)
            if any(_has_data(fd, hole) for hole in self.holes):
                os.unlink(self._data_name, dir_fd=self._staging_fd)

    def _data_exists(self) -> bool:
        return _status(self._staging_fd, self._data_name) is not None

    def _free_unclaimed(self) -> None:
        """Begin with the space of what an earlier run noted alone: what else it had taken is decided anew."""
        if os.fstat(self.fd).st_blocks:
            with contextlib.suppress(OSError):
                _free_unclaimed(self.fd, self.claims)
                os.ftruncate(self.fd, self.entry.size)
        self._was_there_bytes = os.fstat(self.fd).st_blocks * 512

    def _check_space(self, size: int, reserved_bytes: int) -> None:
        status = _status(self._staging_fd, self._data_name)
        there = status.st_blocks * 512 if status is not None else 0
        free = self._destination.free_bytes() - reserved_bytes
        if size - there > free:
            raise TransferFailed(
                Code.NO_SPACE, f"no space for {self.path}: {size - there} bytes are missing and {max(0, free)} are free"
            )

    def _write_ledger(self, content: bytes) -> None:
        """Append whole records or none. Raises OSError.

        Several threads do; a part of a record would put all that follow it out of step, until the file is staged anew.
        """
        with self._ledger_mutex:
            length = os.fstat(self._ledger_fd).st_size
            view = memoryview(content)
            try:
                while view:
                    view = view[os.write(self._ledger_fd, view) :]
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._ledger_fd, length)
                raise

    def reserve(self, is_over: Callable[[], bool]) -> bool:
        """Take space ahead of the bytes, as much as may be by now, until it `is_over`.

        Return whether all of it is taken. Raises TransferFailed: NO_SPACE.
        """
        try:
            return self.ahead.take(self.fd, lambda count: self._destination.grant_ahead(self, count), is_over)
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't take the space for {self.path}") from None

    def give_back(self, ranges: Iterable[tuple[int, int]], kept_end: int) -> None:
        """Free the space of ranges [start, end) that nothing was written to, now that nobody writes any more.

        The bytes that are to be kept end at `kept_end`. Nothing is done to what is no staging of ours any more.
        """
        with contextlib.suppress(OSError):
            if self._has_lock() and is_named(self.fd, self._data_name, self._staging_fd) and _is_own(os.fstat(self.fd)):
                reserve.give_back(self.fd, ranges, kept_end)

    @property
    def taken_bytes(self) -> int:
        """About how many bytes it has on the disk by now; what was written twice counts twice."""
        return self._was_there_bytes + sum(list(self._written.values()))

    @property
    def earned_bytes(self) -> int:
        """How much more may be taken ahead for what was written; below zero: what is lent to it beyond that."""
        return 2 * self.taken_bytes - self.ahead.granted_bytes

    @property
    def ahead_bytes(self) -> int:
        """About how much of the space that was taken ahead is still to be written to."""
        try:
            return max(0, os.fstat(self.fd).st_blocks * 512 - self.taken_bytes)
        except OSError:  # it was closed a moment ago
            return 0

    def write(self, view: memoryview, offset: int) -> None:
        """Write bytes at their place. Raises TransferFailed: NO_SPACE, DESTINATION."""
        try:
            write_at(self.fd, view, offset, self.holes)
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't write {self.path}") from None
        thread = threading.get_ident()
        self._written[thread] = self._written.get(thread, 0) + len(view)

    def append(self, view: memoryview, size: int) -> None:
        """Write the next bytes of a file that has `size` by now, and grows. Raises TransferFailed: as `write`."""
        there = os.fstat(self.fd).st_size
        if there != size:
            raise self._poisoned(f"it has {there} bytes, and {size} were written")
        self.write(view, size)

    def record(self, records: list[tuple[int, bytes]]) -> None:
        """Append (segment, digest) pairs to the ledger, before they are acknowledged."""
        try:
            self._write_ledger(ledger.encode_records(records))
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't write the ledger of {self.path}") from None

    def write_back(self) -> None:
        """Have the kernel write what it holds, so that the last sync is short. Raises as `commit` does."""
        try:
            self._sync(os.fdatasync)
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't write {self.path}") from None

    def seal(self, share: Share, root: bytes) -> None:
        """Make a share durable here that its sender has finished. Raises as `commit` does."""
        try:
            self._sync(os.fsync)
            digest = ledger.seal(self._grid, self.entry.mtime_ns, share, root)
            self._write_ledger(ledger.encode_records([ledger.seal_record(share, digest)]))
            os.fsync(self._ledger_fd)
            os.fsync(self._staging_fd)
            os.fsync(self._destination.fd)
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't keep a share of {self.path}") from None

    def commit(self) -> None:
        """Put the file under its final name, durably. Raises TransferFailed: DESTINATION, NO_SPACE, EXISTS.

        A failed sync discards the staging: what the kernel dropped can't be found by hashing what it still caches.
        """
        try:
            self._finish()
            self._sync(os.fsync)
            self._rename(self._destination.fd, self._name)
            os.fsync(self._destination.fd)
            self._drop_ledger()
            self._destination.tidy()
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't put {self.path} in place") from None

    def _finish(self) -> None:
        """Give it its owner, mode and times, now that nobody writes any more. Raises OSError.

        What is longer was left by somebody; what is shorter is found by `_check_whole`.
        """
        if os.fstat(self.fd).st_size > self.entry.size:
            os.ftruncate(self.fd, self.entry.size)
        if owner(self.entry) != (-1, -1):
            os.fchown(self.fd, *owner(self.entry))
        os.fchmod(self.fd, self.entry.mode & 0o777)
        os.utime(self.fd, ns=(self.entry.mtime_ns, self.entry.mtime_ns))

    def prepare(self) -> None:
        """Make a file of a tree ready to be synced with others. Raises TransferFailed, OSError."""
        with self._sync_mutex:
            if self.is_lost:
                raise TransferFailed(Code.DESTINATION, f"an earlier sync of {self.path} failed: run it again")
        self._finish()

    def kept(self) -> ClosedStaging:
        """Return what puts a file of a tree in place after it was closed. Raises TransferFailed, OSError."""
        self._check_named()
        self._check_whole()
        status = os.fstat(self.fd)
        return ClosedStaging(self.key(self._name), _looks(status))

    def mark(self) -> StagingMark | None:
        """Return what it looks like, as nobody writes it; None where nothing is noted. Raises OSError."""
        noted = os.fstat(self._ledger_fd)
        if noted.st_size <= ledger.HEADER_BYTES:
            return None
        return StagingMark(os.fstat(self.fd).st_ino, noted.st_ino, noted.st_size)

    def _sync(self, sync: Callable[[int], None]) -> None:
        """Sync the bytes. Raises OSError and discards the staging where that fails, and again ever after.

        The kernel tells a failed write once for each open file: whoever syncs next would not hear of it.
        """
        with self._sync_mutex:
            if self.is_lost:
                raise OSError(errno.EIO, "an earlier sync failed")
            try:
                sync(self.fd)
            except OSError:
                self.is_lost = True
                self.discard()
                raise

    def _check_named(self) -> None:
        """Check that the staging still has its names. Raises TransferFailed(DESTINATION), OSError."""
        if not (self._has_lock() and is_named(self.fd, self._data_name, self._staging_fd)):
            raise TransferFailed(Code.DESTINATION, f"{self.path}: somebody replaced its staging: send it again")

    def _rename(self, directory_fd: int, final: bytes) -> None:
        self._check_named()
        self._check_whole()
        if self._destination.replace:
            os.rename(self._data_name, final, src_dir_fd=self._staging_fd, dst_dir_fd=directory_fd)
            return
        try:
            rename_new(self._data_name, final, self._staging_fd, directory_fd)
        except FileExistsError:
            raise TransferFailed(Code.EXISTS, f"{self.path} exists by now, and --no-replace forbids it") from None

    def _check_whole(self) -> None:
        """Check that everything that was written is still there: somebody may have shortened it meanwhile.

        Where it was made longer again after that, the file system has holes that were written to. It may have them for
        zeros, too, so that their segments are read and compared. Raises TransferFailed(DESTINATION), OSError.
        """
        status = os.fstat(self.fd)
        if status.st_size != self.entry.size:
            raise self._poisoned(f"it has {status.st_size} bytes, and {self.entry.size} were written")
        expected_bytes = self.entry.size - sum(hole.length for hole in self.holes)
        if not os.major(status.st_dev) and status.st_blocks * 512 >= expected_bytes:
            return  # no disk of its own: in memory, looking for holes would visit every page
        block = memoryview(bytearray(limits.BLOCK_BYTES))
        grid = self._grid
        for start, end in _new_holes(self.fd, self.entry.size, self.holes):
            for index in range(start // grid.chunk_size, min(grid.segments, -(-end // grid.chunk_size))):
                if self.digest(block, grid, index) != self.expected_digest(index):
                    raise self._poisoned(f"bytes {start} to {end} are gone")

    def _poisoned(self, what: str) -> TransferFailed:
        """Trust nothing of it until it is opened anew: what is there is hashed again then."""
        self.is_lost = True
        return TransferFailed(Code.DESTINATION, f"{self.path}: somebody changed its staging ({what}): run it again")

    def _has_lock(self) -> bool:
        """Whether what lies in staging under its names is its own: another process's where somebody cleared it."""
        return self._is_locked and is_named(self._ledger_fd, self._ledger_name, self._staging_fd)

    def _drop_ledger(self) -> None:
        if self._has_lock():
            os.unlink(self._ledger_name, dir_fd=self._staging_fd)

    def discard(self) -> None:
        """Remove the staged bytes and their ledger."""
        with contextlib.suppress(OSError):
            if self._has_lock():
                with contextlib.suppress(OSError):
                    os.unlink(self._data_name, dir_fd=self._staging_fd)
                os.unlink(self._ledger_name, dir_fd=self._staging_fd)

    def _discard_if_empty(self) -> None:
        """Leave nothing behind where staging could not begin, and an earlier run left nothing either."""
        if self._is_locked and not self._data_exists():
            self.discard()

    def close(self) -> None:
        """Release the descriptors, and with them the lock; where nothing was noted, the space, too. Idempotent."""
        self._destination.staged.discard(self)
        if self._fds:
            self._discard_if_nothing_was_noted()
        self.fd = self._ledger_fd = self._staging_fd = -1  # the numbers may be another file's from now on
        try:
            while self._fds:
                os.close(self._fds.pop())
        except OSError:  # of what was written; the others are open
            self.close()
            raise
        self._destination.tidy()

    def _discard_if_nothing_was_noted(self) -> None:
        """Keep no space for what can't be resumed. What has the names by now may be another one's."""
        with contextlib.suppress(OSError):
            if self._is_locked and os.fstat(self._ledger_fd).st_size <= ledger.HEADER_BYTES:
                self.discard()
