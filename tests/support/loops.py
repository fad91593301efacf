"""Real file systems in loop devices, for what differs between them. Mounting takes root."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_MAKE = {"ext4": ("mkfs.ext4", "-q", "-F"), "xfs": ("mkfs.xfs", "-q", "-f"), "btrfs": ("mkfs.btrfs", "-q", "-f")}
_SIZE_BYTES = 400 << 20
"""XFS takes no less than 300 MiB."""
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def tool(name: str) -> str:
    """Return the path of a tool. Skips the test where it is missing; on CI that is a failure."""
    found = shutil.which(name, path=_PATH)
    if found is None:
        assert not os.environ.get("CI"), f"{name} is not installed"
        pytest.skip(f"{name} is not installed")
    return found


@contextlib.contextmanager
def mounted(kind: str, directory: Path) -> Iterator[Path]:
    """Make an empty file system of this kind, and mount it for the length of the block.

    Skips the test without root, and where the kernel has no such file system.
    """
    if os.geteuid() != 0:
        pytest.skip("mounting a file system takes root")
    image, mount_point = directory / f"{kind}.img", directory / kind
    with image.open("wb") as file:
        file.truncate(_SIZE_BYTES)
    command, *options = _MAKE[kind]
    subprocess.run([tool(command), *options, str(image)], check=True, capture_output=True)
    mount_point.mkdir()
    done = subprocess.run(
        ["mount", "-o", "loop", str(image), str(mount_point)], check=False, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"this kernel does not mount {kind}: {done.stderr.strip()}")
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", "--lazy", str(mount_point)], check=True)
