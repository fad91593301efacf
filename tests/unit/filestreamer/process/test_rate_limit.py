"""The rate limit, with a clock of the test's own."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filestreamer.process.rate_limit import BURST_SECONDS, Pacer, RateLimit
from tests.support.services import HANG


def test_the_first_piece_goes_at_once() -> None:
    assert Pacer(1000).reserve(500, now=100.0) == 0.0


def test_pieces_follow_one_another() -> None:
    pacer = Pacer(1000)
    waits = [pacer.reserve(100, now=100.0) for _ in range(4)]
    assert waits == pytest.approx([0.0, 0.1 - BURST_SECONDS, 0.2 - BURST_SECONDS, 0.3 - BURST_SECONDS])


def test_who_waits_as_told_never_waits_longer() -> None:
    pacer, now = Pacer(1000), 100.0
    for _ in range(100):
        now += pacer.reserve(100, now)
    assert now == pytest.approx(100.0 + 9.9 - BURST_SECONDS)


def test_unused_time_is_not_saved_up() -> None:
    pacer = Pacer(1000)
    pacer.reserve(100, now=0.0)
    waits = [pacer.reserve(100, now=1000.0) for _ in range(3)]
    assert waits == pytest.approx([0.0, 0.1 - BURST_SECONDS, 0.2 - BURST_SECONDS])


@given(
    rate=st.integers(1, 10**10),
    pieces=st.lists(st.tuples(st.integers(1, 1 << 20), st.floats(0, 10)), min_size=1, max_size=100),
)
def test_never_more_than_the_rate(rate: int, pieces: list[tuple[int, float]]) -> None:
    """Whatever is sent when: between two pieces there is time for all that begins before the second, but a burst."""
    pacer = Pacer(rate)
    now = 1000.0
    begun: list[float] = []
    sent = [0]
    for count, pause in pieces:
        now += pause
        begun.append(now + pacer.reserve(count, now))
        sent.append(sent[-1] + count)
    for last in range(len(begun)):
        for first in range(last):
            allowed_bytes = (begun[last] - begun[first] + BURST_SECONDS) * rate
            assert sent[last] - sent[first] <= allowed_bytes * (1 + 1e-6)


@pytest.mark.parametrize(
    ("rate", "expected"), [(1, 1), (19, 1), (20, 1), (1000, 50), (1 << 20, (1 << 20) // 20), (1 << 40, 256 * 1024)]
)
def test_pieces_are_a_twentieth_of_a_second(rate: int, expected: int) -> None:
    assert expected == RateLimit(rate).piece_bytes


def test_closing_wakes_the_threads_that_wait() -> None:
    limit = RateLimit(1)
    limit.wait(1)
    thread = threading.Thread(target=limit.wait, args=(1_000_000,))
    waiting = threading.Thread(target=limit.wait, args=(1,))
    thread.start()
    thread.join(0.1)
    waiting.start()
    limit.close()
    for each in (thread, waiting):
        each.join(HANG)
        assert not each.is_alive()
