"""The date of a moment, by the machine's clock as it is set now.

Moments are kept as monotonic times, which no change of the clock moves. Where NTP or a person sets the clock during a
transfer, all dates of the transfer move with it: a date that is kept would be wrong from then on.
"""

import time
from typing import Final

STEP_SECONDS: Final = 1.0
"""A clock that differs by less than before was not set: it is only adjusted, and dates stay exactly as they were."""


class WallClock:
    """Gives monotonic times a date. For any thread."""

    def __init__(self) -> None:
        self._ahead_seconds = _ahead_seconds()

    def date(self, monotonic: float) -> float:
        """Return the Unix time, in seconds, of a monotonic time."""
        ahead_seconds = _ahead_seconds()
        if abs(ahead_seconds - self._ahead_seconds) >= STEP_SECONDS:
            self._ahead_seconds = ahead_seconds
        return monotonic + self._ahead_seconds


def _ahead_seconds() -> float:
    return time.time() - time.monotonic()  # noqa: TID251 - a date, for people


WALL_CLOCK: Final = WallClock()
