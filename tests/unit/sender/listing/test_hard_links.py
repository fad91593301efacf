"""Hard-link groups: each file has its own, however many there are, and they take little memory."""

import tracemalloc

import pytest

from sender.listing import hard_links
from sender.listing.hard_links import HardLinkGroups
from sender.source.item import Identity

FILE = Identity(device=1, inode=2, size=3, mtime_ns=4, ctime_ns=5)


def test_each_name_that_is_to_come_is_found_once() -> None:
    groups = HardLinkGroups()
    assert groups.follow(FILE) == 0
    assert groups.begin(FILE, 2) == 1
    assert [groups.follow(FILE) for _ in range(3)] == [1, 1, 0]


@pytest.mark.parametrize(
    "other",
    [{"device": 9}, {"inode": 9}, {"size": 9}, {"mtime_ns": 9}, {"ctime_ns": 9}, {"device": 2, "inode": 1}],
    ids="+".join,
)
def test_another_file_or_one_that_has_changed_is_of_no_group(other: dict[str, int]) -> None:
    groups = HardLinkGroups()
    groups.begin(FILE, 5)
    assert groups.follow(FILE._replace(**other)) == 0
    assert groups.begin(FILE._replace(**other), 5) == 2
    assert groups.follow(FILE._replace(**other)) == 2


def test_files_whose_hashes_are_equal_have_groups_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hard_links, "hash", lambda _: -1, raising=False)
    groups = HardLinkGroups()
    files = [FILE._replace(device=device, inode=inode) for device in range(5) for inode in range(5)]
    assert [groups.begin(file, 1) for file in files] == list(range(1, 26))
    assert [groups.follow(file) for file in files] == list(range(1, 26))


def test_the_largest_numbers_of_a_kernel() -> None:
    file = Identity(device=2**64 - 1, inode=2**64 - 1, size=2**63 - 1, mtime_ns=2**70, ctime_ns=-(2**70))
    groups = HardLinkGroups()
    assert groups.begin(file, 2**64 - 1) == groups.follow(file) == 1


def test_many_files_with_names_elsewhere_take_little_memory() -> None:
    """Also where each has changed, and begins another group: what comes later counts."""
    files = 50_000
    groups = HardLinkGroups()
    tracemalloc.start()
    try:
        for inode in range(files):
            groups.begin(FILE._replace(inode=inode), 1)
        used_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used_bytes < 50 * files
    for inode in range(0, files, 2):
        groups.begin(FILE._replace(inode=inode, ctime_ns=6), 1)
    followed = [groups.follow(FILE._replace(inode=inode, ctime_ns=5 + (inode % 2 == 0))) for inode in range(files)]
    assert followed == [files + 1 + inode // 2 if inode % 2 == 0 else inode + 1 for inode in range(files)]
