"""Every state has an end, by one definition of progress; what gets on slowly lives (proto/README.md, "Liveness").

Peers that keep up appearances: heartbeats, counts, the same answers again. And honest ones that take their time.
"""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

import pytest

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, FilestreamerError
from filestreamer.wire.limits import KIB, MIB
from tests.support import trees
from tests.support.exchange import deliver
from tests.support.peer import Ended, Link, RawReceiver, RawSender, Sample, TreeSample, ack, acknowledged, read_chunk
from tests.support.services import EACH_TICK, HANG, UNIT, Pair, Service, impatient, inject, same

GIVE_UP: Final = 0.4 * UNIT
"""Longer than a busy machine takes for any step of an opening, or an answer."""
PATIENT: Final = 0.5 * UNIT
"""Longer than from one heartbeat to the next with EACH_TICK, where a message of the peer has to be read in time."""
IN_TIME: Final = 2 * UNIT
"""Within which a process ends that need not wait for anybody: what it could wait for takes longer, or for ever."""
BEAT_SECONDS: Final = UNIT / 50
"""How often a peer says something that is no progress."""


@pytest.fixture
def background() -> Iterator[Callable[..., threading.Event]]:
    """Return what calls a function again and again beside the test, until its connection is closed."""
    over = threading.Event()
    threads = []

    def begin(step: Callable[[], object], pause: float = BEAT_SECONDS) -> threading.Event:
        def run() -> None:
            with contextlib.suppress(Ended, OSError, FilestreamerError):
                while not over.wait(pause):
                    step()

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return over

    yield begin
    over.set()
    for thread in threads:
        thread.join(HANG)


# ----------------------------------------------------------------------------------------- a sender, and a bad receiver


def hurried(pair: Pair, file: Path, receiver: RawReceiver, *args: object) -> Service:
    return pair.sender(
        file, receiver.address, "--give-up-after", GIVE_UP, "--chunk-size", KIB, "--connections", 1, *args
    )


def acknowledge_all(receiver: RawReceiver) -> None:
    """Take chunks over one data connection, and acknowledge each."""
    data, _ = receiver.welcome(m.Role.DATA)
    with contextlib.suppress(Ended, OSError):
        while True:
            data.send(m.ChunkAck(m.Verdict.OK, (read_chunk(data).chunk_id,)))


HEARTBEATS = {
    "nothing": m.Progress(m.Phase.MOVING, 0, 0),
    "a sync before Finish": m.Progress(m.Phase.SYNCING, 0, 0),
    "a reader that there is not": m.Progress(m.Phase.WAITING, 0, 0),
    "more bytes than there are": m.Progress(m.Phase.OFFERING, 1 << 60, 1 << 60),
}


@pytest.mark.parametrize("what", HEARTBEATS)
def test_heartbeats_are_no_progress(pair: Pair, background: Callable[..., object], what: str) -> None:
    with RawReceiver() as receiver:
        sender = hurried(pair, pair.file("f", 10 * KIB), receiver)
        control, _, _ = receiver.control()
        background(lambda: control.send(HEARTBEATS[what]))
        control.rest()
        receiver.hang_up()
        assert "without progress" in sender.fails(1, "timeout")


@pytest.mark.parametrize("more", [(), ("--dry-run",)], ids=["moved", "dry run"])
def test_re_hashing_that_only_counts(pair: Pair, background: Callable[..., object], more: tuple[str, ...]) -> None:
    """A byte at a time, for ever."""
    counted = iter(range(1 << 30))
    with RawReceiver() as receiver:
        sender = hurried(pair, pair.file("f", 3 * MIB), receiver, *more)
        control, _, _ = receiver.control()
        background(lambda: control.send(m.Progress(m.Phase.OFFERING, 0, next(counted))))
        control.rest()
        receiver.hang_up()
        sender.fails(1, "timeout")


def test_a_window_of_a_tree(pair: Pair) -> None:
    """An output takes one file: who tells a window for a tree could say for ever that its reader takes nothing."""
    tree = pair.source / "t"
    trees.write(tree / "f", b"x")
    with RawReceiver() as receiver:
        sender = hurried(pair, tree, receiver)
        control, _ = receiver.welcome(m.Role.CONTROL)
        control.expect(m.Offer)
        control.expect(m.ManifestPart)
        control.send(m.Needed((m.FileRange(1, 1),), (), window_bytes=MIB))
        assert "the window of an output" in sender.fails(3, "protocol", status="refused")


def test_a_sync_that_never_ends(pair: Pair, background: Callable[..., object]) -> None:
    with RawReceiver() as receiver:
        sender = hurried(pair, pair.file("f", 10 * KIB), receiver)
        control, data = receiver.needs(10)
        for _ in range(10):
            data.send(m.ChunkAck(m.Verdict.OK, (read_chunk(data).chunk_id,)))
        control.expect(m.Finish)
        background(lambda: control.send(m.Progress(m.Phase.SYNCING, 0, 0)))
        control.rest()
        receiver.hang_up()
        sender.fails(1, "timeout")


def test_everything_is_missing_after_each_finish(pair: Pair) -> None:
    """All of it is sent once more, which is progress; then it is none."""
    needed = m.Needed((), (m.SegmentRange(0, 0, 10),))
    finishes = 0
    with RawReceiver() as receiver:
        sender = hurried(pair, pair.file("f", 10 * KIB), receiver)
        control, _, _ = receiver.control()
        control.send(needed)
        acknowledging = threading.Thread(target=acknowledge_all, args=(receiver,))
        acknowledging.start()
        with contextlib.suppress(Ended, AssertionError):
            while True:
                control.expect(m.Finish)
                finishes += 1
                control.send(needed)
        control.end_writing()
        sender.fails(1, "timeout")
        receiver.hang_up()
        acknowledging.join(HANG)
    assert finishes > 2


def test_what_is_missing_after_finish_is_sent_and_that_is_the_end(pair: Pair) -> None:
    """An honest receiver that lost something: it says so once, and completes."""
    with RawReceiver() as receiver:
        sender = hurried(pair, pair.file("f", 10 * KIB), receiver)
        control, _, _ = receiver.control()
        # Of what is held, and is not what the source has, Finish does not come ahead: what follows is in order.
        control.send(m.Held(0, 0, bytes(limits.DIGEST_BYTES)), m.Needed((), (m.SegmentRange(0, 1, 9),)))
        data, _ = receiver.welcome(m.Role.DATA)
        for segments, finished in ((10, m.Needed((), (m.SegmentRange(0, 3, 5),))), (5, m.Complete(True))):
            for _ in range(segments):
                data.send(m.ChunkAck(m.Verdict.OK, (read_chunk(data).chunk_id,)))
            assert not control.expect(m.Finish).ahead
            control.send(finished)
        control.end_writing()
        data.close()
        assert sender.succeeds()["resent_chunks"] == 0


def forgetful(receiver: RawReceiver, over: threading.Event) -> list[list[m.Message]]:
    """Take a whole tree again and again, each time as if all of it was missing after Finish; return what was said."""
    said = []
    acknowledging = []
    while not over.is_set():
        with contextlib.suppress(Ended, TimeoutError, OSError):
            control, _ = receiver.welcome(m.Role.CONTROL)
            control.expect(m.Offer)
            part = control.expect(m.ManifestPart)
            needed = m.Needed((m.FileRange(0, len(part.entries)),), ())
            control.send(needed)
            acknowledging.append(threading.Thread(target=acknowledge_all, args=(receiver,)))
            acknowledging[-1].start()
            assert control.expect(m.ManifestPart).last  # once everything is done: nothing is listed again
            control.expect(m.Finish)
            control.send(needed)
            said.append(control.rest())
            control.close()
    receiver.hang_up()
    for thread in acknowledging:
        thread.join(HANG)
    return said


def test_a_receiver_that_forgets_a_tree_again_and_again(pair: Pair) -> None:
    """Each new transfer has told the one before it that it is over, so that none meets it as another sender."""
    (pair.source / "t").mkdir()
    for name in "ab":
        (pair.source / "t" / name).write_bytes(os.urandom(100))
    over = threading.Event()
    said: list[list[m.Message]] = []
    with RawReceiver() as receiver:
        receiver.patience(UNIT / 5)
        taking = threading.Thread(target=lambda: said.extend(forgetful(receiver, over)))
        taking.start()
        sender = pair.sender(pair.source / "t", receiver.address, "--give-up-after", GIVE_UP)
        try:
            sender.fails(1, "timeout")
        finally:
            over.set()
            taking.join(HANG)
    assert len(said) > 1
    goodbyes = [messages[-1] for messages in said[:-1]]
    assert all(isinstance(goodbye, m.Abort) and goodbye.code is Code.SUPERSEDED for goodbye in goodbyes)


# ----------------------------------------------------------------------------------------- a receiver, and a bad sender


def patched(pair: Pair, bounds: Mapping[str, float], *args: object) -> Service:
    """Start a receiver with other bounds than the ones it has."""
    flags = ("--listen", "127.0.0.1:0", "--directory", pair.destination, "--anonymous")
    return pair.start("receiver", *flags, *args, **impatient("receiver", bounds))


def sent(data: Link, chunk: bytes) -> Link:
    """Send a chunk; return the link that answers."""
    data.send_raw(chunk)
    return data


def beat(control: Link) -> Callable[[], None]:
    """Return a heartbeat that is all that is said."""
    return lambda: control.send(m.Progress(m.Phase.MOVING, 1 << 40, 1 << 40))


def test_heartbeats_keep_no_transfer(pair: Pair, background: Callable[..., object]) -> None:
    """It ends by itself, and what came of it is found by the next one."""
    sample = Sample.random(1, 10 * KIB, KIB)
    receiver = pair.receiver("--give-up-after", GIVE_UP)
    with RawSender(Pair.address(receiver)) as peer, RawSender(Pair.address(receiver)) as later:
        control = peer.offer(sample)
        control.expect(m.Needed)
        data = peer.data()
        deliver(data, sample, [0])
        background(beat(control))
        abort = control.expect(m.Abort)
        assert (abort.code, "no progress" in abort.reason) == (Code.TIMEOUT, True)
        control.end_writing()
        receiver.wait_for("transfer_failed")
        again = later.offer(sample)
        answers = [again.expect(m.Needed), again.expect(m.Held)]
        assert answers[0] == m.Needed((), (m.SegmentRange(0, 1, 9),))


def test_the_same_chunk_again_and_again_keeps_no_transfer(pair: Pair, background: Callable[..., object]) -> None:
    sample = Sample.random(1, 10 * KIB, KIB)
    receiver = pair.receiver("--give-up-after", GIVE_UP)
    with RawSender(Pair.address(receiver)) as peer:
        control = peer.offer(sample)
        control.expect(m.Needed)
        data = peer.data()
        background(lambda: acknowledged(sent(data, sample.chunk(0)), 1))
        assert control.expect(m.Abort).code is Code.TIMEOUT


def test_a_damaged_chunk_again_and_again_keeps_no_transfer(pair: Pair, background: Callable[..., object]) -> None:
    sample = Sample.random(1, 10 * KIB, KIB)
    receiver = pair.receiver("--give-up-after", GIVE_UP)
    with RawSender(Pair.address(receiver)) as peer:
        control = peer.offer(sample)
        control.expect(m.Needed)
        data = peer.data()
        background(lambda: ack(sent(data, sample.chunk(0, digest=bytes(16)))))
        assert control.expect(m.Abort).code is Code.TIMEOUT


def test_a_name_goes_to_who_wants_it(pair: Pair, background: Callable[..., object]) -> None:
    """Who makes no progress has it for a bounded time, whatever the patience of this receiver."""
    sample = Sample.random(1, 10 * KIB, KIB)
    receiver = patched(pair, {"filestreamer.wire.limits.STRANGER_SECONDS": GIVE_UP}, "--give-up-after", 1000)
    file = pair.file("sample.bin", 5 * KIB)
    with RawSender(Pair.address(receiver)) as peer:
        control = peer.offer(sample)
        control.expect(m.Needed)
        background(beat(control))
        sender = pair.sender(file, Pair.address(receiver), "--give-up-after", 3 * UNIT)
        assert control.expect(m.Abort).code is Code.SUPERSEDED
        sender.succeeds()
    assert same(file, pair.destination / "sample.bin")


def test_a_name_stays_with_who_gets_on(pair: Pair, background: Callable[..., threading.Event]) -> None:
    """Slowly: a chunk, piece by piece, over several times of what a stranger has."""
    sample = Sample.random(1, 64 * KIB, 64 * KIB)
    receiver = patched(pair, {"filestreamer.wire.limits.STRANGER_SECONDS": GIVE_UP}, "--give-up-after", GIVE_UP)
    chunk = memoryview(sample.chunk(0))
    with RawSender(Pair.address(receiver)) as peer, RawSender(Pair.address(receiver)) as rival:
        control = peer.offer(sample)
        control.expect(m.Needed)
        data = peer.data()
        over = background(lambda: control.send(m.Progress(m.Phase.MOVING, 0, 0)))
        begun = time.monotonic()
        for at in range(0, len(chunk), 2000):  # no pause for synchronisation: this is a slow link
            data.send_raw(bytes(chunk[at : at + 2000]))
            over.wait(3 * GIVE_UP / (len(chunk) / 2000))
        assert time.monotonic() - begun > 2 * GIVE_UP
        assert acknowledged(data, 1) == [0]
        abort = rival.offers(sample.offer, m.ManifestPart(0, (sample.entry,), True))
        assert abort.code is Code.BUSY
        control.send(sample.finish)
        assert control.expect(m.Complete).committed


def test_a_sender_that_begins_again_does_not_meet_itself(pair: Pair) -> None:
    """It has ended the transfer before; what that still puts in place is waited for."""
    tree = TreeSample(KIB)
    tree.directory(b"t")
    tree.add(b"t/a", b"a" * 100)
    receiver = pair.receiver(env=inject("rename", UNIT / 10))
    address = Pair.address(receiver)
    with RawSender(address) as first, RawSender(address) as second:
        control = first.control()
        control.send(tree.offer, *tree.parts)
        control.expect(m.Needed)
        data = first.data()
        for chunk_id, segments in tree.chunks().items():
            data.send_raw(tree.chunk(chunk_id, segments))
        acknowledged(data, len(tree.chunks()))
        control.send(m.Abort(Code.SUPERSEDED, "begins again"))
        data.ends()  # by now the receiver has read the Abort
        again = second.control()
        again.send(tree.offer, *tree.parts)
        assert again.expect(m.Held).unchecked  # put in place by the first; no Abort, no BUSY
    assert (pair.destination / "t" / "a").read_bytes() == b"a" * 100


PLACES: Final = 64


def test_who_only_says_hello_keeps_nobody_out(pair: Pair) -> None:
    """All places are taken by transfers that offer nothing: they end to make room, before their time is over."""
    receiver = pair.receiver()
    address = Pair.address(receiver)
    with contextlib.ExitStack() as stack:
        for _ in range(PLACES):
            stack.enter_context(RawSender(address)).control()
        file = pair.file("f", 10)
        sender = pair.sender(file, address, "--give-up-after", 2 * limits.OPENING_SECONDS + UNIT)
        result = sender.succeeds()
    assert result["seconds"] < limits.DEAD_SECONDS / 2


def test_who_offers_and_goes_no_further_keeps_nobody_out(pair: Pair, background: Callable[..., object]) -> None:
    receiver = patched(pair, {"filestreamer.wire.limits.STRANGER_SECONDS": GIVE_UP}, "--give-up-after", 1000)
    address = Pair.address(receiver)
    with contextlib.ExitStack() as stack:
        controls = []
        for number in range(PLACES):
            sample = Sample.random(number, 10, 10, b"f%d" % number)
            controls.append(stack.enter_context(RawSender(address)).offer(sample))
        background(lambda: [beat(control)() for control in controls], UNIT / 10)
        pair.sender(pair.file("f", 10), address, "--give-up-after", 4 * UNIT).succeeds()


def test_data_connections_without_a_chunk_keep_nobody_out(pair: Pair, background: Callable[..., object]) -> None:
    """All that a receiver takes are held by one sender."""
    bounds = {"receiver.server.admission.CONNECTIONS": 8}
    receiver = patched(pair, bounds)
    address = Pair.address(receiver)
    sample = Sample.random(1, 100, 10)
    with RawSender(address, connections=8) as peer:
        control = peer.offer(sample)
        control.expect(m.Needed)
        for connection_id in range(8):
            peer.data(connection_id)
        background(beat(control))
        file = pair.file("f", 100 * KIB)
        flags = ("--connections", 2, "--give-up-after", 2 * limits.OPENING_SECONDS + UNIT)
        pair.sender(file, address, *flags).succeeds()


# -------------------------------------------------------------------------------------------------- what takes its time


def test_a_few_bytes_per_second(pair: Pair) -> None:
    """One chunk takes several times as long as either side goes without progress."""
    patience = ("--give-up-after", GIVE_UP)
    receiver = pair.receiver(*patience)
    size = 5000
    rate = size / (3 * GIVE_UP)
    flags = ("--rate-limit", int(rate), "--chunk-size", "1MiB", *patience)
    file = pair.file("f", size)
    assert pair.sender(file, Pair.address(receiver), *flags).succeeds()["seconds"] > 2 * GIVE_UP
    assert same(file, pair.destination / "f")


def test_a_stream_whose_writer_pauses(pair: Pair) -> None:
    patience = ("--give-up-after", GIVE_UP)
    receiver = pair.receiver(*patience)
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stdin, os.fdopen(writing, "wb", buffering=0) as writer:
        address = Pair.address(receiver)
        flags = ("-", "--as", "f", "--to", address, *patience)
        sender = pair.start("sender", *flags, stdin=stdin)
        writer.write(b"before")
        sender.wait_for("connected")
        with pytest.raises(subprocess.TimeoutExpired):
            sender.process.wait(3 * GIVE_UP)  # the pause; and nobody gives up
        assert receiver.poll() is None
        writer.write(b" after")
        writer.close()
        sender.succeeds()
    assert (pair.destination / "f").read_bytes() == b"before after"


def test_an_output_whose_reader_pauses(pair: Pair) -> None:
    patience = ("--give-up-after", PATIENT)
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "wb") as stdout:
        flags = ("--listen", "127.0.0.1:0", "--output-file", "-", *patience)
        receiver = pair.start("receiver", *flags, stdout=stdout, **impatient("receiver", EACH_TICK))
        stdout.close()
        file = pair.file("f", 2 * MIB)
        sender = pair.sender(file, Pair.address(receiver), *patience, "--chunk-size", "256KiB")
        with pytest.raises(subprocess.TimeoutExpired):
            sender.process.wait(2 * PATIENT)
        assert reader.read() == file.read_bytes()
        sender.succeeds()


def test_re_hashing_that_takes_long(pair: Pair) -> None:
    """A later run: either side hashes for longer than the other goes without progress."""
    file = pair.file("f", 8 * MIB)
    slow = dict(inject("digest", PATIENT / 8))  # for each of 16 blocks
    patience = ("--give-up-after", PATIENT)
    with RawSender(Pair.address(receiver := pair.receiver())) as peer:
        sample = Sample(b"f", file.read_bytes(), 8 * MIB)
        status = file.stat()
        entry = sample.entry._replace(mtime_ns=status.st_mtime_ns, mode=status.st_mode & 0o777)
        control = peer.control()
        control.send(sample.offer, m.ManifestPart(0, (entry,), True))
        control.expect(m.Needed)
        data = peer.data()
        deliver(data, sample, [0])
        control.close()
        data.close()
    receiver.signal(signal.SIGTERM)
    receiver.wait()
    listen = ("--listen", "127.0.0.1:0", "--directory", pair.destination)
    again = pair.start("receiver", *listen, *patience, **impatient("receiver", EACH_TICK, slow))
    flags = (file, "--to", Pair.address(again), "--chunk-size", 8 * MIB, *patience)
    result = pair.start("sender", *flags, **impatient("sender", EACH_TICK, slow)).succeeds()
    assert result["held_bytes"] == 8 * MIB
    assert result["seconds"] > 2 * PATIENT


@pytest.mark.parametrize("more", [(), ("--dry-run",)], ids=["moved", "dry run"])
def test_a_walk_that_finds_nothing_to_send_for_long(pair: Pair, more: tuple[str, ...]) -> None:
    """The walk gets on, so neither side gives up before the one file that --include chooses."""
    tree = pair.source / "t"
    for number in range(24):
        trees.write(tree / f"other-{number}", b"x")
    trees.write(tree / "z.ckpt", b"the one")
    slow = dict(inject("stat", PATIENT / 8, nth=0, path="other-"))
    patience = ("--give-up-after", PATIENT)
    listen = ("--listen", "127.0.0.1:0", "--directory", pair.destination)
    receiver = pair.start("receiver", *listen, *patience, **impatient("receiver", EACH_TICK))
    flags = (tree, "--to", Pair.address(receiver), "--include", "*.ckpt", *patience, *more)
    sender = pair.start("sender", *flags, **impatient("sender", EACH_TICK, slow))
    assert sender.wait(HANG) == 0, sender.stderr
    assert json.loads(sender.stdout.splitlines()[-1])["seconds"] > 2 * PATIENT
    assert (pair.destination / "t" / "z.ckpt").exists() == (not more)


# ---------------------------------------------------------------------------------------------------- a disk that hangs


def test_a_sync_that_hangs_is_told_and_its_name_is_free_after_it(pair: Pair) -> None:
    """The transfer ends and is reported; the name stays, with the reason, until the thread comes back from the disk."""
    comes_back = pair.logs / "the disk comes back"
    bounds = {"receiver.file.target.LEAVE_SECONDS": UNIT / 10}
    flags = ("--listen", "127.0.0.1:0", "--directory", pair.destination, "--anonymous", "--give-up-after", GIVE_UP)
    hangs = impatient("receiver", bounds, inject("fsync", f"until:{comes_back}", path=".data"))
    receiver = pair.start("receiver", *flags, **hangs)
    address = Pair.address(receiver)
    first = pair.sender(pair.file("f", 10 * KIB), address, "--give-up-after", GIVE_UP)
    (told,) = receiver.wait_for_results()
    assert told["error"]["code"] == "timeout"
    assert first.wait() == 1
    assert first.result["error"]["code"] in ("timeout", "busy"), "it may have come again since"
    second = pair.sender(pair.source / "f", address, "--give-up-after", GIVE_UP)
    assert "hangs" in second.fails(1, "busy")
    comes_back.touch()
    pair.sender(pair.source / "f", address, "--give-up-after", 4 * UNIT).succeeds()
    assert same(pair.source / "f", pair.destination / "f")


# -------------------------------------------------------------------------------------------------- the end by a signal


def test_complete_transfers_whose_senders_left_take_no_time_to_end(pair: Pair) -> None:
    """They are kept to answer a sender that did not get Complete; SIGTERM waits for none."""
    receiver = pair.receiver()
    address = Pair.address(receiver)
    for number in range(5):
        sample = Sample.random(number, 100, 100, b"f%d" % number)
        with RawSender(address) as peer:
            control = peer.offer(sample)
            control.expect(m.Needed)
            data = peer.data()
            deliver(data, sample, [0])
            control.send(sample.finish)
            control.reset()
    receiver.wait_for("control_lost", count=5)
    begun = time.monotonic()
    receiver.signal(signal.SIGTERM)
    assert receiver.wait() == 128 + signal.SIGTERM
    assert time.monotonic() - begun < IN_TIME
    assert len(receiver.results) == 6


@pytest.mark.parametrize("reads", [True, False])
def test_receivers_with_silent_peers_end_in_time(pair: Pair, reads: bool) -> None:
    """Peers that are told to go and do not close."""
    receiver = pair.receiver("--memory-limit", "2GiB")  # for all connections
    address = Pair.address(receiver)
    with contextlib.ExitStack() as stack:
        for number in range(10):
            peer = stack.enter_context(RawSender(address, connections=8))
            control = peer.offer(Sample.random(number, 1000, 10, b"f%d" % number))
            if reads:
                control.expect(m.Needed)
            for connection_id in range(8):
                peer.data(connection_id)
        begun = time.monotonic()
        receiver.signal(signal.SIGTERM)
        assert receiver.wait() == 128 + signal.SIGTERM
        assert time.monotonic() - begun < IN_TIME


def test_a_sender_whose_receiver_reads_nothing_ends_in_time(pair: Pair) -> None:
    with RawReceiver() as receiver:
        sender = pair.sender(pair.file("f", 64 * MIB), receiver.address, "--connections", 2)
        control, _, _ = receiver.control()
        control.send(m.Needed((), (m.SegmentRange(0, 0, 16),)))
        receiver.welcome(m.Role.DATA)
        sender.wait_for("connected")
        begun = time.monotonic()
        sender.signal(signal.SIGTERM)
        assert sender.wait() == 128 + signal.SIGTERM
        assert time.monotonic() - begun < IN_TIME
        assert sender.result["status"] == "interrupted"


def test_a_hung_disk_does_not_hold_the_end_of_the_process(pair: Pair) -> None:
    receiver = pair.receiver(env=inject("fsync", 10 * UNIT, path=".data"))
    sender = pair.sender(pair.file("f", 10 * KIB), Pair.address(receiver), "--give-up-after", GIVE_UP)
    with RawReceiver():
        sender.fails(1, "timeout")
    begun = time.monotonic()
    receiver.signal(signal.SIGTERM)
    assert receiver.wait() == 128 + signal.SIGTERM
    assert time.monotonic() - begun < IN_TIME
    assert receiver.results[-1]["status"] == "interrupted"


@pytest.fixture
def full_pipe() -> Iterator[IO[bytes]]:
    """Return the writing end of a pipe that is full, and that nobody reads."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    for size in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writing, bytes(size))
    os.set_blocking(writing, True)
    with os.fdopen(reading, "rb"), os.fdopen(writing, "wb", buffering=0) as pipe:
        yield pipe


@pytest.mark.parametrize("command", ["sender", "receiver"])
def test_a_result_that_nobody_reads_does_not_hold_the_end(pair: Pair, full_pipe: IO[bytes], command: str) -> None:
    """The result file has it."""
    result_file = pair.logs / "result.json"
    flags: dict[str, tuple[object, ...]] = {
        "sender": (pair.file("f", 10), "--to", "127.0.0.1:1"),
        "receiver": ("--listen", "127.0.0.1:0", "--directory", pair.destination),
    }
    service = pair.start(command, *flags[command], "--result-file", result_file, stdout=full_pipe)
    service.wait_for({"sender": "cannot_connect", "receiver": "listening"}[command])
    begun = time.monotonic()
    service.signal(signal.SIGTERM)
    assert service.wait() == 128 + signal.SIGTERM
    assert time.monotonic() - begun < IN_TIME
    assert json.loads(result_file.read_text())["status"] == "interrupted"


def test_a_gateway_that_never_answers_does_not_hold_the_end(pair: Pair) -> None:
    with RawReceiver() as gateway:
        where = ("--listen", "127.0.0.1:0", "--directory", pair.destination)
        waits_long = impatient("receiver", {"filestreamer.telemetry.push.PUSH_SECONDS": 10 * UNIT})
        receiver = pair.start("receiver", *where, "--pushgateway", f"http://{gateway.address}", **waits_long)
        pair.sender(pair.file("f", 10), Pair.address(receiver)).succeeds()
        receiver.wait_for("transfer_complete")
        begun = time.monotonic()
        receiver.signal(signal.SIGTERM)
        assert receiver.wait() == 128 + signal.SIGTERM
        assert time.monotonic() - begun < IN_TIME


# ------------------------------------------------------------------------------------------- a result, whatever happens

DEFECT = "import {where}; {where}.{what} = lambda *_, **_named: 1 / 0; from {command}.__main__ import main; main()"


def defective(pair: Pair, command: str, where: str, what: str, args: Sequence[object]) -> tuple[int, dict[str, object]]:
    """Run a command of which a part is broken; return its exit code and its result, which is in the file as well."""
    result_file = pair.logs / f"{command}.json"
    code = DEFECT.format(where=where, what=what, command=command)
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, args), "--metrics", "off", "--result-file", str(result_file)],
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert "Traceback" not in run.stderr
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert json.loads(result_file.read_text()) == results[-1]
    return run.returncode, results[-1]


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("sender.coordinator", "Transfer._tick"),
        ("sender.coordinator", "Transfer.__init__"),
        ("sender.network.control", "ControlReader._keep_running"),
        ("sender.network.connection", "DataConnection._move"),
        ("filestreamer.telemetry.monitor", "Monitor.start"),
    ],
)
def test_a_defect_of_the_sender_is_a_result(pair: Pair, where: str, what: str) -> None:
    receiver = pair.receiver()
    args = (pair.file("f", 10 * KIB), "--to", Pair.address(receiver))
    code, result = defective(pair, "sender", where, what, args)
    error = result["error"]
    assert isinstance(error, dict)
    assert (code, result["exit_code"], error["code"]) == (1, 1, "internal")
    assert "ZeroDivisionError" in error["message"]


@pytest.mark.parametrize(
    ("where", "what"), [("receiver.server.server", "Server._tick"), ("filestreamer.telemetry.monitor", "Monitor.start")]
)
def test_a_defect_of_the_receiver_is_a_result(pair: Pair, where: str, what: str) -> None:
    args = ("--listen", "127.0.0.1:0", "--directory", pair.destination)
    code, result = defective(pair, "receiver", where, what, args)
    error = result["error"]
    assert isinstance(error, dict)
    assert (code, error["code"]) == (1, "internal")


# --------------------------------------------------------------------------------------------- few threads, descriptors

PIDS: Final = Path("/sys/fs/cgroup/pids")
_GROUPS: Final = itertools.count()


@pytest.fixture
def few_threads(pair: Pair) -> Iterator[Callable[[int], list[str]]]:
    """Return what makes a command run with so many threads at most."""
    if not os.access(PIDS / "cgroup.procs", os.W_OK):
        pytest.skip("no pids controller that this user may set")
    made: list[Path] = []

    def limit(threads: int) -> list[str]:
        group = PIDS / f"test-{os.getpid()}-{next(_GROUPS)}"
        group.mkdir()
        made.append(group)
        (group / "pids.max").write_text(str(threads))
        return ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]

    yield limit
    pair.end()
    for group in made:
        with contextlib.suppress(OSError):
            group.rmdir()


@pytest.mark.parametrize("threads", [3, 4, 6, 10])
def test_a_sender_with_few_threads_has_fewer_connections(
    pair: Pair, few_threads: Callable[[int], list[str]], threads: int
) -> None:
    receiver = pair.receiver()
    file = pair.file("f", 8 * MIB)
    flags = (file, "--to", Pair.address(receiver), "--connections", 16, "--chunk-size", "256KiB")
    sender = pair.start("sender", *flags, under=few_threads(threads))
    result = sender.succeeds()
    assert 1 <= result["connections"] < threads
    assert len(sender.events("fewer_connections")) <= 1
    assert same(file, pair.destination / "f")


def test_a_sender_without_a_thread_says_so(pair: Pair, few_threads: Callable[[int], list[str]]) -> None:
    receiver = pair.receiver()
    flags = (pair.file("f", 10), "--to", Pair.address(receiver), "--give-up-after", GIVE_UP)
    sender = pair.start("sender", *flags, under=few_threads(1))
    assert "no thread can be started" in sender.fails(1, "limit")


@pytest.mark.parametrize("threads", [4, 6, 10])
def test_a_receiver_with_few_threads_has_fewer_connections(
    pair: Pair, few_threads: Callable[[int], list[str]], threads: int
) -> None:
    flags = ("--listen", "127.0.0.1:0", "--directory", pair.destination)
    receiver = pair.start("receiver", *flags, under=few_threads(threads))
    file = pair.file("f", 8 * MIB)
    sender = pair.sender(file, Pair.address(receiver), "--connections", 16, "--chunk-size", "256KiB")
    sender.succeeds()
    receiver.wait_for("transfer_complete")
    assert "Traceback" not in receiver.stderr
    assert same(file, pair.destination / "f")


@pytest.mark.parametrize("side", ["sender", "receiver"])
def test_few_descriptors_are_fewer_connections(pair: Pair, side: str) -> None:
    few = ["prlimit", "--nofile=24:24"]
    listen = ("--listen", "127.0.0.1:0", "--directory", pair.destination)
    receiver = pair.start("receiver", *listen, under=few if side == "receiver" else ())
    file = pair.file("f", 8 * MIB)
    flags = (file, "--to", Pair.address(receiver), "--connections", 32, "--chunk-size", "256KiB")
    sender = pair.start("sender", *flags, under=few if side == "sender" else ())
    # Not how many there were: one that finds no descriptor for the source ends, and another one takes its place.
    sender.succeeds()
    assert same(file, pair.destination / "f")
    told = {str(line.get("reason")) for line in (sender if side == "sender" else receiver).log}
    assert any("oo many" in reason for reason in told), told
