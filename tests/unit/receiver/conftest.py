"""A destination directory, and the registry of its names."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from receiver.disk.destination import Destination
from receiver.server.registry import Registry


@pytest.fixture
def destination(tmp_path: Path) -> Iterator[Destination]:
    made = Destination(str(tmp_path))
    yield made
    os.close(made.fd)


@pytest.fixture
def files(destination: Destination) -> Registry:
    return Registry(destination, None)
