"""Transfers between two containers on a network of their own, and what may happen to either.

Rates are limited so that there is time to act: what happens is tied to what the receiver has noted, never to a clock.
"""

import contextlib
import errno
import itertools
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.support import trees
from tests.support.containers import Container, Site, until
from tests.support.disks import MIB
from tests.support.services import UNIT, same

CHUNK_SIZE = 256 * 1024
SIZE = 24 * MIB + 77
CHUNKS = -(-SIZE // CHUNK_SIZE)
SLOW = ("--chunk-size", CHUNK_SIZE, "--connections", 4, "--rate-limit", "6MiB/s")
"""Four seconds for the file: time enough to act on it."""
BEGUN = CHUNKS // 8
"""Chunks that have arrived when a test acts."""


@pytest.fixture
def file(here: Site, seed: int) -> Path:
    """Return the source."""
    return here.file("big.iso", SIZE, seed)


def check_arrived(here: Site, *files: Path) -> None:
    """Assert that the files are there, identical, and nothing else is."""
    for file in files:
        assert same(file, here.destination / file.name)
    assert sorted(file.name for file in files) == here.received()


def moving(here: Site, file: Path, *args: object) -> tuple[Container, Container]:
    """Return a receiver and a sender in the middle of a transfer."""
    receiver, sender = here.receiver(*args), here.sender(file, *SLOW)
    here.staging(file.name).wait_for_records(BEGUN)
    return receiver, sender


def test_a_file_moves(here: Site, file: Path) -> None:
    """The sender starts first: nothing of that name is on the network yet."""
    sender = here.sender(file)
    receiver = here.receiver("--once")
    result = sender.succeeds()
    assert SIZE == result["sent_bytes"] == receiver.succeeds()["bytes"]
    check_arrived(here, file)


def test_both_sides_show_what_is_in_flight(here: Site, file: Path) -> None:
    """Scraped from outside while it runs: each side tells its own bytes, and they agree when it is over."""
    linger = ("--metrics-linger", int(6 * UNIT))
    receiver = here.receiver("--once", *linger)
    sender = here.sender(file, "--connections", 4, "--rate-limit", "8MiB/s", *linger)
    for container in (receiver, sender):
        container.wait_for_total("connection_bytes_in_flight", above=0, at_most=SIZE)
        assert container.total("connection_up") == 4
    assert sender.total("transfer_acknowledged_bytes") < SIZE
    for container in (receiver, sender):
        container.wait_for_total("transfers_total", above=0)
        assert container.total("connection_acknowledged_bytes_total") == SIZE
        assert container.total("connection_bytes_in_flight") == 0
        container.engine.stop()  # it waits no longer
        assert container.wait() == 0
        assert container.result["committed"]
    check_arrived(here, file)


def test_locked_down(here: Site, file: Path) -> None:
    """What every test here runs with: no root, no capability, nothing to write to but the volume."""
    receiver, sender = moving(here, file, "--once")
    for container in (receiver, sender):
        status = dict(line.split(":\t", 1) for line in container.read("/proc/1/status").splitlines())
        assert "0" not in status["Uid"].split()
        assert {"0000000000000000"} == {status[f"Cap{which}"] for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
        assert status["NoNewPrivs"] == "1"
        root, *_ = (line.split() for line in container.read("/proc/1/mounts").splitlines())
        assert root[1] == "/"
        assert "ro" in root[3].split(",")
    sender.succeeds()
    receiver.succeeds()
    check_arrived(here, file)


def test_a_kernel_without_ipv6(here: Site, file: Path) -> None:
    """What the images listen on by default, every address, is every address of IPv4 there."""
    ipv6 = {"index": 0, "value": int(socket.AF_INET6), "op": "SCMP_CMP_EQ"}
    refused = {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EAFNOSUPPORT, "args": [ipv6]}
    profile = json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [refused]})
    options: Any = {"security_opt": ["no-new-privileges", f"seccomp={profile}"]}
    receiver = here.receiver("--once", **options)
    assert receiver.wait_for("listening")["address"] == "0.0.0.0:7800"
    here.sender(file, **options).succeeds()
    receiver.succeeds()
    check_arrived(here, file)


# ------------------------------------------------------------------------------------------------------------ who may


def test_the_receiver_makes_a_token(here: Site, file: Path) -> None:
    """Given none, it prints the sender's command with one, and asks for the same one when it is started again."""
    receiver = here.receiver("--once", token=None)
    receiver.wait_for("listening")
    here.sender(file, token=None, name="stranger").fails(3, "token", status="refused")
    until(lambda: "send with:" in receiver.stderr, "no command was printed")
    (line,) = (line for line in receiver.stderr.splitlines() if line.startswith("send with:"))
    token = line.split("FILESTREAMER_TOKEN=")[1].split()[0]
    receiver.engine.restart(timeout=int(UNIT))
    here.sender(file, token=token).succeeds()
    assert receiver.wait() == 0
    assert same(file, here.destination / file.name)


def test_wrong_token(here: Site, file: Path) -> None:
    receiver = here.receiver()
    sender = here.sender(file, token="another token, as long")
    sender.fails(3, "token", status="refused")
    assert receiver.poll() is None
    assert here.received() == []


# ----------------------------------------------------------------------------------------------------- what may happen


@pytest.mark.parametrize("moved", [False, True], ids=["same address", "another address"])
def test_network_is_lost_and_found(here: Site, file: Path, moved: bool) -> None:
    """The receiver is unplugged, and plugged in again: its name leads there, and the transfer goes on."""
    receiver, sender = moving(here, file, "--once")
    address = receiver.address
    here.disconnect(receiver)
    if moved:
        here.sender(file, name="takes the address that is free")
    here.connect(receiver)
    assert moved == (receiver.address != address)
    assert here.staging(file.name).records < CHUNKS
    result = sender.succeeds()
    assert moved == (result["reconnects"] > 0)
    assert receiver.wait() == 0
    check_arrived(here, file)


def test_receiver_is_killed_and_started_again(here: Site, file: Path) -> None:
    """The sender that runs finds it, and sends only what it does not hold."""
    receiver, sender = moving(here, file, "--once")
    receiver.engine.kill()
    receiver.engine.start()
    result = sender.succeeds()
    assert result["held_bytes"] >= BEGUN * CHUNK_SIZE
    receiver.succeeds()
    check_arrived(here, file)


def test_sender_is_killed_and_run_again(here: Site, file: Path) -> None:
    receiver, sender = moving(here, file, "--once")
    sender.engine.kill()
    assert sender.wait() == 137
    result = here.sender(file, "--chunk-size", CHUNK_SIZE, name="again").succeeds()
    assert result["held_bytes"] >= BEGUN * CHUNK_SIZE
    assert result["held_bytes"] + result["sent_bytes"] == SIZE
    assert receiver.wait() == 0
    check_arrived(here, file)


def test_sender_is_paused(here: Site, file: Path) -> None:
    """Nothing is lost: the same connections go on."""
    receiver, sender = moving(here, file, "--once")
    sender.engine.pause()
    staging = here.staging(file.name)
    seen = itertools.pairwise(iter(lambda: staging.records, None))
    until(lambda: len(set(next(seen))) == 1, "what is on the way does not arrive")
    assert receiver.poll() is None
    sender.engine.unpause()
    result = sender.succeeds()
    assert (result["reconnects"], result["sent_bytes"]) == (0, SIZE)
    receiver.succeeds()
    check_arrived(here, file)


@pytest.mark.parametrize("ended", ["sender", "receiver"])
def test_stop(here: Site, file: Path, ended: str) -> None:
    """`docker stop`: exit 143 and a result that says so, long before the engine would kill; the next run resumes."""
    pair = dict(zip(("receiver", "sender"), moving(here, file), strict=True))
    pair[ended].engine.stop(timeout=int(6 * UNIT))
    assert pair[ended].wait() == 143
    assert (pair[ended].results[-1]["exit_code"], pair[ended].results[-1]["status"]) == (143, "interrupted")
    if ended == "receiver":
        pair["receiver"].engine.start()
        result = pair["sender"].succeeds()
    else:
        result = here.sender(file, "--chunk-size", CHUNK_SIZE, name="again").succeeds()
    assert result["held_bytes"] >= BEGUN * CHUNK_SIZE
    assert same(file, here.destination / file.name)


def test_stop_before_it_has_begun(here: Site) -> None:
    """A process that is PID 1 ignores what it has no handler for: it has one before it reads its settings."""
    settings = here.destination / "settings"
    os.mkfifo(settings)
    settings.chmod(0o666)
    receiver = here.receiver("--config", "settings")
    with contextlib.ExitStack() as stack:

        def is_being_read() -> bool:
            try:
                stack.callback(os.close, os.open(settings, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:  # ENXIO: nobody has opened it
                return False
            return True

        until(is_being_read, "the receiver does not read its settings")
        receiver.engine.stop(timeout=int(UNIT))
        assert receiver.wait() == 143


def test_two_senders(here: Site, file: Path, seed: int) -> None:
    """One receiver serves both at once."""
    other = here.file("other.iso", SIZE, seed + 1)
    receiver, first = moving(here, file)
    second = here.sender(other, *SLOW, name="second")
    here.staging(other.name).wait_for_records(1)
    assert first.poll() is None
    first.succeeds()
    second.succeeds()
    assert {SIZE} == {result["bytes"] for result in receiver.wait_for_results(2)}
    check_arrived(here, file, other)


def test_one_of_three_shards_is_killed_and_run_again(here: Site, file: Path) -> None:
    """The others finish their shares meanwhile; the file is there when the last one is."""

    def shard(index: int, *, name: str) -> Container:
        return here.sender(file, *SLOW, "--rate-limit", "2MiB/s", "--shard", f"{index}/3", name=name)

    receiver = here.receiver("--once")
    shards = [shard(index, name=f"shard-{index}") for index in range(3)]
    lost = shards.pop(1)
    lost.wait_for_total("connection_acknowledged_bytes_total", above=0)
    lost.engine.kill()
    assert lost.wait() == 137
    assert {(0, False)} == {(other.wait(), other.result["committed"]) for other in shards}
    assert here.received() == [".filestreamer"]
    last = shard(1, name="again").succeeds()
    assert last["held_bytes"] > 0
    assert sum(container.result["bytes"] for container in shards) + last["bytes"] == SIZE
    assert receiver.wait() == 0
    check_arrived(here, file)


def test_one_of_four_shards_of_a_tree_is_killed_and_run_again(here: Site, file: Path) -> None:
    """It is run again alone, when the others have ended and the receiver was killed, too; it says what all moved."""

    def shard(index: int, *, name: str) -> Container:
        of_tree = ("--shard", f"{index}/4", "--job", "a-tree", "--rate-limit", "2MiB/s")
        return here.sender(tree, *SLOW, *of_tree, name=name)

    tree = trees.many(here.source / "tree", 400, 3000)
    trees.sparse(tree / "holes", 5 * MIB, (3 * MIB, b"data"))
    file.rename(tree / "large")
    (tree / "large").chmod(0o644)
    receiver = here.receiver()
    shards = [shard(index, name=f"shard-{index}") for index in range(4)]
    lost = shards.pop(2)
    lost.wait_for_total("connection_acknowledged_bytes_total", above=0)
    lost.engine.kill()
    assert lost.wait() == 137
    assert {(0, False)} == {(other.wait(), other.result["committed"]) for other in shards}
    assert not (here.destination / "tree" / "large").exists()
    receiver.engine.kill()
    assert receiver.wait() == 137
    receiver.remove()
    receiver = here.receiver("--once")
    last = shard(2, name="again").succeeds()
    assert receiver.wait() == 0
    assert trees.differences(tree, here.destination / "tree") == []
    assert last["job"]["shards_finished"] == 4
    assert last["job"]["files"] == 400 + 2


# ----------------------------------------------------------------------------------------------------------- resources


def test_a_full_destination(here: Site, file: Path) -> None:
    """Both say the same with exit code 4, before the first byte; the receiver goes on serving."""
    receiver = here.receiver(memory=8 * MIB)
    sender = here.sender(file)
    message = sender.fails(4, "no_space")
    (refused,) = receiver.wait_for_results(1)
    assert refused["exit_code"] == 4
    assert refused["error"]["message"] in message
    assert receiver.poll() is None


def test_the_destination_fills_up(here: Site, file: Path) -> None:
    """What fitted when it was offered fits no more: both say so and exit with 4; with room again the rest is sent."""
    receiver = here.receiver(memory=SIZE + 8 * MIB)
    sender = here.sender(file, *SLOW)
    receiver.wait_for_total("connection_acknowledged_bytes_total", above=SIZE // 8)
    receiver.execute("import os; os.posix_fallocate(os.open('/data/ballast', os.O_CREAT | os.O_RDWR), 0, 16 << 20)")
    message = sender.fails(4, "no_space")
    (failed,) = receiver.wait_for_results(1)
    assert failed["exit_code"] == 4
    assert failed["error"]["message"] in message
    assert "No space left" in message
    receiver.execute("import os; os.unlink('/data/ballast')")
    again = here.sender(file, "--chunk-size", CHUNK_SIZE, name="again").succeeds()
    assert again["held_bytes"] > 0


def test_little_memory(here: Site) -> None:
    """A file of 16 times the memory that each side may use: what they hold does not grow with the file."""
    size = 2048 * MIB
    file = here.source / "large"
    with file.open("wb") as zeros:
        os.posix_fallocate(zeros.fileno(), 0, size)  # room that is taken is no hole: all of it is sent
    limits: Any = {"mem_limit": 128 * MIB, "memswap_limit": 128 * MIB}
    receiver = here.receiver("--once", **limits)
    assert size == here.sender(file, **limits).succeeds(seconds=12 * UNIT)["sent_bytes"]
    receiver.succeeds()
    for container in here.containers:
        assert not container.engine.attrs["State"]["OOMKilled"]
    check_arrived(here, file)
