"""A disk that is full is named by what it lacks."""

import errno
import os
from pathlib import Path

import pytest

from receiver.disk.filesystem import inodes
from tests.support.disks import mounted


@pytest.mark.parametrize(("left", "named"), [(0, True), (5, False)])
def test_no_inodes_left(tmp_path: Path, left: int, named: bool) -> None:
    with mounted(tmp_path / "m", "-t", "tmpfs", "-o", "nr_inodes=20", "filestreamer-test") as top:
        for number in range(os.statvfs(top).f_favail - left):
            (top / str(number)).touch()
        fd = os.open(top, os.O_RDONLY)
        try:
            error = inodes.explain(OSError(errno.ENOSPC, "No space left on device"), fd)
            assert error.errno == errno.ENOSPC
            assert ("no inodes left" in str(error)) is named
            other = OSError(errno.EIO, "Input/output error")
            assert inodes.explain(other, fd) is other
        finally:
            os.close(fd)


def test_a_file_system_without_a_number_of_inodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Btrfs says that it has none at all."""
    none = os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "fstatvfs", lambda _: none)
    error = OSError(errno.ENOSPC, "No space left on device")
    assert inodes.explain(error, 0) is error
