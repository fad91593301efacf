"""A pair of services in a scratch directory for each test."""

import shutil
import tempfile
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


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Return a temporary directory for both sides, with a path that is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    yield path
    shutil.rmtree(path)
