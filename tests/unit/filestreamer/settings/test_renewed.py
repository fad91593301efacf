"""When files are read again, and what counts while they can't be."""

import os
from pathlib import Path
from typing import Any

import pytest

from filestreamer.settings.renewed import Renewed, look


class Log:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, Any]] = []

    def warning(self, event: str, *, reason: str) -> None:
        self.lines.append((event, reason))

    def info(self, event: str, *, files: list[str]) -> None:
        self.lines.append((event, files))

    @property
    def events(self) -> list[str]:
        return [event for event, _ in self.lines]


class Pair:
    """A value that is read of two files, and only if they have the same text."""

    def __init__(self, directory: Path) -> None:
        self.files = (directory / "a", directory / "b")
        self.log = Log()
        self.reads = 0
        self.write("first")
        seen = look(map(str, self.files))
        self.renewed = Renewed(self.read(), seen, self.read, self.log, look_seconds=0)

    def write(self, *texts: str) -> None:
        for file, text in zip(self.files, texts * 2, strict=False):
            file.write_text(text)

    def read(self) -> str:
        self.reads += 1
        a, b = (file.read_text() for file in self.files)
        if a != b:
            raise ValueError("the two differ")
        return a


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Return a pair of files that is looked at with every `get`."""
    return Pair(tmp_path)


def test_files_that_stay_are_read_once(pair: Pair) -> None:
    assert [pair.renewed.get() for _ in range(3)] == ["first"] * 3
    assert pair.reads == 1
    assert not pair.log.lines


def test_files_that_change_are_read_again_once(pair: Pair) -> None:
    pair.write("second")
    assert [pair.renewed.get() for _ in range(3)] == ["second"] * 3
    assert pair.reads == 2
    assert pair.log.lines == [("renewed", [str(file) for file in pair.files])]


def test_what_was_read_before_counts_until_the_files_fit(pair: Pair) -> None:
    pair.files[0].write_text("second")
    assert [pair.renewed.get() for _ in range(3)] == ["first"] * 3
    pair.files[0].write_text("")
    assert pair.renewed.get() == "first"
    assert pair.log.events == ["not_renewed"]
    assert "the two differ" in pair.log.lines[0][1]
    pair.write("second")
    assert pair.renewed.get() == "second"
    assert pair.log.events == ["not_renewed", "renewed"]


def test_files_that_come_right_without_a_change_of_their_own(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed for another reason, such as too many open files, is tried again."""
    pair.write("second")
    read = pair.read

    def fail() -> str:
        raise OSError("too many open files")

    monkeypatch.setattr(pair.renewed, "_read", fail)
    assert pair.renewed.get() == "first"
    monkeypatch.setattr(pair.renewed, "_read", read)
    assert pair.renewed.get() == "second"


def test_a_file_that_is_gone_keeps_what_it_said(pair: Pair) -> None:
    for file in pair.files:
        file.unlink()
    assert [pair.renewed.get() for _ in range(3)] == ["first"] * 3
    assert pair.log.events == ["not_renewed"]
    assert str(pair.files[1]) in pair.log.lines[0][1]
    pair.write("second")
    assert pair.renewed.get() == "second"


def test_each_trouble_is_told(pair: Pair) -> None:
    for text in ("second", "third"):
        pair.files[0].write_text(text)
        assert pair.renewed.get() != text
        pair.write(text)
        assert pair.renewed.get() == text
    assert pair.log.events == ["not_renewed", "renewed"] * 2


def test_a_symbolic_link_that_leads_elsewhere(pair: Pair, tmp_path: Path) -> None:
    """As Kubernetes renews a Secret: the link to the directory of the files is replaced."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "data").symlink_to("old")
    path = tmp_path / "file"
    path.symlink_to("data/file")
    value = Renewed(path.read_text(), look([str(path)]), path.read_text, Log(), look_seconds=0)
    assert value.get() == "old"
    (tmp_path / "next").symlink_to("new")
    (tmp_path / "next").rename(tmp_path / "data")
    assert value.get() == "new"


def test_a_file_with_the_times_and_the_size_of_the_old_one(pair: Pair) -> None:
    before = pair.files[0].stat()
    pair.write("other")
    for file in pair.files:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert pair.renewed.get() == "other"


def test_a_pipe_is_never_read_again(pair: Pair, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    value = Renewed("once", look([str(pipe)]), lambda: pytest.fail("it was read"), pair.log, look_seconds=0)
    pipe.unlink()
    pipe.write_text("a file")
    assert value.get() == "once"
    assert not pair.log.lines


def test_a_pipe_in_the_place_of_a_file_is_not_opened(pair: Pair) -> None:
    """To open it would wait for somebody who writes."""
    pair.files[0].unlink()
    os.mkfifo(pair.files[0])
    assert pair.renewed.get() == "first"
    assert pair.reads == 1
    assert pair.log.events == ["not_renewed"]


def test_how_often_the_files_are_looked_at(pair: Pair) -> None:
    """The first time at once: they may have changed since they were read."""
    seldom = Renewed("first", look(map(str, pair.files)), pair.read, pair.log, look_seconds=1e6)
    pair.write("second")
    assert seldom.get() == "second"
    pair.write("third")
    assert seldom.get() == "second"
