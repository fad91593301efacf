"""When the receiver of a job counts as gone."""

import pytest

from filestreamer.wire.errors import Absent, Code, ConnectionLost, FilestreamerError, Refused
from sender.presence import ABSENT_SECONDS, Presence

LOST = ConnectionLost("connection refused")
BUSY = Refused(Code.BUSY, "no place")


def looks(presence: Presence, now: float, trouble: FilestreamerError | None = None, at: float = 0.0) -> None:
    presence.check(now, is_connected=False, trouble=trouble, trouble_at=at)


def test_a_receiver_that_never_came_is_absent_after_a_while() -> None:
    presence = Presence("photos", 0.0)
    looks(presence, ABSENT_SECONDS, LOST, ABSENT_SECONDS)
    with pytest.raises(Absent, match=r"'photos' for 600 s .connection refused.: it has ended"):
        looks(presence, ABSENT_SECONDS + 1, LOST, ABSENT_SECONDS + 1)


def test_one_that_was_connected_counts_from_then() -> None:
    presence = Presence("photos", 0.0)
    presence.check(1000.0, is_connected=True, trouble=LOST, trouble_at=999.0)
    looks(presence, 1000.0 + ABSENT_SECONDS)
    with pytest.raises(Absent):
        looks(presence, 1001.0 + ABSENT_SECONDS)


def test_one_that_refuses_is_there() -> None:
    presence = Presence("photos", 0.0)
    looks(presence, 1000.0, BUSY, 999.0)
    looks(presence, 999.0 + ABSENT_SECONDS, LOST, 1500.0)
    with pytest.raises(Absent):
        looks(presence, 1000.0 + ABSENT_SECONDS, LOST, 1500.0)


def test_without_a_job_nobody_is_absent() -> None:
    looks(Presence(None, 0.0), 100 * ABSENT_SECONDS, LOST)
