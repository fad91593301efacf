"""How many connections are found over links that are simulated: how fast so many are, and how long they take to be."""

import random
from collections.abc import Callable
from typing import NamedTuple

import pytest

from filestreamer.wire import limits
from sender.dispatch.parallelism import FEW, LONG_SECONDS, MANY, PAUSE_SECONDS, SETTLING_SECONDS, Change, Parallelism

MB = 10**6
TICK = 0.1


class Path(NamedTuple):
    """A way to a receiver."""

    rate: Callable[[int], float]
    """Bytes per second with so many connections, once they are up to speed."""
    rtt_seconds: float = 0.0001
    noise: float = 0.0
    """How far any tenth of a second may be from that, as a part of it."""
    waiting: float = 0.0
    """The part of its time that each connection waits for a processor."""

    @property
    def best(self) -> float:
        return max(self.rate(1 << power) for power in range(7))


def lossy(each: float, most: float, rtt_seconds: float) -> Path:
    """Make a long way that loses packets: a connection makes so much of it, until it is full."""
    return Path(lambda connections: min(each * connections, most), rtt_seconds)


def busy(first: float) -> Path:
    """Make a short way between busy cores: each doubling costs a tenth."""
    return Path(lambda connections: first * 0.9 ** (connections.bit_length() - 1))


def flat(rate: float, rtt_seconds: float = 0.02) -> Path:
    """Make a way that one connection fills."""
    return Path(lambda _: rate, rtt_seconds)


class Simulation:
    """A transfer over such a path. Connections come up within two round-trips, and double their rate in each."""

    def __init__(self, path: Path, *, rate_limit: int | None = None, remaining: int = 1 << 20, seed: int = 0) -> None:
        self.path = path
        self.parallelism = Parallelism(rate_limit=rate_limit)
        self.remaining = remaining
        self.changes: list[Change] = []
        self.now = 1000.0
        self.delivered = 0.0
        self.waited = 0.0
        self._rate_limit = rate_limit or float("inf")
        self._random = random.Random(seed)
        self._begun: list[float] = []  # when each of the connections began

    def run(self, seconds: float) -> "Simulation":
        """Go on for so long."""
        for _ in range(round(seconds / TICK)):
            self.now += TICK
            wanted = self.parallelism.connections
            self._begun = [*self._begun[:wanted], *[self.now] * (wanted - len(self._begun))]
            ages = [(self.now - begun) / self.path.rtt_seconds - 2 for begun in self._begun]
            fair = self.path.rate(wanted) / wanted
            rate = sum(min(fair, 100_000 / self.path.rtt_seconds * 2 ** min(age, 60)) for age in ages if age > 0)
            rate = min(rate, self._rate_limit) * (1 + self._random.uniform(-self.path.noise, self.path.noise))
            self.delivered += rate * TICK
            self.waited += sum(age > 0 for age in ages) * self.path.waiting * TICK
            change = self.parallelism.observe(
                self.now,
                round(self.delivered),
                up=sum(age > 0 for age in ages),
                remaining=self.remaining,
                rtt_seconds=self.path.rtt_seconds,
                waited_seconds=self.waited,
            )
            if change is not None:
                self.changes.append(change)
        return self

    @property
    def connections(self) -> int:
        return self.parallelism.connections

    def rate_of(self, seconds: float) -> float:
        """Go on for so long; return the mean rate."""
        before = self.delivered
        self.run(seconds)
        return (self.delivered - before) / seconds


LINKS = {
    "loopback": (busy(1200 * MB), 1),
    "10 ms, no loss": (flat(118 * MB, 0.01), 1),
    "10 ms, 0.1 %": (lossy(100 * MB, 118 * MB, 0.01), 2),
    "50 ms, 0.1 %": (lossy(46 * MB, 118 * MB, 0.05), 4),
    "100 ms, 0.1 %": (lossy(24 * MB, 118 * MB, 0.1), 8),
    "200 ms, 0.1 %": (lossy(12 * MB, 118 * MB, 0.2), 16),
    "a slow line": (flat(0.3 * MB, 0.05), 1),
    "ever more": (lossy(MB, 1000 * MB, 0.02), limits.CONNECTIONS_AUTO),
}


@pytest.mark.parametrize(("path", "enough"), LINKS.values(), ids=LINKS.keys())
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_no_more_connections_than_make_it_fast(path: Path, enough: int, noise: float) -> None:
    """On a long path, whose first connections are taken to be needed, after the first pause."""
    seconds = 20 if path.rtt_seconds < LONG_SECONDS else 2 * PAUSE_SECONDS
    for seed in range(20):
        simulation = Simulation(path._replace(noise=noise), seed=seed).run(seconds)
        assert simulation.connections == enough, simulation.changes


@pytest.mark.parametrize("path", [path for path, _ in LINKS.values()], ids=LINKS.keys())
def test_nine_tenths_of_the_best_after_the_ramp(path: Path) -> None:
    """All of the looking around included."""
    simulation = Simulation(path._replace(noise=0.05)).run(5)
    assert simulation.rate_of(60) >= 0.9 * path.best


def test_it_begins_with_few_and_says_why_it_changes() -> None:
    simulation = Simulation(lossy(25 * MB, 100 * MB, 0.01)).run(6)
    assert [(each.connections_before, each.connections, each.reason) for each in simulation.changes] == [
        (FEW, 4, "try_more"),
        (4, 8, "try_more"),
        (8, 4, "no_gain"),
    ]
    first, second, third = simulation.changes
    assert [round(each.bytes_per_second / MB) for each in simulation.changes] == [50, 100, 100]
    assert (first.bytes_per_second_compared, second.bytes_per_second_compared) == (None, None)
    assert third.bytes_per_second_compared == second.bytes_per_second


def test_a_long_path_begins_with_many() -> None:
    """Its first seconds would be lost; and what was not needed ends after the first pause."""
    begun = Simulation(lossy(6 * MB, 96 * MB, 0.05)).run(2 * TICK)
    assert [tuple(each[:3]) for each in begun.changes] == [(MANY, FEW, "long_path")]
    assert len(begun.run(SETTLING_SECONDS).changes) == 1
    assert begun.run(2).changes[1][:3] == (2 * MANY, MANY, "try_more")
    filled = Simulation(flat(100 * MB, 0.05)).run(20)
    assert filled.connections == MANY
    assert filled.run(PAUSE_SECONDS).connections == 1


@pytest.mark.parametrize(("chunks", "connections"), [(7, FEW), (8, 4), (15, 4), (16, MANY), (10**6, MANY)])
def test_a_long_path_begins_with_as_many_as_its_chunks_are_enough_for(chunks: int, connections: int) -> None:
    assert Simulation(lossy(12 * MB, 96 * MB, 0.05), remaining=chunks).run(2 * TICK).connections == connections


def test_fewer_are_tried_where_more_did_nothing() -> None:
    simulation = Simulation(lossy(60 * MB, 100 * MB, 0.01)).run(10)
    assert [each.reason for each in simulation.changes] == ["try_more", "no_gain", "try_fewer", "needed"]
    assert simulation.connections == FEW


def test_no_more_are_tried_where_they_wait_for_processors(seed: int) -> None:
    """Whatever the rate does meanwhile: their number is not what makes it."""
    assert not Simulation(Path(lambda _: 1000 * MB, noise=0.9, waiting=0.3), seed=seed).run(300).changes


def test_fewer_are_tried_where_many_wait_for_processors() -> None:
    """They were needed before the machine had much else to do."""
    simulation = Simulation(lossy(12 * MB, 96 * MB, 0.05)).run(20)
    simulation.path = busy(300 * MB)._replace(waiting=0.3)
    assert simulation.run(PAUSE_SECONDS + 10).connections == FEW


def test_on_a_busy_machine_a_long_way_still_gets_what_it_needs() -> None:
    """There, connections wait for the network, and then a while for a processor."""
    assert Simulation(lossy(6 * MB, 96 * MB, 0.05)._replace(waiting=0.1)).run(20).connections == 16


def test_what_looked_like_a_gain_is_looked_at_again() -> None:
    """The machine had something else to do while two were looked at: twelve tenths are not the connections' merit."""
    simulation = Simulation(flat(100 * MB))
    while not simulation.changes:
        simulation.run(TICK)
    simulation.path = flat(120 * MB)
    assert simulation.run(10).connections == 1


def test_connections_that_are_slow_to_start_are_given_the_time() -> None:
    """At 300 ms each takes seconds to be up to speed."""
    assert Simulation(lossy(10 * MB, 160 * MB, 0.3)).run(30).connections == 16


def test_at_the_rate_limit_nothing_is_gained_by_more() -> None:
    simulation = Simulation(lossy(40 * MB, 400 * MB, 0.01), rate_limit=60 * MB).run(25)
    assert max(each.connections for each in simulation.changes) == FEW


def test_below_the_rate_limit_more_are_tried() -> None:
    assert Simulation(lossy(20 * MB, 400 * MB, 0.01), rate_limit=150 * MB).run(25).connections == 8


def test_who_chose_a_number_keeps_it() -> None:
    parallelism = Parallelism(5)
    assert (parallelism.connections, parallelism.adapts) == (5, False)


def test_a_short_transfer_never_changes() -> None:
    """It ends within the first look."""
    assert not Simulation(lossy(MB, 100 * MB, 0.01)).run(0.7).changes


def test_no_more_connections_than_there_are_chunks_for() -> None:
    assert Simulation(lossy(MB, 100 * MB, 0.01), remaining=15).run(20).connections == 4
    assert not Simulation(lossy(MB, 100 * MB, 0.01), remaining=0).run(20).changes, "the rest is under way"


def test_after_a_pause_it_tries_again() -> None:
    """The link was shared, and is not any more; then it is again."""
    simulation = Simulation(flat(20 * MB)).run(10)
    assert simulation.connections == 1
    simulation.path = lossy(20 * MB, 160 * MB, 0.02)
    simulation.run(PAUSE_SECONDS + 10)
    assert simulation.connections == 8
    simulation.path = flat(40 * MB)
    simulation.run(PAUSE_SECONDS + 10)
    assert simulation.connections == 1


def test_looking_again_costs_little() -> None:
    """Half the connections for a second, twice a minute."""
    path = lossy(12 * MB, 96 * MB, 0.05)
    simulation = Simulation(path).run(10)
    assert simulation.rate_of(600) >= 0.97 * path.best


def test_a_connection_that_was_lost_is_no_reason() -> None:
    """A rate from before it counts for nothing after it."""
    parallelism = Parallelism()
    delivered, changes = 0, []
    for tick in range(200):
        up = 1 + (tick // 5) % 2  # one of the two comes and goes every half second
        delivered += up * MB
        changes.append(parallelism.observe(tick * TICK, delivered, up=up, remaining=1000, rtt_seconds=0.01))
    assert changes == [None] * 200
