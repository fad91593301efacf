"""The users of a receiver with --tokens: each file of a directory has the name of a user, and holds that user's token.

The directory may be a mounted Secret of Kubernetes: links are followed, and names that begin with a dot are no users.

At the start, anything that is wrong is a UsageError. Afterwards users come and go while the receiver runs, and one
obstacle costs one user: a file that can't be used any more leaves that user the token of before, and a new user who
can't be told from another one is not let in. Each is told once. A file that is gone takes its user away.
"""

import os
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from filestreamer.settings import values
from filestreamer.settings.renewed import LOOK_SECONDS, Signature
from filestreamer.wire.errors import UsageError

NOBODY: Final = ""
"""The user of every connection where a receiver has no users."""
USERS_MAX: Final = 1024
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,253}")
"""The keys that a Secret may have. All of them are plain names of directories; what begins with a dot is no user."""


class _File(NamedTuple):
    """What a file of the directory says."""

    signature: Signature | None = None
    token: str | None = None
    problem: str = ""
    """Why there is no token."""


class Users:
    """The users of now, and their tokens. For one thread, but for `names`."""

    def __init__(self, directory: str, log: Any, *, look_seconds: float = LOOK_SECONDS) -> None:
        """Read the directory; warn where there is no user yet. Raises UsageError, which says what is wrong."""
        self._directory = directory
        self._log = log
        self._look_seconds = look_seconds
        self._look_at = 0.0  # monotonic time
        self._files: dict[str, _File] = {}
        self._tokens: dict[str, str] = {}
        """By user."""
        self._by_token: Mapping[bytes, str] = {}
        self._problems: dict[str, str] = {}
        """What was told, by the name of a file; "" is the directory."""
        self._read_first()

    @property
    def names(self) -> tuple[str, ...]:
        """The users of now, sorted. For any thread."""
        return tuple(sorted(self._by_token.values()))

    @property
    def shortest_token(self) -> str | None:
        """The shortest of the tokens: the one that is worth least. None where there is no user."""
        return min(self._tokens.values(), key=len, default=None)

    def get(self) -> Mapping[bytes, str]:
        """Return the user of each token, as the files have them now, or had them when they were looked at last.

        The mapping is another object if and only if anything has changed.
        """
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + self._look_seconds
            self._look()
        return self._by_token

    # --- at the start

    def _read_first(self) -> None:
        try:
            names = _listed(self._directory)
        except OSError as error:
            raise UsageError(f"--tokens: {values.unreadable(self._directory, error)}") from None
        if len(names) > USERS_MAX:
            raise UsageError(f"--tokens: {self._directory} has {len(names)} files: {USERS_MAX} users are the most")
        for name in names:
            self._files[name] = self._read(name) or _File(problem=f"{self._path(name)} is a link that leads nowhere")
        tokens = {name: file.token for name, file in self._files.items() if file.token is not None}
        self._tokens, problems = settle(tokens, {})
        problems |= {name: file.problem for name, file in self._files.items() if file.problem}
        if problems:
            raise UsageError(f"--tokens: {problems[min(problems)]}")
        self._by_token = {token.encode(): name for name, token in self._tokens.items()}
        if not names:
            reason = f"there is no file in {self._directory}: nobody can send before there is one"
            self._log.warning("no_users", reason=reason)

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def _read(self, name: str) -> _File | None:
        """Return what a file says, which is read only if it has changed; None where it is gone."""
        path = self._path(name)
        if _NAME.fullmatch(name) is None:
            return _File(problem=f"{path!a} is not named as a user: 1 to 253 of A-Z, a-z, 0-9, '.', '_' and '-'")
        try:
            signature = Signature.of(os.stat(path))
            known = self._files.get(name)
            if known is not None and known.token is not None and known.signature == signature:
                return known
            if signature is None:  # a FIFO would not even be opened before somebody writes
                return _File(problem=f"{path} is no regular file")
            token = values.token(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            return _File(problem=f"can't read {path}: {error.strerror}")
        except ValueError as error:
            reason = error.__cause__.strerror if isinstance(error.__cause__, OSError) else error
            return _File(problem=f"can't read the token in {path}: {reason}")
        return _File(token.signature, str(token))

    # --- while the receiver runs

    def _look(self) -> None:
        """Take in what has changed in the directory."""
        try:
            files = self._read_again()
            # While a link to a directory was being replaced, what is there may have seemed to be gone.
            if not self._tokens.keys() <= files.keys():
                files = self._read_again()
        except OSError as error:
            self._tell({"": f"can't read {self._directory}: {error.strerror}"})
            return
        self._files = files
        found = {name: file.token or self._tokens.get(name) for name, file in files.items()}
        tokens, problems = settle({name: token for name, token in found.items() if token is not None}, self._tokens)
        self._tell(problems | {name: file.problem for name, file in files.items() if file.problem})
        if tokens != self._tokens:
            self._take(tokens)

    def _read_again(self) -> dict[str, _File]:
        """Read what the directory has now, known users first. Raises OSError."""
        names = sorted(_listed(self._directory), key=lambda name: (name not in self._tokens, name))
        files = {name: file for name in names[:USERS_MAX] if (file := self._read(name)) is not None}
        for name in names[USERS_MAX : USERS_MAX + 1]:
            files[name] = _File(problem=f"{self._directory} has {len(names)} files: {USERS_MAX} users are the most")
        return files

    def _take(self, tokens: dict[str, str]) -> None:
        """Let these users in from now on, and no others."""
        before, self._tokens = self._tokens, tokens
        self._by_token = {token.encode(): name for name, token in tokens.items()}
        for name in sorted(before.keys() | tokens.keys()):
            if name not in tokens:
                self._log.info("user_removed", user=name)
            elif name not in before:
                self._log.info("user_added", user=name)
            elif tokens[name] != before[name]:
                self._log.info("user_renewed", user=name)

    def _tell(self, problems: dict[str, str]) -> None:
        """Warn of what was not told yet."""
        for name, problem in problems.items():
            if self._problems.get(name) != problem:
                is_known = not name or name in self._tokens
                until = "what was read before is used" if is_known else "nobody is let in by it"
                self._log.warning("not_renewed", reason=f"{problem}: {until} until this is put right")
        self._problems = problems


def _listed(directory: str) -> list[str]:
    return sorted(name for name in os.listdir(directory) if not name.startswith("."))


def settle(wanted: Mapping[str, str], before: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the token of each user who may be let in; and by name, why another one than is `wanted` counts, or none.

    A token is that of one user: the one who has it from `before` keeps it. Two names differ in more than their case,
    and than dots at their end: on some file systems they would be one directory.
    """
    tokens, problems = dict(wanted), dict[str, str]()
    while clashes := _clashes(tokens, before):
        problems |= clashes
        for name in clashes:
            del tokens[name]
            if name in before:  # the next round may find that another user wants this one
                tokens[name] = before[name]
    return tokens, problems


def _clashes(tokens: Mapping[str, str], before: Mapping[str, str]) -> dict[str, str]:
    """Return whose token, or name, is that of another one who may have it as well, and why that is wrong."""
    by_token: dict[str, list[str]] = defaultdict(list)
    by_place: dict[str, list[str]] = defaultdict(list)
    for name, token in tokens.items():
        by_token[token].append(name)
        by_place[name.lower().rstrip(".")].append(name)
    same_token = {name: f"{_listing(same)} have the same token" for same in _several(by_token) for name in same}
    how = "differ only in case, or in dots at the end"
    same_name = {name: f"{_listing(same)} {how}" for same in _several(by_place) for name in same}
    found = {name: reason for name, reason in same_name.items() if name not in before}
    return found | {name: reason for name, reason in same_token.items() if before.get(name) != tokens[name]}


def _several(groups: Mapping[str, list[str]]) -> Iterable[list[str]]:
    return (group for group in groups.values() if len(group) > 1)


def _listing(names: list[str]) -> str:
    return " and ".join(sorted(names)[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
