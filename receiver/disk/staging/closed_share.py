"""The share of a large file that one shard of a tree has finished: sealed, and the file put in place by the last one.

    seal     the ledger of the share says that all of it is in staging, durably, and what its digest is
    sealed   whether every share is sealed: one that another process sealed is re-hashed before it counts
    put      set the attributes of the file, rename it to its final name, and remove all ledgers

A crash between any two steps leaves the shares that were sealed, or the file under its final name.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Final, NamedTuple

from filestreamer.wire import limits
from filestreamer.wire.grid import Share
from filestreamer.wire.messages import Entry
from receiver.disk.attributes.attributes import Attributes
from receiver.disk.final_name import put_in_place
from receiver.disk.paths import LEDGER_SUFFIX
from receiver.disk.place import is_ours
from receiver.disk.sealed_shares import SealedShares
from receiver.disk.space import make_zeros
from receiver.disk.staging import ledger
from receiver.disk.staging.ledger_file import read_ledger
from receiver.disk.staging.lock import has_one_name, locked
from receiver.disk.staging.readable import Readable
from receiver.disk.staging.shared_names import SharedNames
from receiver.disk.staging.staged_copy import copy_file
from receiver.disk.staging.staged_file import open_staged, take_back

_CHANGED: Final = "another process changed or removed its staging: run the same command again"


class ClosedShare(NamedTuple):
    """A share that is complete, was closed in staging, and is synced before it is sealed."""

    names: SharedNames
    root: bytes | None
    """The root digest of the share; None where an earlier run has sealed it."""
    entry: Entry
    file_id: int
    attributes: Attributes | None
    here: SealedShares
    """The shares that this process has sealed, or has found to be on the disk."""
    syncs_each: bool
    """Whether no sync of the whole file system reaches its ledger."""

    @contextlib.contextmanager
    def sealed(self, staging_fd: int) -> Iterator[bool]:
        """Seal the share. Yield whether all shares are sealed: then the file is to be put in place in the block.

        A share that was sealed before may be gone by now, as another shard has put the file in place.
        Raises OSError, TransferFailed(DESTINATION).
        """
        names = self.names
        with names.guard, locked(staging_fd, names.key) as (fd, is_new):
            try:
                data = os.stat(names.data, dir_fd=staging_fd, follow_symlinks=False)
            except FileNotFoundError:
                data = None
            if data is None or is_new:
                if self.root is not None:
                    raise OSError(errno.ESTALE, _CHANGED)
                yield False
                return
            if self.root is not None:
                self._append_seal(fd, self.root)
                self.here.add(names.key, data)
            if self.syncs_each:  # also the seal of an earlier run, which may have been killed before it synced that
                os.fsync(fd)
            others = [Share(index, names.share.count) for index in names.indices if index != names.share.index]
            are_sealed = all(self._is_sealed(staging_fd, other, data) for other in others)
            yield are_sealed and self._is_proven(staging_fd, names.share, fd, data)

    def _append_seal(self, fd: int, root: bytes) -> None:
        """Append the seal to the ledger of this share. Raises OSError."""
        names = self.names
        digest = ledger.seal_digest(names.grid, names.mtime_ns, names.share, root)
        record = ledger.encode_records([ledger.seal_record(names.share, digest)])
        length = os.fstat(fd).st_size
        if os.pwrite(fd, record, length) != len(record):
            os.ftruncate(fd, length)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _is_sealed(self, staging_fd: int, share: Share, data: os.stat_result) -> bool:
        """Whether another share is sealed, and is on the disk. Raises OSError, TransferFailed(DESTINATION)."""
        try:
            with locked(staging_fd, self.names.key_of(share.index)) as (fd, is_new):
                return not is_new and self._is_proven(staging_fd, share, fd, data)
        except BlockingIOError:  # a transfer writes it
            return False

    def _is_proven(self, staging_fd: int, share: Share, fd: int, data: os.stat_result) -> bool:
        """Whether a share, whose ledger is open and locked, is sealed and on the disk; else it is sealed no more."""
        key = self.names.key_of(share.index)
        claims = _sealed_claims(self.names, share, fd)
        if claims is None:
            return False
        if not self.here.has(key, data):
            if not self._is_on_disk(staging_fd, share, claims):
                os.ftruncate(fd, ledger.HEADER_BYTES)
                return False
            self.here.add(key, data)
        return True

    def _is_on_disk(self, staging_fd: int, share: Share, claims: ledger.Claims) -> bool:
        """Re-hash a share that an earlier process has sealed; make zeros again what it was told to be zeros."""
        fd = open_staged(self.names.data, os.O_RDWR, staging_fd)
        try:
            staged, block = Readable(self.names.data, fd), memoryview(bytearray(limits.BLOCK_BYTES))
            grid = self.names.grid
            for index in range(share.index, grid.segments, share.count):
                if not claims.present or not claims.present[index]:
                    make_zeros(fd, grid.offset(index), grid.offset(index) + grid.length(index))
                elif staged.digest(block, grid, index) != claims.digest(index):
                    return False
        finally:
            os.close(fd)
        return True

    # --- as `closed_staging.ClosedStaging`

    def put(self, staging_fd: int, directory_fd: int, final: bytes, *, replace: bool) -> None:
        """Rename the file to its final name, in the block of `sealed`, and remove all ledgers. Raises OSError.

        FileExistsError where the file may not replace what is there.
        """
        with self._finished(staging_fd):
            put_in_place(self.names.data, final, staging_fd, directory_fd, replace=replace)
        self._remove_ledgers(staging_fd)

    @contextlib.contextmanager
    def _finished(self, staging_fd: int) -> Iterator[None]:
        """Set the attributes of the complete file, durably; after an error it is as before, for the next attempt.

        No share is written any more. Raises OSError.
        """
        fd = open_staged(self.names.data, os.O_RDWR, staging_fd)
        try:
            status = os.fstat(fd)
            if not has_one_name(status) or status.st_size != self.entry.size:
                raise OSError(errno.ESTALE, _CHANGED)
            if not is_ours(status, staging_fd):  # it was given away, and then a crash prevented its rename
                take_back(fd)
            try:
                if self.attributes is not None:
                    self.attributes.put_file(fd, self.entry, self.file_id)
                self._sync(fd, staging_fd)
                yield
            except BaseException:
                with contextlib.suppress(OSError):
                    if has_one_name(os.fstat(fd)):
                        take_back(fd, status.st_gid)
                raise
            self.here.forget(map(self.names.key_of, self.names.indices), status)
        finally:
            os.close(fd)

    def _sync(self, fd: int, staging_fd: int) -> None:
        """Sync the file; one of which that fails is discarded: a second sync would succeed without its bytes."""
        try:
            os.fsync(fd)
        except OSError:
            self.discard(staging_fd)
            raise

    def _remove_ledgers(self, staging_fd: int) -> None:
        for index in self.names.indices:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.names.key_of(index) + LEDGER_SUFFIX, dir_fd=staging_fd)

    def copy(self, staging_fd: int, name: str, directory_fd: int) -> None:
        """Copy the complete file into another directory, durably. Raises OSError."""
        with self._finished(staging_fd):
            copy_file(self.names.data, staging_fd, name, directory_fd)

    def discard(self, staging_fd: int) -> None:
        """Remove the staged bytes and all ledgers: the shards whose shares are lost have to be run again."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.names.data, dir_fd=staging_fd)
        self._remove_ledgers(staging_fd)


def is_sealed(staging_fd: int, names: SharedNames) -> bool:
    """Whether an earlier run has sealed a share, and its bytes are still there. Raises OSError.

    Where it has not, nobody puts the file in place before the share is sealed; if somebody has, the file is there now.
    """
    try:
        return _has_seal(staging_fd, names)
    except BlockingIOError:
        pass
    # Another shard looks at this share, and may be about to put the file in place. It has the guard for as long as it
    # re-hashes shares, so that is waited for only now.
    with names.guard:
        try:
            return _has_seal(staging_fd, names)
        except BlockingIOError:  # another process has it
            return False


def _has_seal(staging_fd: int, names: SharedNames) -> bool:
    """Whether a share is sealed. Raises OSError: BlockingIOError where another shard or process looks at it."""
    try:
        os.stat(names.data, dir_fd=staging_fd, follow_symlinks=False)
        with locked(staging_fd, names.key) as (fd, is_new):
            return not is_new and _sealed_claims(names, names.share, fd) is not None
    except FileNotFoundError:
        return False


def _sealed_claims(names: SharedNames, share: Share, fd: int) -> ledger.Claims | None:
    """Return what the open ledger of a share claims, if the share is sealed. Raises OSError."""
    claims = read_ledger(fd, names.grid)
    if claims is None or claims.grid != names.grid or not claims.is_sealed(share, names.mtime_ns):
        return None
    return claims
