"""What a sender may cost: memory, threads, log lines and places stay bounded whatever it sends; others are served."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import encode
from filestreamer.wire.errors import Code, FilestreamerError
from filestreamer.wire.framing import frame, frame_of
from tests.support.attacks import GROWTH_BYTES, MIB, Running, unharmed
from tests.support.peer import Ended, Link, RawSender, Sample, ack, acknowledged
from tests.support.processes import Watch, resident_bytes
from tests.support.services import HANG, UNIT, Pair, Service, same

# -------------------------------------------------------------------------------------------- transfers and connections


def test_transfers_that_are_begun_and_left(pair: Pair) -> None:
    """A Hello for a transfer, and gone: a hundred of those must not keep the next sender out for long."""
    receiver = pair.receiver()
    address = pair.address(receiver)
    for _ in range(100):
        with RawSender(address) as peer, contextlib.suppress(FilestreamerError):
            peer.control()
    file = pair.file("f", 1000)
    pair.sender(file, address, "--give-up-after", UNIT).succeeds()
    assert same(file, pair.destination / "f")
    unharmed(receiver)


def test_transfers_that_were_committed_and_left(pair: Pair) -> None:
    """Empty files, Complete, and a reset: each may be asked for again, and none may take the next sender's place."""
    receiver = pair.receiver()
    address = pair.address(receiver)
    for number in range(70):
        sample = Sample(f"empty-{number}".encode(), b"", 10)
        with RawSender(address) as peer, contextlib.suppress(FilestreamerError):
            control = peer.offer(sample)
            control.send(sample.finish)
            control.expect(m.Complete)
            control.reset()
    file = pair.file("f", 1000)
    pair.sender(file, address, "--give-up-after", UNIT).succeeds()
    assert same(file, pair.destination / "f")
    unharmed(receiver)


def test_more_connections_than_threads(pair: Pair) -> None:
    """Where no thread can be started, that one connection is turned away; the receiver serves on."""
    flags = ("--listen", "127.0.0.1:0", "--directory", pair.destination)
    receiver = pair.start("receiver", *flags, under=["prlimit", f"--as={1400 * MIB}"])
    address = pair.address(receiver)
    sample = Sample.random(1, 100, 10)
    with RawSender(address, connections=256) as peer:
        peer.offer(sample).expect(m.Needed)
        for connection_id in range(256):
            with contextlib.suppress(FilestreamerError, Ended):
                peer.data(connection_id)
        assert receiver.process.poll() is None, receiver.stderr
    file = pair.file("f", 1000)
    pair.sender(file, address).succeeds()
    unharmed(receiver)


# ------------------------------------------------------------------------------------------------------------- messages


def test_a_flood_of_heartbeats(pair: Pair) -> None:
    """Progress is legal at any time, as often as one likes: it costs time, and no memory."""
    receiver = pair.receiver()
    address = pair.address(receiver)
    running = Running(pair, address)
    flood = frame(m.Progress(m.Phase.MOVING, 1, 1)) * 50_000
    sample = Sample.random(2, 1000, 100)
    with Watch(receiver.process.pid) as watch, RawSender(address) as peer:
        control = peer.offer(sample)
        control.expect(m.Needed)
        control.send_raw(flood)
        data = peer.data()
        data.send_raw(b"".join(map(sample.chunk, range(10))))
        acknowledged(data, 10)
        control.send(sample.finish)
        control.expect(m.Complete)
        assert watch.grown_bytes < GROWTH_BYTES
    running.arrives()
    assert (pair.destination / "sample.bin").read_bytes() == sample.content
    unharmed(receiver)


def test_a_chunk_that_never_ends_being_damaged(pair: Pair) -> None:
    """Wrong digests over and over: the receiver may answer each, and must not fill the disk with log lines."""
    receiver = pair.receiver()
    sample = Sample.random(5, 10, 10)
    with RawSender(pair.address(receiver)) as peer:
        peer.offer(sample).expect(m.Needed)
        data = peer.data()
        for _ in range(20):
            data.send_raw(sample.chunk(0, digest=bytes(16)) * 100)
            for _ in range(100):
                with contextlib.suppress(Ended):
                    assert ack(data).verdict is m.Verdict.DIGEST_MISMATCH
    assert len(receiver.events("digest_mismatch")) < 200
    unharmed(receiver)


# -------------------------------------------------------------------------------------------- a peer that does not read


class Deaf(RawSender):
    """A peer with next to no room for what it is told, and that does not read it."""

    def connect(self) -> Link:
        """Connect, and no more."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(HANG)
        sock.connect(self._address)
        self._links.append(Link(sock))
        return self._links[-1]


def stuff(link: Link, data: bytes, *, at_most: int) -> int:
    """Send `data` over and over until the other end has stopped reading, or so many bytes; return how many."""
    link.socket.settimeout(3.0)
    sent = 0
    view = memoryview(data)
    with contextlib.suppress(TimeoutError):
        while sent < at_most:
            sent += link.socket.send(view[sent % len(data) :])
    return sent


@pytest.fixture
def deaf_data(pair: Pair) -> Iterator[Service]:
    """Return a receiver with a data peer that sends chunk after chunk and reads no acknowledgement."""
    receiver = pair.receiver()
    sample = Sample.random(3, 1, 1)
    with Deaf(pair.address(receiver)) as peer, Watch(receiver.process.pid) as watch:
        control = peer.offer(sample)
        control.expect(m.Needed)
        data = peer.data()
        chunk = sample.chunk(0).replace(frame(m.ChunkHeader(0, (sample.segment(0),))), big_header(sample))
        stuff(data, chunk * 1000, at_most=16 * MIB)
        yield receiver
        assert watch.grown_bytes < GROWTH_BYTES


def big_header(sample: Sample) -> bytes:
    """Announce the first chunk under the longest number there is, so that its acknowledgement is long, too."""
    return frame(m.ChunkHeader((1 << 64) - 1, (sample.segment(0),)))


def test_data_peer_that_never_reads_acknowledgements(pair: Pair, deaf_data: Service) -> None:
    """It stops itself; others are served, memory does not grow, and a signal ends the receiver at once."""
    file = pair.file("f", MIB)
    pair.sender(file, pair.address(deaf_data)).succeeds()
    assert same(file, pair.destination / "f")
    unharmed(deaf_data)
    deaf_data.signal(signal.SIGTERM)
    assert deaf_data.wait(HANG) == 143


def test_control_peer_that_never_reads_answers(pair: Pair) -> None:
    """It asks for answers without end, reads none, and is alive on another connection: a signal ends the receiver.

    Every second chunk is missing, so that each Finish is answered with a thousand ranges. Behind that come frames that
    are 64 KiB on the way and a lot more when they are decoded.
    """
    receiver = pair.receiver()
    sample = Sample.random(4, 20_000, 10)
    over = threading.Event()
    with Deaf(pair.address(receiver)) as peer, Watch(receiver.process.pid) as watch:
        control = peer.offer(sample)
        control.expect(m.Needed)
        every_second = list(range(0, 2000, 2))
        data = peer.data(0)
        data.send_raw(b"".join(map(sample.chunk, every_second)))
        acknowledged(data, len(every_second))
        rest = b"".join(map(sample.chunk, range(1, 2000, 2)))
        dribble = threading.Thread(target=dribbles, args=(data, rest, over))
        dribble.start()
        try:
            stuff(control, frame(sample.finish) * 100, at_most=600 * len(frame(sample.finish)))
            stuff(control, frame_of(manifest_of_attributes()), at_most=64 * MIB)
            file = pair.file("f", MIB)
            pair.sender(file, pair.address(receiver)).succeeds()
            assert watch.grown_bytes < 2 * GROWTH_BYTES
            receiver.signal(signal.SIGTERM)
            assert receiver.wait(HANG) == 143
        finally:
            over.set()
            dribble.join()
    assert "Traceback" not in receiver.stderr


def dribbles(link: Link, data: bytes, over: threading.Event) -> None:
    """Send a byte every now and then: a peer that is slow, and not silent."""
    for byte in data:
        link.send_raw(bytes([byte]))
        if over.wait(0.5):
            return


def manifest_of_attributes() -> bytes:
    """Make a ManifestPart of one entry with as many empty attributes as fit: two bytes on the wire each."""
    attributes = (m.Xattr(b"", b""),) * 32_000
    return encode(m.ManifestPart(0, (m.Entry(b"x", m.EntryType.FILE, 1, 0, 0, xattrs=attributes),), True))


# ------------------------------------------------------------------------------------------- memory for what is offered


def test_memory_for_the_most_segments(pair: Pair) -> None:
    """The largest table that an offer of 60 bytes can ask for: 16 bytes for each of 2^23 segments, as is promised."""
    receiver = pair.receiver()
    sample = Sample(b"f", bytes(limits.CHUNKS_PER_FILE), 1)
    with RawSender(pair.address(receiver)) as peer, Watch(receiver.process.pid) as watch:
        control = peer.offer(sample)
        assert [m.SegmentRange(0, 0, limits.CHUNKS_PER_FILE)] == list(control.expect(m.Needed).segments)
        assert watch.grown_bytes < 20 * limits.CHUNKS_PER_FILE + GROWTH_BYTES
    unharmed(receiver)


def test_memory_for_an_offer_that_does_not_fit(pair: Pair) -> None:
    """Nothing is allocated from a number that a peer says: a file beyond the disk is refused before it has tables."""
    receiver = pair.receiver()
    entry = m.Entry(b"f", m.EntryType.FILE, limits.CHUNKS_PER_FILE << 30, 0o644, 0)
    with Watch(receiver.process.pid) as watch:
        for _ in range(3):
            with RawSender(pair.address(receiver)) as peer:
                abort = peer.offers(m.Offer(1 << 30, None, False, 0), m.ManifestPart(0, (entry,), True))
                assert abort.code is Code.NO_SPACE
        assert watch.grown_bytes < GROWTH_BYTES
    assert pair.received() == []
    unharmed(receiver)


def test_resident_memory_is_measured() -> None:
    """A check of the tests themselves: what is asserted above is not 0 by mistake."""
    with Watch(os.getpid()) as watch:
        held = bytearray(os.urandom(MIB) * 100)
        assert watch.grown_bytes > 90 * MIB
        assert resident_bytes(os.getpid()) > len(held)
