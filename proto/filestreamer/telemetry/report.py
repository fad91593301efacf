"""The end of a transfer, reported three times: as one log line, on standard output, and in the result file.

No transfer waits for a reader of them. Standard output and the result file are written by a background thread each. The
end of the process waits a short time for both, and logs which result could not be written.

Kubernetes' termination log has one result in every case: `begin` writes into it what is true of a process that is
killed before it can say more, and `report_early` finds the file where the settings are wrong.
"""

import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from filestreamer.process import background, signals, stderr
from filestreamer.process.log import configure, on_terminal
from filestreamer.process.threads import as_failure
from filestreamer.process.variables import value_of
from filestreamer.telemetry.result import STDOUT, TransferResult, is_termination_log, may_be_replaced, write
from filestreamer.wire.errors import Interrupted

if TYPE_CHECKING:
    from filestreamer.wire.session import Side

FRAME_SECONDS: Final = 0.5
"""How long a result waits for the last frame of the display, which must be written above it."""
MEMORY_FACTOR: Final = 4
"""Memory of a result that waits to be written, by the size of its JSON."""


class _ResultWriter:
    """Writes results to one place, one after another, in the background."""

    def __init__(self, is_ready: Callable[[], bool]) -> None:
        self._background = background.Background("result", is_ready)
        self._to = ""
        self._log: Any = None

    def add(self, job: Callable[[], None], size_bytes: int, *, to: str, log: Any) -> None:
        """Have `job` write a result; `to` names the place in log lines."""
        self._to, self._log = to, log
        signals.before_exit(self._drain)
        if not self._background.add(job, size_bytes):
            log.warning("result_not_written", to=to, reason="earlier results still wait for the reader")

    def pause(self) -> None:
        """Wait a moment for results to be written."""
        self._background.pause()

    def _drain(self, seconds: float) -> None:
        if not self._background.drain(seconds):
            self._log.warning(
                "result_not_written", to=self._to, reason="the reader does not read, or the disk does not answer"
            )


def _is_stdout_ready() -> bool:
    return sys.stdout is None or background.is_writable(sys.stdout.fileno())


_stdout: Final = _ResultWriter(_is_stdout_ready)
_file: Final = _ResultWriter(lambda: True)
_mutex: Final = threading.Lock()
"""Keeps log lines and results in the same order where two transfers end at once."""


def report(outcome: TransferResult, result_file: str | None, log: Any, **fields: Any) -> None:
    """Log the end of a transfer, with `fields` that name it, and have its result written.

    Where both standard output and the log are a terminal, there is no log line: the summary of the result says it all.
    """
    is_on_terminal = on_terminal() and sys.stdout is not None and sys.stdout.isatty()
    size_bytes = MEMORY_FACTOR * len(outcome.to_json())

    def show() -> None:
        if is_on_terminal:
            stderr.drain(FRAME_SECONDS)
        write(outcome, sys.stdout, None, log, os.path.basename(fields.get("file", "")))

    with _mutex:
        if not is_on_terminal:
            _log(outcome, log, fields)
        _stdout.add(show, size_bytes, to=STDOUT, log=log)
        if result_file is not None:
            _file.add(lambda: write(outcome, None, result_file, log), size_bytes, to=result_file, log=log)
    for writer in (_stdout, _file):
        writer.pause()


def begin(result_file: str | None, log: Any) -> None:
    """Write how this process ends if it is killed from now on, where the result file is Kubernetes' termination log."""
    if result_file is not None and is_termination_log(result_file):
        write(TransferResult.killed(), None, result_file, log)


def reporting_overdue(result_file: str | None, log: Any) -> Callable[[int], None]:
    """Return what reports that this process has not ended in time after a signal, whose number it takes."""
    return lambda number: report(TransferResult.without_transfer(Interrupted(number)), result_file, log)


def report_early(error: Exception, service: "Side", argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Report an error of a service whose settings are not known yet; return the exit code."""
    failure = as_failure("reading the settings", error)
    log = configure(service)
    result_file = _named_file(service, argv, environ)
    if result_file is not None and not may_be_replaced(result_file):
        log.warning("result_not_written", to=result_file, reason="it holds something else, and the settings are wrong")
        result_file = None
    report(TransferResult.without_transfer(failure), result_file, log)
    return failure.exit_code


def _named_file(service: "Side", argv: Sequence[str], environ: Mapping[str, str]) -> str | None:
    """Return the result file that a flag or a variable names, as far as that can be told of settings that are wrong."""
    flag, found = "--result-file", None
    for word, following in zip(argv, [*argv, ""][1:], strict=True):
        if word == "--":
            break
        if word == flag or word.startswith(f"{flag}="):
            found = following if word == flag else word.removeprefix(f"{flag}=")
    variables = (f"FILESTREAMER_{service.upper()}_RESULT_FILE", "FILESTREAMER_RESULT_FILE")
    return found or value_of(environ, *variables) or None


def _log(outcome: TransferResult, log: Any, fields: dict[str, Any]) -> None:
    if outcome.error is not None:
        fields |= {"error": outcome.error.code, "reason": outcome.error.message}
    if outcome.transfer_id is not None:
        fields |= {
            "transfer": outcome.transfer_id[:8],
            "bytes": outcome.bytes,
            "sent_bytes": outcome.sent_bytes,
            "held_bytes": outcome.held_bytes,
            "unchecked_bytes": outcome.unchecked_bytes,
            "seconds": round(outcome.seconds, 3),
            "bytes_per_second": round(outcome.bytes_per_second),
            "connections": outcome.connections,
            "chunks": outcome.chunks,
            "resent_chunks": outcome.resent_chunks,
            "reconnects": outcome.reconnects,
            "bottleneck": outcome.bottleneck,
        }
    if outcome.skipped_files:
        fields |= {"skipped_files": outcome.skipped_files, "skipped_kinds": outcome.skipped_kinds}
    fields |= {
        name: count
        for name in ("left_files", "deleted_files", "undeletable_files")
        if (count := getattr(outcome, name))
    }
    if outcome.dry_run:
        fields |= {"dry_run": True, "verdicts": outcome.verdicts}
    if outcome.error is None:
        log.info("transfer_complete", **fields)
    else:
        log.error(f"transfer_{outcome.status}", **fields)
