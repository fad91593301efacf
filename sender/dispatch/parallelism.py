"""The number of data connections, if the user did not choose it. Pure.

It starts with few, with more on a long path, and doubles them while that makes the transfer faster. A doubling that
does not is taken back. Then half as many are tried: a number that is as fast as a larger one stays. After a pause it
tries both directions again, as links and machines change.

What counts is the rate at which the receiver's kernel takes bytes, which is finer than acknowledged chunks: these may
come seconds apart. The rate is measured when connections that were added have had time to get up to speed, some ten
round-trips, and once it does not rise by itself any more. More connections bring more windows and more threads. Where
the threads already wait for processors, the network is not the bottleneck, and more connections are not tried.
"""

from collections import deque
from typing import Final, Literal, NamedTuple

from filestreamer.telemetry.counters import ParallelismReason as Reason
from filestreamer.wire import limits

FEW: Final = 2
"""Connections at the start: over loopback as fast as any number, and one doubling nearer to many than one is."""
MANY: Final = 8
"""Connections at the start of a long path, where a loss costs seconds of an open window: what doubling would find over
100 ms with 0.01 % loss, and what comparable tools (WDT) begin with everywhere."""
LONG_SECONDS: Final = 0.03
"""The round-trip from which on a path is long. TCP windows take seconds to open there: the many connections are kept
until the first pause at least."""
SETTLING_SECONDS: Final = 5.0
"""How long a long path is left alone with what it began with. Sixteen instead of eight connections overflow its queue
for longer than a transfer of half a gigabyte takes, and one of many gigabytes loses little by a later try."""
GAIN: Final = 1.1
"""The factor by which doubling has to raise the rate. A doubling that is taken back costs less than a tenth of it."""
CLEAR_GAIN: Final = 1.25
"""A smaller gain may be chance on a busy machine. So fewer connections are tried later, which costs no more than it."""
LOSS: Final = 0.95
"""The factor to which halving may lower the rate."""
CLEAR_LOSS: Final = 0.9
"""A smaller loss may be chance on a busy machine, too: it is measured for longer."""
CROWDED: Final = 0.15
"""If threads wait for a processor this part of their time, more threads would only wait longer. Threads that wait for
the network get a processor soon after that, even on a machine that has much else to do."""
LOOK_SECONDS: Final = 0.8
LOOK_ROUND_TRIPS: Final = 10
LOOK_SECONDS_MAX: Final = 4.0
"""How long the rate is measured at least: LOOK_SECONDS, or LOOK_ROUND_TRIPS, but no longer than LOOK_SECONDS_MAX."""
PATIENCE: Final = 3
"""For how many measurements a rate may go on rising by itself before it counts."""
PAUSE_SECONDS: Final = 30.0
SAMPLE_SECONDS: Final = 0.05

CHUNKS_EACH: Final = 2
"""How many chunks must be queued for each connection before there are twice as many connections."""


class Sample(NamedTuple):
    """How far the transfer was at one moment."""

    now: float
    delivered_bytes: int
    waited_seconds: float


class Change(NamedTuple):
    """A decision to have another number of connections."""

    connections: int
    """The number from now on."""
    connections_before: int
    reason: Reason
    bytes_per_second: float
    """The rate with `connections_before`."""
    bytes_per_second_compared: float | None
    """The rate that it is compared with, that of the number before; None for a try."""


class Parallelism:
    """Call `observe` several times a second, from one thread."""

    def __init__(self, chosen: int | None = None, *, rate_limit: int | None = None) -> None:
        """Stay at the number that the user has `chosen`; None: find it.

        A transfer that moves nearly `rate_limit` bytes per second needs no more connections.
        """
        self.adapts = chosen is None
        self.connections = FEW if chosen is None else chosen
        self._enough = 0.9 * rate_limit if rate_limit else float("inf")
        self._samples: deque[Sample] = deque()  # since something changed that makes earlier rates meaningless
        self._up = 0
        self._has_begun = False
        self._tried: Reason | None = None  # the try that is being measured
        self._compared = 0.0  # the rate before it
        self._next: Literal["try_more", "try_fewer", "pause"] = "try_more"
        self._is_proven = False  # whether fewer were clearly slower, or are assumed to be
        self._pause_until = 0.0
        self._settling_seconds = 0.0  # the pause that begins with the first connection that is up

    def begin(self, rtt_seconds: float, chunks: int) -> Change | None:
        """Choose the number to start with, before a data connection is up; return the change, if there is one.

        `rtt_seconds` is the round-trip of the control connection, `chunks` how many may be sent. If these are too small
        to decide, the first `observe` with connections that are up does.
        """
        if self._has_begun or rtt_seconds < LONG_SECONDS or chunks < CHUNKS_EACH * 2 * self.connections:
            return None
        self._has_begun = True
        before = self.connections
        while self.connections < MANY and chunks >= CHUNKS_EACH * 2 * self.connections:
            self.connections *= 2
        self._is_proven = True  # until the first pause: to try fewer at once would lose what was won
        self._settling_seconds = SETTLING_SECONDS
        return Change(self.connections, before, "long_path", 0.0, None)

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
        """Add a sample of the transfer; return the change, if there is one.

        `delivered_bytes`: what the receiver's kernel has taken so far. `up`: connections that are open. `remaining`:
        chunks that are queued. `rtt_seconds`: the shortest round-trip of a connection. `waited_seconds`: how long the
        threads of all connections have waited for a processor so far, added up.
        """
        samples = self._samples
        if up != self._up or not remaining or (samples and delivered_bytes < samples[-1].delivered_bytes):
            samples.clear()  # a rate from before to after this would mean nothing
        self._up = up
        if up and not self._has_begun:
            begun = self.begin(rtt_seconds, remaining)
            self._has_begun = True
            if begun is not None:
                return begun
        if up and self._settling_seconds:
            self._pause_until, self._settling_seconds = now + self._settling_seconds, 0.0
        if not samples or now - samples[-1].now >= SAMPLE_SECONDS:
            samples.append(Sample(now, delivered_bytes, waited_seconds))
        look_seconds = min(max(LOOK_SECONDS, LOOK_ROUND_TRIPS * rtt_seconds), LOOK_SECONDS_MAX)
        rate = self._steady_rate(look_seconds)
        if rate is None or not up or now < self._pause_until:
            return None
        if self._is_doubtful(rate) and now - samples[0].now < 2 * look_seconds:
            return None
        change = self._judge(now, rate, remaining)
        if change is not None:
            self.connections = change.connections
            samples.clear()
        return change

    def _is_doubtful(self, rate: float) -> bool:
        """Whether a gain or a loss is too small to believe it at once."""
        # New connections fill a queue on the path, which looks like a gain for a moment.
        ratio = rate / max(self._compared, 1.0)
        return (self._tried == "try_more" and GAIN <= ratio < CLEAR_GAIN) or (
            self._tried == "try_fewer" and CLEAR_LOSS <= ratio < LOSS
        )

    def _steady_rate(self, look_seconds: float) -> float | None:
        """Return the bytes per second of the later half of the samples.

        Return None while there are too few, and while the rate rises by itself.
        """
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
        """Whether connections have waited for processors since the first sample."""
        first, last = self._samples[0], self._samples[-1]
        return last.waited_seconds - first.waited_seconds >= CROWDED * self._up * (last.now - first.now)

    def _judge(self, now: float, rate: float, remaining: int) -> Change | None:
        """Undo a try that did not help, or try the next number."""
        tried, self._tried = self._tried, None
        if tried == "try_more":
            if rate < GAIN * self._compared:
                self._next = "pause" if self._is_proven else "try_fewer"
                return Change(self.connections // 2, self.connections, "no_gain", rate, self._compared)
            self._is_proven = rate >= CLEAR_GAIN * self._compared
        elif tried == "try_fewer" and rate < LOSS * self._compared:
            self._next = "pause"
            return Change(2 * self.connections, self.connections, "needed", rate, self._compared)
        is_crowded = self._is_crowded
        is_most = rate >= self._enough or is_crowded or 2 * self.connections > limits.CONNECTIONS_AUTO
        if self._next == "try_more" and is_most:
            self._next = "pause" if self._is_proven else "try_fewer"
        if self._next == "try_fewer" and self.connections > (FEW if is_crowded else 1):
            self._tried = "try_fewer"
            self._compared = max(rate, self._compared) if tried == "try_fewer" else rate
            return Change(self.connections // 2, self.connections, "try_fewer", rate, None)
        if self._next == "try_more":
            if remaining < CHUNKS_EACH * 2 * self.connections:
                return None
            self._tried, self._compared = "try_more", rate
            return Change(2 * self.connections, self.connections, "try_more", rate, None)
        self._pause_until = now + PAUSE_SECONDS
        self._next, self._is_proven = "try_more", False
        return None
