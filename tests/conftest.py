"""What every test gets: repeatable randomness, and an environment without settings of the services.

A plain run is the same run each time: hypothesis derives its examples from the test itself, and `seed` comes from
TEST_SEED, 0 by default. To look for more: `pytest --hypothesis-profile=explore`, and another TEST_SEED.
"""

import os
import sys
import zlib

import hypothesis
import pytest

from tests.support.services import PRIVATE

# Where nothing may write bytecode, each service would compile all of its modules, and each worker all tests.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

SEED = int(os.environ.get("TEST_SEED", "0"))

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.register_profile("explore", max_examples=2000, deadline=None, print_blob=True)
hypothesis.settings.load_profile("repeatable")


def pytest_report_header() -> str:
    """Name the seed at the top of a run."""
    return f"TEST_SEED={SEED}"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Return this test's own seed, printed so that a failure shows it."""
    value = zlib.crc32(f"{SEED} {request.node.nodeid}".encode())
    print(f"seed {value} (TEST_SEED={SEED})")
    return value


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("FILESTREAMER_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(PRIVATE))
