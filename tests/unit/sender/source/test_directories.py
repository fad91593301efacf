"""Directories that are opened step by step: what is followed, how many stay open, how deep they may be."""

import gc
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from filestreamer.telemetry.counters import Skipped
from filestreamer.wire.messages import Entry, EntryType, SkipKind
from sender.listing.walk import Walk
from sender.source.directories import Directories, Root
from sender.source.item import Identity, Item
from sender.source.reader import Reader
from tests.support import trees
from tests.support.processes import own_descriptors


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def names_in(fd: int) -> list[str]:
    return sorted(os.listdir(fd))


@pytest.fixture
def top(tmp_path: Path) -> Path:
    for name in ("a/b/c/d/e/in e", "a/b/in b", "z/in z"):
        trees.write(tmp_path / "top" / name, b"x")
    return tmp_path / "top"


@pytest.mark.parametrize("is_held", [True, False])
@pytest.mark.parametrize("most", [1, 2, 9])
def test_each_directory_whatever_was_asked_for_before(top: Path, most: int, *, is_held: bool) -> None:
    before = len(own_descriptors())
    root = Root(os.fsencode(top), is_held=is_held)
    directories = Directories(most, os.O_RDONLY)
    expected = {
        b"a/b/c/d/e": ["in e"],
        b"a/b": ["c", "in b"],
        b"": ["a", "z"],
        b"a/b/c": ["d"],
        b"z": ["in z"],
        b"a/b/c/d": ["e"],
    }
    for first in expected:
        for below in (first, *expected):
            assert names_in(directories.get(root, below)) == expected[below]
            assert descriptors() - before <= most + 1
    directories.close()
    directories.close()
    del root
    assert len(own_descriptors()) == before


def test_a_step_that_became_a_symbolic_link_is_an_error_and_the_next_one_is_none(top: Path) -> None:
    root = Root(os.fsencode(top), is_held=True)
    directories = Directories(1, os.O_RDONLY)
    (top / "z").rename(top / "away")
    (top / "z").symlink_to("a/b")
    for _ in range(2):
        with pytest.raises(NotADirectoryError):
            directories.get(root, b"z")
        assert names_in(directories.get(root, b"a/b")) == ["c", "in b"]
    directories.close()


def test_a_directory_that_was_moved_away_is_not_a_way_back(top: Path) -> None:
    """From one level to the one above goes only where that is the same directory as on the way down."""
    root = Root(os.fsencode(top), is_held=True)
    directories = Directories(1, os.O_RDONLY)
    assert names_in(directories.get(root, b"a/b/c/d/e")) == ["in e"]
    secret = trees.write(top.parent / "secret" / "key", b"secret").parent
    (top / "a/b/c/d/e").rename(secret / "e")
    assert names_in(directories.get(root, b"a/b/c/d")) == []
    assert names_in(directories.get(root, b"a/b")) == ["c", "in b"]
    directories.close()


def test_a_root_that_is_opened_again_is_the_same(top: Path) -> None:
    root = Root(os.fsencode(top), is_held=False)
    top.rename(top.with_name("away"))
    (top / "a").mkdir(parents=True)
    with pytest.raises(NotADirectoryError):
        Directories(2).get(root, b"a")


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Let this process open so many more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.collect()
    free = [os.dup(0) for _ in range(count)]  # the lowest numbers, between which others may be taken
    for number in free:
        os.close(number)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[-1] + 1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_with_few_descriptors_fewer_directories_stay_open(top: Path) -> None:
    path = top / "a/b/c/d/e/in e"
    root = Root(os.fsencode(top), is_held=True)
    reader = Reader()
    entry = Entry(b"x", EntryType.FILE, 1, 0o644, 0)
    item = Item(entry, os.fsencode(path), Identity.of(path.stat()), None, root)
    block = memoryview(bytearray(1))
    with descriptors_left(2):
        reader.read_into(item, block, 0)
        reader.close()
    assert bytes(block) == b"x"


def test_a_tree_of_more_roots_and_levels_than_there_are_descriptors(tmp_path: Path) -> None:
    """And deeper than a path may be long at once: below a prefix of nearly that."""
    prefix = tmp_path
    while len(os.fsencode(prefix)) < 3800:
        prefix = prefix / ("p" * 200)
    prefix.mkdir(parents=True)
    trees.deepen(prefix, b"d", 300)
    for number in range(100):
        trees.write(tmp_path / "roots" / str(number) / "file", b"x")
    before = descriptors()
    skipped: list[Skipped] = []
    roots = [str(path) for path in sorted((tmp_path / "roots").iterdir())]
    reader, most, files = Reader(), 0, 0
    for item in Walk([f"{prefix}/", *roots], skipped.append):
        most = max(most, descriptors())
        if item.entry.type is EntryType.FILE:
            reader.read_into(item, memoryview(bytearray(item.entry.size)), 0)
            reader.look(item)
            files += 1
    reader.close()
    assert skipped == []
    assert files >= 101
    assert most - before < 50


def test_a_directory_that_was_swapped_while_it_was_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at it and its listing, a directory becomes a symbolic link that leads out of the tree."""
    secret = trees.write(tmp_path / "secret" / "key", b"secret").parent
    for name in ("a", "b/in it", "c"):
        trees.write(tmp_path / "top" / name, b"x")
    inner = tmp_path / "top" / "b"
    real = os.stat

    def stat_and_swap(path: object, *args: object, **options: object) -> os.stat_result:
        found = real(path, *args, **options)  # type: ignore[arg-type]
        if path == b"b" and not inner.is_symlink():
            inner.rename(tmp_path / "away")
            inner.symlink_to(secret)
        return found

    monkeypatch.setattr(os, "stat", stat_and_swap)
    skipped: list[Skipped] = []
    found = [item.entry.path for item in Walk([str(tmp_path / "top")], skipped.append)]
    assert found == [b"top", b"top/a", b"top/c"]
    assert [(each.path, each.kind) for each in skipped] == [(str(inner), SkipKind.CHANGED)]
