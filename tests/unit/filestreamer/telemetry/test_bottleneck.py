"""What a transfer was bound by, from what both ends spent their time on; and how that time is counted."""

import dataclasses
import itertools
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filestreamer.telemetry.bottleneck import TEXTS, Bottleneck, bottleneck
from filestreamer.telemetry.counters import StageClock, TransferCounters
from filestreamer.telemetry.result import TransferResult
from filestreamer.wire.messages import RECEIVER_STAGES, SENDER_STAGES

SECOND = 1_000_000

Times = dict[str, int]


def verdict(sender: Times, receiver: Times) -> Bottleneck | None:
    """Name the bottleneck where these stages took so many microseconds, and the others none."""
    return bottleneck(
        [sender.get(stage, 0) for stage in SENDER_STAGES], [receiver.get(stage, 0) for stage in RECEIVER_STAGES]
    )


@pytest.mark.parametrize(
    ("sender", "receiver", "expected"),
    [
        # A slow disk at the source: the receiver waits for bytes, the sender never waits for it.
        ({"read": 9, "send": 1}, {"receive": 9, "write": 1}, "source_read"),
        ({"digest": 9, "send": 1}, {"receive": 9, "write": 1}, "digest"),
        ({"send": 6, "wait_ack": 3, "read": 1}, {"digest": 9, "receive": 1}, "digest"),
        # A slow path: both wait for the network, whether the sender's buffers are full or its window is.
        ({"send": 9, "read": 1}, {"receive": 9, "write": 1}, "network"),
        ({"wait_ack": 9, "read": 1}, {"receive": 9, "write": 1}, "network"),
        ({"send": 8, "wait_ack": 1, "read": 1}, {"receive": 1, "write": 9}, "destination_write"),
        ({"wait_ack": 9, "read": 1}, {"receive": 1, "acknowledge": 9}, "acknowledgements"),
        ({"limit": 9, "read": 1}, {"receive": 9, "write": 1}, "rate_limit"),
        ({"send": 9, "read": 1}, {"limit": 9, "write": 1}, "rate_limit"),
    ],
)
def test_what_holds_the_others_up_is_named(sender: Times, receiver: Times, expected: Bottleneck) -> None:
    assert expected == verdict(sender, receiver)


def test_an_end_that_only_waits_for_the_other_is_not_held_up_by_the_network() -> None:
    assert verdict({"send": 100}, {"write": 60, "receive": 40}) == "destination_write"
    assert verdict({"read": 60, "send": 40}, {"receive": 100}) == "source_read"


@pytest.mark.parametrize(
    ("sender", "receiver"),
    [
        ((), (1, 1, 1, 1)),
        ((1, 1, 1, 1, 1), ()),
        ((1, 1, 1, 1), (1, 1, 1, 1)),
        ((0, 0, 0, 0, 0), (1, 1, 1, 1)),
        ((1, 1, 1, 1, 1), (0, 0, 0, 0)),
    ],
)
def test_an_end_that_said_too_little_leaves_no_verdict(sender: tuple[int, ...], receiver: tuple[int, ...]) -> None:
    assert bottleneck(sender, receiver) is None


times = st.integers(0, 2**64 - 1)
sender_times = st.lists(times, min_size=len(SENDER_STAGES), max_size=len(SENDER_STAGES)).filter(any)
receiver_times = st.lists(times, min_size=len(RECEIVER_STAGES), max_size=len(RECEIVER_STAGES)).filter(any)
usual_times = st.integers(1, 2**40)


@given(sender_times, receiver_times)
def test_whatever_a_peer_says_there_is_a_verdict_with_a_text(sender: list[int], receiver: list[int]) -> None:
    found = bottleneck(sender, receiver)

    assert found is not None
    assert TEXTS[found]


@given(sender_times, receiver_times, st.lists(times, max_size=11), st.lists(times, max_size=11))
def test_stages_that_a_later_version_adds_change_nothing(
    sender: list[int], receiver: list[int], more: list[int], others: list[int]
) -> None:
    assert bottleneck(sender, receiver) == bottleneck(sender + more, receiver + others)


@given(
    st.lists(usual_times, min_size=len(SENDER_STAGES), max_size=len(SENDER_STAGES)),
    st.lists(usual_times, min_size=len(RECEIVER_STAGES), max_size=len(RECEIVER_STAGES)),
    st.integers(1, 1000),
)
def test_only_shares_count(sender: list[int], receiver: list[int], factor: int) -> None:
    """One end may have fewer connections, or have counted for longer, than the other."""
    found = bottleneck(sender, receiver)
    again = bottleneck([factor * each for each in sender], receiver)

    assert found == again or _tied(sender, receiver)


def _tied(sender: list[int], receiver: list[int]) -> bool:
    """Whether two candidates are so close that rounding decides."""
    shares = sorted(
        share
        for part, whole in ((sender, sum(sender)), (receiver, sum(receiver)))
        for share in [*(each / whole for each in part), sum(part[2:4]) / whole]
    )
    return any(math.isclose(low, high) for low, high in itertools.pairwise(shares))


@given(
    st.sampled_from(["read", "digest", "limit"]),
    st.lists(st.integers(0, 1000), min_size=len(SENDER_STAGES), max_size=len(SENDER_STAGES)),
    st.lists(st.integers(0, 1000), min_size=len(RECEIVER_STAGES), max_size=len(RECEIVER_STAGES)),
)
def test_work_that_fills_nearly_all_of_the_senders_time_is_the_bottleneck(
    stage: str, sender: list[int], receiver: list[int]
) -> None:
    sender[SENDER_STAGES.index(stage)] = 100 * SECOND
    receiver[RECEIVER_STAGES.index("receive")] = 100 * SECOND

    assert bottleneck(sender, receiver) == {"read": "source_read", "digest": "digest", "limit": "rate_limit"}[stage]


# How the time is counted.


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the time that clocks read, to be moved."""
    times = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: times[0])
    return times


def test_each_moment_is_in_one_stage_or_in_none(now: list[float]) -> None:
    seconds = dict.fromkeys(RECEIVER_STAGES, 0.0)
    clock = StageClock(seconds)
    now[0] += 50  # before the first
    for stage, spent in (("receive", 1.0), ("digest", 2.0), (None, 4.0), ("write", 8.0), ("receive", 16.0)):
        clock.enter(stage)
        now[0] += spent
    clock.enter(None)
    now[0] += 32

    assert seconds == {"receive": 17.0, "digest": 2.0, "write": 8.0, "acknowledge": 0.0, "limit": 0.0}


def test_what_interrupts_a_stage_is_not_counted_twice(now: list[float]) -> None:
    seconds = dict.fromkeys(RECEIVER_STAGES, 0.0)
    clock = StageClock(seconds)
    clock.enter("receive")
    now[0] += 1
    interrupted = clock.enter("acknowledge")
    now[0] += 2
    clock.enter(interrupted)
    now[0] += 4
    clock.enter(None)

    assert (seconds["receive"], seconds["acknowledge"]) == (5.0, 2.0)


def test_a_wait_for_what_never_came_is_dropped(now: list[float]) -> None:
    seconds = dict.fromkeys(RECEIVER_STAGES, 0.0)
    clock = StageClock(seconds)
    clock.enter("receive")
    now[0] += 1
    clock.drop()
    now[0] += 1
    clock.enter(None)

    assert not any(seconds.values())


def counters(stages: tuple[str, ...], peer: tuple[int, ...], **seconds: float) -> TransferCounters:
    """Return a transfer of two connections that each spent so long in some stages."""
    made = TransferCounters(bytes(16), "f", stages, peer_stages=peer)
    for number in range(2):
        made.add_connection(number).stage_seconds.update(seconds)
    return made


def test_both_ends_say_the_same() -> None:
    sender, receiver = counters(SENDER_STAGES, (), read=3.0, send=1.0), counters(RECEIVER_STAGES, (), receive=4.0)
    sender.peer_stages, receiver.peer_stages = receiver.stage_microseconds(), sender.stage_microseconds()

    assert sender.peer_stages == (8 * SECOND, 0, 0, 0, 0)
    assert sender.bottleneck == receiver.bottleneck == "source_read"


def test_a_long_sync_at_the_end_is_writing_at_the_destination() -> None:
    """The page cache takes a file faster than the disk does: the disk's time comes after the last byte."""
    path = (0, 0, 2 * SECOND, 0, 0)
    quick, slow = (counters(RECEIVER_STAGES, path, receive=1.0, write=0.1) for _ in range(2))
    slow.sync_seconds = 9.0

    assert (quick.bottleneck, slow.bottleneck) == ("network", "destination_write")
    assert slow.stage_microseconds() == (2 * SECOND, 0, round(18.2 * SECOND), 0, 0)


def test_nothing_moved_is_bound_by_nothing() -> None:
    assert TransferCounters(bytes(16), "f", SENDER_STAGES, peer_stages=(1, 1, 1, 1)).bottleneck is None


@pytest.mark.parametrize("name", list(TEXTS))
def test_the_summary_says_it_in_a_line(name: Bottleneck) -> None:
    complete = TransferResult(status="complete", exit_code=0, bottleneck=name)

    assert f"  bound by {TEXTS[name]}" in complete.summary().splitlines()
    assert "bound by" not in dataclasses.replace(complete, bottleneck=None).summary()
