"""The staging of one incomplete file: opened or resumed, written, and committed under its final name.

Its files are KEY.data and KEY.ledger in the staging directory (`paths`), locked until `close`. Its life, in the order
of this module: `open`; `write` and `record`, by the threads of the connections; then `commit`, or `seal` where other
shards are missing, or `prepare` in a tree; then `close`.
"""

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from filestreamer.wire import limits
from filestreamer.wire.errors import Code, TransferFailed, from_os_error
from filestreamer.wire.grid import Grid, Share
from filestreamer.wire.messages import Entry, Segment
from receiver.disk.attributes.attributes import Attributes
from receiver.disk.attributes.inheritance import create_as_in
from receiver.disk.destination import Destination, shown_path
from receiver.disk.existing import Fate, Policy, permitted
from receiver.disk.filesystem import inodes
from receiver.disk.filesystem.kind import stores_every_byte
from receiver.disk.filesystem.sync import sync_directory
from receiver.disk.final_name import put_in_place
from receiver.disk.obstacles import Obstacle, write_failure
from receiver.disk.paths import DATA_SUFFIX, LEDGER_SUFFIX, STAGING, staging_key
from receiver.disk.place import NO_LOCKS, Place, is_ours
from receiver.disk.report import Report
from receiver.disk.space import (
    FileSpace,
    data_bytes,
    free_ranges,
    make_zeros,
    write_apart,
    write_at,
)
from receiver.disk.staging import ledger
from receiver.disk.staging.closed_share import ClosedShare
from receiver.disk.staging.closed_staging import ClosedStaging, StagingMark, identity_of
from receiver.disk.staging.known_holes import KnownHoles
from receiver.disk.staging.ledger_file import LedgerFile
from receiver.disk.staging.lock import Lock, is_named, is_own, lock
from receiver.disk.staging.readable import Readable
from receiver.disk.staging.shared_names import SharedNames
from receiver.disk.staging.staged_file import open_staged
from receiver.disk.staging.sweep import free_unclaimed

_OPEN_TRIES: Final = 3
_NO_FILE: Final = (errno.EISDIR, errno.ELOOP)
"""The errors of open(2) where a directory or a symlink has the name of a file in staging."""
Create = Callable[[int, str], int | None]
"""Makes a file in staging, given the descriptor of staging and the name; None where `Staging` is to make it."""


class Staging(Readable):
    """One file in staging. `claims` is what its ledger says, on today's grid."""

    _is_prepared = False
    """Whether it waits for its final name: it stays then, even if nothing is in its ledger, as of a file of zeros."""

    policy: Policy | None = None
    """What becomes of what has the final name by the time of the commit; None: what the destination says."""
    was_left = False
    """Whether that was left as it is, and the staged file was not put in place."""

    # --- opening

    @classmethod
    def open_single_file(
        cls, destination: Destination, name: bytes, entry: Entry, grid: Grid, reserved_bytes: int
    ) -> "Staging":
        """Open the staging of a file that goes to the top of the destination, if it may be put there.

        Arguments and errors are those of `open`; EXISTS too.
        """
        try:
            destination.check_final(name)
            return cls.open(destination, name, entry, grid, reserved_bytes)
        except OSError as error:
            destination.tidy()
            raise from_os_error(error, Code.DESTINATION, f"can't write {shown_path(destination, name)}") from None
        except TransferFailed:
            destination.tidy()
            raise

    @classmethod
    def open(
        cls,
        place: Place,
        path: bytes,
        entry: Entry,
        grid: Grid,
        reserved_bytes: int = 0,
        *,
        create: Create | None = None,
        shared: SharedNames | None = None,
    ) -> "Staging":
        """Open the staging of a file, new or left by an earlier run, and lock it against other processes.

        `path` is its final path in its place; the caller has checked what is there. `reserved_bytes` is what other
        transfers are still going to write here. `create` makes the file if its final directory hands down what staging
        does not; without it, that directory is the place. `shared` opens one share of a file that several shards of a
        tree write: its seal is void from now on.

        Raises TransferFailed: BUSY, DESTINATION, NO_SPACE (before anything is written).
        """
        shown = shown_path(place, path)
        try:
            for _ in range(_OPEN_TRIES):
                # Another transfer removes the staging directory when it leaves it empty, maybe just now: try again.
                with contextlib.suppress(FileNotFoundError), _guarding(shared):
                    return cls(place, path, entry, grid, reserved_bytes, create, shared)
        except OSError as error:
            raise write_failure(error, f"can't write {shown}") from None
        raise TransferFailed(Code.DESTINATION, f"can't write {shown}: another process keeps removing .filestreamer/")

    def __init__(  # noqa: PLR0917 - only `open` calls it
        self,
        place: Place,
        path: bytes,
        entry: Entry,
        grid: Grid,
        reserved_bytes: int,
        create: Create | None,
        shared: SharedNames | None = None,
    ) -> None:
        """Try once to open the staging (`open` tries again). Raises TransferFailed, OSError."""
        super().__init__(shown_path(place, path), -1)
        self.entry = entry
        self.space = FileSpace(place.space, entry.size if entry.data_bytes is None else 0)
        self.expected_digest: Callable[[int], bytes | None] = lambda _: ledger.UNKNOWN_DIGEST
        """Returns the digest that each segment must have, once all of them are written; None for one of zeros."""
        self.known_holes = KnownHoles(grid)
        self.is_lost = False
        """Whether what was written can't be trusted: a sync failed, or another process changed the staging."""
        self.place = place
        self._grid = grid
        self._final_name = path
        self._shared = shared
        self._key = staging_key(path) if shared is None else shared.key
        self._data_name = self._key + DATA_SUFFIX if shared is None else shared.data
        self._ledger_name = self._key + LEDGER_SUFFIX
        self._ledger = LedgerFile()
        self._lock: Lock | None = None
        self._sync_mutex = threading.Lock()  # protects is_lost while a file is synced
        self._staging_fd = place.open_staging(create=True)
        self._fds = [self._staging_fd]
        """The descriptors that `close` closes."""
        try:
            # The lock comes first: nothing may be changed that another process is using. Space comes second: if the
            # file does not fit, the bytes of an earlier run stay as they are.
            self._ledger.fd = self._open_file(self._ledger_name, os.O_RDWR | os.O_CREAT | os.O_APPEND, with_lock=True)
            self._check_space(reserved_bytes)
            self.claims = self._load_claims()
            self.fd = self._open_data(create)
            os.ftruncate(self.fd, entry.size)
            self._free_unclaimed()
            if entry.data_bytes is not None:
                self.known_holes.count_claimed(self.fd, self.claims)
            self.space.open(self.fd)
        except BaseException:
            if self._is_locked and not self._data_exists():
                self.discard()  # an earlier run left nothing, so this one leaves nothing
            self.close()
            raise

    def _open_file(self, name: str, flags: int, *, with_lock: bool = False) -> int:
        """Open a file of this staging. Raises TransferFailed (BUSY), Obstacle, OSError."""
        try:
            fd = open_staged(name, flags, self._staging_fd)
        except OSError as error:
            if error.errno in _NO_FILE:  # as it stands, the error would be told of the final name
                raise self._not_usable(name) from None
            raise inodes.explain(error, self._staging_fd) from None
        self._fds.append(fd)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not is_ours(status, self._staging_fd):
            raise self._not_usable(name)
        if with_lock:
            try:
                self._lock = lock(fd, name, self._staging_fd)
            except BlockingIOError:
                raise TransferFailed(Code.BUSY, f"{self.path} is locked by another process; retrying") from None
            if self._lock.is_file:
                self.place.lacks(NO_LOCKS)
        if status.st_nlink > 1:  # never write into a file that may be in use under another name
            os.unlink(name, dir_fd=self._staging_fd)
            if with_lock and self._lock is not None:
                self._lock.release()
            return self._open_file(name, flags | os.O_EXCL, with_lock=with_lock)
        return fd

    def _not_usable(self, name: str) -> Obstacle:
        why = f"its staging ({STAGING}/{name}) is not a plain file of this user: remove it"
        return Obstacle(Code.DESTINATION, f"{self.path}: {why}", why)

    def _load_claims(self) -> ledger.Claims:
        """Read the ledger; that of a share is not sealed any more. Raises OSError."""
        if not self._data_exists():  # a crash after the rename leaves a ledger without staged bytes
            claims = ledger.Claims.none(self._grid)
            self._ledger.rewrite(self._grid, claims)
            return claims
        claims = self._ledger.load(self._grid)
        if self._shared is not None and claims.seals:
            claims.seals.clear()
            self._ledger.rewrite(self._grid, claims)
        return claims

    def _open_data(self, create: Create | None) -> int:
        """Open the staged bytes; a new file has what its final directory hands down. Raises as `_open_file`."""
        if self._keeps_data():
            return self._open_file(self._data_name, os.O_RDWR | os.O_CREAT)
        create = create or partial(create_as_in, self._destination.fd)
        fd = create(self._staging_fd, self._data_name)
        if fd is not None:
            self._fds.append(fd)
        else:
            fd = self._open_file(self._data_name, os.O_RDWR | os.O_CREAT)
        if self._shared is not None:
            self.place.sealed_shares.forget(map(self._shared.key_of, self._shared.indices), os.fstat(fd))
        return fd

    def _keeps_data(self) -> bool:
        """Whether there are staged bytes to go on with; such as must not be written to are removed. Raises OSError."""
        try:
            status = os.stat(self._data_name, dir_fd=self._staging_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if is_own(status, self._staging_fd) or not stat.S_ISREG(status.st_mode):
            return True
        # Another name may be the final one (a crash between link and unlink). A file of another owner was given away,
        # and then a crash prevented its rename: it may have a setuid bit. Both may be such that we can't open them.
        os.unlink(self._data_name, dir_fd=self._staging_fd)
        return False

    def _check_space(self, reserved_bytes: int) -> None:
        """Check whether the missing bytes can fit on the disk. Raises TransferFailed(NO_SPACE), OSError."""
        try:
            there_bytes = os.stat(self._data_name, dir_fd=self._staging_fd, follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:
            there_bytes = 0
        missing_bytes = data_bytes(self.entry) - there_bytes
        free_bytes = max(0, self.place.free_bytes() - reserved_bytes)  # others may have promised more than there is
        if missing_bytes > free_bytes and stores_every_byte(self._staging_fd):
            reason = f"{missing_bytes} bytes are missing and {free_bytes} are free"
            raise TransferFailed(Code.NO_SPACE, f"no space for {self.path}: {reason}")

    def _data_exists(self) -> bool:
        try:
            os.stat(self._data_name, dir_fd=self._staging_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _free_unclaimed(self) -> None:
        """Free the space that an earlier run took ahead: this run gets its own share. Raises OSError."""
        if self._shared is None and os.fstat(self.fd).st_blocks:
            with contextlib.suppress(OSError):
                free_unclaimed(self.fd, self.claims)
                os.ftruncate(self.fd, self.entry.size)  # a file system that can't punch holes has cut the file

    # --- writing, by any thread

    def write(self, view: memoryview, offset: int) -> None:
        """Write bytes at this offset of the file. Raises TransferFailed: NO_SPACE, DESTINATION."""
        try:
            write_at(self.fd, view, offset)
        except OSError as error:
            raise write_failure(error, f"can't write {self.path}") from None
        self.space.count_written(len(view))

    def write_run(self, view: memoryview, offset: int, length: int, distance: int) -> None:
        """Write segments of `length` bytes, the first one at this offset, each further one `distance` behind.

        Raises TransferFailed, as `write`.
        """
        try:
            write_apart(self.fd, view, offset, length, distance)
        except OSError as error:
            raise write_failure(error, f"can't write {self.path}") from None
        self.space.count_written(len(view))

    def begin_sparse(self, segment: Segment) -> None:
        """Make the holes of a segment zeros, whose data is written next. Raises TransferFailed: as `write`."""
        self.make_zeros((start, end) for start, end, is_data in segment.pieces() if not is_data)

    def make_zeros(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Make bytes [start, end) of the file zeros. Raises TransferFailed: as `write`."""
        try:
            for start, end in ranges:
                make_zeros(self.fd, start, end)
        except OSError as error:
            raise write_failure(error, f"can't write {self.path}") from None

    def append(self, view: memoryview, size: int) -> None:
        """Write the next bytes of a stream that has `size` bytes by now. Raises TransferFailed: as `write`."""
        there_bytes = os.fstat(self.fd).st_size
        if there_bytes != size:
            raise self._poisoned(f"it has {there_bytes} bytes, and {size} were written")
        self.write(view, size)

    def record(self, records: list[tuple[int, bytes]]) -> None:
        """Append (segment, digest) pairs to the ledger; the caller acknowledges the segments only after that.

        Raises TransferFailed: NO_SPACE, DESTINATION.
        """
        try:
            self._ledger.append(ledger.encode_records(records))
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't write the ledger of {self.path}") from None

    # --- beside the writing threads

    def reserve(self, is_over: Callable[[], bool]) -> bool:
        """Take space ahead of the bytes, as much as may be taken by now, until `is_over`.

        Return whether all of it is taken. Raises TransferFailed(NO_SPACE).
        """
        if self._shared is not None:  # most of the file is for others to write
            return True
        try:
            return self.space.take(is_over)
        except OSError as error:
            raise write_failure(error, f"can't take the space for {self.path}") from None

    def write_back(self) -> None:
        """Have the kernel write dirty pages to the disk, so that the last sync is short. Raises as `commit` does."""
        try:
            self._sync(os.fdatasync)
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't write {self.path}") from None

    def _sync(self, sync: Callable[[int], None]) -> None:
        """Sync the bytes. Raises OSError, and discards the staging, where that fails; every later sync fails, too."""
        with self._sync_mutex:
            # The kernel reports a failed write once for each open file, and then treats its pages as clean. A second
            # sync would succeed although bytes are missing, and hashing would read pages that are only in memory.
            if self.is_lost:
                raise OSError(errno.EIO, "an earlier sync failed")
            try:
                sync(self.fd)
            except OSError:
                self.is_lost = True
                self.discard()
                raise

    # --- the end of a file that is complete, or of a share of it

    @property
    def _destination(self) -> Destination:
        """Where a single file goes: only a tree has files in other places."""
        assert isinstance(self.place, Destination)
        return self.place

    def commit(self, attributes: Attributes | None = None) -> None:
        """Put the complete file under its final name, durably. No thread writes any more.

        A crash between any two steps leaves the staged file or the final one, and never half of it under the final
        name. Without `attributes` nobody is told what can't be set of the file. Raises TransferFailed: DESTINATION,
        NO_SPACE, EXISTS. A failed sync discards the staging.
        """
        try:
            self._cut_and_put_attributes(attributes, 0)
            # Before the rename: a crash must not leave the final name on a file whose bytes are not on the disk.
            self._sync(os.fsync)
            self._check_named()
            self._check_whole()
            destination = self._destination
            destination.check_path()
            if not self._put_in_place():
                self.place.tidy()
                return
            # Before Complete is sent: only this sync makes the rename durable.
            sync_directory(destination.fd)
            destination.check_path()
            # Last: as long as the file may be in staging after a crash, its ledger must be there to resume it.
            if self._has_lock():
                os.unlink(self._ledger_name, dir_fd=self._staging_fd)
            self.place.tidy()
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't put {self.path} in place") from None

    def _put_in_place(self) -> bool:
        """Give the file its final name; return False where what has the name by now is left as it is.

        Raises OSError, TransferFailed(EXISTS).
        """

        def put(replace: bool) -> None:
            put_in_place(self._data_name, self._final_name, self._staging_fd, self._destination.fd, replace=replace)

        policy = self.policy or permitted(replace=self._destination.replace)
        fate = policy.put(put, self._final_name, self._destination.fd, lambda: self.entry.mtime_ns)
        if fate is Fate.REFUSED:
            raise TransferFailed(Code.EXISTS, f"{self.path} exists by now, and {policy.because}")
        self.was_left = fate is Fate.LEFT
        if self.was_left:
            self.discard()
        return not self.was_left

    def _cut_and_put_attributes(self, attributes: Attributes | None, file_id: int) -> None:
        """Set the size of the file, and all that its entry has. Raises OSError."""
        # Bytes beyond the end are not from this sender. A file that is too short must stay so: `_check_whole` finds it.
        if os.fstat(self.fd).st_size > self.entry.size:
            os.ftruncate(self.fd, self.entry.size)
        (attributes or Attributes(Report(lambda: None))).put_file(self.fd, self.entry, file_id)

    def seal(self, share: Share, root: bytes) -> None:
        """Make a share durable in staging that its sender has finished, and note that in the ledger.

        `root` is the root digest of the share. Raises as `commit` does.
        """
        try:
            # Before the seal: it says that the bytes of the share are on the disk.
            self._sync(os.fsync)
            digest = ledger.seal_digest(self._grid, self.entry.mtime_ns, share, root)
            self._ledger.append(ledger.encode_records([ledger.seal_record(share, digest)]))
            # Before Complete is sent: make the seal, both names, and the staging directory durable.
            os.fsync(self._ledger.fd)
            sync_directory(self._staging_fd)
            sync_directory(self.place.fd)
            self._destination.check_path()
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't keep a share of {self.path}") from None

    def prepare(
        self, attributes: Attributes | None = None, file_id: int = 0, root: bytes = b""
    ) -> ClosedStaging | ClosedShare:
        """Finish a complete file of a tree, up to its sync and its rename: these come for many files at once.

        Return what puts the file in place after it was closed here. `root` is the root digest of a share.
        Raises TransferFailed(DESTINATION), OSError.
        """
        with self._sync_mutex:
            if self.is_lost:
                raise TransferFailed(Code.DESTINATION, f"an earlier sync of {self.path} failed: run the command again")
        if self._shared is None:  # what a shared file has is set by the shard that puts it in place
            self._cut_and_put_attributes(attributes, file_id)
        if self.place.syncs_each:
            self._sync(os.fsync)
        self._check_named()
        self._check_whole()
        self._is_prepared = True
        if self._shared is not None:
            place = self.place
            return ClosedShare(
                self._shared, root, self.entry, file_id, attributes, place.sealed_shares, place.syncs_each
            )
        return ClosedStaging(self._key, identity_of(os.fstat(self.fd)))

    def mark(self) -> StagingMark | None:
        """Return what this staging looks like, while no thread writes; None where nothing was noted. Raises OSError."""
        if not self._ledger.has_records:
            return None
        noted = os.fstat(self._ledger.fd)
        return StagingMark(os.fstat(self.fd).st_ino, noted.st_ino, noted.st_size)

    # --- changes by other processes

    @property
    def _is_locked(self) -> bool:
        return self._lock is not None

    def _has_lock(self) -> bool:
        """Return whether our lock still protects the names in staging: another process may have removed our ledger."""
        return self._lock is not None and self._lock.is_held

    def _check_named(self) -> None:
        """Check that both files of this staging still have their names. Raises TransferFailed(DESTINATION), OSError."""
        if not (self._has_lock() and is_named(self.fd, self._data_name, self._staging_fd)):
            reason = "another process replaced its staging: run the same command again"
            raise TransferFailed(Code.DESTINATION, f"{self.path}: {reason}")

    def _check_whole(self) -> None:
        """Check that all bytes that were written are still there. Raises TransferFailed(DESTINATION), OSError."""
        status = os.fstat(self.fd)
        if status.st_size != self.entry.size:
            raise self._poisoned(f"it has {status.st_size} bytes, and {self.entry.size} were written")
        # A file that was shortened and made longer again has holes where bytes were written. But a file system may also
        # store zeros as holes: so where it has more holes than the sender told, what is in them is read and compared.
        block = memoryview(bytearray(limits.BLOCK_BYTES))
        for index in self.known_holes.suspects(self.fd):
            expected = self.expected_digest(index)
            if expected is not None and self.digest(block, self._grid, index) != expected:
                start = self._grid.offset(index)
                raise self._poisoned(f"some of its bytes {start} to {start + self._grid.length(index)} are gone")

    def _poisoned(self, what: str) -> TransferFailed:
        """Mark the staging as not to be trusted until it is opened and hashed again; return the error that says so."""
        self.is_lost = True
        reason = f"another process changed its staging ({what}): run the same command again"
        return TransferFailed(Code.DESTINATION, f"{self.path}: {reason}")

    # --- the end

    def discard(self) -> None:
        """Remove the staged bytes and their ledger, unless the names are another process's by now.

        Of a shared file, the bytes stay as long as another share has a ledger.
        """
        with contextlib.suppress(OSError), _guarding(self._shared):
            if self._has_lock():
                if self._shared is not None:
                    os.unlink(self._ledger_name, dir_fd=self._staging_fd)
                    if not self._shared.has_ledgers(self._staging_fd):
                        os.unlink(self._data_name, dir_fd=self._staging_fd)
                    return
                with contextlib.suppress(OSError):
                    os.unlink(self._data_name, dir_fd=self._staging_fd)
                os.unlink(self._ledger_name, dir_fd=self._staging_fd)

    def give_back(self, ranges: Iterable[tuple[int, int]], kept_end: int) -> None:
        """Free the space of ranges [start, end) that were not received, when no thread writes any more.

        The last byte that is to be kept ends at `kept_end`. Nothing is done to a file that was committed meanwhile, or
        whose staging is another process's by now.
        """
        if self._shared is not None:
            return
        with contextlib.suppress(OSError):
            is_here = self._has_lock() and is_named(self.fd, self._data_name, self._staging_fd)
            if is_here and is_own(os.fstat(self.fd), self._staging_fd):
                free_ranges(self.fd, ranges, kept_end)

    def close(self) -> None:
        """Release the descriptors, and with them the lock. Idempotent. Raises OSError after all are closed."""
        self.space.close()
        if self._fds:
            with contextlib.suppress(OSError):
                # Bytes without a record in the ledger can't be resumed: they would only take space.
                if self._is_locked and not (self._ledger.has_records or self._is_prepared):
                    self.discard()
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        # Another file may get these descriptor numbers now: a thread that is still writing must not write into it.
        self.fd = self._ledger.fd = self._staging_fd = -1
        try:
            while self._fds:
                os.close(self._fds.pop())
        except OSError:  # close(2) reports a failed write; the other descriptors are still open
            self.close()
            raise
        self.place.tidy()


def _guarding(shared: SharedNames | None) -> contextlib.AbstractContextManager[object]:
    """Keep other shares of a file from being opened or discarded at the same moment."""
    return shared.guard if shared is not None else contextlib.nullcontext()
