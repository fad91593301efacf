"""Whether a transfer gets on, as its receiver sees it (proto/README.md, "Liveness").

At each tick, what came, what was listed and what was re-hashed is told to a `ProgressClock`, and whether a pipe waits
or a sync goes on. Without progress for STRANGER_SECONDS a transfer gives its name and its place to others that want
them; without any for as long as the user says, it ends by itself. Time without its sender does not count for that.
"""

import time

from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.progress_clock import ProgressClock, sync_seconds
from receiver.file.rehash import Rehasher
from receiver.pipe.pipe_target import PipeTarget
from receiver.transfer.connection_set import ConnectionSet


class Liveness:
    """The progress of one transfer. Its coordinator calls it; `idle_seconds` and `has_lost` are for any thread."""

    def __init__(
        self,
        counters: TransferCounters,
        connection_set: ConnectionSet,
        rehasher: Rehasher,
        stranger_seconds: float = limits.STRANGER_SECONDS,
    ) -> None:
        self._counters = counters
        self._connection_set = connection_set
        self._rehasher = rehasher
        self._stranger_seconds = stranger_seconds
        self._ticked_at = time.monotonic()
        self._clock = ProgressClock(self._ticked_at)
        self._away_seconds = 0.0
        """How long its sender was away since it last got on."""
        self._listed = 0
        self.has_listed = False
        """Whether any part of a manifest came."""
        self._peer_rehashed_bytes = 0
        self._peer_waits = False
        self.finishing_at: float | None = None
        """When the sender said Finish, with nothing missing."""
        self.has_lost = False
        """Whether a data connection has ended, since the clock was told."""

    @property
    def idle_seconds(self) -> float:
        """How long ago it last got on."""
        return time.monotonic() - self._clock.at

    @property
    def is_stalled(self) -> bool:
        """Whether it gives way to others."""
        return self.idle_seconds > self._stranger_seconds

    def spent_seconds(self, now: float, away_most: float) -> float:
        """How long it did not get on; that its sender was away is left out, for `away_most` in all."""
        return now - self._clock.at - min(self._away_seconds, away_most)

    # --- what it is told

    def listed(self, part: m.ManifestPart) -> None:
        """Take in a part of the manifest; one that is repeated lists nothing."""
        self.has_listed = True
        self._listed = max(self._listed, part.first_file_id + len(part.entries))

    def heard(self, message: m.Progress) -> None:
        """Take in what the sender says of itself."""
        self._peer_rehashed_bytes = message.rehashed_bytes
        self._peer_waits = message.phase is m.Phase.WAITING

    def tick(self, now: float, *, is_connected: bool) -> None:
        """Look at everything that counts."""
        clock, counters = self._clock, self._counters
        if not is_connected:  # the sender has time to come back, and time to get on after that
            self._away_seconds += now - self._ticked_at
        self._ticked_at = now
        under_way = self._connection_set.under_way_bytes()
        if self.has_lost:
            self.has_lost = False
            clock.lose(under_way)
        counters.hashing_bytes = self._rehasher.hashed_bytes
        size, step = counters.size_bytes, limits.REHASH_STEP_BYTES
        gets_on = [
            clock.done(self._connection_set.new_bytes, now),
            clock.under_way(under_way, now),
            clock.reach("listed", self._listed, now),
            clock.reach("rehashed", counters.hashing_bytes, now),
            clock.reach("peer_rehashed", self._peer_rehashed_bytes, now, most=size, step=step),
        ]
        self._wait(now)
        if any(gets_on):
            counters.last_progress_at = now
            self._away_seconds = 0.0

    def _wait(self, now: float) -> None:
        """Take in that a pipe waits, or that what was received is being synced."""
        target = self._connection_set.target
        if self._counters.is_waiting or (self._peer_waits and isinstance(target, PipeTarget) and target.is_stream):
            self._clock.wait(now)
        if self.finishing_at is not None:
            self._clock.sync(self.finishing_at, sync_seconds(self._counters.size_bytes, self._listed), now)
