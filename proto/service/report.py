"""The end of a transfer, told three ways: one canonical log line, the result on standard output, the result file."""

import os
import sys
import threading
from typing import Any, Final

from service.log import on_terminal
from service.result import TransferResult, write

_mutex: Final = threading.Lock()
"""Protects standard output and the result file from two transfers that end at once."""


def report(outcome: TransferResult, result_file: str | None, log: Any, **who: Any) -> None:
    """Log the canonical line of a transfer (`who` names it), and write its result.

    Where both standard output and the log are a terminal, the result's summary says it all.
    """
    with _mutex:
        if not (on_terminal() and sys.stdout is not None and sys.stdout.isatty()):
            _log(outcome, log, who)
        write(outcome, sys.stdout, result_file, log, os.path.basename(who.get("file", "")))


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
