"""The memory of one connection: its buffer, what the kernel keeps for its socket, its thread.

1. A data connection borrows the largest size that its transfer may have (`borrow`), and gives it back when it closes.
   The first connection borrows nothing: the smallest size is in what was reserved for its transfer. So each transfer
   always gets on, and is as fast as there is memory.
2. `limit_socket_buffers` has the kernel keep to that size.
3. Where a transfer was refused because memory is short, larger connections become smaller, one step at a time
   (`smaller`).

The full size leaves the kernel's receive buffer to autotuning, which a long path needs, and pays for the most that the
buffer may grow to. The other sizes lock the receive buffer (SO_RCVBUF).
"""

import contextlib
import socket
from collections.abc import Iterator
from typing import Final, NamedTuple

from filestreamer.wire import limits
from filestreamer.wire.sockets.memory import ARENA_BYTES
from filestreamer.wire.sockets.tls_stream import BATCH_BYTES, SMALL_BATCH_BYTES
from receiver.memory.budget import Account
from receiver.memory.process_limit import SocketLimits

FRAME_AREA_BYTES: Final = 76 * limits.KIB
"""The buffer of a channel, apart from payload: one frame, and the cost of page alignment."""
THREAD_BYTES: Final = 128 * limits.KIB
"""A thread: the used part of its stack, its part of the allocator, its counters, kernel memory."""
SEND_BUFFER_BYTES: Final = 128 * limits.KIB
"""The most that the kernel buffers for sending. Only acknowledgements are sent: a full window is a few KiB."""
SECURED_BYTES: Final = 64 * limits.KIB + 2 * SMALL_BATCH_BYTES
"""The memory of TLS for one connection: OpenSSL's own, and records that wait to be decrypted."""
SECURED_BATCH_BYTES: Final = BATCH_BYTES * 3 // 2
"""What TLS takes in addition where the buffer has room for a block: there are more such records.

OpenSSL makes a buffer a third larger than what it is for.
"""
SMALL_PAYLOAD_BYTES: Final = 64 * limits.KIB
SMALL_BUFFER_BYTES: Final = 128 * limits.KIB
MEDIUM_BYTES: Final = 256 * limits.KIB
"""Payload, and SO_RCVBUF, of the medium size: half a block, which takes no huge page.

With 64 connections over loopback, those of the smallest size take nine times as many reads and writes as two
connections do, and wait for each other at each: where all have at least the medium size, the rate is 1.2 times that.
"""
CONTROL_BUFFER_BYTES: Final = 256 * limits.KIB
PACED_SECONDS: Final = 2
LOCKED_BYTES: Final = (4 * limits.MIB, 1 * limits.MIB)
"""SO_RCVBUF for the sizes between the smallest and the full one."""


class ConnectionBudget(NamedTuple):
    """How much memory one connection may take."""

    bytes: int
    """Bytes borrowed for the connection; 0 if its transfer has reserved them."""
    payload_bytes: int
    """How much payload its buffer has room for."""
    receive_buffer_bytes: int
    """SO_RCVBUF; 0 leaves the receive buffer to autotuning."""

    @property
    def is_small(self) -> bool:
        """Whether this is the smallest size."""
        return self.payload_bytes == SMALL_PAYLOAD_BYTES


def _without_huge_pages(payload_bytes: int, receive_buffer_bytes: int, secured_bytes: int = 0) -> ConnectionBudget:
    # The kernel takes twice what SO_RCVBUF is set to (socket(7)): half of it is for its own structures.
    kernel_bytes = 2 * receive_buffer_bytes + SEND_BUFFER_BYTES
    total_bytes = payload_bytes + FRAME_AREA_BYTES + kernel_bytes + THREAD_BYTES + secured_bytes
    return ConnectionBudget(total_bytes, payload_bytes, receive_buffer_bytes)


SMALL: Final = _without_huge_pages(SMALL_PAYLOAD_BYTES, SMALL_BUFFER_BYTES)
CONTROL: Final = ConnectionBudget(
    FRAME_AREA_BYTES + 2 * CONTROL_BUFFER_BYTES + SEND_BUFFER_BYTES + THREAD_BYTES, 0, CONTROL_BUFFER_BYTES
)


def sizes(socket_limits: SocketLimits, connection_id: int) -> Iterator[ConnectionBudget]:
    """Yield the sizes that a data connection may have, the largest first."""
    # The larger the buffer, the more is written at once. Only the first connections of a transfer get a large buffer:
    # it is of use where few connections bring much each.
    is_early = connection_id < limits.LARGE_BLOCK_CONNECTIONS
    payload_bytes = limits.LARGE_BLOCK_BYTES if is_early else limits.BLOCK_BYTES
    secured_bytes = socket_limits.secured_bytes and socket_limits.secured_bytes + SECURED_BATCH_BYTES
    fixed_bytes = ARENA_BYTES + SEND_BUFFER_BYTES + THREAD_BYTES + secured_bytes
    yield ConnectionBudget(fixed_bytes + socket_limits.autotuned_bytes, payload_bytes, 0)
    for locked in LOCKED_BYTES:
        if 4 * SMALL_BUFFER_BYTES <= 2 * locked <= socket_limits.locked_bytes:
            yield ConnectionBudget(fixed_bytes + 2 * locked, payload_bytes, locked)
    yield medium(socket_limits)
    yield small(socket_limits)


def small(socket_limits: SocketLimits) -> ConnectionBudget:
    """Return the smallest size."""
    return _without_huge_pages(SMALL_PAYLOAD_BYTES, SMALL_BUFFER_BYTES, socket_limits.secured_bytes)


def medium(socket_limits: SocketLimits) -> ConnectionBudget:
    """Return the size that brings most for what it takes; the smallest, where the kernel allows no larger buffer."""
    receive_buffer_bytes = min(MEDIUM_BYTES, socket_limits.locked_bytes // 2)
    if receive_buffer_bytes <= SMALL_BUFFER_BYTES:
        return small(socket_limits)
    return _without_huge_pages(MEDIUM_BYTES, receive_buffer_bytes, socket_limits.secured_bytes)


def borrow(
    account: Account, socket_limits: SocketLimits, connection_id: int, to_come: int = 0
) -> ConnectionBudget | None:
    """Borrow the largest size that there is memory for; return None if there is not enough for the smallest.

    `to_come` is how many connections of this transfer are still to come.
    """
    # The smallest size leaves a quarter of the budget, larger ones three eighths, so that other peers find memory. In
    # addition, larger ones leave enough for the connections that are still to come. A sender that finds their number
    # by itself announces many more than it opens at first. The early ones have to fill a long path: they come before
    # those behind them, of which most may never come.
    here = list(sizes(socket_limits, connection_id))
    small_bytes, medium_bytes = small(socket_limits).bytes, medium(socket_limits).bytes
    locked_bytes = next(each.bytes for each in here if each.receive_buffer_bytes)  # as all but the full size have
    is_early = connection_id < limits.LARGE_BLOCK_CONNECTIONS
    early_to_come = min(to_come, max(0, limits.LARGE_BLOCK_CONNECTIONS - 1 - connection_id))
    for each in here:
        leave_bytes = account.budget.share_bytes * 3 // 2
        if each.is_small:
            leave_bytes = account.budget.share_bytes
        elif each.bytes <= medium_bytes:
            leave_bytes += to_come * small_bytes
        else:
            is_full = not each.receive_buffer_bytes
            early_bytes = min(locked_bytes, each.bytes) if is_full else each.bytes
            late_bytes = medium_bytes if is_full or not is_early else small_bytes
            left_bytes = early_to_come * early_bytes + (to_come - early_to_come) * late_bytes
            leave_bytes += max(2 * each.bytes, left_bytes)
        if account.try_borrow(each.bytes, leave_bytes=leave_bytes):
            return each
    return None


def smaller(connection_budget: ConnectionBudget, socket_limits: SocketLimits) -> ConnectionBudget | None:
    """Return the next smaller size that a connection can have while it goes on; None where there is none.

    Only its receive buffer becomes smaller: the buffer of its channel is in use.
    """
    kernel_bytes = 2 * connection_budget.receive_buffer_bytes or socket_limits.autotuned_bytes
    possible = [locked for locked in LOCKED_BYTES if 2 * locked <= socket_limits.locked_bytes]
    for locked in (*possible, SMALL_BUFFER_BYTES):
        if connection_budget.bytes and 2 * locked < kernel_bytes:
            smaller_bytes = connection_budget.bytes - kernel_bytes + 2 * locked
            return connection_budget._replace(bytes=smaller_bytes, receive_buffer_bytes=locked)
    return None


def limit_receive_buffer(sock: socket.socket, connection_budget: ConnectionBudget, bytes_per_second: int) -> None:
    """Have the kernel keep little more for a socket than is read of it in PACED_SECONDS at this rate.

    Else the kernel takes what this process reads only minutes later, and to the sender nothing seems to move meanwhile.
    """
    wanted = max(SMALL_BUFFER_BYTES, int(PACED_SECONDS * bytes_per_second))
    if wanted < (connection_budget.receive_buffer_bytes or max(LOCKED_BYTES)):
        with contextlib.suppress(OSError):
            _set_receive_buffer(sock, wanted)


def limit_socket_buffers(sock: socket.socket, connection_budget: ConnectionBudget) -> None:
    """Have the kernel keep no more for a socket than its connection may take."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES // 2)
        if connection_budget.receive_buffer_bytes:
            _set_receive_buffer(sock, connection_budget.receive_buffer_bytes)


def _set_receive_buffer(sock: socket.socket, receive_buffer_bytes: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    # The window is never larger than its clamp, which comes from the buffer that the connection began with. A buffer of
    # a fixed size is no longer autotuned, and with it the clamp stays what it was: about 64 KiB, which over a long path
    # is a hundredth of what the buffer has room for. With a clamp as large as the buffer, its free space is the bound.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, 2 * receive_buffer_bytes)
