"""Complete files of a tree get their final names here, batch by batch (proto/README.md, "Trees").

    add      complete files wait, until they are a batch or have waited for BATCH_SECONDS
    sync     the file system, once for the whole batch
    rename   each file into its directory (`directories`)

A file under a final name is therefore complete even after a power failure: its bytes are synced before its name is
there. The renames themselves are made durable by the sync of the next batch, or by the one at the end of the transfer.
"""

import contextlib
import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from filestreamer.process.threads import run_to_end, start_thread
from filestreamer.wire import limits
from filestreamer.wire.errors import Code, FilestreamerError, TransferFailed, from_os_error
from receiver.disk.destination import Destination, shown_path, tree_failure
from receiver.disk.existing import Fate, Policy
from receiver.disk.filesystem.sync import sync_file_system
from receiver.disk.final_name import put_in_place
from receiver.disk.obstacles import Obstacle, existing
from receiver.disk.place import Place
from receiver.disk.staging.closed_share import ClosedShare
from receiver.disk.staging.closed_staging import ClosedStaging
from receiver.disk.staging.staged_copy import copy_file
from receiver.tree.commit.declines import Declines
from receiver.tree.commit.directories import Directories, Directory
from receiver.tree.commit.traits import has_another_name, listed_name, not_told_apart
from receiver.tree.commit.tree_staging import BATCH_FILES, TreeStaging, TreeStagings
from receiver.tree.top_level_names import TopLevelNames

BATCH_BYTES: Final = 256 * limits.MIB
SHARE_OF_FREE: Final = 8
"""A batch has at most this part of what is free: what its files replace is free only when they are in place."""
BATCH_SECONDS: Final = 5.0
"""How long a complete file waits for its batch to fill."""
_CLOSED: Final = (ClosedStaging, ClosedShare)
BACKLOG_BATCHES: Final = 4
"""How many batches may wait before `add` blocks."""


class StagedFile(NamedTuple):
    """A complete file that waits for its final name."""

    path: bytes
    staged: str | ClosedStaging | ClosedShare | Callable[[], ClosedStaging | ClosedShare]
    """Small file: its name in the tree's staging. Large file: its closed staging, or a function that closes it."""
    size: int
    """Its size in bytes, as it was written."""
    staging: TreeStaging
    """Where it is staged: in the place that it goes to."""
    file_id: int
    group: int
    """Its hard-link group if it is the first name of a file, else 0."""
    is_new: bool = False
    """Whether nothing had its name when its entry was prepared."""


class Committer:
    """Puts complete files in place, in a thread of its own."""

    def __init__(
        self,
        destination: Destination,
        stagings: TreeStagings,
        top_level_names: TopLevelNames,
        declines: Declines,
        failed: Callable[[FilestreamerError], None],
        *,
        policy: Policy,
        waits: Callable[[ClosedShare, bytes], None] | None = None,
    ) -> None:
        """`failed` ends the transfer: it is called for an error that is no obstacle of a single file.

        `policy` says what becomes of what has a name. `waits` is called with each share of a file that waits for
        other shards, and the prefix of its place.
        """
        self._waits = waits
        self._destination = destination
        self._stagings = stagings
        self._top_level_names = top_level_names
        self._declines = declines
        self.policy = policy
        self._failed = failed
        self._changed = threading.Condition()
        """Protects the fields down to `_error`; notified when any of them changes."""
        self._waiting: list[StagedFile] = []
        self._waiting_bytes = 0
        self._waiting_since = 0.0
        self._batch_bytes = BATCH_BYTES
        """A batch of so many bytes is full."""
        self._is_flushing = False
        """`flush` is waiting: batches need not be full."""
        self._is_flush_requested = False
        """`request_flush` was called: the files that wait now need no full batch."""
        self._is_busy = False
        """A batch is being put in place."""
        self._is_stopping = False
        self._is_over = False
        """The transfer is over: `add` does not wait."""
        self._error: FilestreamerError | None = None
        self.is_lost = False
        """Whether a sync failed: the kernel may have dropped bytes of any file that was written before."""
        self._thread: threading.Thread | None = None
        self._directories = Directories(destination, stagings.places, again=True)

    def start(self) -> None:
        """Start the thread, before any file depends on it. Raises TransferFailed(LIMIT)."""
        self._limit_batch(self._destination)
        thread = threading.Thread(target=self._run, name="place", daemon=True)
        start_thread(thread, "putting files in place")
        self._thread = thread

    # --- what other threads ask

    def add(self, files: list[StagedFile], size_bytes: int, *, waits: bool = True) -> None:
        """Add complete files of `size_bytes` together; with `waits`, block while too many files wait already."""
        with self._changed:
            while waits and self._is_far_behind():
                self._changed.wait()
            if self._error is None:
                if not self._waiting:
                    self._waiting_since = time.monotonic()
                self._waiting += files
                self._waiting_bytes += size_bytes
                if self._is_due():
                    self._changed.notify_all()
                return
        self._discard(files)

    @property
    def is_far_behind(self) -> bool:
        """Whether so many files wait that `add` would block."""
        with self._changed:
            return self._is_far_behind()

    def _is_far_behind(self) -> bool:
        far = (
            len(self._waiting) > BACKLOG_BATCHES * BATCH_FILES
            or self._waiting_bytes > BACKLOG_BATCHES * self._batch_bytes
        )
        return far and self._error is None and not (self._is_stopping or self._is_over)

    @property
    def has_files(self) -> bool:
        """Whether files wait for their names, or are getting them."""
        with self._changed:
            return bool(self._waiting) or self._is_busy

    def request_flush(self) -> None:
        """Put the waiting files in place soon: another thread waits for descriptors or memory that they hold."""
        with self._changed:
            self._is_flush_requested = bool(self._waiting)
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until every added file is in place. Raises the error of the first file that can't be put in place."""
        with self._changed:
            self._is_flushing = True
            self._changed.notify_all()
            while (self._waiting or self._is_busy) and self._error is None:
                self._changed.wait()
            self._is_flushing = False
            if self._error is not None:
                raise self._error

    def stop_waiting(self) -> None:
        """Let no thread wait in `add` any more: the transfer is over."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Put the complete files in place, and wait for the thread to end, however long a sync takes. Idempotent."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._directories.close()

    # --- its own thread

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            error = run_to_end("putting files in place", lambda batch=batch: self._commit(batch))  # type: ignore[misc]
            self._limit_batch(batch[0].staging.place)
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
        """Wait for the next batch; None when the thread is to end."""
        with self._changed:
            while not self._is_due():
                if self._is_stopping:
                    return None
                self._changed.wait(1.0)
            batch, self._waiting, self._waiting_bytes = self._waiting, [], 0
            self._is_busy = True
            self._is_flush_requested = False
            self._changed.notify_all()
            return batch

    def _limit_batch(self, place: Place) -> None:
        """Let the next batches be as large as the space that is free in a place allows."""
        with contextlib.suppress(OSError):  # a write meets it, too, and tells
            self._batch_bytes = min(BATCH_BYTES, place.free_bytes() // SHARE_OF_FREE)

    def _is_due(self) -> bool:
        if not self._waiting:
            return False
        if self._is_flushing or self._is_stopping or self._is_flush_requested:
            return True
        is_full = len(self._waiting) >= BATCH_FILES or self._waiting_bytes >= self._batch_bytes
        return is_full or time.monotonic() - self._waiting_since > BATCH_SECONDS

    def _commit(self, batch: list[StagedFile]) -> None:
        """Put a batch in place; decline files that meet an obstacle.

        For any other failure, raises TransferFailed after all other files are in place.
        """
        files, failed = self._close_all(batch)
        for staging in {file.staging.place.side.device: file.staging for file in files}.values():
            try:
                if not staging.place.syncs_each:  # else each file was fsynced when it was closed
                    sync_file_system(staging.fd)
            except OSError as error:
                self.is_lost = True
                self._discard(files)
                raise from_os_error(error, Code.DESTINATION, f"can't sync {staging.place.path}") from None
        self._directories.look_again()
        for file in files:
            try:
                if self._put(file):
                    self._top_level_names.release(file.path)
                self._declines.settle(file.file_id)
            except Obstacle as obstacle:
                self._decline(file, obstacle)
                self._discard([file])
            except TransferFailed as error:
                failed = failed or error
                self._discard([file])
        try:
            self._directories.sync()
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't sync {self._destination.path}") from None
        if failed is not None:
            raise failed

    def _decline(self, file: StagedFile, obstacle: Obstacle) -> None:
        obstacle.directory = None  # it was there when the file was prepared: its own entry is told at the end
        self._declines.decline(file.path, file.file_id, file.group, obstacle)

    def _close_all(self, batch: list[StagedFile]) -> tuple[list[StagedFile], TransferFailed | None]:
        """Close the large files that are still open; return the files that are closed, and the first failure."""
        closed, failed = [], None
        for file in batch:
            try:
                closed.append(file._replace(staged=file.staged()) if callable(file.staged) else file)
            except Obstacle as obstacle:
                self._decline(file, obstacle)
            except TransferFailed as error:
                failed = failed or error
        return closed, failed

    def _put(self, file: StagedFile) -> bool:
        """Put one file in place; return False for a share that waits for other shards. Raises as `_put_in_place`."""
        share = file.staged
        if not isinstance(share, ClosedShare):
            self._put_in_place(file)
            return True
        try:
            with share.sealed(file.staging.files_fd) as is_complete:
                if is_complete:
                    self._put_in_place(file)
        except OSError as error:
            shown = shown_path(self._destination, file.path)
            raise from_os_error(error, Code.DESTINATION, f"can't keep a share of {shown}") from None
        if not is_complete and self._waits is not None:
            self._waits(share, file.staging.place.prefix)
        return is_complete

    def _put_in_place(self, file: StagedFile) -> None:
        """Rename one file to its final name. Raises Obstacle, TransferFailed."""
        parent, _, name = file.path.rpartition(b"/")
        directory = self._directories.get(parent)
        if file.is_new:
            self._check_still_new(directory.fd, name, file)
        try:
            fate = Fate.REPLACED
            if self.policy.replaces_all:  # nearly always: spare each file some calls
                self._rename(file, name, directory, replace=True)
            else:
                fate = self.policy.put(
                    lambda replace: self._rename(file, name, directory, replace=replace),
                    name,
                    directory.fd,
                    lambda: self._mtime_ns(file),
                )
            self._directories.note_change(parent)
        except OSError as error:
            raise tree_failure(
                self._destination, error, f"can't put {shown_path(self._destination, file.path)} in place", file.path
            ) from None
        if fate is not Fate.REPLACED:
            shown = shown_path(self._destination, file.path)
            raise existing(shown, "it exists by now", self.policy.because, is_left=fate is Fate.LEFT)

    def _rename(self, file: StagedFile, name: bytes, directory: Directory, *, replace: bool) -> None:
        """Rename one file to its final name, or copy it there. Raises TransferFailed(DESTINATION), OSError."""
        assert not callable(file.staged)  # it was closed before the sync
        try:
            if isinstance(file.staged, _CLOSED):
                file.staged.put(file.staging.files_fd, directory.fd, name, replace=replace)
            else:
                self._check_unchanged(file.staged, file)
                put_in_place(file.staged, name, file.staging.fd, directory.fd, replace=replace)
        except OSError as error:
            parent = file.path.rpartition(b"/")[0]
            if error.errno != errno.EXDEV or directory.place.prefix == parent:
                raise
            self._put_across(file, parent, name, directory, replace=replace)

    def _put_across(self, file: StagedFile, parent: bytes, name: bytes, directory: Directory, *, replace: bool) -> None:
        """Copy a file over a boundary that was not known; what comes after it is staged behind the boundary.

        Raises TransferFailed(DESTINATION), OSError.
        """
        place = self._stagings.places.divide(parent, directory.fd, directory.place)
        staging = self._stagings.at(place)
        assert not callable(file.staged)
        if isinstance(file.staged, _CLOSED):
            file.staged.copy(file.staging.files_fd, "copy", staging.fd)
        else:
            copy_file(file.staged, file.staging.fd, "copy", staging.fd)
        put_in_place("copy", name, staging.fd, directory.fd, replace=replace)
        if isinstance(file.staged, _CLOSED):
            file.staged.discard(file.staging.files_fd)
        else:
            file.staging.remove(file.staged)

    def _mtime_ns(self, file: StagedFile) -> int:
        """Return the mtime of a staged file. Raises OSError."""
        assert not callable(file.staged)
        if isinstance(file.staged, ClosedShare):
            return file.staged.entry.mtime_ns
        if isinstance(file.staged, ClosedStaging):
            return file.staged.status(file.staging.files_fd).st_mtime_ns
        return os.stat(file.staged, dir_fd=file.staging.fd, follow_symlinks=False).st_mtime_ns

    def _check_still_new(self, directory_fd: int, name: bytes, file: StagedFile) -> None:
        """Check that still nothing has the name of a new file. Raises Obstacle.

        Else the destination may not tell it from the name of a file that was put in place before, which would be lost.
        """
        try:
            there = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
        except OSError:
            return  # if that is not because it is missing, the rename fails, too
        by = listed_name(directory_fd, name, there)
        if by == name and not has_another_name(directory_fd, name, there):
            return  # another process has made it: the policy decides
        why = "another process, or another entry that the destination does not tell from it, took its place meanwhile"
        if by is not None and by != name:
            why = not_told_apart(by)
        raise Obstacle(Code.DESTINATION, f"can't put {shown_path(self._destination, file.path)} in place: {why}", why)

    def _check_unchanged(self, name: str, file: StagedFile) -> None:
        """Check that a staged small file is as it was written. Raises TransferFailed(DESTINATION)."""
        try:
            status = os.stat(name, dir_fd=file.staging.fd, follow_symlinks=False)
        except OSError as error:
            what = f"can't look at the staging of {shown_path(self._destination, file.path)}"
            raise from_os_error(error, Code.DESTINATION, what) from None
        if status.st_size != file.size or not stat.S_ISREG(status.st_mode):
            what = f"it has {status.st_size} bytes, and {file.size} were written"
            shown = shown_path(self._destination, file.path)
            raise TransferFailed(
                Code.DESTINATION, f"{shown}: another process changed its staging ({what}): run the same command again"
            )

    def _discard(self, files: Iterable[StagedFile]) -> None:
        """Drop files that can't be put in place. Large files stay staged for the next run, unless a sync failed."""
        for file in files:
            staged = file.staged
            if callable(staged):
                try:
                    staged = staged()
                except TransferFailed:
                    continue
            if isinstance(staged, str):
                file.staging.remove(staged)
            elif self.is_lost:
                staged.discard(file.staging.files_fd)
