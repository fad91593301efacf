"""Live fuzz in short; more of it: `python -m tests.fuzz.run --live 20000 --live-senders 2000`."""

from pathlib import Path

import pytest

from tests.fuzz import live


@pytest.mark.parametrize("token", [None, live.TOKEN], ids=["open", "token"])
def test_receiver_under_attack(tmp_path: Path, token: str | None) -> None:
    """Real transfers arrive identical meanwhile; memory, threads and sockets come back; no bug is told of."""
    print(live.against_receiver(tmp_path, 0, 0, 1000, token=token, kept=64))


def test_senders_and_hostile_receivers(tmp_path: Path) -> None:
    """Each ends in a listed way, and only Complete makes it end well."""
    print(live.against_senders(tmp_path, 0, 0, 150))
