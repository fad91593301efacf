"""A destination directory for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from receiver.disk.destination import Destination


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "destination").mkdir()
    return tmp_path / "destination"


@pytest.fixture
def destination(path: Path) -> Iterator[Destination]:
    destination = Destination(str(path))
    yield destination
    destination.close()
