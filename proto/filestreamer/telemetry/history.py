"""Transfers that have ended: how many ended in which way and, for a while, their last values."""

import collections
import itertools
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
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


@dataclass(slots=True, eq=False, repr=False)
class UserSums:
    """The sums over the transfers of one user of a receiver, since the user is one."""

    under_way: int = 0
    results: dict[Status, int] = field(default_factory=lambda: dict.fromkeys(RESULTS, 0))
    """Number of transfers that ended, by status."""
    received_bytes: int = 0


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
        self._users: dict[str, UserSums] = {}  # the same for each user; `results` of all that ended

    def add(self, transfer: TransferCounters, status: Status) -> None:
        """Add a transfer that has ended. For a moment, `snapshot` may also be given it as running."""
        transfer.status = status
        with self._lock:
            self.results[status] += 1
            if transfer.user:
                self._users.setdefault(transfer.user, UserSums()).results[status] += 1
            self.ended_at = time.monotonic()
            if not transfer.is_replaced:  # else the one that was to go on with it could not begin
                self._recent.append((self.ended_at, transfer))
            self._drop_old()

    def replaced(self, transfer: TransferCounters) -> None:
        """Add what a transfer has moved with which another one goes on: it has no result, and is shown no more."""
        with self._lock:
            transfer.is_replaced = True
            self._drop(transfer)

    def snapshot(self, running: Sequence[TransferCounters]) -> Snapshot:
        """Return the transfers at this moment, given those that are running.

        A transfer that failed and was started again has the same transfer_id: only the latest run is returned.
        """
        with self._lock:
            self._drop_old()
            transfers = self._with_recent(running)
            _label(transfers)
            totals = self._dropped_sums.copy()
        for transfer in transfers:
            totals.update(transfer.totals())
        return Snapshot(list({transfer.label: transfer for transfer in transfers}.values()), totals)

    def users(self, running: Iterable[TransferCounters], names: Collection[str]) -> dict[str, UserSums]:
        """Return the sums of each of these users, given the transfers that are running; forget those of others."""
        with self._lock:
            self._drop_old()
            self._users = {name: self._users.get(name) or UserSums() for name in names}
            sums = {name: replace(known, results=dict(known.results)) for name, known in self._users.items()}
            transfers = self._with_recent(running)
        for transfer in transfers:
            if transfer.user in sums:
                sums[transfer.user].received_bytes += transfer.moved_bytes
                sums[transfer.user].under_way += transfer.status is None
        return sums

    def _with_recent(self, running: Iterable[TransferCounters]) -> list[TransferCounters]:
        """Return the transfers whose last values are kept, and those that are running. Call it with the lock."""
        recent = [transfer for _, transfer in self._recent]
        known = {id(transfer) for transfer in recent}
        return recent + [each for each in running if id(each) not in known and not each.is_replaced]

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
            self._drop(dropped)

    def _drop(self, transfer: TransferCounters) -> None:
        self._dropped_sums.update(transfer.totals())
        if transfer.user in self._users:
            self._users[transfer.user].received_bytes += transfer.moved_bytes


def _label(transfers: Collection[TransferCounters]) -> None:
    """Give each transfer that has none a label, which it keeps: the same as that of an earlier run of it.

    Senders choose the ids: those of two transfers may begin with the same digits, and those of two users be equal. One
    label for both would make a scrape inconsistent, and a Pushgateway refuses that as a whole.
    """
    labels = {(transfer.user, transfer.transfer_id): transfer.label for transfer in transfers if transfer.label}
    for transfer in transfers:
        digits, owner = transfer.transfer_id.hex()[:8], (transfer.user, transfer.transfer_id)
        if owner not in labels:
            free = itertools.chain([digits], (f"{digits}-{number}" for number in itertools.count(2)))
            labels[owner] = next(label for label in free if label not in labels.values())
        transfer.label = labels[owner]
