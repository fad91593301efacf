"""Shards: several senders share one large file, and each is a transfer of its own.

What a user is promised: whatever order they run in, whichever is lost and run again, and whoever is restarted in
between, the file appears once all have finished, whole; and who finished need not send again.
"""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.digests import root_digest
from filestreamer.wire.errors import Code
from tests.support.exchange import deliver
from tests.support.peer import Link, RawReceiver, RawSender, Sample, acknowledged
from tests.support.services import HANG, UNIT, Pair, Service, same
from tests.support.staging import Staging
from tests.support.waiting import gives_up_busy, until

MIB = 1 << 20
CHUNK_SIZE = 64 * 1024
CHUNKS = 80
SIZE = CHUNKS * CHUNK_SIZE - 77
COUNT = 3
SLOW = "1MiB/s"
"""A shard at this rate is still running when others have been started, met and ended."""
SLOWER = "512KiB/s"
"""At this one also when another has given up, after a second."""


@pytest.fixture
def file(pair: Pair, seed: int) -> Path:
    return pair.file("f", SIZE, seed)


def shard(pair: Pair, file: Path, to: str, index: int, *args: object, count: int = COUNT) -> Service:
    """Start the sender of one shard."""
    return pair.sender(file, to, "--shard", f"{index}/{count}", "--chunk-size", CHUNK_SIZE, "--connections", 2, *args)


def share(index: int, count: int = COUNT, size: int = SIZE) -> int:
    """Bytes of a share, counted one by one."""
    return sum(min(CHUNK_SIZE, size - at) for at in range(index * CHUNK_SIZE, size, count * CHUNK_SIZE))


def ends_well(sender: Service) -> dict[str, Any]:
    """Wait for exit 0; return the result."""
    assert sender.wait() == 0, sender.stderr
    result = sender.result
    assert (result["status"], result["error"]) == ("complete", None)
    return result


def finishes(sender: Service, index: int, *, committed: bool, held: int = 0, count: int = COUNT) -> None:
    """Assert that a shard ends with its share moved, and says whether that was the last one."""
    result = ends_well(sender)
    assert result["committed"] is committed
    assert (result["files"], result["bytes"]) == (1, share(index, count))
    assert (result["held_bytes"], result["sent_bytes"]) == (held, share(index, count) - held)
    assert result["chunks"] == len(range(index, CHUNKS, count))


def check_arrived(pair: Pair, file: Path) -> None:
    """Assert that the file is there, identical, with its mtime, and nothing else is."""
    assert same(file, pair.destination / file.name)
    assert pair.received() == [file.name]
    assert file.stat().st_mtime_ns == (pair.destination / file.name).stat().st_mtime_ns


def check_nothing_final(pair: Pair) -> None:
    assert pair.received() == [".filestreamer"]


# ---------------------------------------------------------------------------------------------------------- all is well


def test_one_after_the_other(pair: Pair, file: Path) -> None:
    """Each but the last says that the file waits; nothing is under the final name before; nothing is sent twice."""
    receiver = pair.receiver()
    address = pair.address(receiver)
    for index in (1, 2):
        finishes(shard(pair, file, address, index), index, committed=False)
        check_nothing_final(pair)
        receiver.wait_for_results(index)
    finishes(shard(pair, file, address, 0), 0, committed=True)
    check_arrived(pair, file)
    results = receiver.wait_for_results(3)
    assert [result["committed"] for result in results] == [False, False, True]
    assert [result["bytes"] for result in results] == [share(1), share(2), share(0)]
    assert {result["status"] for result in results} == {"complete"}


def test_all_at_once(pair: Pair, file: Path) -> None:
    address = pair.address(receiver := pair.receiver("--once"))
    senders = [shard(pair, file, address, index, "--rate-limit", SLOW) for index in range(COUNT)]
    results = [ends_well(sender) for sender in senders]
    assert sorted(result["committed"] for result in results) == [False, False, True]
    assert sum(result["sent_bytes"] for result in results) == SIZE
    assert receiver.wait() == 0
    assert len(receiver.results) == COUNT
    check_arrived(pair, file)


@pytest.mark.parametrize("size", [0, 1, 2 * CHUNK_SIZE])
def test_more_shards_than_chunks(pair: Pair, size: int, seed: int) -> None:
    """A shard with nothing to send is one of those that the file waits for, all the same."""
    file = pair.file("f", size, seed)
    address = pair.address(receiver := pair.receiver("--once"))
    for index in range(5):
        result = ends_well(shard(pair, file, address, index, count=5))
        assert (result["bytes"], result["committed"]) == (share(index, 5, size), index == 4)
    assert receiver.wait() == 0
    check_arrived(pair, file)


def test_the_only_shard_of_one_is_a_plain_transfer(pair: Pair, file: Path) -> None:
    address = pair.address(pair.receiver("--once"))
    finishes(shard(pair, file, address, 0, count=1), 0, committed=True, count=1)
    check_arrived(pair, file)


def test_output_file(pair: Pair, file: Path) -> None:
    """The receiver names it and ends after it, when all shards have left."""
    output = pair.destination / "given"
    receiver = pair.start("receiver", "--listen", "127.0.0.1:0", "--output-file", output)
    address = pair.address(receiver)
    for index in range(COUNT):
        ends_well(shard(pair, file, address, index, "--as", f"name-{index}"))
    assert receiver.wait() == 0
    assert same(file, output)


def test_chunks_have_their_home(pair: Pair, file: Path) -> None:
    """The home of chunk k is connection (k // COUNT) mod N: both connections move half of the share."""
    address = pair.address(pair.receiver())
    result = ends_well(shard(pair, file, address, 1, "--strict-modulo"))
    moved = {item["connection_id"]: item["chunks"] for item in result["per_connection"]}
    of_share = range(1, CHUNKS, COUNT)
    assert moved == {home: sum((k // COUNT) % 2 == home for k in of_share) for home in (0, 1)}


# -------------------------------------------------------------------------------------------- one is lost and run again


def test_a_shard_that_was_killed_is_run_again(pair: Pair, file: Path) -> None:
    """The others go on meanwhile; it sends only what it had not sent."""
    address = pair.address(pair.receiver())
    staging = Staging(pair.destination, "f")
    lost = shard(pair, file, address, 0, "--rate-limit", SLOW)
    staging.wait_for_records(4)
    other = shard(pair, file, address, 1, "--rate-limit", SLOW)
    other.wait_for("connected")
    lost.signal(signal.SIGKILL)
    assert lost.wait() == 128 + signal.SIGKILL
    finishes(other, 1, committed=False)
    finishes(shard(pair, file, address, 2), 2, committed=False)
    again = ends_well(shard(pair, file, address, 0))
    assert again["committed"] is True
    assert again["held_bytes"] >= 3 * CHUNK_SIZE
    assert again["held_bytes"] + again["sent_bytes"] == share(0)
    check_arrived(pair, file)


@pytest.mark.parametrize("restarted", [False, True], ids=["same-receiver", "restarted-receiver"])
def test_a_shard_is_run_again_after_its_share_was_complete(pair: Pair, file: Path, *, restarted: bool) -> None:
    """It compares, sends nothing, and ends as before; the file does not wait for it twice."""
    receiver = pair.receiver()
    finishes(shard(pair, file, pair.address(receiver), 0), 0, committed=False)
    if restarted:
        receiver.signal(signal.SIGKILL)
        receiver.wait()
        receiver = pair.receiver()
    address = pair.address(receiver)
    finishes(shard(pair, file, address, 0), 0, committed=False, held=share(0))
    finishes(shard(pair, file, address, 1), 1, committed=False)
    finishes(shard(pair, file, address, 2), 2, committed=True)
    check_arrived(pair, file)


@pytest.mark.parametrize("restarted", [False, True], ids=["same-receiver", "restarted-receiver"])
@pytest.mark.parametrize("args", [(), ("--no-replace",)], ids=["replace", "no-replace"])
def test_a_shard_is_run_again_after_the_commit(
    pair: Pair, file: Path, args: tuple[str, ...], *, restarted: bool
) -> None:
    """It is compared with what stands there, and says committed; the file stays as it is, and nothing is staged."""
    receiver = pair.receiver(*args)
    for index in range(COUNT):
        ends_well(shard(pair, file, pair.address(receiver), index))
    if restarted:
        receiver.signal(signal.SIGKILL)
        receiver.wait()
        receiver = pair.receiver("--once", *args)
    before = (pair.destination / "f").stat().st_ino
    finishes(shard(pair, file, pair.address(receiver), 1), 1, committed=True, held=share(1))
    if restarted:
        assert receiver.wait() == 0
    assert before == (pair.destination / "f").stat().st_ino
    check_arrived(pair, file)


def test_a_shard_that_comes_after_the_commit_with_other_content(pair: Pair, file: Path, seed: int) -> None:
    """Same size, same mtime, other bytes: the file that stands there is neither touched nor taken for equal."""
    address = pair.address(pair.receiver())
    for index in range(COUNT):
        ends_well(shard(pair, file, address, index))
    mtime = file.stat().st_mtime_ns
    other = pair.file("other", SIZE, seed + 1)
    os.utime(other, ns=(mtime, mtime))
    sender = shard(pair, other, address, 1, "--as", "f")
    assert "remove it, or touch the source" in sender.fails(4, "source_changed")
    check_arrived(pair, file)


# -------------------------------------------------------------------------------------------- the receiver is restarted


def test_the_receiver_is_killed_in_between(pair: Pair, file: Path) -> None:
    """A share that was done stays done: it is re-hashed by the shard that fills the file."""
    receiver = pair.receiver()
    finishes(shard(pair, file, pair.address(receiver), 0), 0, committed=False)
    finishes(shard(pair, file, pair.address(receiver), 2), 2, committed=False)
    receiver.signal(signal.SIGKILL)
    receiver.wait()
    again = pair.receiver("--once")
    finishes(shard(pair, file, pair.address(again), 1), 1, committed=True)
    assert again.wait() == 0
    check_arrived(pair, file)


def test_the_receiver_is_killed_while_shards_run(pair: Pair, file: Path) -> None:
    """The shards find the next one by themselves, and go on where they were."""
    receiver = pair.receiver()
    address = pair.address(receiver)
    finishes(shard(pair, file, address, 0), 0, committed=False)
    senders = [shard(pair, file, address, index, "--rate-limit", SLOW) for index in (1, 2)]
    Staging(pair.destination, "f").wait_for_records(len(range(0, CHUNKS, COUNT)) + 1 + 8)
    receiver.signal(signal.SIGKILL)
    receiver.wait()
    again = pair.receiver("--once", listen=address)
    results = [ends_well(sender) for sender in senders]
    assert sorted(result["committed"] for result in results) == [False, True]
    assert all(result["held_bytes"] > 0 for result in results)
    assert again.wait() == 0
    check_arrived(pair, file)


def test_what_the_disk_lost_of_a_finished_share(pair: Pair, file: Path) -> None:
    """Damage under a share that was done: the file is not committed; that shard, run again, sends what is missing."""
    receiver = pair.receiver()
    finishes(shard(pair, file, pair.address(receiver), 0), 0, committed=False)
    receiver.signal(signal.SIGKILL)
    receiver.wait()
    with Staging(pair.destination, "f").data.open("r+b") as data:
        data.seek(COUNT * CHUNK_SIZE + 5)
        data.write(b"damaged")
    address = pair.address(pair.receiver())
    finishes(shard(pair, file, address, 1), 1, committed=False)
    finishes(shard(pair, file, address, 2), 2, committed=False)
    finishes(shard(pair, file, address, 0), 0, committed=True, held=share(0) - CHUNK_SIZE)
    check_arrived(pair, file)


# ----------------------------------------------------------------------------------------------------- who may not come


def test_the_same_shard_twice(pair: Pair, file: Path) -> None:
    """The second one waits for the first, then has nothing to send."""
    address = pair.address(pair.receiver())
    first = shard(pair, file, address, 0, "--rate-limit", SLOW)
    Staging(pair.destination, "f").wait_for_records(1)
    second = shard(pair, file, address, 0)
    assert "shard 0/3" in second.wait_for("control_lost")["reason"]
    finishes(first, 0, committed=False)
    finishes(second, 0, committed=False, held=share(0))


def test_the_same_shard_twice_gives_up(pair: Pair, file: Path) -> None:
    address = pair.address(pair.receiver())
    first = shard(pair, file, address, 0, "--rate-limit", SLOWER)
    Staging(pair.destination, "f").wait_for_records(1)
    first.signal(signal.SIGSTOP)  # it stays under way however long the others take
    reason = gives_up_busy(lambda seconds: shard(pair, file, address, 0, "--give-up-after", seconds))
    assert "shard 0/3" in reason
    first.signal(signal.SIGCONT)
    finishes(first, 0, committed=False)


def test_the_same_shard_takes_over(pair: Pair, file: Path) -> None:
    """One that was killed is waited for no longer than it takes to notice."""
    address = pair.address(pair.receiver())
    first = shard(pair, file, address, 0, "--rate-limit", SLOW)
    Staging(pair.destination, "f").wait_for_records(2)
    first.signal(signal.SIGKILL)
    first.wait()
    result = ends_well(shard(pair, file, address, 0))
    assert result["held_bytes"] >= CHUNK_SIZE


@pytest.mark.parametrize("plain_first", [False, True])
def test_a_plain_sender_and_a_shard(pair: Pair, file: Path, *, plain_first: bool) -> None:
    """The second transfer is BUSY; when the first has ended, the staging serves both."""
    address = pair.address(pair.receiver())
    plain = ("--chunk-size", CHUNK_SIZE)
    if plain_first:
        first = pair.sender(file, address, *plain, "--rate-limit", SLOWER)
    else:
        first = shard(pair, file, address, 0, "--rate-limit", SLOWER)
    staging = Staging(pair.destination, "f")
    staging.wait_for_records(1)
    until(lambda: any(index % COUNT == 0 for index in staging.claims().indices()), "a chunk of shard 0 is there")
    first.signal(signal.SIGSTOP)  # it stays under way however long the others take

    def second(give_up_after: float) -> Service:
        impatient = ("--give-up-after", give_up_after)
        return (
            shard(pair, file, address, 0, *impatient) if plain_first else pair.sender(file, address, *plain, *impatient)
        )

    gives_up_busy(second)
    first.signal(signal.SIGCONT)
    first.signal(signal.SIGTERM)
    first.wait()
    if plain_first:
        assert ends_well(shard(pair, file, address, 0))["held_bytes"] > 0
    else:
        assert pair.sender(file, address, *plain).succeeds()["held_bytes"] > 0
        check_arrived(pair, file)


def test_a_plain_sender_after_shards_that_have_left(pair: Pair, file: Path) -> None:
    address = pair.address(pair.receiver())
    finishes(shard(pair, file, address, 0), 0, committed=False)
    result = pair.sender(file, address, "--chunk-size", CHUNK_SIZE).succeeds()
    assert result["held_bytes"] == share(0)
    check_arrived(pair, file)


def test_another_number_of_shards(pair: Pair, file: Path) -> None:
    """BUSY while the first ones run; after that it is a new job over what is there."""
    address = pair.address(pair.receiver())
    first = shard(pair, file, address, 0, "--rate-limit", SLOWER)
    Staging(pair.destination, "f").wait_for_records(1)
    first.signal(signal.SIGSTOP)  # it stays under way however long the others take
    reason = gives_up_busy(lambda seconds: shard(pair, file, address, 1, "--give-up-after", seconds, count=2))
    assert "in 3 shards" in reason
    first.signal(signal.SIGCONT)
    finishes(first, 0, committed=False)
    for index in range(2):
        assert ends_well(shard(pair, file, address, index, count=2))["held_bytes"] > 0
    check_arrived(pair, file)


def test_the_source_changed_between_shards(pair: Pair, file: Path, seed: int) -> None:
    """An error at once, and no file; run again from one source, all shards make the file of today."""
    receiver = pair.receiver()
    address = pair.address(receiver)
    first = shard(pair, file, address, 0, "--rate-limit", SLOW)
    Staging(pair.destination, "f").wait_for_records(1)
    other = pair.file("other", SIZE, seed + 1)
    os.utime(other, ns=(1, 1))
    assert "size or mtime" in shard(pair, other, address, 1, "--as", "f").fails(4, "source_changed")
    finishes(first, 0, committed=False)
    for index in (1, 2):
        ends_well(shard(pair, other, address, index, "--as", "f"))
        check_nothing_final(pair)
    assert receiver.events("shares_set_aside")
    assert ends_well(shard(pair, other, address, 0, "--as", "f"))["committed"] is True
    assert same(other, pair.destination / "f")


def test_another_chunk_size(pair: Pair, file: Path) -> None:
    address = pair.address(pair.receiver())
    first = shard(pair, file, address, 0, "--rate-limit", SLOW)
    Staging(pair.destination, "f").wait_for_records(1)
    sender = pair.sender(file, address, "--shard", "1/3", "--chunk-size", 2 * CHUNK_SIZE)
    assert "--chunk-size" in sender.fails(3, "policy", status="refused")
    finishes(first, 0, committed=False)


@pytest.mark.parametrize("value", ["3/3", "-1/2", "1/0"])
def test_no_shard(pair: Pair, file: Path, value: str) -> None:
    assert "--shard" in pair.sender(file, "127.0.0.1:1", "--shard", value).fails(2, "usage")


# ----------------------------------------------------------------------------------------------------- some of it fails


def test_a_shard_that_fails_leaves_the_others_alone(pair: Pair, file: Path) -> None:
    """Its source is changed under it: exit 4, while its sibling goes on."""
    address = pair.address(pair.receiver())
    copy = pair.source / "copy"
    copy.write_bytes(file.read_bytes())
    os.utime(copy, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    fails = shard(pair, copy, address, 0, "--as", "f", "--rate-limit", SLOW)
    other = shard(pair, file, address, 1, "--rate-limit", SLOW)
    Staging(pair.destination, "f").wait_for_records(4)
    with copy.open("r+b") as changed:
        changed.write(b"changed")
    fails.fails(4, "source_changed")
    finishes(other, 1, committed=False)
    finishes(shard(pair, file, address, 2), 2, committed=False)
    ends_well(shard(pair, file, address, 0))
    check_arrived(pair, file)


def test_an_aborted_shard_leaves_the_others_alone(pair: Pair, file: Path) -> None:
    address = pair.address(pair.receiver())
    aborted = shard(pair, file, address, 0, "--rate-limit", SLOW)
    other = shard(pair, file, address, 1, "--rate-limit", SLOW)
    Staging(pair.destination, "f").wait_for_records(4)
    aborted.signal(signal.SIGTERM)
    assert aborted.wait() == 128 + signal.SIGTERM
    finishes(other, 1, committed=False)


def test_no_replace(pair: Pair, file: Path) -> None:
    """A name that is taken by something else is refused to every shard, before the first byte."""
    (pair.destination / "f").write_bytes(b"old")
    address = pair.address(pair.receiver("--no-replace"))
    shard(pair, file, address, 0).fails(3, "exists", status="refused")
    assert (pair.destination / "f").read_bytes() == b"old"


def test_once_waits_for_all_shards(pair: Pair, file: Path) -> None:
    """A share that is done ends nothing."""
    receiver = pair.receiver("--once")
    address = pair.address(receiver)
    finishes(shard(pair, file, address, 2), 2, committed=False)
    receiver.wait_for_results(1)
    assert receiver.process.poll() is None
    for index in (0, 1):
        ends_well(shard(pair, file, address, index))
    assert receiver.wait() == 0
    check_arrived(pair, file)


# ------------------------------------------------------------------------- frame by frame, and what no decent peer does

SMALL = 1024


class Busy(Exception):
    """The share belongs to a transfer whose end the receiver has not noticed yet."""


class Part(RawSender):
    """One shard of a sample of ten chunks, frame by frame."""

    def __init__(self, receiver: Service, sample: Sample, index: int, count: int = 2) -> None:
        super().__init__(Pair.address(receiver))
        self.sample = sample
        self.chunks = range(index, sample.grid.segments, count)
        self.shard = m.Shard(index, count)

    def offered(self) -> Link:
        """Offer the shard; the answer is still to be read."""
        control = self.control()
        control.send(self.sample.offer._replace(shard=self.shard), m.ManifestPart(0, (self.sample.entry,), True))
        return control

    @property
    def finish(self) -> m.Finish:
        return m.Finish(len(self.chunks), root_digest(map(self.sample.digest, self.chunks)))

    def answers(self, control: Link) -> tuple[set[int], dict[int, bytes]]:
        """Read Needed and Held until each chunk of the share is answered; return both. Raises Busy."""
        needed: set[int] = set()
        held: dict[int, bytes] = {}
        while len(needed) + len(held) < len(self.chunks):
            message = control.expect(tuple)
            if isinstance(message, m.Needed):
                ranges = [range(run.first_segment, run.first_segment + run.segments) for run in message.segments]
                needed |= {k for run in ranges for k in run if k in self.chunks}
            elif isinstance(message, m.Abort) and message.code is Code.BUSY:
                raise Busy
            else:
                assert isinstance(message, m.Held), message
                digests = [message.digests[at : at + 16] for at in range(0, len(message.digests), 16)]
                held |= dict(zip(range(message.first_segment, 1 << 23, self.shard.shard_count), digests, strict=False))
        return needed, held

    def answered(self) -> tuple[Link, set[int], dict[int, bytes]]:
        """Offer the shard, again while it is busy, as a sender does; return control and the answers."""
        end = time.monotonic() + HANG
        while True:
            control = self.offered()
            try:
                return control, *self.answers(control)
            except Busy:
                assert time.monotonic() < end, "the share stays busy"

    def send_share(self, *, committed: bool) -> None:
        """Move the whole share, but for what is held and equal, to the end."""
        control, needed, held = self.answered()
        needed |= {k for k, digest in held.items() if digest != self.sample.digest(k)}
        data = self.data()
        for index in needed:
            data.send_raw(self.sample.chunk(index))
        acknowledged(data, len(needed))
        control.send(self.finish)
        assert control.expect(m.Complete) == m.Complete(committed)
        data.end_writing()
        control.end_writing()
        control.ends()


@pytest.fixture
def sample(seed: int) -> Sample:
    return Sample.random(seed, 9 * SMALL + 100, SMALL)


def test_answers_are_those_of_the_share(pair: Pair, sample: Sample) -> None:
    receiver = pair.receiver()
    with Part(receiver, sample, 0) as even, Part(receiver, sample, 1) as odd:
        even.send_share(committed=False)
        control = odd.offered()
        assert odd.answers(control) == ({1, 3, 5, 7, 9}, {})
        data = odd.data()
        for index in (3, 7):
            data.send_raw(sample.chunk(index))
        acknowledged(data, 2)
        control.reset()
        again = odd.offered()
        assert odd.answers(again) == ({1, 5, 9}, {3: sample.digest(3), 7: sample.digest(7)})
        again.send(odd.finish)  # too early: what is missing is told, and nothing of the other share
        (runs,) = [message.segments for message in [again.expect(m.Needed)]]
        assert {k for run in runs for k in range(run.first_segment, run.first_segment + run.segments)} & {1, 3, 5, 7, 9}
    with Part(receiver, sample, 1) as odd:
        odd.send_share(committed=True)
    assert (pair.destination / "sample.bin").read_bytes() == sample.content


def test_a_chunk_of_another_share(pair: Pair, sample: Sample) -> None:
    """It ends who sent it; the sibling whose chunk it was goes on."""
    receiver = pair.receiver()
    with Part(receiver, sample, 0) as even, Part(receiver, sample, 1) as odd:
        control, hostile = even.offered(), odd.offered()
        even.answers(control)
        odd.answers(hostile)
        data = odd.data()
        data.send_raw(sample.chunk(2))
        assert data.expect(m.Abort).code is Code.PROTOCOL
        assert hostile.expect(m.Abort).code is Code.PROTOCOL
        good = even.data()
        deliver(good, sample, even.chunks)
        control.send(even.finish)
        assert control.expect(m.Complete) == m.Complete(False)


@pytest.mark.parametrize("wrong", ["root digest of the whole", "chunks of the whole"])
def test_a_finish_that_is_not_the_shares(pair: Pair, sample: Sample, wrong: str) -> None:
    """DIGEST, for that shard alone: what its sibling has finished stays, and the shard that comes again is compared."""
    receiver = pair.receiver()
    with Part(receiver, sample, 0) as even, Part(receiver, sample, 1) as odd:
        even.send_share(committed=False)
        control = odd.offered()
        odd.answers(control)
        data = odd.data()
        deliver(data, sample, odd.chunks)
        finish = odd.finish
        if wrong.startswith("root"):
            control.send(finish._replace(root_digest=sample.finish.root_digest))
        else:
            control.send(finish._replace(chunks=sample.finish.chunks))
        assert control.expect(m.Abort).code is Code.DIGEST
    assert not (pair.destination / "sample.bin").exists()
    with Part(receiver, sample, 1) as odd:
        odd.send_share(committed=True)
    assert (pair.destination / "sample.bin").read_bytes() == sample.content


@pytest.mark.parametrize(
    "entries",
    [(), (b"a", b"b"), (b"directory/",), (b"directory/file",), (b"a/b/c",)],
    ids=["nothing", "two files", "a directory", "a file in a directory", "a file further down"],
)
def test_a_shard_is_of_one_file(pair: Pair, sample: Sample, entries: tuple[bytes, ...]) -> None:
    receiver = pair.receiver()
    kinds = {True: m.EntryType.DIRECTORY, False: m.EntryType.FILE}
    made = tuple(m.Entry(name.rstrip(b"/"), kinds[name.endswith(b"/")], 0, 0o755, 1) for name in entries)
    with RawSender(Pair.address(receiver)) as peer:
        abort = peer.offers(sample.offer._replace(shard=m.Shard(0, 2)), m.ManifestPart(0, made, True))
    assert abort.code is Code.PROTOCOL
    assert pair.received() == []


def test_a_finished_share_that_is_written_again(pair: Pair, sample: Sample) -> None:
    """Another source of the same size and mtime writes into it and is lost: the share is no longer finished.

    The file is never a mixture: it waits until that shard is run again.
    """
    receiver = pair.receiver()
    other = sample._replace(content=sample.content[:SMALL] + bytes(SMALL) + sample.content[2 * SMALL :])
    with Part(receiver, sample, 0) as even, Part(receiver, sample, 1) as odd:
        control = even.offered()  # keeps the file open
        even.answers(control)
        odd.send_share(committed=False)
        with Part(receiver, other, 1) as wrong:
            again = wrong.offered()
            assert wrong.answers(again) == (set(), {k: sample.digest(k) for k in odd.chunks})
            data = wrong.data()
            data.send_raw(other.chunk(1))
            acknowledged(data, 1)
        data = even.data()
        deliver(data, sample, even.chunks)
        control.send(even.finish)
        assert control.expect(m.Complete) == m.Complete(False)
    with Part(receiver, sample, 1) as odd:
        odd.send_share(committed=True)
    assert (pair.destination / "sample.bin").read_bytes() == sample.content


def test_a_share_is_finished_by_its_sender_and_by_nothing_less(pair: Pair, sample: Sample) -> None:
    """Every chunk of it arrived, and Finish did not: its sender may have found its source changed."""
    receiver = pair.receiver()
    with Part(receiver, sample, 0) as even:
        control = even.offered()
        even.answers(control)
        data = even.data()
        deliver(data, sample, even.chunks)
    with Part(receiver, sample, 1) as odd:
        odd.send_share(committed=False)
    with Part(receiver, sample, 0) as even:
        even.send_share(committed=True)


def finished(part: Part) -> Link:
    """Move the share up to Finish; Complete is still to be read."""
    control = part.offered()
    needed, _ = part.answers(control)
    data = part.data()
    for index in needed:
        data.send_raw(part.sample.chunk(index))
    acknowledged(data, len(needed))
    control.send(part.finish)
    return control


def test_a_shard_that_stays_after_complete_keeps_nobody_out(pair: Pair, sample: Sample) -> None:
    """It is kept to be asked again, for a minute; who comes with another job need not wait for that."""
    receiver = pair.receiver()
    with Part(receiver, sample, 0) as even, RawSender(Pair.address(receiver)) as plain:
        assert finished(even).expect(m.Complete) == m.Complete(False)
        answer = plain.offer(sample).expect(tuple)
        assert answer == m.Needed((), tuple(m.SegmentRange(0, k, 1) for k in (1, 3, 5, 7, 9)))


def test_once_waits_until_every_shard_has_heard(pair: Pair, sample: Sample) -> None:
    """Complete was lost: the shard reconnects after its siblings have committed the file, and gets it again."""
    receiver = pair.receiver("--once")
    with Part(receiver, sample, 0) as even, Part(receiver, sample, 1) as odd:
        finished(even).reset()
        receiver.wait_for("share_complete")
        odd.send_share(committed=True)
        receiver.wait_for_results(1)
        assert receiver.process.poll() is None
        again = even.offered()
        assert again.expect(m.Complete) == m.Complete(False)
        again.end_writing()
        again.ends()
    assert receiver.wait() == 0
    assert [result["committed"] for result in receiver.results] == [True, False]


def test_as_many_shards_as_there_may_be(pair: Pair, sample: Sample) -> None:
    """The last of 1024 shards has no chunk, and costs no more than any; 1025 are refused."""
    receiver = pair.receiver()
    with Part(receiver, sample, 1023, 1024) as last:
        last.send_share(committed=False)
    with RawSender(Pair.address(receiver)) as peer:
        control = peer.control()
        control.send(sample.offer._replace(shard=m.Shard(0, 1025)))
        assert control.expect(m.Abort).code is Code.PROTOCOL


WRONG_ANSWERS: dict[str, m.Message] = {
    "Held: a segment of another share": m.Held(0, 0, bytes(16)),
    "Held: a digest too many": m.Held(0, 1, bytes(16 * 4)),
    "Held: a whole file": m.Held(0, 0, bytes(16), files=(m.FileRange(0, 1),)),
    "Needed: a segment too many": m.Needed((), (m.SegmentRange(0, 0, 9),)),
    "Complete: before Finish": m.Complete(False),
}


@pytest.mark.parametrize("answer", WRONG_ANSWERS)
def test_answers_that_a_shard_refuses(pair: Pair, answer: str) -> None:
    """Shard 1 of 3 of eight chunks: 1, 4 and 7."""
    file = pair.file("f", 800)
    with RawReceiver() as hostile:
        sender = pair.sender(file, hostile.address, "--chunk-size", 100, "--shard", "1/3", "--give-up-after", UNIT)
        control, offer, _ = hostile.control()
        assert offer.shard == m.Shard(1, 3)
        control.send(WRONG_ANSWERS[answer])
        control.rest()
        sender.fails(3, "protocol", status="refused")
