"""The end of a transfer, told three ways: one canonical log line, the result on standard output, the result file.

Nobody waits for whoever reads them. Standard output and the result file are written by a thread each; the end of the
process waits a short while for both, and says what was not taken by then.
"""

import os
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

from filestreamer.process import background, signals, stderr
from filestreamer.process.log import on_terminal
from filestreamer.telemetry.result import STDOUT, TransferResult, write

FRAME_SECONDS: Final = 0.5
"""What a result waits for the display that is to be above it."""
SIZE: Final = 4
"""A result that waits to be written takes so many times the bytes of its JSON."""


class _Place:
    """Where results go, one after the other."""

    def __init__(self, is_ready: Callable[[], bool]) -> None:
        self._background = background.Background("result", is_ready)
        self._to = ""
        self._log: Any = None

    def add(self, job: Callable[[], None], size_bytes: int, *, to: str, log: Any) -> None:
        """Have a result written to what is called `to`."""
        self._to, self._log = to, log
        signals.before_exit(self._drain)
        if not self._background.add(job, size_bytes):
            log.warning("result_not_written", to=to, reason="earlier results are not written yet: nobody reads them")

    def pause(self) -> None:
        """Give what is there a moment to be written."""
        self._background.pause()

    def _drain(self, seconds: float) -> None:
        if not self._background.drain(seconds):
            self._log.warning("result_not_written", to=self._to, reason="nobody reads it, or its disk does not answer")


def _takes_some() -> bool:
    return sys.stdout is None or background.is_writable(sys.stdout.fileno())


_stdout: Final = _Place(_takes_some)
_file: Final = _Place(lambda: True)
_mutex: Final = threading.Lock()
"""Protects the order of the results of two transfers that end at once: that of their log lines."""


def report(outcome: TransferResult, result_file: str | None, log: Any, **who: Any) -> None:
    """Log the canonical line of a transfer (`who` names it), and have its result written.

    Where both standard output and the log are a terminal, the result's summary says it all.
    """
    is_on_terminal = on_terminal() and sys.stdout is not None and sys.stdout.isatty()
    size_bytes = SIZE * len(outcome.to_json())

    def show() -> None:
        if is_on_terminal:
            stderr.drain(FRAME_SECONDS)
        write(outcome, sys.stdout, None, log, os.path.basename(who.get("file", "")))

    with _mutex:
        if not is_on_terminal:
            _log(outcome, log, who)
        _stdout.add(show, size_bytes, to=STDOUT, log=log)
        if result_file is not None:
            _file.add(lambda: write(outcome, None, result_file, log), size_bytes, to=result_file, log=log)
    for place in (_stdout, _file):
        place.pause()


def _log(outcome: TransferResult, log: Any, who: dict[str, Any]) -> None:
    fields = dict(who)
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
    if outcome.error is None:
        log.info("transfer_complete", **fields)
    else:
        log.error(f"transfer_{outcome.status}", **fields)
