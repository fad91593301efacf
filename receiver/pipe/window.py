"""The window of a pipe: how many bytes the sender may be ahead of the writer, and the memory for them."""

from typing import Final

from filestreamer.settings.sizes import format_size
from filestreamer.wire.errors import Code, TransferFailed
from receiver.memory.budget import Account

SLOTS_MOST: Final = 4096
"""Chunks that a window has room for, however small they are."""
SLOTS_LEAST: Final = 2
"""With a window of so many chunks, one chunk can be written while the next one is received."""
SLOT_BYTES: Final = 1024
"""The memory of a chunk of the window, apart from its bytes: its state, its connections, its digest."""


def count_slots(window_bytes: int, chunk_size: int) -> int:
    """Return how many chunks a window of so many bytes has room for."""
    return min(SLOTS_MOST, window_bytes // chunk_size)


def borrow_window(account: Account, chunk_size: int, most_bytes: int) -> tuple[int, int]:
    """Borrow memory for a window of at most `most_bytes`; return the bytes of the window, and the memory that it takes.

    A window has room for whole chunks. Raises TransferFailed: POLICY where it has no room for one chunk, TOO_LARGE
    where the budget never has room for one, LIMIT where the budget has none now.
    """
    check_window(chunk_size, most_bytes)
    cost_bytes = chunk_size + SLOT_BYTES
    account.check(cost_bytes)
    slots = count_slots(most_bytes, chunk_size)
    while slots:
        # Ten pipes must not take ten whole windows: a window larger than the least leaves twice its size, and a quarter
        # of the budget, to other transfers. If that is not possible, try half of it.
        leave_bytes = 2 * slots * cost_bytes + account.budget.share_bytes if slots > SLOTS_LEAST else 0
        if account.try_borrow(slots * cost_bytes, leave_bytes=leave_bytes):
            return slots * chunk_size, slots * cost_bytes
        slots //= 2
    raise TransferFailed(Code.LIMIT, "this receiver has no memory left for the window of another pipe: try again later")


def check_window(chunk_size: int, window_bytes: int) -> None:
    """Raise TransferFailed(POLICY) where the window has no room for one chunk."""
    if chunk_size > window_bytes:
        raise TransferFailed(
            Code.POLICY,
            f"chunks of {format_size(chunk_size)} don't fit into this receiver's window of {format_size(window_bytes)}:"
            " use a smaller --chunk-size there, or a larger --window here",
        )
