"""Who may come in: on loopback everybody, elsewhere who has the token."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from receiver import token
from receiver.settings import ReceiverSettings
from receiver.store import Destination
from wire.errors import Code, TransferFailed

GIVEN = "a token of the tests"


class Log:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))


@pytest.fixture
def destination(tmp_path: Path) -> Iterator[Destination]:
    destination = Destination(str(tmp_path))
    yield destination
    os.close(destination.fd)


def choose(destination: Destination, *hosts: str, log: Log | None = None, **settings: Any) -> str | None:
    return token.choose(ReceiverSettings(**settings), destination, list(hosts), log or Log())


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1"])
def test_on_loopback_nobody_is_asked(destination: Destination, host: str) -> None:
    assert choose(destination, host) is None
    assert os.listdir(destination.path) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "10.0.0.1", "fe80::1%lo", "2001:db8::1"])
def test_elsewhere_a_token_is_made(destination: Destination, host: str) -> None:
    made = choose(destination, host)
    assert made is not None
    assert len(made) >= 32


def test_one_address_that_others_reach_is_enough(destination: Destination) -> None:
    assert choose(destination, "127.0.0.1", "192.0.2.1") is not None


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_given_token_is_asked_for_everywhere(destination: Destination, host: str) -> None:
    assert choose(destination, host, token=GIVEN) == GIVEN
    assert choose(destination, host, token=GIVEN, anonymous=True) == GIVEN
    assert os.listdir(destination.path) == []


def test_anonymous_asks_nobody_and_warns(destination: Destination) -> None:
    log = Log()
    assert choose(destination, "0.0.0.0", log=log, anonymous=True) is None
    assert [event for event, _ in log.lines] == ["anonymous"]
    assert choose(destination, "127.0.0.1", log=log, anonymous=True) is None
    assert len(log.lines) == 1, "on loopback it changes nothing"


def test_a_made_token_is_kept_for_the_owner_alone(destination: Destination) -> None:
    made = choose(destination, "0.0.0.0")
    kept = Path(destination.path, ".filestreamer", "token")
    assert kept.read_text() == f"{made}\n"
    assert (kept.stat().st_mode, kept.parent.stat().st_mode) == (0o100600, 0o40700)
    assert choose(destination, "0.0.0.0") == made


def test_tokens_differ(tmp_path: Path) -> None:
    made = set()
    for name in "ab":
        (tmp_path / name).mkdir()
        destination = Destination(str(tmp_path / name))
        made.add(choose(destination, "0.0.0.0"))
        os.close(destination.fd)
    assert len(made) == 2


@pytest.mark.parametrize("content", ["", "short", "\n" * 100])
def test_a_kept_token_that_is_none_is_made_anew(destination: Destination, content: str) -> None:
    os.close(destination.staging(create=True))
    kept = Path(destination.path, ".filestreamer", "token")
    kept.write_text(content)
    made = choose(destination, "0.0.0.0")
    assert made is not None
    assert len(made) >= 32
    assert kept.read_text() == f"{made}\n"


def test_a_token_behind_a_symlink_is_not_followed(destination: Destination, tmp_path: Path) -> None:
    os.close(destination.staging(create=True))
    (tmp_path / "elsewhere").write_text("x" * 32)
    Path(destination.path, ".filestreamer", "token").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TransferFailed) as caught:
        choose(destination, "0.0.0.0")
    assert caught.value.code is Code.DESTINATION
    assert str(tmp_path) in str(caught.value)
