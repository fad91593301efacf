"""Who may have a share of which file, and when a file of several shares is complete."""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import Code, FilestreamerError, RemoteProtocolError, TransferFailed
from filestreamer.wire.grid import WHOLE, Grid, Share
from receiver.disk import reserve
from receiver.disk.store import Destination, Staging
from receiver.file.chunk_states import CLAIMED, FREE, HELD, VERIFIED, WRITING, Delivery, runs
from receiver.file.file_share import Answer, FileShare
from receiver.file.shared_file import File, ShareStep
from receiver.memory.budget import Budget
from receiver.server.registry import Registry
from tests.support.services import UNIT

CONTENT = b"abcdefghij"
GRID = Grid(len(CONTENT), 3)
ENTRY = m.Entry(b"f", m.EntryType.FILE, len(CONTENT), 0o644, 7)


class Sender:
    """A transfer, as far as files know it, and the connection that it writes over."""

    def __init__(self, files: Registry) -> None:
        self.files = files
        self.account = Budget(1 << 30).admit("a peer", 1 << 20)
        self.is_complete = False
        self.is_orphaned = False
        self.has_passed_on = False
        self.gave_way = False
        self.hangs: str | None = None
        self.errors: list[FilestreamerError] = []

    @property
    def yields(self) -> bool:
        return self.is_complete or self.is_orphaned

    def yield_to_newer(self) -> None:
        self.gave_way = True

    def join(self, timeout: float) -> None:
        assert timeout >= 0
        if self.gave_way:
            self.files.release(self, cleanly=True)

    def cut(self) -> None:
        pass

    def end_soon(self, error: FilestreamerError) -> None:
        self.errors.append(error)

    def stop(self, seconds: float) -> bool:
        return seconds > 0


@pytest.fixture
def destination(tmp_path: Path) -> Iterator[Destination]:
    made = Destination(str(tmp_path))
    yield made
    os.close(made.fd)


@pytest.fixture
def files(destination: Destination) -> Registry:
    return Registry(destination, None)


def claim(
    files: Registry, share: Share = WHOLE, sender: Sender | None = None, *, grid: Grid = GRID, **entry: Any
) -> tuple[Sender, FileShare]:
    sender = sender or Sender(files)
    file_share = files.claim(sender, ENTRY._replace(size=grid.size, **entry), grid, share)
    return sender, file_share


def leave(files: Registry, *senders: Sender, cleanly: bool = True) -> None:
    for sender in senders:
        files.release(sender, cleanly=cleanly)


def staging(file_share: FileShare) -> Staging:
    content = file_share.file.content
    assert isinstance(content, Staging)
    return content


def answer(file_share: FileShare) -> Answer:
    """Read what is needed and what is held now."""
    states = file_share.states()
    return Answer(list(runs(states, FREE, WRITING)), list(runs(states, HELD, VERIFIED)))


def claimed(file_share: FileShare) -> list[tuple[int, int]]:
    """Read which chunks have to be re-hashed."""
    return list(runs(file_share.states(), CLAIMED))


def write(sender: Sender, file_share: FileShare, position: int, content: bytes = CONTENT) -> None:
    """Bring one segment, as a connection does."""
    turn, _ = file_share.begin(position, sender)
    assert turn is Delivery.WRITE
    offset = GRID.offset(position)
    block = content[offset : offset + GRID.length(position)]
    staging(file_share).write(memoryview(block), offset)
    assert file_share.deliver(position, sender, segment_digest(block), segment_digest(block), 0)
    staging(file_share).record([(position, segment_digest(block))])


def finish(file_share: FileShare) -> ShareStep:
    """End a share whose chunks are all here, as a transfer does after Finish."""
    assert file_share.missing() == []
    file_share.stop_writes()
    file_share.seal()
    return file_share.file.next_step(file_share.share)


def rehash(file_share: FileShare, share: Share, start: int, stop: int) -> None:
    """Read claimed chunks back from the disk."""
    digests = []
    for ordinal in range(start, stop):
        block = bytearray(GRID.length(share.chunk(ordinal)))
        file_share.file.content.read_into(memoryview(block), GRID.offset(share.chunk(ordinal)))
        digests.append(segment_digest(bytes(block)))
    file_share.rehashed(share, start, digests)


def move(sender: Sender, file_share: FileShare) -> None:
    """Re-hash what is claimed, and bring what is missing."""
    for start, stop in claimed(file_share):
        rehash(file_share, file_share.share, start, stop)
    for start, stop in file_share.missing():
        for ordinal in range(start, stop):
            write(sender, file_share, file_share.share.chunk(ordinal))


def refused(files: Registry, share: Share, **changes: Any) -> Code:
    with pytest.raises(TransferFailed) as caught:
        claim(files, share, **changes)
    return caught.value.code


# -------------------------------------------------------------------------------------------------------------- who may


@pytest.mark.parametrize(
    ("first", "second", "changes", "code"),
    [
        (WHOLE, WHOLE, {}, Code.BUSY),
        (WHOLE, WHOLE, {"mtime_ns": 8}, Code.BUSY),
        (WHOLE, Share(0, 2), {}, Code.BUSY),
        (Share(0, 2), WHOLE, {}, Code.BUSY),
        (Share(0, 2), Share(0, 2), {}, Code.BUSY),
        (Share(0, 2), Share(1, 3), {}, Code.BUSY),
        (Share(0, 2), Share(1, 2), {"mtime_ns": 8}, Code.SOURCE_CHANGED),
        (Share(0, 2), Share(0, 2), {"mtime_ns": 8}, Code.SOURCE_CHANGED),
        (Share(0, 2), Share(1, 2), {"grid": Grid(11, 3)}, Code.SOURCE_CHANGED),
        (Share(0, 2), Share(1, 2), {"grid": Grid(10, 4)}, Code.POLICY),
    ],
)
def test_who_may_not_come(files: Registry, first: Share, second: Share, changes: dict[str, Any], code: Code) -> None:
    """While the first is alive. A deserted one gives way, and nobody else is asked to."""
    sender, _ = claim(files, first)
    assert refused(files, second, **changes) is code
    assert not sender.gave_way
    sender.is_orphaned = True
    claim(files, second, **changes)
    assert sender.gave_way


def test_shards_of_one_job_share_a_file(files: Registry) -> None:
    (_, first), (_, second) = claim(files, Share(0, 2)), claim(files, Share(1, 2))
    assert first.file is second.file
    assert (first.missing(), second.missing()) == ([(0, 2)], [(0, 2)])


def test_a_share_that_is_done_may_come_again_beside_the_one_that_waits_to_be_heard(files: Registry) -> None:
    sender, file_share = claim(files, Share(0, 2))
    sender.is_complete = True
    _, again = claim(files, Share(0, 2))
    assert again.file is file_share.file
    assert not sender.gave_way


def test_one_live_shard_keeps_out_another_job_and_its_deserted_siblings_are_left_alone(files: Registry) -> None:
    (lost, _), (live, _) = claim(files, Share(0, 2)), claim(files, Share(1, 2))
    lost.is_orphaned = True
    assert refused(files, WHOLE) is Code.BUSY
    assert (lost.gave_way, live.gave_way) == (False, False)


def test_the_last_one_closes_the_file(files: Registry, destination: Destination) -> None:
    """Another process may have it then, and not before: the ledger is locked."""
    (first, _), (second, _) = claim(files, Share(0, 2)), claim(files, Share(1, 2))
    other = Registry(destination, None)
    leave(files, first)
    assert refused(other, Share(0, 2)) is Code.BUSY
    leave(files, second)
    claim(other, Share(0, 2))


def test_a_file_in_which_a_thread_hangs_is_never_closed(files: Registry, destination: Destination) -> None:
    """Its descriptors would be given to others, into which the thread would write."""
    (first, file_share), (second, _) = claim(files, Share(0, 2)), claim(files, Share(1, 2))
    leave(files, first, cleanly=False)
    leave(files, second)
    assert os.fstat(file_share.file.content.fd).st_size == GRID.size
    assert refused(Registry(destination, None), WHOLE) is Code.BUSY
    file_share.file.content.close()


def test_a_file_that_can_not_be_staged_keeps_nobody_out(files: Registry, tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    assert refused(files, Share(0, 2)) is Code.DESTINATION
    (tmp_path / "f").rmdir()
    claim(files, Share(0, 2))


# -------------------------------------------------------------------------------------------------------- what is whose


def test_a_file_whose_close_fails_keeps_nobody_out(files: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system tells there that what was written is lost."""
    sender, _ = claim(files)
    close = File.close

    def fail(file: File) -> None:
        close(file)
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patched:
        patched.setattr(File, "close", fail)
        with pytest.raises(OSError, match="quota"):
            leave(files, sender)
    assert not files._table.files
    other, _ = claim(files)
    leave(files, other)


def test_a_segment_of_another_share_is_none(files: Registry) -> None:
    _, file_share = claim(files, Share(1, 3))
    positions = [file_share.position(m.Segment(0, GRID.offset(k), GRID.length(k))) for k in range(GRID.segments)]
    assert positions == [None, 1, None, None]


def test_messages_have_segments_and_not_ordinals(files: Registry) -> None:
    sender, file_share = claim(files, Share(1, 2))
    write(sender, file_share, 3)
    now = answer(file_share)
    assert list(file_share.needed_messages(now.needed)) == [m.Needed((), (m.SegmentRange(0, 1, 1),))]
    assert list(file_share.held_messages(now.held)) == [m.Held(0, 3, segment_digest(CONTENT[9:]))]


# ------------------------------------------------------------------------------------------------------ when it is full


def test_the_last_share_commits(files: Registry, tmp_path: Path) -> None:
    (even, first), (odd, second) = claim(files, Share(0, 2)), claim(files, Share(1, 2))
    write(even, first, 0)
    write(odd, second, 1)
    write(odd, second, 3)
    assert finish(second) is ShareStep.WAIT
    assert second.file.missing_shares == 1
    write(even, first, 2)
    assert finish(first) is ShareStep.COMMIT
    first.file.commit()
    assert (tmp_path / "f").read_bytes() == CONTENT
    leave(files, even, odd)
    assert os.listdir(tmp_path) == ["f"]


def test_nothing_is_written_after_finish(files: Registry) -> None:
    sender, file_share = claim(files, Share(3, 4))
    write(sender, file_share, 3)
    file_share.stop_writes()
    assert file_share.begin(3, sender)[0] is Delivery.COMPARE
    file_share.file.chunk_states.forget(file_share.share)
    with pytest.raises(RemoteProtocolError):
        file_share.begin(3, sender)


def test_a_write_takes_back_that_a_share_was_finished(files: Registry) -> None:
    (even, first), (odd, second) = claim(files, Share(0, 2)), claim(files, Share(1, 2))
    for position in (1, 3):
        write(odd, second, position)
    assert finish(second) is ShareStep.WAIT
    odd.is_complete = True
    rerun, again = claim(files, Share(1, 2))
    write(rerun, again, 1)
    for position in (0, 2):
        write(even, first, position)
    assert finish(first) is ShareStep.WAIT
    assert finish(again) is ShareStep.COMMIT


def test_nothing_is_written_while_it_is_committed(files: Registry) -> None:
    """A shard that came again is still there when the last one fills the file."""
    (even, first), (odd, second) = claim(files, Share(0, 2)), claim(files, Share(1, 2))
    for position in (1, 3):
        write(odd, second, position)
    finish(second)
    odd.is_complete = True
    rerun, again = claim(files, Share(1, 2))
    for position in (0, 2):
        write(even, first, position)
    assert finish(first) is ShareStep.COMMIT
    with pytest.raises(TransferFailed) as caught:
        again.begin(1, rerun)
    assert caught.value.code is Code.SOURCE_CHANGED
    assert finish(again) is ShareStep.WAIT  # while the other one commits
    first.file.commit()
    assert again.file.next_step(again.share) is ShareStep.COMMIT
    again.file.commit()  # once is enough
    leave(files, even, odd, rerun)


@pytest.mark.parametrize("damage", ["none", "data", "mtime", "seal of another count"])
def test_shares_of_an_earlier_run(files: Registry, destination: Destination, tmp_path: Path, damage: str) -> None:
    """A finished share counts when it is re-hashed, if it is of this source and all there."""
    odd, second = claim(files, Share(1, 2))
    move(odd, second)
    assert finish(second) is ShareStep.WAIT
    if damage == "data":
        staging(second).write(memoryview(b"X"), GRID.offset(3))
    leave(files, odd)
    later = Registry(destination, None)
    if damage == "seal of another count":
        third, file_share = claim(later, Share(2, 4))
        move(third, file_share)
        assert finish(file_share) is ShareStep.WAIT
        leave(later, third)
    even, first = claim(later, Share(0, 2), mtime_ns=8 if damage == "mtime" else 7)
    move(even, first)
    step = finish(first)
    assert (step is ShareStep.REHASH) == (damage in {"none", "data"})
    if step is ShareStep.REHASH:
        assert {share for share, _, _ in first.file.sealed_claims()} == {Share(1, 2)}
        for share, start, stop in first.file.sealed_claims():
            rehash(first, share, start, stop)
        step = first.file.next_step(first.share)
    assert (step is ShareStep.COMMIT) == (damage == "none")
    if step is ShareStep.COMMIT:
        first.file.commit()
        assert (tmp_path / "f").read_bytes() == CONTENT
    leave(later, even)


def test_a_lost_staging_ends_all(files: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells a failed write once: whoever hears of it must not keep it to himself."""
    (even, first), (odd, second) = claim(files, Share(0, 2)), claim(files, Share(1, 2))
    monkeypatch.setattr(os, "fsync", _fails)
    with pytest.raises(TransferFailed):
        first.seal()
    monkeypatch.undo()
    with pytest.raises(TransferFailed):
        second.seal()
    assert refused(files, Share(0, 2)) is Code.BUSY
    leave(files, even)
    assert [getattr(error, "code", None) for error in odd.errors] == [Code.DESTINATION]
    leave(files, odd)
    _, anew = claim(files, Share(0, 2))
    assert claimed(anew) == []


def _fails(_fd: int) -> None:
    raise OSError(5, "Input/output error")


# ------------------------------------------------------------------------------------------------------------- the disk

MIB = 1 << 20
LARGE = Grid(128 * MIB, MIB)


@pytest.fixture
def taking(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Have the thread that takes space say when it begins, and go on when it is told to."""
    begun, go_on = threading.Event(), threading.Event()
    real = reserve.fallocate

    def fallocate(fd: int, offset: int, count: int) -> None:
        begun.set()
        go_on.wait(UNIT)
        real(fd, offset, count)

    monkeypatch.setattr(reserve, "fallocate", fallocate)
    yield begun, go_on
    go_on.set()


def bring(file_share: FileShare, sender: Sender, *positions: int) -> None:
    """Bring segments of LARGE."""
    for position in positions:
        block = bytes([position + 1]) * MIB
        assert file_share.begin(position, sender)[0] is Delivery.WRITE
        staging(file_share).write(memoryview(block), position * MIB)
        assert file_share.deliver(position, sender, segment_digest(block), segment_digest(block), 0)
        staging(file_share).record([(position, segment_digest(block))])


def allocated(destination: Destination) -> int:
    """Count the bytes that the one staged file takes on the disk."""
    (data,) = [name for name in os.listdir(f"{destination.path}/.filestreamer") if name.endswith(".data")]
    status = os.stat(f"{destination.path}/.filestreamer/{data}")
    return status.st_blocks * 512 // MIB * MIB  # what the file system needs to find them is far less


def test_the_mtime_is_the_last_that_is_set(
    files: Registry, destination: Destination, taking: tuple[threading.Event, threading.Event]
) -> None:
    """The thread that takes space may be slow: a commit waits until it is done."""
    begun, go_on = taking
    sender, file_share = claim(files, grid=LARGE)
    assert begun.wait(UNIT)
    bring(file_share, sender, *range(LARGE.segments))
    assert finish(file_share) is ShareStep.COMMIT
    commit = threading.Thread(target=file_share.file.commit)
    commit.start()
    commit.join(0.3)  # it waits, or has gone ahead by then
    go_on.set()
    commit.join(UNIT)
    leave(files, sender)
    assert os.stat(f"{destination.path}/f").st_mtime_ns == ENTRY.mtime_ns
    assert os.stat(f"{destination.path}/f").st_size == LARGE.size


def test_an_unfinished_file_keeps_the_space_of_what_came(files: Registry, destination: Destination) -> None:
    """Of chunks that are here; not of one that was being written. Another transfer finds them."""
    sender, file_share = claim(files, grid=LARGE)
    staging(file_share).reserve(lambda: False)
    bring(file_share, sender, 0, 7, 127)
    file_share.begin(9, sender)
    staging(file_share).write(memoryview(bytes(MIB)), 9 * MIB)
    file_share.detach(sender)
    leave(files, sender)
    assert allocated(destination) == 3 * MIB
    sender, file_share = claim(files, grid=LARGE)
    for start, stop in claimed(file_share):
        file_share.rehashed(WHOLE, start, [segment_digest(bytes([at + 1]) * MIB) for at in range(start, stop)])
    assert answer(file_share).held == [(0, 1), (7, 8), (127, 128)]
    leave(files, sender)


def test_a_stuck_file_is_left_alone(files: Registry, destination: Destination) -> None:
    """A thread that hangs in it may still write: nothing is done to it until another process looks at it."""
    sender, file_share = claim(files, grid=LARGE)
    staging(file_share).reserve(lambda: False)
    bring(file_share, sender, 0)
    file_share.file.stop_write_back()
    leave(files, sender, cleanly=False)
    assert allocated(destination) == LARGE.size


def test_the_space_of_shards_is_given_back_behind_the_last(files: Registry, destination: Destination) -> None:
    """What one has not written is not missing to the other; the share that is sealed stays."""
    first, second = (claim(files, Share(index, 2), grid=LARGE) for index in range(2))
    staging(first[1]).reserve(lambda: False)
    bring(first[1], first[0], *range(0, 128, 2))
    bring(second[1], second[0], 1)
    assert finish(first[1]) is ShareStep.WAIT
    leave(files, first[0])
    assert allocated(destination) == LARGE.size
    bring(second[1], second[0], 3)
    leave(files, second[0])
    assert allocated(destination) == 66 * MIB
    _, file_share = claim(files, Share(0, 2), grid=LARGE)
    assert file_share.file.missing_shares == 1


def test_what_is_still_to_come_is_promised(files: Registry) -> None:
    """Neither what is here nor what was sent twice counts."""
    sender, file_share = claim(files, grid=LARGE)
    bring(file_share, sender, 0, 1)
    for _ in range(3):
        assert file_share.begin(2, sender)[0] is Delivery.WRITE
        staging(file_share).write(memoryview(bytes(MIB)), 2 * MIB)
        assert not file_share.deliver(2, sender, bytes(16), segment_digest(bytes(MIB)), 0)
    assert file_share.file.left_bytes() == 126 * MIB
    leave(files, sender)


def test_a_file_that_was_shortened_is_hashed_again(files: Registry, destination: Destination) -> None:
    """The transfer ends with an error; shards that wait give way, and the next run finds what is still there."""
    first, second = (claim(files, Share(index, 2), grid=LARGE) for index in range(2))
    bring(first[1], first[0], *range(0, 128, 2))
    assert finish(first[1]) is ShareStep.WAIT
    bring(second[1], second[0], *range(1, 128, 2))
    (data,) = [name for name in os.listdir(f"{destination.path}/.filestreamer") if name.endswith(".data")]
    os.truncate(f"{destination.path}/.filestreamer/{data}", 100 * MIB)
    assert finish(second[1]) is ShareStep.COMMIT
    with pytest.raises(TransferFailed) as caught:
        second[1].file.commit()
    assert caught.value.code is Code.DESTINATION
    leave(files, second[0])
    assert [error.code for error in first[0].errors] == [Code.DESTINATION]  # type: ignore[attr-defined]
    leave(files, first[0])
    assert not os.path.exists(f"{destination.path}/f")
    _, file_share = claim(files, Share(1, 2), grid=LARGE)
    rehashed = {index: bytes([index + 1]) * MIB if index < 100 else bytes(MIB) for index in range(1, 128, 2)}
    file_share.rehashed(file_share.share, 0, [segment_digest(content) for content in rehashed.values()])
    assert answer(file_share).held == [(0, 50)]
    assert answer(file_share).needed == [(50, 64)]


def test_a_table_comes_out_of_the_budget_while_anybody_is_in_the_file(files: Registry) -> None:
    budget = Budget(8 << 20)
    grid = Grid(300_000, 1)
    senders = [Sender(files) for _ in range(4)]
    for number, sender in enumerate(senders):
        sender.account = budget.admit(f"peer {number}", 1 << 16)
    claim(files, Share(0, 2), senders[0], grid=grid)
    claim(files, Share(1, 2), senders[1], grid=grid)  # of the same file: one table
    taken = budget.used_bytes
    assert 17 * grid.segments < taken < 8 << 20
    for changes, code in (({}, Code.LIMIT), ({"size": 500_000}, Code.TOO_LARGE)):
        with pytest.raises(TransferFailed) as caught:
            claim(files, WHOLE, senders[2], grid=Grid(changes.get("size", 300_000), 1), path=b"other")
        assert caught.value.code is code
    leave(files, senders[0])
    senders[0].account.close()
    assert budget.used_bytes == taken - (1 << 16)
    leave(files, senders[1])
    assert budget.used_bytes == 3 << 16
    claim(files, WHOLE, senders[2], grid=grid, path=b"other")


def test_answers_come_message_by_message(files: Registry) -> None:
    """A file of many runs has as many ranges: they are told as they are made, each once."""
    grid = Grid(10_000, 1)
    sender, file_share = claim(files, grid=grid)
    for position in range(0, grid.segments, 2):
        file_share.begin(position, sender)
        digest = segment_digest(b"x")
        assert file_share.deliver(position, sender, digest, digest, 0)
    told = list(file_share.answers())
    needed = [part for message in told if isinstance(message, m.Needed) for part in message.segments]
    held = [message for message in told if isinstance(message, m.Held)]
    assert [part.first_segment for part in needed] == list(range(1, grid.segments, 2))
    assert [message.first_segment for message in held] == list(range(0, grid.segments, 2))
    assert max(len(message.segments) for message in told if isinstance(message, m.Needed)) == 1024
    assert file_share.missing(3) == [(1, 2), (3, 4), (5, 6)]
    leave(files, sender)
