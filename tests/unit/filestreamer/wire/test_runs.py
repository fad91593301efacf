"""Runs of states: what is yielded, put together, is every row that is wanted, and no other."""

import itertools
import random

from filestreamer.wire.runs import as_ranges, equal_runs, runs, runs_without


def test_of_any_table(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(200):
        states = bytes(rng.choice((0, 3, 9, 255)) for _ in range(rng.randrange(40)))
        for wanted in ((0,), (3, 255), (7,)):
            spans = list(runs(states, *wanted))
            assert [row for span in spans for row in range(*span)] == [
                row for row, state in enumerate(states) if state in wanted
            ]
            assert all(end < start for (_, end), (start, _) in itertools.pairwise(spans))
        equal = list(equal_runs(states))
        assert bytes(state for state, first, end in equal for _ in range(first, end)) == states
        assert [first for _, first, _ in equal] == [0, *(end for _, _, end in equal)][: len(equal)]
        assert all(one != other for (one, _, _), (other, _, _) in itertools.pairwise(equal))
        others = [row for span in runs_without(states, 3) for row in range(*span)]
        assert others == [row for row, state in enumerate(states) if state != 3]


def test_of_any_numbers(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(200):
        numbers = sorted(rng.sample(range(40), rng.randrange(40)))
        found = list(as_ranges(numbers))
        assert [number for each in found for number in each] == numbers
        assert all(one.stop < other.start for one, other in itertools.pairwise(found))
