"""A destination with other mounts below it: each file is staged where it goes to."""

import contextlib
import errno
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code
from receiver.disk import final_name
from receiver.disk.staging import closed_staging
from receiver.disk.staging.sweep import discard_older_than, give_back_space, places_below
from receiver.tree.commit import committer
from receiver.tree.commit.places import Places
from tests.support.disks import disk, fill, mounted, record_syncs
from tests.support.peer import TreeSample
from tests.support.tree_receiver import MTIME, TransferOf, failure, sample, sample_of

MIB = 1 << 20
LARGE = bytes(range(200))


def with_files_below() -> TreeSample:
    """Return a tree with files of each kind in t/b, where something else is mounted."""
    tree = sample()
    tree.add(b"t/a", b"a")
    tree.directory(b"t/b")
    tree.directory(b"t/b/c")
    tree.add(b"t/b/c/small", b"small")
    tree.add(b"t/b/empty", b"")
    tree.add(b"t/b/large", LARGE)
    tree.add(b"t/z", b"z")
    return tree


def has_all(path: Path) -> bool:
    contents = {"a": b"a", "b/c/small": b"small", "b/empty": b"", "b/large": LARGE, "z": b"z"}
    return {name: (path / "t" / name).read_bytes() for name in contents} == contents


def stagings(path: Path) -> list[str]:
    return sorted(str(each.relative_to(path)) for each in path.rglob(".filestreamer"))


def test_a_file_is_staged_where_it_goes_to(tmp_path: Path, transfer_of: TransferOf) -> None:
    with disk(tmp_path / "t/b", 8 * MIB):
        transfer = transfer_of(with_files_below())
        transfer.offer()
        transfer.send_all()
        assert stagings(tmp_path) == [".filestreamer", "t/b/.filestreamer"]
        transfer.finish()
        assert has_all(tmp_path)
        assert stagings(tmp_path) == [], "nothing is left anywhere, not even the note that there was staging"


def test_what_a_killed_receiver_left_below_is_resumed_and_swept(tmp_path: Path, transfer_of: TransferOf) -> None:
    with disk(tmp_path / "t/b", 8 * MIB):
        tree = with_files_below()
        transfer = transfer_of(tree)
        transfer.offer()
        for segments in tree.chunks().values():
            if segments[0].offset < 128:  # the rest of the large file is missing
                transfer.send(*segments)
        transfer = transfer_of(sample_of(tree))  # closes the first one
        below = tmp_path / "t/b/.filestreamer"
        assert [each.suffix for each in sorted(below.iterdir())] == [".data", ".ledger"]
        (below / "ab.tree/0").mkdir(parents=True)  # as a receiver that is killed leaves it
        destination = transfer.destination
        assert [place.prefix for place in places_below(destination)] == [b"t/b"]
        assert discard_older_than(destination, None, 0) == (0, 1)
        assert not (below / "ab.tree").exists()
        assert give_back_space(destination) == 0
        assert discard_older_than(destination, 0.0, 1 << 40) == (1, 0)
        assert stagings(tmp_path) == [".filestreamer"], "the tree of this transfer"


@pytest.mark.parametrize("is_usable", [True, False])
def test_where_nothing_changed_nothing_is_staged(tmp_path: Path, transfer_of: TransferOf, *, is_usable: bool) -> None:
    """Files below a mount are as they were: no staging is made there, nor missed where it can't be made."""
    tree = with_files_below()
    for number in range(9):
        tree.add(b"t/b/c/f%d" % number, b"%d" % number)
    with disk(tmp_path / "t/b", 8 * MIB):
        transfer_of(tree).move()
        if not is_usable:
            (tmp_path / "t/b/.filestreamer").write_bytes(b"")
        before = (tmp_path / "t/b").stat().st_mtime_ns
        tree.unchecked = {at for at, entry in enumerate(tree.entries) if entry.size}
        transfer = transfer_of(tree)
        assert not any(isinstance(answer, m.Needed) for answer in transfer.offer())
        assert stagings(tmp_path) == [".filestreamer", *([] if is_usable else ["t/b/.filestreamer"])]
        assert (tmp_path / "t/b").stat().st_mtime_ns == before
        transfer.finish()
        assert transfer.counters.unchecked_bytes == sum(entry.size for entry in tree.entries)
        assert transfer.declined_ids == []


@pytest.mark.parametrize("content", [b"t/b", b"../etc", b"", b"t/b\0", b"/etc"])
def test_a_note_of_a_place_that_is_gone_is_forgotten(tmp_path: Path, transfer_of: TransferOf, content: bytes) -> None:
    (tmp_path / "t/b").mkdir(parents=True)
    note = tmp_path / ".filestreamer/ff.place"
    note.parent.mkdir()
    note.write_bytes(content)
    assert list(places_below(transfer_of(sample()).destination)) == []
    assert not note.exists()


@pytest.mark.parametrize("kind", ["symlink", "foreign"])
def test_staging_below_that_is_not_safe(tmp_path: Path, transfer_of: TransferOf, kind: str) -> None:
    """What would be staged there is declined before any byte of it; everything else arrives."""
    with disk(tmp_path / "t/b", 8 * MIB) as below:
        if kind == "symlink":
            (tmp_path / "elsewhere").mkdir()
            (below / ".filestreamer").symlink_to(tmp_path / "elsewhere")
        else:
            (below / ".filestreamer").mkdir(mode=0o777)
            os.chown(below / ".filestreamer", 4711, 4711)
        tree = with_files_below()
        transfer = transfer_of(tree)
        transfer.offer()
        told = transfer.withdraw_declined()
        assert set(told) == {"t/b/c/small", "t/b/large"}
        assert all("b/.filestreamer" in reason for _, reason in told.values())
        transfer.send_all()
        transfer.finish()
        assert stagings(tmp_path) == ["t/b/.filestreamer"], "it is left as it is, and nothing notes it"
    assert not (tmp_path / "elsewhere").exists() or os.listdir(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("is_listed", [True, False])
def test_a_read_only_mount_below(tmp_path: Path, transfer_of: TransferOf, *, is_listed: bool) -> None:
    """What lies below it is declined, and everything else arrives."""
    with disk(tmp_path / "t/b", 8 * MIB) as below:
        subprocess.run(["mount", "-o", "remount,ro", str(below)], check=True)
        tree = sample()
        tree.add(b"t/a", b"a")
        if is_listed:
            tree.directory(b"t/b")
            tree.directory(b"t/b/c")
        tree.add(b"t/b/large", LARGE)
        tree.add(b"t/b/small", b"small")
        tree.add(b"t/z", b"z")
        transfer = transfer_of(tree)
        transfer.offer()
        told = transfer.withdraw_declined()
        assert set(told) == {"t/b/large", "t/b/small"} | ({"t/b", "t/b/c"} if is_listed else set())
        assert told["t/b" if is_listed else "t/b/large"][1] == "its file system is read-only"
        transfer.send_all()
        transfer.finish()
        assert transfer.declined() == {}
        assert ((tmp_path / "t/a").read_bytes(), (tmp_path / "t/z").read_bytes()) == (b"a", b"z")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_a_read_only_file_below(tmp_path: Path, transfer_of: TransferOf) -> None:
    """It is mounted by itself: neither its bytes nor its mode can be changed."""
    (tmp_path / "t").mkdir()
    tree = sample()
    with contextlib.ExitStack() as mounts:
        for name, content in (("same", b"same"), ("other", b"before")):
            source = tmp_path / f"source of {name}"
            source.write_bytes(content)
            source.chmod(0o600)
            os.utime(source, ns=(MTIME, MTIME))
            (tmp_path / "t" / name).touch()
            there = str(tmp_path / "t" / name)
            subprocess.run(["mount", "--bind", str(source), there], check=True)
            mounts.callback(subprocess.run, ["umount", there], check=True)
            subprocess.run(["mount", "-o", "remount,ro,bind", there], check=True)
            tree.add(f"t/{name}".encode(), name.encode())
        tree.add(b"t/z", b"z")
        transfer = transfer_of(tree)
        transfer.offer()
        told = transfer.withdraw_declined()
        tree.unchecked = set()
        transfer.send_all()
        transfer.finish()
        told |= transfer.declined()
        assert set(told) == {"t/same", "t/other"}
        assert (tmp_path / "t/z").read_bytes() == b"z"


def test_each_place_has_space_of_its_own(tmp_path: Path, transfer_of: TransferOf) -> None:
    with disk(tmp_path / "t/b", MIB) as below:
        fill(below, 16384)
        tree = sample()
        tree.directory(b"t/b")
        tree.add(b"t/b/large", bytes(range(256)) * 256)
        transfer = transfer_of(tree)
        assert "no space for" in (reason := failure(Code.NO_SPACE, transfer.offer))
        assert "t/b" in reason


def test_a_mount_that_goes_during_the_transfer(tmp_path: Path, transfer_of: TransferOf) -> None:
    """Complete means that the files are where the user sees them."""
    with disk(tmp_path / "t/b", 8 * MIB):
        transfer = transfer_of(with_files_below())
        transfer.offer()
        transfer.send_all()
    assert "unmounted" in transfer.fail_to_commit(Code.DESTINATION)


def test_a_mount_that_comes_during_the_transfer(tmp_path: Path, transfer_of: TransferOf) -> None:
    """Some files would be below it, some in it: the transfer does not end as if all were well."""
    transfer = transfer_of(with_files_below())
    transfer.offer()
    transfer.send_all()
    with mounted(tmp_path / "t/b", "-t", "tmpfs", "filestreamer-test") as below:
        (below / "c").mkdir()
        assert "mounted over" in transfer.fail_to_commit(Code.DESTINATION)
        assert os.listdir(below) == ["c"]


class Boundary:
    """A boundary that only a rename shows: from the staging at the top into any other directory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, top: Path) -> None:
        self._real = final_name.put_in_place
        self._top = top
        self.crossed = 0
        monkeypatch.setattr(committer, "put_in_place", self)
        monkeypatch.setattr(closed_staging, "put_in_place", self)

    def __call__(self, staged: str, final: bytes, staging_fd: int, directory_fd: int, **more: Any) -> None:
        source = Path(os.readlink(f"/proc/self/fd/{staging_fd}"))
        if self._top / ".filestreamer" in (source, source.parent) and final in (b"small", b"large", b"late"):
            self.crossed += 1
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        self._real(staged, final, staging_fd, directory_fd, **more)


def test_a_boundary_that_only_the_rename_shows(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is copied; what comes later is staged behind the boundary, and nothing is left there."""
    boundary = Boundary(monkeypatch, tmp_path)
    tree = with_files_below()
    transfer = transfer_of(tree)
    transfer.offer()
    transfer.send_all()
    transfer.finish()
    assert boundary.crossed == 2
    assert has_all(tmp_path)
    assert (tmp_path / "t/b/large").stat().st_mtime_ns == next(e for e in tree.entries if e.size == 200).mtime_ns
    assert stagings(tmp_path) == []


# ---------------------------------------------------------------------------------- where each file is synced by itself


def test_each_file_and_directory_is_synced_where_no_sync_reaches_all(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}").removeprefix(str(tmp_path)))
        real(fd)

    monkeypatch.setattr("receiver.disk.place.syncs_each", lambda _: True)
    monkeypatch.setattr(os, "fsync", fsync)
    tree = with_files_below()
    transfer_of(tree).move()
    assert {"/t", "/t/b", "/t/b/c", ""} <= set(synced), "the directories"
    assert sum(".tree/" in name for name in synced) == 3, "a, small and z"
    assert sum(name.endswith(".data") for name in synced) >= 1, "large"
    files = [at for at, name in enumerate(synced) if ".tree/" in name or name.endswith(".data")]
    assert max(files) < synced.index("/t/b/c"), "before they get their names"


def test_what_needs_no_bytes_is_synced_where_no_sync_reaches_all(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty file, and files that only get the mode of the source: compared, empty, or accepted unread."""
    synced: list[str] = []

    def fsync(fd: int) -> None:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode):
            synced.append(f"{os.path.basename(os.readlink(f'/proc/self/fd/{fd}'))} {stat.S_IMODE(status.st_mode):o}")

    monkeypatch.setattr("receiver.disk.place.syncs_each", lambda _: True)
    tree = sample()
    tree.add(b"t/empty", mode=0o640)
    tree.add(b"t/f", b"content", mode=0o640)
    monkeypatch.setattr(os, "fsync", fsync)
    transfer_of(tree).move()
    assert "empty 640" in synced
    for checksum in (False, True):
        for name in ("empty", "f"):
            (tmp_path / "t" / name).chmod(0o600)
        synced.clear()
        again = sample(checksum=checksum)
        again.entries, again.contents = tree.entries, tree.contents
        again.unchecked = set() if checksum else {2}
        transfer = transfer_of(again)
        transfer.offer()
        if checksum:
            transfer.rehashed()
        transfer.finish()
        assert sorted(synced) == ["empty 640", "f 640"]


def test_what_a_killed_receiver_has_not_synced_is_synced_by_the_next_run(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had made directories, and put files in place: all that is there, and nobody else would sync their names."""
    monkeypatch.setattr("receiver.disk.place.syncs_each", lambda _: True)
    record_syncs(monkeypatch)
    tree = sample()
    tree.add(b"t/f", b"content")
    transfer_of(tree).move()
    synced = record_syncs(monkeypatch)
    tree.unchecked = {1}
    transfer = transfer_of(tree)
    transfer.offer()
    transfer.finish()
    assert {str(tmp_path), str(tmp_path / "t")} <= set(synced)


def test_nothing_is_synced_by_itself_where_one_sync_does(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiver.disk.place.syncs_each", lambda _: False)
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("a sync of one file"))
    transfer_of(with_files_below()).move()
    assert has_all(tmp_path)


def test_places_are_found_by_the_directory(tmp_path: Path, transfer_of: TransferOf) -> None:
    transfer = transfer_of(sample())
    places = Places(transfer.destination)
    with disk(tmp_path / "x/y", MIB):
        fd = os.open(tmp_path / "x/y", os.O_RDONLY)
        place = places.enter(b"x/y", fd, transfer.destination)
        assert places.enter(b"x/y", fd, transfer.destination) is place
        assert places.enter(b"x/y/z", fd, place) is place
        assert (places.of(b"x/y/f"), places.of(b"x/y/z/f")) == (place, place)
        assert (places.of(b"x/y"), places.of(b"x/f"), places.of(b"f")) == (transfer.destination,) * 3
        assert place.below(b"x/y/z/f") == b"z/f"
        places.check_paths()
        os.close(fd)
        place.close()
