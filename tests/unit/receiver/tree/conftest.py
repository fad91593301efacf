"""Transfers of trees, for all tests of this folder."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.peer import TreeSample
from tests.support.tree_receiver import TreeTransfer


@pytest.fixture
def transfer_of(tmp_path: Path) -> Iterator[Callable[..., TreeTransfer]]:
    """Begin transfers of trees into one destination, one after the other; the last ends with the test."""
    made: list[TreeTransfer] = []
    before = set(os.listdir("/proc/self/fd"))

    def make(sample: TreeSample, **more: Any) -> TreeTransfer:
        for earlier in made:
            earlier.close()
        made[:] = [TreeTransfer(tmp_path, sample, **more)]
        return made[0]

    yield make
    for last in made:
        last.close()
    assert before >= set(os.listdir("/proc/self/fd"))
