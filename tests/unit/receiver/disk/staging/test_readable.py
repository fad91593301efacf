"""Files of a destination that are opened one after another to be compared, while others change it."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestreamer.wire.errors import Code, TransferFailed
from receiver.disk.destination import Destination
from receiver.disk.staging.readable import FinalFiles


@pytest.fixture
def finals(tmp_path: Path) -> Iterator[FinalFiles]:
    """Look at a destination with two files in a directory, of which the first one was opened a moment ago."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "top").write_bytes(b"top")
    for name in ("one", "two"):
        (tmp_path / "a" / "b" / name).write_bytes(b"old")
    destination = Destination(str(tmp_path))
    with contextlib.closing(FinalFiles(destination)) as finals:
        assert content(finals, b"a/b/one") == b"old"
        yield finals
    destination.close()


def content(finals: FinalFiles, path: bytes) -> bytes:
    file = finals.open(path)
    try:
        return os.read(file.fd, 10)
    finally:
        os.close(file.fd)


@pytest.mark.parametrize("path", ["a/b", "a"])
@pytest.mark.parametrize("is_kept", [True, False], ids=["moved", "removed"])
def test_a_directory_that_another_one_takes_the_place_of(
    tmp_path: Path, finals: FinalFiles, path: str, is_kept: bool
) -> None:
    if is_kept:
        (tmp_path / path).rename(tmp_path / "gone")
    else:
        shutil.rmtree(tmp_path / path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "two").write_bytes(b"new")
    assert content(finals, b"a/b/two") == b"new"


def test_a_directory_that_is_a_symlink_by_now(tmp_path: Path, finals: FinalFiles) -> None:
    (tmp_path / "a" / "b").rename(tmp_path / "gone")
    (tmp_path / "a" / "b").symlink_to("../gone")
    for _ in range(2):
        with pytest.raises(TransferFailed):
            content(finals, b"a/b/two")
        assert content(finals, b"top") == b"top"


@pytest.mark.parametrize("path", [b"link", b"a/b/none", b"none/x", b"top/x", b"link/x"])
def test_what_is_no_file_there(tmp_path: Path, finals: FinalFiles, path: bytes) -> None:
    """No descriptor is left open, and the next file is found."""
    (tmp_path / "link").symlink_to("top")
    assert content(finals, b"top") == b"top"
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TransferFailed) as caught:
        finals.open(path)
    assert caught.value.code is Code.DESTINATION
    assert content(finals, b"top") == b"top"
    assert len(os.listdir("/proc/self/fd")) == before
