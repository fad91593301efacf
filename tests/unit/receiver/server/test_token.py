"""Who may come in: who has the token that was given, the user's own on loopback, elsewhere one that is made."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from filestreamer.wire.errors import Code, TransferFailed, UsageError
from receiver.disk.destination import Destination
from receiver.pipe.standard_output import Stdout
from receiver.server import token
from receiver.settings import ReceiverSettings
from tests.support.disks import record_syncs

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
    destination.close()


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where the user's own token is to lie."""
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run" / "filestreamer" / "token"


@pytest.fixture
def no_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the user no place for a token of its own, as in a container that is read-only."""
    for name in ("XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "nowhere"))


def chosen(destination: Destination | Stdout, *hosts: str, log: Log | None = None, **settings: Any) -> token.Chosen:
    return token.choose(ReceiverSettings(**settings), destination, list(hosts), log or Log())


def choose(destination: Destination, *hosts: str, log: Log | None = None, **settings: Any) -> str | None:
    return chosen(destination, *hosts, log=log, **settings).token


@pytest.mark.parametrize("hosts", [["127.0.0.1"], ["127.8.9.10"], ["::1"], ["::ffff:127.0.0.1"], ["127.0.0.1", "::1"]])
def test_on_loopback_it_is_the_users_own(destination: Destination, own: Path, hosts: list[str]) -> None:
    first = chosen(destination, *hosts)
    assert first == token.Chosen(own.read_text().strip(), str(own), is_own=True)
    assert first == chosen(destination, *hosts)
    assert ".filestreamer" not in os.listdir(destination.path)


def test_on_loopback_without_a_place_for_it_one_is_made(destination: Destination, no_own: None) -> None:
    first = chosen(destination, "127.0.0.1")
    kept = Path(destination.path, ".filestreamer", "token")
    assert first == token.Chosen(kept.read_text().strip(), str(kept), is_new=True)
    assert chosen(destination, "127.0.0.1") == first._replace(is_new=False)


def test_standard_output_has_no_place(own: Path) -> None:
    first = chosen(Stdout(), "0.0.0.0", output_file="-")
    assert first == token.Chosen(first.token, is_new=True)
    assert first != chosen(Stdout(), "0.0.0.0", output_file="-")
    assert chosen(Stdout(), "127.0.0.1", output_file="-").path == str(own)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "10.0.0.1", "fe80::1%lo", "2001:db8::1"])
def test_elsewhere_a_token_is_made(destination: Destination, host: str) -> None:
    made = choose(destination, host)
    assert made is not None
    assert len(made) >= 32


def test_one_address_that_others_reach_is_enough(destination: Destination) -> None:
    assert chosen(destination, "127.0.0.1", "192.0.2.1").is_new


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_given_token_is_asked_for_everywhere(destination: Destination, host: str) -> None:
    assert choose(destination, host, token=GIVEN) == GIVEN
    assert choose(destination, host, token=GIVEN, anonymous=True) == GIVEN
    assert os.listdir(destination.path) == []


@pytest.mark.parametrize(
    ("host", "who"), [("0.0.0.0", "anybody who can connect"), ("127.0.0.1", "any user of this machine")]
)
def test_anonymous_asks_nobody_and_warns(destination: Destination, own: Path, host: str, who: str) -> None:
    log = Log()
    assert chosen(destination, host, log=log, anonymous=True) == token.Chosen(None)
    assert [event for event, _ in log.lines] == ["anonymous"]
    assert log.lines[0][1]["reason"].startswith(who)
    assert not own.exists()


def test_a_token_is_new_only_when_it_is_made(destination: Destination) -> None:
    assert chosen(destination, "0.0.0.0").is_new
    again = chosen(destination, "0.0.0.0")
    assert (again.is_new, again.path) == (False, f"{destination.path}/.filestreamer/token")


def test_a_made_token_is_kept_for_the_owner_alone(destination: Destination) -> None:
    made = choose(destination, "0.0.0.0")
    kept = Path(destination.path, ".filestreamer", "token")
    assert kept.read_text() == f"{made}\n"
    assert (kept.stat().st_mode, kept.parent.stat().st_mode) == (0o100600, 0o40700)
    assert choose(destination, "0.0.0.0") == made


def test_a_made_token_is_durable_before_its_user_sees_it(
    destination: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its senders know no other one: after a power failure it has to be there, with the directory that it is in."""
    synced = record_syncs(monkeypatch)
    choose(destination, "0.0.0.0")
    at = destination.path
    assert synced == [f"{at}/.filestreamer/token", f"{at}/.filestreamer", at]


def test_tokens_differ(tmp_path: Path) -> None:
    made = set()
    for name in "ab":
        (tmp_path / name).mkdir()
        destination = Destination(str(tmp_path / name))
        made.add(choose(destination, "0.0.0.0"))
        destination.close()
    assert len(made) == 2


@pytest.mark.parametrize("content", ["", "short", "\n" * 100, "\0" * 33])
def test_a_kept_token_that_is_none_is_made_anew(destination: Destination, content: str) -> None:
    os.close(destination.open_staging(create=True))
    kept = Path(destination.path, ".filestreamer", "token")
    kept.write_text(content)
    kept.chmod(0o600)
    made = choose(destination, "0.0.0.0")
    assert made is not None
    assert len(made) >= 32
    assert kept.read_text() == f"{made}\n"


def test_a_token_behind_a_symlink_is_not_followed(destination: Destination, tmp_path: Path) -> None:
    os.close(destination.open_staging(create=True))
    (tmp_path / "elsewhere").write_text("x" * 32)
    Path(destination.path, ".filestreamer", "token").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TransferFailed) as caught:
        choose(destination, "0.0.0.0")
    assert caught.value.code is Code.DESTINATION
    assert str(tmp_path) in str(caught.value)
    assert (tmp_path / "elsewhere").read_text() == "x" * 32


# --- users


def test_users_have_tokens_of_their_own(destination: Destination, tmp_path: Path, own: Path) -> None:
    """On loopback as anywhere. Only the shortest is worth something to who asks what the tokens vouch for."""
    users = tmp_path.parent / f"{tmp_path.name}-users"
    users.mkdir()
    for name, content in {"alice": GIVEN, "bob": f"{GIVEN}, a longer one"}.items():
        (users / name).write_text(content)
    for host in ("127.0.0.1", "0.0.0.0"):
        found = chosen(destination, host, tokens=str(users))
        assert (found.token, found.path, found.is_own) == (GIVEN, str(users), False)
        get = token.current(found, ReceiverSettings(tokens=str(users)), destination, Log())
        assert get() == {GIVEN.encode(): "alice", f"{GIVEN}, a longer one".encode(): "bob"}
    assert not own.exists()


@pytest.mark.parametrize("name", [".", "tokens", "alice/tokens"])
def test_no_user_can_write_tokens(destination: Destination, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir(parents=True, exist_ok=True)
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(tmp_path / name)
    with pytest.raises(UsageError, match="lies in --directory"):
        chosen(destination, "127.0.0.1", tokens=str(link))
