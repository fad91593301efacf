"""What is removed from a directory that was listed, and what never is."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, RemoteProtocolError, TransferFailed
from receiver.disk.destination import Destination
from receiver.disk.report import Report
from receiver.tree.mirror import extras
from receiver.tree.mirror.deleter import Deleter
from receiver.tree.mirror.depth_first import DepthFirst
from receiver.tree.top_level_names import TopLevelNames
from tests.support import disks, trees
from tests.support.processes import own_descriptors
from tests.support.services import tree as names_below
from tests.support.tree_receiver import told


def entry(path: str, kind: m.EntryType = m.EntryType.FILE) -> m.Entry:
    return m.Entry(path.encode(), kind, 0, 0o644, 0)


def directory(path: str) -> m.Entry:
    return entry(path, m.EntryType.DIRECTORY)


class Log:
    def __init__(self) -> None:
        self.removed: list[str] = []

    def info(self, event: str, path: str) -> None:
        assert event == "entry_removed"
        self.removed.append(path)


class Mirrored:
    """A destination from which a manifest removes what it does not list."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.destination = Destination(str(path), allow_delete=True)
        self.report = Report(lambda: None)
        self.counters = TransferCounters(bytes(16), "")
        self.log = Log()
        self.held: set[bytes] = set()
        """Names at the top that another transfer holds."""
        self.asked: list[bytes] = []

    def deleter(self, *excludes: bytes, roots: tuple[bytes, ...] = (b"top",)) -> Deleter:
        log: Any = self.log
        names = TopLevelNames(self.destination, lambda _: None, self._is_free)
        return Deleter(m.Deletion(roots, excludes), names, self.report, self.counters, log)

    def _is_free(self, name: bytes) -> bool:
        self.asked.append(name)
        return name not in self.held

    def delete(self, *entries: m.Entry, excludes: tuple[bytes, ...] = (), roots: tuple[bytes, ...] = (b"top",)) -> None:
        deleter = self.deleter(*excludes, roots=roots)
        parts = [m.ManifestPart(at, (entry,), False) for at, entry in enumerate(entries)]
        for part in parts:
            deleter.check(part)
        deleter.take_finish(m.Finish(0, bytes(16)))
        deleter.delete(parts)

    @property
    def names(self) -> set[str]:
        return set(names_below(self.path))

    @property
    def warnings(self) -> list[str]:
        return told(self.report)[1]


@pytest.fixture
def mirrored(tmp_path: Path) -> Iterator[Mirrored]:
    (tmp_path / "d").mkdir()
    before = own_descriptors()
    made = Mirrored(tmp_path / "d")
    yield made
    made.destination.close()
    assert own_descriptors() == before


def test_what_is_not_listed_is_removed_with_all_that_is_in_it(mirrored: Mirrored, tmp_path: Path) -> None:
    for name in ("top/a", "top/x", "top/sub/b", "top/sub/y", "top/old/deep/z", "other/x", "file"):
        trees.write(mirrored.path / name, b"")
    trees.write(tmp_path / "outside", b"kept")
    for at in ("top/l", "top/old/l"):
        (mirrored.path / at).symlink_to(tmp_path)
    mirrored.delete(directory("top"), entry("top/a"), directory("top/sub"), entry("top/sub/b"), entry("zzz"))
    assert mirrored.names == {"top", "top/a", "top/sub", "top/sub/b", "other", "other/x", "file"}
    assert (tmp_path / "outside").exists()
    assert mirrored.counters.deleted_files == 7
    assert set(mirrored.log.removed) == {
        *("top/x", "top/sub/y", "top/old/deep/z", "top/old/deep", "top/old/l", "top/old", "top/l")
    }
    assert mirrored.asked == []


def test_the_destination_itself(mirrored: Mirrored) -> None:
    for name in (".filestreamer/token", "lost+found/x", "a", "b", "held/c", "free/d", "sub/lost+found/e"):
        trees.write(mirrored.path / name, b"")
    mirrored.held = {b"held"}
    mirrored.delete(entry("a"), directory("sub"), roots=(b"",))
    assert mirrored.names == {
        *(".filestreamer", ".filestreamer/token", "lost+found", "lost+found/x", "a", "held", "held/c", "sub")
    }
    assert set(mirrored.asked) >= {b"held", b"free", b"b"}


def test_patterns_are_relative_to_their_root(mirrored: Mirrored) -> None:
    for name in (
        "top/x.tmp",
        "top/cache/1",
        "top/a/cache/2",
        "top/a/x",
        "top/gone/x.tmp",
        "top/gone/y",
        "top/k\nl.tmp",
    ):
        trees.write(mirrored.path / name, b"")
    mirrored.delete(directory("top"), directory("top/a"), excludes=(b"*.tmp", b"/cache/"))
    assert mirrored.names == {
        *("top", "top/x.tmp", "top/cache", "top/cache/1", "top/a", "top/gone", "top/gone/x.tmp", "top/k\nl.tmp")
    }
    assert mirrored.warnings == []


def test_staging_at_any_depth_and_however_it_is_written(mirrored: Mirrored) -> None:
    for name in ("top/old/.filestreamer/x", "top/.FileStreamer/y"):
        trees.write(mirrored.path / name, b"")
    before = mirrored.names
    mirrored.delete(directory("top"))
    assert mirrored.names == before


def test_what_exists_at_the_source_but_is_not_moved(mirrored: Mirrored) -> None:
    for name in ("top/fifo", "top/x", "top/mount/a", "top/mount/b", "top/sub/x"):
        trees.write(mirrored.path / name, b"")
    kept = m.EntryType.KEPT
    mirrored.delete(
        directory("top"),
        entry("top/fifo", kept),
        directory("top/mount"),
        entry("top/mount", kept),
        directory("top/sub"),
    )
    assert mirrored.names == {"top", "top/fifo", "top/mount", "top/mount/a", "top/mount/b", "top/sub"}


def test_mounts(mirrored: Mirrored, tmp_path: Path) -> None:
    """Neither another file system nor a part of the same one that is mounted, nor a file that is."""
    top = mirrored.path / "top"
    for name in ("extra/m", "listed", "bind", "gone/x"):
        (top / name).mkdir(parents=True)
    trees.write(tmp_path / "source" / "file", b"kept")
    trees.write(top / "file", b"")
    with disks.disk(top / "extra" / "m", 1 << 20), disks.disk(top / "listed", 1 << 20):
        trees.write(top / "extra" / "m" / "a", b"")
        trees.write(top / "listed" / "b", b"")
        subprocess.run(["mount", "--bind", tmp_path / "source", top / "bind"], check=True)
        subprocess.run(["mount", "--bind", tmp_path / "source" / "file", top / "file"], check=True)
        try:
            mirrored.delete(directory("top"), directory("top/listed"))
            assert mirrored.names == {
                *("top", "top/extra", "top/extra/m", "top/extra/m/a", "top/listed", "top/listed/b"),
                *("top/bind", "top/bind/file", "top/file"),
            }
            assert (tmp_path / "source" / "file").read_bytes() == b"kept"
        finally:
            for mounted in ("bind", "file"):
                subprocess.run(["umount", top / mounted], check=True)
    assert mirrored.counters.undeletable_files == 0


def test_a_name_that_is_there_under_another_spelling(mirrored: Mirrored) -> None:
    """As where the file system folds case: then what seems to be an extra name is the file that was just moved."""
    for name in ("top/a", "top/sub/x"):
        trees.write(mirrored.path / name, b"")
    mirrored.delete(directory("top"), entry("top/A"), directory("top/sub"))
    assert mirrored.names == {"top", "top/a", "top/sub"}
    (warning,) = mirrored.warnings
    assert "different names for one" in warning


@pytest.mark.parametrize("kind", [m.SkipKind.VANISHED, m.SkipKind.UNREADABLE, m.SkipKind.EXISTING])
def test_nothing_is_removed_if_something_was_left_out(mirrored: Mirrored, kind: m.SkipKind) -> None:
    trees.write(mirrored.path / "top" / "x", b"")
    deleter = mirrored.deleter()
    deleter.take_finish(m.Finish(0, bytes(16), 0, (m.LeftOutCount(kind, 1),)))
    deleter.delete([m.ManifestPart(0, (directory("top"),), True)])
    assert mirrored.names == {"top", "top/x"}
    assert "nothing was removed" in mirrored.warnings[0]


def test_nothing_is_removed_if_something_was_declined_or_withdrawn(mirrored: Mirrored) -> None:
    trees.write(mirrored.path / "top" / "x", b"")
    withdrawn = mirrored.deleter()
    part = m.ManifestPart(0, (directory("top"), entry("top/a")), True)
    withdrawn.check(part)
    withdrawn.withdrew(b"top/a")
    withdrawn.delete([part])
    mirrored.report.decline(0, b"top/a", "it is a directory")
    mirrored.delete(directory("top"))
    assert mirrored.names == {"top", "top/x"}


def test_a_file_that_was_withdrawn_may_be_listed_again_anywhere(mirrored: Mirrored) -> None:
    for name in ("x", "sub/a", "sub/x"):
        trees.write(mirrored.path / "top" / name, b"")
    deleter = mirrored.deleter()
    part = m.ManifestPart(0, (directory("top"), directory("top/sub"), entry("top/sub/a"), directory("top/z")), False)
    deleter.check(part)
    deleter.withdrew(b"top/sub/a")
    with pytest.raises(RemoteProtocolError):
        deleter.check(m.ManifestPart(4, (entry("top/sub/b"),), False))
    again = m.ManifestPart(4, (entry("top/sub/a"),), False)
    deleter.check(again)
    (mirrored.path / "top" / "z").mkdir()
    deleter.delete([part, again])
    assert mirrored.names == {"top", "top/sub", "top/sub/a", "top/z"}
    assert mirrored.warnings == []


def test_special_files_and_attributes_hinder_nothing(mirrored: Mirrored) -> None:
    trees.write(mirrored.path / "top" / "x", b"")
    mirrored.report.skip_attribute(0, b"top", "its owner")
    deleter = mirrored.deleter()
    counts = (m.LeftOutCount(m.SkipKind.ATTRIBUTE, 1), m.LeftOutCount(m.SkipKind.SPECIAL, 3))
    deleter.take_finish(m.Finish(0, bytes(16), 0, counts))
    deleter.delete([m.ManifestPart(0, (directory("top"),), True)])
    assert mirrored.names == {"top"}


def test_a_tree_that_is_deeper_than_a_process_may_have_open_files(mirrored: Mirrored) -> None:
    deep = os.open(mirrored.path, os.O_RDONLY)
    os.mkdir("top", dir_fd=deep)
    for name in ["top", *["d" * 100] * 600]:
        if name != "top":
            os.mkdir(name, dir_fd=deep)
        below = os.open(name, os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(os.open("file", os.O_CREAT, dir_fd=deep))
    os.close(deep)
    mirrored.delete(directory("top"))
    assert mirrored.names == {"top"}
    assert mirrored.counters.deleted_files == 601


def test_what_cannot_be_removed_is_told_and_all_else_goes(mirrored: Mirrored, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("top/a/fixed", "top/a/x", "top/b"):
        trees.write(mirrored.path / name, b"")
    unlink = os.unlink

    def refuse(name: bytes, *, dir_fd: int) -> None:
        if name == b"fixed":
            raise PermissionError(1, "Operation not permitted")
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", refuse)
    mirrored.delete(directory("top"))
    assert mirrored.names == {"top", "top/a", "top/a/fixed"}
    assert (mirrored.counters.deleted_files, mirrored.counters.undeletable_files) == (2, 1)
    assert mirrored.warnings == [f"can't remove {mirrored.path}/top/a/fixed: Operation not permitted"]


def test_a_failing_disk_ends_the_transfer(mirrored: Mirrored, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.write(mirrored.path / "top" / "x", b"")

    def fail(name: bytes, *, dir_fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "unlink", fail)
    with pytest.raises(TransferFailed, match="Input/output error") as caught:
        mirrored.delete(directory("top"))
    assert caught.value.code is Code.DESTINATION


def test_a_directory_that_became_a_symlink_is_not_followed(mirrored: Mirrored, tmp_path: Path) -> None:
    trees.write(tmp_path / "elsewhere" / "x", b"kept")
    (mirrored.path / "top").symlink_to(tmp_path / "elsewhere")
    mirrored.delete(directory("top"))
    assert (tmp_path / "elsewhere" / "x").exists()
    assert mirrored.counters.undeletable_files == 1


@pytest.mark.parametrize(
    ("roots", "excludes", "code"),
    [
        ((b"../x",), (), Code.PATH),
        ((b".filestreamer",), (), Code.PATH),
        ((b"a/b",), (), Code.PATH),
        ((b"a",), (b"!",), Code.POLICY),
    ],
)
def test_a_deletion_that_makes_no_sense(
    mirrored: Mirrored, roots: tuple[bytes, ...], excludes: tuple[bytes, ...], code: Code
) -> None:
    with pytest.raises(TransferFailed) as caught:
        mirrored.deleter(*excludes, roots=roots)
    assert caught.value.code is code


def test_only_who_is_permitted(mirrored: Mirrored) -> None:
    extras.check_permitted(mirrored.destination)
    mirrored.destination.allow_delete = False
    with pytest.raises(TransferFailed, match="--allow-delete"):
        extras.check_permitted(mirrored.destination)


@pytest.mark.parametrize(
    "entries",
    [
        [directory("a"), directory("b"), entry("a/x")],
        [directory("a"), directory("a/b"), entry("c"), entry("a/b/x")],
        [entry("a/x")],
        [entry("a"), entry("a/x")],
    ],
)
def test_a_manifest_in_another_order(entries: list[m.Entry]) -> None:
    """An entry that came after its directory counted as complete would be removed as soon as it is in place."""
    order = DepthFirst()
    for each in entries[:-1]:
        order.take(each)
    with pytest.raises(RemoteProtocolError, match="depth first"):
        order.take(entries[-1])
