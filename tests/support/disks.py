"""Small file systems in memory, to be filled; and large ones that hold nothing but holes. Mounting takes root."""

import contextlib
import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MIB = 1 << 20
MEMORY = Path("/dev/shm")


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
def ext4_of_whole_seconds(mount_point: Path) -> Iterator[Path]:
    """Mount an ext4 whose inodes have room for whole seconds only. Skips the test where that takes what is not here.

    In CI it never skips.
    """
    image = mount_point.with_name(mount_point.name + ".ext4")
    with image.open("wb") as file:
        file.truncate(16 * MIB)
    mount_point.mkdir(parents=True, exist_ok=True)
    make = ["mkfs.ext4", "-q", "-F", "-I", "128", "-m", "0", str(image)]
    try:
        if os.geteuid() != 0:
            pytest.skip("mounting takes root")
        subprocess.run(make, check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(mount_point)], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"an ext4 with small inodes can't be made and mounted: {error}")
    try:
        (mount_point / "lost+found").rmdir()
        yield mount_point
    finally:
        subprocess.run(["umount", "--lazy", str(mount_point)], check=True)
        image.unlink()


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
