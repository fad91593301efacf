"""Files that changed are listed again as soon as they are quiet."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from filestreamer.wire.errors import Code
from filestreamer.wire.messages import SkipKind
from sender.listing.changed_files import LOOKS_MAX, ChangedFile, list_quiet
from sender.listing.walk import Walk
from sender.source.item import Item, Unsendable

CHANGED = Unsendable(Code.SOURCE_CHANGED, "it changed", SkipKind.CHANGED, "it changed")


class Source:
    """A tree with the files a and b, which is walked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in "ab":
            (path / name).write_bytes(name.encode())
        self.walk = Walk([f"{path}/"], lambda _: None)
        self.files = [ChangedFile(item, CHANGED) for item in self.walk]
        self.given_up: list[ChangedFile] = []

    def list_quiet(self, meanwhile: Callable[[], object] = lambda: None, *, is_over: bool = False) -> list[Item]:
        def wait(seconds: float) -> bool:
            assert seconds > 0
            meanwhile()
            return is_over

        return list(list_quiet(self.walk, self.files, wait, self.given_up))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def test_a_quiet_file_is_listed_as_it_is_now(source: Source) -> None:
    append(source.path / "a")
    assert [(item.entry.path, item.entry.size) for item in source.list_quiet()] == [(b"a", 5), (b"b", 1)]
    assert source.given_up == []


def test_a_file_that_is_written_to_waits_and_holds_nothing_else_up(source: Source) -> None:
    writes = iter([True])

    def write_once() -> None:
        if next(writes, False):
            append(source.path / "a")

    assert [(item.entry.path, item.entry.size) for item in source.list_quiet(write_once)] == [(b"b", 1), (b"a", 5)]


def test_a_file_that_is_written_to_all_the_time_is_given_up(source: Source) -> None:
    looks = []

    def write() -> None:
        looks.append(1)
        append(source.path / "a")

    assert [item.entry.path for item in source.list_quiet(write)] == [b"b"]
    assert source.given_up == [source.files[0]]
    assert len(looks) == LOOKS_MAX


@pytest.mark.parametrize("kind", ["directory", "symlink", "fifo"])
def test_what_is_no_regular_file_any_more_is_given_up(source: Source, kind: str) -> None:
    path = source.path / "a"
    path.unlink()
    make: dict[str, Callable[[], object]] = {
        "directory": path.mkdir,
        "symlink": lambda: path.symlink_to("b"),
        "fifo": lambda: os.mkfifo(path),
    }
    make[kind]()
    assert [item.entry.path for item in source.list_quiet()] == [b"b"]
    assert source.given_up == [source.files[0]]


def test_a_file_that_is_gone_by_now_counts_as_vanished(source: Source) -> None:
    (source.path / "a").unlink()
    assert [item.entry.path for item in source.list_quiet()] == [b"b"]
    assert [file.error.kind for file in source.given_up] == [SkipKind.VANISHED]


def test_nothing_outside_of_the_tree_is_listed(source: Source, tmp_path: Path) -> None:
    """A directory on the way has become a symbolic link."""
    top, outside = tmp_path / "top", tmp_path / "outside"
    for directory in (top / "sub", outside):
        directory.mkdir(parents=True)
        (directory / "file").write_bytes(b"x")
    walk = Walk([str(top)], lambda _: None)
    files = [ChangedFile(item, CHANGED) for item in walk if item.identity is not None]
    (top / "sub").rename(top / "moved")
    (top / "sub").symlink_to(outside)
    assert list(list_quiet(walk, files, lambda _: False, source.given_up)) == []
    assert [file.item.entry.path for file in source.given_up] == [b"top/sub/file"]


def test_the_end_of_the_transfer_is_not_waited_for(source: Source) -> None:
    assert source.list_quiet(is_over=True) == []
    assert source.given_up == source.files
