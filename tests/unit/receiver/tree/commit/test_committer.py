"""Complete files of a tree get their final names, whatever changes meanwhile."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, TransferFailed
from filestreamer.wire.messages import SkipKind
from receiver.disk.attributes.attributes import Attributes
from receiver.disk.descriptors import DescriptorPool
from receiver.disk.staging.closed_share import ClosedShare
from receiver.disk.staging.closed_staging import ClosedStaging
from receiver.disk.staging.staging import Staging
from receiver.file import shared_file
from receiver.tree import open_files
from receiver.tree.commit import committer
from tests.support.tree_receiver import (
    MTIME,
    C,
    TransferOf,
    fail_to_sync,
    failure,
    sample,
    staged,
    two_large_files,
)
from tests.support.waiting import until


def test_no_replace_and_a_file_that_appears_meanwhile(tmp_path: Path, transfer_of: TransferOf) -> None:
    tree = sample()
    tree.add(b"t/f", b"content")
    transfer = transfer_of(tree, replace=False)
    transfer.offer()
    transfer.send_all()
    (tmp_path / "t/f").write_bytes(b"another")
    transfer.finish()
    assert transfer.declined() == {
        "t/f": (SkipKind.EXISTING, "it exists by now, and --no-replace forbids replacing it")
    }
    assert (tmp_path / "t/f").read_bytes() == b"another"


def test_a_directory_that_becomes_a_symlink_is_not_followed(tmp_path: Path, transfer_of: TransferOf) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    tree = sample()
    tree.directory(b"t/d")
    tree.add(b"t/d/f", b"content")
    transfer = transfer_of(tree)
    transfer.offer()
    (tmp_path / "t/d").rename(tmp_path / "t/moved")
    (tmp_path / "t/d").symlink_to(outside)
    transfer.send_all()
    transfer.finish()
    assert set(transfer.declined()) == {"t/d", "t/d/f"}
    assert os.listdir(outside) == []


@pytest.mark.parametrize("by", ["nothing", "a directory", "a symlink"])
@pytest.mark.parametrize("moved", ["t/d", "t/d/e"])
def test_a_directory_that_is_moved_away_after_a_file_was_put_into_it(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch, moved: str, by: str
) -> None:
    """It is open. What comes later does not follow it, and its mode and time are not set where it is now."""
    monkeypatch.setattr(committer, "BATCH_FILES", 1)
    tree = sample()
    for directory in (b"t/d", b"t/d/e"):
        tree.directory(directory, mode=0o711, mtime_ns=MTIME)
    for path in (b"t/d/e/first", b"t/d/e/second", b"t/other"):
        tree.add(path, bytes(C))
    transfer = transfer_of(tree)
    transfer.offer()
    first, *others = tree.chunks().values()
    transfer.send(*first)
    until((tmp_path / "t/d/e/first").exists, "the first file is in place")
    gone = (tmp_path / moved).rename(tmp_path / "elsewhere")
    if by == "a directory":
        (tmp_path / "t/d/e").mkdir(parents=True)
    elif by == "a symlink":
        (tmp_path / moved).symlink_to(gone)
    for chunk in others:
        transfer.send(*chunk)
    transfer.finish()
    declined = transfer.declined()
    assert {moved, "t/d/e/second"} <= set(declined) <= {"t/d", "t/d/e", "t/d/e/second"}
    assert {kind for kind, _ in declined.values()} == {SkipKind.DECLINED}
    assert [path.name for path in gone.rglob("*") if path.is_file()] == ["first"]
    assert gone.stat().st_mtime_ns != MTIME
    assert (tmp_path / "t/other").read_bytes() == bytes(C)


def test_a_directory_appears_where_a_file_shall_go(tmp_path: Path, transfer_of: TransferOf) -> None:
    tree = sample()
    tree.add(b"t/a", b"a")
    tree.add(b"t/b", b"b")
    transfer = transfer_of(tree)
    transfer.offer()
    transfer.send_all()
    (tmp_path / "t/a").mkdir()
    transfer.finish()
    assert {path: kind for path, (kind, _) in transfer.declined().items()} == {"t/a": SkipKind.DECLINED}
    assert (tmp_path / "t/b").read_bytes() == b"b"  # the others are put in place all the same


@pytest.mark.parametrize("size", [0, 3])
@pytest.mark.parametrize("replace", [True, False])
def test_a_small_file_whose_staging_is_changed(
    tmp_path: Path, transfer_of: TransferOf, size: int, *, replace: bool
) -> None:
    """The file is not put in place, the other one is. The next run sends it."""
    tree = sample()
    tree.add(b"t/f", b"content")
    tree.add(b"t/g", b"another")
    transfer = transfer_of(tree, replace=replace)
    transfer.offer()
    transfer.send_all()
    (staged,) = (tmp_path / ".filestreamer").glob("*.tree/*/1")
    os.truncate(staged, size)
    assert "changed" in transfer.fail_to_commit(Code.DESTINATION)
    assert sorted(os.listdir(tmp_path / "t")) == ["g"]
    tree.unchecked = {2}
    transfer_of(tree, replace=replace).move()
    assert (tmp_path / "t/f").read_bytes() == b"content"


def test_a_large_file_whose_staging_is_changed(tmp_path: Path, transfer_of: TransferOf) -> None:
    tree = sample()
    tree.add(b"t/f", b"content")
    tree.add(b"t/large", bytes(range(200)))
    transfer = transfer_of(tree)
    transfer.offer()
    transfer.send_all()
    (data,) = (tmp_path / ".filestreamer").glob("*.data")
    os.truncate(data, 150)
    assert "changed" in transfer.fail_to_commit(Code.DESTINATION)
    assert os.listdir(tmp_path / "t") == ["f"]


def test_a_large_file_that_another_process_takes_up_before_it_is_in_place(
    tmp_path: Path, transfer_of: TransferOf
) -> None:
    """What the other process writes must not go into the file under its final name."""
    tree = sample()
    tree.add(b"t/large", bytes(range(200)))
    transfer = transfer_of(tree)
    transfer.offer()
    transfer.send_all()
    (noted,) = (tmp_path / ".filestreamer").glob("*.ledger")
    with noted.open("rb") as ledger:
        fcntl.flock(ledger, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert "another process" in transfer.fail_to_commit(Code.DESTINATION)
    assert not (tmp_path / "t/large").exists()
    assert len(staged(tmp_path)) == 2


def test_a_sync_that_fails_puts_nothing_in_place(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "sync_file_system", fail_to_sync)
    tree = sample()
    tree.add(b"t/small", b"small")
    tree.add(b"t/large", bytes(200))
    transfer = transfer_of(tree)
    transfer.offer()
    transfer.send_all()
    assert "Input/output error" in transfer.fail_to_commit(Code.DESTINATION)
    assert [error.code for error in transfer.failures if isinstance(error, TransferFailed)] == [Code.DESTINATION]
    assert os.listdir(tmp_path / "t") == []
    assert staged(tmp_path) == []  # what was written can't be trusted


def test_a_sync_that_fails_leaves_nothing_that_a_later_run_would_believe(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may have dropped bytes of any file: open, set aside, or left by an earlier run and not yet listed."""
    monkeypatch.setattr(open_files, "PLACES", DescriptorPool(1))
    tree = two_large_files(100)
    tree.add(b"t/small", b"small")
    tree.add(b"t/left", bytes(100))
    earlier = transfer_of(tree)
    earlier.offer()
    assert earlier.send(m.Segment(4, 0, C))
    transfer = transfer_of(tree)
    transfer.offer(m.ManifestPart(0, tuple(tree.entries[:4]), False))
    for segment in (m.Segment(1, 0, C), m.Segment(2, 0, C), m.Segment(3, 0, 5)):
        assert transfer.send(segment)
    monkeypatch.setattr(committer, "sync_file_system", fail_to_sync)
    assert "Input/output error" in failure(Code.DESTINATION, transfer.tree._committer.flush)
    transfer.tree.close(cleanly=True)
    assert staged(tmp_path) == []


def test_a_file_that_can_not_be_finished_takes_no_other_with_it(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is done with its descriptor after it was closed: another file may have the number by then."""
    monkeypatch.setattr(shared_file, "WRITE_BACK_BYTES", 100)
    finished: list[tuple[str, bool]] = []
    finish = Staging.prepare

    def prepare(staged: Staging, attributes: Attributes, file_id: int, root: bytes) -> ClosedStaging | ClosedShare:
        finished.append((os.path.basename(staged.path), staged.fd >= 0))
        if staged.entry.uid is not None:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return finish(staged, attributes, file_id)

    monkeypatch.setattr(Staging, "prepare", prepare)
    tree = sample()
    tree.add(b"t/small", b"small")
    tree.add(b"t/another's", bytes(200), uid=1234)
    tree.add(b"t/large", bytes(range(200)))
    transfer = transfer_of(tree)
    transfer.offer()
    transfer.send_all()
    assert "not permitted" in transfer.fail_to_commit(Code.DESTINATION)
    assert (tmp_path / "t/large").read_bytes() == bytes(range(200))
    assert sorted(os.listdir(tmp_path / "t")) == ["large", "small"]
    assert sorted(finished) == [("another's", True), ("large", True)]
