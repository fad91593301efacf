"""Memory is lent fairly, given back whole, and never lent twice."""

import contextlib
import random
import threading
from collections.abc import Callable

import pytest

from filestreamer.wire.errors import Code, ConnectionLost, TransferFailed
from receiver.memory.budget import SHARE, Account, Budget
from tests.support.services import HANG, UNIT

TOTAL = 1000
MINIMUM = 10


def forever() -> None:
    """Wait on."""


class Borrower:
    """Waits for memory in a thread of its own."""

    def __init__(self, account: Account, count: int, patience: Callable[[], None] = forever) -> None:
        self.error: TransferFailed | ConnectionLost | None = None
        self._thread = threading.Thread(target=self._wait, args=(account, count, patience), daemon=True)
        self._thread.start()

    def _wait(self, account: Account, count: int, patience: Callable[[], None]) -> None:
        try:
            account.borrow(count, patience)
        except (TransferFailed, ConnectionLost) as error:
            self.error = error

    @property
    def is_waiting(self) -> bool:
        return self._thread.is_alive()

    def ends(self) -> None:
        self._thread.join(HANG)
        assert not self._thread.is_alive()


def waiting(budget: Budget, number: int) -> None:
    """Return when so many wait."""
    end = threading.Event()
    for _ in range(int(UNIT * 100)):
        with budget._changed:
            if len(budget._waiting) == number:
                return
        end.wait(0.01)
    raise AssertionError(f"{number} do not wait")


def test_a_minimum_is_reserved_until_the_account_is_closed() -> None:
    budget = Budget(25)
    first, _ = budget.admit("a", 10), budget.admit("b", 10)
    with pytest.raises(TransferFailed) as refused:
        budget.admit("c", 10)
    assert refused.value.code is Code.LIMIT
    assert refused.value.retryable
    first.close()
    first.close()
    assert budget.used_bytes == 10
    budget.admit("c", 10)


def test_what_never_fits_is_told_apart() -> None:
    budget = Budget(25)
    with pytest.raises(TransferFailed) as refused:
        budget.admit("a", 26)
    assert (refused.value.code, refused.value.retryable) == (Code.TOO_LARGE, False)
    account = budget.admit("a", 10)
    with pytest.raises(TransferFailed) as refused:
        account.borrow(16, forever)  # what is left beside its own minimum
    assert refused.value.code is Code.TOO_LARGE


def test_a_peer_leaves_room_for_a_transfer_of_another() -> None:
    budget = Budget(TOTAL)
    accounts = [budget.admit("a", 40) for _ in range((TOTAL - 80) // 40)]
    with pytest.raises(TransferFailed):
        budget.admit("a", 40)
    budget.admit("b", 40)
    budget.admit("c", 40)
    with pytest.raises(TransferFailed):
        budget.admit("d", 40)
    accounts.pop().close()
    with pytest.raises(TransferFailed) as refused:  # others wait, and this one has more than its share
        budget.admit("a", 40)
    assert refused.value.code is Code.LIMIT
    budget.admit("d", 40)


def test_close_gives_everything_back() -> None:
    budget = Budget(TOTAL)
    account = budget.admit("a", MINIMUM)
    assert account.try_borrow(TOTAL - 3 * MINIMUM)
    assert not account.try_borrow(1)  # room for two transfers is never lent
    assert budget.used_bytes == TOTAL - 2 * MINIMUM
    account.close()
    assert budget.used_bytes == 0
    account.give_back(5)  # too late: close has given it back
    assert not account.try_borrow(1)
    assert budget.used_bytes == 0


def test_whatever_is_lent_and_kept_keeps_no_transfer_of_another_out() -> None:
    budget = Budget(TOTAL)
    hostile = [budget.admit("a", MINIMUM) for _ in range(5)]
    for account in [*hostile, *(each.another() for each in hostile)]:
        while account.try_borrow(7):
            pass
    budget.admit("b", MINIMUM)
    budget.admit("c", MINIMUM)


def test_another_account_outlives_the_first() -> None:
    budget = Budget(TOTAL)
    account = budget.admit("a", MINIMUM)
    table = account.another()
    assert table.try_borrow(100)
    account.close()
    assert budget.used_bytes == 100
    table.close()
    assert budget.used_bytes == 0


def test_who_can_do_with_less_leaves_something() -> None:
    account = Budget(TOTAL).admit("a", MINIMUM)
    assert not account.try_borrow(500, leave_bytes=491)
    assert account.try_borrow(500, leave_bytes=490)
    assert account.try_borrow(490 - 2 * MINIMUM)


def test_who_waits_is_served_when_something_is_given_back() -> None:
    budget = Budget(TOTAL)
    rich, poor = budget.admit("a", MINIMUM), budget.admit("b", MINIMUM)
    assert rich.try_borrow(TOTAL - 4 * MINIMUM)
    borrower = Borrower(poor, 100)
    waiting(budget, 1)
    rich.give_back(99)
    assert borrower.is_waiting
    rich.give_back(1)
    borrower.ends()
    assert borrower.error is None
    assert budget.used_bytes == TOTAL - 2 * MINIMUM


def test_who_has_more_than_a_quarter_gets_nothing_while_others_wait() -> None:
    budget = Budget(TOTAL)
    rich, poor = budget.admit("a", MINIMUM), budget.admit("b", MINIMUM)
    assert rich.try_borrow(TOTAL - 4 * MINIMUM)
    borrower = Borrower(poor, 200)
    waiting(budget, 1)
    rich.give_back(150)
    assert not rich.try_borrow(1)
    rich.give_back(50)
    borrower.ends()
    assert not poor.try_borrow(1)
    assert not rich.try_borrow(1)


def test_another_transfer_of_the_same_peer_is_no_way_around_it() -> None:
    budget = Budget(TOTAL)
    rich, poor = budget.admit("a", MINIMUM), budget.admit("b", MINIMUM)
    assert rich.try_borrow(TOTAL // SHARE)
    borrower = Borrower(poor, TOTAL - 3 * MINIMUM)  # more than its share: it is served when there is room
    waiting(budget, 1)
    again = rich.another()
    assert not again.try_borrow(1)
    assert budget.admit("c", 0).try_borrow(1)
    rich.close()
    poor.close()
    borrower.ends()


def test_who_was_refused_counts_as_waiting_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    budget = Budget(TOTAL)
    rich = budget.admit("a", MINIMUM)
    assert rich.try_borrow(TOTAL - 3 * MINIMUM)
    with pytest.raises(TransferFailed):
        budget.admit("b", 3 * MINIMUM)
    rich.give_back(400)
    assert not rich.try_borrow(1)
    budget.admit("b", 2 * MINIMUM)
    now += 60
    assert rich.try_borrow(1)


def test_the_first_that_waits_is_served_first() -> None:
    budget = Budget(TOTAL)
    rich, first, second = (budget.admit(peer, 0) for peer in "abc")
    assert rich.try_borrow(TOTAL)
    large = Borrower(first, 200)
    waiting(budget, 1)
    small = Borrower(second, 50)
    waiting(budget, 2)
    rich.give_back(60)
    assert not budget.admit("d", 0).try_borrow(50)  # nor does anybody overtake
    rich.give_back(140)
    large.ends()
    assert small.is_waiting
    rich.give_back(50)
    small.ends()


def test_who_wants_more_than_its_share_keeps_nobody_waiting() -> None:
    budget = Budget(TOTAL)
    rich, greedy, modest = (budget.admit(peer, 0) for peer in "abc")
    assert rich.try_borrow(TOTAL - 100)
    borrower = Borrower(greedy, 900)
    waiting(budget, 1)
    assert modest.try_borrow(50)
    modest.close()
    rich.close()
    borrower.ends()
    assert borrower.error is None


def test_closing_while_it_waits_ends_the_wait() -> None:
    budget = Budget(TOTAL)
    rich, poor = budget.admit("a", 0), budget.admit("b", 0)
    assert rich.try_borrow(TOTAL)
    borrower = Borrower(poor, 1)
    waiting(budget, 1)
    poor.close()
    borrower.ends()
    assert borrower.error is not None
    waiting(budget, 0)
    assert budget.used_bytes == TOTAL


def test_patience_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("receiver.memory.budget.TICK_SECONDS", 0.01)

    def end() -> None:
        raise ConnectionLost("gave up")

    budget = Budget(TOTAL)
    rich, poor = budget.admit("a", 0), budget.admit("b", 0)
    assert rich.try_borrow(TOTAL)
    borrower = Borrower(poor, 1, end)
    borrower.ends()
    assert isinstance(borrower.error, ConnectionLost)
    waiting(budget, 0)
    rich.close()
    assert rich.budget.used_bytes == 0


def test_many_threads_never_have_more_than_there_is() -> None:
    budget = Budget(TOTAL)
    failures: list[str] = []

    def act(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(30):
            with contextlib.suppress(TransferFailed):
                account = budget.admit(f"peer {chance.randrange(3)}", chance.randrange(1, 60))
                has = 0
                for _ in range(10):
                    count = chance.randrange(1, 120)
                    if chance.random() < 0.3 and has:
                        account.give_back(part := chance.randrange(1, has + 1))
                        has -= part
                    elif account.try_borrow(count, leave_bytes=chance.choice((0, 100))):
                        has += count
                    if not 0 <= budget.used_bytes <= TOTAL:
                        failures.append(f"{budget.used_bytes} of {TOTAL} are used")
                account.close()

    threads = [threading.Thread(target=act, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
    assert failures == []
    assert (budget.used_bytes, budget._borrowed, budget._waiting) == (0, {}, {})


def test_those_who_wait_are_all_served_in_the_end() -> None:
    """Borrow, give back, again, in as many threads as there are peers: nobody starves, nothing is lost."""
    budget = Budget(100)
    accounts = [budget.admit(f"peer {number}", 0) for number in range(6)]

    def act(account: Account, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(50):
            count = chance.randrange(1, 100 // SHARE + 1)
            account.borrow(count, forever)
            account.give_back(count)

    threads = [threading.Thread(target=act, args=(account, seed)) for seed, account in enumerate(accounts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
        assert not thread.is_alive()
    assert budget.used_bytes == 0


def test_it_is_short_while_somebody_waits_and_a_moment_after_a_transfer_was_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    budget = Budget(TOTAL)
    account = budget.admit("a", MINIMUM)
    was_short = []
    assert not account.try_borrow(TOTAL)  # a borrower that wants more only for speed
    was_short.append(budget.is_short)
    with pytest.raises(TransferFailed):
        budget.admit("b", TOTAL)
    was_short.append(budget.is_short)
    now += 5
    was_short.append(budget.is_short)
    assert was_short == [False, True, False]
