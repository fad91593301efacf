"""Whether the sender of a transfer is there, and whether the transfer makes progress (proto/README.md, "Liveness").

At each tick a `ProgressClock` is told what was received, listed and re-hashed, and whether a pipe waits for its reader
or a sync is under way. A transfer whose sender is gone, or that has made no progress for STRANGER_SECONDS, gives its
names and its place to others that need them. One that makes no progress for as long as the user says
(`--give-up-after`) ends by itself, and says what it waited for; time during which its sender was away does not count
for that.
"""

import time

from filestreamer.settings.sizes import format_size
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, TransferFailed
from filestreamer.wire.progress_clock import Patience, ProgressClock, sync_seconds
from filestreamer.wire.sockets.control_link import ControlLink
from receiver.file.rehash import Rehasher
from receiver.pipe.pipe_target import PipeTarget
from receiver.transfer.connection_set import ConnectionSet


class Liveness:
    """The liveness of one transfer that is not complete. Its coordinator calls it; properties are for any thread."""

    def __init__(
        self,
        counters: TransferCounters,
        link: ControlLink,
        connection_set: ConnectionSet,
        rehasher: Rehasher,
        *,
        patience: Patience,
    ) -> None:
        self._counters = counters
        self._link = link
        self._connection_set = connection_set
        self._rehasher = rehasher
        self._patience = patience
        self._started_at = self._ticked_at = time.monotonic()
        self._clock = ProgressClock(self._ticked_at)
        self.connected_at = self._started_at
        """When the sender last had a connection (monotonic), up to one tick ago."""
        self._away_seconds = 0.0
        """How long the sender had no connection since the last progress."""
        self._listed = 0
        self.has_listed = False
        """Whether any part of a manifest came."""
        self._peer_rehashed_bytes = 0
        self._is_listed = False
        """Whether the last part of the manifest came."""
        self._passed_over = 0
        """Entries that the sender has found and does not list, as far as it has said."""
        self._passed_over_at = self._started_at
        """When there was one more: the sender looks on. It counts for this transfer's own end alone, as it costs a peer
        nothing to say so, and others may wait for the place."""
        self._peer_waits = False
        """Whether the sender says that it waits for the program that writes its standard input."""
        self._has_begun = False
        """Whether a byte was acknowledged, or is there already, or nothing has to be sent."""
        self.black_hole: str | None = None
        """What is known of a path that loses large packets."""
        self.finishing_at: float | None = None
        """When the sender said Finish, with nothing missing (monotonic)."""
        self.has_lost_connection = False
        """Whether a data connection has ended since the last tick."""

    # --- whether the sender is there

    @property
    def is_connected(self) -> bool:
        """Whether the sender has any connection."""
        return self._link.channel is not None or self._connection_set.is_connected

    @property
    def peer_is_silent(self) -> bool:
        """Whether the sender said nothing, on any connection, for longer than a living sender is silent."""
        return time.monotonic() - self._heard_at() > limits.DEAD_SECONDS

    def _heard_at(self) -> float:
        channel = self._link.channel
        control_at = channel.heard_at if channel is not None else 0.0
        return max(self._started_at, self._connection_set.heard_at(), control_at)

    @property
    def is_orphaned(self) -> bool:
        """Whether the sender has no connection left, or is silent."""
        return not self.is_connected or self.peer_is_silent

    @property
    def is_abandoned(self) -> bool:
        """Whether the sender has had no connection for longer than it takes to connect again."""
        return self.is_orphaned and time.monotonic() - self.connected_at > limits.OPENING_SILENCE_SECONDS

    # --- whether there is progress

    @property
    def idle_seconds(self) -> float:
        """How long ago the last progress was."""
        return time.monotonic() - self._clock.at

    @property
    def is_stalled(self) -> bool:
        """Whether there was no progress for so long that another transfer may take the place."""
        return self.idle_seconds > limits.STRANGER_SECONDS

    @property
    def has_offered_nothing(self) -> bool:
        """Whether the sender has offered nothing, although it had the time."""
        return not self.has_listed and time.monotonic() - self._started_at > limits.OPENING_SILENCE_SECONDS

    @property
    def counts(self) -> dict[str, int]:
        """What this end has done so far, beside the bytes that came."""
        counters = self._counters
        return {
            "listed": self._listed,
            "deleted": counters.deleted_files,
            "judged": sum((counters.verdicts or {}).values()),
            "zeros": counters.zero_bytes,
            "rehashed": counters.hashing_bytes,
        }

    def listed(self, part: m.ManifestPart) -> None:
        """Count a part of the manifest; a repeated part is no progress."""
        self.has_listed = True
        self._is_listed = self._is_listed or part.last
        self._listed = max(self._listed, part.first_file_id + len(part.entries))

    def take_progress(self, message: m.Progress) -> None:
        """Take in a Progress message of the sender."""
        self._peer_rehashed_bytes = message.rehashed_bytes
        if message.passed_over > self._passed_over and not self._is_listed:
            self._passed_over, self._passed_over_at = message.passed_over, time.monotonic()
        self._peer_waits = message.phase is m.Phase.WAITING

    def tick(self, now: float) -> None:
        """Look at everything that counts as progress."""
        clock, counters = self._clock, self._counters
        self._has_begun = self._has_begun or self._has_bytes
        if self.is_connected:
            self.connected_at = now
        else:  # the sender has time to reconnect, and afterwards as much time as before to make progress
            self._away_seconds += now - self._ticked_at
        self._ticked_at = now
        under_way_bytes = self._connection_set.under_way_bytes()
        if self.has_lost_connection:
            self.has_lost_connection = False
            clock.lose(under_way_bytes)
        # A dry run hashes by itself, and counts that as rehashed at once.
        counters.hashing_bytes = max(self._rehasher.hashed_bytes, counters.rehashed_bytes)
        size, step = counters.size_bytes, limits.REHASH_STEP_BYTES
        progress = [
            clock.done(self._connection_set.new_bytes, now),
            clock.under_way(under_way_bytes, now),
            *[clock.reach(what, count, now) for what, count in self.counts.items()],
            clock.reach("peer_rehashed", self._peer_rehashed_bytes, now, most=size, step=step),
        ]
        self._excuse(now)
        if any(progress):
            self.black_hole = None
            self._away_seconds = 0.0
        counters.last_progress_at = self._progress_at

    @property
    def _progress_at(self) -> float:
        """When the last progress was that counts for this transfer's own end (monotonic)."""
        return max(self._clock.at, self._passed_over_at)

    def _excuse(self, now: float) -> None:
        """Count it as progress that a pipe waits for a program, or that a sync is under way."""
        target = self._connection_set.target
        is_stream = isinstance(target, PipeTarget) and target.chunks.size is None
        if self._counters.is_waiting or (self._peer_waits and is_stream):
            self._clock.wait(now)
        if self.finishing_at is not None:
            self._clock.sync(self.finishing_at, sync_seconds(self._counters.data_bytes, self._listed), now)

    @property
    def _has_bytes(self) -> bool:
        counters = self._counters
        is_finishing = self.finishing_at is not None
        return is_finishing or counters.there_bytes > 0 or any(each.chunks for each in counters.connections)

    def check(self, now: float, *, is_busy: bool) -> None:
        """Raise TransferFailed(TIMEOUT) where the transfer has to end by itself.

        `is_busy`: this side is still opening what was offered, so nothing more is expected of the sender.
        """
        most = self._patience.seconds(has_begun=self._has_begun)
        if not self.is_connected and now - self.connected_at > most:
            self._give_up(f"the sender did not come back within {most:g} s")
        if now - self._progress_at - min(self._away_seconds, most) > most:
            if self.finishing_at:
                self._give_up(f"the sync did not end within {most:g} s: it waits for the disk")
            self._give_up(f"there was no progress for {most:g} s, waiting for {self._waits_for(now, is_busy=is_busy)}")

    def _waits_for(self, now: float, *, is_busy: bool) -> str:
        """Return what the transfer waits for."""
        connections, under_way_bytes = self._connection_set.attached, self._connection_set.under_way_bytes()
        if self._link.is_writing:
            return "the sender to take an answer on the control connection"
        if is_busy:
            return "the disk: what was offered is being looked up and opened"
        if writing := sum(each.stage in ("write", "acknowledge") for each in connections):
            return f"the disk: {writing} of {len(connections)} connections write to it"
        if self._rehasher.is_busy:
            return f"the disk: what is there is being read again ({format_size(self._counters.hashing_bytes)} so far)"
        waited = "chunks from the sender"
        if self._link.channel is None:
            waited = "the sender to open control again"
        elif not self.has_listed:
            waited = "the sender to find something to send"
        elif not connections:
            waited = "data connections of the sender"
        elif under_way_bytes:
            waited += f", of which {format_size(under_way_bytes)} are under way"
        silent_seconds = now - self._heard_at()
        count = len(connections)
        there = "there is 1 data connection" if count == 1 else f"there are {count} data connections"
        return f"{waited}; {there}, and the last byte came {silent_seconds:.0f} s ago"

    def _give_up(self, what: str) -> None:
        is_pipe = isinstance(self._connection_set.target, PipeTarget)
        kept = "what was received can't be resumed" if is_pipe else "what was received is kept"
        black_hole = f"; {self.black_hole}" if self.black_hole else ""
        raise TransferFailed(Code.TIMEOUT, f"{what}{black_hole}; {kept}")
