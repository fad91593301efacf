"""Lists of paths: how they are read, in which order they come, and what is told of a wrong one."""

import io
import os
import select
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from filestreamer.wire.errors import UsageError
from sender.listing import files_from
from sender.listing.files_from import PathList, Selection, read_list
from tests.support.services import UNIT
from tests.support.waiting import until


def listed(tmp_path: Path, content: bytes, directory: str = "top") -> list[bytes]:
    """Return the paths of a list with this content."""
    (tmp_path / "list").write_bytes(content)
    return [key.replace(b"\0", b"/") for key in read_list(str(tmp_path / "list"), directory)]


def test_lines(tmp_path: Path) -> None:
    assert listed(tmp_path, b"b\na\nc d\n\n e\n\xff\xfe") == [b" e", b"a", b"b", b"c d", b"\xff\xfe"]


def test_bytes_are_bytes(tmp_path: Path) -> None:
    """Of a list with the line ends of Windows, too: a name may end with one."""
    assert listed(tmp_path, b"a\r\n#b\n;c\n") == [b"#b", b";c", b"a\r"]


def test_nul_between_paths(tmp_path: Path) -> None:
    assert listed(tmp_path, b"a\nb\0c\0\0") == [b"a\nb", b"c"]


def test_other_spellings_of_one_path_count_once(tmp_path: Path) -> None:
    assert listed(tmp_path, b"a/b\n./a/b\na//b/\n/there/a/b\na/./b\n", "/there/") == [b"a/b"]


def test_all_of_the_directory(tmp_path: Path) -> None:
    assert listed(tmp_path, b"./\na\n") == [b"", b"a"]


def test_a_directory_comes_right_before_its_entries(tmp_path: Path) -> None:
    """As in a walk: `a.b` is less than `a/b` only where the slash is a character like any other."""
    assert listed(tmp_path, b"a.b\na/b\na\na-\nab") == [b"a", b"a/b", b"a-", b"a.b", b"ab"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"a\n../b\n", 2),
        (b"a\0b\0c/../d", 3),
        (b"..", 1),
        (b"a\n/elsewhere/x\n", 2),
        (b"/topper\n", 1),
        (b"a\nb\n" + b"x" * 9000, 3),
        (b"x" * 200_000, 1),
        (b"a\n" * 40_000 + b"b\0", 40_001),
    ],
)
def test_the_line_of_a_mistake_is_named(tmp_path: Path, content: bytes, line: int) -> None:
    with pytest.raises(UsageError, match=rf"^--files-from .*list, line {line}: "):
        listed(tmp_path, content, "/top")


def test_the_root_of_everything(tmp_path: Path) -> None:
    assert listed(tmp_path, b"/etc/x\netc/y\n", "/") == [b"etc/x", b"etc/y"]


def test_a_list_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no list: No such file"):
        read_list(str(tmp_path / "no list"), "top")
    with pytest.raises(UsageError, match="Is a directory"):
        read_list(str(tmp_path), "top")


def test_standard_input_that_does_not_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a program that shares the pipe can make it: what has not come yet is waited for, and is not the end."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    with open(read_fd) as stdin, ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(sys, "stdin", stdin)
        os.write(write_fd, b"a\n")
        found = pool.submit(read_list, "-", "/")
        until(lambda: not select.select([read_fd], [], [], 0)[0], "it has read the first line")
        os.write(write_fd, b"b\n")
        os.close(write_fd)
        assert list(found.result(UNIT)) == [b"a", b"b"]


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list").write_bytes(b"b\0a")
    with (tmp_path / "list").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert list(read_list("-", "top")) == [b"a", b"b"]
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="standard input is closed"):
        read_list("-", "top")


@pytest.mark.parametrize("run_bytes", [1, 50, 1 << 20])
@pytest.mark.parametrize("has_room", [True, False])
def test_a_long_list_is_in_order(monkeypatch: pytest.MonkeyPatch, run_bytes: int, has_room: bool) -> None:
    """However much of it is sorted at a time, on disk or not, and again for another walk."""
    if not has_room:

        def fail() -> Any:
            raise FileNotFoundError("no usable temporary directory")

        monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    monkeypatch.setattr(files_from, "RUN_BYTES", run_bytes)
    monkeypatch.setattr(files_from, "BLOCK_BYTES", 7)
    paths = [b"%d/%d" % (number % 7, number) for number in range(300)] + [b"x\ny/z", b""] * 3
    made = PathList()
    for path in paths:
        made.add(path)
    expected = sorted({path.replace(b"/", b"\0") for path in paths})
    assert [list(made), list(made)] == [expected, expected]


def test_a_disk_that_is_full_costs_memory_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def writelines(self, _: object) -> None:
            raise OSError(28, os.strerror(28))

    monkeypatch.setattr(tempfile, "TemporaryFile", Full)
    monkeypatch.setattr(files_from, "RUN_BYTES", 3)
    made = PathList()
    for path in (b"c", b"b", b"a", b"d"):
        made.add(path)
    assert list(made) == [b"a", b"b", b"c", b"d"]


def test_a_walk_takes_what_it_comes_to() -> None:
    made = PathList()
    for path in (b"a", b"a/x", b"b/1", b"b/2/3", b"c"):
        made.add(path)
    chosen = Selection(made)
    names = chosen.names(b"")
    assert next(names) == b"a"
    assert chosen.take(b"a")
    assert not chosen.take(b"a")
    assert list(chosen.rest(b"a")) == [b"a/x"]
    assert next(names) == b"b"
    assert not chosen.take(b"b")
    assert list(chosen.names(b"b")) == [b"1", b"2"]
    assert next(names) == b"c"
    assert chosen.take(b"c")
    assert not list(names)
