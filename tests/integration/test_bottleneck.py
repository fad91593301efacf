"""Where the time goes: each stage of a real pair is slowed in turn, and both ends say that it was the one."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from filestreamer.wire import limits
from tests.support import disks, services
from tests.support.certificates import Authority
from tests.support.relay import READ_BYTES, Relay
from tests.support.services import HANG, Pair, Service, impatient, inject, same
from tests.support.staging import statuses

NEEDED_BYTES = 256 * limits.MIB
BLOCKS = 12
"""Blocks that each connection moves."""
SECONDS = 0.05
"""How much longer each of them takes: far longer than anything else does, and a sync of all of it to a busy disk."""

SLOWED = ("source_read", "destination_write", "acknowledgements")
"""Bottlenecks that have one place; digests have two."""


def slowed(slow: str, seconds: float) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Return what makes a bottleneck in the sender and in the receiver."""
    ends: dict[str, tuple[Mapping[str, str], Mapping[str, str]]] = {
        "source_read": (inject("preadv", seconds, nth=0), {}),
        "destination_write": ({}, inject("pwrite", seconds, nth=0)),
        # One write notes several chunks, maybe all of a connection: it still outlasts all other waits.
        "acknowledgements": ({}, inject("write", 8 * seconds, nth=0, path="ledger")),
    }
    return ends.get(slow, ({}, {}))


Shape = tuple[int, str]
SHAPES: list[Shape] = [(1, "16KiB"), (8, "16KiB"), (1, "4MiB"), (8, "4MiB")]
"""Connections, and the chunk size."""


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Return a pair whose files are in memory: a disk that other tests use may take longer than what is slow here."""
    with disks.scratch(NEEDED_BYTES, tmp_path) as directory, services.pair(directory) as made:
        yield made


def source(pair: Pair, shape: Shape, seed: int) -> Path:
    """Return a file of BLOCKS blocks for each connection, in whole chunks."""
    connections, chunk_size = shape
    if chunk_size == "16KiB":
        return pair.file("f", connections * BLOCKS * 16 * limits.KIB, seed)
    return pair.file("f", connections * max(4 * limits.MIB, BLOCKS * limits.BLOCK_BYTES), seed)


def flags(shape: Shape) -> tuple[object, ...]:
    return "--connections", shape[0], "--chunk-size", shape[1]


def is_named(stage: str, pair: Pair, run: Callable[[float], str]) -> None:
    """Run a transfer in which each block takes so many seconds longer in this stage: that is what it is bound by.

    On a busy machine the threads may once stand still for longer, somewhere else: then the stage is slowed down more.
    """
    said = []
    for seconds in (SECONDS, 6 * SECONDS, 40 * SECONDS):
        (pair.destination / "f").unlink(missing_ok=True)
        said.append(run(seconds))
        if said[-1] == stage:
            return
    raise AssertionError(f"{stage} was slow, and they say {said}")


def verdict(sender: Service, receiver: Service) -> str:
    """Wait for both; return what both results and both log lines say that it was bound by."""
    sent = sender.succeeds()
    assert receiver.wait() == 0, receiver.stderr
    received = receiver.result
    logged = [service.wait_for("transfer_complete")["bottleneck"] for service in (sender, receiver)]
    said = {sent["bottleneck"], received["bottleneck"], *logged}
    stages = [[each["stage_seconds"] for each in result["per_connection"]] for result in (sent, received)]
    assert len(said) == 1, f"{said}: {stages}"
    if not (fits(sent) and fits(received)):
        return "a thread that stood still at the end"
    return str(said.pop())


def fits(result: dict[str, Any]) -> bool:
    """Whether no connection spent more time than there was; one may have come too late to get a chunk.

    The time in which a thread stands still counts in its stage, even where the transfer ends meanwhile.
    """
    spent = [sum(connection["stage_seconds"].values()) for connection in result["per_connection"]]
    return bool(0 < max(spent) <= result["seconds"])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("slow", SLOWED)
def test_the_slow_stage_is_named(pair: Pair, seed: int, slow: str, shape: Shape) -> None:
    # One acknowledgement is for up to half a window of small chunks: several of them take a larger file.
    is_many = slow == "acknowledgements" and shape[1] == "16KiB"
    file = pair.file("f", 32 * limits.MIB, seed) if is_many else source(pair, shape, seed)

    def run(seconds: float) -> str:
        at_sender, at_receiver = slowed(slow, seconds)
        receiver = pair.receiver("--once", env=at_receiver)
        return verdict(pair.sender(file, pair.address(receiver), *flags(shape), env=at_sender), receiver)

    is_named(slow, pair, run)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("where", ["sender", "receiver"])
def test_slow_digests_are_named_wherever_they_are_computed(pair: Pair, seed: int, where: str, shape: Shape) -> None:
    file = source(pair, shape, seed)

    def run(seconds: float) -> str:
        slow = {where: inject("digest", seconds, nth=0)}
        receiver = pair.receiver("--once", env=slow.get("receiver"))
        sender = pair.sender(file, pair.address(receiver), *flags(shape), env=slow.get("sender"))
        return verdict(sender, receiver)

    is_named("digest", pair, run)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_slow_path_is_named(pair: Pair, seed: int, shape: Shape) -> None:
    file = source(pair, shape, seed)
    reads = file.stat().st_size / shape[0] / READ_BYTES

    def run(seconds: float) -> str:
        receiver = pair.receiver("--once")
        with Relay(pair.address(receiver), delay_seconds=BLOCKS * seconds / reads) as relay:
            return verdict(pair.sender(file, relay.address, *flags(shape)), receiver)

    is_named("network", pair, run)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_rate_limit_is_named(pair: Pair, seed: int, shape: Shape) -> None:
    file = source(pair, shape, seed)

    def run(seconds: float) -> str:
        receiver = pair.receiver("--once")
        rate = round(file.stat().st_size / (BLOCKS * seconds))
        return verdict(pair.sender(file, pair.address(receiver), *flags(shape), "--rate-limit", rate), receiver)

    is_named("rate_limit", pair, run)


@pytest.mark.parametrize("slow", ["source_read", "destination_write", "network"])
def test_the_slow_stage_is_named_over_tls(pair: Pair, seed: int, tmp_path: Path, slow: str) -> None:
    authority = Authority(tmp_path, "ca")
    shown, trusted = authority.issue("receiver").shown, authority.trusted
    shape = (2, "1MiB")
    file = source(pair, shape, seed)
    reads = file.stat().st_size / shape[0] / READ_BYTES

    def run(seconds: float) -> str:
        at_sender, at_receiver = slowed(slow, seconds)
        receiver = pair.receiver("--once", *shown, env=at_receiver)
        delay_seconds = BLOCKS * seconds / reads if slow == "network" else 0.0
        with Relay(pair.address(receiver), delay_seconds=delay_seconds) as relay:
            return verdict(pair.sender(file, relay.address, *flags(shape), *trusted, env=at_sender), receiver)

    is_named(slow, pair, run)


def test_a_slow_sync_at_the_end_is_writing_at_the_destination(pair: Pair, seed: int) -> None:
    """What the page cache takes at once, the disk has to write, too."""
    file = pair.file("f", 4 * limits.MIB, seed)

    def run(seconds: float) -> str:
        receiver = pair.receiver("--once", env=inject("fsync", BLOCKS * seconds, nth=0))
        return verdict(pair.sender(file, pair.address(receiver)), receiver)

    is_named("destination_write", pair, run)


def test_the_time_that_was_added_is_all_in_its_stage(pair: Pair, seed: int) -> None:
    """The stages of a connection add up to its life: what took long is in one of them, and in no other."""
    shape = (2, "512KiB")
    file = pair.file("f", 2 * BLOCKS * limits.BLOCK_BYTES, seed)

    def run(seconds: float) -> str:
        receiver = pair.receiver("--once", env=inject("pwrite", seconds, nth=0))
        sent = pair.sender(file, pair.address(receiver), *flags(shape), "--strict-modulo").succeeds()
        assert receiver.wait() == 0
        received = receiver.result

        for connection in received["per_connection"]:
            assert connection["stage_seconds"]["write"] >= BLOCKS * seconds
        waited = [each["stage_seconds"]["send"] + each["stage_seconds"]["wait_ack"] for each in sent["per_connection"]]
        # The sender waits for all of it, but for what it has to do meanwhile, or for how long it stands still.
        return "write" if fits(received) and min(waited) >= (BLOCKS - 2) * seconds else f"the sender waited {waited} s"

    is_named("write", pair, run)


def test_a_resumed_transfer_has_a_verdict_of_its_own(pair: Pair, seed: int) -> None:
    """What the first run was bound by is forgotten, and comparing what is there is no work of a connection."""
    shape = (4, "64KiB")
    file = pair.file("f", 128 * 64 * limits.KIB, seed)
    receiver = pair.receiver()
    address = pair.address(receiver)
    first = pair.sender(file, address, *flags(shape), "--rate-limit", "2MiB/s")
    wait_for_acknowledged(pair, limits.MIB)
    first.signal(signal.SIGTERM)
    assert first.wait() == 143
    receiver.wait_for_results(1)
    second = pair.sender(file, address, *flags(shape), env=inject("preadv", SECONDS, nth=0)).succeeds()

    assert second["held_bytes"] >= limits.MIB
    assert second["bottleneck"] == receiver.wait_for_results(2)[1]["bottleneck"] == "source_read"
    assert same(file, pair.destination / "f")


def test_nothing_left_to_send_is_bound_by_nothing(pair: Pair, seed: int) -> None:
    """All of it is there and is only compared: no connection moves anything."""
    file = pair.file("f", 2 * limits.MIB, seed)
    crashing = pair.receiver(env=inject("fsync", "before"))
    crashed = pair.sender(file, pair.address(crashing))
    assert crashing.wait() == 137
    crashed.signal(signal.SIGTERM)
    assert crashed.wait() == 143
    receiver = pair.receiver("--once")
    sent = pair.sender(file, pair.address(receiver)).succeeds()
    assert receiver.wait() == 0

    assert sent["held_bytes"] == file.stat().st_size
    assert sent["bottleneck"] is None
    assert receiver.result["bottleneck"] is None


def wait_for_acknowledged(pair: Pair, at_least: int) -> None:
    """Wait until the ledger has records of so many bytes, in chunks of 64 KiB."""
    records = at_least // (64 * limits.KIB)
    end = time.monotonic() + HANG
    while not any(
        each.st_size >= 32 * (records + 2) for each in statuses(pair.destination / ".filestreamer", "*.ledger")
    ):
        assert time.monotonic() < end, "nothing was acknowledged"
        time.sleep(0.01)


# ---------------------------------------------------------------------------------------------------------- the killed


def test_a_sender_that_is_ended_tells_its_stages_before(pair: Pair, seed: int) -> None:
    """In the middle of its only chunk: what it was doing is known all the same."""
    file = pair.file("f", 16 * limits.MIB, seed)
    receiver = pair.receiver()
    slow = inject("preadv", SECONDS, nth=0)
    sender = pair.sender(file, pair.address(receiver), "--connections", 1, "--chunk-size", "16MiB", env=slow)
    wait_for_staged_bytes(pair, BLOCKS * limits.BLOCK_BYTES)
    sender.signal(signal.SIGTERM)

    assert sender.wait() == 143
    (received,) = receiver.wait_for_results()
    assert (received["status"], received["chunks"], received["bottleneck"]) == ("failed", 1, "source_read")
    assert fits(received)
    assert receiver.wait_for("transfer_failed")["bottleneck"] == "source_read"


def test_heartbeats_tell_the_stages(pair: Pair, seed: int) -> None:
    """Who is left without a word knows what the other end was busy with a few seconds ago."""
    file = pair.file("f", 16 * limits.MIB, seed)
    receiver = pair.receiver()
    sender = pair.sender(file, pair.address(receiver), "--rate-limit", "1MiB/s")
    started_at = time.monotonic()
    wait_for_staged_bytes(pair, 2 * limits.HEARTBEAT_SECONDS * limits.MIB)
    assert time.monotonic() > started_at + limits.HEARTBEAT_SECONDS, "the rate limit is none"
    sender.signal(signal.SIGTERM)

    assert sender.wait() == 143
    assert sender.result["bottleneck"] == "rate_limit"
    assert receiver.wait_for_results()[0]["bottleneck"] == "rate_limit"


def test_a_peer_that_said_nothing_leaves_no_verdict(pair: Pair, seed: int) -> None:
    file = pair.file("f", 64 * limits.MIB, seed)
    receiver = pair.receiver("--give-up-after", 1)
    says_nothing = impatient("sender", {"filestreamer.wire.limits.HEARTBEAT_SECONDS": 1000})
    sender = pair.start("sender", file, "--to", pair.address(receiver), "--rate-limit", "1MiB/s", **says_nothing)
    receiver.wait_for("transfer_started")
    sender.signal(signal.SIGKILL)
    sender.wait()

    (received,) = receiver.wait_for_results()
    assert (received["status"], received["bottleneck"]) == ("failed", None)
    assert receiver.events("transfer_failed")[0]["bottleneck"] is None


def wait_for_staged_bytes(pair: Pair, at_least: float) -> None:
    """Wait until so much is in the staged file, which has its full size from the beginning."""
    end = time.monotonic() + HANG
    while not any(each.st_blocks * 512 >= at_least for each in statuses(pair.destination / ".filestreamer", "*.data")):
        assert time.monotonic() < end, "nothing was written"
        time.sleep(0.01)
