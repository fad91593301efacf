"""Views of transfers: what is done, how fast, and how long it will take."""

from typing import Any

import pytest

from filestreamer.terminal.views import Meter
from tests.unit.filestreamer.terminal.samples import MIB, counters, move, view


def test_a_first_look_counts_from_the_start() -> None:
    transfer = counters()
    move(transfer, 10 * MIB, in_flight_bytes=MIB)
    shown = view(transfer, now=4.0)

    assert shown.bytes_per_second == 5 * MIB
    assert shown.eta_seconds == 16.0
    assert shown.bytes_in_flight == 2 * MIB
    assert [item.bytes_per_second for item in shown.connections] == [2.5 * MIB, 2.5 * MIB]


def test_the_rate_is_that_of_the_last_few_seconds() -> None:
    transfer, meter = counters(connections=1, size_bytes=10_000 * MIB), Meter()
    for second in range(1, 11):
        move(transfer, MIB)
        meter.views([transfer], float(second))
    for second in range(11, 21):
        move(transfer, 9 * MIB)
        meter.views([transfer], float(second))
    move(transfer, 9 * MIB)
    shown = meter.views([transfer], 21.0)[0]

    assert shown.bytes_per_second == 9 * MIB
    assert shown.eta_seconds == pytest.approx((10_000 - 109) / 9)


def test_what_stands_still_has_no_rate_and_no_eta() -> None:
    transfer, meter = counters(), Meter()
    move(transfer, MIB)
    for second in range(1, 10):
        meter.views([transfer], float(second))
    shown = meter.views([transfer], 10.0)[0]

    assert shown.bytes_per_second == 0
    assert shown.eta_seconds is None


def test_held_bytes_are_done_and_not_in_the_rate() -> None:
    transfer = counters(held_bytes=50 * MIB)
    move(transfer, 5 * MIB)
    shown = view(transfer)

    assert shown.fraction == 0.6
    assert shown.bytes_per_second == MIB
    assert shown.eta_seconds == 40.0


def test_sent_is_not_done() -> None:
    transfer = counters()
    move(transfer, 0, in_flight_bytes=50 * MIB)
    shown = view(transfer)

    assert shown.fraction == 0.0
    assert shown.bytes_in_flight == 100 * MIB


def test_a_transfer_that_has_ended_shows_its_average() -> None:
    transfer = counters(ended_at=20.0, phase="complete")
    move(transfer, 50 * MIB)

    assert view(transfer, now=1000.0).bytes_per_second == 5 * MIB


@pytest.mark.parametrize(("phase", "expected"), [("offering", 0.0), ("moving", 0.0), ("complete", 1.0)])
def test_an_empty_file_is_done_when_it_is_complete(phase: Any, expected: float) -> None:
    assert expected == view(counters(size_bytes=0, phase=phase)).fraction


def test_a_transfer_that_comes_back_is_not_mixed_up_with_what_it_was() -> None:
    transfer, meter = counters(), Meter()
    move(transfer, MIB)
    meter.views([transfer], 1.0)
    assert meter.views([], 2.0) == []
    assert meter.views([transfer], 4.0)[0].bytes_per_second == 0.5 * MIB
