"""What a container allows is found on any kernel's control groups."""

import pytest

from filestreamer.wire import limits
from receiver.memory import process_limit

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
    assert process_limit.default_limit((files | {"/proc/meminfo": MEMINFO}).get) == limit


def test_the_machine_may_have_less_than_the_default() -> None:
    assert process_limit.default_limit({"/proc/meminfo": "MemTotal: 262144 kB\n"}.get) == 256 * MIB


def test_this_machine_has_a_limit() -> None:
    assert 0 < process_limit.default_limit() < 1 << 60
    reach = process_limit.read_socket_limits()
    assert 64 * limits.KIB <= reach.autotuned_bytes < 1 << 40
    assert 4096 <= reach.locked_bytes < 1 << 40


def test_the_budget_is_below_the_limit() -> None:
    assert process_limit.budget_bytes(512 * MIB) == 352 * MIB
    assert process_limit.budget_bytes(256 * MIB) == 160 * MIB
    assert process_limit.budget_bytes(1) == 8 * MIB
    assert process_limit.budget_bytes(process_limit.LIMIT_MIN_BYTES) == 8 * MIB
