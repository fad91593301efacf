"""Attacks on the real services, tried and refused: who may come in, what a peer may cost, and where bytes may land.

Each attacker speaks frame by frame (tests.support.peer). A real transfer beside it has to arrive identical.
"""

import contextlib
import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode, encode
from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import Code, FilestreamerError
from filestreamer.wire.framing import frame, frame_of, read_body
from filestreamer.wire.opening import ReceiverOpening, SenderOpening, random_id
from receiver.disk.destination import Destination
from receiver.server import token as receiver_token
from receiver.settings import parse as parse_receiver
from tests.support.peer import Ended, Link, RawReceiver, RawSender, Sample, ack, acknowledged
from tests.support.processes import Watch, command_line, descriptors, resident_bytes
from tests.support.relay import Relay
from tests.support.services import UNIT, Pair, Service, make_file, same, tree
from tests.support.staging import Staging

TOKEN = "a token that is long enough"
WITH_TOKEN = {"FILESTREAMER_TOKEN": TOKEN}
MIB = 1 << 20
GROWTH_BYTES = 64 * MIB
"""How far an attack may make a service's memory grow: a few connections' blocks and buffers, and no more."""


def unharmed(receiver: Service) -> None:
    """Check that the receiver still runs, and met no bug of its own."""
    assert receiver.process.poll() is None
    for sign in ("Traceback", '"internal"', "please report"):
        assert sign not in receiver.stderr, receiver.stderr


def opening_of(link: Link, peer: RawSender, role: m.Role, token: str, connection_id: int = 0) -> tuple[bytes, ...]:
    """Read a Greeting; return the bodies that answer it."""
    greeting = read_body(link.read_exact, limits.OPENING_FRAME_BYTES)
    return SenderOpening(token.encode()).answer(greeting, peer.transfer_id, role, connection_id, peer.connections)


def answer_to(link: Link, bodies: tuple[bytes, ...]) -> m.Message:
    """Say these bodies; return the one answer, after which the receiver closes unless it is Welcome."""
    link.send_raw(b"".join(map(frame_of, bodies)))
    answer = decode(read_body(link.read_exact, limits.OPENING_FRAME_BYTES))
    if not isinstance(answer, m.Welcome):
        link.ends()
    return answer


def code_of(answer: m.Message) -> Code:
    assert isinstance(answer, m.Refusal), answer
    return answer.code


class Running:
    """A real transfer that takes one or two seconds, while others attack."""

    def __init__(self, pair: Pair, address: str, *flags: object, env: dict[str, str] | None = None) -> None:
        self._pair = pair
        self.file = pair.file("running", 6 * MIB, seed=5)
        rate = ("--rate-limit", "4MiB/s", "--chunk-size", "64KiB", "--connections", 4)
        self.sender = pair.sender(self.file, address, *rate, *flags, env=env)
        Staging(pair.destination, "running").wait_for_records(4)

    def arrives(self, *, undisturbed: bool = True) -> None:
        """Wait for its end: identical, and no connection of it was lost."""
        result = self.sender.succeeds(6 * UNIT)
        assert same(self.file, self._pair.destination / "running")
        if undisturbed:
            assert (result["reconnects"], result["resent_chunks"]) == (0, 0)


# ---------------------------------------------------------------------------------------------------------- proofs


def test_replayed_opening_of_another_connection(pair: Pair) -> None:
    """A true Hello and Proof are worth nothing on the next connection: its Greeting has another nonce."""
    receiver = pair.receiver(env=WITH_TOKEN)
    with RawSender(pair.address(receiver), token=TOKEN) as peer:
        first = peer.connect()
        recorded = opening_of(first, peer, m.Role.CONTROL, TOKEN)
        assert isinstance(answer_to(first, recorded), m.Welcome)
        for _ in range(3):
            second = peer.connect()
            greeting = decode(read_body(second.read_exact, limits.OPENING_FRAME_BYTES))
            assert isinstance(greeting, m.Greeting)
            assert code_of(answer_to(second, recorded)) is Code.TOKEN
    unharmed(receiver)


def test_proof_of_another_connection_with_a_new_hello(pair: Pair) -> None:
    """The Proof alone can't be moved either: to another role, connection or transfer, or behind the same Hello."""
    receiver = pair.receiver(env=WITH_TOKEN)
    with RawSender(pair.address(receiver), token=TOKEN) as peer:
        first = peer.connect()
        hello, proof = opening_of(first, peer, m.Role.CONTROL, TOKEN)
        for role, connection_id in ((m.Role.CONTROL, 0), (m.Role.DATA, 0), (m.Role.DATA, 3)):
            link = peer.connect()
            new_hello, _ = opening_of(link, peer, role, TOKEN, connection_id)
            assert code_of(answer_to(link, (new_hello, proof))) is Code.TOKEN
        link = peer.connect()
        _, new_proof = opening_of(link, peer, m.Role.CONTROL, TOKEN)
        assert code_of(answer_to(link, (hello, new_proof))) is Code.TOKEN, "of another Hello on the same connection"
    unharmed(receiver)


@pytest.mark.parametrize("token", ["another token of some length", TOKEN + " ", TOKEN[:-1], TOKEN.upper()])
def test_proof_of_another_token(pair: Pair, token: str) -> None:
    receiver = pair.receiver(env=WITH_TOKEN)
    with RawSender(pair.address(receiver), token=token) as peer:
        assert peer.refused(m.Role.CONTROL).code is Code.TOKEN
    unharmed(receiver)


def test_a_stranger_learns_nothing_of_transfers(pair: Pair) -> None:
    """Whether a transfer exists is told to nobody who has no token: the answer is the same, word for word."""
    receiver = pair.receiver(env=WITH_TOKEN)
    address = pair.address(receiver)
    with RawSender(address, token=TOKEN) as friend, RawSender(address, token=TOKEN[::-1]) as stranger:
        friend.control()
        answers = set()
        for transfer_id in (friend.transfer_id, random_id()):
            stranger.transfer_id = transfer_id
            for role in m.Role:
                refusal = stranger.refused(role)
                answers.add((refusal.code, refusal.reason))
        assert [code for code, _ in answers] == [Code.TOKEN]
        friend.data().close()
    unharmed(receiver)


@pytest.mark.parametrize("answer", ["echo", "nothing", "zeros", "its own"])
def test_receiver_that_does_not_know_the_token(pair: Pair, answer: str) -> None:
    """It asks for the proof, and echoes it, or makes something up: the sender says not one word about its file."""
    sender = pair.source / "a-name-that-stands-out"
    make_file(sender, 1000)
    with RawReceiver() as impostor:
        service = pair.sender(sender, impostor.address, env=WITH_TOKEN)
        link = impostor.accept()
        opening = ReceiverOpening(impostor.incarnation, b"another token of some length")
        link.send_raw(frame_of(opening.greeting_body))
        hello = read_body(link.read_exact, limits.OPENING_FRAME_BYTES)
        proof = decode(read_body(link.read_exact, limits.OPENING_FRAME_BYTES))
        assert isinstance(decode(hello), m.Hello)
        assert isinstance(proof, m.Proof)
        macs = {
            "echo": proof.mac,
            "nothing": b"",
            "zeros": bytes(limits.MAC_BYTES),
            "its own": opening_mac(opening, hello),
        }
        link.send(m.Welcome(macs[answer]))
        assert link.rest() == [], "nothing may follow: no Offer, no name"
        message = service.fails(3, "token", status="refused")
    assert "token" in message
    assert TOKEN not in service.stderr


def opening_mac(opening: ReceiverOpening, hello: bytes) -> bytes:
    """Return the proof of a receiver that has another token."""
    from filestreamer.wire import auth

    return auth.receiver_proof(b"another token of some length", opening.greeting_body, hello, bytes(32))


def test_receiver_that_asks_for_no_token(pair: Pair) -> None:
    """Who poses as the receiver and asks for no proof gets neither Hello nor file."""
    with RawReceiver() as impostor:
        service = pair.sender(pair.file("f", 10), impostor.address, env=WITH_TOKEN)
        link = impostor.accept()
        link.send(m.Greeting(1, 1, impostor.incarnation, random_id(), False))
        assert link.rest() == []
        assert "token" in service.fails(3, "token", status="refused")


# -------------------------------------------------------------------------------------------- transfers of others


def test_foreign_transfer_ids(pair: Pair) -> None:
    """Who has the token, and guesses ids, finds no transfer to join; the one that runs notices nothing."""
    receiver = pair.receiver(env=WITH_TOKEN)
    address = pair.address(receiver)
    running = Running(pair, address, env=WITH_TOKEN)
    for guess in (bytes(16), b"\xff" * 16, *(random_id() for _ in range(100))):
        with RawSender(address, token=TOKEN) as peer:
            peer.transfer_id = guess
            refusal = peer.refused(m.Role.DATA)
            assert (refusal.code, refusal.retryable) == (Code.UNKNOWN_TRANSFER, True)
    running.arrives()
    unharmed(receiver)


def test_superseding_without_the_token(pair: Pair) -> None:
    """Who listens on the way knows the transfer_id and every connection_id, and still can't take a place."""
    receiver = pair.receiver(env=WITH_TOKEN)
    with Relay(pair.address(receiver)) as relay:
        running = Running(pair, relay.address, env=WITH_TOKEN)
        overheard = relay.openings(4 + 1)
        host, _, port = pair.address(receiver).rpartition(":")
        for recording in overheard:
            hello = decode(read_body(reader(recording), limits.OPENING_FRAME_BYTES))
            assert isinstance(hello, m.Hello)
            with RawSender(pair.address(receiver), connections=hello.connections, token=TOKEN[::-1]) as peer:
                peer.transfer_id = hello.transfer_id
                assert peer.refused(hello.role, hello.connection_id).code is Code.TOKEN
            with socket.create_connection((host, int(port)), 3 * UNIT) as sock:
                link = Link(sock)
                link.send_raw(recording)  # the whole conversation again, from its Hello on
                link.expect(m.Greeting)
                assert [code_of(message) for message in link.rest()] == [Code.TOKEN]
        running.arrives()
    unharmed(receiver)


def reader(recording: bytes) -> Callable[[int], bytes]:
    """Return what reads a recording from its beginning."""
    at = 0

    def read_exact(count: int) -> bytes:
        nonlocal at
        at += count
        return recording[at - count : at]

    return read_exact


def test_taking_a_name_that_is_being_written(pair: Pair) -> None:
    """A second sender of the same name, however often it comes, is BUSY, and neither file is mixed with the other."""
    receiver = pair.receiver()
    address = pair.address(receiver)
    running = Running(pair, address)
    evil = Sample(b"running", b"evil content", 4)
    for _ in range(20):
        with RawSender(address) as peer:
            assert peer.offers(evil.offer, m.ManifestPart(0, (evil.entry,), True)).code is Code.BUSY
    running.arrives()
    unharmed(receiver)


# ------------------------------------------------------------------------------------------------------------ crowds


def test_a_thousand_idle_connections(pair: Pair) -> None:
    """They come while a transfer runs, and a new transfer finds its way in between them."""
    receiver = pair.receiver()
    address = pair.address(receiver)
    host, _, port = address.rpartition(":")
    with contextlib.ExitStack() as stack:
        running = Running(pair, address)
        watch = stack.enter_context(Watch(receiver.process.pid))
        idle = [stack.enter_context(socket.create_connection((host, int(port)), 3 * UNIT)) for _ in range(1000)]
        late = pair.file("late", 100_000)
        pair.sender(late, address).succeeds()
        assert same(late, pair.destination / "late")
        running.arrives()
        assert watch.grown_bytes < GROWTH_BYTES
        assert watch.most_descriptors < 600, "512 openings, and what the transfers have"
        until_closed(idle)
    wait_until(lambda: len(sockets_of(receiver)) == 1, "only the listener is left")
    unharmed(receiver)


def sockets_of(service: Service) -> list[str]:
    return [each for each in descriptors(service.process.pid) if each.startswith("socket:")]


def wait_until(holds: Callable[[], bool], what: str, seconds: float = 3 * UNIT) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.02)


def until_closed(sockets: list[socket.socket], seconds: float = 3 * UNIT) -> None:
    """Wait until the other end has closed every one of these."""
    end = time.monotonic() + seconds
    for sock in sockets:
        sock.settimeout(max(0.1, end - time.monotonic()))
        with contextlib.suppress(ConnectionError):
            while sock.recv(4096):
                pass


def test_a_flood_of_connects(pair: Pair) -> None:
    """Connect and close, connect and reset, a word and close: each costs as long as it lasts."""
    receiver = pair.receiver()
    address = pair.address(receiver)
    running = Running(pair, address)
    with Watch(receiver.process.pid) as watch, RawSender(address) as peer:
        for index in range(3000):
            link = peer.connect()
            if index % 3 == 1:
                link.send_raw(b"GET / HTTP/1.1\r\n\r\n")
            if index % 3 == 2:
                link.reset()
            link.close()
        running.arrives()
        assert watch.grown_bytes < GROWTH_BYTES
    wait_until(lambda: len(sockets_of(receiver)) == 1, "only the listener is left")
    unharmed(receiver)


def test_slow_openings(pair: Pair) -> None:
    """A byte every now and then keeps nobody here: the time runs from accept, whatever comes. A transfer runs on."""
    receiver = pair.receiver()
    address = pair.address(receiver)
    running = Running(pair, address)
    with RawSender(address) as peer:
        links = [peer.connect() for _ in range(50)]
        whole = frame(peer.hello(m.Role.CONTROL))
        open_links = dict(enumerate(links))
        begun = time.monotonic()
        for byte in whole:
            if not open_links:
                break
            time.sleep(1.0)  # this is what the attack is
            for number, link in list(open_links.items()):
                try:
                    link.socket.send(bytes([byte]))
                except ConnectionError:
                    del open_links[number]
            if time.monotonic() - begun > limits.OPENING_SECONDS + 2 * UNIT:
                break
        assert open_links == {}
        for link in links:
            messages = link.rest()
            assert [m.Greeting] == [type(message) for message in messages[:1]]
    refusals = receiver.events("connection_refused")
    assert [each["code"] for each in refusals] == ["timeout"] * 5
    running.arrives()
    unharmed(receiver)
    receiver.signal(signal.SIGTERM)
    assert receiver.wait() == 128 + signal.SIGTERM
    assert receiver.times("connection_refused") == 50


def test_transfers_that_are_begun_and_deserted(pair: Pair) -> None:
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


def test_transfers_that_were_committed_and_deserted(pair: Pair) -> None:
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


def test_more_connections_than_descriptors(pair: Pair) -> None:
    """Where descriptors run out, a new sender has to wait; it is not told that the destination can't be written."""
    limit = 128
    flags = ("--listen", "127.0.0.1:0", "--directory", pair.destination)
    receiver = pair.start("receiver", *flags, under=["prlimit", f"--nofile={limit}:{limit}"])
    address = pair.address(receiver)
    host, _, port = address.rpartition(":")
    with contextlib.ExitStack() as stack:
        for _ in range(limit + 20):
            stack.enter_context(socket.create_connection((host, int(port)), 3 * UNIT))
        file = pair.file("f", 1000)
        pair.sender(file, address, "--give-up-after", 3 * UNIT).succeeds(4 * UNIT)
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


# ------------------------------------------------------------------------------------------------- what a peer may cost


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


class Deaf(RawSender):
    """A peer with next to no room for what it is told, and that does not read it."""

    def connect(self) -> Link:
        """Connect, and no more."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(3 * UNIT)
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
    assert deaf_data.wait(2 * UNIT) == 143


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
            assert receiver.wait(2 * UNIT) == 143
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


def test_control_taken_over_while_claims_are_hashed(pair: Pair) -> None:
    """A rejoined control connection that says nothing yet must not be told what is being found on the disk."""
    file = pair.file("f", 48 * MIB)
    Staging(pair.destination, "f").make(file, 16 * 1024, range(3072))
    receiver = pair.receiver()
    sample = Sample(b"f", file.read_bytes(), 16 * 1024)
    with RawSender(pair.address(receiver)) as peer:
        peer.offer(sample)
        for _ in range(20):
            peer.control()
        control = peer.control()
        control.send(sample.offer, m.ManifestPart(0, (sample.entry,), True))
        held = 0
        while held < 3072:
            answer = control.read()
            if isinstance(answer, m.Held):
                held += len(answer.digests) // limits.DIGEST_BYTES
            else:
                assert isinstance(answer, m.Progress), answer
    unharmed(receiver)


def test_finish_that_crosses_complete(pair: Pair) -> None:
    """A sender that rejoins says Finish without waiting; it is committed already, and the second Finish is dropped."""
    receiver = pair.receiver("--log-level", "debug")
    sample = Sample.random(6, 100, 10)
    with RawSender(pair.address(receiver)) as peer:
        control = peer.offer(sample)
        control.expect(m.Needed)
        data = peer.data()
        data.send_raw(b"".join(map(sample.chunk, range(10))))
        acknowledged(data, 10)
        control.send(sample.finish)
        control.expect(m.Complete)
        for _ in range(3):
            control = peer.offer(sample)
            control.send(sample.finish, sample.finish)
            control.expect(m.Complete)
    assert (pair.destination / "sample.bin").read_bytes() == sample.content
    unharmed(receiver)


def test_too_high_a_connection_id(pair: Pair) -> None:
    """Refused before Welcome, so by a Refusal: an Abort is what the opened ones get."""
    receiver = pair.receiver()
    sample = Sample.random(7, 100, 10)
    with RawSender(pair.address(receiver), connections=2) as peer:
        peer.offer(sample).expect(m.Needed)
        peer.connections = 8
        assert peer.refused(m.Role.DATA, 5).code is Code.PROTOCOL
        peer.connections = 2
        peer.data(1).close()
    unharmed(receiver)


# ------------------------------------------------------------------------------------------------ where bytes may land


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Return a directory of somebody else, with a file in it."""
    directory = tmp_path / "outside"
    directory.mkdir()
    (directory / "precious").write_bytes(b"precious content")
    return directory


def is_untouched(outside: Path) -> None:
    """Nothing was added, nothing written, and no mode changed."""
    assert tree(outside) == {"precious": 16}
    assert (outside / "precious").read_bytes() == b"precious content"


@pytest.mark.parametrize("target", ["precious", "missing", "."])
@pytest.mark.parametrize("replace", [True, False], ids=["replace", "no-replace"])
def test_symlink_at_the_final_name(pair: Pair, outside: Path, target: str, replace: bool) -> None:
    """It is replaced as what it is, never followed; with --no-replace it is there, and stays."""
    file = pair.file("f", 100_000)
    link = pair.destination / "f"
    link.symlink_to(outside / target)
    receiver = pair.receiver(*([] if replace else ["--no-replace"]))
    sender = pair.sender(file, pair.address(receiver))
    if replace:
        sender.succeeds()
        assert not link.is_symlink()
        assert same(file, link)
    else:
        sender.fails(3, "exists", status="refused")
        assert link.is_symlink()
    is_untouched(outside)
    assert pair.received() == ["f"]


def test_hard_link_at_the_final_name(pair: Pair, outside: Path) -> None:
    """The name is replaced; the file that it was a second name of is not."""
    os.link(outside / "precious", pair.destination / "f")
    file = pair.file("f", 100_000)
    receiver = pair.receiver()
    pair.sender(file, pair.address(receiver)).succeeds()
    assert same(file, pair.destination / "f")
    is_untouched(outside)


def test_fifo_at_the_final_name(pair: Pair) -> None:
    os.mkfifo(pair.destination / "f")
    file = pair.file("f", 100_000)
    receiver = pair.receiver()
    pair.sender(file, pair.address(receiver)).succeeds()
    assert same(file, pair.destination / "f")


TRAPS: dict[str, Callable[[Path, Path], None]] = {
    "symlink to a file": lambda trap, outside: trap.symlink_to(outside / "precious"),
    "symlink to nothing": lambda trap, outside: trap.symlink_to(outside / "missing"),
    "symlink to a directory": lambda trap, outside: trap.symlink_to(outside),
    "hard link": lambda trap, outside: os.link(outside / "precious", trap),
    "fifo": lambda trap, _: os.mkfifo(trap),
    "directory": lambda trap, _: trap.mkdir(),
}


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("which", ["data", "ledger"])
def test_traps_in_staging(pair: Pair, outside: Path, which: str, trap: str) -> None:
    """What lies where a file would be staged is not the receiver's own: nothing is written through it.

    Whether it takes the trap away or refuses is its own affair; who sends is told the truth.
    """
    staging = Staging(pair.destination, "f")
    staging.directory.mkdir(mode=0o700)
    place = staging.data if which == "data" else staging.ledger
    TRAPS[trap](place, outside)
    file = pair.file("f", 100_000)
    receiver = pair.receiver()
    sender = pair.sender(file, pair.address(receiver))
    if sender.wait() == 0:
        sender.succeeds()
        assert same(file, pair.destination / "f")
    else:
        assert str(pair.destination / "f") in sender.fails(4, "destination")
        assert "f" not in pair.received()
    is_untouched(outside)
    unharmed(receiver)


@pytest.mark.parametrize("which", ["data", "ledger"])
def test_hard_links_that_look_like_a_staged_file(pair: Pair, outside: Path, which: str) -> None:
    """A whole staging that claims everything, one file of which has a second name elsewhere."""
    file = pair.file("f", 100_000)
    staging = Staging(pair.destination, "f")
    staging.make(file, 10_000, range(5))
    place = staging.data if which == "data" else staging.ledger
    os.link(place, outside / "second name")
    before = (outside / "second name").read_bytes()
    receiver = pair.receiver()
    sender = pair.sender(file, pair.address(receiver), "--chunk-size", 10_000)
    assert sender.wait() in (0, 4), sender.stderr
    assert (outside / "second name").read_bytes() == before
    unharmed(receiver)


@pytest.mark.parametrize("swapped_for", ["symlink", "file"])
def test_staged_file_swapped_before_commit(pair: Pair, outside: Path, swapped_for: str) -> None:
    """What is put in place is the file that was written and synced, not whatever has its name by then."""
    receiver = pair.receiver()
    running = Running(pair, pair.address(receiver))
    staging = Staging(pair.destination, "running")
    staging.data.unlink()
    if swapped_for == "symlink":
        staging.data.symlink_to(outside / "precious")
    else:
        staging.data.write_bytes(b"evil content")
    if running.sender.wait(6 * UNIT) == 0:
        assert not (pair.destination / "running").is_symlink()
        assert same(running.file, pair.destination / "running")
    else:
        running.sender.fails(4, "destination")
        assert "running" not in pair.received()
    is_untouched(outside)
    unharmed(receiver)


def test_ledger_beyond_measure(pair: Pair) -> None:
    """A ledger of a terabyte, sparse as it may be, is no ledger: it is not read into memory."""
    file = pair.file("f", 100_000)
    staging = Staging(pair.destination, "f")
    staging.make(file, 10_000, range(5))
    staging.truncate_ledger(1 << 40)
    receiver = pair.receiver()
    address = pair.address(receiver)
    with Watch(receiver.process.pid) as watch:
        pair.sender(file, address, "--chunk-size", 10_000).succeeds()
        assert watch.grown_bytes < GROWTH_BYTES
    assert same(file, pair.destination / "f")
    unharmed(receiver)


def test_destination_replaced_by_a_symlink(pair: Pair, outside: Path) -> None:
    """The receiver serves the directory that it opened, wherever that has gone; its old path means nothing."""
    receiver = pair.receiver()
    address = pair.address(receiver)
    moved = pair.destination.with_name("moved")
    pair.destination.rename(moved)
    pair.destination.symlink_to(outside)
    file = pair.file("f", 3 * MIB)
    pair.sender(file, address).succeeds()
    assert same(file, moved / "f")
    is_untouched(outside)


def test_destination_replaced_in_the_middle(pair: Pair, outside: Path) -> None:
    receiver = pair.receiver()
    running = Running(pair, pair.address(receiver))
    moved = pair.destination.with_name("moved")
    pair.destination.rename(moved)
    pair.destination.symlink_to(outside)
    running.sender.succeeds(6 * UNIT)
    assert same(running.file, moved / "running")
    is_untouched(outside)


def test_staging_replaced_by_a_symlink(pair: Pair, outside: Path) -> None:
    """Between two transfers of one receiver, and under one that runs."""
    receiver = pair.receiver()
    address = pair.address(receiver)
    running = Running(pair, address)
    staging = pair.destination / ".filestreamer"
    staging.rename(pair.destination / "elsewhere")
    staging.symlink_to(outside)
    pair.sender(pair.file("f", 1000), address).fails(4, "destination")
    running.arrives()
    is_untouched(outside)
    assert {"running", "elsewhere", ".filestreamer"} >= set(pair.received())
    unharmed(receiver)


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o1777, 0o7777, 0o6000], ids=oct)
def test_setuid_never_arrives(pair: Pair, mode: int) -> None:
    """Neither from a peer that says so, nor from a source that has it."""
    receiver = pair.receiver()
    address = pair.address(receiver)
    sample = Sample.random(8, 100, 50)
    with RawSender(address) as peer:
        control = peer.control()
        control.send(sample.offer, m.ManifestPart(0, (sample.entry._replace(mode=mode),), True))
        control.expect(m.Needed)
        data = peer.data()
        data.send_raw(sample.chunk(0) + sample.chunk(1))
        acknowledged(data, 2)
        control.send(sample.finish)
        control.expect(m.Complete)
    arrived = stat.S_IMODE((pair.destination / "sample.bin").stat().st_mode)
    assert oct(arrived) == oct(mode & 0o777)
    file = pair.file("f", 10)
    file.chmod(mode | 0o400)
    pair.sender(file, address).succeeds()
    assert oct(stat.S_IMODE((pair.destination / "f").stat().st_mode)) == oct((mode | 0o400) & 0o777)


@pytest.mark.parametrize("mtime_ns", [-(1 << 63), (1 << 63) - 1, -1, 0])
def test_times_without_measure(pair: Pair, mtime_ns: int) -> None:
    """Any mtime is legal on the wire: the file arrives, with the nearest time that the file system has."""
    receiver = pair.receiver()
    sample = Sample.random(9, 100, 100)
    with RawSender(pair.address(receiver)) as peer:
        control = peer.control()
        control.send(sample.offer, m.ManifestPart(0, (sample.entry._replace(mtime_ns=mtime_ns),), True))
        control.expect(m.Needed)
        data = peer.data()
        data.send_raw(sample.chunk(0))
        acknowledged(data, 1)
        control.send(sample.finish)
        control.expect(m.Complete)
    unharmed(receiver)


# ----------------------------------------------------------------------------------------------------- the kept token


class Quiet:
    """A log that says nothing."""

    def warning(self, *_: object, **__: object) -> None:
        """Say nothing."""


def kept_token(directory: Path) -> str | None:
    """Ask for the token that a receiver on an address beyond this machine would use: no socket is needed for it."""
    settings, _ = parse_receiver(["--directory", str(directory)], {})
    return receiver_token.choose(settings, Destination(str(directory)), ["192.0.2.1"], Quiet()).token


def test_the_kept_token_is_kept_well(tmp_path: Path) -> None:
    first = kept_token(tmp_path)
    place = tmp_path / ".filestreamer" / "token"
    assert first is not None
    assert first == kept_token(tmp_path) == place.read_text().strip()
    assert oct(stat.S_IMODE(place.stat().st_mode)) == "0o600"
    assert oct(stat.S_IMODE(place.parent.stat().st_mode)) == "0o700"


def test_the_token_is_no_symlink(tmp_path: Path, outside: Path) -> None:
    """It is not read through one, nor written."""
    (outside / "precious").write_text("a token of somebody else\n")
    staging = tmp_path / ".filestreamer"
    staging.mkdir(mode=0o700)
    (staging / "token").symlink_to(outside / "precious")
    with contextlib.suppress(FilestreamerError):
        assert kept_token(tmp_path) not in (None, "a token of somebody else")
    assert (outside / "precious").read_text() == "a token of somebody else\n"


def test_the_token_is_no_fifo(tmp_path: Path) -> None:
    """Opening one to read waits for who writes: the receiver must not hang before it listens."""
    staging = tmp_path / ".filestreamer"
    staging.mkdir(mode=0o700)
    os.mkfifo(staging / "token")
    chosen: list[str | None] = []

    def choose() -> None:
        with contextlib.suppress(FilestreamerError):
            chosen.append(kept_token(tmp_path))

    thread = threading.Thread(target=choose, daemon=True)
    thread.start()
    thread.join(UNIT)
    hangs = thread.is_alive()
    if hangs:  # let it go, whatever it reads
        os.close(os.open(staging / "token", os.O_WRONLY | os.O_NONBLOCK))
        thread.join(UNIT)
    assert not hangs


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o602], ids=oct)
def test_a_token_that_others_can_read_or_set(tmp_path: Path, mode: int) -> None:
    """Who could read it knows it, who could write it chose it: another one is made, or it is refused."""
    known = "a token that everybody knows"
    staging = tmp_path / ".filestreamer"
    staging.mkdir(mode=0o700)
    (staging / "token").write_text(known + "\n")
    (staging / "token").chmod(mode)
    with contextlib.suppress(FilestreamerError):
        assert kept_token(tmp_path) != known


def test_a_staging_directory_that_others_may_write(tmp_path: Path) -> None:
    """Others can't put anything there any more."""
    staging = tmp_path / ".filestreamer"
    staging.mkdir()
    staging.chmod(0o777)
    kept_token(tmp_path)
    assert oct(stat.S_IMODE(staging.stat().st_mode)) == "0o700"


@pytest.mark.parametrize("whose", [".filestreamer", ".filestreamer/token"])
def test_a_token_of_somebody_else(tmp_path: Path, whose: str) -> None:
    """In a directory that many may write, another user may be first to make it: then the token is theirs."""
    if os.geteuid() != 0:
        pytest.skip("only root can make what belongs to somebody else")
    known = "a token that somebody else made"
    staging = tmp_path / ".filestreamer"
    staging.mkdir(mode=0o700)
    (staging / "token").write_text(known + "\n")
    (staging / "token").chmod(0o600)
    os.chown(tmp_path / whose, 65534, 65534)
    with contextlib.suppress(FilestreamerError):
        assert kept_token(tmp_path) != known


@pytest.mark.parametrize("whose", ["", "data", "ledger"])
def test_staging_of_somebody_else(pair: Pair, whose: str) -> None:
    """Who owns a file can change it at any time, and what is committed would stay theirs."""
    if os.geteuid() != 0:
        pytest.skip("only root can make what belongs to somebody else")
    file = pair.file("f", 100_000)
    staging = Staging(pair.destination, "f")
    staging.make(file, 10_000, range(5))
    os.chown({"": staging.directory, "data": staging.data, "ledger": staging.ledger}[whose], 65534, 65534)
    receiver = pair.receiver()
    sender = pair.sender(file, pair.address(receiver), "--chunk-size", 10_000)
    if sender.wait() == 0:
        assert (pair.destination / "f").stat().st_uid == 0
        assert same(file, pair.destination / "f")
    else:
        sender.fails(4, "destination")
    unharmed(receiver)


# ----------------------------------------------------------------------------------------------- the token is a secret


@pytest.mark.parametrize("given", ["environment", "file"])
@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_the_token_is_told_to_nobody(pair: Pair, tmp_path: Path, given: str, right: bool) -> None:
    """Not in a log of any level, a result, a list of processes, or on the wire; nor is what was compared with it."""
    wrong = "quite another token, also long"
    tokens = {"receiver": TOKEN, "sender": TOKEN if right else wrong}
    flags: dict[str, list[object]] = {"receiver": [], "sender": []}
    env: dict[str, dict[str, str]] = {"receiver": {}, "sender": {}}
    for service, token in tokens.items():
        if given == "file":
            path = tmp_path / f"{service}.token"
            path.write_text(token + "\n")
            flags[service] = ["--token-file", path]
        else:
            env[service] = {"FILESTREAMER_TOKEN": token}
        flags[service] += ["--log-level", "debug", "--result-file", tmp_path / f"{service}.result"]
    file = pair.file("f", 6 * MIB)
    receiver = pair.receiver("--once", *flags["receiver"], env=env["receiver"])
    with Relay(pair.address(receiver)) as relay:
        rate = ("--rate-limit", "6MiB/s", "--chunk-size", "64KiB")
        sender = pair.sender(file, relay.address, *rate, *flags["sender"], env=env["sender"])
        lines = command_line(receiver.process.pid) + command_line(sender.process.pid)
        if right:
            sender.succeeds()
            receiver.succeeds()
        else:
            sender.fails(3, "token", status="refused")
            receiver.wait_for("connection_refused")
            receiver.signal(signal.SIGTERM)
            receiver.wait()
        heard = relay.heard
    files = [*pair.logs.iterdir(), *tmp_path.glob("*.result")]
    assert len(files) >= 5
    told = lines + heard + b"".join(path.read_bytes() for path in files)
    assert len(heard) > 150
    for token in (TOKEN, wrong):
        for form in (token.encode(), token.encode().hex().encode(), segment_digest(token.encode())):
            assert form not in told


# ----------------------------------------------------------------------------------------- a hostile receiver's answers


SEGMENTS = 8
WRONG_ANSWERS: dict[str, m.Message] = {
    "Needed: a segment too many": m.Needed((), (m.SegmentRange(0, 0, SEGMENTS + 1),)),
    "Needed: another file": m.Needed((), (m.SegmentRange(1, 0, 1),)),
    "Needed: a file too many": m.Needed((m.FileRange(0, 2),), ()),
    "Needed: another file as a whole": m.Needed((m.FileRange(1, 1),), ()),
    "Held: a digest too many": m.Held(0, 0, bytes(16 * (SEGMENTS + 1))),
    "Held: another file": m.Held(1, 0, bytes(16)),
    "Held: accepted unread": m.Held(0, 0, b"", (m.FileRange(0, 1),)),
    "Complete: not committed, and no shard": m.Complete(False),
    "an answer of data": m.ChunkAck(m.Verdict.OK, (0,)),
    "what a sender says": m.Finish(0, bytes(16)),
    "an opening": m.Welcome(b""),
    "another opening": m.Greeting(1, 1, bytes(16), bytes(16), False),
}


@pytest.mark.parametrize("answer", WRONG_ANSWERS)
def test_answers_that_the_sender_refuses(pair: Pair, answer: str) -> None:
    """Exit 3 with `protocol`, and an Abort that says so: never exit 0, never a hang."""
    file = pair.file("f", 100 * SEGMENTS)
    with RawReceiver() as hostile:
        sender = pair.sender(file, hostile.address, "--chunk-size", 100, "--give-up-after", UNIT)
        control, _, _ = hostile.control()
        control.send(WRONG_ANSWERS[answer])
        told = [each.code for each in control.rest() if isinstance(each, m.Abort)]
        control.close()
        sender.fails(3, "protocol", status="refused")
        if not isinstance(WRONG_ANSWERS[answer], m.Complete):  # nothing is told to who has said its last word
            assert told == [Code.PROTOCOL]


def test_flood_of_answers_from_a_receiver(pair: Pair) -> None:
    """The sender has to hear all of them, and keeps none: its memory does not grow with how fast they come."""
    file = pair.file("f", 1000)
    again = frame(m.Progress(m.Phase.OFFERING, 0, 0))
    with RawReceiver() as hostile:
        sender = pair.sender(file, hostile.address, "--give-up-after", 6 * UNIT)
        control, _, _ = hostile.control()
        with Watch(sender.process.pid) as watch:
            control.send_raw(again * 300_000)
            assert watch.grown_bytes < 4 * MIB
        control.send(m.Abort(Code.EXISTS, "enough"))
        sender.fails(3, "exists", status="refused")


def test_resident_memory_is_measured() -> None:
    """A check of the tests themselves: what is asserted above is not 0 by mistake."""
    with Watch(os.getpid()) as watch:
        held = bytearray(os.urandom(MIB) * 100)
        assert watch.grown_bytes > 90 * MIB
        assert resident_bytes(os.getpid()) > len(held)
