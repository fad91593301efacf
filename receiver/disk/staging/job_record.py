"""What a receiver knows of the shards of a tree that are finished: kept in staging, so that a restart loses nothing.

    KEY.job            which shards of a job are finished, and the digest of what the walk of each found
    KEY-INDEX.pending  the shared files that waited for other shards when shard INDEX was finished

KEY is that of the job's name and of the receiver's run (--run), if it has one. Both are removed by age, as staged files
are, and the oldest where there are many jobs.
"""

import contextlib
import json
import os
import stat
import threading
from collections.abc import Iterator
from typing import Final, NamedTuple

from filestreamer.wire.errors import Code, TransferFailed, from_os_error
from receiver.disk.destination import Destination, open_directory
from receiver.disk.paths import JOB_SUFFIX, OPEN_FLAGS, PENDING_SUFFIX, STAGING, staging_key
from receiver.disk.staging.record_file import read_record, write_record

_JOBS_MAX: Final = 1024
_RECORD_BYTES_MAX: Final = 1 << 20
_MUTEX: Final = threading.Lock()
"""Held while a record is read, changed and written: shards of one job end at the same moment."""


class FinishedShard(NamedTuple):
    """What a finished shard has told, and moved."""

    walk_digest: str
    """In hexadecimal digits."""
    files: int
    bytes: int
    left_out: bool
    """Whether something was not moved: then a file may wait for a share of it in vain."""
    failed: int = 0
    """How many entries were skipped for a reason that is a failure."""


class JobState(NamedTuple):
    """The shards of a job that are finished."""

    shard_count: int
    """Into how many shards the job is divided."""
    shards: dict[int, FinishedShard]
    complete: str
    """The digest of the walk with which all shards were finished; "" before that."""


class SharedFile(NamedTuple):
    """A file that waits for other shards."""

    data: str
    """The name of its bytes in the staging of its place."""
    prefix: bytes
    """That of the place."""
    path: bytes
    size: int


class JobRecord:
    """The record of one job, for one shard of it. All methods raise TransferFailed(DESTINATION)."""

    def __init__(self, destination: Destination, job: str, index: int, count: int) -> None:
        self._destination = destination
        self._job = job
        self._index, self._count = index, count
        self._key = staging_key(f"job\0{job}\0{destination.run}".encode())

    def begin(self) -> None:
        """Count this shard as not finished: it moves its share again."""
        with self._changing() as staging_fd:
            state = self._read(staging_fd)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._pending_name(self._index), dir_fd=staging_fd)
            is_same = state is not None and state.shard_count == self._count
            if state is None or not is_same or state.shards.pop(self._index, None) is not None:
                # Also where nothing is known yet: what is noted of files that wait goes with the record.
                self._write(staging_fd, state if state is not None and is_same else self._none)

    def note_pending(self, file: SharedFile) -> None:
        """Note a file that waits for other shards."""
        line = json.dumps([file.data, file.prefix.hex(), file.path.hex(), file.size]) + "\n"
        with self._changing() as staging_fd:
            fd = self._open_pending(staging_fd, self._index, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            try:
                os.write(fd, line.encode())
            finally:
                os.close(fd)

    def finish(self, shard: FinishedShard) -> tuple[JobState, int]:
        """Count this shard as finished, durably; return what is finished by now, and how many files still wait.

        Files wait only where all shards are finished: they have lost a share. Raises TransferFailed(SOURCE_CHANGED)
        where shards have seen different trees.
        """
        with self._changing() as staging_fd:
            state = self._read(staging_fd) or self._none
            others = {index: other for index, other in state.shards.items() if index != self._index}
            is_same = all(other.walk_digest == shard.walk_digest for other in others.values())
            if not is_same and state.complete:  # the earlier run is over, and this is the first shard of another one
                others, is_same = {}, True
            complete = state.complete if state.complete == shard.walk_digest else ""
            self._sync_pending(staging_fd)
            state = JobState(self._count, {**others, self._index: shard}, complete)
            waiting = 0
            if is_same and len(state.shards) == self._count:
                if not any(each.left_out for each in state.shards.values()):
                    waiting = sum(self._still_waits(file) for file in self._pending(staging_fd))
                if not waiting:
                    state = state._replace(complete=shard.walk_digest)
                    self._drop_pending(staging_fd)
            self._write(staging_fd, state)
        if not is_same:
            raise TransferFailed(
                Code.SOURCE_CHANGED,
                f"the shards of job {self._job} saw different trees: the source changed between their walks, or their"
                " settings differ. Run all of them again, with another --job",
            )
        return state, waiting

    # --- the files

    @contextlib.contextmanager
    def _changing(self) -> Iterator[int]:
        """Yield the descriptor of staging; nobody else changes the record meanwhile."""
        try:
            with _MUTEX:
                staging_fd = self._destination.open_staging(create=True)
                try:
                    yield staging_fd
                finally:
                    os.close(staging_fd)
        except OSError as error:
            what = f"can't keep what is known of job {self._job} in {self._destination.path}/{STAGING}"
            raise from_os_error(error, Code.DESTINATION, what) from None

    @property
    def _none(self) -> JobState:
        """The state of a job of which no shard is finished."""
        return JobState(self._count, {}, "")

    def _pending_name(self, index: int) -> str:
        return f"{self._key}-{index}{PENDING_SUFFIX}"

    def _open_pending(self, staging_fd: int, index: int, flags: int) -> int:
        return os.open(self._pending_name(index), flags | os.O_NONBLOCK | OPEN_FLAGS, 0o600, dir_fd=staging_fd)

    def _read(self, staging_fd: int) -> JobState | None:
        """Read the record; None where it is missing or damaged."""
        fields = read_record(staging_fd, self._key + JOB_SUFFIX, _RECORD_BYTES_MAX)
        try:
            shards = {int(index): FinishedShard(*shard) for index, shard in fields["shards"].items()}
            return JobState(int(fields["shard_count"]), shards, str(fields["complete"]))
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    def _write(self, staging_fd: int, state: JobState) -> None:
        """Replace the record, durably."""
        self._drop_oldest(staging_fd)
        write_record(staging_fd, self._key + JOB_SUFFIX, {"job": self._job, **state._asdict()})

    def _drop_oldest(self, staging_fd: int) -> None:
        """Forget the oldest job where there are too many."""
        names = os.listdir(staging_fd)
        jobs = [name for name in names if name.endswith(JOB_SUFFIX)]
        if len(jobs) < _JOBS_MAX or self._key + JOB_SUFFIX in jobs:
            return
        oldest = min(jobs, key=lambda name: os.stat(name, dir_fd=staging_fd, follow_symlinks=False).st_mtime_ns)
        key = oldest.removesuffix(JOB_SUFFIX)
        for name in (oldest, *(name for name in names if name.startswith(key) and name.endswith(PENDING_SUFFIX))):
            os.unlink(name, dir_fd=staging_fd)

    # --- files that wait

    def _sync_pending(self, staging_fd: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            fd = self._open_pending(staging_fd, self._index, os.O_WRONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def _pending(self, staging_fd: int) -> Iterator[SharedFile]:
        """Yield the files that waited for others when the shards were finished."""
        for index in range(self._count):
            try:
                fd = self._open_pending(staging_fd, index, os.O_RDONLY)
            except FileNotFoundError:
                continue
            with open(fd, "rb") as file:
                for line in file:
                    with contextlib.suppress(ValueError, TypeError):  # a line that a crash has torn
                        data, prefix, path, size = json.loads(line)
                        yield SharedFile(str(data), bytes.fromhex(prefix), bytes.fromhex(path), int(size))

    def _drop_pending(self, staging_fd: int) -> None:
        """Forget the files that waited: all of them are in place, or wait in vain."""
        for index in range(self._count):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._pending_name(index), dir_fd=staging_fd)

    def _still_waits(self, file: SharedFile) -> bool:
        """Whether a file is still in staging, or not under its final name."""
        parent, _, name = file.path.rpartition(b"/")
        try:
            directory_fd = _open_below(self._destination, parent)
        except OSError:
            return True
        try:
            status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
            return not stat.S_ISREG(status.st_mode) or status.st_size != file.size or self._is_staged(file)
        except OSError:
            return True
        finally:
            os.close(directory_fd)

    def _is_staged(self, file: SharedFile) -> bool:
        try:
            place_fd = _open_below(self._destination, file.prefix)
        except OSError:
            return False
        try:
            os.stat(os.path.join(STAGING, file.data), dir_fd=place_fd, follow_symlinks=False)
        except OSError:
            return False
        else:
            return True
        finally:
            os.close(place_fd)


def _open_below(destination: Destination, path: bytes) -> int:
    """Open a directory of the destination, or the destination itself. Raises OSError."""
    return open_directory(destination, path) if path else os.dup(destination.fd)
