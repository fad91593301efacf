"""Which transfer may have a name, and for how long."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, TransferFailed
from filestreamer.wire.grid import WHOLE, Grid, Share
from receiver.disk.destination import Destination
from receiver.file.shared_file import File
from receiver.memory.budget import Budget
from receiver.server.registry import Registry
from tests.support.shares import (
    GRID,
    Sender,
    claim,
    leave,
    refused,
)


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
    """While the first is alive. An orphaned one ends, and no other transfer is asked to."""
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


def test_one_live_shard_keeps_out_another_job_and_its_orphaned_siblings_are_left_alone(files: Registry) -> None:
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


def shard_offer(index: int, count: int = 3, **changes: Any) -> m.Offer:
    return m.Offer(4, m.Shard(index, count, tree=True), False, 0)._replace(**changes)


def code_of(files: Registry, offer: m.Offer | None, name: bytes = b"t", job: str = "job") -> Code:
    """Return the code with which a tree is refused."""
    with pytest.raises(TransferFailed) as caught:
        files.claim_root(Sender(files), name, offer, job)
    return caught.value.code


def test_shards_of_one_job_share_their_names(files: Registry) -> None:
    first, second = Sender(files), Sender(files)
    names = files.claim_root(first, b"t", shard_offer(0), "job")
    files.claim_root(second, b"t", shard_offer(1), "job").claim(b"u")
    names.claim(b"u")
    assert code_of(files, shard_offer(0)) is Code.BUSY
    assert code_of(files, shard_offer(2), job="another") is Code.BUSY
    assert code_of(files, shard_offer(2, count=4)) is Code.BUSY
    assert code_of(files, None) is Code.BUSY
    assert code_of(files, shard_offer(2, chunk_size=8)) is Code.POLICY
    assert code_of(files, shard_offer(2, checksum=True)) is Code.POLICY
    for sender in (first, second):
        assert not sender.gave_way
        files.release(sender, cleanly=True)
    files.claim_root(Sender(files), b"t", None)


def test_only_the_last_shard_closes_directories(files: Registry) -> None:
    """One after the other; who is closing them alone keeps a new shard out until that is done."""
    first, second = Sender(files), Sender(files)
    ones = files.claim_root(first, b"t", shard_offer(0), "job")
    others = files.claim_root(second, b"t", shard_offer(1), "job")
    with ones.closing() as is_last:
        assert not is_last
        assert code_of(files, shard_offer(2)) is Code.BUSY
    with others.closing() as is_last:
        assert is_last
    files.claim_root(Sender(files), b"t", shard_offer(2), "job")
    with others.closing() as is_last:
        assert not is_last


def test_a_shard_waits_until_another_one_has_set_modes(files: Registry) -> None:
    ones = files.claim_root(Sender(files), b"t", shard_offer(0), "job")
    others = files.claim_root(Sender(files), b"t", shard_offer(1), "job")
    seen: list[bool] = []

    def close() -> None:
        with others.closing() as is_last:
            seen.append(is_last)

    thread = threading.Thread(target=close)
    with ones.closing():
        thread.start()
        assert seen == []
    thread.join()
    assert seen == [True]
