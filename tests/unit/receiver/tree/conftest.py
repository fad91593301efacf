"""Transfers of trees, for all tests of this folder."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.peer import TreeSample
from tests.support.tree_receiver import Moving


@pytest.fixture
def moving(tmp_path: Path) -> Iterator[Callable[..., Moving]]:
    """Make transfers of trees, which end with the test."""
    made: list[Moving] = []
    before = set(os.listdir("/proc/self/fd"))

    def make(sample: TreeSample, **more: Any) -> Moving:
        for earlier in made:
            earlier.leave()
        made[:] = [Moving(tmp_path, sample, **more)]
        return made[0]

    yield make
    for last in made:
        last.leave()
    assert before >= set(os.listdir("/proc/self/fd"))
