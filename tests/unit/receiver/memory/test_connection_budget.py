"""What a container allows is found on any kernel's cgroups; a connection takes what of it there is."""

import itertools

import pytest

from filestreamer.wire import limits
from receiver.memory import connection_budget
from receiver.memory import process_limit as memory
from receiver.memory.budget import Account, Budget

MIB = limits.MIB
MEMINFO = "MemTotal:       16777216 kB\nMemFree: 1 kB\n"
V2_NESTED = {
    "/proc/self/cgroup": "0::/kubepods.slice/pod1/container\n",
    "/sys/fs/cgroup/kubepods.slice/pod1/container/memory.max": "max\n",
    "/sys/fs/cgroup/kubepods.slice/pod1/memory.max": "1073741824\n",
    "/sys/fs/cgroup/kubepods.slice/memory.max": "max\n",
}
V2_OWN_ROOT = {"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.max": "268435456\n"}
V2_THROTTLED = V2_OWN_ROOT | {"/sys/fs/cgroup/memory.high": "134217728\n"}
V1 = {
    "/proc/self/cgroup": "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n",
    "/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": "536870912\n",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
}
V1_IN_CONTAINER = {
    "/proc/self/cgroup": "4:memory:/docker/abc\n",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes": "536870912\n",
}
V1_ABOVE = V1 | {"/sys/fs/cgroup/memory/docker/memory.limit_in_bytes": "402653184\n"}
V1_NONE = {
    "/proc/self/cgroup": "4:memory:/\n",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
}
OUTSIDE = {"/proc/self/cgroup": "0::/../../elsewhere\n", "/sys/fs/cgroup/elsewhere/memory.max": "268435456\n"}


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        pytest.param(V2_NESTED, 1024 * MIB, id="cgroup v2, the limit is that of the pod"),
        pytest.param(V2_OWN_ROOT, 256 * MIB, id="cgroup v2, a namespace of its own"),
        pytest.param(V2_THROTTLED, 128 * MIB, id="cgroup v2, it is slowed before the limit"),
        pytest.param(V1, 512 * MIB, id="cgroup v1"),
        pytest.param(V1_IN_CONTAINER, 512 * MIB, id="cgroup v1, seen from inside"),
        pytest.param(V1_ABOVE, 384 * MIB, id="cgroup v1, the limit above is smaller"),
        pytest.param(V1_NONE, 512 * MIB, id="an absurd limit is none"),
        pytest.param({}, 512 * MIB, id="no cgroups"),
        pytest.param(OUTSIDE, 256 * MIB, id="a path that leads out of the namespace"),
        pytest.param({"/proc/self/cgroup": "nonsense\n4:memory\n0:\n"}, 512 * MIB, id="nonsense"),
    ],
)
def test_the_limit_of_the_container(files: dict[str, str], limit: int) -> None:
    assert memory.default_limit((files | {"/proc/meminfo": MEMINFO}).get) == limit


def test_the_machine_may_have_less_than_the_default() -> None:
    assert memory.default_limit({"/proc/meminfo": "MemTotal: 262144 kB\n"}.get) == 256 * MIB


def test_this_machine_has_a_limit() -> None:
    assert 0 < memory.default_limit() < 1 << 60
    reach = memory.socket_reach()
    assert 64 * limits.KIB <= reach.autotuned_bytes < 1 << 40
    assert 4096 <= reach.locked_bytes < 1 << 40


def test_the_budget_is_below_the_limit() -> None:
    assert memory.budget_bytes(512 * MIB) == 352 * MIB
    assert memory.budget_bytes(256 * MIB) == 160 * MIB
    assert memory.budget_bytes(1) == 8 * MIB
    assert memory.budget_bytes(memory.LIMIT_MIN_BYTES) == 8 * MIB


REACH = memory.SocketLimits(32 * MIB, 8 * MIB)


def take_all(
    account: Account, connections: int, reach: memory.SocketLimits = REACH
) -> list[connection_budget.ConnectionBudget | None]:
    return [connection_budget.borrow(account, reach, connection_id) for connection_id in range(connections)]


def test_seats_become_smaller_as_memory_does() -> None:
    budget = Budget(300 * MIB)
    taken = [found for found in take_all(budget.admit("a", 4 * MIB), 256) if found is not None]
    assert taken == sorted(taken, reverse=True)
    assert taken[0].receive_buffer_bytes == 0  # what a long path needs
    assert {found.receive_buffer_bytes for found in taken} == {0, 4 * MIB, MIB, connection_budget.SMALL_BUFFER_BYTES}
    assert sum(found.bytes for found in taken) == budget.used_bytes - 4 * MIB


def test_small_seats_are_left_for_the_connections_that_are_still_to_come() -> None:
    account = Budget(300 * MIB).admit("a", 4 * MIB)
    seats = [
        connection_budget.borrow(account, REACH, connection_id, 255 - connection_id) for connection_id in range(256)
    ]
    assert None not in seats
    assert not all(found.is_small for found in seats if found is not None)


def test_one_peer_leaves_small_seats_and_transfers_to_others() -> None:
    budget = Budget(300 * MIB)
    greedy = budget.admit("a", 4 * MIB)
    take_all(greedy, 16)
    assert None not in take_all(budget.admit("b", 4 * MIB), 16)
    assert None in take_all(budget.admit("a", 4 * MIB), 512)
    for number in range(6):
        budget.admit(f"peer {number}", 4 * MIB)


def test_where_buffers_cant_be_made_large_or_there_is_little_memory() -> None:
    account = Budget(20 * MIB).admit("a", 4 * MIB)
    assert {found.is_small for found in take_all(account, 8) if found is not None} == {True}
    account = Budget(300 * MIB).admit("a", 4 * MIB)
    found = take_all(account, 40, memory.SocketLimits(6 * MIB, 416 * limits.KIB))
    assert {each.receive_buffer_bytes for each in found if each is not None} == {
        0,
        connection_budget.SMALL_BUFFER_BYTES,
    }


def test_what_is_large_becomes_smaller_step_by_step() -> None:
    """Its buffer stays as it is: what the kernel may keep for it shrinks."""
    found: connection_budget.ConnectionBudget | None = next(connection_budget.seats(REACH, 0))
    assert found is not None
    steps = [found]
    while (found := connection_budget.smaller(steps[-1], REACH)) is not None:
        steps.append(found)
    assert [step.receive_buffer_bytes for step in steps] == [0, 4 * MIB, MIB, connection_budget.SMALL_BUFFER_BYTES]
    assert [(each.bytes - after.bytes) // MIB for each, after in itertools.pairwise(steps)] == [24, 6, 1]
    assert {step.payload_bytes for step in steps} == {limits.LARGE_BLOCK_BYTES}
    assert connection_budget.smaller(connection_budget.SMALL, REACH) is None
    assert connection_budget.smaller(connection_budget.SMALL._replace(bytes=0), REACH) is None
    few = connection_budget.smaller(steps[0], memory.SocketLimits(6 * MIB, 416 * limits.KIB))
    assert few is not None
    assert few.receive_buffer_bytes == connection_budget.SMALL_BUFFER_BYTES
