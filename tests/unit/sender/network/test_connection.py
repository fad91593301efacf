"""A data connection without sockets: what it makes of files that change, and of the answers to their chunks."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from filestreamer.process.rate_limit import RateLimit
from filestreamer.telemetry.counters import ConnectionCounters
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode, encode
from filestreamer.wire.digests import segment_digest, segment_hasher
from filestreamer.wire.errors import Code, ConnectionLost
from filestreamer.wire.features import CHUNK_RUNS
from filestreamer.wire.framing import parse_header
from sender.dispatch.manifest import Manifest, Withdrew
from sender.dispatch.schedule import Schedule
from sender.dispatch.send_queue import SendQueue
from sender.mailbox import Mailbox
from sender.network import chunk_sender
from sender.network.connection import DataConnection
from sender.network.peer import Peer
from sender.network.shared import Shared
from sender.source.item import Identity, Item, Unsendable
from sender.source.known_digests import KnownDigests
from sender.source.reader import Reader
from tests.support.manifests import item_of
from tests.support.sending import Silent
from tests.support.services import make_file

GONE = Unsendable(Code.SOURCE_CHANGED, "it is gone", m.SkipKind.VANISHED, "it is gone")
SIZE = limits.BLOCK_BYTES


class Wire:
    """A channel that breaks after `sends` sends, and has an answer where one is waited for."""

    def __init__(self, sends: int) -> None:
        self.sends = sends
        self.answers: list[m.ChunkAck] = []
        self.socket = None
        self.peer = "127.0.0.1:1"
        self.heard_at = 0.0

    def send(self, data: memoryview, *, more: bool = False) -> None:
        del data, more
        self.sends -= 1
        if self.sends < 0:
            raise ConnectionLost("reset")

    def tolerate_closed_window(self) -> None:
        pass

    def poll_body(self, _limit: int) -> None:
        pass

    def read_body(self, _limit: int) -> bytes:
        if not self.answers:
            raise ConnectionLost("closed")
        return encode(self.answers.pop(0))


class Opened:
    """A connection that was welcomed."""

    is_over = True

    def __init__(self, channel: Wire, features: tuple[str, ...]) -> None:
        self.channel = channel
        self.features = features


class Dialer:
    """Opens one wire after the other."""

    def __init__(self, *wires: Wire, features: tuple[str, ...] = ()) -> None:
        self.wires = list(wires)
        self.features = features

    def open_data(self, connection_id: int, is_wanted: object) -> "Opened":
        del connection_id, is_wanted
        return Opened(self.wires.pop(0), self.features)

    def close_channel(self, channel: Wire, *, in_order: bool, at_once: bool) -> None:
        del channel, in_order, at_once


def test_a_chunk_that_is_lost_with_a_withdrawn_file_says_nothing_of_the_next_chunk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A chunk that arrives damaged after that counts as damaged: no file of it was withdrawn while it was sent."""
    manifest, mailbox = Manifest(2 * SIZE), Mailbox()
    queue = SendQueue(manifest, Schedule(1), mailbox, is_tree=True)
    part = manifest.add([item_of(SIZE, b"a/gone"), item_of(SIZE, b"a/there")], last=True)
    queue.extend(part)
    part.need(part.files)
    queue.need(0, 1)

    def read_into(_reader: Reader, item: Item, _view: memoryview, _offset: int) -> None:
        if item.entry.path == b"a/gone":
            raise GONE

    monkeypatch.setattr(Reader, "read_into", read_into)
    monkeypatch.setattr(Reader, "look", lambda _, item: item.identity)
    monkeypatch.setattr(Reader, "confirm", lambda _, item, *__: item.identity)
    first, second = Wire(sends=0), Wire(sends=10)
    second.answers = [m.ChunkAck(verdict=m.Verdict.DIGEST_MISMATCH, chunk_ids=(0,))]
    dialer: Any = Dialer(first, second)
    counters = ConnectionCounters(0, stage_seconds=dict.fromkeys(m.SENDER_STAGES, 0.0))
    unused: Any = None
    shared = Shared(manifest, queue, dialer, Peer(Silent()), mailbox, None, Silent(), verifier=unused)
    connection = DataConnection(shared, counters)
    assert not connection._run_once()
    assert isinstance(mailbox.take(0), Withdrew)
    assert counters.mismatches == 0
    assert not connection._run_once()
    assert counters.mismatches == 1


# --- a receiver that is silent


def queue_of(file: Path) -> tuple[Manifest, SendQueue, Mailbox]:
    """Return a file of one chunk, and the queue that has it."""
    manifest, mailbox = Manifest(4 * SIZE), Mailbox()
    queue = SendQueue(manifest, Schedule(1), mailbox, is_tree=True)
    status = file.stat()
    item = item_of(status.st_size, b"f")._replace(path=os.fsencode(file), identity=Identity.of(status))
    item = item._replace(entry=item.entry._replace(mtime_ns=status.st_mtime_ns))
    part = manifest.add([item], last=True)
    queue.extend(part)
    part.need(part.files)
    queue.need(0, 1)
    return manifest, queue, mailbox


class Clock:
    """The time of the connection, which a test moves on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Slow(Wire):
    """A wire that does not move for a second at its first send, as a full path; the second one breaks."""

    unacknowledged = 0
    patience: Any = None

    def send(self, data: memoryview, *, more: bool = False) -> None:
        self.unacknowledged += len(data)
        self.patience()
        super().send(data, more=more)

    def unacknowledged_bytes(self) -> int:
        return self.unacknowledged


def test_a_receiver_that_was_sent_nothing_for_long_was_not_silent(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """It has as much time to take the first chunk as it has for any other."""
    clock = Clock()
    monkeypatch.setattr("sender.network.connection.time", clock)
    monkeypatch.setattr("sender.network.connection.tcp_info.read", lambda _: None)
    manifest, queue, mailbox = queue_of(file)
    gives = queue.next

    def give_late(connection_id: int, epoch: int, *, wait_seconds: float = 0.0) -> int | None:
        clock.now += limits.DEAD_SECONDS + 1
        return gives(connection_id, epoch, wait_seconds=wait_seconds)

    monkeypatch.setattr(queue, "next", give_late)
    wire = Slow(sends=0)
    dialer: Any = Dialer(wire)
    verifier: Any = NothingMoved()
    peer = Peer(Silent())
    counters = ConnectionCounters(0, stage_seconds=dict.fromkeys(m.SENDER_STAGES, 0.0))
    shared = Shared(manifest, queue, dialer, peer, mailbox, None, Silent(), verifier)
    assert not DataConnection(shared, counters)._run_once()
    assert wire.sends < 0
    assert str(peer.last_trouble) == "reset"  # not: it was silent


class Proxied(Wire):
    """A wire of which everything is taken, and over which nothing comes; it breaks after so many seconds."""

    patience: Any = None

    def __init__(self, clock: Clock, seconds: int, tick: Callable[[], None]) -> None:
        super().__init__(sends=100)
        self.clock = clock
        self.seconds = seconds
        self.tick = tick

    def unacknowledged_bytes(self) -> int:
        return 0

    def read_body(self, _limit: int) -> bytes:
        for _ in range(self.seconds):
            self.clock.now += 1
            self.tick()
            self.patience()
        raise ConnectionLost("closed")


@pytest.mark.parametrize(
    ("starved", "stops_saying", "end"),
    [
        ((0,), False, "nothing came through to 127.0.0.1:1 for 30 s"),
        ((1,), False, "closed"),  # this one reads late
        ((), False, "closed"),
        ((0,), True, "closed"),  # what the receiver said once was over soon, as far as known
    ],
)
def test_bytes_that_never_come_to_a_receiver_are_sent_again(
    monkeypatch: pytest.MonkeyPatch, file: Path, starved: tuple[int, ...], stops_saying: bool, end: str
) -> None:
    """A proxy has taken them. The receiver is alive, and says that it waits for bytes of this connection."""
    clock = Clock()
    monkeypatch.setattr("sender.network.connection.time", clock)
    monkeypatch.setattr("sender.network.peer.time", clock)
    monkeypatch.setattr("sender.network.connection.tcp_info.read", lambda _: None)
    manifest, queue, mailbox = queue_of(file)
    peer, control, wire_seconds = Peer(Silent()), Wire(sends=0), 40

    def heartbeat() -> None:
        control.heard_at = clock.now
        if not stops_saying or clock.now < 1010:
            peer.take_starved(starved)

    spoken: Any = control
    peer.opened(spoken)
    dialer: Any = Dialer(Proxied(clock, wire_seconds, heartbeat))
    verifier: Any = NothingMoved()
    counters = ConnectionCounters(0, stage_seconds=dict.fromkeys(m.SENDER_STAGES, 0.0))
    shared = Shared(manifest, queue, dialer, peer, mailbox, None, Silent(), verifier)
    assert not DataConnection(shared, counters)._run_once()
    assert end in str(peer.last_trouble)
    assert queue.remaining == 1


# --- digests that are known


class CountingHasher:
    """Hashes, and counts the bytes."""

    hashed_bytes = 0

    def __init__(self) -> None:
        self._hasher = segment_hasher()

    def update(self, data: memoryview) -> None:
        CountingHasher.hashed_bytes += len(data)
        self._hasher.update(data)

    def reset(self) -> None:
        self._hasher.reset()

    def digest(self) -> bytes:
        return self._hasher.digest()


class Recording(Wire):
    """A wire that keeps what is sent."""

    def __init__(self) -> None:
        super().__init__(sends=1000)
        self.sent = bytearray()

    def send(self, data: memoryview, *, more: bool = False) -> None:
        self.sent += data
        super().send(data, more=more)

    def poll_body(self, _limit: int) -> None:
        if not self.answers:
            raise ConnectionLost("closed")


def send_file(
    digests: KnownDigests | None, file: Path, verdicts: Sequence[m.Verdict] = (m.Verdict.OK,)
) -> tuple[bytes, int]:
    """Send a file of one chunk to one receiver, which gives these verdicts; return what was sent, and hashed."""
    manifest, queue, mailbox = queue_of(file)
    wire = Recording()
    wire.answers = [m.ChunkAck(verdict=verdict, chunk_ids=(0,)) for verdict in verdicts]
    dialer: Any = Dialer(wire)
    counters = ConnectionCounters(0, stage_seconds=dict.fromkeys(m.SENDER_STAGES, 0.0))
    verifier: Any = NothingMoved()
    shared = Shared(manifest, queue, dialer, Peer(Silent()), mailbox, None, Silent(), verifier, digests)
    connection = DataConnection(shared, counters)
    before = CountingHasher.hashed_bytes
    connection._run_once()  # until the wire has no more answers
    return bytes(wire.sent), CountingHasher.hashed_bytes - before


class NothingMoved:
    """A verifier that is never needed."""

    def saw(self, *_: object) -> bool:
        return False

    def has_moved(self, _: int) -> bool:
        return False

    def may_queue_again(self, *_: int) -> bool:
        return True


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file of more than a block; hashing is counted."""
    monkeypatch.setattr("sender.network.chunk_sender.segment_hasher", CountingHasher)
    return make_file(tmp_path / "f", SIZE + 1000)


def test_a_chunk_is_hashed_once_for_all_receivers(file: Path) -> None:
    """What is sent is the same to the byte, its digest included."""
    size, digests = file.stat().st_size, KnownDigests()
    first, hashed = send_file(digests, file)
    assert hashed == size
    for _ in range(3):
        assert send_file(digests, file) == (first, 0)
    assert send_file(None, file) == (first, size)  # a sender that dials keeps none
    assert first.endswith(segment_digest(file.read_bytes()))


def test_a_file_that_was_written_to_is_hashed_anew(file: Path) -> None:
    digests = KnownDigests()
    send_file(digests, file)
    make_file(file, file.stat().st_size, seed=5)
    sent, hashed = send_file(digests, file)

    assert hashed == file.stat().st_size
    assert sent.endswith(segment_digest(file.read_bytes()))


def test_a_chunk_that_arrived_damaged_is_hashed_anew(file: Path) -> None:
    """The digest that this process keeps may be what is wrong: another receiver is not told the same."""
    size, digests = file.stat().st_size, KnownDigests()
    digests.add(Identity.of(file.stat()), 0, size, b"wrong digest 16B")
    sent, hashed = send_file(digests, file, [m.Verdict.DIGEST_MISMATCH])
    assert (sent[-16:], hashed) == (b"wrong digest 16B", 0)
    sent, hashed = send_file(digests, file)

    assert (sent[-16:], hashed) == (segment_digest(file.read_bytes()), size)


# --- runs of chunks


class OneMoved:
    """A verifier of a file that moved, which holds one chunk of it back."""

    def __init__(self, chunk_id: int) -> None:
        self.chunk_id = chunk_id

    def saw(self, _file_id: int, _item: Item, _seen: Identity, chunk_id: int) -> bool:
        return chunk_id == self.chunk_id

    def has_moved(self, _: int) -> bool:
        return True

    def may_queue_again(self, chunk_id: int, _epoch: int) -> bool:
        assert chunk_id == self.chunk_id
        return False


C = 100
"""The chunk size of these."""


class Bench:
    """A connection of the second of two homes, whose file has ten chunks and half of one."""

    def __init__(
        self,
        path: Path,
        *answers: m.ChunkAck,
        verifier: object = None,
        rate_limit: RateLimit | None = None,
        features: tuple[str, ...] = (CHUNK_RUNS,),
        digests: KnownDigests | None = None,
    ) -> None:
        self.content = path.read_bytes()
        manifest, status = Manifest(C), path.stat()
        self.mailbox = Mailbox()
        self.queue = SendQueue(manifest, Schedule(2, strict_modulo=True), self.mailbox, is_tree=True)
        item = item_of(status.st_size, b"d/f")._replace(path=os.fsencode(path), identity=Identity.of(status))
        item = item._replace(entry=item.entry._replace(mtime_ns=status.st_mtime_ns))
        self.queue.extend(manifest.add([item], last=True))
        self.queue.need(0, manifest.chunks)
        self.wire = Recording()
        self.wire.answers = list(answers)
        dialer: Any = Dialer(self.wire, features=features)
        self.counters = ConnectionCounters(1, stage_seconds=dict.fromkeys(m.SENDER_STAGES, 0.0))
        watching: Any = verifier or NothingMoved()
        shared = Shared(manifest, self.queue, dialer, Peer(Silent()), self.mailbox, rate_limit, Silent(), watching)
        self.connection = DataConnection(replace(shared, digests=digests), self.counters)

    def send(self) -> list[tuple[range, list[bool]]]:
        """Send until no answer is left; return the runs that were sent, and of which chunks the digest was right."""
        self.connection._run_once()
        stream, sent = memoryview(bytes(self.wire.sent)), []
        while stream:
            length, _ = parse_header(stream[:12], limits.FRAME_BYTES)
            header = decode(stream[12 : 12 + length])
            assert isinstance(header, m.ChunkHeader)
            payload, stream = stream[12 + length :][: header.length], stream[12 + length + header.length :]
            size = header.segments[0].length
            offsets = [chunk_id * C for chunk_id in header.chunk_ids]
            digests = [bytes(stream[at : at + 16]) for at in range(0, 16 * header.chunks, 16)]
            stream = stream[16 * header.chunks :]
            assert header.segments[0].offset == offsets[0]
            if digests != [b"\xff" * 16] * header.chunks:
                assert b"".join([self.content[at : at + size] for at in offsets]) == bytes(payload)
            right = [segment_digest(self.content[at : at + size]) for at in offsets]
            sent.append((header.chunk_ids, [one == other for one, other in zip(digests, right, strict=True)]))
        return sent


@pytest.fixture
def small_chunks(tmp_path: Path) -> Path:
    """Return a file of ten chunks and half of one: the second of two connections has five."""
    return make_file(tmp_path / "f", 10 * C + C // 2)


RUN = range(1, 11, 2)


def ok(*ranges: m.ChunkRange, chunk_ids: tuple[int, ...] = ()) -> m.ChunkAck:
    return m.ChunkAck(m.Verdict.OK, chunk_ids, ranges)


def test_small_chunks_of_one_home_are_one_run(small_chunks: Path) -> None:
    bench = Bench(small_chunks, ok(m.ChunkRange(1, 5, 2)))
    assert bench.send() == [(RUN, [True] * 5)]
    assert (bench.counters.chunks, bench.counters.acknowledged_bytes) == (5, 5 * C)
    assert all(map(bench.queue.states.is_done, RUN))


def test_a_receiver_that_has_no_runs_gets_chunks(small_chunks: Path) -> None:
    bench = Bench(small_chunks, ok(chunk_ids=(1, 3, 5, 7, 9)), features=())
    assert bench.send() == [(range(at, at + 1), [True]) for at in RUN]


def test_a_chunk_of_a_run_that_arrived_damaged_is_sent_alone(small_chunks: Path) -> None:
    bench = Bench(
        small_chunks,
        m.ChunkAck(m.Verdict.DIGEST_MISMATCH, (5,)),
        ok(m.ChunkRange(1, 2, 2), m.ChunkRange(7, 2, 2)),
        ok(chunk_ids=(5,)),
    )
    assert bench.send() == [(RUN, [True] * 5), (range(5, 6), [True])]
    assert (bench.counters.mismatches, bench.counters.resent_chunks, bench.counters.chunks) == (1, 1, 5)


def test_known_digests_of_a_run_are_sent_again(small_chunks: Path) -> None:
    digests = KnownDigests()
    for _ in range(2):
        assert Bench(small_chunks, ok(m.ChunkRange(1, 5, 2)), digests=digests).send() == [(RUN, [True] * 5)]
    assert len(digests) == 5


def test_at_a_low_rate_runs_are_short(small_chunks: Path) -> None:
    """A header comes each twentieth of a second: nobody waits for long to see that something moves."""
    bench = Bench(small_chunks, ok(chunk_ids=(1, 3, 5, 7, 9)), rate_limit=RateLimit(40 * C))
    assert [run for run, _ in bench.send()] == [range(1, 4, 2), range(5, 8, 2), range(9, 10)]


def test_the_first_runs_over_a_connection_are_short(small_chunks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has arrived before: a path that is cut after two chunks, again and again, still gets on."""
    monkeypatch.setattr(chunk_sender, "FIRST_RUN_BYTES", 2 * C)
    bench = Bench(small_chunks, ok(chunk_ids=(1, 3, 5, 7, 9)))
    assert [run for run, _ in bench.send()] == [range(1, 4, 2), range(5, 8, 2), range(9, 10)]


def test_runs_are_as_long_as_what_has_arrived(small_chunks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_sender, "FIRST_RUN_BYTES", C)
    monkeypatch.setattr(limits, "WINDOW_CHUNKS_MAX", 2)  # then an acknowledgement has to come
    monkeypatch.setattr(limits, "WINDOW_BYTES_MAX", limits.WINDOW_BYTES)
    bench = Bench(small_chunks, ok(chunk_ids=(1, 3)), ok(chunk_ids=(5, 7)), ok(chunk_ids=(9,)))
    assert [run for run, _ in bench.send()] == [range(1, 2), range(3, 4), range(5, 8, 2), range(9, 10)]


def test_a_run_of_a_file_that_changed_is_all_wrong(small_chunks: Path) -> None:
    """The payload that was announced comes, and no digest of it is right: nothing of it is taken for the file."""
    bench = Bench(small_chunks, m.ChunkAck(m.Verdict.DIGEST_MISMATCH, tuple(RUN)))
    small_chunks.write_bytes(bytes(10 * C))
    assert bench.send() == [(RUN, [False] * 5)]
    assert isinstance(bench.mailbox.take(0), Withdrew)
    assert (bench.counters.mismatches, bench.counters.resent_chunks) == (0, 5)


def test_of_a_run_one_chunk_is_held_back(small_chunks: Path) -> None:
    """While a file that moved is compared; the others may arrive."""
    bench = Bench(small_chunks, m.ChunkAck(m.Verdict.DIGEST_MISMATCH, (7,)), verifier=OneMoved(7))
    assert bench.send() == [(RUN, [True, True, True, False, True])]
    assert (bench.counters.mismatches, bench.counters.resent_chunks) == (0, 1 + 4)  # 4 with the connection
