"""Runs of states: what is yielded, put together, is every row that is wanted, and no other."""

import itertools
import random

from filestreamer.wire.runs import runs, runs_without


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
        others = [row for span in runs_without(states, 3) for row in range(*span)]
        assert others == [row for row, state in enumerate(states) if state != 3]
