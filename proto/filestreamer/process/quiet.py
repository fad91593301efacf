"""How often the same is logged: the first few times in a minute, then once a minute how many more there were.

A peer can make the same thing happen a thousand times a second, and a network all night. Of each kind of line the first
few are written. Those behind them are counted, and the last of them is written with the count when the minute is over,
and again each minute as long as it goes on; lines are written one by one again when a minute had but few.

Pure: the caller has the clock and writes the lines.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

T = TypeVar("T")

WINDOW_SECONDS: Final = 60.0


class Summary(NamedTuple, Generic[T]):
    """What stands for lines of one kind that were not written."""

    last: T
    number: int
    seconds: float
    """Since the first line of the minute."""


@dataclass(slots=True)
class _Kind(Generic[T]):
    """A kind of line in its minute."""

    first: int
    """Lines that may be written one by one."""
    since: float
    written: int = 0
    counted: int = 0
    last: T | None = None


class Quiet(Generic[T]):
    """Decides for each line whether it is written. One thread at a time; `now` is monotonic time.

    Each kind is kept for its minute: kinds are for the caller to bound.
    """

    def __init__(self) -> None:
        self._kinds: dict[Hashable, _Kind[T]] = {}

    def admit(self, kind: Hashable, line: T, first: int, now: float) -> bool:
        """Return whether a line is written, as one of the `first` of its kind; else count it. Call `due` before."""
        state = self._kinds.setdefault(kind, _Kind(first, now))
        if state.written < first:
            state.written += 1
            return True
        state.counted += 1
        state.last = line
        return False

    def due(self, now: float) -> list[Summary[T]]:
        """Return what is to be written of minutes that are over, and begin the next ones."""
        summaries = []
        for kind, state in list(self._kinds.items()):
            if now - state.since >= WINDOW_SECONDS:
                summaries += _sum_up(state, now)
                if state.counted > state.first:  # it goes on: nothing is written one by one
                    state.since, state.written, state.counted = now, state.first, 0
                else:
                    del self._kinds[kind]
        return summaries

    def rest(self, now: float) -> list[Summary[T]]:
        """Return what is to be written at the end, and forget all."""
        summaries = [summary for state in self._kinds.values() for summary in _sum_up(state, now)]
        self._kinds.clear()
        return summaries

    def next_due(self, now: float) -> float | None:
        """Return in how many seconds something has to be written; None where nothing has."""
        begun = [state.since for state in self._kinds.values() if state.counted]
        return max(0.0, min(begun) + WINDOW_SECONDS - now) if begun else None


def _sum_up(state: _Kind[T], now: float) -> list[Summary[T]]:
    if state.last is None or not state.counted:
        return []
    return [Summary(state.last, state.counted, round(now - state.since, 1))]
