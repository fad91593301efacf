"""The matrix of events: something fails in the middle of a transfer, and it recovers, or ends as it should.

Where it can recover, it does so by itself: exit 0, the file identical. Where it can't, there is one clear line, the
exit code of the cause, nothing under the final name, and the same command completes once the cause is gone. Nothing
takes longer than the give-up time and END_SECONDS.
"""

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from receiver.file.shared_file import WRITE_BACK_BYTES
from tests.support.disks import MIB, disk, fill
from tests.support.proxy import (
    OPENED_BYTES,
    Blackhole,
    Cut,
    Delay,
    Fault,
    FlipFrame,
    FlipPayload,
    HalfOpen,
    Proxy,
    Reset,
    SlowReader,
    Stall,
    Truncate,
)
from tests.support.services import HANG, UNIT, Pair, Service, held_port, impatient, same
from tests.support.staging import Staging

SIZE = 12 * MIB
CHUNK_SIZE = 128 * 1024
CHUNKS = SIZE // CHUNK_SIZE
STEADY = ("--connections", 4, "--chunk-size", CHUNK_SIZE, "--rate-limit", "8MiB/s")
"""One second and a half for a file of SIZE: time for something to happen in the middle."""
END_SECONDS = 15.0
"""What an end may take beyond --give-up-after."""
PATIENT = 8.0
"""A --give-up-after that a busy machine does not use up before what the test is about has happened."""
SOME = CHUNKS // 4


def check_arrived(pair: Pair, file: Path) -> None:
    """Assert that the file is there, identical, and nothing else is."""
    assert same(file, pair.destination / file.name)
    assert [file.name] == pair.received()


def staging(pair: Pair, file: Path) -> Staging:
    """Return where the receiver keeps the file until it is complete."""
    return Staging(pair.destination, file.name)


def check_nothing_arrived(pair: Pair) -> None:
    """Assert that nothing stands under a final name."""
    assert pair.received() in ([], [".filestreamer"])


def kill(service: Service) -> None:
    """End a service as a crash would, and wait until it is gone."""
    service.signal(signal.SIGKILL)
    assert service.wait() == 137


def no_accident(*running: Service) -> None:
    """Assert that no service met a bug of its own."""
    for service in running:
        assert "Traceback" not in service.stderr
        assert "a bug" not in service.stderr


# -------------------------------------------------------------------------------------------------------------- killed


@pytest.mark.parametrize("kills", [1, 3])
def test_receiver_is_killed_and_started_again(pair: Pair, seed: int, kills: int) -> None:
    """The sender that is running finds it again, and sends what is not there."""
    file = pair.file("f", SIZE, seed)
    receiver = pair.receiver()
    address = pair.address(receiver)
    sender = pair.sender(file, address, *STEADY)
    for count in range(1, kills + 1):
        staging(pair, file).wait_for_records(CHUNKS * count // (kills + 1))
        kill(receiver)
        receiver = pair.receiver(listen=address)
        sender.wait_for("receiver_restarted", count=count)
    result = sender.succeeds()
    check_arrived(pair, file)
    assert result["held_bytes"] > 0
    assert result["sent_bytes"] < SIZE + kills * 4 * MIB
    receiver.wait_for("transfer_complete")
    no_accident(sender, receiver)


def test_sender_is_killed_and_run_again(pair: Pair, seed: int) -> None:
    """The second run sends what is missing, and nothing else."""
    file = pair.file("f", SIZE, seed)
    receiver = pair.receiver()
    address = pair.address(receiver)
    sender = pair.sender(file, address, *STEADY)
    staging(pair, file).wait_for_records(SOME)
    kill(sender)
    check_nothing_arrived(pair)
    result = pair.sender(file, address, *STEADY).succeeds()
    check_arrived(pair, file)
    assert result["held_bytes"] >= SOME * CHUNK_SIZE
    assert result["held_bytes"] + result["sent_bytes"] == SIZE
    no_accident(receiver)


def test_both_are_killed_and_run_again(pair: Pair, seed: int) -> None:
    file = pair.file("f", SIZE, seed)
    for _ in range(3):
        receiver = pair.receiver()
        sender = pair.sender(file, pair.address(receiver), *STEADY)
        before = staging(pair, file).records
        staging(pair, file).wait_for_records(before + CHUNKS // 5)
        kill(receiver)
        kill(sender)
    receiver = pair.receiver("--once")
    result = pair.sender(file, pair.address(receiver), *STEADY).succeeds()
    assert receiver.wait() == 0
    check_arrived(pair, file)
    assert result["held_bytes"] >= CHUNKS * 3 // 5 * CHUNK_SIZE
    assert result["held_bytes"] + result["sent_bytes"] == SIZE


def test_receiver_starts_long_after_the_sender(pair: Pair, seed: int) -> None:
    file = pair.file("f", MIB, seed)
    with held_port() as port, Proxy(f"127.0.0.1:{port}") as proxy:
        sender = pair.sender(file, proxy.address)
        proxy.wait_until(lambda: proxy.refused >= 6, "trying again")
        receiver = pair.receiver("--once", listen=f"127.0.0.1:{port}")
        sender.succeeds()
        assert receiver.wait() == 0
    check_arrived(pair, file)


def test_nobody_ever_listens(pair: Pair) -> None:
    """It ends when it gives up, and says where it found nobody."""
    file = pair.file("f", 1000)
    with held_port() as port:
        message = pair.sender(file, f"127.0.0.1:{port}", "--give-up-after", 2).fails(
            1, "timeout", seconds=2 + END_SECONDS + UNIT
        )
    assert f"127.0.0.1:{port}" in message


# --------------------------------------------------------------------------------------------------------- connections


def moved_through(pair: Pair, file: Path, plan: Sequence[Fault], *settings: object) -> dict[str, Any]:
    """Send a file through a proxy with faults that a sender recovers from; each of them strikes. Return the result."""
    receiver = pair.receiver()
    with Proxy(pair.address(receiver), plan) as proxy:
        sender = pair.sender(file, proxy.address, *(settings or STEADY))
        result = sender.succeeds(45)
        missed = [fault for fault in plan if fault not in proxy.struck]
    assert not missed, f"these did not happen: {missed}"
    check_arrived(pair, file)
    no_accident(sender, receiver)
    return result


@pytest.mark.parametrize("fault", [Reset, Cut], ids=["reset", "cut"])
def test_a_data_connection_ends(pair: Pair, seed: int, fault: type[Fault]) -> None:
    file = pair.file("f", SIZE, seed)
    result = moved_through(pair, file, [fault(on="data 1", at=MIB + 100)])
    assert result["reconnects"] >= 1
    assert result["sent_bytes"] < SIZE + 4 * MIB


def test_others_take_over_from_a_connection_that_never_lasts(pair: Pair, seed: int) -> None:
    """Each time that data 1 is opened, it is reset inside its first chunk; the others send what was its own."""
    file = pair.file("f", SIZE, seed)
    result = moved_through(pair, file, [Reset(on="data 1", at=CHUNK_SIZE // 2, nth=None)])
    by_id = {each["connection_id"]: each for each in result["per_connection"]}
    assert by_id[1]["bytes"] == 0
    assert by_id[1]["reconnects"] >= 2
    assert result["stolen_chunks"] >= CHUNKS // 4 - 1


def test_every_data_connection_is_reset_again_and_again(pair: Pair, seed: int) -> None:
    file = pair.file("f", SIZE, seed)
    result = moved_through(pair, file, [Reset(on="data *", at=MIB, nth=None)])
    assert result["reconnects"] >= 4


def test_connections_that_end_before_a_window_is_answered(pair: Pair, seed: int) -> None:
    """A firewall ends each after so many bytes: more than a chunk, and fewer than are sent until the first answer."""
    file = pair.file("f", 2 * MIB, seed)
    receiver = pair.receiver("--anonymous")
    plan = [
        Reset(on="data *", at=3 * CHUNK_SIZE, nth=None),
        Stall(on="data *", direction="down", at=OPENED_BYTES, seconds=0.3, nth=None),
    ]
    with Proxy(pair.address(receiver), plan) as proxy:
        flags = ("--connections", 2, "--chunk-size", CHUNK_SIZE, "--give-up-after", HANG)
        pair.sender(file, proxy.address, *flags).succeeds()
    check_arrived(pair, file)


def test_a_chunk_of_a_connection_that_never_lasts_is_passed_on_in_order(pair: Pair, seed: int) -> None:
    """An output takes that chunk first, and answers no other one before: the other connection has room for both."""
    file = pair.file("f", 2 * MIB, seed)
    plan = [Reset(on="data 0", at=CHUNK_SIZE // 2, nth=None), Reset(on="data 1", at=3 * CHUNK_SIZE // 2)]
    with (pair.destination / file.name).open("wb") as output:
        to = ("--listen", f"127.0.0.1:{pair.port()}", "--output-file", "-")
        receiver = pair.start("receiver", "--once", "--anonymous", *to, stdout=output)
        with Proxy(pair.address(receiver), plan) as proxy:
            flags = ("--connections", 2, "--chunk-size", CHUNK_SIZE, "--give-up-after", HANG)
            pair.sender(file, proxy.address, *flags).succeeds()
        assert receiver.wait() == 0
    check_arrived(pair, file)


@pytest.mark.slow
def test_connections_that_end_before_a_chunk_is_over(pair: Pair, seed: int) -> None:
    """They take none of it. The error says what does, a smaller chunk size, and with that it gets through."""
    file = pair.file("f", 3 * MIB, seed)
    receiver = pair.receiver()
    with Proxy(pair.address(receiver), [Reset(on="data *", at=600 * 1024, nth=None)]) as proxy:
        error = pair.sender(file, proxy.address, "--give-up-after", PATIENT).fails(1, "timeout")
        cause, _, chunk_size = error.rpartition(" with a smaller one, such as --chunk-size ")
        assert "no connection lasted for a chunk" in cause
        pair.sender(file, proxy.address, "--chunk-size", chunk_size).succeeds()
    check_arrived(pair, file)


def test_a_data_connection_is_half_open(pair: Pair, seed: int) -> None:
    file = pair.file("f", SIZE, seed)
    plan = [HalfOpen(on="data 0", at=MIB), HalfOpen(on="data 2", direction="down", at=OPENED_BYTES + 54)]
    assert moved_through(pair, file, plan)["reconnects"] >= 2


def test_what_a_connection_carried_last_is_lost(pair: Pair, seed: int) -> None:
    """The sender's kernel says that it was taken, and it never arrives; acknowledgements likewise."""
    file = pair.file("f", SIZE, seed)
    plan = [
        Truncate(on="data 0", at=MIB, lost=300_000),
        Truncate(on="data 1", direction="down", at=OPENED_BYTES + 54, lost=50),
    ]
    assert moved_through(pair, file, plan)["reconnects"] >= 2


@pytest.mark.parametrize("way", ["chunks", "runs", "tree", "output"])
def test_what_comes_again_is_counted_once(pair: Pair, seed: int, way: str) -> None:
    """Acknowledgements are lost with their connection, so chunks are sent again, and the receiver has them already."""
    source, size = pair.file("f", SIZE, seed), SIZE
    if way == "tree":
        for number in range(100):
            pair.file(f"small-{number}", 20_000 + number, seed)
        source, size = pair.source, size + sum(20_000 + number for number in range(100))
    plan = [
        Cut(on="data 0", at=SIZE // 8),
        Stall(on="data 0", direction="down", at=OPENED_BYTES, seconds=HANG),
    ]
    flags = ("--connections", 1, "--chunk-size", "16KiB" if way == "runs" else CHUNK_SIZE)
    with (pair.logs / "output").open("wb") as output:
        if way == "output":
            to = ("--listen", f"127.0.0.1:{pair.port()}", "--output-file", "-")
            receiver = pair.start("receiver", "--once", "--anonymous", *to, stdout=output)
        else:
            receiver = pair.receiver("--once", "--anonymous")
        with Proxy(pair.address(receiver), plan) as proxy:
            sent = pair.sender(source, proxy.address, *flags).succeeds()
        assert receiver.wait() == 0
    assert sent["resent_chunks"] > 0
    each = receiver.result["per_connection"]
    assert (sum(one["bytes"] for one in each), sum(one["chunks"] for one in each)) == (size, sent["chunks"])


def test_connections_are_late_slow_and_stall(pair: Pair, seed: int) -> None:
    """None of that is a failure."""
    file = pair.file("f", SIZE, seed)
    plan = [
        Delay(on="data 0", seconds=2.0),
        Stall(on="data 1", at=MIB, seconds=2.0),
        SlowReader(on="data 2", at=1000, bytes_per_read=1000, pause_seconds=0.002, span=400_000),
        Stall(on="control", direction="down", at=OPENED_BYTES + 30, seconds=1.0),
    ]
    result = moved_through(pair, file, plan)
    assert (result["reconnects"], result["sent_bytes"]) == (0, SIZE)


def test_control_alone_is_lost(pair: Pair, seed: int) -> None:
    """Data goes on while control is away; then all ends well, without one data connection lost."""
    file = pair.file("f", SIZE, seed)
    receiver = pair.receiver()
    plan = [Delay(on="control", nth=1, seconds=1.5)]
    with Proxy(pair.address(receiver), plan) as proxy:
        sender = pair.sender(file, proxy.address, *STEADY)
        staging(pair, file).wait_for_records(SOME // 2)
        proxy.reset("control")
        sender.wait_for("control_lost")
        before = staging(pair, file).records
        staging(pair, file).wait_for_records(before + 10)
        assert len(sender.events("connected")) == 1, "control was back before data was seen to move"
        result = sender.succeeds()
    check_arrived(pair, file)
    assert len(sender.events("connected")) == 2
    assert (result["reconnects"], result["sent_bytes"]) == (0, SIZE)
    no_accident(sender, receiver)


@pytest.mark.parametrize("how", ["reset", "cut"])
def test_all_connections_are_lost_for_a_while(pair: Pair, seed: int, how: str) -> None:
    file = pair.file("f", SIZE, seed)
    receiver = pair.receiver()
    with Proxy(pair.address(receiver)) as proxy:
        sender = pair.sender(file, proxy.address, *STEADY)
        staging(pair, file).wait_for_records(SOME)
        proxy.refuse()
        getattr(proxy, how)("*")
        proxy.wait_until(lambda: proxy.refused >= 3, "trying again")
        proxy.refuse(False)
        result = sender.succeeds()
    check_arrived(pair, file)
    assert len(sender.events("control_lost")) == 1
    assert SIZE <= result["sent_bytes"] < SIZE + 4 * MIB
    no_accident(sender, receiver)


def test_all_connections_are_lost_for_longer_than_the_receiver_waits(pair: Pair, seed: int) -> None:
    """The receiver has given the transfer up, and the sender that comes back begins it anew, from what was kept."""
    file = pair.file("f", SIZE, seed)
    receiver = pair.receiver("--give-up-after", 1)
    with Proxy(pair.address(receiver)) as proxy:
        sender = pair.sender(file, proxy.address, *STEADY)
        staging(pair, file).wait_for_records(SOME)
        proxy.refuse()
        proxy.reset("*")
        receiver.wait_for("transfer_failed")
        proxy.refuse(False)
        sender.succeeds()
    check_arrived(pair, file)
    no_accident(sender, receiver)


def test_all_connections_are_lost_when_everything_was_sent(pair: Pair, seed: int) -> None:
    """Acknowledgements and Finish are held back until all is there; then all is lost for longer than anybody waits."""
    file = pair.file("f", 8 * MIB, seed)
    receiver = pair.receiver("--give-up-after", 1)
    with Proxy(pair.address(receiver)) as proxy:
        sender = pair.sender(file, proxy.address, *STEADY)
        staging(pair, file).wait_for_records(4)  # not before: what is offered, or its answer, would be held, too
        for connection_id in range(4):
            proxy.hold(f"data {connection_id}", "down")
        proxy.hold("control", "up")  # Finish may come ahead of acknowledgements
        staging(pair, file).wait_for_records(64)
        proxy.refuse()
        proxy.reset("*")
        receiver.wait_for("transfer_failed")
        proxy.refuse(False)
        sender.succeeds()
    check_arrived(pair, file)
    no_accident(sender, receiver)


@pytest.mark.parametrize("flags", [(), ("--checksum",)], ids=["plain", "checksum"])
@pytest.mark.parametrize("is_tree", [False, True], ids=["file", "tree"])
def test_another_sender_was_faster(pair: Pair, seed: int, is_tree: bool, flags: tuple[str, ...]) -> None:
    """The receiver has ended the transfer of a sender that was away, which sees then what another one has put there."""
    (pair.source / "tree").mkdir()
    file = pair.file("tree/f" if is_tree else "f", SIZE, seed)
    source = file.parent if is_tree else file
    name = str(file.relative_to(source.parent))
    receiver = pair.receiver("--give-up-after", 1)
    with Proxy(pair.address(receiver)) as proxy:
        away = pair.sender(source, proxy.address, *STEADY, *flags)
        proxy.wait_until(lambda: proxy.passed("data 0", "up") > MIB, "chunks")
        proxy.refuse()
        proxy.reset("*")
        receiver.wait_for("transfer_failed")
        pair.sender(source, pair.address(receiver), "--chunk-size", CHUNK_SIZE).succeeds()
        proxy.refuse(False)
        result = away.succeeds()
    assert same(file, pair.destination / name)
    assert result["sent_bytes"] < SIZE
    no_accident(away, receiver)


def test_a_connection_that_is_a_black_hole_is_given_up(pair: Pair, seed: int) -> None:
    """No connection moves anything, and no one says so: exit 1 in time; the same command completes."""
    file = pair.file("f", SIZE, seed)
    receiver = pair.receiver()
    with Proxy(pair.address(receiver), [Blackhole(on="*", at=MIB)]) as proxy:
        sender = pair.sender(file, proxy.address, *STEADY, "--give-up-after", PATIENT)
        message = sender.fails(1, "timeout", seconds=PATIENT + END_SECONDS + UNIT)
    assert "without progress" in message
    check_nothing_arrived(pair)
    result = pair.sender(file, pair.address(receiver), "--chunk-size", CHUNK_SIZE).succeeds()
    check_arrived(pair, file)
    assert result["held_bytes"] > 0
    no_accident(sender, receiver)


@pytest.mark.parametrize("fault", [Blackhole(on="data 1", at=MIB), Truncate(on="data 1", at=MIB, lost=SIZE)])
def test_one_connection_is_a_black_hole(pair: Pair, seed: int, fault: Fault) -> None:
    """A proxy takes no more of it, or takes all and passes nothing on: it is dead after DEAD_SECONDS, and replaced."""
    file = pair.file("f", SIZE, seed)
    result = moved_through(pair, file, [fault])
    assert result["reconnects"] == 1


@pytest.mark.slow
def test_control_is_a_black_hole(pair: Pair, seed: int) -> None:
    """Data has ended long before control counts as dead; the next control connection brings the end."""
    file = pair.file("f", SIZE, seed)
    receiver = pair.receiver()
    with Proxy(pair.address(receiver)) as proxy:
        sender = pair.sender(file, proxy.address, *STEADY)
        staging(pair, file).wait_for_records(SOME)
        proxy.hold("control", "up")
        proxy.hold("control", "down")
        result = sender.succeeds(55)
    check_arrived(pair, file)
    assert result["sent_bytes"] == SIZE
    no_accident(sender, receiver)


@pytest.mark.slow
def test_a_chunk_that_takes_long_to_send_may_be_acknowledged_late(pair: Pair, seed: int) -> None:
    """For 35 s the sender sends at its rate limit and receives nothing; an answer that is 2 s late is in time."""
    file = pair.file("f", 35 * 64 * 1024, seed)
    receiver = pair.receiver()
    with Proxy(pair.address(receiver)) as proxy:
        settings = ("--connections", 1, "--chunk-size", "4MiB", "--rate-limit", "64KiB/s", "--log-level", "debug")
        sender = pair.sender(file, proxy.address, *settings)
        # Not before bytes of the chunk pass: the end of the opening would be held, too.
        proxy.wait_until(lambda: proxy.passed("data 0", "up") > 64 * 1024, "bytes of the chunk")
        proxy.hold("data 0", "down")
        proxy.hold("control", "up")  # Finish comes ahead of the acknowledgement, and would end it all
        staging(pair, file).wait_for_records(1, seconds=60)
        with pytest.raises(AssertionError, match="still runs"):
            sender.wait(2.5)
        proxy.release("data 0", "down")
        proxy.release("control", "up")
        result = sender.succeeds()
    check_arrived(pair, file)
    assert (result["reconnects"], result["sent_bytes"]) == (0, file.stat().st_size)
    no_accident(sender, receiver)


def test_complete_is_lost(pair: Pair, seed: int) -> None:
    """The receiver has committed, and its word is lost: the sender that comes back is told again."""
    file = pair.file("f", SIZE, seed)
    receiver = pair.receiver("--once")
    with Proxy(pair.address(receiver)) as proxy:
        sender = pair.sender(file, proxy.address, *STEADY)
        staging(pair, file).wait_for_records(SOME)  # not before: the answer that chunks are needed would be held, too
        with holding(proxy, "control"):
            wait_for_file(pair.destination / "f")
            proxy.reset("control")
        sender.succeeds()
    assert receiver.wait() == 0
    check_arrived(pair, file)
    assert sender.result["sent_bytes"] == SIZE


def test_complete_is_lost_after_control_was_lost_before(pair: Pair, seed: int) -> None:
    file = pair.file("f", SIZE, seed)
    receiver = pair.receiver("--once")
    with Proxy(pair.address(receiver)) as proxy:
        sender = pair.sender(file, proxy.address, *STEADY)
        staging(pair, file).wait_for_records(SOME)
        proxy.cut("control")
        sender.wait_for("connected", count=2)
        with holding(proxy, "control"):
            wait_for_file(pair.destination / "f")
            proxy.reset("control")
        sender.succeeds()
    assert receiver.wait() == 0
    check_arrived(pair, file)
    assert sender.result["sent_bytes"] == SIZE


@contextlib.contextmanager
def holding(proxy: Proxy, name: str) -> Iterator[None]:
    """Hold back what the receiver says over a connection."""
    proxy.hold(name, "down")
    yield


def wait_for_file(path: Path, seconds: float = HANG) -> None:
    """Wait until a file stands under its name."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"no {path.name} within {seconds} s"
        time.sleep(0.01)


# ----------------------------------------------------------------------------------------------------------- bits flip


@pytest.mark.parametrize("at", [0, CHUNK_SIZE // 2 + 1, CHUNK_SIZE - 1], ids=["first", "middle", "last"])
def test_a_bit_of_the_payload_flips(pair: Pair, seed: int, at: int) -> None:
    file = pair.file("f", 4 * MIB, seed)
    result = moved_through(pair, file, [FlipPayload(on="data *", chunk=5, at=at, bit=6)], "--chunk-size", CHUNK_SIZE)
    assert result["resent_chunks"] >= 1
    assert result["sent_bytes"] == 4 * MIB + CHUNK_SIZE


def test_a_bit_of_a_digest_flips(pair: Pair, seed: int) -> None:
    file = pair.file("f", 4 * MIB, seed)
    plan = [FlipPayload(on="data *", chunk=5, at=CHUNK_SIZE + 3)]
    result = moved_through(pair, file, plan, "--chunk-size", CHUNK_SIZE)
    assert result["resent_chunks"] >= 1


LONGER = pytest.param(2, marks=pytest.mark.slow, id="length, third")
"""Then 2 KiB more are waited for, which do not come while nothing else moves: it counts as dead after 30 s."""


@pytest.mark.parametrize(
    "at",
    [
        pytest.param(0, id="length, high"),
        LONGER,
        pytest.param(3, id="length, low"),
        pytest.param(7, id="checksum"),
        pytest.param(12, id="body"),
    ],
)
@pytest.mark.parametrize(
    "flip",
    [
        FlipFrame(on="data 1", direction="up", frame=2),
        FlipFrame(on="data 1", direction="down", frame=2),
        FlipFrame(on="control", direction="up", frame=1),
        FlipFrame(on="control", direction="down", frame=2),
    ],
    ids=["chunk header", "acknowledgement", "offer", "answer"],
)
def test_a_bit_of_a_frame_flips(pair: Pair, seed: int, flip: FlipFrame, at: int) -> None:
    """The frame's checksum, or its length, gives it away; that connection is made again."""
    file = pair.file("f", 4 * MIB, seed)
    plan = [dataclasses.replace(flip, at=at, bit=3)]
    moved_through(pair, file, plan, "--chunk-size", CHUNK_SIZE, "--connections", 4, "--rate-limit", "8MiB/s")


@pytest.mark.parametrize("at", [1, 12], ids=["length", "body"])
@pytest.mark.parametrize(
    "flip",
    [
        FlipFrame(on="#0", direction="down", frame=0),
        FlipFrame(on="#2", direction="down", frame=0),
        FlipFrame(on="control", direction="up", frame=0),
        FlipFrame(on="data 1", direction="up", frame=0),
        FlipFrame(on="data 1", direction="down", frame=1),
    ],
    ids=["control's greeting", "data's greeting", "control's hello", "data's hello", "data's welcome"],
)
def test_a_bit_of_the_opening_flips(pair: Pair, seed: int, flip: FlipFrame, at: int) -> None:
    file = pair.file("f", 4 * MIB, seed)
    plan = [dataclasses.replace(flip, at=at, bit=2)]
    moved_through(pair, file, plan, "--chunk-size", CHUNK_SIZE, "--connections", 4, "--rate-limit", "8MiB/s")


def test_a_chunk_that_always_arrives_damaged(pair: Pair, seed: int) -> None:
    """It is sent a few times; then one line says what to suspect. Without the cause, the same command completes."""
    file = pair.file("f", 4 * MIB, seed)
    receiver = pair.receiver()
    settings = ("--chunk-size", CHUNK_SIZE)
    with Proxy(pair.address(receiver), [FlipPayload(on="data *", chunk=5, nth=None, again=True)]) as proxy:
        message = pair.sender(file, proxy.address, *settings).fails(1, "digest")
    assert "chunk 5" in message
    assert "suspect" in message
    assert receiver.wait_for("transfer_failed")["error"] == "digest"
    assert len(receiver.events("digest_mismatch")) == 4
    check_nothing_arrived(pair)
    pair.sender(file, pair.address(receiver), *settings).succeeds()
    check_arrived(pair, file)


# -------------------------------------------------------------------------------------------------- the source changes


def shrink(file: Path) -> None:
    """Cut off the second half."""
    os.truncate(file, SIZE // 2)


def shrink_a_little(file: Path) -> None:
    """Cut off the last byte."""
    os.truncate(file, SIZE - 1)


def grow(file: Path) -> None:
    """Append."""
    with file.open("ab") as stream:
        stream.write(b"more")


def replace(file: Path) -> None:
    """Put another file of the same size in its place."""
    other = file.with_name("other")
    other.write_bytes(bytes(SIZE))
    other.rename(file)


def overwrite_what_was_read(file: Path) -> None:
    """Change bytes in place, in what has been sent."""
    with file.open("r+b") as stream:
        stream.write(b"other bytes")


def overwrite_what_was_not_read(file: Path) -> None:
    """Change bytes in place, in what will be sent."""
    with file.open("r+b") as stream:
        stream.seek(SIZE - 100)
        stream.write(b"other bytes")


def overwrite_and_put_the_time_back(file: Path) -> None:
    """Change bytes in place, in what has been sent, and make the mtime what it was."""
    before = file.stat()
    overwrite_what_was_read(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = [
    shrink,
    shrink_a_little,
    grow,
    replace,
    overwrite_what_was_read,
    overwrite_what_was_not_read,
    overwrite_and_put_the_time_back,
]


@pytest.mark.parametrize("change", CHANGES)
def test_source_changes(pair: Pair, seed: int, change: Callable[[Path], None]) -> None:
    """It ends with exit 4 on both sides, never with a mixture; a run after that sends what the file is then."""
    file = pair.file("f", SIZE, seed)
    receiver = pair.receiver()
    address = pair.address(receiver)
    sender = pair.sender(file, address, *STEADY)
    staging(pair, file).wait_for_records(SOME)
    change(file)
    message = sender.fails(4, "source_changed")
    assert str(file) in message
    assert sender.result["sent_bytes"] < SIZE * 3 // 4, "it was noticed at the end only"
    assert receiver.wait_for("transfer_failed")["error"] == "source_changed"
    check_nothing_arrived(pair)
    result = pair.sender(file, address, "--chunk-size", CHUNK_SIZE).succeeds()
    check_arrived(pair, file)
    if change is not replace:
        assert result["held_bytes"] >= (SOME - 8) * CHUNK_SIZE
    no_accident(sender, receiver)


def test_source_is_removed(pair: Pair, seed: int) -> None:
    file = pair.file("f", SIZE, seed)
    receiver = pair.receiver()
    sender = pair.sender(file, pair.address(receiver), *STEADY)
    staging(pair, file).wait_for_records(SOME)
    file.unlink()
    sender.fails(4, "source_changed")
    check_nothing_arrived(pair)


# --------------------------------------------------------------------------------------------------- the disk fills up


def test_space_that_others_want(pair: Pair, memory: Path, seed: int) -> None:
    """A large file's was taken when it began."""
    size = WRITE_BACK_BYTES + MIB
    file = pair.file("f", size, seed)
    with disk(memory / "small", size + 8 * MIB) as small:
        receiver = pair.start("receiver", "--listen", "127.0.0.1:0", "--directory", small)
        sender = pair.sender(file, pair.address(receiver), "--rate-limit", "32MiB/s")
        Staging(small, "f").wait_for_records(1)
        ballast = fill(small)
        assert ballast.stat().st_size <= 8 * MIB
        sender.succeeds()
        assert same(file, small / "f")


def test_destination_fills_up(pair: Pair, memory: Path, seed: int) -> None:
    """Exit 4 on both sides, what was there stays untouched; with room, the same command completes."""
    file = pair.file("f", SIZE, seed)
    with disk(memory / "small", SIZE + 8 * MIB) as small:
        final = small / "f"
        final.write_bytes(b"what was there before")
        receiver = pair.start("receiver", "--listen", "127.0.0.1:0", "--directory", small)
        address = pair.address(receiver)
        sender = pair.sender(file, address, *STEADY)
        Staging(small, "f").wait_for_records(SOME)
        ballast = fill(small)
        message = sender.fails(4, "no_space")
        assert str(final) in message
        failed = receiver.wait_for("transfer_failed")
        assert (failed["error"], str(final) in failed["reason"]) == ("no_space", True)
        assert final.read_bytes() == b"what was there before"
        pair.sender(file, address, *STEADY).fails(4, "no_space")
        assert final.read_bytes() == b"what was there before"
        ballast.unlink()
        result = pair.sender(file, address, "--chunk-size", CHUNK_SIZE).succeeds()
        assert same(file, final)
        assert sorted(os.listdir(small)) == ["f"]
        assert result["held_bytes"] >= (SOME - 8) * CHUNK_SIZE
        no_accident(sender, receiver)


def test_destination_was_too_small_from_the_beginning(pair: Pair, memory: Path, seed: int) -> None:
    file = pair.file("f", SIZE, seed)
    with disk(memory / "small", SIZE - MIB) as small:
        receiver = pair.start("receiver", "--listen", "127.0.0.1:0", "--directory", small)
        sender = pair.sender(file, pair.address(receiver), *STEADY)
        sender.fails(4, "no_space")
        assert sender.result["sent_bytes"] == 0
        assert os.listdir(small) == []


# -------------------------------------------------------------------------------------------------------------- frozen


@pytest.mark.parametrize("side", ["receiver", pytest.param("sender", marks=pytest.mark.slow)])
def test_one_side_is_frozen_for_20_seconds(pair: Pair, seed: int, side: str) -> None:
    file = pair.file("f", SIZE, seed)
    receiver = pair.receiver()
    sender = pair.sender(file, pair.address(receiver), *STEADY)
    frozen = {"receiver": receiver, "sender": sender}[side]
    staging(pair, file).wait_for_records(SOME)
    frozen.signal(signal.SIGSTOP)
    with pytest.raises(AssertionError, match="still runs"):
        (sender if side == "receiver" else receiver).wait(20)
    frozen.signal(signal.SIGCONT)
    sender.succeeds()
    check_arrived(pair, file)
    no_accident(sender, receiver)


def test_receiver_is_frozen_for_ever(pair: Pair, seed: int) -> None:
    """The sender gives up in time; what is thawed later takes the next run."""
    file = pair.file("f", SIZE, seed)
    receiver = pair.receiver()
    address = pair.address(receiver)
    sender = pair.sender(file, address, *STEADY, "--give-up-after", PATIENT)
    staging(pair, file).wait_for_records(SOME)
    receiver.signal(signal.SIGSTOP)
    message = sender.fails(1, "timeout", seconds=PATIENT + END_SECONDS + UNIT)
    assert "without progress" in message
    check_nothing_arrived(pair)
    receiver.signal(signal.SIGCONT)
    pair.sender(file, address).succeeds()
    check_arrived(pair, file)
    no_accident(sender, receiver)


@pytest.mark.slow
def test_receiver_is_frozen_for_ever_and_the_sender_waits_long(pair: Pair, seed: int) -> None:
    """Longer than after what a peer counts as dead: dialling anew finds nobody who answers."""
    file = pair.file("f", SIZE, seed)
    receiver = pair.receiver()
    sender = pair.sender(file, pair.address(receiver), *STEADY, "--give-up-after", 45)
    staging(pair, file).wait_for_records(SOME)
    receiver.signal(signal.SIGSTOP)
    sender.fails(1, "timeout", seconds=45 + END_SECONDS + UNIT)
    check_nothing_arrived(pair)
    no_accident(sender)


@pytest.mark.slow
def test_sender_is_frozen_for_ever(pair: Pair, seed: int) -> None:
    """Once it counts as dead, another sender of the file takes its place; what it held is not sent again."""
    file = pair.file("f", SIZE, seed)
    receiver = pair.receiver()
    address = pair.address(receiver)
    frozen = pair.sender(file, address, *STEADY)
    staging(pair, file).wait_for_records(SOME)
    frozen.signal(signal.SIGSTOP)
    result = pair.sender(file, address, *STEADY).succeeds()
    check_arrived(pair, file)
    assert result["held_bytes"] >= SOME * CHUNK_SIZE
    assert result["held_bytes"] + result["sent_bytes"] == SIZE
    frozen.signal(signal.SIGCONT)
    assert frozen.wait() in (0, 1), "thawed, it may find that it was superseded, or begin anew"
    check_arrived(pair, file)
    no_accident(frozen, receiver)


# ------------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("side", ["sender", "receiver"])
def test_a_signal_ends_it_in_the_middle_of_a_chunk(pair: Pair, seed: int, side: str, number: signal.Signals) -> None:
    """At once, with exit 128+N, and the same commands resume."""
    file = pair.file("f", SIZE, seed)
    receiver = pair.receiver()
    address = pair.address(receiver)
    settings = ("--chunk-size", "2MiB", "--connections", 2, "--rate-limit", "5MiB/s")  # nearly a second a chunk
    sender = pair.sender(file, address, *settings)
    staging(pair, file).wait_for_records(2)
    ended = {"receiver": receiver, "sender": sender}[side]
    ended.signal(number)
    assert ended.wait(HANG) == 128 + number
    assert "interrupted" in [result["status"] for result in ended.results]
    check_nothing_arrived(pair)
    if side == "receiver":
        receiver = pair.receiver(listen=address)
        sender.succeeds()
    else:
        sender = pair.sender(file, address, *settings)
        assert sender.succeeds()["held_bytes"] >= 4 * MIB
    check_arrived(pair, file)
    no_accident(sender, receiver)


def test_a_second_signal_ends_the_sender_now(pair: Pair, seed: int) -> None:
    """The first lets it say goodbye, for which a frozen receiver never thanks."""
    file = pair.file("f", SIZE, seed)
    receiver = pair.receiver()
    with Proxy(pair.address(receiver)) as proxy:
        bounds = ("sender.coordinator.GOODBYE_SECONDS", "filestreamer.process.signals.SHUTDOWN_SECONDS")
        waits_long = impatient("sender", dict.fromkeys(bounds, 2 * HANG))
        sender = pair.start("sender", file, "--to", proxy.address, *STEADY, **waits_long)
        staging(pair, file).wait_for_records(SOME)
        receiver.signal(signal.SIGSTOP)
        control = next(each for each in proxy.connections if each.name == "control")
        sender.signal(signal.SIGTERM)
        proxy.wait_until(lambda: control.up.has_ended, "the sender's goodbye")
        sender.signal(signal.SIGINT)
        assert sender.wait(HANG) == 130
    receiver.signal(signal.SIGCONT)
    check_nothing_arrived(pair)


def test_a_second_signal_ends_the_receiver_now(pair: Pair, seed: int) -> None:
    file = pair.file("f", SIZE, seed)
    bounds = (
        "filestreamer.process.signals.SHUTDOWN_SECONDS",
        "filestreamer.wire.limits.CLOSING_SECONDS",
        "receiver.server.admission.END_SECONDS",
        "receiver.server.registry.GOODBYE_SECONDS",
    )
    listen = ("--listen", "127.0.0.1:0", "--directory", pair.destination)
    waits_long = impatient("receiver", dict.fromkeys(bounds, 2 * HANG))
    receiver = pair.start("receiver", *listen, **waits_long)
    with Proxy(pair.address(receiver)) as proxy:
        sender = pair.sender(file, proxy.address, *STEADY)
        staging(pair, file).wait_for_records(SOME)
        sender.signal(signal.SIGSTOP)
        control = next(each for each in proxy.connections if each.name == "control")
        receiver.signal(signal.SIGTERM)
        proxy.wait_until(lambda: control.down.has_ended, "the receiver's goodbye")
        receiver.signal(signal.SIGINT)
        assert receiver.wait(HANG) == 130
    check_nothing_arrived(pair)


def test_a_signal_ends_a_sender_that_has_reached_nobody(pair: Pair) -> None:
    file = pair.file("f", 1000)
    with held_port() as port:
        sender = pair.sender(file, f"127.0.0.1:{port}")
        sender.wait_for("cannot_connect")
        sender.signal(signal.SIGTERM)
        assert sender.wait(HANG) == 143
    assert sender.result["status"] == "interrupted"


def test_a_signal_ends_a_receiver_without_work(pair: Pair) -> None:
    receiver = pair.receiver()
    pair.address(receiver)
    receiver.signal(signal.SIGINT)
    assert receiver.wait(HANG) == 130
    no_accident(receiver)
