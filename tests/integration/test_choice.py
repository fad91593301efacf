"""What a sender chooses of a tree, between real services: file systems, lists of paths, what links lead to."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import trees
from tests.support.disks import disk
from tests.support.proxy import Proxy, Stall
from tests.support.services import UNIT, Pair, Service
from tests.support.waiting import until


def send(pair: Pair, *args: object, to: str | None = None) -> tuple[Service, Service]:
    """Send to a receiver that takes one transfer; return the sender and the receiver."""
    receiver = pair.receiver("--once")
    sender = pair.start("sender", *args, "--to", to or pair.address(receiver))
    return sender, receiver


def arrived(pair: Pair) -> list[str]:
    """Return every path in the destination, relative to it."""
    found = [str(path.relative_to(pair.destination)) for path in pair.destination.rglob("*")]
    return sorted(path for path in found if not path.startswith(".filestreamer"))


@contextlib.contextmanager
def bound(what: Path, where: Path) -> Iterator[None]:
    """Mount a file or a directory on another one."""
    subprocess.run(["mount", "--bind", what, where], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", where], check=True)


# ------------------------------------------------------------------------------------------------------- file systems


def test_one_file_system(pair: Pair) -> None:
    """Another file system, a directory of the same one that is mounted again, and a file that is mounted on another."""
    source = pair.source
    for name in ("top/f", "top/d/x", "top/z/y", "elsewhere/e"):
        trees.write(source / name, name.encode())
    for name in ("top/a", "top/d/m", "top/same"):
        (source / name).mkdir()
    trees.write(source / "top/file", b"")
    with (
        disk(source / "top/a", 1 << 20) as first,
        disk(source / "top/d/m", 1 << 20) as second,
        bound(source / "elsewhere", source / "top/same"),
        bound(source / "elsewhere/e", source / "top/file"),
    ):
        for mounted in (first, second):
            mounted.chmod(0o751)
            trees.write(mounted / "sub/other", b"other")
        sender, receiver = send(pair, source / "top", "--one-file-system")
        result = sender.succeeds()
        received = receiver.succeeds()
    assert arrived(pair) == ["top", "top/a", "top/d", "top/d/m", "top/d/x", "top/f", "top/same", "top/z", "top/z/y"]
    assert (pair.destination / "top/a").stat().st_mode & 0o777 == 0o751
    assert result["warnings"] == [
        f"--one-file-system leaves out what is mounted below the named paths, such as {source}/top/a"
    ]
    assert len(sender.events("notice")) == 1
    assert result["skipped_files"] == received["skipped_files"] == 0


def test_each_named_path_has_a_file_system_of_its_own(pair: Pair) -> None:
    trees.write(pair.source / "a/f", b"f")
    (pair.source / "a/m").mkdir()
    with disk(pair.source / "a/m", 1 << 20) as mounted:
        trees.write(mounted / "g", b"g")
        sender, _ = send(pair, pair.source / "a", mounted, "--one-file-system")
        sender.succeeds()
    assert arrived(pair) == ["a", "a/f", "a/m", "m", "m/g"]


def test_mounts_that_are_not_wanted_are_not_told(pair: Pair) -> None:
    trees.write(pair.source / "a/f", b"f")
    (pair.source / "a/m").mkdir()
    with disk(pair.source / "a/m", 1 << 20) as mounted:
        trees.write(mounted / "f", b"g")
        sender, _ = send(pair, f"{pair.source}/a/", "--one-file-system", "--exclude", "m/")
        assert sender.succeeds()["warnings"] == []
        assert arrived(pair) == ["f"]
        sender, _ = send(pair, f"{pair.source}/a/", "--one-file-system", "--include", "f")
        assert sender.succeeds()["warnings"]
    assert arrived(pair) == ["f"]


def test_without_the_flag_mounts_are_sent(pair: Pair) -> None:
    (pair.source / "a/m").mkdir(parents=True)
    with disk(pair.source / "a/m", 1 << 20) as mounted:
        trees.write(mounted / "f", b"g")
        send(pair, f"{pair.source}/a/")[0].succeeds()
    assert arrived(pair) == ["m", "m/f"]


# ------------------------------------------------------------------------------------------------------ lists of paths


@pytest.fixture
def tree(pair: Pair) -> Path:
    """Return a directory with a few files."""
    for name in ("a/1", "a/2", "b/c/3", "b/4", "5"):
        trees.write(pair.source / "tree" / name, name.encode() * 1000)
    (pair.source / "tree/b").chmod(0o750)
    os.utime(pair.source / "tree/b", (1_000_000_000, 1_000_000_000))
    return pair.source / "tree"


def test_files_from_a_file(pair: Pair, tree: Path) -> None:
    """Directories on the way have their attributes; what is missing is told, and everything else arrives."""
    (pair.source / "list").write_bytes(b"b/c/3\n./a\nnone\nb/c/3\n")
    sender, receiver = send(pair, f"{tree}/", "--files-from", pair.source / "list")
    assert [(each["kind"], each["path"]) for each in sender.falls_short()["skipped"]] == [("vanished", f"{tree}/none")]
    receiver.falls_short()
    assert arrived(pair) == ["a", "a/1", "a/2", "b", "b/c", "b/c/3"]
    for name in ("b", "b/c/3"):
        ours, theirs = (tree / name).stat(), (pair.destination / name).stat()
        assert (ours.st_mode, ours.st_mtime_ns) == (theirs.st_mode, theirs.st_mtime_ns)
    sender, _ = send(pair, f"{tree}/", "--files-from", pair.source / "list", "--tolerate", "vanished")
    assert sender.succeeds()["unchecked_bytes"] > 0


def test_files_from_standard_input(pair: Pair, tree: Path) -> None:
    """As `find -print0` writes it, in no order."""
    reader, writer = os.pipe()
    with open(reader, "rb") as stdin:
        receiver = pair.receiver("--once")
        sender = pair.start("sender", tree, "--files-from", "-", "--to", pair.address(receiver), stdin=stdin)
    with open(writer, "wb") as file:
        subprocess.run(["find", tree, "-type", "f", "-print0"], stdout=file, check=True)
    sender.succeeds()
    receiver.succeeds()
    assert arrived(pair) == sorted(
        f"tree{name and '/'}{name}" for name in ("", "5", "a", "a/1", "a/2", "b", "b/4", "b/c", "b/c/3")
    )


def test_a_signal_while_the_list_is_awaited(pair: Pair, tree: Path) -> None:
    reader, writer = os.pipe()
    with open(reader, "rb") as stdin, open(writer, "wb", buffering=0) as file:
        sender = pair.start("sender", tree, "--files-from", "-", "--to", "127.0.0.1:1", stdin=stdin)
        file.write(b"a\n")
        until(lambda: not _is_readable(reader), "the sender reads the list")
        sender.process.terminate()
        assert sender.wait() == 143
    assert sender.result["status"] == "interrupted"


def _is_readable(fd: int) -> bool:
    import select

    return bool(select.select([fd], [], [], 0)[0])


def test_a_list_from_a_pipe_is_read_once(pair: Pair, tree: Path) -> None:
    """Also where the transfer begins again, as the receiver has forgotten it."""
    for number in range(3000):
        trees.write(tree / f"many/{number}", b"x" * 2000)
    receiver = pair.receiver()
    address = pair.address(receiver)
    # The rest of the bytes does not come before the receiver is killed, however slow this machine is.
    with Proxy(address, [Stall(on="data *", at=3_000_000, seconds=10 * UNIT)]) as proxy:
        reader, writer = os.pipe()
        with open(reader, "rb") as stdin, open(writer, "wb") as file:
            file.write(b"many\n")
            file.close()
            args = ("--files-from", "-", "--to", proxy.address, "--connections", 1)
            sender = pair.start("sender", f"{tree}/", *args, stdin=stdin)
        until(lambda: len(list(pair.destination.glob("many/*"))) > 500, "some parts are in place")
        receiver.end()
        pair.receiver("--once", listen=address)
        sender.succeeds()
    assert sender.events("transfer_begins_again")
    assert len(arrived(pair)) == 3001


@pytest.mark.parametrize(
    ("line", "message"),
    [("../x", "component .."), ("/etc/passwd", "not below INPUT_FILE"), ("a/../../x", "component ..")],
)
def test_a_list_that_leads_out_of_the_tree(pair: Pair, tree: Path, line: str, message: str) -> None:
    (pair.source / "list").write_text(f"a/1\n{line}\n")
    sender, receiver = send(pair, tree, "--files-from", pair.source / "list")
    error = sender.fails(2, "usage")
    assert "list, line 2" in error
    assert message in error
    assert receiver.poll() is None
    assert arrived(pair) == []


@pytest.mark.parametrize(
    "args",
    [("{tree}", "{tree}/a"), ("-",), ("{tree}/5",)],
    ids=["two paths", "standard input", "a file"],
)
def test_what_a_list_does_not_go_with(pair: Pair, tree: Path, args: tuple[str, ...]) -> None:
    (pair.source / "list").write_text("a\n")
    given = [arg.format(tree=tree) for arg in args]
    sender = pair.start("sender", *given, "--files-from", pair.source / "list", "--to", "127.0.0.1:1")
    assert "--files-from" in sender.fails(2, "usage")


# --------------------------------------------------------------------------------------------------- what links lead to


def test_dereference(pair: Pair) -> None:
    trees.write(pair.source / "outside/x", b"x" * 100_000)
    trees.write(pair.source / "tree/f", b"f")
    for name, to in (("file", "../outside/x"), ("directory", "../outside"), ("loop", "."), ("gone", "nowhere")):
        (pair.source / "tree" / name).symlink_to(to)
    sender, _ = send(pair, f"{pair.source}/tree/", "--dereference")
    skipped = sender.falls_short()["skipped"]
    assert sorted((each["kind"], os.path.basename(each["path"])) for each in skipped) == [
        ("unreadable", "gone"),
        ("unreadable", "loop"),
    ]
    assert arrived(pair) == ["directory", "directory/x", "f", "file"]
    assert not any(path.is_symlink() for path in pair.destination.rglob("*"))
    assert (pair.destination / "file").read_bytes() == b"x" * 100_000
    sender, _ = send(pair, f"{pair.source}/tree/", "--dereference")
    assert sender.falls_short()["sent_bytes"] == 0


def test_dereference_stays_on_one_file_system(pair: Pair) -> None:
    """As with rsync: a directory that a link leads to elsewhere is empty, a file is sent."""
    (pair.source / "tree").mkdir()
    with disk(pair.source / "disk", 1 << 20) as mounted:
        trees.write(mounted / "d/x", b"x")
        (pair.source / "tree/d").symlink_to(mounted / "d")
        (pair.source / "tree/x").symlink_to(mounted / "d/x")
        sender, _ = send(pair, f"{pair.source}/tree/", "--dereference", "--one-file-system")
        assert len(sender.succeeds()["warnings"]) == 1
    assert arrived(pair) == ["d", "x"]
