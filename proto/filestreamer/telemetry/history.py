"""Transfers that have ended: how many ended in which way and, for a while, their last values."""

import collections
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple, get_args

from filestreamer.telemetry.counters import TransferCounters
from filestreamer.telemetry.result import Status

RESULTS: Final[tuple[Status, ...]] = get_args(Status)
RECENT: Final = 64
"""The most transfers whose last values are kept: it limits the number of time series."""
RECENT_CONNECTIONS: Final = 1024
"""The most connections of these transfers together; the latest transfer is kept in any case."""


class Snapshot(NamedTuple):
    """The transfers at one moment."""

    transfers: list[TransferCounters]
    """Those that are running, and those that ended a short while ago."""
    totals: collections.Counter[str]
    """The sums of `TransferCounters.totals` over all transfers since the service began."""


class History:
    """Keeps each transfer for `keep_seconds` after its end, and sums of all that ended before. For any thread."""

    def __init__(self, keep_seconds: float) -> None:
        self.results: dict[Status, int] = dict.fromkeys(RESULTS, 0)
        """Number of transfers that ended, by status."""
        self.refused: collections.Counter[str] = collections.Counter()
        """Number of connections that were refused, by reason. Written by one thread."""
        self.ended_at: float | None = None
        """When the last transfer ended (monotonic)."""
        self._keep_seconds = keep_seconds
        self._lock = threading.Lock()  # protects everything but `refused`
        self._recent: deque[tuple[float, TransferCounters]] = deque()  # (time of the end, transfer), oldest first
        self._dropped_sums: collections.Counter[str] = collections.Counter()  # sums over transfers that were dropped

    def add(self, transfer: TransferCounters, status: Status) -> None:
        """Add a transfer that has ended. For a moment, `snapshot` may also be given it as running."""
        transfer.status = status
        with self._lock:
            self.results[status] += 1
            self.ended_at = time.monotonic()
            self._recent.append((self.ended_at, transfer))
            self._drop_old()

    def snapshot(self, running: Sequence[TransferCounters]) -> Snapshot:
        """Return the transfers at this moment, given those that are running.

        A transfer that failed and was started again has the same transfer_id: only the latest run is returned.
        """
        with self._lock:
            self._drop_old()
            recent = [transfer for _, transfer in self._recent]
            totals = self._dropped_sums.copy()
        known = {id(transfer) for transfer in recent}
        transfers = recent + [transfer for transfer in running if id(transfer) not in known]
        for transfer in transfers:
            totals.update(transfer.totals())
        return Snapshot(list({transfer.transfer_id: transfer for transfer in transfers}.values()), totals)

    def _drop_old(self) -> None:
        oldest = time.monotonic() - self._keep_seconds
        connections = sum(len(transfer.connections) for _, transfer in self._recent)
        while self._recent and (
            self._recent[0][0] < oldest
            or len(self._recent) > RECENT
            or (connections > RECENT_CONNECTIONS and len(self._recent) > 1)
        ):
            dropped = self._recent.popleft()[1]
            connections -= len(dropped.connections)
            self._dropped_sums.update(dropped.totals())
