"""The walk: what it lists, in which order, and what it tells instead."""

import os
from pathlib import Path

import pytest

from filestreamer.telemetry.counters import Skipped
from filestreamer.wire import limits
from filestreamer.wire.codec import decode, encode
from filestreamer.wire.errors import Code, TransferFailed, UsageError
from filestreamer.wire.grid import Share
from filestreamer.wire.limits import CHUNKS_PER_FILE, KIB, PATH_BYTES
from filestreamer.wire.messages import Entry, EntryType, ManifestPart, SkipKind
from filestreamer.wire.patterns import pattern_filter
from filestreamer.wire.tree_shares import TreeShares
from sender.listing import walk
from sender.listing.walk import LEFT_OUT, Walk
from sender.listing.xattrs import LEFT_OUT as XATTRS_LEFT_OUT
from sender.listing.xattrs import XattrReader
from sender.source.item import Item, Unsendable
from tests.support import trees


def walked(*paths: Path | str, **options: object) -> tuple[list[Item], list[Skipped]]:
    """Walk; return the items and what was left out."""
    skipped: list[Skipped] = []
    items = list(Walk([str(path) for path in paths], skipped.append, **options))  # type: ignore[arg-type]
    return items, skipped


def names(items: list[Item]) -> list[bytes]:
    return [item.entry.path for item in items]


def entry_of(items: list[Item], path: bytes) -> Entry:
    (item,) = [item for item in items if item.entry.path == path]
    return item.entry


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """Return a directory with a few files."""
    for name in ("b/2", "b/1", "a", "c/d/e"):
        trees.write(tmp_path / "top" / name, name.encode())
    return tmp_path / "top"


def test_directories_come_before_what_is_in_them_in_the_order_of_names(top: Path) -> None:
    expected = [b"top", b"top/a", b"top/b", b"top/b/1", b"top/b/2", b"top/c", b"top/c/d", b"top/c/d/e"]
    assert expected == names(walked(top)[0])


@pytest.mark.parametrize("end", ["/", "/.", "/./", "//"])
def test_a_slash_at_the_end_means_what_is_in_it(top: Path, end: str) -> None:
    items, _ = walked(f"{top}{end}")
    assert names(items) == [b"a", b"b", b"b/1", b"b/2", b"c", b"c/d", b"c/d/e"]


def test_paths_are_shown_as_people_write_them(top: Path) -> None:
    items, _ = walked(f"{top}/")
    assert f"{top}/b/1" in [item.shown for item in items]


def test_several_paths_each_under_its_name(top: Path) -> None:
    assert names(walked(top / "c", top / "a", top / "b/1")[0]) == [b"c", b"c/d", b"c/d/e", b"a", b"1"]


def test_the_working_directory_has_a_name(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(top / "b")
    assert names(walked(".")[0]) == [b"b", b"b/1", b"b/2"]
    assert names(walked("..")[0])[0] == b"top"
    assert names(walked("./")[0]) == [b"1", b"2"]


def test_one_name_for_two_paths_is_refused(top: Path) -> None:
    trees.write(top / "c/a", b"another a")
    with pytest.raises(UsageError, match=r"^two of the paths would be 'a' at the destination"):
        walked(top / "a", top / "c/a")


def test_one_name_for_a_path_and_for_something_in_another_is_refused(top: Path) -> None:
    """Of two entries with one path, whichever came last would stand there."""
    trees.write(top / "c/a", b"another a")
    with pytest.raises(UsageError, match=r"^two of the paths would be 'a' at the destination"):
        walked(f"{top / 'c'}/", top / "a")
    with pytest.raises(UsageError, match=r"^DIR/ goes straight into the destination"):
        walked(f"{top / 'c'}/", f"{top / 'b'}/")
    assert names(walked(f"{top / 'c'}/", top / "b/1")[0]) == [b"a", b"d", b"d/e", b"1"]


def test_as_names_a_single_path(top: Path) -> None:
    assert names(walked(top / "c", as_name="other")[0]) == [b"other", b"other/d", b"other/d/e"]
    assert names(walked(f"{top / 'c'}/", as_name="other")[0]) == [b"other", b"other/d", b"other/d/e"]


def test_what_is_not_there_ends_it(top: Path) -> None:
    with pytest.raises(TransferFailed, match="can't read") as caught:
        walked(top / "missing")
    assert caught.value.code is Code.SOURCE


def test_staging_is_no_entry_and_lost_found_is_none_at_the_top(top: Path) -> None:
    for name in (".filestreamer/x", "b/.filestreamer/x", "lost+found/x", "b/lost+found/x"):
        trees.write(top / name, b"x")
    found = names(walked(top)[0])
    assert not [path for path in found if b".filestreamer" in path]
    assert [path for path in found if b"lost+found" in path] == [b"top/b/lost+found", b"top/b/lost+found/x"]


def test_only_symlinks_that_are_named_are_followed(top: Path) -> None:
    (top / "to b").symlink_to("b")
    items, _ = walked(top)
    assert entry_of(items, b"top/to b").type is EntryType.SYMLINK
    assert names(walked(top / "to b")[0]) == [b"to b", b"to b/1", b"to b/2"]


def test_special_files_are_told(top: Path) -> None:
    os.mkfifo(top / "fifo")
    trees.make_socket(top / "socket")
    _, skipped = walked(top)
    assert skipped == [
        Skipped(str(top / "fifo"), "it is a FIFO", SkipKind.SPECIAL, b"top/fifo"),
        Skipped(str(top / "socket"), "it is a socket", SkipKind.SPECIAL, b"top/socket"),
    ]


def test_a_path_longer_than_the_protocol_takes_is_told(top: Path) -> None:
    """All of a chain of directories that fits is listed; the first that does not is told, once."""
    trees.deepen(top, b"n" * 250, 20)
    items, skipped = walked(top)
    assert skipped
    assert all(each.kind is SkipKind.UNREADABLE for each in skipped)
    assert max(map(len, names(items))) <= PATH_BYTES
    assert all(len(os.fsencode(each.path)) >= PATH_BYTES for each in skipped)
    assert len(skipped) <= 2  # the leaf, and the next directory


def test_a_name_longer_than_the_protocol_takes_is_told(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are file systems with names of 255 characters, which are more bytes. This one may have none."""
    monkeypatch.setattr(limits, "NAME_BYTES", 20)
    trees.write(top / "directory" / ("n" * 20), b"x")
    trees.write(top / "directory" / ("n" * 21), b"x")
    trees.write(top / ("d" * 21) / "in it", b"")
    (top / ("l" * 21)).symlink_to("a")
    items, skipped = walked(top, keeps=True)
    assert names(items)[-4:] == [b"top/c/d", b"top/c/d/e", b"top/directory", b"top/directory/" + b"n" * 20]
    expected = dict.fromkeys(("directory/" + "n" * 21, "d" * 21, "l" * 21), "its name is longer than 20 bytes")
    assert {each.name.decode().removeprefix("top/"): each.reason for each in skipped} == expected
    assert {each.kind for each in skipped} == {SkipKind.UNREADABLE}


def test_a_name_of_a_path_that_is_longer_than_the_protocol_takes(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends a tree of one path, and costs one of several. Of a single file the receiver may have another name."""
    monkeypatch.setattr(limits, "NAME_BYTES", 20)
    long = top / ("d" * 21)
    file = trees.write(long / ("n" * 21), b"x")
    with pytest.raises(TransferFailed, match="longer than 20 bytes: send it alone, with --as") as caught:
        walked(long)
    assert caught.value.code is Code.SOURCE
    for path in (long, file):
        items, skipped = walked(path, top / "a")
        assert names(items) == [b"a"]
        assert [(each.path, each.kind) for each in skipped] == [(str(path), SkipKind.UNREADABLE)]
        assert "send it alone, with --as" in skipped[0].reason
    assert names(walked(long, as_name="short")[0]) == [b"short"]
    assert names(walked(file)[0]) == [b"n" * 21]


def test_attributes_of_a_directory_that_is_no_entry_are_not_looked_at(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The destination keeps its own. One that can't be sent would be told of an entry without a path."""
    for path in (top, top / "b"):
        os.setxattr(path, "user.x", b"1")
    warnings: list[str] = []
    walked(f"{top}/", warn=warnings.append)
    assert warnings == [XATTRS_LEFT_OUT]  # of b
    os.removexattr(top / "b", "user.x")
    warnings.clear()
    walked(f"{top}/", warn=warnings.append)
    assert warnings == []
    monkeypatch.setattr(limits, "XATTRS_PER_ENTRY", 0)
    assert walked(f"{top}/", xattrs=True)[1] == []
    assert [(each.kind, each.name) for each in walked(top, xattrs=True)[1]] == [(SkipKind.ATTRIBUTE, b"top")]


def test_what_vanishes_while_it_is_walked_is_told(top: Path) -> None:
    skipped: list[Skipped] = []
    found = []
    for item in Walk([str(top)], skipped.append):
        found.append(item.entry.path)
        if item.entry.path == b"top/b":
            (top / "b/2").unlink()
    assert b"top/b/2" not in found
    reason = "it vanished while the tree was walked"
    assert skipped == [Skipped(str(top / "b/2"), reason, SkipKind.VANISHED, b"top/b/2")]


def test_a_time_beyond_the_protocol_is_the_last_one_that_it_has(tmp_path: Path) -> None:
    """There are file systems with times after 2262, which is as far as 63 bits of nanoseconds go."""
    far = trees.write(tmp_path / "top" / "far", b"x", mtime_ns=10**19)
    if far.stat().st_mtime_ns < 10**19:
        pytest.skip("this file system has no such times")
    items, _ = walked(tmp_path / "top")
    part = ManifestPart(0, tuple(item.entry for item in items), True)
    assert decode(encode(part)) == part
    assert entry_of(items, b"top/far").mtime_ns == 2**63 - 1


# ----------------------------------------------------------------------------------------------------------- hard links


def test_names_of_one_file_are_a_group_of_which_the_first_is_read(top: Path) -> None:
    os.link(top / "a", top / "b/also a")
    os.link(top / "a", top / "z")
    os.link(top / "b/1", top / "y")
    items, _ = walked(top)
    groups = {item.entry.path: item.entry.hard_link_group for item in items if item.entry.hard_link_group}
    assert groups[b"top/a"] == groups[b"top/b/also a"] == groups[b"top/z"] != groups[b"top/b/1"] == groups[b"top/y"]
    assert {item.entry.path for item in items if item.identity is None and item.entry.hard_link_group} == {
        b"top/b/also a",
        b"top/z",
        b"top/y",
    }


def test_a_group_begins_with_a_name_that_is_sent(top: Path) -> None:
    """Where the first name is excluded, the second is the first."""
    os.link(top / "a", top / "b/also a")
    items, _ = walked(top, wanted=pattern_filter([], ["/a"]))
    (link,) = [item for item in items if item.entry.hard_link_group]
    assert (link.entry.path, link.sent_bytes) == (b"top/b/also a", 1)


def test_a_name_of_a_file_that_was_written_to_since_its_first_one_is_sent(top: Path) -> None:
    """What was listed first is not going to arrive: it has changed."""
    os.link(top / "a", top / "z")
    os.link(top / "a", top / "zz")
    groups = {}
    skipped: list[Skipped] = []
    for item in Walk([str(top)], skipped.append):
        groups[item.entry.path] = item.entry.hard_link_group
        if item.entry.path == b"top/b":
            (top / "a").write_bytes(b"longer")
    assert groups[b"top/a"] != groups[b"top/z"] == groups[b"top/zz"]


# ---------------------------------------------------------------------------------------------------------------- holes


def test_how_much_of_a_sparse_file_is_stored(tmp_path: Path) -> None:
    """A hint for the receiver's check of space; of other files it is not said. No file is opened for that."""
    file = trees.sparse(tmp_path / "f", 1000 * KIB, (300 * KIB, b"middle"))
    (tmp_path / "g").write_bytes(b"x" * 5000)
    items, skipped = walked(f"{tmp_path}/")
    stored = {item.entry.path: item.entry.data_bytes for item in items}
    assert stored == {b"f": file.stat().st_blocks * 512, b"g": None}
    assert skipped == []


# ------------------------------------------------------------------------------------------------------------- patterns


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ([], ["b"], {"a", "c", "c/d", "c/d/e"}),
        ([], ["/c/d/"], {"a", "b", "b/1", "b/2", "c"}),
        ([], ["*", "!a"], {"a"}),
        (["e"], [], {"c", "c/d", "c/d/e"}),
        (["b/*"], ["2"], {"b", "b/1"}),
        (["nothing"], [], set()),
    ],
)
def test_patterns(top: Path, include: list[str], exclude: list[str], expected: set[str]) -> None:
    """A directory is there where something in it is, or no file was asked for by pattern."""
    items, skipped = walked(f"{top}/", wanted=pattern_filter(include, exclude), is_sparing=bool(include))
    assert expected == {os.fsdecode(path) for path in names(items)}
    assert skipped == []


def test_staging_is_left_out_in_every_form_and_that_is_said(tmp_path: Path) -> None:
    for name in (".filestreamer", "a/.FileStreamer", "b/c/.filestreamer", "b/c/d"):
        (tmp_path / "top" / name).mkdir(parents=True)
        (tmp_path / "top" / name / "f").touch()
    (tmp_path / "top/b/.filestreamer.").touch()
    warnings: list[str] = []
    skipped: list[Skipped] = []
    found = [item.entry.path for item in Walk([str(tmp_path / "top")], skipped.append, warn=warnings.append)]
    assert found == [b"top", b"top/a", b"top/b", b"top/b/c", b"top/b/c/d", b"top/b/c/d/f"]
    assert (set(warnings), skipped) == ({LEFT_OUT}, [])


def walked_for(shard: Share, *paths: Path) -> tuple[list[Item], list[Skipped], bytes]:
    """Walk for one shard; return the items, what was left out, and the digest."""
    skipped: list[Skipped] = []
    walking = Walk([str(path) for path in paths], skipped.append, chunk_size=4 * KIB)
    walking.share_out(TreeShares(shard, 4 * KIB, checksum=False))
    return list(walking), skipped, walking.digest


def test_shards_list_all_directories_and_each_their_own_files(top: Path) -> None:
    for number in range(30):
        trees.write(top / "c" / f"{number}", b"x" * 700 * number)
    os.link(top / "c" / "29", top / "zz")
    os.mkfifo(top / "fifo")
    (top / "link").symlink_to("a")
    whole, skipped = walked(top)
    shards = [walked_for(Share(index, 4), top) for index in range(4)]
    directories = [item.entry.path for item in whole if item.entry.type is EntryType.DIRECTORY]
    small = [item.entry.path for item in whole if item.entry.path not in directories and item.entry.size <= 4 * KIB]
    for items, _, _ in shards:
        assert [item.entry.path for item in items if item.entry.type is EntryType.DIRECTORY] == directories
    listed = [path for items, _, _ in shards for path in names(items)]
    assert sorted(path for path in listed if path in small) == sorted(small)
    assert set(listed) == set(names(whole))
    assert {b"top/c/29", b"top/zz"} <= set(names(shards[0][0]))
    assert [entry.path for _, told, _ in shards for entry in told] == [entry.path for entry in skipped]
    assert len({digest for _, _, digest in shards}) == 1


def test_what_only_its_own_shard_finds_out_is_told(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shard 0 has each file with several links, and is the only one to look into it: whatever its path says."""

    def refuse(item: Item, *_: object) -> None:
        raise Unsendable(Code.SOURCE, "", SkipKind.UNREADABLE, f"can't read {item.shown}")

    for number in range(8):
        trees.write(top / f"empty-{number}", b"")
        os.link(top / f"empty-{number}", top / f"link-{number}")
    monkeypatch.setattr(walk, "check_empty", refuse)
    told = [entry.name for index in range(2) for entry in walked_for(Share(index, 2), top)[1]]
    assert sorted(told) == sorted(b"top/%s-%d" % (name, number) for name in (b"empty", b"link") for number in range(8))


@pytest.mark.parametrize("file", ["a", "b/1", "b/2"])
def test_what_is_wrong_with_a_directory_is_told_by_one_shard(
    top: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """Also where another shard has the file that the user names before."""
    monkeypatch.setattr(XattrReader, "read", lambda *_, **__: ((), "they can't be read"))
    told = [entry.name for index in range(4) for entry in walked_for(Share(index, 4), top / file, top / "c")[1]]
    assert told.count(b"c") == 1


@pytest.mark.parametrize("change", ["write", "touch", "remove", "link", "directory"])
def test_what_shards_see_of_a_change(top: Path, change: str) -> None:
    _, _, before = walked_for(Share(0, 2), top)
    match change:
        case "write":
            trees.write(top / "new", b"")
        case "touch":
            os.utime(top / "a", ns=(1, 1))
        case "remove":
            (top / "a").unlink()
        case "link":
            os.link(top / "a", top.parent / "elsewhere")
        case _:
            (top / "new").mkdir()
    _, _, after = walked_for(Share(1, 2), top)
    assert before != after


def test_a_shared_file_that_changed_is_not_listed_again(top: Path) -> None:
    """The other shards have it as it was."""
    large = trees.write(top / "large", b"x" * 9 * KIB)
    walking = Walk([str(top)], lambda _: None, chunk_size=4 * KIB)
    walking.share_out(TreeShares(Share(0, 2), 4 * KIB, checksum=False))
    (item,) = [item for item in walking if item.entry.path == b"top/large"]
    for size in (10 * KIB, 1):
        large.write_bytes(b"y" * size)
        with pytest.raises(Unsendable, match="other shards"):
            walking.list_again(item, large.stat())


# --- files of too many chunks


def huge(path: Path) -> Path:
    """Make a sparse file of one byte more than chunks of one byte reach."""
    with path.open("wb") as file:
        file.truncate(CHUNKS_PER_FILE + 1)
    return path


def test_a_file_of_too_many_chunks_is_left_out_of_a_tree(top: Path) -> None:
    """Also where the user names it beside others. It is told with the chunk size that fits."""
    lone = huge(top.parent / "lone")
    huge(top / "b" / "huge")
    items, skipped = walked(lone, top, chunk_size=1)
    assert names(items) == [b"top", b"top/a", b"top/b", b"top/b/1", b"top/b/2", b"top/c", b"top/c/d", b"top/c/d/e"]
    assert [(each.path, each.kind) for each in skipped] == [
        (str(lone), SkipKind.UNREADABLE),
        (f"{top}/b/huge", SkipKind.UNREADABLE),
    ]
    assert all(each.reason.endswith("use at least 2") for each in skipped)
    assert b"top/b/huge" in names(walked(top, chunk_size=2)[0])


def test_a_file_that_is_sent_alone_has_a_chunk_size_of_its_own(top: Path) -> None:
    lone = huge(top.parent / "lone")
    items, skipped = walked(lone, chunk_size=1)
    assert (names(items), skipped) == ([b"lone"], [])


def test_a_file_that_has_grown_to_too_many_chunks_is_not_listed_again(top: Path) -> None:
    walking = Walk([str(top)], lambda _: None, chunk_size=1)
    (item,) = [item for item in walking if item.entry.path == b"top/a"]
    with pytest.raises(Unsendable, match="use at least 2"):
        walking.list_again(item, huge(top / "a").stat())
