"""Waiting for something to hold, with an end to it."""

import time
from collections.abc import Callable

from tests.support.services import HANG


def until(holds: Callable[[], object], what: str, seconds: float = HANG) -> None:
    """Look again and again until something holds; `what` says in a failure what did not."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.01)
