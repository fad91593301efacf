"""Who may come in to a receiver with --tokens: what a directory says at the start, and what changes later."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from filestreamer.wire.errors import UsageError
from receiver.server.users import USERS_MAX, Users, settle

ALICE, BOB, CAROL = (f"the token of {name}" for name in ("alice", "bob, as long", "carol, a third"))


class Log:
    """Keeps what is logged: event, and the user or the reason."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def warning(self, event: str, *, reason: str) -> None:
        self.lines.append((event, reason))

    def info(self, event: str, *, user: str) -> None:
        self.lines.append((event, user))

    def take(self) -> list[tuple[str, str]]:
        """Return the lines since the last call."""
        lines, self.lines = self.lines, []
        return lines


class Secret:
    """A Secret as the kubelet mounts it: files are links into a directory that a link leads to."""

    def __init__(self, directory: Path, **tokens: str) -> None:
        self.directory = directory
        self._version = 0
        directory.mkdir()
        self.swap(**tokens)

    def swap(self, **tokens: str) -> None:
        """Replace the whole content, as the kubelet does: first the data, then names that are new, or gone."""
        self._version += 1
        data, link = self.directory / f"..{self._version}", self.directory / "..data"
        data.mkdir()
        for name, token in tokens.items():
            (data / name).write_text(token)
        before = os.readlink(link) if link.is_symlink() else None
        (self.directory / "..data_tmp").symlink_to(data.name)
        (self.directory / "..data_tmp").rename(link)
        for name in tokens:
            if not (self.directory / name).is_symlink():
                (self.directory / name).symlink_to(f"..data/{name}")
        if before is not None:
            for name in os.listdir(self.directory / before):
                if name not in tokens:
                    (self.directory / name).unlink()
            shutil.rmtree(self.directory / before)


def who(users: Users) -> dict[str, str]:
    """Return the token of each user of now."""
    return {user: token.decode() for token, user in users.get().items()}


def read(directory: Path) -> tuple[Users, Log]:
    log = Log()
    return Users(str(directory), log, look_seconds=0), log


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """Return a directory with the tokens of two users."""
    directory = tmp_path / "tokens"
    directory.mkdir()
    (directory / "alice").write_text(f"{ALICE}\n")
    (directory / "bob").write_text(BOB)
    return directory


# ---------------------------------------------------------------------------------------------------------- the start


def test_each_file_is_a_user(tokens: Path) -> None:
    (tokens / ".hidden").write_text("short")
    (tokens / "..data").mkdir()
    users, log = read(tokens)
    assert who(users) == {"alice": ALICE, "bob": BOB}
    assert users.names == ("alice", "bob")
    assert users.shortest_token == ALICE
    assert log.take() == []


def test_without_a_user_nobody_comes_in_and_a_warning_says_so(tmp_path: Path) -> None:
    users, log = read(tmp_path)
    assert users.get() == {}
    ((event, reason),) = log.take()
    assert (event, str(tmp_path) in reason) == ("no_users", True)


def fifo(directory: Path) -> None:
    os.mkfifo(directory / "carol")


def too_many(directory: Path) -> None:
    for number in range(USERS_MAX):
        (directory / f"{number}").write_text(f"the token of number {number}")


WRONG: dict[str, Any] = {
    "short": (lambda at: (at / "carol").write_text("short"), "/carol: the token has 5 characters"),
    "empty": (lambda at: (at / "carol").write_text(""), "/carol: the token has 0 characters"),
    "two lines": (lambda at: (at / "carol").write_text(f"{CAROL}\n{CAROL}"), "/carol: the token has a line break"),
    "binary": (lambda at: (at / "carol").write_bytes(b"\xff" * 32), "/carol: the token is not UTF-8"),
    "a directory": (lambda at: (at / "carol").mkdir(), "/carol is no regular file"),
    "a FIFO": (fifo, "/carol is no regular file"),
    "a dead link": (lambda at: (at / "carol").symlink_to("nowhere"), "/carol is a link that leads nowhere"),
    "a name with a space": (lambda at: (at / "c d").write_text(CAROL), "/c d' is not named as a user"),
    "a name with a line break": (lambda at: (at / "c\nd").write_text(CAROL), r"/c\nd' is not named as a user"),
    "a long name": (lambda at: (at / ("c" * 254)).write_text(CAROL), "cc' is not named as a user"),
    "an equal token": (lambda at: (at / "carol").write_text(BOB), "bob and carol have the same token"),
    "white space around an equal token": (lambda at: (at / "carol").write_text(f" {BOB}\n\n"), "bob and carol have"),
    "another case": (lambda at: (at / "Alice").write_text(CAROL), "Alice and alice differ only in case"),
    "a dot more": (lambda at: (at / "bob.").write_text(CAROL), "bob and bob. differ only in case, or in dots at"),
    "too many": (too_many, f"has {USERS_MAX + 2} files: {USERS_MAX} users are the most"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_at_the_start_is_one_line(tokens: Path, name: str) -> None:
    make, said = WRONG[name]
    make(tokens)
    with pytest.raises(UsageError) as caught:
        read(tokens)
    line = str(caught.value)
    assert line.startswith("--tokens: ")
    assert said in line
    assert "\n" not in line
    assert not any(token in line for token in (ALICE, BOB, CAROL))


@pytest.mark.parametrize("name", ["nowhere", "alice"])
def test_no_directory(tokens: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"can't read .*{name}"):
        read(tokens / name)


def test_as_many_as_there_may_be(tmp_path: Path) -> None:
    for number in range(USERS_MAX):
        (tmp_path / f"{number}").write_text(f"the token of number {number}")
    assert len(read(tmp_path)[0].get()) == USERS_MAX


# --------------------------------------------------------------------------------------------------------------- later


def test_a_mounted_secret_is_swapped(tmp_path: Path) -> None:
    """Users come, go, and get other tokens, all at once; what stays the same is no news."""
    secret = Secret(tmp_path / "secret", alice=ALICE, bob=BOB)
    users, log = read(secret.directory)
    first = users.get()
    assert users.get() is first
    secret.swap(bob=f"{BOB} renewed", carol=CAROL)
    assert who(users) == {"bob": f"{BOB} renewed", "carol": CAROL}
    assert log.take() == [("user_removed", "alice"), ("user_renewed", "bob"), ("user_added", "carol")]
    second = users.get()
    secret.swap(bob=f"{BOB} renewed", carol=CAROL)
    assert users.get() is second
    assert log.take() == []


def test_two_tokens_that_are_exchanged(tmp_path: Path) -> None:
    secret = Secret(tmp_path / "secret", alice=ALICE, bob=BOB)
    users, _ = read(secret.directory)
    secret.swap(alice=BOB, bob=ALICE)
    assert who(users) == {"alice": BOB, "bob": ALICE}


def test_a_broken_file_costs_one_user(tokens: Path) -> None:
    """That user keeps the token of before; others come and go meanwhile. It is told once."""
    users, log = read(tokens)
    (tokens / "alice").write_text("short")
    (tokens / "carol").write_text(CAROL)
    (tokens / "bob").unlink()
    for _ in range(3):
        assert who(users) == {"alice": ALICE, "carol": CAROL}
    (event, reason), *news = log.take()
    assert event == "not_renewed"
    assert "/alice: the token has 5 characters" in reason
    assert "what was read before is used" in reason
    assert news == [("user_removed", "bob"), ("user_added", "carol")]
    (tokens / "alice").write_text(f"{ALICE} again")
    assert who(users)["alice"] == f"{ALICE} again"
    assert log.take() == [("user_renewed", "alice")]


@pytest.mark.parametrize("name", [name for name in WRONG if name not in ("a dead link", "too many")])
def test_a_new_user_who_is_wrong_is_not_let_in(tokens: Path, name: str) -> None:
    users, log = read(tokens)
    make, said = WRONG[name]
    make(tokens)
    for _ in range(3):
        assert who(users) == {"alice": ALICE, "bob": BOB}
    ((event, reason),) = log.take()
    assert event == "not_renewed"
    assert said in reason
    assert "nobody is let in by it" in reason
    assert "\n" not in reason


def test_one_too_many_is_let_in_when_another_has_gone(tmp_path: Path) -> None:
    for number in range(USERS_MAX):
        (tmp_path / f"u{number}").write_text(f"the token of number {number}")
    users, log = read(tmp_path)
    (tmp_path / "a").write_text(ALICE)
    assert "a" not in who(users)
    assert [event for event, _ in log.take()] == ["not_renewed"]
    (tmp_path / "u7").unlink()
    assert who(users)["a"] == ALICE
    assert log.take() == [("user_added", "a"), ("user_removed", "u7")]


def test_who_had_a_token_first_keeps_it(tokens: Path) -> None:
    users, log = read(tokens)
    (tokens / "alice").write_text(BOB)
    assert who(users) == {"alice": ALICE, "bob": BOB}
    ((_, reason),) = log.take()
    assert "alice and bob have the same token: what was read before is used" in reason
    (tokens / "bob").unlink()
    assert who(users) == {"alice": BOB}


def test_a_directory_that_is_gone_keeps_its_users(tokens: Path) -> None:
    users, log = read(tokens)
    tokens.rename(tokens.with_name("away"))
    for _ in range(3):
        assert who(users) == {"alice": ALICE, "bob": BOB}
    ((event, reason),) = log.take()
    assert event == "not_renewed"
    assert "No such file" in reason
    tokens.with_name("away").rename(tokens)
    (tokens / "bob").unlink()
    assert who(users) == {"alice": ALICE}


def test_a_link_that_is_replaced_while_it_is_followed_takes_nobody_away(
    tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory that it led to is removed before the file in it is found: once."""
    users, log = read(tokens)
    stat, missing = os.stat, [str(tokens / "alice")]

    def racing(path: str, **how: Any) -> os.stat_result:
        if path in missing:
            missing.remove(path)
            raise FileNotFoundError(2, "No such file or directory")
        return stat(path, **how)

    monkeypatch.setattr(os, "stat", racing)
    assert who(users) == {"alice": ALICE, "bob": BOB}
    assert not missing
    assert log.take() == []


def test_files_that_stay_are_not_read_again(tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users, _ = read(tokens)
    monkeypatch.setattr("filestreamer.settings.values.token", lambda path: pytest.fail(f"{path} was read"))
    assert who(users) == {"alice": ALICE, "bob": BOB}


@pytest.mark.parametrize(
    ("wanted", "before", "tokens"),
    [
        ({"a": "1", "b": "1"}, {}, {}),
        ({"a": "1", "b": "1", "c": "2"}, {"b": "1"}, {"b": "1", "c": "2"}),
        ({"a": "2", "b": "2"}, {"a": "1", "b": "2"}, {"a": "1", "b": "2"}),
        # a can't have the token of b, and so keeps the one that c was to get
        ({"a": "2", "b": "2", "c": "1"}, {"a": "1", "b": "2"}, {"a": "1", "b": "2"}),
        ({"a": "2", "b": "3", "c": "3"}, {"a": "1", "b": "2"}, {"a": "1", "b": "2"}),
        ({"A": "1", "a": "2"}, {}, {}),
        ({"A": "1", "a": "2"}, {"a": "2"}, {"a": "2"}),
        ({"a": "1", "a..": "2", "b.c": "3", "b": "4"}, {"a": "1"}, {"a": "1", "b.c": "3", "b": "4"}),
        ({"A.": "1", "a": "2"}, {"a": "2"}, {"a": "2"}),
    ],
)
def test_who_may_have_a_token(wanted: dict[str, str], before: dict[str, str], tokens: dict[str, str]) -> None:
    assert settle(wanted, before)[0] == tokens
