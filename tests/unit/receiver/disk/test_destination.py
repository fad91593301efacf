"""The destination directory: which one is refused, and what is made in it."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from filestreamer.wire.errors import Code
from receiver.disk import descriptors
from receiver.disk.destination import Destination
from tests.support.disks import mounted
from tests.support.staged_file import failure, stage, write


def test_destinations_that_are_none(path: Path) -> None:
    (path / "file").write_bytes(b"")
    assert failure(Code.DESTINATION, Destination, str(path / "missing")).endswith("No such file or directory")
    assert failure(Code.DESTINATION, Destination, str(path / "file")).endswith("Not a directory")


def test_nothing_is_made_before_it_is_needed(path: Path, destination: Destination) -> None:
    assert destination.free_bytes() > 0
    assert os.listdir(path) == []


def test_tidy_keeps_what_is_not_empty(path: Path, destination: Destination) -> None:
    staged = stage(destination)
    write(staged, 0)
    staged.close()
    destination.tidy()
    assert os.listdir(path) == [".filestreamer"]


# ------------------------------------------------------------------------------------------------------------- its path


def test_a_read_only_file_system_is_named(path: Path) -> None:
    with mounted(path / "ro", "-t", "tmpfs", "-o", "ro", "filestreamer-test") as there:
        assert failure(Code.DESTINATION, Destination, str(there)).endswith("Read-only file system")


def test_a_subdirectory(path: Path) -> None:
    """It is made, also where it has gone meanwhile, and permits what the one above does."""
    above = Destination(str(path), replace=False, allow_delete=True)
    found = above.subdirectory("alice")
    assert (found.path, found.replace, found.allow_delete, found.allow_privileged) == (
        f"{path}/alice",
        False,
        True,
        False,
    )
    assert above.subdirectory("alice").at_path().free_bytes() > 0
    (path / "alice").rename(path / "moved")
    again = found.at_path()
    assert again is not found
    assert os.path.samestat(os.fstat(again.fd), (path / "alice").stat())
    assert again.path == found.path


def test_a_subdirectory_that_is_none(path: Path) -> None:
    """No link is followed: neither at first nor when it takes the place of the directory."""
    (path / "elsewhere").mkdir()
    (path / "file").write_bytes(b"")
    for name, target in (("link", "elsewhere"), ("dead", "nowhere")):
        (path / name).symlink_to(target)
    above = Destination(str(path))
    for name in ("link", "dead", "file"):
        assert f"{path}/{name}: " in failure(Code.DESTINATION, above.subdirectory, name)
    found = above.subdirectory("alice")
    (path / "alice").rename(path / "moved")
    (path / "alice").symlink_to("elsewhere")
    failure(Code.DESTINATION, found.at_path)
    failure(Code.DESTINATION, found.check_path)
    assert sorted(os.listdir(path)) == ["alice", "dead", "elsewhere", "file", "link", "moved"]


def test_the_path_is_followed(path: Path) -> None:
    """Removed and made again, moved, mounted over: the next transfer goes where the path leads then."""
    (path / "d").mkdir()
    first = Destination(str(path / "d"), replace=False)
    assert first.at_path() is first
    first.check_path()
    (path / "d").rename(path / "moved")
    assert "No such file or directory" in failure(Code.DESTINATION, first.at_path)
    assert "was moved" in failure(Code.DESTINATION, first.check_path)
    (path / "d").mkdir()
    second = first.at_path()
    assert second.at_path() is second
    assert (second.path, second.replace) == (first.path, False)
    assert os.path.samestat(os.fstat(second.fd), (path / "d").stat())
    assert "was moved" in failure(Code.DESTINATION, first.check_path)
    first.close()
    (path / "d").rmdir()
    (path / "moved").rename(path / "d")
    second.at_path().close()
    second.close()


def test_a_mount_over_the_path(path: Path) -> None:
    (path / "d").mkdir()
    first = Destination(str(path / "d"))
    with mounted(path / "d", "--bind", path / "d"):  # the same inode: only the mount is another
        assert "mounted over" in failure(Code.DESTINATION, first.check_path)
        first.at_path().close()
    first.check_path()
    assert first.at_path() is first
    first.close()


def test_a_relative_path_is_that_of_the_start(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path / "d").mkdir()
    monkeypatch.chdir(path)
    first = Destination("d")
    monkeypatch.chdir("/")
    assert first.at_path() is first
    assert first.path == "d"
    first.close()


def test_without_descriptors_nothing_is_known_of_the_path(
    path: Path, destination: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That this process has too few of them does not mean that the directory was moved."""
    real = os.open

    def lacking(*args: Any, **more: Any) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(descriptors, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(os, "open", lacking)
    assert "Too many open files" in failure(Code.LIMIT, destination.check_path)
    assert "Too many open files" in failure(Code.LIMIT, destination.at_path)
    calls = iter([lacking, lacking])

    def lacking_twice(*args: Any, **more: Any) -> Any:
        return next(calls, real)(*args, **more)

    monkeypatch.setattr(descriptors, "PATIENCE_SECONDS", 20.0)
    monkeypatch.setattr(os, "open", lacking_twice)
    destination.check_path()


# --------------------------------------------------------------------------------------- what can't be replaced there


def test_a_file_that_can_not_be_replaced(path: Path, destination: Destination, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an immutable one, which the kernel tells of a file before it finds that this is no directory."""
    (path / "f").write_bytes(b"precious")
    destination.check_final(b"f")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "rmdir", refuse)
    shown = f"can't write {path}/f: Operation not permitted"
    assert failure(Code.DESTINATION, destination.check_final, b"f") == shown
    assert failure(Code.DESTINATION, stage, destination) == shown
    destination.check_final(b"g")
    assert os.listdir(path) == ["f"]
    assert (path / "f").read_bytes() == b"precious"


def test_a_file_that_is_a_mount_point(path: Path, destination: Destination) -> None:
    for name in ("f", "outside"):
        (path / name).write_bytes(b"precious")
    with mounted(path / "f", "--bind", path / "outside"):
        why = failure(Code.DESTINATION, destination.check_final, b"f")
    assert why == f"can't write {path}/f: something is mounted on it: unmount it, or mount its directory instead"
    destination.check_final(b"f")
