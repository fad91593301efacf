"""A data connection without sockets: what it makes of files that change, and of the answers to their chunks."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from filestreamer.telemetry.counters import ConnectionCounters
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import encode
from filestreamer.wire.digests import segment_digest, segment_hasher
from filestreamer.wire.errors import Code, ConnectionLost
from sender.dispatch.manifest import Manifest, Withdrew
from sender.dispatch.schedule import Schedule
from sender.dispatch.send_queue import SendQueue
from sender.mailbox import Mailbox
from sender.network.connection import DataConnection, Shared
from sender.network.peer import Peer
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

    def poll_body(self) -> None:
        pass

    def read_body(self) -> bytes:
        if not self.answers:
            raise ConnectionLost("closed")
        return encode(self.answers.pop(0))


class Opened:
    """A connection that was welcomed."""

    is_over = True
    features = ()

    def __init__(self, channel: Wire) -> None:
        self.channel = channel


class Dialer:
    """Opens one wire after the other."""

    def __init__(self, *wires: Wire) -> None:
        self.wires = list(wires)

    def open_data(self, connection_id: int, is_wanted: object) -> "Opened":
        del connection_id, is_wanted
        return Opened(self.wires.pop(0))

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
    for file_id in part.files:
        part.need(file_id)
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

    def poll_body(self) -> None:
        if not self.answers:
            raise ConnectionLost("closed")


def send_file(
    digests: KnownDigests | None, file: Path, verdicts: Sequence[m.Verdict] = (m.Verdict.OK,)
) -> tuple[bytes, int]:
    """Send a file of one chunk to one receiver, which gives these verdicts; return what was sent, and hashed."""
    manifest, mailbox = Manifest(4 * SIZE), Mailbox()
    queue = SendQueue(manifest, Schedule(1), mailbox, is_tree=True)
    status = file.stat()
    item = item_of(status.st_size, b"f")._replace(path=os.fsencode(file), identity=Identity.of(status))
    item = item._replace(entry=item.entry._replace(mtime_ns=status.st_mtime_ns))
    part = manifest.add([item], last=True)
    queue.extend(part)
    part.need(0)
    queue.need(0, 1)
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


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file of more than a block; hashing is counted."""
    monkeypatch.setattr("sender.network.connection.segment_hasher", CountingHasher)
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
