"""What a directory hands down, its new files have: although they are staged in another directory."""

import fcntl
import os
import stat
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import loops, trees
from tests.support.services import Pair, inject, make_file

LARGE = 3_000_000
"""Bytes of a file of several chunks."""
NO_COW, COMPRESSED = 0x800000, 0x4
GROUP = 12345
roots = pytest.mark.skipif(os.geteuid() != 0, reason="takes root")


def tree(pair: Pair) -> Path:
    """Make a tree with each kind of entry that needs bytes, or none."""
    made = pair.source / "t"
    (made / "there/new").mkdir(parents=True, exist_ok=True)
    for directory in (made / "there", made / "there/new"):
        make_file(directory / "small", 1000)
        make_file(directory / "large", LARGE)
        (directory / "empty").touch()
        with (directory / "sparse").open("wb") as file:
            file.truncate(1 << 20)
    return made


FILES = [f"{where}{name}" for where in ("", "new/") for name in ("small", "large", "empty", "sparse")]


def send(pair: Pair, source: Path, destination: Path, *options: str) -> None:
    receiver = pair.start("receiver", "--listen", "127.0.0.1:0", "--anonymous", "--once", "--directory", destination)
    pair.start("sender", source, "--to", pair.address(receiver), "--chunk-size", "1MiB", *options).succeeds()
    receiver.succeeds()


def flags(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        (found,) = struct.unpack("=Q", fcntl.ioctl(fd, 0x80086601, bytes(8)))
    finally:
        os.close(fd)
    return int(found)


def project(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        _, _, _, found, _ = struct.unpack("=IIIII8x", fcntl.ioctl(fd, 0x801C581F, bytes(28)))
    finally:
        os.close(fd)
    return int(found)


def set_project(path: Path, number: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, 0x401C5820, struct.pack("=IIIII8x", 0x200, 0, 0, number, 0))
    finally:
        os.close(fd)


def command(*words: str) -> Callable[[Path], None]:
    """Return what runs a command on a directory."""

    def run(directory: Path) -> None:
        subprocess.run([loops.tool(words[0]), *words[1:], str(directory)], check=True, capture_output=True)

    return run


@roots
@pytest.mark.parametrize(
    ("change", "of"),
    [
        (command("chattr", "+C"), lambda path: flags(path) & NO_COW),
        (command("chattr", "+c"), lambda path: (flags(path) & COMPRESSED, os.getxattr(path, "btrfs.compression"))),
        (
            lambda path: os.setxattr(path, "btrfs.compression", b"zstd"),
            lambda path: os.getxattr(path, "btrfs.compression"),
        ),
    ],
    ids=["no copy on write", "compression", "an algorithm"],
)
def test_flags_of_btrfs(
    pair: Pair, tmp_path: Path, change: Callable[[Path], None], of: Callable[[Path], object]
) -> None:
    with loops.mounted("btrfs", tmp_path) as disk:
        there = disk / "t/there"
        there.mkdir(parents=True)
        change(there)
        send(pair, tree(pair), disk)
        assert [of(there / file) for file in FILES] == [of(there)] * len(FILES)
        (disk / "plain").mkdir()
        send(pair, tree(pair), disk / "plain")
        assert {flags(disk / "plain/t/there" / file) & (NO_COW | COMPRESSED) for file in FILES} == {0}


@roots
def test_flags_of_all_of_a_destination(pair: Pair, tmp_path: Path) -> None:
    """Staging has them, too; a directory below that has them no more hands down nothing."""
    with loops.mounted("btrfs", tmp_path) as disk:
        command("chattr", "+C")(disk)
        (disk / "t/there").mkdir(parents=True)
        command("chattr", "-C")(disk / "t/there")
        source = tree(pair)
        make_file(source / "small", 100)
        send(pair, source, disk)
        assert flags(disk / "t/small") & NO_COW
        assert {flags(disk / "t/there" / file) & NO_COW for file in FILES} == {0}
        make_file(pair.source / "single", LARGE)
        command("chattr", "-C")(disk)
        (disk / ".filestreamer").mkdir(mode=0o700, exist_ok=True)
        command("chattr", "+C")(disk / ".filestreamer")
        send(pair, pair.source / "single", disk)
        assert not flags(disk / "single") & NO_COW


@roots
def test_projects_of_xfs(pair: Pair, tmp_path: Path) -> None:
    """XFS renames and links nothing into another project; staging may itself be in one."""
    with loops.mounted("xfs", tmp_path) as disk:
        for top in (disk / "in none", disk / "in another"):
            (top / "t/there").mkdir(parents=True)
            set_project(top / "t/there", 42)
        set_project(disk / "in another", 7)
        for top in (disk / "in none", disk / "in another"):
            send(pair, tree(pair), top)
            assert {project(top / "t/there" / file) for file in FILES} == {42}
        make_file(pair.source / "single", LARGE)
        send(pair, pair.source / "single", disk / "in another")
        assert project(disk / "in another/single") == 7


@roots
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_group_and_default_acl(pair: Pair, tmp_path: Path, kind: str) -> None:
    with loops.mounted(kind, tmp_path) as disk:
        there = disk / "t/there"
        there.mkdir(parents=True)
        os.chown(there, -1, GROUP)
        there.chmod(0o2775)
        command("setfacl", "-d", "-m", "u:1234:rw")(there)
        source = tree(pair)
        for file in FILES:
            (source / "there" / file).chmod(0o640)
        (source / "there/link").symlink_to("small")
        send(pair, source, disk)
        assert {(there / file).lstat().st_gid for file in [*FILES, "new", "link"]} == {GROUP}
        assert {stat.S_IMODE((there / file).stat().st_mode) for file in FILES} == {0o640}
        entry = struct.pack("<HHI", 2, 6, 1234)
        assert [entry in os.getxattr(there / file, "system.posix_acl_access") for file in FILES] == [True] * len(FILES)
        assert stat.S_IMODE((there / "new").stat().st_mode) & 0o7000 == 0o2000
        for file in FILES:
            os.utime(source / "there" / file, ns=(0, 0))
        send(pair, source, disk)
        assert {(there / file).stat().st_gid for file in FILES} == {GROUP}


@roots
def test_a_receiver_that_is_not_in_the_group(pair: Pair) -> None:
    """The kernel takes setgid away where who may not have the group changes a mode: the directories keep it."""
    there = pair.destination / "t/there"
    there.mkdir(parents=True)
    os.chown(there, 0, GROUP)
    there.chmod(0o2770)
    source = tree(pair)
    (source / "there/new").chmod(0o750)
    without = "-fsetid,-chown,-fowner"
    under = (loops.tool("setpriv"), "--clear-groups", f"--bounding-set={without}", f"--inh-caps={without}", "--")
    receiver = pair.start(
        "receiver", "--listen", "127.0.0.1:0", "--anonymous", "--once", "--directory", pair.destination, under=under
    )
    sent = pair.start("sender", source, "--to", pair.address(receiver)).succeeds()
    receiver.succeeds()
    assert stat.S_IMODE(there.stat().st_mode) == 0o2770
    assert stat.S_IMODE((there / "new").stat().st_mode) == 0o2750
    assert {(there / file).stat().st_gid for file in FILES} == {GROUP}
    assert ["setgid" in warning for warning in sent["warnings"]] == [True]


@roots
@pytest.mark.parametrize("mode", [0o2570, 0o2070])
def test_a_directory_that_is_closed_to_a_receiver_that_is_not_in_its_group(pair: Pair, mode: int) -> None:
    """To let its owner in would cost its setgid bit: what goes into it is declined, and all else arrives."""
    there = pair.destination / "t/there"
    there.mkdir(parents=True)
    os.chown(there, 0, GROUP)
    there.chmod(mode)
    source = tree(pair)
    trees.write(source / "z", b"z")
    without = "-fsetid,-chown,-fowner,-dac_override,-dac_read_search"
    under = (loops.tool("setpriv"), "--clear-groups", f"--bounding-set={without}", f"--inh-caps={without}", "--")
    receiver = pair.start("receiver", "--listen", "127.0.0.1:0", "--directory", pair.destination, under=under)
    asking = pair.sender(source, pair.address(receiver), "--dry-run")
    assert asking.wait() == 5, "a dry run knows it"
    assert "declined" in asking.stdout
    sender = pair.sender(source, pair.address(receiver))
    assert sender.wait() == 5
    assert set(sender.result["skipped_kinds"]) == {"declined"}
    assert stat.S_IMODE(there.stat().st_mode) == mode
    assert os.listdir(there) == []
    assert (pair.destination / "t/z").read_bytes() == b"z"


def test_a_group_of_the_user(pair: Pair) -> None:
    """Without root: what the destination hands down, and a directory below it does not."""
    groups = [group for group in os.getgroups() if group != os.getegid()]
    there = pair.destination / "t/there"
    there.mkdir(parents=True)
    if groups:
        os.chown(there, -1, groups[0])
    there.chmod(0o2775)
    send(pair, tree(pair), pair.destination)
    assert {(there / file).stat().st_gid for file in FILES} == {there.stat().st_gid}
    assert [path.name for path in pair.destination.iterdir()] == ["t"]


@roots
def test_a_killed_receiver_leaves_no_name_in_such_a_directory(pair: Pair) -> None:
    """A symlink that replaces another is made there, to have the group: a run after that removes what is left of it."""
    there = pair.destination / "t/there"
    there.mkdir(parents=True)
    os.chown(there, -1, GROUP)
    there.chmod(0o2755)
    (there / "link").symlink_to("old")
    (pair.source / "t/there").mkdir(parents=True)
    (pair.source / "t/there/link").symlink_to("new")
    receiver = pair.receiver(env=inject("symlink", "after", nth=2))
    address = pair.address(receiver)
    sender = pair.sender(pair.source / "t", address)
    assert receiver.wait() == 137, "the step was never reached"
    receiver = pair.receiver("--once", listen=address)
    sender.succeeds()
    receiver.succeeds()
    assert os.listdir(there) == ["link"]
    assert (os.readlink(there / "link"), (there / "link").lstat().st_gid) == ("new", GROUP)
