"""Pairs of real services in memory, and which tests a plain run leaves out.

A plain run takes a few minutes. `FAULTS=full` runs everything: the tests that are marked slow, too.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import disks, services
from tests.support.services import Pair

FULL = os.environ.get("FAULTS") == "full"
NEEDED_BYTES = 256 * disks.MIB


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", "slow: takes more than about 20 s, and runs with FAULTS=full only")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave slow tests out of a plain run."""
    for item in items:
        if item.get_closest_marker("slow") and not FULL:
            item.add_marker(pytest.mark.skip(reason="slow: set FAULTS=full to run it"))


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """Return a scratch directory, in memory where there is room."""
    with disks.scratch(NEEDED_BYTES, tmp_path) as directory:
        yield directory


@pytest.fixture
def pair(memory: Path) -> Iterator[Pair]:
    """Return a pair whose services end with the test."""
    with services.pair(memory) as made:
        yield made
