"""Complete files of a tree go to their final names here, batch by batch (proto/README.md, "Trees").

    write      whole, with mode and times, into KEY.tree/ in staging (`TreeStaging`); a large file into its own staging
    sync       the file system, once for thousands of files
    rename     each into its directory, opened component by component, no symlink followed (`Directories`)

So what stands under a final name is all there, even after a power failure; the sync of the next batch, or that at the
end, covers the renames. A batch whose sync failed is discarded.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from filestreamer.process.threads import run_to_end, start_thread
from filestreamer.wire import limits
from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import Code, FilestreamerError, TransferFailed, from_os_error
from filestreamer.wire.messages import Entry
from receiver.disk import descriptors
from receiver.disk.store import (
    TREE_SUFFIX,
    ClosedStaging,
    Destination,
    clear_tree,
    is_named,
    owner,
    put_in_place,
    shown_path,
)

BATCH_FILES: Final = 8192
BATCH_BYTES: Final = 256 * limits.MIB
BATCH_SECONDS: Final = 5.0
"""How long a complete file may wait for others."""
BACKLOG_BATCHES: Final = 4
"""How many batches may wait before connections do."""
SHELVES: Final = 16
"""Directories in the staging of a tree: two threads that change one directory wait for each other."""
MODE_BITS: Final = 0o777
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RENAME_TRIES: Final = 3


def sync_file_system(fd: int) -> None:
    """Make everything durable that was written to the file system of this descriptor. Raises OSError."""
    if _libc.syncfs(fd):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_libc: Final = ctypes.CDLL(None, use_errno=True)


class Directory(NamedTuple):
    """An open directory of the destination."""

    fd: int
    is_new: bool
    """Whether this transfer made it: nothing is there that it did not put there."""


class Directories:
    """Opens directories below the destination, and keeps the last few open. For one thread."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._device = os.fstat(destination.fd).st_dev
        self._most = descriptors.directories(descriptors.allowed())
        self._open: OrderedDict[bytes, Directory] = OrderedDict({b"": Directory(destination.fd, False)})

    def get(self, path: bytes, *, create: bool = False) -> Directory:
        """Open the directory at `path`, b"" being the destination; `create` makes what is missing of it.

        Raises TransferFailed: PATH where it leads through something that is no directory, DESTINATION.
        """
        known = self._open.get(path)
        if known is not None:
            self._open.move_to_end(path)
            return known
        parts = path.split(b"/")
        depth = next(depth for depth in range(len(parts), -1, -1) if b"/".join(parts[:depth]) in self._open)
        here, borrowed = self._open[b"/".join(parts[:depth])], True
        for part in parts[depth:]:
            try:
                below = self._enter(here, part, path, create=create)
            finally:
                if not borrowed:
                    os.close(here.fd)
            here, borrowed = below, False
        return self._keep(path, here)

    def _enter(self, parent: Directory, name: bytes, path: bytes, *, create: bool) -> Directory:
        try:
            is_new = create and _make_directory(parent.fd, name, MODE_BITS)
            return self._open_directory(parent.fd, name, is_new=is_new)
        except OSError as error:
            code = Code.PATH if error.errno in (errno.ENOTDIR, errno.ELOOP) else Code.DESTINATION
            what = f"can't write below {self.shown(path)}: it leads through something that is no directory"
            raise from_os_error(error, code, what if code is Code.PATH else f"can't open {self.shown(path)}") from None

    def _open_directory(self, parent_fd: int, name: bytes, *, is_new: bool) -> Directory:
        fd = os.open(name, _OPEN_DIRECTORY, dir_fd=parent_fd)
        if os.fstat(fd).st_dev != self._device:
            os.close(fd)
            raise OSError(errno.EXDEV, "it is on another file system than the destination")
        return Directory(fd, is_new)

    def _keep(self, path: bytes, directory: Directory) -> Directory:
        self._open[path] = directory
        while len(self._open) > self._most:
            oldest = next(key for key in self._open if key and key != path)
            os.close(self._open.pop(oldest).fd)
        return directory

    def make(self, path: bytes, mode: int) -> Directory:
        """Make the directory at `path`, or take the one that is there: one that its owner may write into.

        Raises TransferFailed: PATH, DESTINATION.
        """
        parent, _, name = path.rpartition(b"/")
        above = self.get(parent, create=True)
        known = self._open.get(path)
        if known is not None:
            return known
        try:
            is_new = _make_directory(above.fd, name, mode | stat.S_IRWXU)
            directory = self._keep(path, self._open_directory(above.fd, name, is_new=is_new))
            there = os.fstat(directory.fd)
            if there.st_mode & stat.S_IRWXU != stat.S_IRWXU and there.st_uid == os.geteuid():
                os.fchmod(directory.fd, stat.S_IMODE(there.st_mode) | stat.S_IRWXU)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                reason = f"can't make the directory {self.shown(path)}: something else is there"
                raise TransferFailed(Code.DESTINATION, reason) from None
            raise from_os_error(error, Code.DESTINATION, f"can't make the directory {self.shown(path)}") from None
        return directory

    def shown(self, path: bytes) -> str:
        """Return a path as people know it."""
        return shown_path(self._destination, path)

    def close(self) -> None:
        """Close what is open."""
        for path, directory in self._open.items():
            if path:
                os.close(directory.fd)
        self._open.clear()


def _make_directory(parent_fd: int, name: bytes, mode: int) -> bool:
    """Make a directory; whether it was not there. Raises OSError."""
    try:
        os.mkdir(name, mode, dir_fd=parent_fd)
    except FileExistsError:
        return False
    return True


def put_attributes(fd: int, entry: Entry, *, mode_is_right: bool = False) -> None:
    """Give an open file or directory the owner, mode and times of its entry. Raises OSError."""
    if owner(entry) != (-1, -1):
        os.fchown(fd, *owner(entry))
        mode_is_right = False
    if not mode_is_right:
        os.fchmod(fd, entry.mode & MODE_BITS)
    os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))


class TreeStaging:
    """`.filestreamer/KEY.tree/`: complete files of a tree until they are put in place. Its flock keeps others away."""

    def __init__(self, destination: Destination, name: bytes) -> None:
        """Make it for the tree with this root, and empty it. Raises TransferFailed: BUSY, DESTINATION."""
        self._destination = destination
        self._name = segment_digest(name).hex() + TREE_SUFFIX
        self._staging_fd, self.fd = -1, -1
        self._is_locked = False
        try:
            self._open(shown_path(destination, name))
            clear_tree(self.fd)
            probe = os.open("probe", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE_BITS, dir_fd=self.fd)
            self._dropped_bits = MODE_BITS & ~os.fstat(probe).st_mode
            """Mode bits that a new file does not get: the umask's, or those of the directory's default ACL."""
            os.close(probe)
            os.unlink("probe", dir_fd=self.fd)
            for subdirectory in range(SHELVES):
                os.mkdir(str(subdirectory), 0o700, dir_fd=self.fd)
        except OSError as error:
            self.close()
            raise from_os_error(error, Code.DESTINATION, f"can't write into {destination.path}") from None
        except TransferFailed:
            self.close()
            raise

    @property
    def files_fd(self) -> int:
        """The directory where large files are staged."""
        return self._staging_fd

    def _open(self, shown: str) -> None:
        for _ in range(_RENAME_TRIES):
            with contextlib.suppress(FileNotFoundError):  # somebody tidied up just now
                self._staging_fd = self._destination.staging(create=True)
                with contextlib.suppress(FileExistsError):
                    os.mkdir(self._name, 0o700, dir_fd=self._staging_fd)
                self.fd = os.open(self._name, _OPEN_DIRECTORY, dir_fd=self._staging_fd)
                self._check_owner(shown)
                try:
                    fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise TransferFailed(Code.BUSY, f"{shown} is being received by another process") from None
                if is_named(self.fd, self._name, self._staging_fd):
                    self._is_locked = True
                    return
            self._close_descriptors()
        raise FileNotFoundError(errno.ENOENT, "the staging directory vanishes")

    def _check_owner(self, shown: str) -> None:
        """Take no directory that somebody else may change. Raises TransferFailed(DESTINATION), OSError."""
        status = os.fstat(self.fd)
        if status.st_uid != os.geteuid():
            raise TransferFailed(Code.DESTINATION, f"the staging of {shown} belongs to somebody else: remove it")
        if status.st_mode & 0o077:
            os.fchmod(self.fd, 0o700)

    def name(self, file_id: int, connection_id: int = 0) -> str:
        """Return where a file is staged: files of one batch apart from those of the next, and each connection's."""
        return f"{(2 * connection_id + file_id // BATCH_FILES % 2) % SHELVES}/{file_id}"

    def create(self, name: str, entry: Entry) -> int:
        """Open a new file for an entry; `has_mode` says whether it has its mode by that. Raises OSError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(name, flags, entry.mode & MODE_BITS, dir_fd=self.fd)

    def has_mode(self, entry: Entry) -> bool:
        """Whether a file that was created for this entry has its mode."""
        return not entry.mode & self._dropped_bits

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self.fd)

    def close(self) -> None:
        """Remove everything that was not put in place, and the lock. Idempotent. What others have locked stays."""
        if self._is_locked:
            with contextlib.suppress(OSError):
                clear_tree(self.fd)
                if is_named(self.fd, self._name, self._staging_fd):
                    os.rmdir(self._name, dir_fd=self._staging_fd)
        self._close_descriptors()
        self._destination.tidy()

    def _close_descriptors(self) -> None:
        for fd in (self.fd, self._staging_fd):
            if fd >= 0:
                os.close(fd)
        self._staging_fd, self.fd = -1, -1
        self._is_locked = False


class StagedFile(NamedTuple):
    """A complete file that waits to be put in place."""

    path: bytes
    staged: str | ClosedStaging | Callable[[], ClosedStaging]
    """Its name in the tree's staging, or what a large file has in staging, or what closes such a file."""
    size: int
    """Bytes that were written."""


class Committer:
    """Puts complete files in place, in a thread of its own."""

    def __init__(
        self,
        destination: Destination,
        staging: TreeStaging,
        failed: Callable[[FilestreamerError], None],
        placed: Callable[[bytes], None],
    ) -> None:
        """`failed` hears why a file can't be put in place, `placed` the path of each that is."""
        self._destination = destination
        self._staging = staging
        self._failed = failed
        self._placed = placed
        self._changed = threading.Condition()  # protects what follows
        self._waiting: list[StagedFile] = []
        self._waiting_bytes = 0
        self._waiting_since = 0.0
        self._is_flushing = False
        self._is_hurried = False
        self._is_busy = False
        self._is_ended = False
        self._is_over = False
        self._error: FilestreamerError | None = None
        self._is_lost = False
        """A sync failed: nothing that was written before can be trusted."""
        self._thread: threading.Thread | None = None
        self._directories = Directories(destination)

    def begin(self) -> None:
        """Start the thread, before there is anything that would be lost without it. Raises TransferFailed(LIMIT)."""
        thread = threading.Thread(target=self._run, name="place", daemon=True)
        start_thread(thread, "putting files in place")
        self._thread = thread

    def add(self, files: list[StagedFile], size: int, *, waits: bool = True) -> None:
        """Put these files, of `size` bytes together, in place soon; `waits` where too many do already."""
        with self._changed:
            while waits and self._is_far_behind():
                self._changed.wait()
            if self._error is None:
                if not self._waiting:
                    self._waiting_since = time.monotonic()
                self._waiting += files
                self._waiting_bytes += size
                if self._is_due():
                    self._changed.notify_all()
                return
        self._discard(files)

    def _is_far_behind(self) -> bool:
        far = len(self._waiting) > BACKLOG_BATCHES * BATCH_FILES or self._waiting_bytes > BACKLOG_BATCHES * BATCH_BYTES
        return far and self._error is None and not (self._is_ended or self._is_over)

    @property
    def is_far_behind(self) -> bool:
        """Whether so many wait that nothing more is to be taken."""
        with self._changed:
            return self._is_far_behind()

    def hurry(self) -> None:
        """Put in place at once what waits for others: somebody waits for what it has open."""
        with self._changed:
            self._is_hurried = bool(self._waiting)
            self._changed.notify_all()

    def let_go(self) -> None:
        """Let nobody wait any more: the transfer is over."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _is_due(self) -> bool:
        if not self._waiting:
            return False
        if self._is_flushing or self._is_ended or self._is_hurried:
            return True
        full = len(self._waiting) >= BATCH_FILES or self._waiting_bytes >= BATCH_BYTES
        return full or time.monotonic() - self._waiting_since > BATCH_SECONDS

    def flush(self) -> None:
        """Wait until everything that was added is in place. Raises why something is not."""
        with self._changed:
            self._is_flushing = True
            self._changed.notify_all()
            while (self._waiting or self._is_busy) and self._error is None:
                self._changed.wait()
            self._is_flushing = False
            if self._error is not None:
                raise self._error

    def end(self) -> None:
        """Put in place what is complete, and end the thread, however long a sync takes. Idempotent."""
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._directories.close()

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            error = run_to_end("putting files in place", lambda batch=batch: self._put(batch))  # type: ignore[misc]
            with self._changed:
                self._is_busy = False
                waiting: list[StagedFile] = []
                if error is not None:
                    self._error = error
                    waiting, self._waiting = self._waiting, []
                self._changed.notify_all()
            if error is not None:
                self._failed(error)
                self._discard(waiting)
                return

    def _next_batch(self) -> list[StagedFile] | None:
        with self._changed:
            while not self._is_due():
                if self._is_ended:
                    return None
                self._changed.wait(1.0)
            batch, self._waiting, self._waiting_bytes = self._waiting, [], 0
            self._is_busy = True
            self._is_hurried = False
            self._changed.notify_all()
            return batch

    def _put(self, batch: list[StagedFile]) -> None:
        """Put a batch in place. Raises TransferFailed where one can't be; the others are, all the same."""
        whole_files, failure = self._close_all(batch)
        try:
            sync_file_system(self._staging.fd)
        except OSError as error:
            self._is_lost = True
            self._discard(whole_files)
            raise from_os_error(error, Code.DESTINATION, f"can't sync {self._destination.path}") from None
        for whole in whole_files:
            try:
                self._put_one(whole)
                self._placed(whole.path)
            except TransferFailed as error:
                failure = failure or error
                self._discard([whole])
        if failure is not None:
            raise failure

    def _close_all(self, batch: list[StagedFile]) -> tuple[list[StagedFile], TransferFailed | None]:
        """Close what is open of a batch; return what was closed, and why something could not be finished."""
        closed, failure = [], None
        for whole in batch:
            try:
                closed.append(whole._replace(staged=whole.staged()) if callable(whole.staged) else whole)
            except TransferFailed as error:
                failure = failure or error
        return closed, failure

    def _put_one(self, whole: StagedFile) -> None:
        parent, _, name = whole.path.rpartition(b"/")
        directory = self._directories.get(parent)
        try:
            replace = self._destination.replace
            assert not callable(whole.staged)  # it was closed before the sync
            if isinstance(whole.staged, ClosedStaging):
                whole.staged.put(self._staging.files_fd, directory.fd, name, replace=replace)
            else:
                self._check_whole(whole.staged, whole)
                put_in_place(whole.staged, name, self._staging.fd, directory.fd, replace=replace)
        except OSError as error:
            shown = shown_path(self._destination, whole.path)
            if isinstance(error, FileExistsError):
                reason = f"{shown} exists by now, and --no-replace forbids to replace it"
                raise TransferFailed(Code.EXISTS, reason) from None
            raise from_os_error(error, Code.DESTINATION, f"can't put {shown} in place") from None

    def _check_whole(self, staged: str, whole: StagedFile) -> None:
        """Check that a small file is as it was written. Raises TransferFailed(DESTINATION), OSError."""
        status = os.stat(staged, dir_fd=self._staging.fd, follow_symlinks=False)
        if status.st_size != whole.size or not stat.S_ISREG(status.st_mode):
            what = f"it has {status.st_size} bytes, and {whole.size} were written"
            reason = f"{shown_path(self._destination, whole.path)}: somebody changed its staging ({what}): run it again"
            raise TransferFailed(Code.DESTINATION, reason)

    def _discard(self, files: Iterable[StagedFile]) -> None:
        """Drop files that can't be put in place; large ones are for the next run, unless a sync failed."""
        for whole in files:
            staged = whole.staged
            if callable(staged):
                try:
                    staged = staged()
                except TransferFailed:
                    continue
            if not isinstance(staged, ClosedStaging):
                self._staging.remove(staged)
            elif self._is_lost:
                staged.discard(self._staging.files_fd)
