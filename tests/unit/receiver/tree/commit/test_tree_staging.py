"""The staging of a tree: locked, of this user alone, emptied of what a killed receiver left."""

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import Code
from receiver.disk.destination import Destination
from receiver.disk.report import Report
from receiver.disk.staging.sweep import discard_older_than
from receiver.tree.commit.inherited_files import InheritedFiles
from receiver.tree.commit.places import Places
from receiver.tree.commit.tree_staging import TreeStaging
from tests.support.tree_receiver import C, TransferOf, failure, held, sample


def opened(destination: Destination) -> TreeStaging:
    return TreeStaging(destination, b"t", InheritedFiles(destination, Places(destination), Report(lambda: None)))


def test_two_processes_do_not_receive_one_tree(tmp_path: Path, transfer_of: TransferOf) -> None:
    destination = transfer_of(sample()).destination
    assert "another process" in failure(Code.BUSY, opened, destination)


def test_a_second_process_is_refused_and_changes_nothing(tmp_path: Path, transfer_of: TransferOf) -> None:
    """The first process puts in place what it has staged."""
    tree = sample()
    tree.add(b"t/f", b"content")
    tree.add(b"t/large", bytes(range(200)))
    transfer = transfer_of(tree)
    transfer.offer()
    transfer.send_all()
    before = sorted((tmp_path / ".filestreamer").rglob("*"))
    other = Destination(str(tmp_path))
    assert "another process" in failure(Code.BUSY, opened, other)
    other.close()
    assert before == sorted((tmp_path / ".filestreamer").rglob("*"))
    transfer.finish()
    assert (tmp_path / "t/f").read_bytes() == b"content"
    assert (tmp_path / "t/large").read_bytes() == bytes(range(200))


@pytest.mark.parametrize("has_locks", [True, False])
def test_a_second_process_is_refused_where_directories_are_not_locked(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch, *, has_locks: bool
) -> None:
    """As on NFS, SMB and FUSE: the kernel says that it has locked one, and no other machine sees it."""
    real = fcntl.flock

    def flock(fd: int, how: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            return
        if not has_locks:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    tree = sample()
    tree.add(b"t/f", b"content")
    transfer = transfer_of(tree)
    transfer.offer()
    transfer.send_all()
    other = Destination(str(tmp_path))
    assert "another process" in failure(Code.BUSY, opened, other)
    assert discard_older_than(other, None, 0) == (0, 0)
    other.close()
    transfer.finish()
    assert (tmp_path / "t/f").read_bytes() == b"content"
    assert bool(transfer.destination.lacking) is not has_locks
    assert os.listdir(tmp_path) == ["t"]


def test_the_staging_of_a_tree_belongs_to_nobody_else(tmp_path: Path, transfer_of: TransferOf) -> None:
    """The owner of the directory could change what is staged in it, so that one of another user is refused."""
    staging = tmp_path / ".filestreamer"
    staging.mkdir(mode=0o700)
    there = staging / f"{segment_digest(b't').hex()}.tree"
    there.mkdir()
    there.chmod(0o777)
    tree = sample()
    tree.add(b"t/f", b"content")
    transfer_of(tree).move()
    there.mkdir(parents=True)
    there.chmod(0o777)
    destination = Destination(str(tmp_path))
    made = opened(destination)
    assert stat.S_IMODE(there.stat().st_mode) == 0o700
    made.close()
    if os.geteuid() == 0:
        there.mkdir(parents=True)
        os.chown(there, 12345, 12345)
        assert "another user" in failure(Code.DESTINATION, opened, destination)
        assert there.exists()
    destination.close()


SQUASHED, STRANGER = 65534, 12345


class OtherOwners:
    """Has a file system that shows an owner of its own for all that this process makes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.strange: set[int] = set()
        """The inodes of what somebody else has made."""
        for name in ("stat", "fstat"):
            monkeypatch.setattr(os, name, self._shown(getattr(os, name)))

    def _shown(self, call: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
        def shown(*args: Any, **more: Any) -> os.stat_result:
            found = call(*args, **more)
            fields = {name: getattr(found, name) for name in dir(found) if name.startswith(("st_bl", "st_rdev"))}
            fields |= {name: getattr(found, name) for name in dir(found) if name.endswith(("time", "time_ns"))}
            uid = STRANGER if found.st_ino in self.strange else SQUASHED
            return os.stat_result((*found[:4], uid, *found[5:]), fields)

        return shown


def test_a_file_system_that_shows_another_owner(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS with root_squash, or FAT, CIFS and bindfs with uid=: a run is resumed there like anywhere."""
    OtherOwners(monkeypatch)
    tree = sample()
    tree.add(b"t/small", b"content")
    tree.add(b"t/large", bytes(range(200)))
    transfer = transfer_of(tree)
    transfer.offer()
    assert transfer.send(m.Segment(2, 0, C))
    transfer.close()
    transfer = transfer_of(tree)
    answers = transfer.offer()
    assert held([*answers, *transfer.rehashed()]).keys() == {2}
    transfer.send_all()
    transfer.finish()
    assert transfer.declined() == {}
    assert (tmp_path / "t/small").read_bytes() == b"content"
    assert (tmp_path / "t/large").read_bytes() == bytes(range(200))


@pytest.mark.parametrize("is_top", [True, False])
def test_what_somebody_else_has_put_where_another_owner_is_shown(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch, *, is_top: bool
) -> None:
    staging = tmp_path / ".filestreamer"
    there = staging / f"{segment_digest(b't').hex()}.tree"
    there.mkdir(mode=0o700, parents=True)
    staging.chmod(0o700)
    OtherOwners(monkeypatch).strange.add((staging if is_top else there).stat().st_ino)
    destination = Destination(str(tmp_path))
    assert "another user" in failure(Code.DESTINATION, opened, destination)
    destination.close()
    assert os.listdir(tmp_path) == [".filestreamer"]


def test_what_a_process_left_that_was_killed_goes(tmp_path: Path, transfer_of: TransferOf) -> None:
    tree = sample()
    tree.add(b"t/f", b"f")
    transfer = transfer_of(tree)
    transfer.offer()
    (path,) = (tmp_path / ".filestreamer").glob("*.tree")
    (path / "half").write_bytes(b"half")
    transfer.send_all()
    copied = path.with_name(segment_digest(b"another").hex() + ".tree")
    copied.mkdir()
    (copied / "7").write_bytes(b"left")
    (copied / "3").mkdir()
    (copied / "3/8").write_bytes(b"left")
    other = Destination(str(tmp_path))
    assert discard_older_than(other, None, 0) == (0, 0)
    other.close()
    assert path.exists()  # in use
    assert not copied.exists()
    transfer.finish()
