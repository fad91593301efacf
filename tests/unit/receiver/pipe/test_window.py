"""How large the window of a pipe is, and what it costs."""

import pytest

from filestreamer.wire.errors import Code, TransferFailed
from receiver.memory.budget import Budget
from receiver.pipe.window import SLOT_BYTES, SLOTS_MOST, borrow_window, check_window, count_slots

MIB = 1 << 20


def test_a_chunk_larger_than_the_window_is_refused() -> None:
    with pytest.raises(TransferFailed, match="--chunk-size") as caught:
        check_window(1001, 1000)
    assert caught.value.code is Code.POLICY


def windows(budget: Budget, number: int, chunk_size: int, most_bytes: int) -> list[int]:
    """Return the windows that so many pipes get, one after the other, of different peers."""
    return [borrow_window(budget.admit(f"peer {at}", MIB), chunk_size, most_bytes)[0] for at in range(number)]


def test_ten_pipes_do_not_take_ten_windows() -> None:
    budget = Budget(256 * MIB)
    found = windows(budget, 10, MIB, 64 * MIB)
    assert found[0] >= 32 * MIB
    assert found == sorted(found, reverse=True)
    assert min(found) >= 2 * MIB
    assert budget.used_bytes == sum(found) + sum(found) // MIB * SLOT_BYTES + 10 * MIB


def test_a_window_has_a_bound_of_chunks() -> None:
    assert windows(Budget(256 * MIB), 1, 1, 64 * MIB) == [SLOTS_MOST]
    assert count_slots(64 * MIB, 1) == SLOTS_MOST


def test_a_pipe_for_whose_chunk_there_is_no_memory() -> None:
    budget = Budget(20 * MIB)
    with pytest.raises(TransferFailed) as caught:
        borrow_window(budget.admit("a", MIB), 32 * MIB, 64 * MIB)
    assert caught.value.code is Code.TOO_LARGE
    assert windows(budget, 1, 12 * MIB, 64 * MIB) == [12 * MIB]
    with pytest.raises(TransferFailed) as caught:
        borrow_window(budget.admit("b", MIB), 12 * MIB, 64 * MIB)
    assert caught.value.code is Code.LIMIT
