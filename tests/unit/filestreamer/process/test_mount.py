"""The mount of an open file, as the kernel tells it now, and as kernels before 5.8 do."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from filestreamer.process import mount
from filestreamer.process.mount import UNKNOWN, device_and_mount, mount_of
from tests.support.disks import disk, mounted


@contextlib.contextmanager
def opened(path: Path | str) -> Iterator[int]:
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture(params=["new", "old"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the mounts told in each of the two ways."""
    if request.param == "old":
        monkeypatch.setattr(mount, "_statx", None)


def without_proc(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let opening anything in /proc fail, on an old kernel."""

    def fail(path: str, **_: str) -> NoReturn:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(mount, "_statx", None)
    monkeypatch.setattr(mount, "open", fail, raising=False)


@pytest.mark.parametrize("path", ["/", "/proc"])
def test_an_old_kernel_tells_the_same_mount(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as fd:
        told = mount_of(fd)
        monkeypatch.setattr(mount, "_statx", None)
        assert mount_of(fd) == told >= 0


@pytest.mark.usefixtures("kernel")
def test_what_lies_on_one_mount(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").touch()
    (tmp_path / "d/link").symlink_to("/proc")
    with opened(tmp_path) as top:
        for name in ("d", "d/f", "d/link"):
            with opened(tmp_path / name) as fd:
                assert mount_of(fd) == mount_of(top)


@pytest.mark.usefixtures("kernel")
def test_another_file_system(tmp_path: Path) -> None:
    with disk(tmp_path / "d", 1 << 20), opened(tmp_path) as top, opened(tmp_path / "d") as fd:
        assert mount_of(fd) != mount_of(top)
        assert device_and_mount(fd) == (os.fstat(fd).st_dev, mount_of(fd))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("kind", ["directory", "file"])
def test_a_bind_mount_of_the_same_disk(tmp_path: Path, kind: str) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for path in (source, target):
        if kind == "directory":
            path.mkdir()
        else:
            path.touch()
    with mounted(target, "--bind", source), opened(source) as here, opened(target) as there:
        assert os.fstat(here).st_dev == os.fstat(there).st_dev
        assert mount_of(here) != mount_of(there)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES])
def test_without_proc_the_device_stands_for_the_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    without_proc(monkeypatch, number)
    with opened(tmp_path) as fd:
        device = os.fstat(fd).st_dev
        assert mount_of(fd) == UNKNOWN
        assert device_and_mount(fd) == (device, device)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_no_descriptor_to_ask_with_is_no_other_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    without_proc(monkeypatch, number)
    with opened(tmp_path) as fd:
        for ask in (mount_of, device_and_mount):
            with pytest.raises(OSError, match=os.strerror(number)):
                ask(fd)
