"""The images, built once a run, and a site of containers for each test. Without an engine everything here is skipped.

Where CI=true, a missing engine is a failure.
"""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.containers import Site, build_images, site

os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"  # it is an image of its own, and every fixture here cleans up


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give what is in this folder the time that an image takes to build."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def engine() -> None:
    """See that an engine answers."""
    import docker
    from docker.errors import DockerException

    try:
        docker.from_env().ping()
    except DockerException as error:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"no container engine answers: {error}")


@pytest.fixture(scope="session")
def images(engine: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Build the images; of several workers one does, and the others find them in the engine's cache."""
    with (tmp_path_factory.getbasetemp().parent / "images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        build_images()


@pytest.fixture
def here(images: None, tmp_path: Path) -> Iterator[Site]:
    """Return a site whose containers end with the test."""
    with site(tmp_path) as made:
        yield made
