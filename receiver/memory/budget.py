"""Memory that peers can make this process hold: one budget, over all transfers (proto/README.md, "Memory").

Each transfer has an `Account`. It is admitted with a reserved minimum, with which it can finish over one connection:
one small connection, one part of the manifest, the chunk table of one file. A transfer uses these without asking; what
it uses beyond them it borrows here, and gives back. Where nothing is left, a borrower waits or does without: sockets
are not read, parts are not answered, buffers stay small. No transfer is refused half-way: what it
needs to begin is asked for before its first byte.

A peer, all transfers from one address, borrows no more than a quarter of the budget while other peers wait. A peer
waits while it is in `borrow`, and for a while after it was refused: a sender that was refused comes again. Peers that
have no more than a quarter are served in turn. A borrower that waits holds nothing that others wait for: it first gives
back what it can do without.
"""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

from filestreamer.settings.sizes import format_size
from filestreamer.wire.errors import Code, TransferFailed

SHARE: Final = 4
"""A peer borrows at most one part in so many while others wait."""
TICK_SECONDS: Final = 1.0
REFUSED_SECONDS: Final = 10.0
"""How long a peer that was refused counts as one that waits: its sender tries again within that."""
SHORT_SECONDS: Final = 2.0
"""How long transfers that have more than they need give back after another one was refused."""
REFUSED_PEERS: Final = 256
"""Peers of which that is remembered, at most."""


class _Waiter(NamedTuple):
    """Somebody in `borrow`."""

    peer: str
    wanted: int


class Budget:
    """Bytes to be lent. The lock protects every field with an underscore."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self._changed = threading.Condition(threading.Lock())
        self._reserved: Counter[str] = Counter()  # by peer
        self._borrowed: Counter[str] = Counter()  # by peer
        self._tickets = itertools.count()
        self._waiting: dict[int, _Waiter] = {}  # by ticket, the first that came first
        self._refused: dict[str, float] = {}  # peer: when it was refused last (monotonic)
        self._short_until = 0.0  # monotonic

    @property
    def share_bytes(self) -> int:
        """What a peer borrows at most while others wait."""
        return self.total_bytes // SHARE

    def admit(self, peer: str, minimum_bytes: int) -> "Account":
        """Open an account with a reserved minimum. Raises TransferFailed: LIMIT now, TOO_LARGE for ever.

        A peer that has one already leaves room for another peer's, and waits for others as it does for what it borrows.
        """
        self.check(minimum_bytes)
        with self._changed:
            has_bytes = self._reserved[peer] + self._borrowed[peer]
            leave_bytes = self._admission_bytes(minimum_bytes) if has_bytes else 0
            is_patient = has_bytes and has_bytes + minimum_bytes > self.share_bytes and self._others_wait(peer)
            if self._left() < minimum_bytes + leave_bytes or is_patient:
                self._note_refused(peer)
                self._short_until = time.monotonic() + SHORT_SECONDS
                raise TransferFailed(Code.LIMIT, "this receiver has no memory left for another transfer: try again")
            self._reserved[peer] += minimum_bytes
        return Account(self, peer, minimum_bytes, self._admission_bytes(minimum_bytes))

    def _admission_bytes(self, minimum_bytes: int) -> int:
        """Return what is left for two transfers of others, so that whatever is lent, and kept, keeps nobody out."""
        return min(2 * minimum_bytes, self.total_bytes // 8)

    def check(self, count: int) -> None:
        """Raise TransferFailed(TOO_LARGE) for what never fits."""
        if count > self.total_bytes:
            needed, total = format_size(count), format_size(self.total_bytes)
            reason = f"the transfer needs {needed} of this receiver's memory, which has {total} for all transfers"
            raise TransferFailed(Code.TOO_LARGE, f"{reason}: use larger chunks, or a larger --memory-limit there")

    @property
    def used_bytes(self) -> int:
        """Bytes that are reserved or borrowed."""
        with self._changed:
            return self.total_bytes - self._left()

    @property
    def is_short(self) -> bool:
        """Whether somebody waits, or a transfer was refused a moment ago: then what is not needed is given back."""
        return bool(self._waiting) or self._short_until > time.monotonic()

    def _left(self) -> int:
        return self.total_bytes - self._reserved.total() - self._borrowed.total()

    def _note_refused(self, peer: str) -> None:
        now = time.monotonic()
        if len(self._refused) >= REFUSED_PEERS:
            self._refused = {known: at for known, at in self._refused.items() if now - at < REFUSED_SECONDS}
        if len(self._refused) < REFUSED_PEERS:
            self._refused[peer] = now

    def _others_wait(self, peer: str) -> bool:
        if any(waiter.peer != peer for waiter in self._waiting.values()):
            return True
        since = time.monotonic() - REFUSED_SECONDS
        return any(at > since for other, at in self._refused.items() if other != peer)

    def _ahead(self, ticket: int | None) -> int:
        """Count the bytes that go to borrowers that have waited for longer than this one, each within its share."""
        ahead: Counter[str] = Counter()
        for other, waiter in self._waiting.items():
            if ticket is not None and other >= ticket:
                break
            if self._borrowed[waiter.peer] + ahead[waiter.peer] + waiter.wanted <= self.share_bytes:
                ahead[waiter.peer] += waiter.wanted
        return ahead.total()

    def _lend(self, peer: str, count: int, leave_bytes: int = 0, ticket: int | None = None) -> bool:
        within_share = self._borrowed[peer] + count <= self.share_bytes
        if count + leave_bytes + self._ahead(ticket) > self._left() or not (
            within_share or not self._others_wait(peer)
        ):
            return False
        self._borrowed[peer] += count
        return True

    def _take_back(self, peer: str, count: int) -> None:
        self._borrowed[peer] -= count
        if not self._borrowed[peer]:
            del self._borrowed[peer]
        self._changed.notify_all()


class Account:
    """What one transfer has of the budget. Any thread may borrow and give back; `close` gives everything back."""

    def __init__(self, budget: Budget, peer: str, minimum_bytes: int, leave_bytes: int = 0) -> None:
        self.budget = budget
        self.peer = peer
        self.minimum_bytes = minimum_bytes
        self._leave_bytes = leave_bytes
        """What whoever borrows leaves for transfers that are still to be admitted."""
        self._borrowed = 0  # protected by the budget's lock
        self._is_closed = False

    def another(self) -> "Account":
        """Open another account of the same peer, with nothing reserved: for what may outlive this one."""
        return Account(self.budget, self.peer, 0, self._leave_bytes)

    def check(self, count: int) -> None:
        """Raise TransferFailed(TOO_LARGE) for what can never be borrowed."""
        self.budget.check(count + self.minimum_bytes + self._leave_bytes)

    def try_borrow(self, count: int, *, leave_bytes: int = 0) -> bool:
        """Borrow bytes if that needs no waiting; whether it did not.

        `leave_bytes` is what has to be left for others: who can do with less leaves more.
        """
        budget = self.budget
        with budget._changed:
            was_lent = self._borrow(count, leave_bytes)
            if not was_lent and not leave_bytes:
                budget._note_refused(self.peer)
            return was_lent

    def borrow(self, count: int, patience: Callable[[], None]) -> None:
        """Borrow bytes, waiting for them; `patience` is called each second, and raises to give up.

        The caller holds nothing borrowed that it could do without. Raises TransferFailed: TOO_LARGE for what never
        fits, LIMIT where the account is closed.
        """
        budget = self.budget
        self.check(count)
        with budget._changed:
            ticket = next(budget._tickets)
            budget._waiting[ticket] = _Waiter(self.peer, count)
        try:
            while not self._borrow_within(count, ticket, TICK_SECONDS):
                patience()
        finally:
            with budget._changed:
                del budget._waiting[ticket]
                budget._changed.notify_all()

    def _borrow_within(self, count: int, ticket: int, seconds: float) -> bool:
        def is_lent() -> bool:
            if self._is_closed:
                raise TransferFailed(Code.LIMIT, "the transfer has ended")
            return self._borrow(count, 0, ticket)

        with self.budget._changed:
            return self.budget._changed.wait_for(is_lent, seconds)

    def _borrow(self, count: int, leave_bytes: int = 0, ticket: int | None = None) -> bool:
        leave_bytes = max(leave_bytes, self._leave_bytes)
        if self._is_closed or not self.budget._lend(self.peer, count, leave_bytes, ticket):
            return False
        self._borrowed += count
        return True

    def give_back(self, count: int) -> None:
        """Give back what was borrowed. After `close`, nothing: that has given it back."""
        with self.budget._changed:
            if not self._is_closed:
                assert count <= self._borrowed
                self._borrowed -= count
                self.budget._take_back(self.peer, count)

    def close(self) -> None:
        """Give everything back, the minimum included. Idempotent."""
        budget = self.budget
        with budget._changed:
            if self._is_closed:
                return
            self._is_closed = True
            budget._reserved[self.peer] -= self.minimum_bytes
            if not budget._reserved[self.peer]:
                del budget._reserved[self.peer]
            budget._take_back(self.peer, self._borrowed)
