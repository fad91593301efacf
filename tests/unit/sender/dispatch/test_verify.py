"""What the receiver holds is compared in other threads: with what result, and how much of it may wait."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import ConnectionLost
from filestreamer.wire.messages import SkipKind
from filestreamer.wire.sockets.control_link import ControlLink
from sender.dispatch.manifest import Manifest, Withdrew
from sender.dispatch.schedule import Schedule
from sender.dispatch.send_queue import SendQueue
from sender.dispatch.verify import BACKLOG_MAX, Compared, HeldFiles, Settled, Verifier
from sender.listing.walk import Walk
from sender.mailbox import Event, Mailbox
from sender.network.control import ControlReader, Received
from sender.source.item import Identity, vanished
from tests.support.manifests import item_of


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nothing compared."""
    monkeypatch.setattr("sender.dispatch.verify.start_thread", lambda *_: None)


@pytest.mark.usefixtures("no_threads")
def test_the_control_connection_is_not_read_while_much_waits_to_be_compared() -> None:
    held: Any = None
    verifier = Verifier(held, held, held, held)
    reads = 3 * BACKLOG_MAX

    class Channel:
        heard_at = 0.0
        patience: Any = None

        def read_body(self) -> bytes:
            nonlocal reads
            reads -= 1
            if not reads:
                raise ConnectionLost("the end")
            return b"held"

        def shut(self) -> None:
            pass

    class Dialer:
        def close_channel(self, channel: object) -> None:
            del channel

    class Inbox(Mailbox):
        def post(self, event: Event) -> None:
            assert isinstance(event, Received)
            verifier.compare(held)
            link.acted()
            if verifier.is_behind():
                reader.begin_stop(None)  # it would wait as long as nothing is compared

    dialer: Any = Dialer()
    link = ControlLink("sender", 64, threading.Event())
    reader = ControlReader(dialer, link, Inbox(), verifier.is_behind)
    channel: Any = Channel()
    channel.patience = link.check
    thread = threading.Thread(target=_until_lost, args=(reader, channel), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert BACKLOG_MAX < 3 * BACKLOG_MAX - reads < BACKLOG_MAX + 4


def _until_lost(reader: ControlReader, channel: Any) -> None:
    with pytest.raises(ConnectionLost):
        reader._read(channel)


class Noted(Mailbox):
    """Keeps the events in order."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    def post(self, event: Event) -> None:
        self.events.append(event)


def test_small_files_of_every_kind_are_compared_together(tmp_path: Path) -> None:
    """One that is gone, or has other bytes than were listed, is withdrawn, and keeps none from being compared."""
    for name in ("equal", "gone", "changed", "other", "equal too"):
        (tmp_path / name).write_bytes(name.encode())
    items = [item for item in Walk([f"{tmp_path}/"], print) if item.identity is not None]
    names = [item.entry.path for item in items]
    (tmp_path / "gone").unlink()
    (tmp_path / "changed").write_bytes(b"changed, and longer")  # two writes may have one mtime
    manifest, mailbox = Manifest(64), Noted()
    queue, counters = SendQueue(manifest, Schedule(1), mailbox), TransferCounters(bytes(16), "x")
    verifier = Verifier(manifest, queue, counters, mailbox)
    part = manifest.add(items, last=False)
    queue.extend(part)
    descriptors = len(os.listdir("/proc/self/fd"))
    told = [(at, segment_digest(b"OTHER" if name == b"other" else name)) for at, name in enumerate(names)]
    verifier.compare(HeldFiles(part, told, queue.epoch))
    verifier.stop()
    for thread in verifier._threads:
        thread.join(10)
    (result,) = [event for event in mailbox.events if isinstance(event, Compared)]
    assert {names[at] for at in result.equal} == {b"equal", b"equal too"}
    assert {names[at] for at in result.different} == {b"other"}
    withdrew = {names[event.file_id]: event.error.kind for event in mailbox.events if isinstance(event, Withdrew)}
    assert withdrew == {b"gone": SkipKind.VANISHED, b"changed": SkipKind.CHANGED}
    assert counters.held_bytes == len(b"equal") + len(b"equal too")
    assert len(os.listdir("/proc/self/fd")) == descriptors


# --- files that moved

LARGE = item_of(3)
MOVED = Identity(1, 1, 3, 0, ctime_ns=1)


def transfer_of_a_large_file() -> tuple[Manifest, SendQueue, Noted, Verifier]:
    """Return a tree whose first part is one file of three chunks, and whose last part is empty."""
    manifest, mailbox = Manifest(chunk_size=1), Noted()
    queue = SendQueue(manifest, Schedule(1), mailbox)
    for items in ([LARGE], []):
        queue.extend(manifest.add(items, last=not items))
    return manifest, queue, mailbox, Verifier(manifest, queue, TransferCounters(bytes(16), "x"), mailbox)


@pytest.mark.usefixtures("no_threads")
def test_a_file_that_is_seen_after_its_part_was_dropped_keeps_no_transfer_from_finishing() -> None:
    """Another connection read it when it was withdrawn: nothing of it is read again, and the coordinator hears that."""
    manifest, queue, mailbox, verifier = transfer_of_a_large_file()
    manifest.parts[0].is_sent = True
    queue.withdraw(range(3))
    assert manifest.drop_done_parts() == 1
    assert not verifier.saw(0, LARGE, MOVED, 0)
    assert verifier.is_settled
    assert isinstance(mailbox.events[-1], Settled)


def test_a_file_that_is_seen_after_it_was_withdrawn_keeps_no_transfer_from_finishing() -> None:
    manifest, _, mailbox, verifier = transfer_of_a_large_file()
    assert manifest.withdraw(0, vanished(LARGE, "it is gone"))
    assert verifier.saw(0, LARGE, MOVED, 0)
    verifier.stop()
    for thread in verifier._threads:
        thread.join(10)
    assert verifier.is_settled
    assert isinstance(mailbox.events[-1], Settled)


def test_a_thread_that_begins_when_the_others_were_stopped_ends_too() -> None:
    """A connection that still sends when a transfer ends may see that a file moved."""
    _, _, _, verifier = transfer_of_a_large_file()
    verifier.stop()
    verifier.saw(0, LARGE, MOVED, 0)
    (thread,) = verifier._threads
    thread.join(10)
    assert not thread.is_alive()
