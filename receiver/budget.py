"""Memory that peers can make this process hold: one budget, over all transfers (proto/README.md, "Memory").

Each transfer has an `Account`. It is admitted with a reserved minimum, with which it can finish over one connection:
one small connection, one part of the manifest, the chunk table of one file. Who keeps one of these for itself asks
nobody; what goes beyond is borrowed here, and given back. Where nothing is left, a borrower waits or does without:
sockets are not read, parts are not answered, buffers stay small. Nobody is refused half-way.

A peer, all transfers from one address, borrows no more than a quarter of the budget while other peers wait. Who waits
holds nothing that others wait for: it gives back first what it can do without.
"""

import threading
from collections import Counter
from collections.abc import Callable
from typing import Final

from wire.errors import Code, TransferFailed

SHARE: Final = 4
"""A peer borrows at most one part in so many while others wait."""
TICK_SECONDS: Final = 1.0


class Budget:
    """Bytes to be lent. The lock protects every field with an underscore."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self._changed = threading.Condition(threading.Lock())
        self._reserved = 0
        self._borrowed: Counter[str] = Counter()  # by peer
        self._waiting: Counter[str] = Counter()

    def admit(self, peer: str, minimum_bytes: int) -> "Account":
        """Open an account with a reserved minimum. Raises TransferFailed: LIMIT now, TOO_LARGE for ever."""
        self.check(minimum_bytes)
        with self._changed:
            if self._left() < minimum_bytes:
                raise TransferFailed(Code.LIMIT, "this receiver has no memory left for another transfer: retrying")
            self._reserved += minimum_bytes
        return Account(self, peer, minimum_bytes)

    def check(self, count: int) -> None:
        """Raise TransferFailed(TOO_LARGE) for what never fits."""
        if count > self.total_bytes:
            reason = f"the transfer needs {count} bytes of this receiver's memory, which has {self.total_bytes} for all"
            raise TransferFailed(Code.TOO_LARGE, f"{reason}: use larger chunks, or a larger --memory-limit there")

    @property
    def used_bytes(self) -> int:
        """Bytes that are reserved or borrowed."""
        with self._changed:
            return self.total_bytes - self._left()

    def _left(self) -> int:
        return self.total_bytes - self._reserved - self._borrowed.total()

    def _lend(self, peer: str, count: int) -> bool:
        others_wait = any(number for other, number in self._waiting.items() if other != peer)
        if others_wait and self._borrowed[peer] + count > self.total_bytes // SHARE:
            return False
        if count > self._left():
            return False
        self._borrowed[peer] += count
        return True


class Account:
    """What one transfer has of the budget. Any thread may borrow and give back; `close` gives everything back."""

    def __init__(self, budget: Budget, peer: str, minimum_bytes: int) -> None:
        self.budget = budget
        self.peer = peer
        self.minimum_bytes = minimum_bytes
        self._borrowed = 0  # protected by the budget's lock
        self._is_closed = False

    def try_borrow(self, count: int) -> bool:
        """Borrow bytes if that needs no waiting; whether it did not."""
        budget = self.budget
        with budget._changed:
            return self._borrow(count)

    def borrow(self, count: int, patience: Callable[[], None]) -> None:
        """Borrow bytes, waiting for them; `patience` is called each second, and raises to give up.

        The caller holds nothing borrowed that it could do without. Raises TransferFailed(TOO_LARGE) for what never
        fits.
        """
        budget = self.budget
        budget.check(count)
        with budget._changed:
            budget._waiting[self.peer] += 1
        try:
            while not self._borrow_within(count, TICK_SECONDS):
                patience()
        finally:
            with budget._changed:
                budget._waiting[self.peer] -= 1
                budget._changed.notify_all()

    def _borrow_within(self, count: int, seconds: float) -> bool:
        with self.budget._changed:
            return self.budget._changed.wait_for(lambda: self._borrow(count), seconds)

    def _borrow(self, count: int) -> bool:
        if self._is_closed or not self.budget._lend(self.peer, count):
            return False
        self._borrowed += count
        return True

    def give_back(self, count: int) -> None:
        """Give back what was borrowed. After `close`, nothing: that has given it back."""
        with self.budget._changed:
            if not self._is_closed:
                assert count <= self._borrowed
                self._borrowed -= count
                self.budget._borrowed[self.peer] -= count
                self.budget._changed.notify_all()

    def close(self) -> None:
        """Give everything back, the minimum included. Idempotent."""
        budget = self.budget
        with budget._changed:
            if self._is_closed:
                return
            self._is_closed = True
            budget._reserved -= self.minimum_bytes
            budget._borrowed[self.peer] -= self._borrowed
            if not budget._borrowed[self.peer]:
                del budget._borrowed[self.peer]
            budget._changed.notify_all()
