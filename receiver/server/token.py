"""The token that senders have to prove: the one that the user gives, or one that the receiver chooses.

Without one, on loopback, it is the user's own token (`filestreamer.settings.own_token`), which this user's senders find
by themselves. On any other address, and where this user has no place for a token, the receiver makes one. It keeps that
in `.filestreamer/token` (0600) of its destination, and uses it again when it is started again. A process has one token
for all addresses that it listens on.

The file of a token is read again when it has changed: new connections need the new token, and transfers that are under
way go on with the one with which they began.

With --tokens, each user has a token (`receiver.server.users`), and none is chosen.
"""

import contextlib
import os
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from filestreamer.settings import own_token, renewed, values
from filestreamer.settings.own_token import is_loopback, token_in
from filestreamer.wire.errors import Code, UsageError, from_os_error
from receiver.disk.destination import Destination
from receiver.disk.filesystem.sync import sync_directory
from receiver.disk.paths import STAGING
from receiver.pipe.standard_output import OpenFile
from receiver.server.users import NOBODY, Users
from receiver.settings import ReceiverSettings

_NAME: Final = "token"
_OPEN: Final = os.O_CLOEXEC | os.O_NOFOLLOW


class Chosen(NamedTuple):
    """The token that senders have to prove."""

    token: str | None
    """None: every sender may come in."""
    path: str | None = None
    """The file that has it; None where the user gave it, or it is not kept."""
    is_new: bool = False
    """Whether it was made just now: the user has not seen it yet."""
    is_own: bool = False
    """Whether it is the user's own token, which this user's senders on this machine find by themselves."""
    users: Users | None = None
    """Those of --tokens, each with a token; `token` is the shortest of them, and `path` the directory."""


def choose(settings: ReceiverSettings, destination: Destination | OpenFile, hosts: list[str], log: Any) -> Chosen:
    """Choose the token for a receiver that listens on `hosts`. Raises TransferFailed(DESTINATION), UsageError."""
    if settings.tokens is not None:
        users = Users(settings.tokens, log)
        if isinstance(destination, Destination) and _is_below(settings.tokens, destination.path):
            raise UsageError(f"--tokens {settings.tokens} lies in --directory: a user could write there")
        return Chosen(users.shortest_token, settings.tokens, users=users)
    if settings.token is not None:
        return Chosen(settings.token)
    is_local = all(is_loopback(host) for host in hosts)
    if settings.anonymous:
        others = "any user of this machine" if is_local else "anybody who can connect"
        log.warning("anonymous", reason=f"{others} may write into the destination")
        return Chosen(None)
    own = own_token.make(os.environ) if is_local else None
    if own is not None:
        return Chosen(own.token, own.path, is_own=True)
    return Chosen(secrets.token_urlsafe(24), is_new=True) if isinstance(destination, OpenFile) else _kept(destination)


def current(
    chosen: Chosen, settings: ReceiverSettings, destination: Destination | OpenFile, log: Any
) -> Callable[[], Mapping[bytes, str] | None]:
    """Return what returns each token with its user, as the files have them now; None where none is required."""
    if chosen.users is not None:
        return chosen.users.get
    get = _current(chosen, settings, destination, log)
    return lambda: of_one(get())


def of_one(token: str | None) -> Mapping[bytes, str] | None:
    """Return the one token that a receiver without users requires, if it does, in the form of `Users.get`."""
    return None if token is None else {token.encode(): NOBODY}


def _is_below(path: str, directory: str) -> bool:
    above = os.path.realpath(directory)
    return os.path.commonpath((os.path.realpath(path), above)) == above


def _current(
    chosen: Chosen, settings: ReceiverSettings, destination: Destination | OpenFile, log: Any
) -> Callable[[], str | None]:
    """Return what returns the chosen token as its file has it now."""
    given = settings.token
    if isinstance(given, values.Token) and given.path is not None:
        path = given.path
        return renewed.Renewed[str | None](given, {path: given.signature}, lambda: values.token(path), log).get
    if chosen.path is None:
        return renewed.constant(chosen.token)
    read = own_token.read_again if chosen.is_own else lambda: _read_kept(destination)
    return renewed.Renewed[str | None](chosen.token, renewed.look([chosen.path]), read, log).get


def _read_kept(destination: Destination | OpenFile) -> str:
    """Return the token in the destination as it is now. Raises TransferFailed, OSError, ValueError."""
    assert isinstance(destination, Destination)
    staging = destination.open_staging(create=False)
    try:
        kept = _read(staging)
    finally:
        os.close(staging)
    if kept is None:
        raise ValueError(f"{STAGING}/{_NAME} in {destination.path} is no token, or others may read it")
    return kept


def _kept(destination: Destination) -> Chosen:
    """Return the token that an earlier run kept in the destination, or make one and keep it."""
    path = os.path.join(destination.path, STAGING, _NAME)
    try:
        staging = destination.open_staging(create=True)
        try:
            kept = _read(staging)
            if kept is not None:
                return Chosen(kept, path)
            made = _make(staging)
            sync_directory(destination.fd)  # the staging directory may be new
            return Chosen(made, path, is_new=True)
        finally:
            os.close(staging)
    except OSError as error:
        raise from_os_error(error, Code.DESTINATION, f"can't keep a token in {destination.path}") from None


def _read(staging: int) -> str | None:
    """Return the token that was kept; None where there is none, or another user could have put it there."""
    try:
        fd = os.open(_NAME, os.O_RDONLY | os.O_NONBLOCK | _OPEN, dir_fd=staging)
    except FileNotFoundError:
        return None
    return token_in(fd)


def _make(staging: int) -> str:
    """Make a token, and keep it durably: its user gives it to senders, which know no other one. Raises OSError."""
    token = secrets.token_urlsafe(24)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_NAME, dir_fd=staging)
    fd = os.open(_NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN, 0o600, dir_fd=staging)
    with open(fd, "w", encoding="ascii") as file:
        file.write(token + "\n")
        file.flush()
        os.fsync(fd)
    sync_directory(staging)
    return token
