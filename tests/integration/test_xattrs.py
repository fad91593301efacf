"""Extended attributes, ACLs and capabilities: kept with --xattrs, where the receiver may set them; else told."""

import os
import struct
from pathlib import Path
from typing import Any

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.digests import root_digest
from filestreamer.wire.limits import KIB
from filestreamer.wire.xattr_parts import split
from tests.integration.test_trees import unprivileged
from tests.support import loops, trees
from tests.support.peer import RawSender
from tests.support.services import Pair

IS_ROOT = os.geteuid() == 0
roots = pytest.mark.skipif(not IS_ROOT, reason="takes root")
CAPABILITY = struct.pack("<IIIII", 0x02000001, 0x400, 0, 0, 0)
NOBODY = 0xFFFFFFFF


def acl(mode: int, *users: int) -> bytes:
    """Return an ACL in which some users have what the owner has."""
    owner, group, other = mode >> 6 & 7, mode >> 3 & 7, mode & 7
    entries = [(1, owner, NOBODY), *((2, owner, user) for user in users), (4, group, NOBODY)]
    entries += [(0x10, 7, NOBODY), (0x20, other, NOBODY)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def put(path: Path, **values: bytes) -> None:
    for name, value in values.items():
        try:
            os.setxattr(path, f"user.{name}", value)
        except OSError:
            pytest.skip("this file system keeps no extended attributes")


def values(path: Path) -> dict[str, bytes]:
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False)
        if name != "security.selinux" and not name.startswith("trusted.SGI_")  # as XFS shows its ACLs
    }


def look(top: Path) -> dict[str, dict[str, bytes]]:
    return {str(path.relative_to(top)): values(path) for path in sorted([top, *top.rglob("*")])}


def source(pair: Pair) -> Path:
    """Make a tree with attributes of each kind of entry."""
    top = pair.source / "t"
    (top / "d/deep").mkdir(parents=True)
    for name in ("empty", "d/small", "d/large", "d/deep/none", "hole"):
        (top / name).touch()
    (top / "d/small").write_bytes(b"small")
    (top / "d/large").write_bytes(bytes(range(256)) * 400)
    (top / "d/deep/none").write_bytes(b"none")
    os.truncate(top / "hole", 1 << 20)
    os.link(top / "d/small", top / "zz another name")
    (top / "link").symlink_to("d/small")
    for name in ("empty", "d", "d/small", "d/large", "hole", "."):
        put(top / name, comment=name.encode(), empty=b"", binary=bytes(range(256)))
    os.setxattr(top / "d/small", "system.posix_acl_access", acl(0o640, 1234))
    os.setxattr(top / "d", "system.posix_acl_access", acl(0o750, 1234))
    os.setxattr(top / "d", "system.posix_acl_default", acl(0o750, 4321))
    return top


def send(pair: Pair, path: Path, *options: object, receiver: tuple[object, ...] = ()) -> dict[str, Any]:
    there = pair.receiver("--once", *receiver)
    sent = pair.start("sender", path, *options, "--to", pair.address(there), "--chunk-size", "10KiB").succeeds()
    assert sent["skipped_files"] == there.succeeds()["skipped_files"] == 0
    return sent


def test_all_of_a_tree(pair: Pair) -> None:
    top = source(pair)
    sent = send(pair, top, "--xattrs")
    assert look(top) == look(pair.destination / "t")
    assert sent["warnings"] == []
    assert {path.name: path.lstat().st_mode for path in top.rglob("*")} == {
        path.name: path.lstat().st_mode for path in (pair.destination / "t").rglob("*")
    }
    assert (pair.destination / "t/d").stat().st_mtime_ns == (top / "d").stat().st_mtime_ns


def test_a_second_run_corrects_what_is_there(pair: Pair) -> None:
    top = source(pair)
    send(pair, top)
    there = pair.destination / "t"
    assert look(there)["d/small"] == {}
    put(there / "d/small", other=b"removed", comment=b"corrected")
    put(there / "d/deep", other=b"removed")
    put(there / "d/deep/none", other=b"removed")
    sent = send(pair, top, "--xattrs")
    assert look(top) == look(there)
    assert (sent["unchecked_bytes"], sent["sent_bytes"]) == (sent["bytes"], 0)
    put(there / "d/small", other=b"stays")
    send(pair, top)
    assert look(there)["d/small"]["user.other"] == b"stays"


def test_files_and_directories_that_nobody_may_write(pair: Pair) -> None:
    """Their owner may set no attribute `user.*` of them, either, as long as they have their modes."""
    top = source(pair)
    modes = {"": 0o500, "d": 0o555, "empty": 0o444, "hole": 0o400, "d/small": 0o400, "d/large": 0o444}
    receiver = pair.start(
        *("receiver", "--listen", "127.0.0.1:0", "--directory", pair.destination), under=unprivileged()
    )
    address = pair.address(receiver)
    for value in (b"one", b"other"):
        for name in modes:
            (top / name).chmod(0o700)
            os.setxattr(top / name, "user.comment", value)
        os.removexattr(top / "d/large", "user.comment")
        for name, mode in modes.items():
            (top / name).chmod(mode)
        pair.sender(top, address, "--xattrs", "--chunk-size", "10KiB").succeeds()
        assert trees.differences(top, pair.destination / "t") == []
        assert look(pair.destination / "t") == look(top)


def test_a_single_file(pair: Pair) -> None:
    file = source(pair) / "d/small"
    send(pair, file, "--xattrs")
    assert values(pair.destination / "small") == values(file)
    send(pair, file, "--xattrs", "--checksum")
    assert values(pair.destination / "small") == values(file)


def test_without_the_flag_it_is_told_once(pair: Pair) -> None:
    top = source(pair)
    sent = send(pair, top)
    assert ["extended attributes" in warning for warning in sent["warnings"]] == [True]
    sent = send(pair, top / "d/small")
    assert len(sent["warnings"]) == 1
    for path in (top / "d/deep", top / "d/deep/none"):
        assert send(pair, path)["warnings"] == []


def test_as_large_as_they_may_be(pair: Pair, tmp_path: Path) -> None:
    """More than a frame: each of them is an entry whose attributes go on in further parts."""
    with loops.mounted("xfs", tmp_path) as disk:
        top = disk / "t"
        top.mkdir()
        for number in range(5):
            (top / f"f{number}").write_bytes(b"x" * number)
            put(top / f"f{number}", **{f"x{at}": bytes([number]) * (60 * KIB + at) for at in range(16)})
        (top / "d").mkdir()
        put(top / "d", large=bytes(64 * KIB))
        (top / "z").write_bytes(b"z")
        put(top / "z", small=b"1", large=b"2" * (64 * KIB))
        pair.destination = disk / "there"
        pair.destination.mkdir()
        send(pair, top, "--xattrs")
        assert look(top) == look(pair.destination / "t")
        send(pair, top / "z", "--xattrs")
        assert values(pair.destination / "z") == values(top / "z")


def test_more_than_fits_is_told_and_the_rest_is_kept(pair: Pair, tmp_path: Path) -> None:
    with loops.mounted("xfs", tmp_path) as disk:
        file = disk / "f"
        file.write_bytes(b"x")
        put(file, **{f"x{at:02}": bytes(64 * KIB) for at in range(17)})
        pair.destination = disk / "there"
        pair.destination.mkdir()
        there = pair.receiver("--once")
        sent = pair.start("sender", disk / "f", "--to", pair.address(there), "--xattrs").falls_short()
        there.falls_short()
        (skipped,) = sent["skipped"]
        assert (skipped["kind"], skipped["path"]) == ("attribute", str(file))
        assert "user.x15" in skipped["reason"]
        assert values(pair.destination / "f") == {f"user.x{at:02}": bytes(64 * KIB) for at in range(15)}


def test_what_the_destination_does_not_keep_is_told(pair: Pair, tmp_path: Path) -> None:
    """ext4 keeps a block of attributes for each file: everything else arrives."""
    with loops.mounted("xfs", tmp_path) as large, loops.mounted("ext4", tmp_path) as disk:
        pair.source, pair.destination = large, disk
        top = source(pair)
        put(top / "d/large", **{f"x{at}": bytes(3000) for at in range(2)})
        there = pair.receiver("--once")
        sent = pair.start("sender", top, "--to", pair.address(there), "--xattrs").falls_short()
        received = there.falls_short()
        assert [each["kind"] for each in (*sent["skipped"], *received["skipped"])] == ["attribute", "attribute"]
        assert sent["skipped"][0]["path"].endswith("d/large")
        assert "user.x" in sent["skipped"][0]["reason"]
        before, after = look(top), look(disk / "t")
        del before["d/large"], after["d/large"]
        assert before == after
        assert (disk / "t/d/large").read_bytes() == (top / "d/large").read_bytes()


@roots
def test_what_is_privileged_takes_the_flag_of_the_receiver(pair: Pair) -> None:
    top = source(pair)
    os.chown(top / "d/small", 1234, 5)
    os.setxattr(top / "d/small", "security.capability", CAPABILITY)
    os.setxattr(top / "d", "trusted.x", b"1")
    os.setxattr(top / "link", "trusted.x", b"2", follow_symlinks=False)
    there = pair.receiver("--once")
    sent = pair.start("sender", top, "--to", pair.address(there), "--xattrs", "--owner").falls_short()
    there.falls_short()
    assert {Path(skipped["path"]).name for skipped in sent["skipped"]} == {"small", "d", "link"}
    found = look(pair.destination / "t")
    assert "security.capability" not in found["d/small"]
    assert found["link"] == {}
    send(pair, top, "--xattrs", "--owner", receiver=("--allow-privileged",))
    assert look(top) == look(pair.destination / "t")
    assert (pair.destination / "t/d/small").stat().st_uid == 1234


@roots
def test_setuid_files_of_a_system(pair: Pair) -> None:
    file = pair.file("su", 100_000)
    os.chown(file, 1234, 5)
    file.chmod(0o6755)
    for sent_bytes in (100_000, 0):
        sent = send(pair, file.parent, "--owner", receiver=("--allow-privileged",))
        there = (pair.destination / "source/su").stat()
        assert (there.st_mode & 0o7777, there.st_uid, there.st_gid) == (0o6755, 1234, 5)
        assert sent["sent_bytes"] == sent_bytes
    send(pair, file.parent)
    assert (pair.destination / "source/su").stat().st_mode & 0o7777 == 0o6755


def test_attributes_that_control_was_lost_among(pair: Pair, tmp_path: Path) -> None:
    """The sender comes again, and lists the part from its beginning: nothing is doubled."""
    value = bytes(range(256)) * 100
    entry = m.Entry(b"d", m.EntryType.DIRECTORY, 0, 0o755, 0, xattrs=(m.Xattr(b"user.large", value),))
    begun, rest = split(m.ManifestPart(0, (entry,), True))
    offer = m.Offer(4096, None, False, 0, xattrs=True)
    with loops.mounted("xfs", tmp_path) as disk:
        pair.destination = disk
        receiver = pair.receiver("--once")
        with RawSender(pair.address(receiver)) as peer:
            peer.control().send(offer, begun)
            again = peer.control()
            again.send(offer, begun, rest, m.Finish(0, root_digest([])))
            again.expect(m.Complete)
        receiver.succeeds()
        assert values(disk / "d") == {"user.large": value}
