"""How many connections, where nobody chose: purely.

It starts with few, with some more on a long path, and doubles them while that makes the transfer faster. A doubling
that does not is taken back, and then half as many are tried: what is as fast with fewer stays with fewer. After a rest
it looks again, in both directions, as links and machines change.

What counts is the rate at which the peer's kernel takes bytes in: it is finer than acknowledged chunks, which may come
seconds apart. It is measured when the connections that were added have had time to get up to speed, some ten
round-trips, and once it does not rise by itself any more. More connections bring more windows and more threads: where
threads wait for processors already, more are not tried. Then the network is not what holds them up.
"""

from collections import deque
from typing import Final, Literal, NamedTuple

from filestreamer.telemetry.counters import ParallelismReason as Reason
from filestreamer.wire import limits

FEW: Final = 2
"""Connections at the start: as fast as any number over loopback, and one doubling nearer to many than one is."""
LONG_SECONDS: Final = 0.03
"""The round-trip of a long path: windows take seconds to open there, so it has twice as many from the start, and keeps
them until the first rest at least."""
GAIN: Final = 1.1
"""What doubling has to make of the rate. What is given away where it makes less is less than a tenth."""
CLEAR_GAIN: Final = 1.25
"""A smaller gain may be a busy machine's: whether fewer do as well is tried later, which costs no more than it."""
LOSS: Final = 0.95
"""What halving may make of it."""
CLEAR_LOSS: Final = 0.9
"""A smaller loss may be a busy machine's, too: it is looked at for longer."""
CROWDED: Final = 0.15
"""The part of their time that connections wait for a processor, from which on more would only wait longer. Threads that
wait for the network get one soon after it, also from a machine that has much else to do."""
LOOK_SECONDS: Final = 0.8
LOOK_ROUND_TRIPS: Final = 10
LOOK_SECONDS_MAX: Final = 4.0
"""How long a number of connections is looked at, at least, and at least where round-trips take ages."""
PATIENCE: Final = 3
"""Looks for which a rate may rise by itself."""
REST_SECONDS: Final = 30.0
SAMPLE_SECONDS: Final = 0.05

CHUNKS_EACH: Final = 2
"""Chunks that must be left for each connection of twice as many."""


class Sample(NamedTuple):
    """How far it was at one moment."""

    now: float
    delivered_bytes: int
    waited_seconds: float


class Change(NamedTuple):
    """One decision to have another number of connections."""

    connections: int
    """From now on."""
    connections_before: int
    reason: Reason
    bytes_per_second: float
    """The rate with `connections_before`."""
    bytes_per_second_compared: float | None
    """What made that too little: the rate with the number before it. None for a mere try."""


class Parallelism:
    """Tell it what happens by `observe`, from one thread, several times a second."""

    def __init__(self, chosen: int | None = None, *, rate_limit: int | None = None) -> None:
        """Stay at the number that somebody has `chosen`, if so.

        A transfer that moves nearly `rate_limit` bytes per second needs no more connections.
        """
        self.adapts = chosen is None
        self.connections = FEW if chosen is None else chosen
        self._enough = 0.9 * rate_limit if rate_limit else float("inf")
        self._samples: deque[Sample] = deque()  # since the last disturbance
        self._up = 0
        self._has_begun = False
        self._tried: Reason | None = None  # the try that is being looked at
        self._compared = 0.0  # the rate before it
        self._next: Literal["try_more", "try_fewer", "rest"] = "try_more"
        self._is_proven = False  # fewer were clearly slower, or are taken to be
        self._rest_until = 0.0

    def begin(self, rtt_seconds: float, chunks: int) -> Change | None:
        """Take in the round-trip before any connection is up, and how many chunks there may be; return what changes.

        Where that is too little to go by, the first `observe` with connections that are up decides.
        """
        if self._has_begun or rtt_seconds < LONG_SECONDS or chunks < CHUNKS_EACH * 2 * self.connections:
            return None
        self._has_begun = True
        self.connections *= 2
        self._is_proven = True  # until the first rest: to try fewer at once costs what was won
        return Change(self.connections, self.connections // 2, "long_path", 0.0, None)

    def observe(
        self,
        now: float,
        delivered_bytes: int,
        *,
        up: int,
        remaining: int,
        rtt_seconds: float,
        waited_seconds: float = 0.0,
    ) -> Change | None:
        """Take in how it goes; return what is to change, if anything.

        `delivered_bytes`: what the receiver's kernel has taken so far. `up`: connections that are open. `remaining`:
        chunks that are queued. `rtt_seconds`: the shortest round-trip of a connection. `waited_seconds`: how long the
        threads of all connections have waited for a processor so far, added up.
        """
        samples = self._samples
        if up != self._up or not remaining or (samples and delivered_bytes < samples[-1].delivered_bytes):
            samples.clear()  # rates before and after this have nothing to do with each other
        self._up = up
        if up and not self._has_begun:
            begun = self.begin(rtt_seconds, remaining)
            self._has_begun = True
            if begun is not None:
                return begun
        if not samples or now - samples[-1].now >= SAMPLE_SECONDS:
            samples.append(Sample(now, delivered_bytes, waited_seconds))
        look_seconds = min(max(LOOK_SECONDS, LOOK_ROUND_TRIPS * rtt_seconds), LOOK_SECONDS_MAX)
        rate = self._steady_rate(look_seconds)
        if rate is None or not up or now < self._rest_until:
            return None
        if self._is_doubtful(rate) and now - samples[0].now < 2 * look_seconds:
            return None
        change = self._judge(now, rate, remaining)
        if change is not None:
            self.connections = change.connections
            samples.clear()
        return change

    def _is_doubtful(self, rate: float) -> bool:
        """Whether a gain or a loss is a small one: a queue that new connections fill looks like a gain for a moment."""
        ratio = rate / max(self._compared, 1.0)
        return (self._tried == "try_more" and GAIN <= ratio < CLEAR_GAIN) or (
            self._tried == "try_fewer" and CLEAR_LOSS <= ratio < LOSS
        )

    def _steady_rate(self, look_seconds: float) -> float | None:
        """Return bytes per second over the later half of a look; None before, and while the rate rises by itself."""
        samples = self._samples
        while len(samples) > 2 and samples[-1].now - samples[1].now >= PATIENCE * look_seconds:
            samples.popleft()
        last = len(samples) - 1
        seconds = samples[last].now - samples[0].now
        if last < 4 or seconds < look_seconds:
            return None
        is_rising = self._rate(3 * last // 4, last) > GAIN * self._rate(last // 2, 3 * last // 4)
        if is_rising and seconds < (PATIENCE - 0.5) * look_seconds:
            return None
        return self._rate(last // 2, last)

    def _rate(self, first: int, last: int) -> float:
        before, after = self._samples[first], self._samples[last]
        return (after.delivered_bytes - before.delivered_bytes) / (after.now - before.now)

    @property
    def _is_crowded(self) -> bool:
        """Whether connections wait for processors, all through the look."""
        first, last = self._samples[0], self._samples[-1]
        return last.waited_seconds - first.waited_seconds >= CROWDED * self._up * (last.now - first.now)

    def _judge(self, now: float, rate: float, remaining: int) -> Change | None:
        """Take back what was tried in vain, and try what comes next."""
        tried, self._tried = self._tried, None
        if tried == "try_more":
            if rate < GAIN * self._compared:
                self._next = "rest" if self._is_proven else "try_fewer"
                return Change(self.connections // 2, self.connections, "no_gain", rate, self._compared)
            self._is_proven = rate >= CLEAR_GAIN * self._compared
        elif tried == "try_fewer" and rate < LOSS * self._compared:
            self._next = "rest"
            return Change(2 * self.connections, self.connections, "needed", rate, self._compared)
        is_crowded = self._is_crowded
        is_most = rate >= self._enough or is_crowded or 2 * self.connections > limits.CONNECTIONS_AUTO
        if self._next == "try_more" and is_most:
            self._next = "rest" if self._is_proven else "try_fewer"
        if self._next == "try_fewer" and self.connections > (FEW if is_crowded else 1):
            self._tried = "try_fewer"
            self._compared = max(rate, self._compared) if tried == "try_fewer" else rate
            return Change(self.connections // 2, self.connections, "try_fewer", rate, None)
        if self._next == "try_more":
            if remaining < CHUNKS_EACH * 2 * self.connections:
                return None
            self._tried, self._compared = "try_more", rate
            return Change(2 * self.connections, self.connections, "try_more", rate, None)
        self._rest_until = now + REST_SECONDS
        self._next, self._is_proven = "try_more", False
        return None
