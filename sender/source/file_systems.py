"""The kind of the file system that a file lies on, by its device number, as the kernel lists its mounts.

Some kinds lie about the size of a file, and some give a file another inode number now and then.
"""

import os
import re
from typing import Final

UNTOLD_SIZES: Final = frozenset(
    "bpf cgroup cgroup2 configfs debugfs devpts efivarfs mqueue proc pstore resctrl securityfs sysfs tracefs".split()
)
"""Files of no size may have bytes here. Reading one to find out may have effects, as of /proc/kmsg."""
TRUE_SIZES: Final = frozenset(
    "aufs bcachefs btrfs ceph cifs ecryptfs hugetlbfs nfs nfs4 overlay ramfs smb3 tmpfs ubifs zfs".split()
)
"""What these say of the size of a file holds, though they are not on a block device."""
UNSTABLE_INODES: Final = frozenset("9p aufs cifs exfat msdos overlay smb3 vboxsf vfat virtiofs".split())
"""A file may have another inode number after it was not used for a while; so may a file of any kind of FUSE."""
_MOUNT: Final = re.compile(rb"^\d+ \d+ (\d+):(\d+) .* - (\S+) ", re.MULTILINE)

_kinds: Final[dict[int, str]] = {}
"""The kinds that were looked up, by device. Several threads may fill it: each finds the same."""


def kind_of_device(device: int) -> str:
    """Return the kind, as mount(8) calls it; an empty text where no mount has this device (a btrfs subvolume)."""
    kind = _kinds.get(device)
    if kind is None:
        kind = _kinds[device] = _look_up(device)
    return kind


def _look_up(device: int) -> str:
    wanted = (os.major(device), os.minor(device))
    try:
        with open("/proc/self/mountinfo", "rb") as mounts:
            for major, minor, kind in _MOUNT.findall(mounts.read()):
                if (int(major), int(minor)) == wanted:
                    return os.fsdecode(kind)
    except OSError:
        pass
    return ""


def has_true_sizes(device: int) -> bool:
    """Whether a file on this device that says it is empty is empty."""
    return bool(os.major(device)) or kind_of_device(device) in TRUE_SIZES


def hides_sizes(device: int) -> bool:
    """Whether files on this device that say they are empty are made when they are read."""
    return kind_of_device(device) in UNTOLD_SIZES


def has_stable_inodes(device: int) -> bool:
    """Whether a file on this device keeps its inode number."""
    kind = kind_of_device(device)
    return not kind.startswith("fuse") and kind not in UNSTABLE_INODES
