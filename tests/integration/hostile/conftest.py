"""A receiver that must still serve after the attack, and raw peers with something to send."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import sending
from tests.support.attacks import unharmed
from tests.support.peer import RawSender, Sample
from tests.support.services import Pair, Service, same

KIB = 1024


@pytest.fixture
def receiver(pair: Pair) -> Iterator[Service]:
    """Start a receiver that stays; in the end it must be unharmed, and a real sender is served."""
    receiver = pair.receiver("--anonymous")  # what these peers say wrong is not that they have no token
    address = pair.address(receiver)
    yield receiver
    unharmed(receiver)
    sending.send(pair.file("the last one", 3000), "--to", address)
    assert same(pair.source / "the last one", pair.destination / "the last one")
    unharmed(receiver)


@pytest.fixture
def peer(receiver: Service) -> Iterator[RawSender]:
    """Return a sender whose every frame is the test's own."""
    with RawSender(Pair.address(receiver)) as peer:
        yield peer


@pytest.fixture
def sample(seed: int) -> Sample:
    """Return ten segments, the last one short."""
    return Sample.random(seed, 9 * KIB + 100, KIB)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Return a directory of somebody else, with a file in it."""
    directory = tmp_path / "outside"
    directory.mkdir()
    (directory / "precious").write_bytes(b"precious content")
    return directory
