"""A destination directory, and the registry of its names."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from receiver.disk.destination import Destination
from receiver.server.registry import Registry


@pytest.fixture
def destination(tmp_path: Path) -> Iterator[Destination]:
    made = Destination(str(tmp_path))
    yield made
    made.close()


@pytest.fixture
def files(destination: Destination) -> Registry:
    return Registry(destination, None)
