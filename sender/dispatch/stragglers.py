"""Which connections are given up, so that others which have nothing left to send take over their chunks. Pure.

The connections of a transfer share a path, and seldom equally: one that lost packets, or that began when others had
filled a queue on the path, may stay at a hundredth of their rate. While there are chunks for all, that costs nothing.
At the end, and wherever chunks go in order, it costs everything: all wait for the chunks that it has begun. So a
connection is given up where another one would have sent these twice over before it has sent the rest of them, much as
MapReduce runs its last tasks on a second machine (Dean and Ghemawat 2004, section 3.6).

A connection whose receiver reads slowly is not given up: its disk is slow, or it has a rate limit, and that would hold
up another connection as well. The kernel tells for how long the peer's window was what kept it from sending.
"""

from collections import deque
from typing import Final, NamedTuple

SECONDS: Final = 1.0
"""A rate is measured over this time, or over ROUND_TRIPS; and to give up a connection has to save as much."""
ROUND_TRIPS: Final = 10
IDLE_SECONDS: Final = 0.2
"""A connection is idle that had nothing to send for so long."""
GAIN: Final = 2.0
"""How many times as long as by another connection the rest must take, at the least,"""
BEGIN_ROUND_TRIPS: Final = 4
"""beyond the time until that one has sent the first of it."""
WINDOW_LIMITED: Final = 0.1
"""A connection that the receiver's window has held up for more than this part of the time waits for the receiver."""
TIMES: Final = 3
"""How often each connection is given up."""


class Look(NamedTuple):
    """One connection, at one moment."""

    connection_id: int
    delivered_bytes: int
    """What the receiver's kernel has acknowledged on this socket."""
    begun_bytes: int
    """Of chunks that were begun and are not acknowledged by the receiver."""
    left_bytes: int
    """Of these, what the receiver's kernel has not acknowledged."""
    rtt_seconds: float
    window_limited_seconds: float
    """How long the receiver's window has held it up so far."""
    is_sending: bool
    """Whether this end's kernel has bytes to send, and the receiver's would take some."""


class _Rate:
    """The rate of one connection while it has something to send, and how often it was given up."""

    def __init__(self) -> None:
        self.times_given_up = 0
        self.bytes_per_second: float | None = None  # the last one that was measured
        self.waits_for_receiver = False
        self.idle_since: float | None = None
        self._samples: deque[tuple[float, Look]] = deque()

    def add(self, now: float, look: Look) -> None:
        """Add a sample."""
        samples = self._samples
        if not look.begun_bytes:
            self.idle_since = self.idle_since or now
            samples.clear()
            return
        self.idle_since = None
        if samples and look.delivered_bytes < samples[-1][1].delivered_bytes:  # another socket
            self.forget()
        samples.append((now, look))
        seconds = max(SECONDS, ROUND_TRIPS * look.rtt_seconds)
        while len(samples) > 2 and now - samples[1][0] >= seconds:
            samples.popleft()
        begun, before = samples[0]
        passed = now - begun
        if passed >= seconds:
            self.bytes_per_second = (look.delivered_bytes - before.delivered_bytes) / passed
            window_limited_seconds = look.window_limited_seconds - before.window_limited_seconds
            self.waits_for_receiver = window_limited_seconds > WINDOW_LIMITED * passed

    def give_up(self) -> None:
        """Note that the connection is given up."""
        self.times_given_up += 1
        self.forget()

    def forget(self) -> None:
        """Begin anew, as the connection does."""
        self._samples.clear()
        self.bytes_per_second = None


class Stragglers:
    """Looks at all connections of a transfer from time to time."""

    def __init__(self) -> None:
        self._rates: dict[int, _Rate] = {}

    def look(self, now: float, looks: list[Look]) -> list[int]:
        """Take in how the connections that are up stand; return those to be given up now."""
        for look in looks:
            self._rates.setdefault(look.connection_id, _Rate()).add(now, look)
        best = max((self._idle_rate(now, look.connection_id) for look in looks), default=0.0)
        if not best:
            return []
        stragglers = [look.connection_id for look in looks if self._is_straggler(look, best)]
        for connection_id in stragglers:
            self._rates[connection_id].give_up()
        return stragglers

    def _idle_rate(self, now: float, connection_id: int) -> float:
        """Return the rate that an idle connection had; 0.0 for one that is not idle."""
        rate = self._rates[connection_id]
        if rate.idle_since is None or now - rate.idle_since < IDLE_SECONDS:
            return 0.0
        return rate.bytes_per_second or 0.0

    def _is_straggler(self, look: Look, best: float) -> bool:
        rate = self._rates[look.connection_id]
        if rate.bytes_per_second is None or rate.waits_for_receiver or not look.is_sending:
            return False
        if rate.times_given_up >= TIMES:
            return False
        left_seconds = look.left_bytes / max(rate.bytes_per_second, 1.0)
        by_another = BEGIN_ROUND_TRIPS * look.rtt_seconds + GAIN * look.begun_bytes / best
        return left_seconds >= by_another + SECONDS
