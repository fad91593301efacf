"""The coordinator of a transfer, with control connections whose every step is the test's own."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from filestreamer.process import log
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.digests import root_digest
from filestreamer.wire.errors import Code, ConnectionClosed, ConnectionLost, FilestreamerError, TransferFailed
from filestreamer.wire.framing import frame
from filestreamer.wire.grid import Grid, Share
from filestreamer.wire.opening import random_id
from filestreamer.wire.progress_clock import Patience
from receiver.disk.attributes.attributes import Attributes
from receiver.disk.destination import Destination
from receiver.file.file_share import FileShare
from receiver.file.shared_file import File
from receiver.memory.budget import Budget
from receiver.server.registry import Registry
from receiver.transfer.mailbox import CONTROLS_MOST, ControlUp, Nudged
from receiver.transfer.names import Claimant
from receiver.transfer.transfer import CONTROL_FRAMES, Transfer
from tests.support.services import HANG
from tests.support.waiting import until

ENTRY = m.Entry(b"empty", m.EntryType.FILE, 0, 0o644, 1)
OFFER = (m.Offer(1024, None, False, 0), m.ManifestPart(0, (ENTRY,), True))
FINISH = m.Finish(0, root_digest(()))


class Scripted:
    """A control connection: what the peer says is put in, what the receiver says is got out."""

    def __init__(self, *, breaks_at: type[m.Message] | None = None) -> None:
        """`breaks_at` is the message whose writing meets a reset of the peer."""
        self.peer = "scripted"
        self.socket = None
        self.heard_at = time.monotonic()
        self.patience: Callable[[], None] = lambda: None
        self.said: queue.Queue[m.Message] = queue.Queue()
        self.closed = threading.Event()
        self.was_read_when_closed = False
        self._is_read = False
        self._breaks_at = breaks_at
        self._bodies: queue.Queue[bytes | None] = queue.Queue()

    def hear(self, *messages: m.Message) -> None:
        for message in messages:
            self._bodies.put(frame(message)[limits.FRAME_HEADER_BYTES :])

    def read_body(self) -> bytes:
        self._is_read = True
        body = self._bodies.get()
        self._is_read = False
        if body is None:  # the kernel tells a reset once, here to the writer
            raise ConnectionClosed("closed")
        return body

    def send_message(self, message: m.Message) -> None:
        if self._breaks_at is not None and isinstance(message, self._breaks_at):
            raise ConnectionLost("reset")
        self.said.put(message)

    def shut(self) -> None:
        self._bodies.put(None)

    def finish_writing(self) -> None:
        self._bodies.put(None)  # the peer closes, too

    def close(self) -> None:
        self.was_read_when_closed = self.was_read_when_closed or self._is_read
        self._bodies.put(None)
        self.closed.set()

    def close_in_order(self, seconds: float = 0.0) -> None:
        del seconds
        self.close()

    buffered_bytes = 0

    def expect(self, kind: type[m.Message]) -> None:
        while not isinstance(self.said.get(timeout=HANG), kind):
            pass


class Ends:
    """Hears how transfers end."""

    def __init__(self) -> None:
        self.errors: list[FilestreamerError | None] = []

    def __call__(self, transfer: Transfer, error: FilestreamerError | None) -> None:
        del transfer
        self.errors.append(error)


def begin(registry: Registry, ends: Ends, *, seconds: float = HANG) -> Transfer:
    hello = m.Hello(1, 1, random_id(), m.Role.CONTROL, 0, 1, random_id())
    account = Budget(1 << 30).admit("scripted", 1 << 20)
    made = Transfer(registry, hello, account, Patience(seconds, seconds), ended=ends, log=log.configure("receiver"))
    made.start()
    return made


@pytest.fixture
def ends() -> Ends:
    return Ends()


@pytest.fixture
def transfer(tmp_path: Path, ends: Ends) -> Iterator[Transfer]:
    made = begin(Registry(Destination(str(tmp_path)), None), ends)
    yield made
    made.dismiss()
    made.join(HANG)
    assert not made.is_alive()


def control(transfer: Transfer, *, breaks_at: type[m.Message] | None = None) -> Scripted:
    channel = Scripted(breaks_at=breaks_at)
    assert transfer.mailbox.post_now(ControlUp(channel, m.Welcome(b"")))  # type: ignore[arg-type]
    return channel


def test_a_reset_that_only_the_writer_hears_of_is_no_close_after_complete(transfer: Transfer) -> None:
    """Complete met a reset: the sender did not get it, and gets it when it reconnects."""
    first = control(transfer, breaks_at=m.Complete)
    first.hear(*OFFER, FINISH)
    assert first.closed.wait(HANG)
    again = control(transfer)
    again.hear(*OFFER)
    again.expect(m.Complete)


def test_who_comes_to_a_transfer_that_just_ended_is_not_left_waiting(transfer: Transfer, ends: Ends) -> None:
    first = control(transfer)
    first.hear(*OFFER, FINISH)
    first.expect(m.Complete)
    first.shut()
    transfer.join(HANG)
    assert ends.errors == [None]
    assert control(transfer).closed.wait(HANG)


class Unhurried(Scripted):
    """A peer that closes only when it was told twice that nothing follows: at the goodbye, and at the close."""

    is_told = False

    def finish_writing(self) -> None:
        if self.is_told:
            super().finish_writing()
        self.is_told = True


def test_control_is_closed_when_its_reader_has_left_it(transfer: Transfer) -> None:
    """Else the reader might read from whatever connection gets the descriptor next."""
    channel = Unhurried()
    assert transfer.mailbox.post_now(ControlUp(channel, m.Welcome(b"")))  # type: ignore[arg-type]
    channel.hear(*OFFER)
    channel.expect(m.Welcome)
    transfer.end_soon(TransferFailed(Code.SHUTTING_DOWN, "the test is over"))
    transfer.join(HANG)
    assert channel.closed.is_set()
    assert not channel.was_read_when_closed


def test_a_commit_without_a_thread_is_not_forgotten_where_many_events_wait(
    transfer: Transfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start_no_thread(thread: threading.Thread, what: str) -> None:
        raise TransferFailed(Code.LIMIT, f"{what}: no thread for {thread.name}")

    def commit(file: File, attributes: Attributes) -> None:
        commit_file(file, attributes)
        while transfer.mailbox.post_now(Nudged()):
            pass

    commit_file = File.commit
    monkeypatch.setattr("receiver.transfer.syncer.start_thread", start_no_thread)
    monkeypatch.setattr(File, "commit", commit)
    channel = control(transfer)
    channel.hear(*OFFER, FINISH)
    channel.expect(m.Complete)


def test_a_sender_may_look_for_its_first_file_for_as_long_as_the_user_says(tmp_path: Path, ends: Ends) -> None:
    """On a slow disk, the first one that --include chooses may be found after minutes."""
    transfer = begin(Registry(Destination(str(tmp_path)), None), ends, seconds=600)
    try:
        channel = control(transfer)
        channel.hear(OFFER[0], m.Progress(m.Phase.OFFERING, 0, 0))
        channel.expect(m.Welcome)
        now = time.monotonic()
        transfer.liveness.check(now + 599, is_busy=False)
        with pytest.raises(TransferFailed, match="waiting for the sender to find something to send") as given_up:
            transfer.liveness.check(now + 601, is_busy=False)
        assert given_up.value.code is Code.TIMEOUT
    finally:
        transfer.end_soon(TransferFailed(Code.SHUTTING_DOWN, "the test is over"))
        transfer.join(HANG)
    assert not transfer.is_alive()


def test_a_sender_that_passes_entries_over_looks_on_for_itself_alone(tmp_path: Path, ends: Ends) -> None:
    """Who waits for the place does not wait for that; and when all is listed, there is nothing left to pass over."""
    transfer = begin(Registry(Destination(str(tmp_path)), None), ends, seconds=600)
    liveness, counters = transfer.liveness, transfer.counters
    try:
        channel = control(transfer)
        channel.hear(OFFER[0], m.Progress(m.Phase.OFFERING, 0, 0, passed_over=1))
        until(lambda: counters.last_progress_at == liveness._passed_over_at, "the sender has passed something over")
        assert liveness.idle_seconds > time.monotonic() - counters.last_progress_at
        channel.hear(OFFER[1], m.Progress(m.Phase.OFFERING, 0, 0, passed_over=2), FINISH)
        until(lambda: liveness.finishing_at is not None or transfer.is_complete, "the sender has said Finish")
        assert liveness._passed_over == 1
    finally:
        transfer.end_soon(TransferFailed(Code.SHUTTING_DOWN, "the test is over"))
        transfer.dismiss()  # where it is complete
        transfer.join(HANG)


class Slow(Registry):
    """A registry whose disk hangs until the test has seen enough."""

    def __init__(self, destination: Destination) -> None:
        super().__init__(destination, None)
        self.asked = threading.Event()
        self.go_on = threading.Event()

    def claim(
        self, transfer: Claimant, entry: m.Entry, grid: Grid, share: Share, *, checksum: bool = False
    ) -> FileShare:
        self.asked.set()
        assert self.go_on.wait(HANG)
        return super().claim(transfer, entry, grid, share, checksum=checksum)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[tuple[Slow, Transfer]]:
    registry = Slow(Destination(str(tmp_path)))
    made = begin(registry, Ends())
    yield registry, made
    registry.go_on.set()
    made.dismiss()
    made.join(HANG)
    assert not made.is_alive()


def test_a_sender_that_is_not_read_is_not_taken_for_dead(
    slow: tuple[Slow, Transfer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few frames wait in the mailbox, the others in their socket: reading nothing then does not count as silence."""
    registry, transfer = slow
    monkeypatch.setattr("receiver.transfer.coordinator.TICK_SECONDS", 0.01)
    monkeypatch.setattr("filestreamer.wire.sockets.control_link.TICK_SECONDS", 0.01)
    channel = control(transfer)
    channel.hear(*OFFER)
    assert registry.asked.wait(HANG)
    usual_seconds = limits.DEAD_SECONDS
    monkeypatch.setattr(limits, "DEAD_SECONDS", 1.0)
    progress = m.Progress(m.Phase.MOVING, 0, 0)
    channel.hear(*[progress] * 20)
    until = time.monotonic() + 2.5
    while time.monotonic() < until:  # longer than the living are silent
        assert transfer.mailbox._events.qsize() <= CONTROL_FRAMES
        time.sleep(0.01)
    assert channel._bodies.qsize() > 20 - CONTROL_FRAMES - 2
    assert not transfer.liveness.is_orphaned
    monkeypatch.setattr(limits, "DEAD_SECONDS", usual_seconds)
    registry.go_on.set()
    channel.hear(FINISH)
    channel.expect(m.Complete)


def test_few_control_connections_wait_for_a_coordinator(slow: tuple[Slow, Transfer]) -> None:
    registry, transfer = slow
    control(transfer).hear(*OFFER)
    assert registry.asked.wait(HANG)
    channels = [Scripted() for _ in range(20)]
    came_in = [transfer.mailbox.post_now(ControlUp(channel, m.Welcome(b""))) for channel in channels]  # type: ignore[arg-type]
    assert came_in == [True] * CONTROLS_MOST + [False] * (20 - CONTROLS_MOST)
    registry.go_on.set()
    last = channels[CONTROLS_MOST - 1]
    last.hear(*OFFER, FINISH)
    last.expect(m.Complete)


class Deaf(Scripted):
    """A control connection of a peer that says as much as it likes, and takes no Abort."""

    def send_message(self, message: m.Message) -> None:
        while isinstance(message, m.Abort):  # as a channel does while its socket takes nothing
            time.sleep(0.01)
            self.patience()
        super().send_message(message)


def test_a_sender_that_talks_and_reads_nothing_holds_no_transfer(
    transfer: Transfer, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiver.transfer.coordinator.TICK_SECONDS", 0.01)
    channel = Deaf()
    assert transfer.mailbox.post_now(ControlUp(channel, m.Welcome(b"")))  # type: ignore[arg-type]
    channel.hear(OFFER[0])
    channel.expect(m.Welcome)
    transfer.end_soon(TransferFailed(Code.TIMEOUT, "others wait for the place"))
    channel.hear(*[m.Progress(m.Phase.MOVING, 0, 0)] * 1000)
    monkeypatch.setattr(limits, "DEAD_SECONDS", 0.2)  # not before: until now it is no silence that ends the transfer
    transfer.join(HANG)
    assert not transfer.is_alive()
    assert [str(error) for error in ends.errors] == ["others wait for the place"]
