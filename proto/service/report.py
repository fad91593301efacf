"""The end of a transfer, told three ways: one canonical log line, the result on standard output, the result file."""

import sys
import threading
from typing import Any, Final

from service.result import TransferResult, write

_mutex: Final = threading.Lock()
"""Protects standard output and the result file from two transfers that end at once."""


def report(outcome: TransferResult, result_file: str | None, log: Any, **who: Any) -> None:
    """Log the canonical line of a transfer (`who` names it), and write its result."""
    fields = {
        **who,
        "transfer": (outcome.transfer_id or "")[:8] or None,
        "bytes": outcome.bytes,
        "sent_bytes": outcome.sent_bytes,
        "held_bytes": outcome.held_bytes,
        "seconds": round(outcome.seconds, 3),
        "bytes_per_second": round(outcome.bytes_per_second),
        "connections": outcome.connections,
        "chunks": outcome.chunks,
        "resent_chunks": outcome.resent_chunks,
        "reconnects": outcome.reconnects,
    }
    if outcome.error is None:
        log.info("transfer_complete", **fields)
    else:
        log.error(f"transfer_{outcome.status}", error=outcome.error.code, reason=outcome.error.message, **fields)
    with _mutex:
        write(outcome, sys.stdout, result_file, log)
