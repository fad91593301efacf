"""Runs of equal states in a table that has one byte for each row, and of numbers that follow each other."""

import re
from collections.abc import Iterator, Sequence
from typing import Final

_STATES: Final = range(256)
_EQUAL: Final = re.compile(rb"(.)\1*", re.DOTALL)


def equal_runs(states: bytes | bytearray) -> Iterator[tuple[int, int, int]]:
    """Yield the runs (state, first, end) of rows in one state, in order: each row is in one of them."""
    for run in _EQUAL.finditer(states):
        yield run[1][0], run.start(), run.end()


def runs(states: bytes | bytearray, *wanted: int) -> Iterator[tuple[int, int]]:
    """Yield the runs [first, end) of rows in any of the wanted states, in order."""
    if any(state in states for state in wanted):
        yield from _runs(states.translate(bytes(state in wanted for state in _STATES)))


def runs_without(states: bytes | bytearray, *unwanted: int) -> Iterator[tuple[int, int]]:
    """Yield the runs [first, end) of rows in any state but these, in order."""
    yield from _runs(states.translate(bytes(state not in unwanted for state in _STATES)))


def as_ranges(numbers: Sequence[int]) -> Iterator[range]:
    """Yield ascending numbers as ranges: those that follow each other are one."""
    start = 0
    for at, number in enumerate(numbers, 1):
        if at == len(numbers) or numbers[at] != number + 1:
            yield range(numbers[start], number + 1)
            start = at


def _runs(marks: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """Yield the runs [first, end) of ones; the other rows are 0."""
    first = marks.find(1)
    while first >= 0:
        end = marks.find(0, first)
        end = len(marks) if end < 0 else end
        yield first, end
        first = marks.find(1, end)
