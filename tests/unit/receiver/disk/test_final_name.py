"""A commit: what it leaves, what it replaces, and what a crash in the middle of it leaves."""

import errno
import os
import stat
from pathlib import Path

import pytest

from filestreamer.wire.errors import Code
from filestreamer.wire.grid import Grid
from receiver.disk import final_name
from receiver.disk.destination import Destination
from receiver.disk.staging.staging import Staging
from tests.support.staged_file import CONTENT, ENTRY, GRID, KEY, failure, stage, write


def test_commit(path: Path, destination: Destination) -> None:
    """The file under its name with mode and mtime, without setuid; nothing else is left."""
    staged = stage(destination)
    write(staged, 0, 1, 2, 3)
    assert not (path / "f").exists()
    staged.commit()
    staged.close()
    assert os.listdir(path) == ["f"]
    status = (path / "f").stat()
    assert ((path / "f").read_bytes(), status.st_mode) == (CONTENT, 0o100640)
    assert status.st_mtime_ns == ENTRY.mtime_ns


def test_commit_of_an_empty_file(path: Path, destination: Destination) -> None:
    staged = stage(destination, Grid(0, 30))
    staged.commit()
    staged.close()
    assert (path / "f").read_bytes() == b""


def test_commit_cuts_what_is_too_long(path: Path, destination: Destination) -> None:
    staged = stage(destination)
    write(staged, 0, 1, 2, 3)
    with (path / ".filestreamer" / f"{KEY}.data").open("ab") as file:
        file.write(b"left by an earlier run")
    staged.commit()
    staged.close()
    assert (path / "f").read_bytes() == CONTENT


def test_commit_replaces(path: Path, destination: Destination) -> None:
    """The name gets another file: a process that has the old one open keeps it. A symlink is replaced, not followed."""
    outside = path.parent / "outside"
    outside.write_bytes(b"outside")
    (path / "f").symlink_to(outside)
    staged = stage(destination)
    write(staged, 0, 1, 2, 3)
    staged.commit()
    staged.close()
    assert stat.S_ISREG((path / "f").lstat().st_mode)
    assert ((path / "f").read_bytes(), outside.read_bytes()) == (CONTENT, b"outside")


def test_existing_file_where_nothing_may_be_replaced(path: Path) -> None:
    (path / "f").write_bytes(b"old")
    destination = Destination(str(path), replace=False)
    assert "--no-replace" in failure(Code.EXISTS, stage, destination)
    assert ((path / "f").read_bytes(), os.listdir(path)) == (b"old", ["f"])
    destination.close()


def test_a_dangling_symlink_exists_too(path: Path) -> None:
    (path / "f").symlink_to("nowhere")
    destination = Destination(str(path), replace=False)
    failure(Code.EXISTS, stage, destination)
    destination.close()


def test_a_file_that_appears_meanwhile_is_not_replaced(path: Path) -> None:
    destination = Destination(str(path), replace=False)
    staged = stage(destination)
    write(staged, 0, 1, 2, 3)
    (path / "f").write_bytes(b"newer")
    assert "--no-replace" in failure(Code.EXISTS, staged.commit)
    staged.close()
    assert (path / "f").read_bytes() == b"newer"
    destination.close()


def test_commit_without_replacing(path: Path) -> None:
    destination = Destination(str(path), replace=False)
    staged = stage(destination)
    write(staged, 0, 1, 2, 3)
    staged.commit()
    staged.close()
    assert ((path / "f").read_bytes(), os.listdir(path)) == (CONTENT, ["f"])
    assert (path / "f").stat().st_nlink == 1
    destination.close()


def test_a_directory_that_appears_meanwhile(path: Path, destination: Destination) -> None:
    staged = stage(destination)
    write(staged, 0, 1, 2, 3)
    (path / "f").mkdir()
    failure(Code.DESTINATION, staged.commit)
    staged.close()
    staged = Staging.open_single_file(Destination(str(path)), b"g", ENTRY, GRID, 0)
    staged.close()


def test_the_same_name_again_after_a_commit(path: Path, destination: Destination) -> None:
    """Nothing of the first run is claimed: its bytes are under the final name, not in staging."""
    for round_ in range(2):
        staged = stage(destination)
        assert staged.claims.claimed == 0
        write(staged, *range(4))
        staged.commit()
        staged.close()
        assert (path / "f").read_bytes() == CONTENT, round_


@pytest.mark.parametrize("crash_after", ["rename", "unlink of the data"])
def test_a_crash_after_the_rename(path: Path, destination: Destination, crash_after: str) -> None:
    """The ledger is still there without its data: the next run begins anew, and the final file stays."""
    staged = stage(destination)
    write(staged, *range(4))
    data = path / ".filestreamer" / f"{KEY}.data"
    if crash_after == "rename":
        data.rename(path / "f")
    else:
        os.link(data, path / "f")
        data.unlink()
    staged.close()
    staged = stage(destination)
    assert staged.claims.claimed == 0
    assert (path / "f").read_bytes() == CONTENT
    staged.close()


def test_a_crash_between_link_and_unlink(path: Path) -> None:
    """With --no-replace: the next run says EXISTS, and does not write into what is final already."""
    destination = Destination(str(path), replace=False)
    staged = stage(destination)
    write(staged, *range(4))
    os.link(path / ".filestreamer" / f"{KEY}.data", path / "f")
    staged.close()
    failure(Code.EXISTS, stage, destination)
    assert (path / "f").read_bytes() == CONTENT
    destination.close()


def test_staged_data_that_is_also_a_final_file_is_not_written_into(path: Path, destination: Destination) -> None:
    """The same crash, and then a receiver that may replace: the final file is never partial, so it is not touched."""
    staged = stage(destination)
    write(staged, *range(4))
    os.link(path / ".filestreamer" / f"{KEY}.data", path / "f")
    staged.close()
    staged = stage(destination)
    staged.write(memoryview(b"x" * 30), 0)
    assert (path / "f").read_bytes() == CONTENT
    staged.close()


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a file system without hard links."""

    def link(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)


@pytest.mark.usefixtures("no_links")
def test_commit_without_replacing_and_without_hard_links(path: Path) -> None:
    destination = Destination(str(path), replace=False)
    staged = stage(destination)
    write(staged, *range(4))
    staged.commit()
    staged.close()
    assert ((path / "f").read_bytes(), os.listdir(path)) == (CONTENT, ["f"])
    destination.close()


@pytest.mark.usefixtures("no_links")
def test_a_file_that_appears_where_there_are_no_hard_links(path: Path) -> None:
    destination = Destination(str(path), replace=False)
    staged = stage(destination)
    write(staged, *range(4))
    (path / "f").write_bytes(b"newer")
    assert "--no-replace" in failure(Code.EXISTS, staged.commit)
    staged.close()
    assert (path / "f").read_bytes() == b"newer"
    destination.close()


@pytest.mark.parametrize("is_taken", [False, True])
def test_no_replace_where_nothing_but_an_exclusive_create_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_taken: bool
) -> None:
    """Neither link(2) nor renameat2(2): the name is taken by an empty file, unless something has it."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(final_name, "_renameat2", None)
    (tmp_path / "staged").write_bytes(b"content")
    if is_taken:
        (tmp_path / "f").write_bytes(b"another")
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        if is_taken:
            with pytest.raises(FileExistsError):
                final_name.rename_new("staged", b"f", fd, fd)
        else:
            final_name.rename_new("staged", b"f", fd, fd)
        monkeypatch.setattr(os, "rename", refuse)
        with pytest.raises(PermissionError):
            final_name.rename_new("staged" if is_taken else "f", b"g", fd, fd)
    finally:
        os.close(fd)
    assert (tmp_path / "f").read_bytes() == (b"another" if is_taken else b"content")
    assert not (tmp_path / "g").exists()
