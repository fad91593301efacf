"""Waiting for something to hold, with an end to it."""

import time
from collections.abc import Callable

from tests.support.services import HANG, UNIT, Service


def until(holds: Callable[[], object], what: str, seconds: float = HANG) -> None:
    """Look again and again until something holds; `what` says in a failure what did not."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.01)


def with_patience(attempt: Callable[[float], object], what: str) -> None:
    """Attempt something that ends after a time, each time with more of it, until it says that all came in that time.

    For tests of giving up: `--give-up-after 1` is over soon, and on a busy machine it may be over before the answer
    came that the test is about. What has to hold however little came in time, an attempt asserts by itself.
    """
    for seconds in (1.0, 0.6 * UNIT, 3 * UNIT):
        if attempt(seconds):
            return
    raise AssertionError(f"{what}: not within {3 * UNIT} s")


def gives_up_busy(start: Callable[[float], Service]) -> str:
    """Start a sender with such a --give-up-after, whose file another one has; return the error that says so.

    One that has given up before the receiver could answer does not know.
    """
    told = ""

    def is_told(seconds: float) -> bool:
        nonlocal told
        sender = start(seconds)
        sender.wait()
        if sender.result["error"]["code"] != "timeout":
            told = sender.fails(1, "busy")
        return bool(told)

    with_patience(is_told, "refused with BUSY")
    return told


def undisturbed(attempt: Callable[[], bool], what: str) -> None:
    """Attempt what is spoilt where the machine stands still for a moment, again if it is: whether it was not is said.

    For what a service decides by rates that it measures. What it decides rightly on a disturbed machine is no fault.
    """
    assert any(attempt() for _ in range(4)), f"{what}: not in four attempts"
