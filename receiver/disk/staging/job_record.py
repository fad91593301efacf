"""What a receiver knows of the shards of a tree that are finished: kept in staging, so that a restart loses nothing.

    KEY.job            which shards of a job are finished, and the digest of what the walk of each found
    KEY-INDEX.pending  the shared files that waited for other shards when shard INDEX was finished

KEY is that of the job's name. Both are removed by age, as staged files are, and the oldest where there are many jobs.
"""

import contextlib
import errno
import json
import os
import stat
import threading
from collections.abc import Iterator
from typing import Final, NamedTuple

from filestreamer.wire.errors import Code, TransferFailed, from_os_error
from filestreamer.wire.grid import Share
from filestreamer.wire.tree_shares import shard_of
from receiver.disk.destination import Destination, open_directory
from receiver.disk.paths import JOB_SUFFIX, OPEN_FLAGS, PENDING_SUFFIX, STAGING, staging_key
from receiver.disk.staging.ledger_file import has_seal
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
    is_earlier: bool = False
    """Whether it has not come again since all shards were finished."""


class JobState(NamedTuple):
    """The shards of a job that are finished."""

    run: str
    """The run of the receiver; "" if it has none."""
    shard_count: int
    """Into how many shards the job is divided."""
    shards: dict[int, FinishedShard]


class SharedFile(NamedTuple):
    """A file that waits for other shards."""

    data: str
    """The name of its bytes in the staging of its place."""
    prefix: bytes
    """That of the place."""
    path: bytes
    size: int
    shares: int
    """How many shards have a share of it."""


class JobRecord:
    """The record of one job, for one shard of it. All methods raise TransferFailed(DESTINATION)."""

    def __init__(self, destination: Destination, job: str, run: str, index: int, count: int) -> None:
        """`run` is that of the receiver: what an earlier run of it has finished does not count."""
        self._destination = destination
        self._job, self._run = job, run
        self._index, self._count = index, count
        self._key = staging_key(b"job\0" + job.encode())
        self._in_place = set[SharedFile]()
        """Files that were seen in place."""

    def begin(self) -> None:
        """Count this shard as not finished: it moves its share again."""
        with self._changing() as staging_fd:
            found = self._find(staging_fd)
            if found is None:
                self._drop_pending(staging_fd)
            else:
                self._unlink(staging_fd, self._pending_name(self._index))
            state = found or self._none
            if state.shards.pop(self._index, None) is not None or found is None:
                # Also where nothing is known yet: what is noted of files that wait goes with the record.
                self._write(staging_fd, state)

    def note_pending(self, file: SharedFile) -> None:
        """Note a file that waits for other shards."""
        fields = [file.data, file.prefix.hex(), file.path.hex(), file.size, file.shares]
        line = json.dumps(fields).encode() + b"\n"
        with self._changing() as staging_fd:
            fd = self._open_pending(staging_fd, self._index, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            try:
                if os.write(fd, line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(fd)

    def look_for_pending(self) -> None:
        """Note which files that waited are in place, before their directories get modes that may close them to us."""
        with self._changing() as staging_fd:
            self._in_place = {file for file in self._pending(staging_fd) if not self._still_waits(file)}

    def finish(self, shard: FinishedShard) -> JobState:
        """Count this shard as finished, durably; return what is finished by now.

        Raises TransferFailed: SOURCE_CHANGED where shards have seen different trees, DESTINATION where all are
        finished, and what some of them had moved of a file that waits is gone: these are not finished any more.
        """
        with self._changing() as staging_fd:
            shards = (self._find(staging_fd) or self._none).shards
            shards.pop(self._index, None)
            if any(other.is_earlier and other.walk_digest != shard.walk_digest for other in shards.values()):
                # This is another run of the job: only those that have come again belong to it.
                shards = {index: other for index, other in shards.items() if not other.is_earlier}
            is_same = all(other.walk_digest == shard.walk_digest for other in shards.values())
            self._sync_pending(staging_fd)
            shards[self._index] = shard
            waiting, lost = 0, set[int]()
            if is_same and len(shards) == self._count:
                waiting, lost = self._find_lost(staging_fd, shards)
                if not lost:
                    self._drop_pending(staging_fd)
                    if not any(each.is_earlier for each in shards.values()):
                        shards = {index: each._replace(is_earlier=True) for index, each in shards.items()}
            state = JobState(self._run, self._count, {i: each for i, each in shards.items() if i not in lost})
            self._write(staging_fd, state)
        if not is_same:
            raise TransferFailed(
                Code.SOURCE_CHANGED,
                f"the shards of job {self._job} saw different trees: the source changed between their walks, or their"
                " settings differ. Run all of them again, with another --job",
            )
        if lost:
            raise TransferFailed(
                Code.DESTINATION,
                f"{waiting} large files are not complete, although all shards of job {self._job} were finished: what"
                f" {len(lost)} of them had moved is gone. Run all of them again",
            )
        return state

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
        return JobState(self._run, self._count, {})

    def _find(self, staging_fd: int) -> JobState | None:
        """Read the record, if it is of this run, and divided in the same way."""
        state = self._read(staging_fd)
        return state if state is not None and (state.run, state.shard_count) == (self._run, self._count) else None

    def _pending_name(self, index: int) -> str:
        return f"{self._key}-{index}{PENDING_SUFFIX}"

    def _open_pending(self, staging_fd: int, index: int, flags: int) -> int:
        return os.open(self._pending_name(index), flags | os.O_NONBLOCK | OPEN_FLAGS, 0o600, dir_fd=staging_fd)

    def _read(self, staging_fd: int) -> JobState | None:
        """Read the record; None where it is missing or damaged."""
        fields = read_record(staging_fd, self._key + JOB_SUFFIX, _RECORD_BYTES_MAX)
        try:
            shards = {int(index): FinishedShard(*shard) for index, shard in fields["shards"].items()}
            return JobState(str(fields["run"]), int(fields["shard_count"]), shards)
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
        for name in (oldest, *_pending_names(names, key)):
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
                        data, prefix, path, size, shares = json.loads(line)
                        yield SharedFile(str(data), bytes.fromhex(prefix), bytes.fromhex(path), int(size), int(shares))

    def _drop_pending(self, staging_fd: int) -> None:
        """Forget the files that waited: they are in place, wait in vain, or are of another run."""
        for name in _pending_names(os.listdir(staging_fd), self._key):
            self._unlink(staging_fd, name)

    def _find_lost(self, staging_fd: int, shards: dict[int, FinishedShard]) -> tuple[int, set[int]]:
        """Return how many files wait for a share that is gone, and the shards that had moved one; all are finished.

        A share that is missing is gone, unless its shard has left something out.
        """
        left_out = {index for index, shard in shards.items() if shard.left_out}
        waiting, lost = set[SharedFile](), set[int]()
        for file in self._pending(staging_fd):
            if file not in self._in_place and self._still_waits(file):
                gone = self._missing(file) - left_out
                # Where nothing is missing, the shard that comes again puts the file in place.
                gone = gone or ({self._index} if not left_out else set())
                if gone:  # each shard that has moved a share of it has noted it
                    waiting.add(file)
                lost |= gone
        return len(waiting), lost

    def _missing(self, file: SharedFile) -> set[int]:
        """Return the shards of which no sealed share of a file is there."""
        shares = {
            shard_of(file.path, segment, self._count): segment for segment in range(min(file.shares, self._count))
        }
        try:
            staging_fd = self._staging_of(file)
        except OSError:
            return set(shares)
        try:
            return {
                index
                for index, segment in shares.items()
                if not has_seal(staging_fd, file.data, Share(segment, self._count))
            }
        finally:
            os.close(staging_fd)

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
            staging_fd = self._staging_of(file)
        except OSError:
            return False
        try:
            os.stat(file.data, dir_fd=staging_fd, follow_symlinks=False)
        except OSError:
            return False
        else:
            return True
        finally:
            os.close(staging_fd)

    def _staging_of(self, file: SharedFile) -> int:
        """Open the staging of the place that a file goes to. Raises OSError."""
        return _open_below(self._destination, os.path.join(file.prefix, os.fsencode(STAGING)))

    def _unlink(self, staging_fd: int, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=staging_fd)


def _pending_names(names: list[str], key: str) -> list[str]:
    """Return the names of what the shards of a job have noted of files that wait."""
    return [name for name in names if name.startswith(key + "-") and name.endswith(PENDING_SUFFIX)]


def _open_below(destination: Destination, path: bytes) -> int:
    """Open a directory of the destination, or the destination itself. Raises OSError."""
    return open_directory(destination, path) if path else os.dup(destination.fd)
