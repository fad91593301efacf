"""File systems for tests: small ones in memory, to be filled; and of any kind, in images. Mounting takes root."""

import contextlib
import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

MIB = 1 << 20
MEMORY = Path("/dev/shm")


def record_syncs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have fsync do nothing from now on; return the paths that it is called for, in order, as a list that grows."""
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    return synced


@contextlib.contextmanager
def disk(mount_point: Path, size_bytes: int) -> Iterator[Path]:
    """Mount a tmpfs of this size, empty, for the length of the block. Skips the test where that is not allowed."""
    mount_point.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0700", "filestreamer-faults", str(mount_point)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small tmpfs takes root (and CAP_SYS_ADMIN in a container)")
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", "--lazy", str(mount_point)], check=True)


@contextlib.contextmanager
def mounted(mount_point: Path, *arguments: object) -> Iterator[Path]:
    """Mount with these arguments of mount(8), for the length of the block. Skips the test where there is no root."""
    if not mount_point.exists():
        mount_point.mkdir(parents=True)
    if os.geteuid() != 0:
        pytest.skip("mounting takes root")
    done = subprocess.run(
        ["mount", *map(str, arguments), str(mount_point)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        _lacks(f"mount: {done.stderr}")
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", "--lazy", str(mount_point)], check=True)


@contextlib.contextmanager
def image(mount_point: Path, kind: str, size_bytes: int, *options: str) -> Iterator[Path]:
    """Make a file system in an image, and mount it. `options` are those of mkfs."""
    if shutil.which(f"mkfs.{kind}", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        _lacks(f"mkfs.{kind} is not installed")
    path = mount_point.with_name(f"{mount_point.name}.image")
    with path.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run([f"mkfs.{kind}", "-q", *options, str(path)], check=True, capture_output=True)
    with mounted(mount_point, "-o", "loop", path):
        yield mount_point
    path.unlink()


@contextlib.contextmanager
def ext4_of_whole_seconds(mount_point: Path) -> Iterator[Path]:
    """Mount an ext4 whose inodes have room for whole seconds only."""
    with image(mount_point, "ext4", 16 * MIB, "-F", "-I", "128", "-m", "0"):
        (mount_point / "lost+found").rmdir()
        yield mount_point


def _lacks(what: str) -> NoReturn:
    """Skip the test; in CI, which has all that the tests need, it fails."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(what)


def fill(directory: Path, leave_bytes: int = 0) -> Path:
    """Write a file until only `leave_bytes` are free; return it: who removes it makes room again."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(_NoSpace):
        while (left := shutil.disk_usage(directory).free - leave_bytes) > 0:
            _write(file.fileno(), bytes(min(left, MIB)))
    return ballast


class _NoSpace(Exception):
    """The disk is full."""


def _write(fd: int, data: bytes) -> None:
    try:
        os.write(fd, data)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise _NoSpace from None


@contextlib.contextmanager
def scratch(needed_bytes: int, fallback: Path) -> Iterator[Path]:
    """Make a directory in memory if there is room for twice of what is needed, else below `fallback`."""
    in_memory = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2 * needed_bytes
    with tempfile.TemporaryDirectory(prefix="filestreamer-faults-", dir=MEMORY if in_memory else fallback) as directory:
        yield Path(directory)
