"""What a walk lists of a tree with --files-from and --dereference (tests/integration/test_choice.py has mounts)."""

import os
from pathlib import Path

import pytest

from filestreamer.telemetry.counters import Skipped
from filestreamer.wire.messages import EntryType, SkipKind
from filestreamer.wire.patterns import pattern_filter
from sender.listing.files_from import PathList
from sender.listing.walk import Walk
from sender.source.directories import Directories
from sender.source.item import Item, Unsendable, open_listed
from tests.support import trees


def walked(*paths: Path | str, **options: object) -> tuple[list[Item], list[Skipped]]:
    """Walk; return the items and what was left out."""
    skipped: list[Skipped] = []
    items = list(Walk([str(path) for path in paths], skipped.append, **options))  # type: ignore[arg-type]
    return items, skipped


def names(items: list[Item]) -> list[bytes]:
    return [item.entry.path for item in items]


def of(*paths: bytes) -> PathList:
    made = PathList()
    for path in paths:
        made.add(path)
    return made


def told(skipped: list[Skipped]) -> list[tuple[bytes, SkipKind]]:
    return [(each.name, each.kind) for each in skipped]


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """Return a directory with a few files."""
    for name in ("b/2", "b/1", "b/c/3", "a", "b.x", "d/e/f", "d/g"):
        trees.write(tmp_path / "top" / name, name.encode())
    return tmp_path / "top"


# ---------------------------------------------------------------------------------------------------------- files_from


def test_only_what_is_listed_and_the_directories_on_the_way(top: Path) -> None:
    items, skipped = walked(f"{top}/", listed=of(b"b/1", b"a", b"d/e/f"))
    assert names(items) == [b"a", b"b", b"b/1", b"d", b"d/e", b"d/e/f"]
    assert not skipped
    assert names(walked(top, listed=of(b"a"))[0]) == [b"top", b"top/a"]
    assert names(walked(top, listed=of(b"a"), as_name="other")[0]) == [b"other", b"other/a"]


def test_a_directory_is_sent_whole(top: Path) -> None:
    items, skipped = walked(f"{top}/", listed=of(b"b", b"b/1", b"b.x", b"d/e"))
    assert names(items) == [b"b", b"b/1", b"b/2", b"b/c", b"b/c/3", b"b.x", b"d", b"d/e", b"d/e/f"]
    assert not skipped
    assert names(walked(f"{top}/", listed=of(b""))[0]) == names(walked(f"{top}/")[0])


def test_a_walk_can_be_done_again(top: Path) -> None:
    listed = of(b"b/1", b"a")
    skipped: list[Skipped] = []
    walk = Walk([f"{top}/"], skipped.append, listed=listed)
    assert names(list(walk)) == names(list(walk)) == [b"a", b"b", b"b/1"]


def test_each_path_that_is_not_there_is_told(top: Path) -> None:
    missing = (b"a/x", b"b/none", b"b/c/3/y", b"none", b"no/dir/x", b"no/dir/y", b"d/none/z")
    items, skipped = walked(f"{top}/", listed=of(*missing, b"b", b"d/g"))
    assert names(items) == [b"b", b"b/1", b"b/2", b"b/c", b"b/c/3", b"d", b"d/g"]
    assert sorted(told(skipped)) == sorted((path, SkipKind.VANISHED) for path in missing)


def test_a_directory_of_which_nothing_is_there_is_not_sent(top: Path) -> None:
    assert names(walked(f"{top}/", listed=of(b"d/none"))[0]) == []


def test_no_symbolic_link_on_the_way_is_followed(top: Path, tmp_path: Path) -> None:
    trees.write(tmp_path / "secret/x", b"secret")
    (top / "link").symlink_to("../secret")
    items, skipped = walked(f"{top}/", listed=of(b"link/x", b"a"))
    assert names(items) == [b"a"]
    assert told(skipped) == [(b"link/x", SkipKind.VANISHED)]
    items, skipped = walked(f"{top}/", listed=of(b"link"))
    assert [item.entry.type for item in items] == [EntryType.SYMLINK]
    items, skipped = walked(f"{top}/", listed=of(b"link/x"), follows=True)
    assert names(items) == [b"link", b"link/x"]


def test_patterns_choose_among_the_listed(top: Path) -> None:
    wanted = pattern_filter([], ["/b/c/", "2"])
    items, skipped = walked(f"{top}/", listed=of(b"b", b"b/c/3", b"d/g"), wanted=wanted)
    assert names(items) == [b"b", b"b/1", b"d", b"d/g"]
    assert not skipped
    wanted = pattern_filter(["*1"], [])
    assert names(walked(f"{top}/", listed=of(b"b", b"d"), wanted=wanted, is_sparing=True)[0]) == [b"b", b"b/1"]


def test_staging_is_never_listed(top: Path) -> None:
    trees.write(top / ".filestreamer/x", b"")
    trees.write(top / "b/.filestreamer/x", b"")
    assert names(walked(f"{top}/", listed=of(b".filestreamer", b"b/.filestreamer/x", b"a"))[0]) == [b"a"]


# --------------------------------------------------------------------------------------------------------- dereference


def test_what_links_lead_to_is_sent_in_their_place(top: Path, tmp_path: Path) -> None:
    trees.write(tmp_path / "elsewhere/x", b"content of x")
    (top / "to a").symlink_to("a")
    (top / "to elsewhere").symlink_to(tmp_path / "elsewhere")
    items, skipped = walked(f"{top}/", follows=True)
    assert not skipped
    found = {item.entry.path: item for item in items}
    assert found[b"to a"].entry.type is EntryType.FILE
    assert found[b"to elsewhere"].entry.type is EntryType.DIRECTORY
    assert found[b"to elsewhere/x"].entry.size == len(b"content of x")
    directories = Directories(4)
    fd, _ = open_listed(found[b"to elsewhere/x"], directories)
    assert os.read(fd, 100) == b"content of x"
    os.close(fd)
    directories.close()


def test_a_loop_is_left_out(top: Path) -> None:
    (top / "d/e/up").symlink_to("..")
    (top / "d/e/self").symlink_to("self")
    (top / "b/d").symlink_to("../d")
    items, skipped = walked(f"{top}/", follows=True)
    assert b"b/d/e/f" in names(items)
    assert told(skipped) == [
        (name, SkipKind.UNREADABLE) for name in (b"b/d/e/self", b"b/d/e/up", b"d/e/self", b"d/e/up")
    ]
    assert {each.reason.partition(" that ")[2].partition(" back to ")[0] for each in skipped} == {"leads"}


def test_links_to_nothing_are_told(top: Path) -> None:
    (top / "gone").symlink_to("nowhere")
    (top / "below a").symlink_to("a/x")
    items, skipped = walked(f"{top}/", follows=True)
    assert names(items) == names(walked(f"{top}/", wanted=lambda path, _: b"gone" != path != b"below a")[0])
    assert told(skipped) == [(name, SkipKind.UNREADABLE) for name in (b"below a", b"gone")]


def test_a_link_to_a_fifo_is_special(top: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (top / "link").symlink_to(tmp_path / "fifo")
    assert told(walked(f"{top}/", follows=True)[1]) == [(b"link", SkipKind.SPECIAL)]


def test_a_link_that_leads_elsewhere_by_the_time_it_is_read(top: Path, tmp_path: Path) -> None:
    """What is opened has to be what was listed."""
    trees.write(tmp_path / "one/x", b"the same size")
    trees.write(tmp_path / "two/x", b"not the bytes")
    (top / "link").symlink_to(tmp_path / "one")
    (top / "file").symlink_to(tmp_path / "one/x")
    found = {item.entry.path: item for item in walked(f"{top}/", follows=True)[0]}
    for name, to in (("link", "two"), ("file", "two/x")):
        (top / name).unlink()
        (top / name).symlink_to(tmp_path / to)
    directories = Directories(4)
    for path in (b"link/x", b"file"):
        with pytest.raises(Unsendable, match="another file took its place"):
            open_listed(found[path], directories)
    directories.close()


def test_patterns_see_what_a_link_leads_to(top: Path) -> None:
    (top / "link").symlink_to("b")
    wanted = pattern_filter([], ["link/"])
    assert b"link" not in names(walked(f"{top}/", follows=True, wanted=wanted)[0])


def test_a_deep_way_through_links(tmp_path: Path) -> None:
    """Deeper than the directories that are kept open: climbing back does not go by way of the links' own parents."""
    deep = tmp_path / "elsewhere"
    for _ in range(70):
        trees.write(deep / "z", b"z")
        deep = deep / "d"
    trees.write(deep / "z", b"z")
    trees.write(tmp_path / "top/z", b"z")
    (tmp_path / "top/l").symlink_to(tmp_path / "elsewhere")
    items, skipped = walked(tmp_path / "top", follows=True)
    assert not skipped
    assert sum(item.entry.type is EntryType.FILE for item in items) == 72
    directories = Directories(4)
    for item in items:
        if item.identity is not None:
            os.close(open_listed(item, directories)[0])
    directories.close()
