"""Boundaries that no rename crosses: found before any byte is written."""

import errno
import os
import subprocess
from pathlib import Path

from receiver.disk.filesystem.boundary import Side, side_of
from tests.support.disks import disk, image, mounted


def side(path: Path) -> Side:
    fd = os.open(path, os.O_RDONLY)
    try:
        return side_of(fd)
    finally:
        os.close(fd)


def crosses(a: Path, b: Path) -> bool:
    """Whether a rename from one directory to the other is refused."""
    (a / "f").touch()
    try:
        (a / "f").rename(b / "f")
    except OSError as error:
        return error.errno == errno.EXDEV
    return False


def test_directories_of_one_disk(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    assert side(tmp_path) == side(tmp_path / "a/b")


def test_another_file_system(tmp_path: Path) -> None:
    with disk(tmp_path / "d", 1 << 20):
        assert side(tmp_path) != side(tmp_path / "d")


def test_a_bind_mount_of_the_same_disk(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with mounted(tmp_path / "d", "--bind", tmp_path / "other"):
        assert tmp_path.stat().st_dev == (tmp_path / "d").stat().st_dev
        assert crosses(tmp_path, tmp_path / "d")
        assert side(tmp_path) != side(tmp_path / "d")
        assert side(tmp_path / "other") == side(tmp_path)


def test_a_subvolume(tmp_path: Path) -> None:
    with image(tmp_path / "m", "btrfs", 120 << 20) as top:
        subprocess.run(["btrfs", "subvolume", "create", str(top / "s")], check=True, capture_output=True)
        assert crosses(top, top / "s")
        assert side(top) != side(top / "s")


def test_a_project(tmp_path: Path) -> None:
    with image(tmp_path / "m", "xfs", 320 << 20) as top:
        (top / "p/below").mkdir(parents=True)
        subprocess.run(["xfs_io", "-r", "-c", "chproj 7", "-c", "chattr +P", str(top / "p")], check=True)
        (top / "p/new").mkdir()
        assert crosses(top, top / "p")
        assert side(top) != side(top / "p")
        assert side(top / "p/new") == side(top / "p")
        assert not crosses(top / "p", top / "p/below")  # which does not hand down a project
        assert side(top / "p/below") != side(top / "p"), "its files are not to get the project"
