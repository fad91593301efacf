"""What is synced as a whole, and what file by file."""

import errno
import os
from pathlib import Path

import pytest

from receiver.disk.filesystem import sync
from receiver.disk.filesystem.sync import sync_directory, sync_file_system, syncs_each
from tests.support.disks import image


@pytest.mark.parametrize(("kind", "size_mib"), [("ext4", 16), ("btrfs", 120), ("xfs", 320)])
def test_local_file_systems_are_synced_as_a_whole(tmp_path: Path, kind: str, size_mib: int) -> None:
    with image(tmp_path / "m", kind, size_mib << 20) as top:
        fd = os.open(top, os.O_RDONLY)
        try:
            assert not syncs_each(fd)
            sync_file_system(fd)
        finally:
            os.close(fd)


def test_any_other_is_synced_file_by_file() -> None:
    fd = os.open("/proc", os.O_RDONLY)
    try:
        assert syncs_each(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("release", "is_enough"),
    [
        ("5.8.0", True),
        ("6.1.0-13-amd64", True),
        ("5.10", True),
        ("10.0.1", True),
        ("5.7.19", False),
        ("4.18.0-513.el8.x86_64", False),
        ("odd", False),
    ],
)
def test_old_kernels_sync_file_by_file(release: str, is_enough: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "_type_of", lambda _: 0xEF53)
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "here", release, "#1", "x86_64")))
    assert syncs_each(0) is not is_enough


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_a_sync_of_directories(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    sync_directory(0)


def test_a_sync_of_a_directory_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output"):
        sync_directory(0)


def test_a_sync_of_a_file_system_that_fails() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        sync_file_system(-1)
