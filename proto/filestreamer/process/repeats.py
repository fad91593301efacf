"""Lines of a log that are repeated: the first few of a minute are written, the others are counted.

A peer can make the same thing happen a thousand times a second, and a broken network all night. Of each kind of line,
the first few in a minute are written. The others are counted; when the minute is over, the last of them is written with
the count, and so on each minute as long as the lines go on. After a minute with few lines, each line is written again.

Pure: the caller has the clock and writes the lines.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

T = TypeVar("T")

WINDOW_SECONDS: Final = 60.0


class Summary(NamedTuple, Generic[T]):
    """The one line that stands for the counted lines of one kind."""

    last: T
    number: int
    seconds: float
    """Since the first line of the minute."""


@dataclass(slots=True, eq=False, repr=False)
class _Kind(Generic[T]):
    """A kind of line in its current minute."""

    first: int
    """Lines that may be written one by one."""
    since: float
    written: int = 0
    counted: int = 0
    last: T | None = None


class RepeatFilter(Generic[T]):
    """Decides for each line whether it is written or counted. One thread at a time; `now` is monotonic time.

    It remembers each kind for a minute: the caller must see to it that there are few kinds.
    """

    def __init__(self) -> None:
        self._kinds: dict[Hashable, _Kind[T]] = {}

    def admit(self, kind: Hashable, line: T, first: int, now: float) -> bool:
        """Return True where a line is one of the `first` of its kind, to be written; else count it and return False.

        Call `due` before.
        """
        state = self._kinds.setdefault(kind, _Kind(first, now))
        if state.written < first:
            state.written += 1
            return True
        state.counted += 1
        state.last = line
        return False

    def due(self, now: float) -> list[Summary[T]]:
        """Return the summaries of minutes that are over, and begin the next minutes."""
        summaries = []
        for kind, state in list(self._kinds.items()):
            if now - state.since >= WINDOW_SECONDS:
                summaries += _sum_up(state, now)
                if state.counted > state.first:  # the lines go on: in the next minute, none is written one by one
                    state.since, state.written, state.counted = now, state.first, 0
                else:
                    del self._kinds[kind]
        return summaries

    def drain(self, now: float) -> list[Summary[T]]:
        """Return the summaries of all minutes, over or not, and forget all kinds."""
        summaries = [summary for state in self._kinds.values() for summary in _sum_up(state, now)]
        self._kinds.clear()
        return summaries

    def next_due_seconds(self, now: float) -> float | None:
        """Return in how many seconds `due` will have a summary; None where no line is counted."""
        begun = [state.since for state in self._kinds.values() if state.counted]
        return max(0.0, min(begun) + WINDOW_SECONDS - now) if begun else None


def _sum_up(state: _Kind[T], now: float) -> list[Summary[T]]:
    if state.last is None or not state.counted:
        return []
    return [Summary(state.last, state.counted, round(now - state.since, 1))]
