"""A pair of services in a scratch directory for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import services
from tests.support.services import Pair


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Return a pair whose services end with the test."""
    with services.pair(tmp_path) as made:
        yield made
