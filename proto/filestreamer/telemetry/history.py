"""What a service remembers of transfers that ended: how many ended how, and for a while their last values."""

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
"""Transfers whose last values are kept at most: it bounds the number of series."""
RECENT_CONNECTIONS: Final = 1024
"""Connections that these have together at most; the last transfer is kept whatever it has."""


class Look(NamedTuple):
    """All that is to be seen at one moment."""

    transfers: list[TransferCounters]
    """Under way, or ended a short while ago."""
    totals: collections.Counter[str]
    """`TransferCounters.troubles`, summed up over all transfers that there ever were."""


class History:
    """Keeps a transfer for `keep_seconds` after its end, and of older ones their sums. For any thread."""

    def __init__(self, keep_seconds: float) -> None:
        self.results: dict[Status, int] = dict.fromkeys(RESULTS, 0)
        """Transfers that ended, by how."""
        self.refused: collections.Counter[str] = collections.Counter()
        """Connections that were turned away, by why; one thread writes it."""
        self.ended_at: float | None = None
        """When the last transfer ended (monotonic)."""
        self._keep_seconds = keep_seconds
        self._lock = threading.Lock()
        self._recent: deque[tuple[float, TransferCounters]] = deque()  # oldest first; protected
        self._forgotten: collections.Counter[str] = collections.Counter()  # protected

    def add(self, transfer: TransferCounters, status: Status) -> None:
        """Take note of a transfer that has ended; it may still be looked at as one under way for a moment."""
        transfer.status = status
        with self._lock:
            self.results[status] += 1
            self.ended_at = time.monotonic()
            self._recent.append((self.ended_at, transfer))
            self._forget()

    def look(self, running: Sequence[TransferCounters]) -> Look:
        """Return what there is to see, given the transfers that are under way.

        Of a transfer that failed and was begun again, under the same id, there is only the latest.
        """
        with self._lock:
            self._forget()
            recent = [transfer for _, transfer in self._recent]
            totals = self._forgotten.copy()
        known = {id(transfer) for transfer in recent}
        transfers = recent + [transfer for transfer in running if id(transfer) not in known]
        for transfer in transfers:
            totals.update(transfer.troubles())
        return Look(list({transfer.transfer_id: transfer for transfer in transfers}.values()), totals)

    def _forget(self) -> None:
        oldest = time.monotonic() - self._keep_seconds
        connections = sum(len(transfer.connections) for _, transfer in self._recent)
        while self._recent and (
            self._recent[0][0] < oldest
            or len(self._recent) > RECENT
            or (connections > RECENT_CONNECTIONS and len(self._recent) > 1)
        ):
            forgotten = self._recent.popleft()[1]
            connections -= len(forgotten.connections)
            self._forgotten.update(forgotten.troubles())
