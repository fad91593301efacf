"""Progress lines in the log."""

from typing import Any, cast

from filestreamer.terminal.log_lines import LINES_MAX, LogLines
from filestreamer.terminal.views import Meter
from tests.unit.filestreamer.terminal.samples import MIB, Log, counters, move


def test_a_log_line_for_each_active_transfer() -> None:
    log = Log()
    active, ended = counters(), counters(ended_at=3.0)
    move(active, 10 * MIB, in_flight_bytes=MIB)
    LogLines(cast(Any, log)).show(Meter().views([active, ended], 10.0))

    assert log.lines == [
        (
            "progress",
            {
                "transfer": "deadbeef",
                "percent": 20.0,
                "acknowledged_bytes": 20 * MIB,
                "size_bytes": 100 * MIB,
                "bytes_per_second": 2 * MIB,
                "bytes_in_flight": 2 * MIB,
                "eta_seconds": 40.0,
                "phase": "moving",
            },
        )
    ]


def test_many_transfers_share_a_line() -> None:
    """Strangers may begin as many as they like."""
    log = Log()
    many = [counters() for _ in range(64)]
    for each in many:
        move(each, 10 * MIB, in_flight_bytes=MIB)
    LogLines(cast(Any, log)).show(Meter().views(many, 10.0))

    assert len(log.lines) == LINES_MAX + 1
    left = 64 - LINES_MAX
    assert log.lines[-1][1]["transfers"] == left
    assert log.lines[-1][1]["bytes_in_flight"] == left * 2 * MIB
