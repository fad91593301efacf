"""The token that each connection proves: the one that was given, or this user's own, as their files have them now.

Both sides may not see a new token at the same moment: where one is refused, the next connection uses the one that was
accepted before.
"""

import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from filestreamer.settings import renewed, values
from filestreamer.settings.common import CommonSettings


class Chosen(NamedTuple):
    """The token for one connection."""

    token: bytes | None
    is_own: bool
    """Whether it is this user's own, which nobody has given: it counts only where the receiver requires a token."""


class Tokens:
    """The tokens of one transfer. Any thread may call."""

    def __init__(self, settings: CommonSettings, log: Any) -> None:
        self._given = _given(settings, log)
        self._mutex = threading.Lock()  # protects the fields below
        self._own: str | None = None  # this user's own token on this machine, as it was read last
        self._accepted: str | None = None  # the one with which a connection was opened last
        self._refused: set[str] = set()  # those that were refused since

    def choose(self, peer: str) -> Chosen:
        """Choose the token for a connection to the receiver at the address `peer` (HOST:PORT)."""
        given = self._given()
        if given:
            return Chosen(self._unrefused(given), is_own=False)
        return Chosen(self._read_own(), is_own=True) if _is_loopback(peer) else Chosen(None, is_own=False)

    def _read_own(self) -> bytes | None:
        """Return this user's own token on this machine, if there is one."""
        from filestreamer.settings import own_token

        # If it can't be read, the token that was read last is used: this process may have too many open files now.
        own = own_token.read(os.environ)
        if own is not None:
            self._own = own.token
        return self._unrefused(self._own) if self._own else None

    def _unrefused(self, token: str) -> bytes:
        """Return the token to prove: this one or, where it was refused, the one that was accepted before."""
        with self._mutex:
            if token in self._refused and self._accepted is not None:
                token = self._accepted
        return token.encode()

    def accept(self, token: bytes) -> None:
        """Note that a connection was opened with a token."""
        with self._mutex:
            self._accepted = token.decode()
            self._refused.clear()

    def refuse(self, token: bytes) -> bool:
        """Note that a token was refused; return whether another one is left to be tried."""
        with self._mutex:
            self._refused.add(token.decode())
            return self._accepted is not None and self._accepted not in self._refused


def _is_loopback(peer: str) -> bool:
    """Whether the receiver at this address is on this machine."""
    from filestreamer.settings import own_token

    return own_token.is_loopback(peer.rpartition(":")[0].strip("[]"))


def _given(settings: CommonSettings, log: Any) -> Callable[[], str | None]:
    """Return what returns the token that was given, as its file has it now."""
    given = settings.token
    if not isinstance(given, values.Token) or given.path is None:
        return renewed.constant(given)
    path = given.path
    return renewed.Renewed[str | None](
        given, {path: given.signature}, lambda: values.token(path), log, look_seconds=0
    ).get
