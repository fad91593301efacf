"""What tells a path that loses large packets from a slow peer, a dead cable and ordinary loss."""

import pytest

from filestreamer.telemetry.black_hole import STUCK_SECONDS, BlackHoleWatch, Direction
from filestreamer.telemetry.tcp_info import TcpInfo

STUCK = TcpInfo(
    unacknowledged_bytes=1448,
    unsent_bytes=4_000_000,
    rtt_seconds=0.01,
    congestion_window_bytes=1448,
    delivery_rate=0,
    retransmits=5,
    delivered_bytes=200,
    received_bytes=300,
    mss_bytes=1448,
    timeouts=5,
    is_established=True,
)


def seen(*looks: TcpInfo) -> Direction | None:
    """Return what is seen in the last of these looks, STUCK_SECONDS apart."""
    watch, found = BlackHoleWatch(), None
    for number, info in enumerate(looks):
        found = watch.look(info, 100.0 + STUCK_SECONDS * number)
    return found


def test_a_full_segment_that_never_arrives() -> None:
    assert seen(STUCK) is None
    assert seen(STUCK, STUCK) == "sending"


@pytest.mark.parametrize(
    "other",
    [
        STUCK._replace(timeouts=1),
        STUCK._replace(unacknowledged_bytes=0, probes=1, timeouts=0),
        STUCK._replace(unacknowledged_bytes=0, probes=4, timeouts=4),
        STUCK._replace(unacknowledged_bytes=60, unsent_bytes=0),
        STUCK._replace(delivered_bytes=1648),
    ],
    ids=["loss", "a closed window", "a peer that is gone while its window is closed", "a small frame", "a slow path"],
)
def test_what_is_none(other: TcpInfo) -> None:
    assert seen(STUCK, other) is None


def test_what_came_before_never_arrives() -> None:
    calm = STUCK._replace(timeouts=0, unacknowledged_bytes=0, unsent_bytes=0)
    later = calm._replace(received_bytes=400, out_of_order=2)
    assert seen(calm, later, later) == "receiving"
    assert seen(calm, later, later._replace(received_bytes=5000)) is None
    assert seen(calm, calm._replace(received_bytes=400), calm._replace(received_bytes=400)) is None
