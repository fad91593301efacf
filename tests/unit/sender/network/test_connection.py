"""A data connection without sockets: what it makes of files that change, and of the answers to their chunks."""

from typing import Any

import pytest

from filestreamer.telemetry.counters import ConnectionCounters
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import encode
from filestreamer.wire.errors import Code, ConnectionLost
from sender.dispatch.manifest import Manifest, Withdrew
from sender.dispatch.schedule import Schedule
from sender.dispatch.send_queue import SendQueue
from sender.mailbox import Mailbox
from sender.network.connection import DataConnection, Shared
from sender.network.peer import Peer
from sender.source.item import Item, Unsendable
from sender.source.reader import Reader
from tests.support.manifests import item_of
from tests.support.sending import Silent

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
