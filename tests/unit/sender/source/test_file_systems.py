"""What is known of the file system that a file lies on."""

import os
from pathlib import Path

import pytest

from sender.source import file_systems


def test_proc_and_sys_do_not_tell_sizes() -> None:
    assert file_systems.hides_sizes(os.stat("/proc/self/status").st_dev)
    assert not file_systems.has_true_sizes(os.stat("/proc/self/status").st_dev)
    assert file_systems.hides_sizes(os.stat("/sys/kernel").st_dev)


def test_a_disk_tells_true_sizes_without_a_look_at_the_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_systems, "_look_up", None)
    assert file_systems.has_true_sizes(os.makedev(8, 1))


def test_a_device_that_no_mount_has(tmp_path: Path) -> None:
    """A subvolume of btrfs. Its inodes are stable, and one read finds out whether a file of no size has bytes."""
    nowhere = os.makedev(0, 0xFFFFF)
    assert file_systems.kind_of_device(nowhere) == ""
    assert not file_systems.has_true_sizes(nowhere)
    assert not file_systems.hides_sizes(nowhere)
    assert file_systems.has_stable_inodes(nowhere)


@pytest.mark.parametrize("kind", ["fuse.sshfs", "fuseblk", "cifs", "vfat", "overlay"])
def test_file_systems_that_number_files_anew(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(file_systems, "_kinds", {1: kind, 2: "ext4"})
    assert not file_systems.has_stable_inodes(1)
    assert file_systems.has_stable_inodes(2)
