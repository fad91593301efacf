"""One shard of a tree at the receiver: what it takes, how it answers, and what becomes of shared files."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import Code
from filestreamer.wire.grid import Share
from filestreamer.wire.limits import KIB
from filestreamer.wire.tree_shares import TreeShares
from receiver.disk.destination import Destination
from receiver.disk.staging import closed_share, lock
from receiver.disk.staging.closed_share import ClosedShare
from receiver.disk.staging.ledger import Claims
from receiver.tree import large_files
from receiver.tree.commit import committer, traits, tree_staging
from tests.support.disks import disk, record_syncs
from tests.support.peer import TreeSample
from tests.support.services import HANG
from tests.support.tree_receiver import MTIME, C, TreeTransfer, fail_to_sync, failure, sample, staged

COUNT = 3
CONTENT = bytes(range(256)) * 3
SEGMENTS = len(CONTENT) // C
WALK = b"w" * 16


class Shard(TreeSample):
    """Shard `index` of a tree with one shared file; its segments are k with (k - first) mod COUNT == 0."""

    def __init__(self, index: int, *, alone: bool = False) -> None:
        """`alone`: the file is at the top of the destination, and not in the directory t."""
        super().__init__(C)
        self.shares = TreeShares(Share(index, COUNT), C, checksum=False)
        path = b"large" if alone else b"t/large"
        self.first = self.shares.share(path).index
        self.own = range(self.first, SEGMENTS, COUNT)
        if not alone:
            self.directory(b"t", mtime_ns=MTIME)
        self.file_id = self.add(path, CONTENT, mtime_ns=MTIME)

    @property
    def offer(self) -> m.Offer:
        return super().offer._replace(shard=m.Shard(self.shares.shard.index, COUNT, tree=True))

    def is_sent(self, segment: m.Segment) -> bool:
        is_own = segment.offset // C in self.own or self.entries[segment.file_id].size <= C
        return is_own and super().is_sent(segment)

    @property
    def finish(self) -> m.Finish:
        return super().finish._replace(walk_digest=WALK)

    def segment(self, position: int) -> m.Segment:
        return m.Segment(self.file_id, position * C, C)


def finished(transfer: TreeTransfer) -> m.Complete:
    """Say Finish; return the Complete."""
    assert list(transfer.tree.missing()) == []
    transfer.tree.finish(transfer.sample.finish)
    step = transfer.tree.next_step()
    assert callable(step)
    step()
    complete = transfer.tree.next_step()
    assert isinstance(complete, m.Complete)
    return complete


def comes_and_goes(transfer: TreeTransfer) -> None:
    """Move all that a shard has to move, and end it."""
    transfer.offer()
    transfer.send_all()
    finished(transfer)
    transfer.tree.close(cleanly=True)


@pytest.fixture
def shard_of(tmp_path: Path) -> Iterator[Callable[[int], TreeTransfer]]:
    """Begin shards that are under way at the same time."""
    made: list[TreeTransfer] = []

    def make(index: int) -> TreeTransfer:
        made.append(TreeTransfer(tmp_path, Shard(index)))
        return made[-1]

    yield make
    for transfer in made:
        transfer.close()


ShardOf = Callable[[int], TreeTransfer]


def test_the_last_share_completes_a_file(tmp_path: Path, shard_of: ShardOf) -> None:
    shards = [shard_of(index) for index in range(COUNT)]
    for transfer in shards:
        transfer.offer()
    for position in range(SEGMENTS):  # in turns, as if all ran at once
        (transfer,) = [each for each in shards if position in each.sample.own]  # type: ignore[attr-defined]
        assert transfer.send(transfer.sample.segment(position))  # type: ignore[attr-defined]
    told = [finished(transfer) for transfer in shards]
    assert [(complete.committed, complete.shards_finished) for complete in told] == [(False, 1), (False, 2), (True, 3)]
    assert (told[-1].job_files, told[-1].job_bytes) == (1, len(CONTENT))
    assert (tmp_path / "t/large").read_bytes() == CONTENT
    assert (tmp_path / "t/large").stat().st_mtime_ns == MTIME
    assert [name for name in staged(tmp_path) if not name.endswith(".job")] == []


def test_a_share_is_answered_by_its_own_segments(shard_of: ShardOf) -> None:
    transfer = shard_of(1)
    sample = transfer.sample
    assert isinstance(sample, Shard)
    assert transfer.offer() == [m.Needed((m.FileRange(1, 1),), ())]
    for position in sample.own[:2]:
        transfer.send(sample.segment(position))
    transfer.tree.rejoin()
    first, second, third = sample.own[:3]
    here = b"".join(segment_digest(sample.payload(sample.segment(position))) for position in (first, second))
    span = sample.own[-1] - third + 1
    assert transfer.offer() == [m.Needed((), (m.SegmentRange(1, third, span),)), m.Held(1, first, here)]


def test_a_share_of_an_earlier_run_is_re_hashed_and_answered(shard_of: ShardOf) -> None:
    transfer = shard_of(1)
    sample = transfer.sample
    assert isinstance(sample, Shard)
    transfer.offer()
    transfer.send(sample.segment(sample.own[1]))
    transfer.tree.stop_writes()
    transfer.tree.close(cleanly=True)
    transfer.tree = transfer.another(sample)
    left = [sample.own[0], *sample.own[2:]]
    (needed,) = transfer.offer()
    assert isinstance(needed, m.Needed)
    assert needed.segments[0] == m.SegmentRange(1, left[0], 1)
    digest = segment_digest(sample.payload(sample.segment(sample.own[1])))
    assert transfer.rehashed() == [m.Held(1, sample.own[1], digest)]


def test_a_segment_of_another_shard_is_refused(shard_of: ShardOf) -> None:
    transfer = shard_of(1)
    transfer.offer()
    sample = transfer.sample
    assert isinstance(sample, Shard)
    foreign = next(position for position in range(SEGMENTS) if position not in sample.own)
    assert "another shard's" in failure(Code.PROTOCOL, transfer.send, sample.segment(foreign))
    zeros = m.Zeros((m.SegmentRange(1, foreign, 1),))
    assert "told as zeros" in failure(Code.PROTOCOL, lambda: list(transfer.tree.take_zeros(zeros)))


def test_an_entry_of_another_shard_is_refused(shard_of: ShardOf) -> None:
    transfer = shard_of(1)
    shares = TreeShares(Share(1, COUNT), C, checksum=False)
    path = next(path for path in (b"t/%d" % number for number in range(99)) if not shares.is_first(path))
    transfer.sample.add(path, b"small")
    assert "another shard moves" in failure(Code.PROTOCOL, transfer.offer)


def test_a_withdrawn_share_leaves_the_shares_of_others(tmp_path: Path, shard_of: ShardOf) -> None:
    """It is discarded; the file waits, and is complete when the shard comes again."""
    gone, others = shard_of(0), [shard_of(1), shard_of(2)]
    for transfer in (gone, *others):
        transfer.offer()
    gone.send(gone.sample.segment(gone.sample.own[0]))  # type: ignore[attr-defined]
    gone.tree.withdraw([1])
    gone.sample.withdrawn = {1}
    for transfer in others:
        transfer.send_all()
        assert not finished(transfer).committed
    assert not (tmp_path / "t/large").exists()
    ledgers = [name for name in staged(tmp_path) if name.endswith(".ledger")]
    assert len(ledgers) == len(others)
    gone.tree.close(cleanly=True)
    again = shard_of(0)
    again.offer()
    again.send_all()
    assert finished(again).committed
    assert (tmp_path / "t/large").read_bytes() == CONTENT


def test_a_file_that_is_declined_at_the_last_moment_is_missed_by_nobody(tmp_path: Path, shard_of: ShardOf) -> None:
    """Its place is taken while the last shard moves it: that is told, and no share is lost."""
    shards = [shard_of(index) for index in range(COUNT)]
    for transfer in shards:
        transfer.offer()
        transfer.send_all()
    (tmp_path / "t/large").mkdir()
    assert [finished(transfer).committed for transfer in shards] == [False, False, True]
    assert set(shards[-1].declined()) == {"t/large"}


def test_a_share_that_is_sealed_is_accepted_unread(tmp_path: Path, shard_of: ShardOf) -> None:
    """The shard comes again before its file is complete, has nothing to send, and keeps nobody from completing it."""
    for index in (0, 1):
        comes_and_goes(shard_of(index))
    again, last = shard_of(0), shard_of(2)
    assert again.offer() == [m.Held(1, 0, b"", (m.FileRange(1, 1),))]
    again.sample.unchecked = {1}
    last.offer()
    last.send_all()
    assert finished(last).shards_finished == 2
    assert (tmp_path / "t/large").read_bytes() == CONTENT
    assert finished(again).committed


def sealed_but_for_the_last(shard_of: ShardOf) -> tuple[TreeTransfer, TreeTransfer]:
    """Have two shards finished, and begin the first one again; return it, and the last one, which has sent all."""
    for index in (0, 1):
        comes_and_goes(shard_of(index))
    again, last = shard_of(0), shard_of(2)
    last.offer()
    last.send_all()
    return again, last


def finish_meanwhile(last: TreeTransfer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finish the last shard when another one looks for its share."""
    finds = closed_share.is_sealed

    def look(*args: Any) -> bool:
        finished(last)
        return finds(*args)

    monkeypatch.setattr(large_files, "is_sealed", look)


def offered_while_rehashed(
    last: TreeTransfer, again: TreeTransfer, other: Executor, monkeypatch: pytest.MonkeyPatch
) -> list[m.Message]:
    """Finish the last shard, and offer the other one while its share is locked, as it is re-hashed; return answers."""
    rehash, locked = ClosedShare._is_on_disk, lock.locked
    is_refused = threading.Event()
    offered: list[Future[list[m.Message]]] = []

    @contextlib.contextmanager
    def locking(staging_fd: int, key: str) -> Iterator[tuple[int, bool]]:
        try:
            with locked(staging_fd, key) as found:
                yield found
        except BlockingIOError:
            is_refused.set()
            raise

    def rehash_meanwhile(share: ClosedShare, staging_fd: int, whose: Share, claims: Claims) -> bool:
        assert isinstance(again.sample, Shard)
        if whose.index == again.sample.first:
            offered.append(other.submit(again.offer))
            assert is_refused.wait(HANG)
        return rehash(share, staging_fd, whose, claims)

    monkeypatch.setattr(closed_share, "locked", locking)
    monkeypatch.setattr(ClosedShare, "_is_on_disk", rehash_meanwhile)
    finished(last)
    return offered[0].result(HANG)


@pytest.mark.parametrize("when", ["before it looks for its share", "while it looks for its share"])
def test_a_file_that_is_put_in_place_while_a_shard_comes_again(
    tmp_path: Path, shard_of: ShardOf, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The shard has seen that the file is missing. It does not begin the file anew, for which it would wait in vain."""
    again, last = sealed_but_for_the_last(shard_of)
    with ThreadPoolExecutor(1) as other:
        if when.startswith("before"):
            finish_meanwhile(last, monkeypatch)
            answers = again.offer()
        else:
            answers = offered_while_rehashed(last, again, other, monkeypatch)
    assert (tmp_path / "t/large").read_bytes() == CONTENT
    assert answers == [m.Held(1, 0, b"", (m.FileRange(1, 1),))]
    again.sample.unchecked = {1}
    assert finished(again).committed
    assert [name for name in staged(tmp_path) if not name.endswith(".job")] == []


def test_a_name_at_the_top_is_released_where_another_shard_has_put_the_file_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[TreeTransfer] = []

    def make(index: int) -> TreeTransfer:
        made.append(TreeTransfer(tmp_path, Shard(index, alone=True)))
        return made[-1]

    again, last = sealed_but_for_the_last(make)
    finish_meanwhile(last, monkeypatch)
    assert again.offer() == [m.Held(0, 0, b"", (m.FileRange(0, 1),))]
    assert b"large" not in again.top_level_names
    for transfer in made:
        transfer.close()


def test_what_files_free_is_counted_beside_a_share_that_is_sealed(
    tmp_path: Path, shard_of: ShardOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full; the files of the next part have room, as the second one replaces a larger file."""
    comes_and_goes(shard_of(0))
    again = shard_of(0)
    for path, is_bytes, was_bytes in ((b"t/p", 100 * KIB, 4 * KIB), (b"t/q", 300 * KIB, 400 * KIB)):
        (tmp_path / os.fsdecode(path)).write_bytes(b"-" * was_bytes)
        again.sample.add(path, bytes(is_bytes), mtime_ns=MTIME)
    monkeypatch.setattr(Destination, "free_bytes", lambda _: 0)
    told = again.offer()
    assert m.Held(1, 0, b"", (m.FileRange(1, 1),)) in told
    assert [each.files for each in told if isinstance(each, m.Needed)] == [(m.FileRange(2, 2),)]


def test_a_seal_that_is_wrong_is_void(tmp_path: Path, shard_of: ShardOf) -> None:
    """Found by the shard that would put the file in place; the one that is to send again is told so when it comes."""
    first = shard_of(0)
    comes_and_goes(first)
    (data,) = (tmp_path / ".filestreamer").glob("*.shared")
    with data.open("r+b") as file:
        file.seek(first.sample.own[0] * C)  # type: ignore[attr-defined]
        file.write(b"spoiled")
    second, third = shard_of(1), shard_of(2)
    for transfer in (second, third):
        transfer.offer()
        transfer.send_all()
    assert not finished(second).committed
    third.fail_to_commit(Code.DESTINATION)
    assert not (tmp_path / "t/large").exists()
    again = shard_of(0)
    own = again.sample.own  # type: ignore[attr-defined]
    assert again.offer() == [m.Needed((), (m.SegmentRange(1, own[0], own[-1] - own[0] + 1),))]
    again.send_all()
    assert finished(again).committed
    assert (tmp_path / "t/large").read_bytes() == CONTENT


def comes(transfer: TreeTransfer, index: int) -> None:
    """End what came before, and offer another shard to the same receiver."""
    transfer.tree.stop_writes()
    transfer.tree.close(cleanly=True)
    transfer.sample = Shard(index)
    transfer.tree = transfer.another(transfer.sample)
    transfer.offer()


def sends_all(transfer: TreeTransfer, index: int) -> None:
    """Offer another shard, and send all of it."""
    comes(transfer, index)
    transfer.send_all()


def test_a_sync_that_fails_leaves_no_share_that_is_not_sealed(
    tmp_path: Path, shard_of: ShardOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another shard has sealed was synced before: it is not moved again."""
    comes_and_goes(shard_of(0))
    second = shard_of(1)
    assert isinstance(second.sample, Shard)
    entries = [m.Entry(b"t/%d" % number, m.EntryType.FILE, 5, 0o644, MTIME) for number in range(100)]
    small = second.sample.add(next(filter(second.sample.shares.has, entries)).path, b"small")
    second.offer()
    assert second.send(second.sample.segment(second.sample.own[0]))
    assert second.send(m.Segment(small, 0, 5))
    with monkeypatch.context() as failing:
        failing.setattr(committer, "sync_file_system", fail_to_sync)
        failure(Code.DESTINATION, second.tree._committer.flush)
    second.tree.close(cleanly=True)
    (noted,) = [name for name in staged(tmp_path) if name.endswith(".ledger")]
    assert noted.endswith(f"-{Shard(0).first}.ledger")


def test_a_shared_file_of_which_the_sync_fails_is_discarded(
    tmp_path: Path, shard_of: ShardOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, last = sealed_but_for_the_last(shard_of)
    monkeypatch.setattr(os, "fsync", fail_to_sync)
    last.fail_to_commit(Code.DESTINATION)
    assert [name for name in staged(tmp_path) if name.endswith((".shared", ".ledger"))] == []


def test_a_share_is_durable_with_its_names_where_no_sync_reaches_all(
    tmp_path: Path, shard_of: ShardOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also below the destination, where the staging of what is mounted there is: its sender exits 0 and is done."""
    monkeypatch.setattr("receiver.disk.place.syncs_each", lambda _: True)
    synced = record_syncs(monkeypatch)
    with disk(tmp_path / "t", 1 << 20):
        first = shard_of(0)
        comes_and_goes(first)
        staging = tmp_path / "t/.filestreamer"
        assert {"shared", "ledger"} == {name.rpartition(".")[2] for name in os.listdir(staging)}
        assert {str(staging), str(tmp_path / "t"), str(tmp_path)} <= set(synced)
        first.close()


def test_a_share_that_a_killed_receiver_has_sealed_is_durable_with_the_next_complete(
    tmp_path: Path, shard_of: ShardOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had not synced the seal, and the share is accepted unread."""
    monkeypatch.setattr("receiver.disk.place.syncs_each", lambda _: True)
    record_syncs(monkeypatch)
    comes_and_goes(shard_of(0))
    (ledger,) = (tmp_path / ".filestreamer").glob("*.ledger")
    synced = record_syncs(monkeypatch)
    again = shard_of(0)
    again.sample.unchecked = {1}
    again.offer()
    assert not finished(again).committed
    assert str(ledger) in synced


def test_a_standing_receiver_forgets_the_shares_of_a_file_in_place(tmp_path: Path) -> None:
    """There is room for so many: if they were kept, each further file would be re-hashed before it is in place."""
    transfer = TreeTransfer(tmp_path, Shard(0))
    for index in range(COUNT):
        sends_all(transfer, index)
        finished(transfer)
        assert len(transfer.destination.sealed_shares) == (index + 1) % COUNT
    assert (tmp_path / "t/large").read_bytes() == CONTENT
    transfer.close()


def test_ledgers_of_a_file_in_place_go_with_any_shard(tmp_path: Path) -> None:
    """A crash after the rename leaves those of all shards, and not each of them need come again."""
    transfer = TreeTransfer(tmp_path, Shard(0))
    left: dict[Path, bytes] = {}
    for index in range(COUNT):
        sends_all(transfer, index)
        finished(transfer)
        left |= {path: path.read_bytes() for path in (tmp_path / ".filestreamer").glob("*.ledger")}
    for path, content in left.items():
        path.write_bytes(content)
    comes(transfer, COUNT - 1)
    assert [name for name in staged(tmp_path) if name.endswith(".ledger")] == []
    transfer.close()


def test_what_shards_have_staged_goes_when_there_are_none_any_more(tmp_path: Path) -> None:
    """And what a transfer of the whole had staged, when shards come: nobody would ever go on with it."""
    transfer = TreeTransfer(tmp_path, Shard(0))
    whole = sample()
    whole.add(b"t/large", CONTENT, mtime_ns=MTIME)
    transfer.offer()
    transfer.send_all()
    finished(transfer)
    for is_whole in (True, False):
        transfer.tree.close(cleanly=True)
        transfer.sample = whole if is_whole else Shard(0)
        transfer.tree = transfer.another(transfer.sample)
        transfer.offer()
        position = transfer.sample.own[0] if isinstance(transfer.sample, Shard) else 0
        transfer.send(m.Segment(1, position * C, C))
        left = {name.rpartition(".")[2] for name in staged(tmp_path)} - {"job", "pending"}
        assert left == ({"data", "ledger"} if is_whole else {"shared", "ledger"})
    transfer.close()


def test_bytes_that_somebody_has_removed_are_moved_again(tmp_path: Path) -> None:
    """Also by a receiver that has sealed them itself: what has taken their place is not what it knows."""
    transfer = TreeTransfer(tmp_path, Shard(0))
    for index in range(COUNT):
        sends_all(transfer, index)
        if index == COUNT - 1:
            transfer.fail_to_commit(Code.DESTINATION)
        else:
            finished(transfer)
        if index == 0:
            (data,) = (tmp_path / ".filestreamer").glob("*.shared")
            data.unlink()
    assert not (tmp_path / "t/large").exists()
    sends_all(transfer, 0)
    assert finished(transfer).committed
    assert (tmp_path / "t/large").read_bytes() == CONTENT
    transfer.close()


@pytest.mark.parametrize("lacking", ["folds_names", "keeps_times"])
def test_destinations_that_hide_what_shards_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    found = traits.Traits()._replace(**{lacking: lacking == "folds_names"})
    monkeypatch.setattr(tree_staging, "find_traits", lambda _: found)
    assert "without --shard" in failure(Code.POLICY, TreeTransfer, tmp_path, Shard(0))
    assert not os.path.lexists(tmp_path / ".filestreamer")
