"""When a file of several shares is complete, and what the disk has of it until then."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import Code, RemoteProtocolError, TransferFailed
from filestreamer.wire.grid import WHOLE, Grid, Share
from receiver.disk import space
from receiver.disk.destination import Destination
from receiver.file.chunk_states import Delivery
from receiver.file.file_share import FileShare
from receiver.file.shared_file import ShareStep
from receiver.server.registry import Registry
from tests.support.services import HANG, UNIT
from tests.support.shares import (
    CONTENT,
    ENTRY,
    GRID,
    Sender,
    answer,
    claim,
    claimed,
    finish,
    leave,
    move,
    refused,
    rehash,
    staging,
    write,
)

MIB = 1 << 20
LARGE = Grid(128 * MIB, MIB)


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
    """The kernel reports a failed write once: every thread that syncs the file must learn of it."""
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


# --- the disk


@pytest.fixture
def taking(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Have the thread that takes space say when it begins, and go on when it is told to."""
    begun, go_on = threading.Event(), threading.Event()
    real = space.fallocate

    def fallocate(fd: int, offset: int, count: int) -> None:
        begun.set()
        go_on.wait(UNIT)
        real(fd, offset, count)

    monkeypatch.setattr(space, "fallocate", fallocate)
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
    assert begun.wait(HANG)
    bring(file_share, sender, *range(LARGE.segments))
    assert finish(file_share) is ShareStep.COMMIT
    commit = threading.Thread(target=file_share.file.commit)
    commit.start()
    commit.join(0.3)  # it waits, or has gone ahead by then
    go_on.set()
    commit.join(HANG)
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
    """The transfer ends with an error, shards that wait end too, and the next run finds what is still there."""
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
