"""The result of one transfer: one line of JSON for scripts, a few lines of text on a terminal.

It goes to standard output and, as JSON, to --result-file. Scripts rely on its fields: they are only ever added to.
"""

import contextlib
import dataclasses
import errno
import io
import json
import os
import signal
import threading
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO, TypeAlias

from filestreamer.process.background import write_some
from filestreamer.process.descriptors import named_by
from filestreamer.process.log import printable
from filestreamer.records import Record
from filestreamer.settings.sizes import format_rate, format_size
from filestreamer.telemetry.bottleneck import TEXTS, Bottleneck
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.version import VERSION
from filestreamer.wire.errors import Exit, FilestreamerError, Interrupted, LocalProtocolError

if TYPE_CHECKING:
    from filestreamer.process.log import Logger

Status = Literal["complete", "failed", "refused", "interrupted"]

Digest: TypeAlias = bytes
"""`bytes`, in a class with a field of that name."""


class ResultError(Record):
    """Why a transfer did not complete."""

    code: str
    """A word for scripts, such as `no_space`: `FilestreamerError.name`."""
    message: str
    """One line of text for people."""
    retryable: bool
    """Whether the same command may succeed if it is run again."""


class ConnectionResult(Record):
    """What one data connection did. Bytes are payload bytes."""

    connection_id: int
    bytes: int
    """Acknowledged bytes: written and verified by the receiver."""
    sent_bytes: int
    """Bytes sent, or at the receiver read, including those that were never acknowledged."""
    chunks: int
    resent_chunks: int
    stolen_chunks: int
    reconnects: int
    stage_seconds: dict[str, float]


class SkippedEntry(Record):
    """An entry that was not moved."""

    path: str
    reason: str
    kind: str
    """A word for scripts, such as `vanished`: a name of SkipKind."""


class JobResult(Record):
    """What the shards of a tree have moved that are finished by now: for the last of them, the whole."""

    name: str
    shard: str
    """The one of this transfer, as INDEX/COUNT."""
    shards_finished: int
    files: int
    bytes: int


class TransferResult(Record, kw_only=True):
    """One transfer, or a run without one: then `transfer_id` is None and all numbers are 0."""

    status: Status
    exit_code: int
    error: ResultError | None = None
    transfer_id: str | None = None
    """32 hexadecimal digits."""
    committed: bool = False
    """Whether the files are durable under their final names; false for a shard while others are not finished."""
    files: int = 0
    bytes: int = 0
    """Size of all files of the transfer."""
    sent_bytes: int = 0
    """Payload bytes that crossed the network; those that crossed it twice count twice."""
    held_bytes: int = 0
    """Bytes that the receiver had before, as equal digests prove."""
    unchecked_bytes: int = 0
    """Bytes of files that were taken for equal because of size and mtime."""
    seconds: float = 0.0
    bytes_per_second: float = 0.0
    """Acknowledged bytes by seconds; held bytes do not count."""
    connections: int = 0
    chunk_size: int | None = None
    chunks: int = 0
    resent_chunks: int = 0
    stolen_chunks: int = 0
    reconnects: int = 0
    straggler_seconds: float = 0.0
    """Between the last acknowledgements of the connection that was done first and of the one that was done last."""
    bottleneck: Bottleneck | None = None
    """What the transfer was bound by (telemetry.bottleneck); None if the peer has not reported its stages."""
    root_digest: str | None = None
    """32 hexadecimal digits."""
    job: JobResult | None = None
    """Of a shard of a tree that is finished; None for anything else."""
    left_files: int = 0
    """Entries that exist at the destination and differ, and were left as they are (--existing)."""
    deleted_files: int = 0
    """Entries that were removed at the destination (--delete)."""
    undeletable_files: int = 0
    """Entries that were to be removed, and could not be; `warnings` names some."""
    dry_run: bool = False
    """Whether the receiver was only asked: then nothing was written."""
    verdicts: dict[str, int] = dataclasses.field(default_factory=dict)
    """In a dry run, how many entries stand how at the destination: names of Standing."""
    skipped_files: int = 0
    """Entries that were not moved, such as unreadable or vanished files and devices."""
    skipped_kinds: dict[str, int] = dataclasses.field(default_factory=dict)
    """Number of skipped entries by kind."""
    skipped: tuple[SkippedEntry, ...] = ()
    """The first skipped entries."""
    warnings: tuple[str, ...] = ()
    """What was done otherwise than the user might expect, such as copies instead of hard links; each told once."""
    per_connection: tuple[ConnectionResult, ...] = ()

    @classmethod
    def without_transfer(cls, error: BaseException) -> "TransferResult":
        """Make the result of a run that ended before a transfer began."""
        return cls(**_ending(error))

    @classmethod
    def killed(cls) -> "TransferResult":
        """Make the result of a process that was ended before it could make one."""
        message = "killed before it could say how it ends (the reason OOMKilled: it had too little memory)"
        error = ResultError("killed", message, retryable=True)
        return cls(status="interrupted", exit_code=128 + signal.SIGKILL, error=error)

    @classmethod
    def from_counters(
        cls, counters: TransferCounters, *, error: BaseException | None, committed: bool, root_digest: Digest | None
    ) -> "TransferResult":
        """Make the result of a transfer that has ended; it is complete where `error` is None."""
        connections = [item for item in counters.connections if item.moved_bytes or item.reconnects]
        finished = [item.finished_at for item in connections if item.finished_at and not item.is_dismissed]
        seconds = counters.seconds
        return cls(
            **_ending(error),
            transfer_id=counters.transfer_id.hex(),
            committed=committed,
            files=counters.files,
            bytes=counters.data_bytes,
            sent_bytes=counters.moved_bytes,
            held_bytes=counters.held_bytes,
            unchecked_bytes=counters.unchecked_bytes,
            seconds=round(seconds, 6),
            bytes_per_second=round(counters.acknowledged_bytes / seconds, 1) if seconds > 0 else 0.0,
            connections=len(connections),
            chunk_size=counters.chunk_size or None,
            chunks=counters.chunks,
            resent_chunks=sum(item.resent_chunks for item in connections),
            stolen_chunks=sum(item.stolen_chunks for item in connections),
            reconnects=sum(item.reconnects for item in connections),
            straggler_seconds=round(max(finished) - min(finished), 6) if finished else 0.0,
            bottleneck=counters.bottleneck,
            root_digest=root_digest.hex() if root_digest is not None else None,
            job=JobResult(*counters.job) if counters.job is not None else None,
            left_files=counters.left_files,
            deleted_files=counters.deleted_files,
            undeletable_files=counters.undeletable_files,
            dry_run=counters.verdicts is not None,
            verdicts={kind.name.lower(): count for kind, count in sorted((counters.verdicts or {}).items())},
            skipped_files=counters.skipped_files,
            skipped_kinds={kind.name.lower(): count for kind, count in sorted(counters.skipped_kinds.items())},
            skipped=tuple(SkippedEntry(item.path, item.reason, item.kind.name.lower()) for item in counters.skipped),
            warnings=tuple(counters.warnings),
            per_connection=tuple(
                ConnectionResult(
                    connection_id=item.connection_id,
                    bytes=item.acknowledged_bytes,
                    sent_bytes=item.moved_bytes,
                    chunks=item.chunks,
                    resent_chunks=item.resent_chunks,
                    stolen_chunks=item.stolen_chunks,
                    reconnects=item.reconnects,
                    stage_seconds={stage: round(value, 6) for stage, value in item.stage_seconds.items()},
                )
                for item in connections
            ),
        )

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> "TransferResult":
        """Make a result from its fields, as `fields` has returned them. Raises TypeError where they are no result."""
        error, job = fields.get("error"), fields.get("job")
        made = {
            "error": ResultError(**error) if error else None,
            "job": JobResult(**job) if job else None,
            "skipped": tuple(SkippedEntry(**each) for each in fields.get("skipped", ())),
            "warnings": tuple(fields.get("warnings", ())),
            "per_connection": tuple(ConnectionResult(**each) for each in fields.get("per_connection", ())),
        }
        return cls(**{**fields, **made})

    def fields(self) -> dict[str, Any]:
        """Return the fields, of JSON's types."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Return the result as one line of JSON, without line end."""
        fields = self.fields()
        return json.dumps({"status": fields.pop("status"), "version": VERSION, **fields})

    def summary(self, name: str = "") -> str:
        """Return the result as text: a few lines, without the last line end. `name` is that of the file."""
        which = f"{self.status}: {printable(name)}: " if name else f"{self.status}: "
        if self.error is not None and self.exit_code != Exit.PARTIAL:
            return which + printable(self.error.message)
        lines = [which + printable(self.error.message)] if self.error is not None else []
        which = "  moved: " if lines else which
        lines.append(
            f"{which}{format_size(self.bytes)}{self._how_many()} in {self.seconds:.2f} s"
            f" ({format_rate(self.bytes_per_second)} over {_count(self.connections, 'connection', 'connections')})"
        )
        if self.skipped_files:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.skipped_kinds.items())
            first = f": {printable(self.skipped[0].path)} ..." if self.skipped else ""
            lines.append(f"  {_count(self.skipped_files, 'entry', 'entries')} skipped ({kinds}){first}")
        for count, what in ((self.left_files, "left as it is"), (self.deleted_files, "removed")):
            if count:
                lines.append(f"  {_count(count, 'entry', 'entries')} {what}")
        if self.dry_run:
            lines.append(
                "  only asked: " + (", ".join(f"{n} {what}" for what, n in self.verdicts.items()) or "nothing")
            )
        lines += [f"  warning: {printable(text)}" for text in self.warnings]
        lines += self._shards()
        if self.bottleneck is not None:
            lines.append(f"  bound by {TEXTS[self.bottleneck]}")
        if there := self.held_bytes + self.unchecked_bytes:
            lines.append(f"  {format_size(there)} of it were there before")
        troubles = (
            (self.resent_chunks, "chunk resent", "chunks resent"),
            (self.reconnects, "reconnect", "reconnects"),
        )
        if any(number for number, *_ in troubles):
            lines.append("  " + ", ".join(_count(*trouble) for trouble in troubles if trouble[0]))
        return "\n".join(lines)

    def _shards(self) -> list[str]:
        """Return lines about the other shards."""
        lines = []
        if self.job is not None:
            done = _count(self.job.shards_finished, "shard is", "shards are")
            moved = f"{_count(self.job.files, 'file', 'files')} and {format_size(self.job.bytes)}"
            lines.append(f"  shard {self.job.shard} of job {self.job.name}: {done} finished, with {moved}")
        if not (self.committed or self.dry_run):
            what = "one share of the file: other shares" if self.job is None else "not all of the job: other shards"
            lines.append(f"  {what} are not complete yet")
        return lines

    def _how_many(self) -> str:
        return f" of {self.files} files" if self.files != 1 else ""


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _ending(error: BaseException | None) -> dict[str, Any]:
    """Return status, exit code and error."""
    if isinstance(error, KeyboardInterrupt):
        error = Interrupted(signal.SIGINT)
    if error is None:
        return {"status": "complete", "exit_code": int(Exit.COMPLETE)}
    if not isinstance(error, FilestreamerError):
        message = f"a bug in this program: {type(error).__name__}: {error}"
        return {
            "status": "failed",
            "exit_code": int(Exit.FAILED),
            "error": ResultError(LocalProtocolError.name, message, retryable=False),
        }
    status: Status = "failed"
    if isinstance(error, Interrupted):
        status = "interrupted"
    elif error.exit_code == Exit.REFUSED:
        status = "refused"
    return {
        "status": status,
        "exit_code": int(error.exit_code),
        "error": ResultError(error.name, printable(str(error)), error.retryable),
    }


def write(
    result: TransferResult, stdout: TextIO | None, result_file: str | None, log: "Logger", name: str = ""
) -> None:
    """Write a result to `stdout`, to `result_file` as JSON, or to both; wait until it is written.

    `name` is the name of the file that was moved. Where a result can't be written, the log has a warning.
    """
    try:
        if result_file is not None:
            path = os.path.realpath(result_file)
            content = _content(result, path) + "\n"
            fd = named_by(result_file)
            if fd is None:
                _write_file(path, content)
            else:  # what it is open on is not this program's to replace, and may have no path
                _write_descriptor(fd, content)
    except OSError as error:
        log.warning("result_not_written", to=result_file, reason=error.strerror)
    try:
        # sys.stdout is None if the process was started with standard output closed.
        if stdout is not None:
            show_text((result.summary(name) if stdout.isatty() else result.to_json()) + "\n", stdout)
    except OSError as error:
        log.warning("result_not_written", to=STDOUT, reason=error.strerror)


def is_termination_log(result_file: str) -> bool:
    """Whether a file is Kubernetes' termination log."""
    return os.path.realpath(result_file) == TERMINATION_LOG


def may_be_replaced(result_file: str) -> bool:
    """Whether a file has nothing to lose, as it is empty or holds a result; also where it is no file.

    `--result-file $UNSET FILE` takes the file that was to be sent for that of the result.
    """
    if named_by(result_file) is not None or not os.path.isfile(result_file):
        return True
    try:
        with open(result_file, "rb") as file:
            return file.read(len(_BEGINNING)) in (b"", _BEGINNING)
    except OSError:
        return False


def _content(result: TransferResult, path: str) -> str:
    """Return the content of the result file; for Kubernetes' termination log, as much JSON as is kept of it."""
    content = result.to_json()
    if path != TERMINATION_LOG or len(content) < TERMINATION_LOG_BYTES:
        return content
    shorter = dataclasses.replace(result, per_connection=(), skipped=(), warnings=())
    room = TERMINATION_LOG_BYTES - 1 - len(shorter.to_json())
    if room < 0 and shorter.error is not None:
        message = shorter.error.message[: max(0, len(shorter.error.message) - (-room + 5) // 6 * 6)]
        shorter = dataclasses.replace(shorter, error=dataclasses.replace(shorter.error, message=message))
    fitting = 0
    for entry in result.skipped:
        room -= len(json.dumps(dataclasses.asdict(entry))) + len(", ")
        if room < 0:
            break
        fitting += 1
    return dataclasses.replace(shorter, skipped=result.skipped[:fitting]).to_json()


def show_text(text: str, stdout: TextIO) -> None:
    """Write to standard output, in its encoding; wait where it does not block. Raises OSError."""
    fd = None
    if isinstance(stdout, io.TextIOWrapper):  # not the object by which rich replaces it
        with contextlib.suppress(OSError):  # a stream in memory has no descriptor
            fd = stdout.fileno()
    if fd is None:
        stdout.write(text)
        stdout.flush()
        return
    # The buffer of sys.stdout is bypassed. To a pipe that another process made non-blocking it writes only part of a
    # text, and it tries the rest again when the interpreter ends, which then exits with 120.
    _write_all(fd, text.encode(stdout.encoding, "backslashreplace"))


def _write_descriptor(fd: int, content: str) -> None:
    """Write to a descriptor that this process was started with. Raises OSError."""
    if not os.get_inheritable(fd):  # one of its own has the number
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    _write_all(fd, content.encode("ascii"))


def _write_all(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[write_some(fd, view) :]


_BEGINNING: Final = b'{"status": "'

STDOUT: Final = "standard output"

TERMINATION_LOG: Final = "/dev/termination-log"
TERMINATION_LOG_BYTES: Final = 4096
"""Where Kubernetes looks for the result of a container, and how many bytes it keeps: the last ones."""

_IN_PLACE_ERRORS: Final = (errno.EACCES, errno.EBUSY, errno.EPERM, errno.EROFS)
"""The directory takes no new file, or the file is a mount point. Kubernetes' termination log can be both."""


def _write_file(path: str, content: str) -> None:
    """Replace a file atomically; write a device, a pipe or a mount point in place. Raises OSError."""
    if not os.path.exists(path) or os.path.isfile(path):
        try:
            _replace_file(path, content)
            return
        except OSError as error:
            if error.errno not in _IN_PLACE_ERRORS or not os.path.isfile(path):
                raise
    with open(path, "w", encoding="ascii") as file:
        file.write(content)


def _replace_file(path: str, content: str) -> None:
    temporary = f"{path}.{os.getpid()}-{threading.get_ident()}.tmp"
    try:
        with open(temporary, "x", encoding="ascii") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
