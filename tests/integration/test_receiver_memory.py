"""Whatever senders do, a receiver stays within what its container may take: counted by the kernel."""

import contextlib
import os
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import Code, Refused
from filestreamer.wire.framing import frame
from tests.support import services
from tests.support.cgroups import Group, memory_group
from tests.support.peer import Ended, Link, RawSender, acknowledged
from tests.support.processes import peak_bytes, resident_bytes
from tests.support.scrape import scrape
from tests.support.services import HANG, UNIT, Pair, Service, same

MIB = limits.MIB
METRICS = {"FILESTREAMER_METRICS": "127.0.0.1:0"}


def small_receiver(pair: Pair, *args: object, limit: str) -> Service:
    return pair.receiver("--memory-limit", limit, *args, env=METRICS)


@pytest.fixture
def grouped(tmp_path: Path) -> Iterator[tuple[Pair, Group]]:
    """Return a pair, and a cgroup of 512 MiB for its receiver, which is removed when that has ended."""
    with memory_group(512 * MIB) as group, services.pair(tmp_path) as made, group:
        yield made, group


def receiver_in(pair: Pair, group: Group) -> Service:
    directory = ("--directory", pair.destination)
    return pair.start("receiver", "--listen", "127.0.0.1:0", *directory, under=group.under, env=METRICS)


def entry(name: bytes, size: int = 0, type: m.EntryType = m.EntryType.FILE, **more: object) -> m.Entry:
    return m.Entry(name, type, size, 0o644, 10**18, **more)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------- in a container


def test_thirty_senders_at_once_stay_within_the_container(grouped: tuple[Pair, Group]) -> None:
    pair, group = grouped
    receiver = receiver_in(pair, group)
    address = pair.address(receiver)
    assert scrape(receiver).value("memory_budget_bytes") < 384 * MIB  # it knows its container
    files = [pair.file(f"f{number}", 6 * MIB, seed=number) for number in range(30)]
    options = ("--chunk-size", "128KiB", "--rate-limit", "1500KiB/s", "--give-up-after", 120)
    connections = (12, "auto", 64)
    senders = [
        pair.sender(file, address, *options, "--connections", connections[at % 3]) for at, file in enumerate(files)
    ]
    for sender in senders:
        sender.succeeds(seconds=20 * UNIT)
    assert group.oom_kills == 0
    assert receiver.poll() is None
    assert group.peak_bytes < 512 * MIB
    for file in files:
        assert same(file, pair.destination / file.name)


def test_connections_that_bring_one_byte_and_leave_give_all_of_it_back(grouped: tuple[Pair, Group]) -> None:
    """256 connections of a byte each, of several transfers; then all but a few of them close."""
    pair, group = grouped
    receiver = receiver_in(pair, group)
    address = pair.address(receiver)
    before = group.held_bytes
    with contextlib.ExitStack() as stack:
        links: list[Link] = []
        for number in range(4):
            sender = stack.enter_context(RawSender(address, connections=256))
            control = sender.control()
            control.send(m.Offer(MIB, None, False, 0), m.ManifestPart(0, (entry(b"f%d" % number, 256 * MIB),), True))
            control.expect(m.Needed)
            for connection_id in range(256):
                with contextlib.suppress(Refused):
                    link = sender.data(connection_id)
                    link.send(m.ChunkHeader(connection_id, (m.Segment(0, connection_id * MIB, MIB),)))
                    link.send_raw(b"x")
                    links.append(link)
        assert len(links) >= 256
        most = scrape(receiver).value("memory_used_bytes")
        for link in links[:-4]:
            link.close()
        until = time.monotonic() + HANG
        while scrape(receiver).value("memory_used_bytes") > most / 4 or group.held_bytes > before + 48 * MIB:
            assert time.monotonic() < until, f"{group.held_bytes - before} bytes more than before are held"
            time.sleep(0.05)
    assert group.oom_kills == 0
    assert group.peak_bytes < 512 * MIB


def test_many_pipes_with_slow_readers_stay_within_the_container(grouped: tuple[Pair, Group]) -> None:
    """Each fills the window that it was told; that of ten is not ten times that of one."""
    pair, group = grouped
    receiver = receiver_in(pair, group)
    address = pair.address(receiver)
    windows = []
    with contextlib.ExitStack() as stack:
        for number in range(40):
            sender = stack.enter_context(RawSender(address))
            try:
                control = sender.control()
            except Refused:
                continue
            stream = entry(b"s%d" % number, type=m.EntryType.STREAM)
            control.send(m.Offer(MIB, None, False, 0), m.ManifestPart(0, (stream,), True))
            answer = control.read()
            while isinstance(answer, m.Progress):
                answer = control.read()
            if isinstance(answer, m.Abort):
                assert answer.code is Code.LIMIT
                continue
            assert isinstance(answer, m.Needed)
            windows.append(answer.window_bytes)
            _fill(sender.data(), answer.window_bytes)
        assert len(windows) >= 10
        assert min(windows) >= MIB
        assert sum(windows) < 352 * MIB
    assert group.oom_kills == 0
    assert group.peak_bytes < 512 * MIB


def _fill(link: Link, window_bytes: int) -> None:
    """Send all of a window but its first chunk, without which nothing is passed on."""
    chunk = bytes(MIB)
    digest = segment_digest(chunk)
    for index in range(1, window_bytes // MIB):
        link.send_raw(frame(m.ChunkHeader(index, (m.Segment(0, index * MIB, MIB),))) + chunk + digest)


# --------------------------------------------------------------------------------------------------------- small chunks


@pytest.mark.parametrize("is_tree", [False, True])
def test_runs_of_chunks_that_a_small_buffer_has_no_room_for(pair: Pair, seed: int, *, is_tree: bool) -> None:
    """A connection for which there is little memory gets a buffer of 64 KiB: each chunk comes in several blocks."""
    receiver = small_receiver(pair, limit="32MiB")
    (pair.source / "t").mkdir()
    file = pair.file("t/f", 16 * MIB, seed)
    options = ("--chunk-size", "256KiB", "--connections", 8)
    result = pair.sender(file.parent if is_tree else file, pair.address(receiver), *options).succeeds()
    assert (result["resent_chunks"], result["reconnects"]) == (0, 0)
    assert same(file, pair.destination / ("t/f" if is_tree else "f"))


@pytest.mark.parametrize(("limit", "block"), [("32MiB", 64 * 1024), ("512MiB", limits.BLOCK_BYTES)])
def test_bundles_of_files_as_large_as_a_block_and_around(pair: Pair, seed: int, limit: str, block: int) -> None:
    """They are received as many at a time as a block has room for, and a larger one by itself."""
    rng = random.Random(seed)
    near = [size + more for size in (block // 2, block, 2 * block) for more in (-1, 0, 1)]
    sizes = [*near, *rng.choices([1, 2, *near, *(rng.randrange(block) for _ in range(8))], k=60)]
    rng.shuffle(sizes)
    (pair.source / "t").mkdir()
    for number, size in enumerate(sizes):
        pair.file(f"t/{number}", size, number)
    receiver = small_receiver(pair, limit=limit)
    options = ("--chunk-size", "4MiB", "--connections", 2)
    result = pair.sender(pair.source / "t", pair.address(receiver), *options).succeeds()
    assert (result["resent_chunks"], result["reconnects"]) == (0, 0)
    for number in range(len(sizes)):
        assert same(pair.source / f"t/{number}", pair.destination / f"t/{number}"), (number, sizes[number])


def test_every_other_chunk_of_a_file_of_a_tree_is_answered_and_resumed_in_little_memory(pair: Pair) -> None:
    """As many runs as there can be: nothing makes a list of them, nor work for each, all at once."""
    receiver = pair.receiver()
    address = pair.address(receiver)
    size = 48 * 1024
    file = entry(b"d/f", size)
    messages = (m.Offer(1, None, False, 0), m.ManifestPart(0, (entry(b"d", type=m.EntryType.DIRECTORY), file), True))
    digest = segment_digest(b"x")
    with RawSender(address) as sender:
        control = sender.control()
        control.send(*messages)
        control.expect(m.Needed)
        link = sender.data()
        for first in range(0, size, 2048):
            chunks = [frame(m.ChunkHeader(at, (m.Segment(1, at, 1),))) for at in range(first, first + 2048, 2)]
            link.send_raw(b"".join([chunk + b"x" + digest for chunk in chunks]))
            acknowledged(link, len(chunks))
        before = resident_bytes(receiver.process.pid)
        _expect_both(sender.control(), messages, size // 2)
    with RawSender(address) as again:
        _expect_both(again.control(), messages, size // 2)
    assert peak_bytes(receiver.process.pid) < before + 10 * MIB


def _expect_both(control: Link, messages: tuple[m.Message, ...], segments: int) -> None:
    """Offer; so many segments are needed, and as many held."""
    control.send(*messages)
    needed = held = 0
    while (needed, held) != (segments, segments):
        answer = control.read()
        if isinstance(answer, m.Needed):
            needed += sum(each.segments for each in answer.segments)
        elif isinstance(answer, m.Held):
            held += len(answer.digests) // limits.DIGEST_BYTES
        else:
            assert isinstance(answer, m.Progress)


def test_a_chunk_that_waits_costs_no_more_for_being_brought_again(pair: Pair) -> None:
    """A pipe acknowledges a chunk when those before it have come: what is kept for that doesn't grow with repeats."""
    receiver = pair.receiver()
    chunk = frame(m.ChunkHeader(1, (m.Segment(0, 1024, 1),))) + b"x" + segment_digest(b"x")
    with RawSender(pair.address(receiver)) as sender:
        control = sender.control()
        stream = entry(b"s", type=m.EntryType.STREAM)
        control.send(m.Offer(1024, None, False, 0), m.ManifestPart(0, (stream,), True))
        control.expect(m.Needed)
        link = sender.data()
        before = resident_bytes(receiver.process.pid)
        for _ in range(200):
            link.send_raw(chunk * 1000)
        link.end_writing()
        link.rest()  # to the end: all of it was looked at
        assert resident_bytes(receiver.process.pid) < before + 16 * MIB


def test_an_offer_costs_no_more_than_what_comes_of_it(pair: Pair) -> None:
    """A window is a number that a peer says: nothing is made for it, and there is a bound to its chunks."""
    receiver = pair.receiver()
    address = pair.address(receiver)
    before = resident_bytes(receiver.process.pid)
    with contextlib.ExitStack() as stack:
        for number in range(8):
            control = stack.enter_context(RawSender(address)).control()
            stream = entry(b"s%d" % number, type=m.EntryType.STREAM)
            control.send(m.Offer(1, None, False, 0), m.ManifestPart(0, (stream,), True))
            assert 0 < control.expect(m.Needed).window_bytes <= 1 << 16
        assert resident_bytes(receiver.process.pid) < before + 24 * MIB


def test_tables_of_chunks_come_out_of_one_budget(pair: Pair) -> None:
    """A sparse file costs as large a table as any; what is there for others stays there."""
    receiver = small_receiver(pair, limit="512MiB")
    address = pair.address(receiver)
    most = limits.CHUNKS_PER_FILE
    codes = []
    with contextlib.ExitStack() as stack:
        for number in range(6):
            control = stack.enter_context(RawSender(address)).control()
            sparse = entry(b"f%d" % number, most, data_bytes=1)
            control.send(m.Offer(1, None, False, 0), m.ManifestPart(0, (sparse,), True))
            answer = control.read()
            while isinstance(answer, m.Progress):
                answer = control.read()
            codes.append(answer.code if isinstance(answer, m.Abort) else None)
        assert codes[0] is None
        assert codes[-1] is Code.LIMIT
        assert resident_bytes(receiver.process.pid) < 384 * MIB
        file = pair.file("honest", 100_000)
        pair.sender(file, address).succeeds()


# ------------------------------------------------------------------------------------------------------------ admission


def test_who_comes_when_all_is_taken_waits_for_another_to_end(pair: Pair) -> None:
    receiver = small_receiver(pair, limit="32MiB")  # 8 MiB for all: one transfer
    address = pair.address(receiver)
    file = pair.file("f", 300_000)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(RawSender(address))
        control = first.control()
        control.send(m.Offer(MIB, None, False, 0), m.ManifestPart(0, (entry(b"held", MIB),), True))
        control.expect(m.Needed)
        with contextlib.suppress(Refused):
            stack.enter_context(RawSender(address)).control()
        with RawSender(address) as third:
            assert third.refused(m.Role.CONTROL).code is Code.LIMIT
        sender = pair.sender(file, address)
        told = sender.wait_for("cannot_connect")
        assert "memory" in told["reason"]
        assert sender.poll() is None
    sender.succeeds()


def test_what_never_fits_is_refused_for_good(pair: Pair) -> None:
    receiver = small_receiver(pair, limit="64MiB")  # 16 MiB for all: 20 bytes a chunk are more
    file = pair.file("f", MIB)
    sender = pair.sender(file, pair.address(receiver), "--chunk-size", "1")
    message = sender.fails(3, "too_large", status="refused")
    assert "--memory-limit" in message
    (result,) = receiver.wait_for_results()
    assert (result["error"]["code"], result["exit_code"]) == ("too_large", 3)
    pair.sender(file, pair.address(receiver)).succeeds()


# ------------------------------------------------------------------------------------------------------------- fairness


def from_address(sender: RawSender, host: str) -> None:
    """Have a sender connect from this address of the loopback network."""

    def connect() -> Link:
        link = Link(socket.create_connection(sender._address, timeout=HANG, source_address=(host, 0)))
        sender._links.append(link)
        return link

    sender.connect = connect  # type: ignore[method-assign]


def connections_of(sender: RawSender, name: bytes, number: int) -> int:
    """Offer a file, and open data connections; return how many came in."""
    control = sender.control()
    control.send(m.Offer(MIB, None, False, 0), m.ManifestPart(0, (entry(name, 256 * MIB),), True))
    control.expect(m.Needed)
    came_in = 0
    for connection_id in range(number):
        with contextlib.suppress(Refused):
            sender.data(connection_id)
            came_in += 1
    return came_in


def test_one_peer_does_not_keep_another_out(pair: Pair) -> None:
    receiver = small_receiver(pair, limit="128MiB")
    address = pair.address(receiver)
    with contextlib.ExitStack() as stack:
        greedy = [stack.enter_context(RawSender(address, connections=256)) for _ in range(4)]
        for number, sender in enumerate(greedy):
            from_address(sender, "127.0.0.2")
            with contextlib.suppress(Refused):
                connections_of(sender, b"greedy%d" % number, 256)
        with RawSender(address, connections=8) as modest:
            assert connections_of(modest, b"modest", 8) >= 1
        file = pair.file("f", 3 * MIB)
        sender_ = pair.sender(file, address, "--connections", 8, "--chunk-size", "64KiB")
        sender_.succeeds()
    assert same(file, pair.destination / "f")


def test_a_transfer_that_goes_on_makes_room_for_others(pair: Pair) -> None:
    """What its connections have for speed is given back when others are refused; no connection is lost."""
    receiver = pair.receiver("--memory-limit", "512MiB", env=METRICS)
    address = pair.address(receiver)
    with contextlib.ExitStack() as stack:
        sender = stack.enter_context(RawSender(address, connections=8))
        control = sender.control()
        control.send(m.Offer(4096, None, False, 0), m.ManifestPart(0, (entry(b"f", 256 * MIB),), True))
        control.expect(m.Needed)
        links = [sender.data(connection_id) for connection_id in range(8)]
        began = scrape(receiver).value("memory_used_bytes")
        assert began > 32 * MIB
        others = []
        with contextlib.suppress(Refused):
            while True:
                others.append(stack.enter_context(RawSender(address)))
                others[-1].control()
        index = 0
        until = time.monotonic() + HANG
        while scrape(receiver).value("memory_used_bytes") - 4 * MIB * len(others) > began / 2:
            assert time.monotonic() < until
            with contextlib.suppress(Refused):
                others.append(stack.enter_context(RawSender(address)))
                others[-1].control()
            for link in links:
                chunk = bytes(4096)
                header = m.ChunkHeader(index, (m.Segment(0, 4096 * index, 4096),))
                link.send_raw(frame(header) + chunk + segment_digest(chunk))
                assert acknowledged(link, 1) == [index]
                index += 1
        assert len(others) > 30


def test_a_transfer_goes_on_over_the_connections_that_it_gets(pair: Pair) -> None:
    receiver = small_receiver(pair, limit="32MiB")
    file = pair.file("f", 4 * MIB)
    sender = pair.sender(file, pair.address(receiver), "--connections", 64, "--chunk-size", "16KiB")
    result = sender.succeeds()
    assert result["bytes"] == 4 * MIB
    assert same(file, pair.destination / "f")


def test_a_connection_that_takes_the_place_of_another_gets_in(pair: Pair) -> None:
    """Its sender has given the older one up; that one's memory is not there yet."""
    receiver = small_receiver(pair, limit="32MiB")
    with RawSender(pair.address(receiver), connections=64) as sender:
        connections_of(sender, b"f", 64)
        for _ in range(4):
            first = sender.data(0)
            chunk = os.urandom(MIB)
            first.send_raw(frame(m.ChunkHeader(0, (m.Segment(0, 0, MIB),))) + chunk + segment_digest(chunk))
            try:
                assert acknowledged(first, 1) == [0]
                break
            except Ended:
                continue
        else:
            raise AssertionError("no chunk arrives")


# -------------------------------------------------------------------------------------------------------------- control


def test_what_a_sender_says_waits_in_its_socket(pair: Pair) -> None:
    """A sender that talks faster than it is answered fills no memory, and is not taken for dead."""
    receiver = pair.receiver()
    address = pair.address(receiver)
    before = resident_bytes(receiver.process.pid)
    with RawSender(address) as sender:
        control = sender.control()
        control.send(m.Offer(MIB, None, False, 0))
        progress = frame(m.Progress(m.Phase.MOVING, 0, 0))
        control.socket.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            for _ in range(2000):
                control.send_raw(progress)
        assert resident_bytes(receiver.process.pid) < before + 16 * MIB
