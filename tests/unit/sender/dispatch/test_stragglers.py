"""Which connections are given up: those for whose chunks others would wait, and not those that are merely slower."""

from typing import NamedTuple

import pytest

from filestreamer.wire.limits import MIB
from sender.dispatch.stragglers import IDLE_SECONDS, SECONDS, TIMES, Look, Stragglers

TICK = 0.1
FAST = 20 * MIB


class Connection(NamedTuple):
    """Bytes per second, and how many bytes of chunks it has begun when the simulation begins."""

    rate: float
    begun_bytes: int = 8 * MIB
    rtt_seconds: float = 0.1
    window_limited: float = 0.0
    is_sending: bool = True

    def look(self, connection_id: int, seconds: float) -> Look:
        moved = round(self.rate * seconds)
        left = max(0, self.begun_bytes - moved)
        begun = self.begun_bytes if left else 0
        delivered, limited = min(moved, self.begun_bytes), self.window_limited * seconds
        return Look(connection_id, delivered, begun, left, self.rtt_seconds, limited, self.is_sending)


def given_up(*connections: Connection, seconds: float = 10.0) -> dict[int, float]:
    """Return when each is given up for the first time, by its number."""
    stragglers = Stragglers()
    found: dict[int, float] = {}
    for tick in range(round(seconds / TICK)):
        now = tick * TICK
        for number in stragglers.look(1000 + now, [each.look(at, now) for at, each in enumerate(connections)]):
            found.setdefault(number, now)
    return found


def test_the_one_that_all_wait_for() -> None:
    """As soon as another one has been idle for a moment, that had its rate for long enough."""
    busy_seconds = 2.0
    fast = Connection(FAST, round(busy_seconds * FAST))
    at = given_up(fast, fast, Connection(FAST / 40))
    assert list(at) == [2]
    assert busy_seconds + IDLE_SECONDS <= at[2] < busy_seconds + IDLE_SECONDS + 3 * TICK


@pytest.mark.parametrize(
    "slow",
    [
        Connection(FAST / 4),  # it is done before another one would be
        Connection(FAST / 40, MIB // 8),  # a quarter of a second is left
        Connection(FAST / 40, is_sending=False),  # the receiver takes nothing, or the source gives nothing
        Connection(FAST / 40, window_limited=0.2),  # the receiver reads slowly
        Connection(0, 0),  # it has begun nothing
    ],
    ids=str,
)
def test_those_that_are_left_alone(slow: Connection) -> None:
    fast = Connection(FAST, 2 * FAST)
    assert given_up(fast, fast, slow) == {}


def test_none_while_all_are_at_work() -> None:
    fast = Connection(FAST, 100 * FAST)
    assert given_up(fast, fast, Connection(FAST / 40)) == {}


def test_none_whose_rate_is_not_known() -> None:
    """A connection that has just begun is given the time to get up to speed, and ten round-trips of a long path."""
    stragglers, fast, late = Stragglers(), Connection(FAST, 2 * FAST), Connection(FAST / 1000, rtt_seconds=0.3)
    begin = 3.0
    for tick in range(round((begin + 3.0) / TICK) - 1):
        now = tick * TICK
        looks = [fast.look(0, now), *([late.look(1, now - begin)] if now >= begin else [])]
        assert stragglers.look(now, looks) == []
    assert stragglers.look(begin + 3.0 + SECONDS, [fast.look(0, 100), late.look(1, 3.0 + SECONDS)]) == [1]


def test_not_for_ever() -> None:
    """A path on which each new connection is as slow: what was sent again and again would never arrive."""
    stragglers, times, opened = Stragglers(), 0, 0.0
    fast, slow = Connection(FAST, 2 * FAST), Connection(FAST / 1000)
    for tick in range(1000):
        now = tick * TICK
        if stragglers.look(now, [fast.look(0, now), slow.look(1, now - opened)]):
            times, opened = times + 1, now
    assert times == TIMES
