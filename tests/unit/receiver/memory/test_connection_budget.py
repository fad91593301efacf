"""A connection takes as much memory as there is, leaves some to others, and becomes smaller where memory is short."""

import itertools
import socket

import pytest

from filestreamer.wire import limits
from receiver.memory import connection_budget, process_limit
from receiver.memory.budget import Account, Budget

MIB = limits.MIB
LIMITS = process_limit.SocketLimits(32 * MIB, 8 * MIB)


def take_all(
    account: Account, connections: int, socket_limits: process_limit.SocketLimits = LIMITS
) -> list[connection_budget.ConnectionBudget | None]:
    return [connection_budget.borrow(account, socket_limits, connection_id) for connection_id in range(connections)]


def test_sizes_become_smaller_as_memory_does() -> None:
    budget = Budget(300 * MIB)
    taken = [found for found in take_all(budget.admit("a", 4 * MIB), 256) if found is not None]
    assert taken == sorted(taken, reverse=True)
    assert taken[0].receive_buffer_bytes == 0  # what a long path needs
    assert {found.receive_buffer_bytes for found in taken} == {
        0,
        4 * MIB,
        MIB,
        connection_budget.MEDIUM_BYTES,
        connection_budget.SMALL_BUFFER_BYTES,
    }
    assert sum(found.bytes for found in taken) == budget.used_bytes - 4 * MIB


def test_small_sizes_are_left_for_the_connections_that_are_still_to_come() -> None:
    account = Budget(300 * MIB).admit("a", 4 * MIB)
    found = [
        connection_budget.borrow(account, LIMITS, connection_id, 255 - connection_id) for connection_id in range(256)
    ]
    assert None not in found
    assert not all(each.is_small for each in found if each is not None)


@pytest.mark.parametrize("autotuned_mib", [6, 32])
@pytest.mark.parametrize("rmem_max_kib", [208, 4096])
def test_none_of_64_connections_is_small(rmem_max_kib: int, autotuned_mib: int) -> None:
    """With the limit that a receiver has by default, and what kernels allow by default or where they are tuned."""
    budget_bytes = process_limit.budget_bytes(process_limit.DEFAULT_BYTES)
    account = Budget(budget_bytes * 7 // 8).admit("a", 4 * MIB)  # the rest is for connections in their opening
    socket_limits = process_limit.SocketLimits(autotuned_mib * MIB, 2 * rmem_max_kib * limits.KIB)
    found = [connection_budget.borrow(account, socket_limits, number, 63 - number) for number in range(64)]
    assert not any(each is None or each.is_small for each in found)
    assert found[0] is not None
    assert found[0].receive_buffer_bytes == 0  # what a long path needs


@pytest.mark.parametrize("limit_mib", [384, 512, 1024])
def test_the_first_connections_of_64_can_fill_a_long_path(limit_mib: int) -> None:
    """A sender that finds their number by itself announces 64, and begins with eight where a round-trip takes long."""
    budget_bytes = process_limit.budget_bytes(limit_mib * MIB)
    account = Budget(budget_bytes * 7 // 8).admit("a", 4 * MIB)
    found = [connection_budget.borrow(account, LIMITS, number, 63 - number) for number in range(8)]
    assert all(each is not None and each.receive_buffer_bytes in (0, 4 * MIB) for each in found)


def test_the_first_connections_of_64_share_what_little_memory_there_is() -> None:
    account = Budget(process_limit.budget_bytes(192 * MIB) * 7 // 8).admit("a", 4 * MIB)
    found = [connection_budget.borrow(account, LIMITS, number, 63 - number) for number in range(64)]
    assert None not in found
    assert not any(each is None or each.is_small for each in found[:8])


def test_one_peer_leaves_small_sizes_and_transfers_to_others() -> None:
    budget = Budget(300 * MIB)
    greedy = budget.admit("a", 4 * MIB)
    take_all(greedy, 16)
    assert None not in take_all(budget.admit("b", 4 * MIB), 16)
    assert None in take_all(budget.admit("a", 4 * MIB), 512)
    for number in range(6):
        budget.admit(f"peer {number}", 4 * MIB)


def test_where_buffers_cant_be_made_large_or_there_is_little_memory() -> None:
    account = Budget(20 * MIB).admit("a", 4 * MIB)
    payloads = {found.payload_bytes for found in take_all(account, 8) if found is not None}
    assert payloads == {connection_budget.MEDIUM_BYTES, connection_budget.SMALL_PAYLOAD_BYTES}
    account = Budget(300 * MIB).admit("a", 4 * MIB)
    found = take_all(account, 40, process_limit.SocketLimits(6 * MIB, 416 * limits.KIB))
    assert {each.receive_buffer_bytes for each in found if each is not None} == {
        0,
        208 * limits.KIB,
        connection_budget.SMALL_BUFFER_BYTES,
    }
    account = Budget(300 * MIB).admit("a", 4 * MIB)
    found = take_all(account, 40, process_limit.SocketLimits(6 * MIB, 128 * limits.KIB))
    assert {each.receive_buffer_bytes for each in found if each is not None} == {
        0,
        connection_budget.SMALL_BUFFER_BYTES,
    }


def test_what_is_large_becomes_smaller_step_by_step() -> None:
    """Its buffer stays as it is: what the kernel may keep for it shrinks."""
    found: connection_budget.ConnectionBudget | None = next(connection_budget.sizes(LIMITS, 0))
    assert found is not None
    steps = [found]
    while (found := connection_budget.smaller(steps[-1], LIMITS)) is not None:
        steps.append(found)
    assert [step.receive_buffer_bytes for step in steps] == [0, 4 * MIB, MIB, connection_budget.SMALL_BUFFER_BYTES]
    assert [(each.bytes - after.bytes) // MIB for each, after in itertools.pairwise(steps)] == [24, 6, 1]
    assert {step.payload_bytes for step in steps} == {limits.LARGE_BLOCK_BYTES}
    assert connection_budget.smaller(connection_budget.SMALL, LIMITS) is None
    assert connection_budget.smaller(connection_budget.SMALL._replace(bytes=0), LIMITS) is None
    few = connection_budget.smaller(steps[0], process_limit.SocketLimits(6 * MIB, 416 * limits.KIB))
    assert few is not None
    assert few.receive_buffer_bytes == connection_budget.SMALL_BUFFER_BYTES


@pytest.mark.parametrize("receive_buffer_bytes", [4 * MIB, MIB, connection_budget.SMALL_BUFFER_BYTES])
def test_the_window_grows_to_what_the_receive_buffer_has_room_for(receive_buffer_bytes: int) -> None:
    """Also where data came before the buffer had its size: the window kept the clamp of the first buffer."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as far,
        server.accept()[0] as near,
    ):
        far.sendall(bytes(4096))
        assert near.recv(4096, socket.MSG_WAITALL) == bytes(4096)
        found = next(connection_budget.sizes(LIMITS, 0))._replace(receive_buffer_bytes=receive_buffer_bytes)
        connection_budget.limit_socket_buffers(near, found)
        buffer_bytes = near.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert buffer_bytes >= min(2 * receive_buffer_bytes, 256 * limits.KIB)  # rmem_max may allow no more
        assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP) >= buffer_bytes

        connection_budget.limit_receive_buffer(near, found, 1)
        buffer_bytes = near.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert buffer_bytes == 2 * connection_budget.SMALL_BUFFER_BYTES
        assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP) == buffer_bytes
