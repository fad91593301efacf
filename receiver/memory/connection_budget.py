"""What a connection takes of memory: its buffer, what the kernel keeps for its socket, its thread.

A data connection takes the largest seat that its transfer may borrow, and gives it back when it is closed. The first
one needs none: the smallest seat is in what was reserved for its transfer. So a transfer always gets on, and is as fast
as there is memory.

A seat of full size leaves the kernel's receive buffer to its autotuning, which a long path needs, and pays for all that
the buffer may come to. The others lock its size (SO_RCVBUF). Where a transfer was refused for want of memory, larger
ones become smaller, a step at a time.
"""

import contextlib
import socket
from collections.abc import Iterator
from typing import Final, NamedTuple

from filestreamer.wire import limits
from filestreamer.wire.sockets.memory import ARENA_BYTES
from receiver.memory.budget import Account
from receiver.memory.process_limit import SocketLimits

FRAME_AREA_BYTES: Final = 76 * limits.KIB
"""What a channel has room for beside payload: a frame, and pages."""
THREAD_BYTES: Final = 128 * limits.KIB
"""A thread: its stack as far as it was used, what the allocator keeps for it, its counters, the kernel's part."""
SEND_BUFFER_BYTES: Final = 128 * limits.KIB
"""What the kernel keeps of what is sent, at most: acknowledgements, of which a full window is a few KiB."""
SECURED_BYTES: Final = 64 * limits.KIB
"""What OpenSSL holds for a connection after its handshake."""
SMALL_PAYLOAD_BYTES: Final = 64 * limits.KIB
SMALL_BUFFER_BYTES: Final = 128 * limits.KIB
CONTROL_BUFFER_BYTES: Final = 256 * limits.KIB
LOCKED_BYTES: Final = (4 * limits.MIB, 1 * limits.MIB)
"""What SO_RCVBUF is set to in seats between the smallest and the full size."""


class ConnectionBudget(NamedTuple):
    """One size of a connection."""

    bytes: int
    """What was borrowed for it; 0 where it is in what is reserved for its transfer."""
    payload_bytes: int
    """What its buffer has room for."""
    receive_buffer_bytes: int
    """What SO_RCVBUF is set to; 0 leaves it to the kernel."""

    @property
    def is_small(self) -> bool:
        """Whether it is the smallest."""
        return self.payload_bytes == SMALL_PAYLOAD_BYTES


SMALL: Final = ConnectionBudget(
    SMALL_PAYLOAD_BYTES + FRAME_AREA_BYTES + 2 * SMALL_BUFFER_BYTES + SEND_BUFFER_BYTES + THREAD_BYTES,
    SMALL_PAYLOAD_BYTES,
    SMALL_BUFFER_BYTES,
)
CONTROL: Final = ConnectionBudget(
    FRAME_AREA_BYTES + 2 * CONTROL_BUFFER_BYTES + SEND_BUFFER_BYTES + THREAD_BYTES, 0, CONTROL_BUFFER_BYTES
)


def seats(socket_limits: SocketLimits, connection_id: int) -> Iterator[ConnectionBudget]:
    """Yield the seats that a data connection may have, the largest first.

    What can be written at once grows with the buffer. Only the first connections of a transfer have a large one: it is
    of use where much comes at once, over a few.
    """
    is_early = connection_id < limits.LARGE_BLOCK_CONNECTIONS
    payload_bytes = limits.LARGE_BLOCK_BYTES if is_early else limits.BLOCK_BYTES
    rest = ARENA_BYTES + SEND_BUFFER_BYTES + THREAD_BYTES + socket_limits.secured_bytes
    yield ConnectionBudget(rest + socket_limits.autotuned_bytes, payload_bytes, 0)
    for locked in LOCKED_BYTES:
        if 4 * SMALL_BUFFER_BYTES <= 2 * locked <= socket_limits.locked_bytes:
            yield ConnectionBudget(rest + 2 * locked, payload_bytes, locked)
    yield SMALL._replace(bytes=SMALL.bytes + socket_limits.secured_bytes)


def borrow(
    account: Account, socket_limits: SocketLimits, connection_id: int, to_come: int = 0
) -> ConnectionBudget | None:
    """Borrow the largest seat that there is room for; None where there is none.

    Of larger seats, another two fit beside each that is taken, and small ones for the connections that are still
    `to_come`; three eighths of the budget are left to others. Small seats leave a quarter.
    """
    share_bytes = account.budget.share_bytes
    small_bytes = SMALL.bytes + socket_limits.secured_bytes
    for connection_budget in seats(socket_limits, connection_id):
        leave_bytes = share_bytes * 3 // 2 + max(2 * connection_budget.bytes, to_come * small_bytes)
        if account.try_borrow(
            connection_budget.bytes, leave_bytes=share_bytes if connection_budget.is_small else leave_bytes
        ):
            return connection_budget
    return None


def smaller(connection_budget: ConnectionBudget, socket_limits: SocketLimits) -> ConnectionBudget | None:
    """Return what a seat can become while its connection goes on: one of the next smaller receive buffer."""
    kernel_bytes = 2 * connection_budget.receive_buffer_bytes or socket_limits.autotuned_bytes
    for locked in (
        *(locked for locked in LOCKED_BYTES if 2 * locked <= socket_limits.locked_bytes),
        SMALL_BUFFER_BYTES,
    ):
        if connection_budget.bytes and 2 * locked < kernel_bytes:
            return connection_budget._replace(
                bytes=connection_budget.bytes - kernel_bytes + 2 * locked, receive_buffer_bytes=locked
            )
    return None


def bound(sock: socket.socket, connection_budget: ConnectionBudget) -> None:
    """Keep what the kernel holds for a socket within its seat."""
    with contextlib.suppress(OSError):
        if connection_budget.receive_buffer_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, connection_budget.receive_buffer_bytes)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES // 2)
