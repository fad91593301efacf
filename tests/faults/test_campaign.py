"""A few cases of the campaign: one of each kind of fault. The whole is `python -m tests.faults.campaign`."""

from pathlib import Path

import pytest

from tests.faults.campaign import KINDS, SEED, draw, kind_of, run


@pytest.mark.parametrize("number", range(len(KINDS)))
def test_case(memory: Path, number: int) -> None:
    """Whatever fails, the file arrives whole or not at all, and the next run completes."""
    case = draw(SEED, number)
    print(f"FAULT_SEED={SEED}, case {number}: {case}")
    outcome = run(case, memory)
    assert outcome.verdict != "failed", f"{outcome.trouble}\n{outcome.logs}"


def test_cases_are_the_same_each_time() -> None:
    assert draw(3, 50) == draw(3, 50)
    assert len({draw(3, number) for number in range(200)}) == 200


def test_every_kind_of_fault_is_drawn() -> None:
    """In its turn, and by the name that the summary has for it."""
    for number, kind in enumerate(KINDS):
        case = draw(SEED, number)
        assert kind in case.kinds
        assert kind in {kind_of(fault) for fault in (*case.plan, *case.events, *case.damages)}
