"""Shards on a receiver that crashes at any step, or on a disk that fails: whoever exited 0 need not come again."""

import signal
import time
from pathlib import Path

import pytest

from tests.support.services import HANG, Pair, Service, inject, same

COUNT = 3
CHUNK_SIZE = 16 * 1024
SIZE = 31 * CHUNK_SIZE + 5

STEPS = [
    # Each share: sync the bytes; ledger, staging and destination after its seal is written. Then the commit.
    *[("fsync", how, nth) for nth in (1, 2, 4, 5, 9, 10, 12) for how in ("before", "after")],
    ("fsync", "before", 13),
    ("ftruncate", "before", 3),
    ("rename", "before", 1),
    ("rename", "after", 1),
    ("fsync", "after", 14),
    ("unlink", "after", 1),
]


@pytest.fixture
def file(pair: Pair, seed: int) -> Path:
    return pair.file("f", SIZE, seed)


def shard(pair: Pair, file: Path, to: str, index: int, *args: object) -> Service:
    return pair.sender(file, to, "--shard", f"{index}/{COUNT}", "--chunk-size", CHUNK_SIZE, "--connections", 2, *args)


def check_arrived(pair: Pair, file: Path) -> None:
    assert same(file, pair.destination / "f")
    assert pair.received() == ["f"]


@pytest.mark.parametrize("dies", [False, True], ids=["sender-goes-on", "sender-dies"])
@pytest.mark.parametrize("step", range(len(STEPS)), ids=["-".join(map(str, step)) for step in STEPS])
def test_the_receiver_crashes(pair: Pair, file: Path, step: int, *, dies: bool) -> None:
    """One shard after the other; the one that met the crash goes on, or dies with it and is run again.

    Those that had exited 0 before are not run again, and nothing but the whole file is ever under the final name.
    """
    call, how, nth = STEPS[step]
    receiver = pair.receiver(env=inject(call, how, nth=nth))
    address = pair.address(receiver)
    has_crashed, served = False, 0
    for index in range(COUNT):
        sender = shard(pair, file, address, index)
        if not has_crashed and wait_for_either(sender, receiver) is receiver:
            has_crashed = True
            assert receiver.wait() == 137
            if dies:
                sender.signal(signal.SIGKILL)
                sender.wait()
            receiver, served = pair.receiver(listen=address), 0
            receiver.wait_for("listening")
            if dies:
                sender = shard(pair, file, address, index)
        assert sender.wait() == 0, sender.stderr
        served += 1
        receiver.wait_for_results(served)  # the next shard opens the file anew
        assert sender.result["committed"] is (index == COUNT - 1)
        assert (pair.destination / "f").exists() is (index == COUNT - 1)
    assert has_crashed, "the step was never reached"
    check_arrived(pair, file)


def wait_for_either(sender: Service, receiver: Service) -> Service:
    """Wait until one of them ends. The sender can't while the receiver has a step to crash at before its last word."""
    end = time.monotonic() + HANG
    while time.monotonic() < end:
        if sender.process.poll() is not None:
            return sender
        if receiver.process.poll() is not None:
            return receiver
        time.sleep(0.01)
    raise AssertionError(f"both still run:\n{sender.stderr}")


@pytest.mark.parametrize("call", ["pwrite", "write"])
def test_a_full_disk_ends_one_shard(pair: Pair, file: Path, call: str) -> None:
    """The one that meets it exits 4; its siblings go on, and it is run again when there is space."""
    receiver = pair.receiver(env=inject(call, "ENOSPC", nth=2, path={"pwrite": "data", "write": "ledger"}[call]))
    address = pair.address(receiver)
    slow = ("--rate-limit", "64KiB/s")
    senders = {index: shard(pair, file, address, index, *slow) for index in (0, 1)}
    codes = {index: sender.wait() for index, sender in senders.items()}
    assert sorted(codes.values()) == [0, 4]
    for index, code in codes.items():
        if code == 4:
            senders[index].fails(4, "no_space")
            assert shard(pair, file, address, index).wait() == 0
    assert shard(pair, file, address, 2).wait() == 0
    check_arrived(pair, file)


def test_a_sync_that_fails_ends_all(pair: Pair, file: Path) -> None:
    """What the kernel dropped belongs to any of them: the staging is discarded, and all shards are run again."""
    receiver = pair.receiver(env=inject("fsync", "EIO"))
    address = pair.address(receiver)
    waits = shard(pair, file, address, 1, "--rate-limit", "16KiB/s")
    waits.wait_for("connected")
    receiver.wait_for("transfer_started")
    shard(pair, file, address, 0).fails(4, "destination")
    waits.fails(4, "destination")
    receiver.wait_for("transfer_failed", count=2)  # a sender is told first, and then the staging is discarded
    assert pair.received() == []
    for index in range(COUNT):
        sender = shard(pair, file, address, index)
        assert sender.wait() == 0
        assert sender.result["held_bytes"] == 0
    check_arrived(pair, file)
