"""The token that receivers have to prove to a sender that listens: there always is one.

It is the one that the user gives. Without one, on loopback, it is the user's own token
(`filestreamer.settings.own_token`), which this user's receivers find by themselves; on any other address, and where
this user has no place for a token, the sender makes one for this run, which the user is shown.
"""

import os
import secrets
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from filestreamer.settings import own_token, renewed, values
from sender.settings import SenderSettings


class Chosen(NamedTuple):
    """The token that receivers have to prove."""

    token: str
    path: str | None = None
    """The file that has it, where it is the user's own."""
    is_new: bool = False
    """Whether it was made just now: the user has not seen it yet."""


def choose(settings: SenderSettings, hosts: Iterable[str]) -> Chosen:
    """Choose the token for a sender that listens on `hosts`. Raises UsageError."""
    if settings.token is not None:
        return Chosen(settings.token)
    own = own_token.make(os.environ) if all(map(own_token.is_loopback, hosts)) else None
    return Chosen(own.token, own.path) if own is not None else Chosen(secrets.token_urlsafe(24), is_new=True)


def current(chosen: Chosen, settings: SenderSettings, log: Any) -> Callable[[], str]:
    """Return what returns the chosen token as its file has it now."""
    given = settings.token
    if isinstance(given, values.Token) and given.path is not None:
        path = given.path
        return renewed.Renewed[str](given, {path: given.signature}, lambda: values.token(path), log).get
    if chosen.path is None:
        return renewed.constant(chosen.token)
    return renewed.Renewed[str](chosen.token, renewed.look([chosen.path]), _read_own, log).get


def _read_own() -> str:
    """Return the user's own token as it is now. Raises UsageError, ValueError."""
    own = own_token.read(os.environ)
    if own is None:
        raise ValueError("the user's own token can't be read")
    return own.token
