"""The destination directory: staging, commit, and nothing outside of it (proto/README.md, "Paths").

Everything is opened relative to directory descriptors, without following a symlink. An incomplete file lives in
`.filestreamer/` (0700), under the digest of its destination path, so that any later run finds it:

    KEY.data     its bytes, at their places
    KEY.ledger   which of them are there; its flock keeps a second process away

Commit (`Staged.commit`): truncate, mode, times; sync the file; rename it; sync the directory; drop the ledger. A crash
between any two of these leaves either the staged file or the final one, never half of it under the final name.
A file that was committed from shards is looked at where it is (`InPlace`) when one of them comes again.
"""

import contextlib
import errno
import fcntl
import math
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from receiver import ledger
from receiver.reserve import reserve
from wire import limits
from wire.digests import segment_digest
from wire.errors import Code, TransferFailed, from_os_error
from wire.grid import Grid, Share, outside_holes
from wire.messages import Entry, Hole

STAGING: Final = ".filestreamer"
_OPEN: Final = os.O_CLOEXEC | os.O_NOFOLLOW
_SUFFIXES: Final = (".data", ".ledger")
TREE_SUFFIX: Final = ".tree"
_UNSOUND: Final = re.compile(
    rb"(?:^|/)(?:\.{0,2}|%s|[^/]{%d,})(?:/|\Z)|\0" % (re.escape(STAGING.encode()), limits.NAME_BYTES + 1)
)
"""A path with any of these may not be written."""
_RENAME_TRIES: Final = 3
_RECORDS_AT_ONCE: Final = 32768


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

    def __init__(self, directory: str, *, replace: bool = True) -> None:
        """Open `directory`. Raises TransferFailed(DESTINATION) where it is missing or not writable."""
        self.path = directory
        self.replace = replace
        self.staged: set[Staged] = set()
        """What is staged here now."""
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
        key = Staged.key(name)
        with contextlib.suppress(FileNotFoundError, TransferFailed):
            staging = self.staging(create=False)
            try:
                if f"{key}.data" not in os.listdir(staging):
                    _discard(staging, key, -math.inf, 0)
            finally:
                os.close(staging)
            self.tidy()

    def tidy(self) -> None:
        """Remove the staging directory where nothing is left in it."""
        with contextlib.suppress(OSError):
            os.rmdir(STAGING, dir_fd=self.fd)

    def stage(self, name: bytes, entry: Entry, grid: Grid, reserved_bytes: int) -> "Staged":
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

    def stage_below(self, path: bytes, entry: Entry, grid: Grid, reserved_bytes: int) -> "Staged":
        """Do the same for a file of a tree, whose final place is looked at by whoever opens its directory."""
        shown = shown_path(self, path)
        try:
            for _ in range(_RENAME_TRIES):
                with contextlib.suppress(FileNotFoundError):  # somebody tidied the staging directory just now
                    return Staged(
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
        if not self.replace:
            raise TransferFailed(Code.EXISTS, f"{shown} exists, and --no-replace forbids to replace it")


def clear_tree(tree_fd: int) -> None:
    """Remove what lies in the staging of a tree: files, and directories of files. Raises OSError."""
    for name in os.listdir(tree_fd):
        try:
            os.unlink(name, dir_fd=tree_fd)
        except IsADirectoryError:
            shelf = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _OPEN, dir_fd=tree_fd)
            try:
                for file in os.listdir(shelf):
                    os.unlink(file, dir_fd=shelf)
            finally:
                os.close(shelf)
            os.rmdir(name, dir_fd=tree_fd)


def _discard_tree(staging_fd: int, name: str) -> None:
    """Remove the staging of a tree that no process is receiving."""
    with contextlib.suppress(OSError):
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _OPEN, dir_fd=staging_fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            clear_tree(fd)
            os.rmdir(name, dir_fd=staging_fd)
        finally:
            os.close(fd)


def _discard(staging_fd: int, key: str, seconds: float, now: float) -> bool:
    """Remove one staged file and its ledger if they are older than `seconds` and not in use; whether they were.

    What lies there that is no such file stays.
    """
    with contextlib.suppress(OSError):
        return _discard_files(staging_fd, key, seconds, now)
    return False


def discard_staged(staging_fd: int, path: bytes) -> None:
    """Remove what is staged of a file, unless somebody is receiving it."""
    _discard(staging_fd, Staged.key(path), -math.inf, 0)


def _discard_files(staging_fd: int, key: str, seconds: float, now: float) -> bool:
    names = [key + suffix for suffix in _SUFFIXES]
    ages = []
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            ages.append(now - os.stat(name, dir_fd=staging_fd, follow_symlinks=False).st_mtime)
    if not ages or min(ages) < seconds:
        return False
    fd = os.open(names[1], os.O_RDWR | os.O_CREAT | _OPEN, 0o600, dir_fd=staging_fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=staging_fd)
    finally:
        os.close(fd)
    return True


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
    taken_bytes = 0
    """About how many bytes it takes on the disk by now: a hint for what others may still take."""

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
        self.taken_bytes = grid.size
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


class Mark(NamedTuple):
    """What tells whether staging that was closed is still as it was left: nobody writes there and notes nothing."""

    inode: int
    ledger_inode: int
    ledger_bytes: int

    @classmethod
    def of(cls, staging_fd: int, path: bytes) -> "Mark | None":
        """Look at the staging of a file; None where there is none. Raises OSError."""
        key = Staged.key(path)
        try:
            data, noted = (os.stat(key + each, dir_fd=staging_fd, follow_symlinks=False) for each in _SUFFIXES)
        except FileNotFoundError:
            return None
        return cls(data.st_ino, noted.st_ino, noted.st_size)


class Kept(NamedTuple):
    """A complete file of a tree that was closed in staging, and waits to be put in place."""

    data_name: str
    ledger_name: str
    device: int
    inode: int

    def put(self, staging_fd: int, directory_fd: int, final: bytes, *, replace: bool) -> None:
        """Put it under its final name, after it was synced. Raises OSError."""
        there = os.stat(self.data_name, dir_fd=staging_fd, follow_symlinks=False)
        if (there.st_dev, there.st_ino) != (self.device, self.inode):
            raise FileNotFoundError(errno.ENOENT, "somebody replaced its staging: send it again")
        put_in_place(self.data_name, final, staging_fd, directory_fd, replace=replace)
        os.unlink(self.ledger_name, dir_fd=staging_fd)

    def discard(self, staging_fd: int) -> None:
        """Remove the staged bytes and their ledger."""
        for name in (self.data_name, self.ledger_name):
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=staging_fd)


def put_in_place(staged: str, final: bytes, staging_fd: int, directory_fd: int, *, replace: bool) -> None:
    """Give a staged file its final name. Raises OSError: FileExistsError where it may not replace what is there."""
    if replace:
        os.rename(staged, final, src_dir_fd=staging_fd, dst_dir_fd=directory_fd)
        return
    os.link(staged, final, src_dir_fd=staging_fd, dst_dir_fd=directory_fd, follow_symlinks=False)
    os.unlink(staged, dir_fd=staging_fd)


class Staged(Readable):
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
        """A sync failed, and the staging was discarded."""
        try:
            self._ledger_fd = self._open(self._ledger_name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            self._lock()
            self._check_space(entry.size - sum(hole.length for hole in entry.holes), reserved_bytes)
            self._drop_filled_holes()
            self.claims = self._load(grid)
            self.fd = self._open(self._data_name, os.O_RDWR | os.O_CREAT)
            os.ftruncate(self.fd, entry.size)
            destination.staged.add(self)
        except BaseException:
            self._discard_if_empty()
            self.close()
            raise

    @staticmethod
    def key(path: bytes) -> str:
        """Return under which name a file is staged that goes to this path."""
        return segment_digest(path).hex()

    def _open(self, name: str, flags: int) -> int:
        """Open a staged file, making it where it is missing. One that has other names, too, is left to those."""
        fd = os.open(name, flags | os.O_NONBLOCK | _OPEN, 0o600, dir_fd=self._staging_fd)
        self._fds.append(fd)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise TransferFailed(Code.DESTINATION, f"{self.path}: its staging is no plain file of our own: remove it")
        if status.st_nlink > 1:
            os.unlink(name, dir_fd=self._staging_fd)
            return self._open(name, flags | os.O_EXCL)
        return fd

    def _lock(self) -> None:
        """Lock the ledger; what was locked must still be the file of that name. Raises TransferFailed(BUSY)."""
        try:
            fcntl.flock(self._ledger_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TransferFailed(Code.BUSY, f"{self.path} is being received by another process") from None
        there = os.stat(self._ledger_name, dir_fd=self._staging_fd, follow_symlinks=False)
        if there.st_ino != os.fstat(self._ledger_fd).st_ino:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        self._is_locked = True

    def _load(self, grid: Grid) -> ledger.Claims:
        """Read what an earlier run left; write the ledger anew where it is not exactly that, on today's grid."""
        length = os.fstat(self._ledger_fd).st_size
        found = None
        if 0 < length <= ledger.BYTES_MAX and self._data_exists():
            first = os.pread(self._ledger_fd, ledger.HEADER_BYTES, 0)
            found = ledger.decode(first, self._ledger_pieces(length))
        if found is None:
            found = ledger.Claims.none(grid)
        claims = ledger.claims_on(found, grid)
        if not ledger.is_exact(length, found, grid):
            os.ftruncate(self._ledger_fd, 0)
            self._write_ledger(ledger.encode_header(grid) + ledger.encode_records(claims.records()))
        return claims

    def _drop_filled_holes(self) -> None:
        """Start anew where an earlier run left anything but zeros in what is a hole now: nobody writes there again."""
        if self.holes and self._data_exists():
            fd = self._open(self._data_name, os.O_RDWR)
            if any(_has_data(fd, hole) for hole in self.holes):
                os.unlink(self._data_name, dir_fd=self._staging_fd)

    def _ledger_pieces(self, length: int) -> Iterator[bytes]:
        step = _RECORDS_AT_ONCE * ledger.RECORD_BYTES
        for at in range(ledger.HEADER_BYTES, length, step):
            yield os.pread(self._ledger_fd, step, at)

    def _data_exists(self) -> bool:
        try:
            os.stat(self._data_name, dir_fd=self._staging_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _check_space(self, size: int, reserved_bytes: int) -> None:
        try:
            there = os.stat(self._data_name, dir_fd=self._staging_fd, follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:
            there = 0
        self.taken_bytes = there
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

    def reserve(self, is_over: Callable[[], bool]) -> None:
        """Take the space of all of it ahead, until it `is_over`. Raises TransferFailed: NO_SPACE."""
        try:
            reserve(self.fd, self.entry.size, self.holes, is_over)
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't take the space for {self.path}") from None

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
        self.taken_bytes += len(view)

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
            os.unlink(self._ledger_name, dir_fd=self._staging_fd)
            self._destination.tidy()
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't put {self.path} in place") from None

    def _finish(self) -> None:
        """Give it its size, owner, mode and times, now that nobody writes any more. Raises OSError."""
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

    def kept(self) -> Kept:
        """Return what puts a file of a tree in place after it was closed. Raises OSError."""
        status = os.fstat(self.fd)
        return Kept(self._data_name, self._ledger_name, status.st_dev, status.st_ino)

    def mark(self) -> Mark | None:
        """Return what it looks like, as nobody writes it; None where nothing is noted. Raises OSError."""
        noted = os.fstat(self._ledger_fd)
        if noted.st_size <= ledger.HEADER_BYTES:
            return None
        return Mark(os.fstat(self.fd).st_ino, noted.st_ino, noted.st_size)

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

    def _rename(self, directory_fd: int, final: bytes) -> None:
        there = os.stat(self._data_name, dir_fd=self._staging_fd, follow_symlinks=False)
        if not os.path.samestat(there, os.fstat(self.fd)):
            raise TransferFailed(Code.DESTINATION, f"{self.path}: somebody replaced its staging: send it again")
        to = {"src_dir_fd": self._staging_fd, "dst_dir_fd": directory_fd}
        if self._destination.replace:
            os.rename(self._data_name, final, **to)
            return
        try:
            os.link(self._data_name, final, follow_symlinks=False, **to)
        except FileExistsError:
            raise TransferFailed(Code.EXISTS, f"{self.path} exists by now, and --no-replace forbids it") from None
        os.unlink(self._data_name, dir_fd=self._staging_fd)

    def discard(self) -> None:
        """Remove the staged bytes and their ledger."""
        for name in (self._data_name, self._ledger_name):
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self._staging_fd)

    def _discard_if_empty(self) -> None:
        """Leave nothing behind where staging could not begin, and an earlier run left nothing either."""
        if self._is_locked and not self._data_exists():
            self.discard()

    def close(self) -> None:
        """Release the descriptors, and with them the lock; where nothing was noted, the space, too. Idempotent."""
        self._destination.staged.discard(self)
        if self._fds:
            self._discard_if_nothing_was_noted()
        while self._fds:
            os.close(self._fds.pop())
        self._destination.tidy()

    def _discard_if_nothing_was_noted(self) -> None:
        """Keep no space for what can't be resumed. What has the names by now may be another one's."""
        with contextlib.suppress(OSError):
            if self._is_locked and os.fstat(self._ledger_fd).st_size <= ledger.HEADER_BYTES:
                there = os.stat(self._ledger_name, dir_fd=self._staging_fd, follow_symlinks=False)
                if os.path.samestat(there, os.fstat(self._ledger_fd)):
                    self.discard()
