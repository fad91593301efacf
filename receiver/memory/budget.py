"""The memory that peers can make this process hold: one budget, over all transfers (proto/README.md, "Memory").

1. `Budget.admit` opens an `Account` for a transfer, with a reserved minimum: one small connection, one part of the
   manifest, the chunk table of one file. With that alone a transfer can finish. So no transfer is refused half-way:
   what it cannot do without is asked for before its first byte.
2. `Account.borrow` and `try_borrow` lend what the transfer uses beyond its minimum; `give_back` takes it back. Where
   nothing is left, the borrower waits or does without: sockets are not read, parts are not answered, buffers stay
   small.
3. `Account.close` gives everything back.

Fairness: a peer is all transfers from one address. While other peers wait, a peer borrows no more than a quarter of
the budget. A peer waits while it is in `borrow`, and for some seconds after it was refused, as its sender comes again.
Peers that have no more than a quarter are served in the order in which they came.

No deadlock: a borrower first gives back what it can do without, so that it holds nothing that others wait for.
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
"""A peer borrows at most this fraction (1/SHARE) of the budget while others wait."""
TICK_SECONDS: Final = 1.0
"""How often a waiting borrower calls its `patience`, which may give up."""
REFUSED_SECONDS: Final = 10.0
"""How long a refused peer counts as waiting: its sender tries again within that time."""
SHORT_SECONDS: Final = 2.0
"""For how long after a refusal the other transfers give back memory that they don't need."""
REFUSED_PEERS: Final = 256
"""How many refused peers are remembered: addresses are cheap, this table must not grow with them."""


class _Waiter(NamedTuple):
    """A borrower that waits in `borrow`."""

    peer: str
    wanted_bytes: int


class Budget:
    """Lends bytes to transfers. `_changed` protects every field with an underscore."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self._changed = threading.Condition(threading.Lock())
        self._reserved: Counter[str] = Counter()  # by peer
        self._borrowed: Counter[str] = Counter()  # by peer
        self._tickets = itertools.count()
        self._waiting: dict[int, _Waiter] = {}  # by ticket, in the order in which they came
        self._refused: dict[str, float] = {}  # by peer: when it was last refused (monotonic)
        self._short_until = 0.0  # until when `is_short` holds after a refusal (monotonic)

    @property
    def share_bytes(self) -> int:
        """How many bytes a peer borrows at most while others wait."""
        return self.total_bytes // SHARE

    def admit(self, peer: str, minimum_bytes: int) -> "Account":
        """Open an account with a reserved minimum.

        Raises TransferFailed: LIMIT where the sender should try again later, TOO_LARGE where that is of no use.
        """
        self.check(minimum_bytes)
        with self._changed:
            has_bytes = self._reserved[peer] + self._borrowed[peer]
            # A peer that already has an account leaves memory for the account of another peer. If it has its share,
            # peers that wait are served first, as in `borrow`.
            leave_bytes = self._admission_bytes(minimum_bytes) if has_bytes else 0
            lets_others_first = has_bytes and has_bytes + minimum_bytes > self.share_bytes and self._others_wait(peer)
            if self._left() < minimum_bytes + leave_bytes or lets_others_first:
                self._note_refused(peer)
                self._short_until = time.monotonic() + SHORT_SECONDS
                raise TransferFailed(
                    Code.LIMIT, "this receiver has no memory left for another transfer: try again later"
                )
            self._reserved[peer] += minimum_bytes
        return Account(self, peer, minimum_bytes, self._admission_bytes(minimum_bytes))

    def _admission_bytes(self, minimum_bytes: int) -> int:
        """Return how many bytes borrowers leave: the minimum of two more transfers, which are then always admitted."""
        return min(2 * minimum_bytes, self.total_bytes // 8)

    def check(self, count: int) -> None:
        """Raise TransferFailed(TOO_LARGE) for more bytes than the budget has."""
        if count > self.total_bytes:
            needed, total = format_size(count), format_size(self.total_bytes)
            reason = f"the transfer needs {needed} of memory, and this receiver has {total} for all transfers"
            raise TransferFailed(Code.TOO_LARGE, f"{reason}: use larger chunks, or a larger --memory-limit there")

    @property
    def used_bytes(self) -> int:
        """How many bytes are reserved or borrowed."""
        with self._changed:
            return self.total_bytes - self._left()

    @property
    def is_short(self) -> bool:
        """Whether a borrower waits, or a transfer was refused a moment ago: give back what is not needed."""
        return bool(self._waiting) or self._short_until > time.monotonic()

    def _left(self) -> int:
        return self.total_bytes - self._reserved.total() - self._borrowed.total()

    def _note_refused(self, peer: str) -> None:
        now = time.monotonic()
        # If the table is full, this peer is not remembered: no memory is kept free for it.
        if len(self._refused) >= REFUSED_PEERS:
            self._refused = {known: at for known, at in self._refused.items() if now - at < REFUSED_SECONDS}
        if len(self._refused) < REFUSED_PEERS:
            self._refused[peer] = now

    def _others_wait(self, peer: str) -> bool:
        if any(waiter.peer != peer for waiter in self._waiting.values()):
            return True
        since = time.monotonic() - REFUSED_SECONDS
        return any(at > since for other, at in self._refused.items() if other != peer)

    def _bytes_before(self, ticket: int | None) -> int:
        """Count the bytes that go first to borrowers with an earlier ticket, to each peer within its share."""
        before: Counter[str] = Counter()
        for other, waiter in self._waiting.items():
            if ticket is not None and other >= ticket:
                break
            if self._borrowed[waiter.peer] + before[waiter.peer] + waiter.wanted_bytes <= self.share_bytes:
                before[waiter.peer] += waiter.wanted_bytes
        return before.total()

    def _lend(self, peer: str, count: int, leave_bytes: int = 0, ticket: int | None = None) -> bool:
        within_share = self._borrowed[peer] + count <= self.share_bytes
        if count + leave_bytes + self._bytes_before(ticket) > self._left() or not (
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
    """The part of the budget that one transfer has. Any thread may borrow and give back."""

    def __init__(self, budget: Budget, peer: str, minimum_bytes: int, leave_bytes: int = 0) -> None:
        self.budget = budget
        self.peer = peer
        self.minimum_bytes = minimum_bytes
        self._leave_bytes = leave_bytes
        """Bytes that borrowers leave for transfers that are not admitted yet."""
        self._borrowed = 0  # protected by the budget's lock
        self._is_closed = False

    def another(self) -> "Account":
        """Open another account of the same peer, with nothing reserved: for memory that may outlive this account."""
        return Account(self.budget, self.peer, 0, self._leave_bytes)

    def check(self, count: int) -> None:
        """Raise TransferFailed(TOO_LARGE) for more bytes than can ever be borrowed."""
        self.budget.check(count + self.minimum_bytes + self._leave_bytes)

    def try_borrow(self, count: int, *, leave_bytes: int = 0) -> bool:
        """Borrow bytes if that needs no waiting; return whether they were lent.

        They are lent only if `leave_bytes` are left for others: a borrower that can do without leaves more.
        """
        budget = self.budget
        with budget._changed:
            was_lent = self._borrow(count, leave_bytes)
            # A borrower with `leave_bytes` can do without the memory: it does not count as waiting.
            if not was_lent and not leave_bytes:
                budget._note_refused(self.peer)
            return was_lent

    def borrow(self, count: int, patience: Callable[[], None]) -> None:
        """Borrow bytes, and wait until they are there; `patience` is called each second, and raises to give up.

        The caller holds nothing borrowed that it could do without. Raises TransferFailed: TOO_LARGE for more than can
        ever be borrowed, LIMIT where the account is closed.
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
        """Give back some of what was borrowed. Does nothing after `close`, which has given back all."""
        with self.budget._changed:
            if not self._is_closed:
                assert count <= self._borrowed
                self._borrowed -= count
                self.budget._take_back(self.peer, count)

    def close(self) -> None:
        """Give back all that was borrowed, and the minimum. Idempotent."""
        budget = self.budget
        with budget._changed:
            if self._is_closed:
                return
            self._is_closed = True
            budget._reserved[self.peer] -= self.minimum_bytes
            if not budget._reserved[self.peer]:
                del budget._reserved[self.peer]
            budget._take_back(self.peer, self._borrowed)
