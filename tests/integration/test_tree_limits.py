"""What a tree takes of its receiver: memory, descriptors and names follow what is under way, not how long it is."""

import base64
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.digests import root_digest, segment_digest
from filestreamer.wire.framing import frame
from filestreamer.wire.limits import KIB, MIB
from tests.support import trees
from tests.support.peer import RawSender, ack
from tests.support.processes import resident_bytes
from tests.support.proxy import Proxy, Reset, SlowReader
from tests.support.services import EACH_TICK, HANG, UNIT, Pair, Service, impatient, inject

MTIME = 1_700_000_000_000_000_000
ENTRIES = 2_000_000 if "TEST_LARGE" in os.environ else 50_000
LONG = pytest.mark.timeout(max(300, ENTRIES // 1000))
SLACK_BYTES = min(16 * MIB, 80 * ENTRIES)
"""What memory may grow by without being kept for each entry: less than an object of Python for each."""


def held_bytes(service: Service) -> int:
    """Return the memory that a process has now."""
    return resident_bytes(service.process.pid)


def file(path: bytes, size: int = 1, **more: object) -> m.Entry:
    return m.Entry(path, m.EntryType.FILE, size, 0o644, MTIME)._replace(**more)  # type: ignore[arg-type]


def directory(path: bytes) -> m.Entry:
    return m.Entry(path, m.EntryType.DIRECTORY, 0, 0o755, MTIME)


_NAMES = random.Random(0)
Batch = Callable[[int], tuple[tuple[m.Entry, ...], bool]]


def withdrawn(first: int) -> tuple[tuple[m.Entry, ...], bool]:
    """List files that are withdrawn at once: each part is done with."""
    names = [base64.b85encode(_NAMES.randbytes(200)) for _ in range(200)]  # which do not shrink when they are packed
    return tuple([file(b"t/" + name) for name in names]), True


def groups(first: int) -> tuple[tuple[m.Entry, ...], bool]:
    """List the first entries of hard-link groups."""
    return tuple([file(b"t/%d" % (first + at), hard_link_group=first + at) for at in range(1000)]), True


def tops(first: int) -> tuple[tuple[m.Entry, ...], bool]:
    """List symlinks in the destination itself: they are in place at once."""
    entry = m.Entry(b"", m.EntryType.SYMLINK, 0, 0o777, MTIME, None, None, b"nowhere")
    return tuple([entry._replace(path=b"top %d" % (first + at)) for at in range(1000)]), False


@LONG
@pytest.mark.parametrize("batch", [withdrawn, groups, tops], ids=lambda batch: str(batch.__name__))
def test_memory_does_not_grow_with_the_manifest(pair: Pair, batch: Batch) -> None:
    receiver = pair.receiver()
    with RawSender(pair.address(receiver), connections=1) as sender:
        control = sender.control()
        control.send(m.Offer(MIB, None, False, 0), m.ManifestPart(0, (directory(b"t"),), False))
        first, before = 1, 0
        while first < ENTRIES:
            entries, is_withdrawn = batch(first)
            control.send(m.ManifestPart(first, entries, False))
            if is_withdrawn:
                control.send(m.Withdrawn(tuple(range(first, first + len(entries)))))
            first += len(entries)
            before = before or (held_bytes(receiver) if first > ENTRIES // 10 else 0)
        control.send(m.ManifestPart(first, (), True), m.Finish(count(first, batch), root_digest(())))
        said = control.read()
        while not isinstance(said, m.Complete | m.Abort):
            said = control.read()
        assert said == m.Complete(True)
        assert held_bytes(receiver) < before + SLACK_BYTES + 8 * ENTRIES


def count(files: int, batch: Batch) -> int:
    """Count the chunks of what was listed: a bundle for each part that has files."""
    return 0 if batch is tops else (files - 1) // (200 if batch is withdrawn else 1000)


@LONG
def test_memory_does_not_grow_with_what_waits(pair: Pair) -> None:
    """Behind parts that are never answered lie others, a million entries, withdrawn by the half."""
    receiver = pair.receiver()
    with RawSender(pair.address(receiver), connections=1) as sender:
        control = sender.control()
        control.send(m.Offer(MIB, None, False, 0), m.ManifestPart(0, (directory(b"t"),), False))
        for at in range(70):
            control.send(m.ManifestPart(1 + at, (file(b"t/%d" % at),), False))
            if at < 64:
                control.expect(m.Needed)
        first, before = 71, held_bytes(receiver)
        while first < ENTRIES:
            control.send(m.ManifestPart(first, tuple([file(b"t/%d" % (first + at)) for at in range(1000)]), False))
            control.send(m.Withdrawn(tuple(range(first, first + 500))))
            first += 1000
        control.send(m.Progress(m.Phase.MOVING, 0, 0))
        control.expect(m.Progress)
        assert held_bytes(receiver) < before + SLACK_BYTES
        assert "t/71" not in os.listdir(pair.destination / "t")


def test_tables_of_huge_files_are_lent_to_whoever_goes_on(pair: Pair) -> None:
    """Files of 2^23 segments, of which two are sent: half of each, then the other half. None is refused."""
    segments = limits.CHUNKS_PER_FILE
    receiver = pair.receiver()
    before = held_bytes(receiver)
    with RawSender(pair.address(receiver), connections=1) as sender:
        control = sender.control()
        entries = (directory(b"t"), *(file(b"t/%d" % at, segments) for at in range(6)))
        control.send(m.Offer(1, None, False, 0), m.ManifestPart(0, entries, True))
        control.expect(m.Needed)
        data = sender.data()
        for segment in (0, 1):
            for at in range(6):
                data.send_raw(chunk(at * segments + segment, m.Segment(1 + at, segment, 1), b"x"))
                assert ack(data).verdict is m.Verdict.OK
                assert held_bytes(receiver) < before + 420 * MIB
    assert receiver.poll() is None


def chunk(chunk_id: int, segment: m.Segment, payload: bytes) -> bytes:
    return frame(m.ChunkHeader(chunk_id, (segment,))) + payload + segment_digest(payload)


@pytest.fixture
def photos(pair: Pair, seed: int) -> Path:
    """Return many files of two chunks each."""
    rng = random.Random(seed)
    root = pair.source / "photos"
    root.mkdir()
    for at in range(1500):
        (root / f"{at}.jpg").write_bytes(rng.randbytes(1536))
    return root


def test_files_of_two_chunks_over_unequal_connections(pair: Pair, photos: Path) -> None:
    receiver = pair.receiver("--once")
    slow = SlowReader(on="data 1", bytes_per_read=4 * KIB, pause_seconds=0.1, span=1 << 40, nth=None)
    with Proxy(pair.address(receiver), [slow]) as proxy:
        sender = pair.sender(photos, proxy.address, "--chunk-size", "1KiB", "--connections", 2)
        result = sender.succeeds()
    receiver.succeeds()
    assert result["sent_bytes"] < 1.1 * result["bytes"]
    assert trees.differences(photos, pair.destination / "photos") == []


def test_few_descriptors_are_enough(pair: Pair, photos: Path) -> None:
    where = ("--listen", "127.0.0.1:0", "--directory", pair.destination)
    receiver = pair.start("receiver", *where, under=("prlimit", "--nofile=64:64"))
    address = pair.address(receiver)
    result = pair.sender(photos, address, "--chunk-size", "1KiB", "--connections", 3).succeeds()
    assert (result["sent_bytes"], result["reconnects"]) == (result["bytes"], 0)
    assert trees.differences(photos, pair.destination / "photos") == []
    assert len(os.listdir(f"/proc/{receiver.process.pid}/fd")) < 40


@pytest.mark.parametrize(
    ("call", "path", "is_tree"),
    [
        ("mkdir", "hung", True),
        ("stat", "hung", True),
        ("mkdir", ".tree", True),
        ("ftruncate", "", False),
        ("open", ".ledger", False),
    ],
)
def test_heartbeats_go_on_while_a_disk_hangs(pair: Pair, call: str, path: str, is_tree: bool) -> None:
    """Whatever the disk does, the sender gets heartbeats; then the transfer goes on."""
    seconds = 5.2  # five ticks, of which a busy machine may miss some
    hangs = impatient("receiver", EACH_TICK, inject(call, seconds, path=path))
    receiver = pair.start("receiver", "--listen", "127.0.0.1:0", "--directory", pair.destination, **hangs)
    if call == "stat":  # what is new is not looked at
        (pair.destination / "hung").mkdir()
    with RawSender(pair.address(receiver), connections=1) as sender:
        control = sender.control()
        entries = (directory(b"hung"), file(b"hung/hung")) if is_tree else (file(b"single"),)
        begun = time.monotonic()
        control.send(m.Offer(MIB, None, False, 0), m.ManifestPart(0, entries, True))
        heard = [control.read()]
        while not isinstance(heard[-1], m.Needed):
            heard.append(control.read())
        assert time.monotonic() - begun > seconds / 2, "nothing hung"
        assert len(heard) >= 3, "no heartbeat came"


def test_a_transfer_ends_while_its_disk_hangs(pair: Pair) -> None:
    """SIGTERM ends the transfer, and the thread that hung releases the name when it returns."""
    receiver = pair.receiver(env=inject("mkdir", 20 * UNIT, path="hung"))
    with RawSender(pair.address(receiver), connections=1) as sender:
        control = sender.control()
        control.send(m.Offer(MIB, None, False, 0), m.ManifestPart(0, (directory(b"hung"), file(b"hung/f")), True))
        receiver.wait_for("transfer_started")
        receiver.signal(signal.SIGTERM)
        assert control.expect(m.Abort).code.name == "SHUTTING_DOWN"
        assert receiver.wait(HANG) == 128 + signal.SIGTERM


@pytest.fixture
def many(pair: Pair) -> Path:
    """Return a directory with more names than were ever allowed at the top."""
    root = pair.source / "many"
    root.mkdir()
    for at in range(1500):
        (root / f"{at}").write_bytes(b"%d" % at)
    for at in range(1100):
        (root / f"d{at}").mkdir()
    return root


def test_any_number_of_names_at_the_top(pair: Pair, many: Path) -> None:
    receiver = pair.receiver("--once")
    pair.start("sender", f"{many}/", "--to", pair.address(receiver)).succeeds()
    receiver.succeeds()
    assert [each for each in trees.differences(many, pair.destination) if not each.startswith("b''")] == []


def is_busy(address: str, name: bytes) -> None:
    """Assert that another sender may not have a name."""
    with RawSender(address) as third:
        abort = third.offers(m.Offer(MIB, None, False, 0), m.ManifestPart(0, (file(name),), True))
    assert abort.code.name == "BUSY"


def test_a_name_at_the_top_is_another_ones_only_after_it_is_in_place(pair: Pair) -> None:
    receiver = pair.receiver()
    address = pair.address(receiver)
    with RawSender(address, connections=1) as first, RawSender(address, connections=1) as second:
        control = first.control()
        control.send(m.Offer(MIB, None, False, 0), m.ManifestPart(0, (directory(b"d"), file(b"f"), file(b"g")), False))
        control.expect(m.Needed)
        for name in (b"f", b"d"):
            is_busy(address, name)
        data = first.data()
        data.send_raw(chunk(0, m.Segment(1, 0, 1), b"x"))
        assert ack(data).verdict is m.Verdict.OK
        until = time.monotonic() + HANG
        while not (pair.destination / "f").exists():
            assert time.monotonic() < until, "it is not put in place"
        other = second.control()
        other.send(m.Offer(MIB, None, False, 0), m.ManifestPart(0, (file(b"f", 2),), True))
        other.expect(m.Needed)
        for name in (b"g", b"d"):
            is_busy(address, name)


def test_lost_connections_while_files_are_set_aside(pair: Pair, seed: int) -> None:
    """With places for three files, connections that are reset again and again: each byte lands where it belongs."""
    rng = random.Random(seed)
    root = pair.source / "tree"
    root.mkdir()
    for at in range(120):
        (root / f"{at}").write_bytes(rng.randbytes(rng.randrange(1, 30 * KIB)))
    where = ("--listen", "127.0.0.1:0", "--directory", pair.destination, "--once")
    receiver = pair.start("receiver", *where, under=("prlimit", "--nofile=64:64"))
    faults = [Reset(on="data *", at=rng.randrange(20 * KIB, 200 * KIB), nth=nth) for nth in range(4)]
    faults += [Reset(on="control", at=at, nth=nth) for nth, at in enumerate((2000, 1500))]
    with Proxy(pair.address(receiver), faults) as proxy:
        sender = pair.sender(root, proxy.address, "--chunk-size", "1KiB", "--connections", 5)
        sender.succeeds()
    receiver.succeeds()
    assert trees.differences(root, pair.destination / "tree") == []
