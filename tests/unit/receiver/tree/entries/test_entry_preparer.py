"""What is there already, and what is made while a part of the manifest is taken up."""

import errno
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import Code
from receiver.disk import descriptors, final_name
from receiver.tree.entries.locations import Location, Locations
from tests.support.peer import TreeSample
from tests.support.tree_receiver import (
    MTIME,
    C,
    TransferOf,
    TreeTransfer,
    failure,
    held,
    needed,
    sample,
    told,
)


def test_a_file_replaces_a_file_and_a_symlink(tmp_path: Path, transfer_of: TransferOf) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "outside").write_bytes(b"outside")
    (tmp_path / "t/file").write_bytes(b"before")
    (tmp_path / "t/link").symlink_to(tmp_path / "outside")
    (tmp_path / "t/empty").symlink_to(tmp_path / "outside")
    (tmp_path / "t/target").write_bytes(b"before")
    tree = sample()
    tree.add(b"t/file", b"after")
    tree.add(b"t/link", b"link")
    tree.add(b"t/empty")
    tree.symlink(b"t/target", b"../outside")
    transfer_of(tree).move()
    assert (tmp_path / "t/file").read_bytes() == b"after"
    assert not (tmp_path / "t/link").is_symlink()
    assert ((tmp_path / "t/empty").read_bytes(), (tmp_path / "t/empty").is_symlink()) == (b"", False)
    assert os.readlink(tmp_path / "t/target") == "../outside"
    assert (tmp_path / "outside").read_bytes() == b"outside"


@pytest.mark.parametrize("replace", [True, False], ids=["replace", "no replace"])
def test_a_hard_link_where_no_two_directories_stay_open(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    monkeypatch.setattr(descriptors, "directories", lambda _: 2)  # the destination, and one below it
    tree = sample()
    tree.directory(b"t/a")
    tree.add(b"t/a/one", b"content", hard_link_group=1)
    tree.directory(b"t/b")
    tree.add(b"t/b/two", b"content", hard_link_group=1)
    transfer_of(tree, replace=replace).move()
    assert (tmp_path / "t/a/one").samefile(tmp_path / "t/b/two")


@pytest.mark.parametrize("umask", [0o077, 0o022, 0])
def test_modes_whatever_the_umask(tmp_path: Path, transfer_of: TransferOf, umask: int) -> None:
    tree = sample()
    modes = (0o777, 0o666, 0o640, 0o444, 0o000)
    for mode in modes:
        tree.directory(b"t/d%o" % mode, mode=mode)
        tree.add(b"t/d%o/f" % mode, b"content", mode=mode)
        tree.add(b"t/d%o/empty" % mode, mode=mode)
        tree.add(b"t/d%o/large" % mode, bytes(100), mode=mode)
    before = os.umask(umask)
    try:
        transfer_of(tree).move()
    finally:
        os.umask(before)
    for mode in modes:
        there = tmp_path / f"t/d{mode:o}"
        found = [stat.S_IMODE(path.stat().st_mode) for path in (there, *(there / n for n in ("f", "empty", "large")))]
        assert [mode] * 4 == found


def test_modes_of_directories_while_files_move(tmp_path: Path, transfer_of: TransferOf) -> None:
    """Their owner may write into them, also where the transfer ends early (proto/README.md, "Trees")."""
    (tmp_path / "t/there").mkdir(parents=True)
    (tmp_path / "t/there").chmod(0o055)
    tree = sample()
    tree.directory(b"t/there", mode=0o555)
    tree.directory(b"t/new", mode=0o050)
    tree.add(b"t/there/f", b"content")
    tree.add(b"t/new/f", b"content")
    tree.add(b"t/unlisted/f", b"content")

    def modes() -> list[int]:
        return [stat.S_IMODE((tmp_path / "t" / name).stat().st_mode) for name in ("there", "new", "unlisted")]

    umask = os.umask(0o022)
    try:
        early = transfer_of(tree)
        early.offer()
        assert modes() == [0o755, 0o750, 0o755]
        early.tree.close(cleanly=True)
        assert modes() == [0o755, 0o750, 0o755]
        transfer_of(tree).move()
        assert modes() == [0o555, 0o050, 0o755]
    finally:
        os.umask(umask)


def test_owner_is_kept_where_it_is_told(tmp_path: Path, transfer_of: TransferOf) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")
    tree = sample()
    tree.directory(b"t/d", uid=1234, gid=2345)
    tree.add(b"t/d/f", b"f", uid=1234, gid=2345, mode=0o640)
    tree.add(b"t/d/large", bytes(100), gid=2345)
    tree.add(b"t/d/empty", uid=7)
    tree.entries.append(m.Entry(b"t/d/link", m.EntryType.SYMLINK, 0, 0o777, MTIME, 1, 2, b"x"))
    tree.contents.append(b"")
    transfer_of(tree, allow_privileged=True).move()
    owners = {
        name: (path.lstat().st_uid, path.lstat().st_gid)
        for name in os.listdir(tmp_path / "t/d")
        for path in [tmp_path / "t/d" / name]
    }
    assert owners == {"f": (1234, 2345), "large": (0, 2345), "empty": (7, 0), "link": (1, 2)}
    assert stat.S_IMODE((tmp_path / "t/d/f").stat().st_mode) == 0o640
    tree.entries[2] = tree.entries[2]._replace(uid=99)  # the file is the same: only its owner is corrected
    tree.unchecked = {2, 3}
    transfer_of(tree, allow_privileged=True).move()
    assert (tmp_path / "t/d/f").stat().st_uid == 99


def test_an_owner_that_may_not_be_given_costs_the_attribute_alone(
    tmp_path: Path, transfer_of: TransferOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    tree = sample()
    tree.add(b"t/f", b"f", uid=1234, mode=0o6755)
    transfer = transfer_of(tree, allow_privileged=True)
    transfer.move()
    assert stat.S_IMODE((tmp_path / "t/f").stat().st_mode) == 0o755
    (declined,), (warning,) = told(transfer.report)
    assert (declined.file_id, declined.path, declined.kind) == (1, b"t/f", m.SkipKind.ATTRIBUTE)
    assert declined.reason == "its owner is not set to 1234:: Operation not permitted"
    assert "setuid" in warning


def test_owners_that_the_receiver_does_not_allow(tmp_path: Path, transfer_of: TransferOf) -> None:
    uid, gid = os.geteuid(), os.getegid()
    tree = sample()
    tree.add(b"t/ours", b"f", uid=uid, gid=gid, mode=0o4755)
    tree.add(b"t/other", b"f", uid=uid + 1, gid=gid)
    tree.add(b"t/empty", uid=uid, gid=gid + 1)
    transfer = transfer_of(tree)
    transfer.move()
    there = {path.name: path.stat() for path in (tmp_path / "t").iterdir()}
    assert {(status.st_uid, status.st_gid) for status in there.values()} == {(uid, gid)}
    assert stat.S_IMODE(there["ours"].st_mode) == 0o755
    declined, warnings = told(transfer.report)
    assert sorted(each.path for each in declined) == [b"t/empty", b"t/other"]
    assert {"--allow-privileged" in each.reason for each in declined} == {True}
    assert ["setuid" in warning for warning in warnings] == [True]


# ------------------------------------------------------------------------------------------------ what is there already


def test_a_file_of_equal_size_and_mtime_is_accepted_unread(tmp_path: Path, transfer_of: TransferOf) -> None:
    tree = sample()
    tree.add(b"t/same", b"same")
    tree.add(b"t/hole", bytes(64), holes=((0, 64),))
    tree.add(b"t/large", bytes(200))
    tree.add(b"t/other", b"other")
    transfer_of(tree).move()
    (tmp_path / "t/other").write_bytes(b"stale")
    (tmp_path / "t/same").chmod(0o600)
    tree.unchecked = {1, 2, 3}
    transfer = transfer_of(tree)
    answers = transfer.move()
    assert [needed(4), m.Held(1, 0, b"", (m.FileRange(1, 3),))] == answers
    assert transfer.counters.unchecked_bytes == 268
    assert stat.S_IMODE((tmp_path / "t/same").stat().st_mode) == 0o644


def _make_larger(path: Path) -> None:
    path.write_bytes(b"larger than it was")
    os.utime(path, ns=(MTIME, MTIME))


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to("elsewhere")


CHANGES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda _: None,
    "size": _make_larger,
    "mtime": lambda path: os.utime(path, ns=(MTIME, MTIME + 1)),
    "gone": Path.unlink,
    "symlink": _link,
}
"""Each way but the first one makes the file needed."""


@pytest.mark.parametrize("seed", range(8))
def test_files_among_many_that_are_as_they_were(tmp_path: Path, transfer_of: TransferOf, seed: int) -> None:
    """Small, large and empty files of three directories: each is seen as it is, whatever stands before it."""
    rng = random.Random(seed)
    tree = sample(part_entries=23)
    for name in (b"a", b"b", b"b/c"):
        tree.directory(b"t/" + name, mtime_ns=MTIME)
        for number in range(30):
            tree.add(b"t/%s/f%d" % (name, number), bytes([number]) * rng.choice((1, 7, C, C, 3 * C + 1)))
        tree.add(b"t/%s/empty" % name)
    transfer_of(tree).move()
    files = [at for at, entry in enumerate(tree.entries) if entry.size]
    changed = {at: rng.choice([*CHANGES][1:]) for at in rng.sample(files, 20)}
    for at, how in changed.items():
        CHANGES[how](tmp_path / os.fsdecode(tree.entries[at].path))
    for at in rng.sample([at for at in files if at not in changed], 5):  # which do not have to be sent for that
        (tmp_path / os.fsdecode(tree.entries[at].path)).chmod(0o600)
    tree.unchecked = {at for at in files if at not in changed}
    transfer = transfer_of(tree)
    answers = transfer.move()
    asked = [each for answer in answers if isinstance(answer, m.Needed) for each in answer.files]
    told = {at for first, count in asked for at in range(first, first + count) if tree.entries[at].size}
    assert told == set(changed), f"seed {seed}"
    for at, entry in enumerate(tree.entries):
        path = tmp_path / os.fsdecode(entry.path)
        if entry.type is m.EntryType.FILE:
            status = path.lstat()
            assert (path.read_bytes(), stat.S_IMODE(status.st_mode)) == (tree.contents[at], 0o644), path
            assert status.st_mtime_ns == entry.mtime_ns
    counters, kept = transfer.counters, sum(tree.entries[at].size for at in tree.unchecked)
    assert (counters.files, counters.unchecked_bytes) == (93, kept)
    assert counters.size_bytes == sum(entry.size for entry in tree.entries)


@pytest.mark.parametrize("seed", range(4))
def test_new_files_among_others(tmp_path: Path, transfer_of: TransferOf, seed: int) -> None:
    """In directories that are new, files are small, large, empty, linked, sparse, or in the next directory."""
    rng = random.Random(seed)
    tree, groups = sample(part_entries=17), 0
    for number in range(6):
        tree.directory(b"t/d%d" % number, mtime_ns=MTIME)
        for at in range(rng.randrange(2, 20)):
            path, size = b"t/d%d/f%d" % (number, at), rng.choice((0, 1, C, C + 1))
            if rng.random() < 0.1:
                groups += 1
                tree.add(path, bytes([at]) * 9, hard_link_group=groups)
                tree.add(path + b" again", bytes([at]) * 9, hard_link_group=groups)
            elif rng.random() < 0.1:
                tree.add(path, bytes(C // 2), holes=((0, C // 2),))
            else:
                tree.add(path, bytes([at]) * size, mode=rng.choice((0o644, 0o600)))
    transfer = transfer_of(tree)
    transfer.move()
    for at, entry in enumerate(tree.entries):
        if entry.type is m.EntryType.FILE:
            there = tmp_path / os.fsdecode(entry.path)
            assert there.read_bytes() == tree.contents[at], f"seed {seed}, {there}"
            assert stat.S_IMODE(there.stat().st_mode) == entry.mode
    linked = sum(bool(entry.hard_link_group) for entry in tree.entries) - groups
    files = [entry for entry in tree.entries if entry.type is m.EntryType.FILE]
    assert transfer.counters.files == len(files)
    assert transfer.counters.size_bytes == sum(entry.size for entry in files) - 9 * linked


def test_checksum_compares_what_is_there(tmp_path: Path, transfer_of: TransferOf) -> None:
    tree = sample(checksum=True)
    tree.add(b"t/same", b"same")
    tree.add(b"t/rotten", b"rotten")
    tree.add(b"t/large", bytes(range(200)))
    tree.add(b"t/rotten large", b"x" * 200)
    transfer_of(tree).move()
    for name, content in {"rotten": b"ROTTEN", "rotten large": b"x" * 199 + b"X"}.items():
        (tmp_path / "t" / name).write_bytes(content)
        os.utime(tmp_path / "t" / name, ns=(MTIME, MTIME))
    transfer = transfer_of(tree)
    assert transfer.offer() == []
    answers = transfer.rehashed()
    told = held(answers)
    assert len(answers) == 3  # small files are answered together
    assert told[1] == segment_digest(b"same")
    assert told[2] == segment_digest(b"ROTTEN")
    assert told[3] == b"".join(segment_digest(bytes(range(200))[at : at + C]) for at in range(0, 200, C))
    assert transfer.send(m.Segment(2, 0, 6))
    for at in (3, 0, 2, 1):  # one segment differs, all are sent
        assert (tmp_path / "t/rotten large").read_bytes() == b"x" * 199 + b"X"
        assert transfer.send(m.Segment(4, at * C, min(C, 200 - at * C)))
    transfer.finish()
    assert (tmp_path / "t/rotten").read_bytes() == b"rotten"
    assert (tmp_path / "t/rotten large").read_bytes() == b"x" * 200
    assert transfer.counters.held_bytes == 204


def test_a_file_that_goes_while_it_is_compared_is_needed(tmp_path: Path, transfer_of: TransferOf) -> None:
    tree = sample(checksum=True)
    tree.add(b"t/f", b"content")
    transfer_of(tree).move()
    transfer = transfer_of(tree)
    preparer = transfer.tree._part_preparer
    rehash, preparer.rehash = preparer.rehash, lambda *_: None  # type: ignore[method-assign]
    transfer.offer()
    (tmp_path / "t/f").unlink()
    rehash(transfer.tree._parts.get(0), [1])
    assert [needed(1)] == transfer.rehashed()
    transfer.send_all()
    transfer.finish()
    assert (tmp_path / "t/f").read_bytes() == b"content"


# --------------------------------------------------------------------------------------------------------- --no-replace


def test_no_replace(tmp_path: Path, transfer_of: TransferOf) -> None:
    tree = sample()
    tree.add(b"t/f", b"content")
    tree.add(b"t/empty")
    tree.symlink(b"t/link", b"target")
    tree.add(b"t/g", b"content", hard_link_group=1)
    tree.add(b"t/h", b"content", hard_link_group=1)
    transfer_of(tree, replace=False).move()
    tree.unchecked = {1, 4}
    transfer_of(tree, replace=False).move()
    for name in ("f", "empty", "link"):
        path = tmp_path / "t" / name
        before = path.lstat()
        path.unlink()
        path.write_bytes(b"another")
        transfer = transfer_of(tree, replace=False)
        transfer.offer()
        reason = "it exists, and --no-replace forbids replacing it"
        assert transfer.withdraw_declined() == {f"t/{name}": (m.SkipKind.EXISTING, reason)}
        transfer.finish()
        assert path.read_bytes() == b"another"
        path.unlink()
        tree.withdrawn = set()
        tree.unchecked -= {1} if name == "f" else set()
        transfer_of(tree, replace=False).move()
        tree.unchecked = {1, 4}
        assert before.st_size == path.lstat().st_size


@pytest.mark.parametrize("checksum", [False, True])
def test_no_replace_and_equal_files_where_hard_links_go(
    tmp_path: Path, transfer_of: TransferOf, *, checksum: bool
) -> None:
    """As `cp` and `rsync -a` leave them, one for each name: they are accepted, and get the mode that they lack."""
    tree = sample(checksum=checksum)
    for path in (b"t/a", b"t/b"):
        tree.add(path, b"content", hard_link_group=1)
    (tmp_path / "t").mkdir()
    for name in "ab":
        (tmp_path / "t" / name).write_bytes(b"content")
        (tmp_path / "t" / name).chmod(0o600)
        os.utime(tmp_path / "t" / name, ns=(MTIME, MTIME))
    before = [(tmp_path / "t" / name).stat().st_ino for name in "ab"]
    transfer = transfer_of(tree, replace=False)
    transfer.offer()
    if checksum:
        assert held(transfer.rehashed()).keys() == {1}
    else:
        tree.unchecked = {1}
    transfer.finish()
    assert transfer.declined() == {}
    after = [(tmp_path / "t" / name).stat() for name in "ab"]
    assert [each.st_ino for each in after] == before
    assert [stat.S_IMODE(each.st_mode) for each in after] == [0o644, 0o644]


@pytest.mark.parametrize("differing", ["a", "b"])
def test_no_replace_and_one_of_several_names_that_differs(
    tmp_path: Path, transfer_of: TransferOf, differing: str
) -> None:
    tree = sample()
    for path in (b"t/a", b"t/b"):
        tree.add(path, b"content", hard_link_group=1)
    (tmp_path / "t").mkdir()
    for name in "ab":
        (tmp_path / "t" / name).write_bytes(b"another" if name == differing else b"content")
        os.utime(tmp_path / "t" / name, ns=(MTIME, MTIME + (name == differing)))
    tree.unchecked = {1} if differing == "b" else set()
    transfer = transfer_of(tree, replace=False)
    transfer.offer()
    told = transfer.withdraw_declined()
    transfer.finish()
    reason = "it exists, and --no-replace forbids replacing it"
    assert told | transfer.declined() == {f"t/{differing}": (m.SkipKind.EXISTING, reason)}
    assert (tmp_path / "t" / differing).read_bytes() == b"another"


@pytest.fixture
def rival(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have another process put a file under a name, once, right after nothing was found under it."""

    def put(name: str) -> None:
        real = Locations.check

        def check(self: Locations, entry: m.Entry, place: Location) -> None:
            real(self, entry, place)
            if entry.path == name.encode() and place.there is None:
                monkeypatch.setattr(Locations, "check", real)
                (tmp_path / name).write_bytes(b"another")

        monkeypatch.setattr(Locations, "check", check)

    return put


def without(monkeypatch: pytest.MonkeyPatch, *calls: str) -> None:
    """Have a file system that can't do these calls."""

    def fail(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    if "link" in calls:
        monkeypatch.setattr(os, "link", fail)
    if "renameat2" in calls:
        monkeypatch.setattr(final_name, "_renameat2", None)


@pytest.mark.parametrize("unable", [(), ("link",), ("link", "renameat2")], ids=["able", "no links", "no renameat2"])
def test_no_replace_and_something_that_appears_where_a_symlink_goes(
    tmp_path: Path,
    transfer_of: TransferOf,
    rival: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    unable: tuple[str, ...],
) -> None:
    without(monkeypatch, *unable)
    tree = sample()
    tree.symlink(b"t/link", b"target")
    tree.symlink(b"t/other", b"target")
    rival("t/link")
    transfer = transfer_of(tree, replace=False)
    transfer.move()
    reason = "it exists by now, and --no-replace forbids replacing it"
    assert transfer.declined() == {"t/link": (m.SkipKind.EXISTING, reason)}
    assert (tmp_path / "t/link").read_bytes() == b"another"
    (tmp_path / "t/link").unlink()
    transfer_of(tree, replace=False).move()
    for name in ("link", "other"):
        path = tmp_path / "t" / name
        assert (os.readlink(path), path.lstat().st_mtime_ns) == ("target", tree.entries[1].mtime_ns)


def test_no_replace_and_something_that_appears_where_a_hard_link_goes(
    tmp_path: Path, transfer_of: TransferOf, rival: Callable[[str], None]
) -> None:
    tree = sample()
    tree.add(b"t/a", b"content", hard_link_group=1)
    tree.add(b"t/b", b"content", hard_link_group=1)
    rival("t/b")
    transfer = transfer_of(tree, replace=False)
    transfer.offer()
    transfer.send_all()
    transfer.finish()
    reason = "it exists by now, and --no-replace forbids replacing it"
    assert transfer.declined() == {"t/b": (m.SkipKind.EXISTING, reason)}
    assert (tmp_path / "t/b").read_bytes() == b"another"


# ----------------------------------------------------------------------------------------------------------- hard links


def test_hard_links_that_are_there_stay(tmp_path: Path, transfer_of: TransferOf) -> None:
    tree = sample()
    tree.add(b"t/a", b"content", hard_link_group=1)
    tree.add(b"t/b", b"content", hard_link_group=1)
    tree.add(b"t/c", b"content", hard_link_group=1)
    transfer_of(tree).move()
    inode = (tmp_path / "t/a").stat().st_ino
    (tmp_path / "t/c").unlink()
    (tmp_path / "t/c").write_bytes(b"content")
    tree.unchecked = {1}
    transfer_of(tree).move()
    assert [inode] * 3 == [(tmp_path / "t" / name).stat().st_ino for name in "abc"]
    tree.entries[1] = tree.entries[1]._replace(mtime_ns=MTIME + 1)
    tree.unchecked = set()
    transfer_of(tree).move()
    (new,) = {(tmp_path / "t" / name).stat().st_ino for name in "abc"}
    assert inode != new


def test_hard_link_groups_are_numbered_as_they_come(transfer_of: TransferOf) -> None:
    tree = sample()
    tree.add(b"t/a", b"a", hard_link_group=2)
    failure(Code.PROTOCOL, transfer_of(tree).offer)


# ------------------------------------------------------------------------------------------------------ what is refused


def names_there(path: Path) -> set[str]:
    return {str(each.relative_to(path)) for each in path.rglob("*")}


@pytest.mark.parametrize(
    "path",
    [b"/t", b"t/../x", b"t/./x", b"t//x", b"t/", b"..", b".", b"t/.filestreamer/x", b"t/\0", b"t/" + b"x" * 256],
)
def test_paths_that_may_not_be_written(tmp_path: Path, transfer_of: TransferOf, path: bytes) -> None:
    tree = sample()
    tree.add(path, b"x")
    failure(Code.PATH, transfer_of(tree).offer)
    assert {".filestreamer"} >= names_there(tmp_path) - {each for each in names_there(tmp_path) if "tree" in each}


def test_no_symlink_is_followed(tmp_path: Path, transfer_of: TransferOf) -> None:
    """Neither one that is there already, nor one of the same manifest, nor one that appears meanwhile."""
    outside = tmp_path / "outside"
    outside.mkdir()
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "t").symlink_to(outside)

    def declined(*paths: bytes) -> str:
        """Offer these, of which the last one is not made; return why."""
        tree = TreeSample(C)
        for path in paths:
            if path.endswith(b">"):
                tree.symlink(path[:-1], os.fsencode(outside))
            elif path.endswith(b"/"):
                tree.directory(path[:-1])
            else:
                tree.add(path, b"evil")
        transfer = TreeTransfer(inside, tree)
        try:
            transfer.offer()
            ((name, (kind, reason)),) = transfer.withdraw_declined().items()
            assert (name, kind) == (paths[-1].decode().rstrip("/"), m.SkipKind.DECLINED)
            transfer.finish()
        finally:
            transfer.close()
        return reason

    no_directory = "something that is no directory has this name"
    assert [
        declined(b"t/"),
        declined(b"t/f"),
        declined(b"t/d/f"),
        declined(b"u/", b"u/link>", b"u/link/f"),
        declined(b"u/", b"u/link>", b"u/link/"),
        declined(b"v/", b"v/empty>", b"v/empty/a/b/"),
    ] == [no_directory] * 6
    assert os.listdir(outside) == []


def test_things_that_are_in_the_way(tmp_path: Path, transfer_of: TransferOf) -> None:
    """A directory is never removed for a file; a file is never removed for a directory (proto/README.md, "Trees")."""
    (tmp_path / "t/dir").mkdir(parents=True)
    (tmp_path / "t/file").write_bytes(b"file")
    (tmp_path / "t/link").symlink_to("dir")
    no_directory = "something that is no directory has this name"
    for path, entry_type, why in (
        (b"t/dir", m.EntryType.FILE, "it is a directory"),
        (b"t/dir", m.EntryType.SYMLINK, "it is a directory"),
        (b"t/file", m.EntryType.DIRECTORY, no_directory),
        (b"t/link", m.EntryType.DIRECTORY, no_directory),
        (b"t/file/x", m.EntryType.FILE, no_directory),
        (b"t/file/x/y", m.EntryType.DIRECTORY, no_directory),
    ):
        tree = sample()
        tree.add(
            path, b"x" if entry_type is m.EntryType.FILE else b"", entry_type, link_target=b"x" * (entry_type == 3)
        )
        transfer = transfer_of(tree)
        transfer.offer()
        assert transfer.withdraw_declined() == {path.decode(): (m.SkipKind.DECLINED, why)}
        transfer.finish()
    assert (tmp_path / "t/dir").is_dir()
    assert (tmp_path / "t/file").read_bytes() == b"file"
    assert (tmp_path / "t/link").is_symlink()
