"""Counts and logs the entries that are not sent: for the log, the result, and the receiver's result."""

import threading
from typing import Any

from filestreamer.telemetry.counters import Skipped, TransferCounters
from filestreamer.wire.messages import LeftOut, LeftOutCount


class SkippedEntries:
    """The skipped entries of one transfer, in its counters. Any thread may call."""

    def __init__(self, counters: TransferCounters, log: Any) -> None:
        self._counters = counters
        self._log = log
        self._mutex = threading.Lock()  # protects what `counters` says of skipped entries

    def add(self, skipped: Skipped) -> None:
        """Count and log an entry that is not sent."""
        with self._mutex:
            self._counters.leave_out(skipped)
        log = self._log.error if self._counters.is_failure(skipped.kind) else self._log.warning
        log("entry_skipped", path=skipped.path, kind=skipped.kind.name.lower(), reason=skipped.reason)

    def warn(self, text: str) -> None:
        """Keep and log a warning, once."""
        with self._mutex:
            is_new = self._counters.warn(text)
        if is_new:
            self._log.warning("notice", reason=text)

    def for_finish(self) -> tuple[tuple[LeftOutCount, ...], tuple[LeftOut, ...]]:
        """Return two fields of Finish: how many entries were skipped, by kind, and the first ones."""
        with self._mutex:
            return self._counters.left_out_fields()
