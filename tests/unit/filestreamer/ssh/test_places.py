"""Where the far side is."""

import os
import subprocess
import sys

import pytest

from filestreamer.ssh import places
from filestreamer.wire.errors import FarSideFailed

CONNECTION = "192.0.2.1 50000 192.0.2.7 22"


def test_the_address_that_ssh_has_reached() -> None:
    assert places.server_address({"SSH_CONNECTION": CONNECTION}) == "192.0.2.7"
    assert places.server_address({"SSH_CONNECTION": "fe80::1%eth0 5 fe80::2%eth0 22"}) == "fe80::2%eth0"


def test_a_command_that_drops_the_environment() -> None:
    """As sudo does: the process that has started it still has it."""
    program = "import os; from filestreamer.ssh import places; print(places.server_address(os.environ))"
    done = subprocess.run(
        ["/bin/sh", "-c", f"env -u SSH_CONNECTION {sys.executable} -P -c '{program}'; true"],
        env={**os.environ, "SSH_CONNECTION": CONNECTION},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "192.0.2.7\n", done.stderr


@pytest.mark.parametrize("value", ["", "UNKNOWN", "1 2 3"])
def test_no_ssh_has_started_it(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setattr(places, "ANCESTORS_MAX", 0)
    with pytest.raises(FarSideFailed, match="SSH_CONNECTION is not set there"):
        places.server_address({"SSH_CONNECTION": value})


def test_an_address_of_another_machine() -> None:
    """As in a container that has a network of its own."""
    with pytest.raises(FarSideFailed, match="--network host"):
        places.listen_on("192.0.2.7")


@pytest.mark.parametrize("session", ["", "../../etc", "A" * 32, "f" * 31, "f" * 33, "f" * 31 + "\n"])
def test_what_is_no_session(session: str) -> None:
    with pytest.raises(FarSideFailed):
        places.path_of(session)
