"""What people have under a destination: other mounts, a directory that is replaced, no locks, few descriptors."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_trees import unprivileged
from tests.support import trees
from tests.support.disks import disk, image, mounted
from tests.support.services import HANG, Pair, Service, inject, same

MIB = 1 << 20


def a_tree(pair: Pair) -> Path:
    """Make a tree with files of all kinds in its directory b."""
    root = pair.source / "s"
    (root / "b/c").mkdir(parents=True)
    (root / "a").write_text("a")
    (root / "z").write_text("z")
    shutil.move(pair.file("large", 3 * MIB), root / "b/large")
    for number in range(20):
        (root / f"b/c/{number}").write_text(str(number))
    (root / "b/empty").touch()
    (root / "b/link").symlink_to("nowhere")
    os.link(root / "b/large", root / "b/c/hard")
    return root


def left_behind(destination: Path) -> list[Path]:
    return list(destination.rglob(".filestreamer"))


def arrives(pair: Pair, receiver: Service, root: Path) -> None:
    """Send a tree twice: it arrives, nothing is left, and the second run moves nothing."""
    address = pair.address(receiver)
    result = pair.sender(root, address, "--chunk-size", "256KiB").succeeds()
    assert result["sent_bytes"] == result["bytes"]
    assert trees.differences(root, pair.destination / "s") == []
    assert left_behind(pair.destination) == []
    assert pair.sender(root, address, "--chunk-size", "256KiB").succeeds()["sent_bytes"] == 0


def test_a_bind_mount_below_the_destination(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    root = a_tree(pair)
    with mounted(pair.destination / "s/b", "--bind", tmp_path / "other"):
        arrives(pair, pair.receiver(), root)
        assert (tmp_path / "other/large").exists()


@pytest.mark.parametrize("closed", ["b", "b/c"])
@pytest.mark.parametrize("mode", [0o300, 0o600])
def test_a_mount_that_the_modes_of_the_source_close_to_the_receiver(
    pair: Pair, tmp_path: Path, mode: int, closed: str
) -> None:
    """Directories get their modes when all is in place: the mount is where it was."""
    (tmp_path / "other").mkdir()
    root = a_tree(pair)
    (root / "b/c/hard").unlink()  # no hard link leads over a mount
    (root / closed).chmod(mode)
    with mounted(pair.destination / "s/b/c", "--bind", tmp_path / "other"):
        receiver = pair.start(
            "receiver", "--listen", "127.0.0.1:0", "--directory", pair.destination, under=unprivileged()
        )
        pair.sender(root, pair.address(receiver)).succeeds()
        assert trees.differences(root, pair.destination / "s") == []


def test_a_disk_below_the_destination(pair: Pair) -> None:
    root = a_tree(pair)
    with disk(pair.destination / "s/b", 16 * MIB), disk(pair.destination / "s/b/c", 16 * MIB):
        shutil.rmtree(root / "b/c")  # hard links can't lead from one disk to the other
        (root / "b/c").mkdir()
        (root / "b/c/f").write_text("on the third disk")
        arrives(pair, pair.receiver(), root)


def test_a_subvolume_below_the_destination(pair: Pair) -> None:
    root = a_tree(pair)
    with image(pair.destination / "m", "btrfs", 120 * MIB) as top:
        (top / "d/s").mkdir(parents=True)
        subprocess.run(["btrfs", "subvolume", "create", str(top / "d/s/b")], check=True, capture_output=True)
        pair.destination = top / "d"
        receiver = pair.receiver()
        arrives(pair, receiver, root)
        receiver.signal(signal.SIGTERM)
        receiver.wait()


def test_a_project_below_the_destination(pair: Pair) -> None:
    """Its files get the project, as those that are made there do."""
    root = a_tree(pair)
    with image(pair.destination / "m", "xfs", 320 * MIB) as top:
        (top / "d/s/b").mkdir(parents=True)
        subprocess.run(["xfs_io", "-r", "-c", "chproj 7", "-c", "chattr +P", str(top / "d/s/b")], check=True)
        pair.destination = top / "d"
        receiver = pair.receiver()
        arrives(pair, receiver, root)
        for name, project in (("b/large", 7), ("b/c/1", 7), ("b/empty", 7), ("a", 0)):
            told = subprocess.run(
                ["xfs_io", "-r", "-c", "lsproj", str(top / "d/s" / name)], check=True, capture_output=True, text=True
            )
            assert told.stdout.split() == ["projid", "=", str(project)], name
        receiver.signal(signal.SIGTERM)
        receiver.wait()


def test_what_is_left_on_another_disk_is_resumed(pair: Pair) -> None:
    """The receiver is killed; the next one says what it found there, and the file goes on."""
    root = a_tree(pair)
    with disk(pair.destination / "s/b", 16 * MIB):
        killing = inject("pwrite", "before", nth=10, path=".data")
        receiver = pair.receiver(env=killing)
        sender = pair.sender(root, pair.address(receiver), "--chunk-size", "256KiB")
        assert receiver.wait() == 128 + signal.SIGKILL
        sender.end()
        again = pair.receiver()
        assert again.wait_for("staging_found")["files"] == 1
        result = pair.sender(root, pair.address(again), "--chunk-size", "256KiB").succeeds()
        assert result["held_bytes"] > 0
        assert trees.differences(root, pair.destination / "s") == []
        assert left_behind(pair.destination) == []


@contextlib.contextmanager
def broken(mount_point: Path, tmp_path: Path) -> Iterator[None]:
    """Mount a file system that is shut down, as where a disk is gone: every call says EIO."""
    with image(tmp_path / "disk", "xfs", 320 * MIB) as top, mounted(mount_point, "--bind", top):
        subprocess.run(["xfs_io", "-x", "-c", "shutdown", str(top)], check=True)
        yield


def test_a_mount_that_is_broken_costs_what_lies_below_it(pair: Pair, tmp_path: Path) -> None:
    """So does one whose server or FUSE process is gone."""
    root = a_tree(pair)
    (root / "b/c/hard").unlink()  # no hard link leads over a mount
    with broken(pair.destination / "s/b/c", tmp_path):
        address = pair.address(pair.receiver())
        sender = pair.sender(root, address)
        assert sender.wait() == 5
        assert sender.result["skipped_kinds"] == {"declined": 21}
        assert all(each["path"].startswith(str(root / "b/c")) for each in sender.result["skipped"])
    assert trees.differences(root, pair.destination / "s", b"b/c") == ["too much: b'b/c'"]


def test_a_dry_run_of_a_mirror_onto_a_mount_that_is_broken(pair: Pair, tmp_path: Path) -> None:
    root = a_tree(pair)
    (root / "b/c/hard").unlink()
    with broken(pair.destination / "s/b/c", tmp_path):
        address = pair.address(pair.receiver("--allow-delete"))
        sender = pair.sender(root, address, "--delete", "--dry-run")
        assert sender.wait() == 5, sender.stderr
        assert sender.stdout.count("declined ") == 21


def test_a_mirror_keeps_a_mount_that_is_broken(pair: Pair, tmp_path: Path) -> None:
    root = a_tree(pair)
    for name in ("a/old", "z"):
        trees.write(pair.destination / "s/extra" / name, b"old")
    with broken(pair.destination / "s/extra/m", tmp_path):
        address = pair.address(pair.receiver("--allow-delete"))
        result = pair.sender(root, address, "--delete").succeeds()
        assert (result["deleted_files"], result["undeletable_files"]) == (3, 0)
        assert os.listdir(pair.destination / "s/extra") == ["m"]


# ------------------------------------------------------------------------------- the directory at the path is another


def test_the_directory_is_removed_and_made_again(pair: Pair) -> None:
    """While it is gone the reason is told; afterwards all is well again, for a file as for a tree."""
    receiver = pair.receiver()
    file, root, address = pair.file("f", 1000), a_tree(pair), pair.address(receiver)
    pair.sender(file, address).succeeds()
    shutil.rmtree(pair.destination)
    for what in (file, root):
        assert "No such file or directory" in pair.sender(what, address).fails(4, "destination")
    pair.destination.mkdir()
    pair.sender(file, address).succeeds()
    pair.sender(root, address).succeeds()
    assert same(file, pair.destination / "f")
    assert trees.differences(root, pair.destination / "s") == []


@pytest.mark.parametrize("is_tree", [False, True])
def test_the_directory_is_moved_during_a_transfer(pair: Pair, tmp_path: Path, is_tree: bool) -> None:
    """Complete would say that the files are at the path of the destination: so the transfer fails, and says why."""
    go_on = tmp_path / "go-on"
    # The first utime of a tree tries what the destination keeps of a time, before the transfer has started.
    hang = inject("utime", f"until:{go_on}", nth=2) if is_tree else inject("fsync", f"until:{go_on}")
    receiver = pair.receiver(env=hang)
    what = a_tree(pair) if is_tree else pair.file("f", 1000)
    sender = pair.sender(what, pair.address(receiver))
    receiver.wait_for("transfer_started")
    pair.destination.rename(tmp_path / "moved")
    pair.destination.mkdir()
    go_on.touch()
    assert "moved" in sender.fails(4, "destination")
    assert os.listdir(pair.destination) == []
    pair.sender(what, pair.address(receiver)).succeeds()
    assert (pair.destination / what.name).exists()


def test_a_mount_over_the_directory(pair: Pair) -> None:
    receiver = pair.receiver()
    file, address = pair.file("f", 1000), pair.address(receiver)
    with disk(pair.destination, 4 * MIB):
        pair.sender(file, address).succeeds()
        assert same(file, pair.destination / "f")
    assert not (pair.destination / "f").exists()
    pair.sender(file, address).succeeds()
    assert same(file, pair.destination / "f")


# ------------------------------------------------------------------------------------------ what the file system lacks


def test_a_file_system_without_locks(pair: Pair, tmp_path: Path) -> None:
    """Files stand for them, which is told once, and to each sender; none is left."""
    (tmp_path / "no").mkdir()
    (tmp_path / "no/sitecustomize.py").write_text(
        "import errno, fcntl, os\n"
        "def flock(fd, how):\n    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))\n"
        "fcntl.flock = flock\n"
    )
    receiver = pair.receiver(env={"PYTHONPATH": str(tmp_path / "no")})
    file, root, address = pair.file("f", 1000), a_tree(pair), pair.address(receiver)
    for source in (file, root):
        (warning,) = pair.sender(source, address).succeeds()["warnings"]
        assert "no locks" in warning
    assert "no locks" in receiver.events("destination_lacks")[0]["reason"]
    assert receiver.times("destination_lacks") == 1
    assert trees.differences(root, pair.destination / "s") == []
    receiver.wait_for_results(2)
    assert left_behind(pair.destination) == []


def test_a_boundary_that_only_the_rename_of_a_file_that_denies_its_owner_shows(pair: Pair) -> None:
    """It is copied with the mode that it has, although that does not let its own user read it."""
    root = pair.source / "s"
    trees.write(root / "f", os.urandom(MIB), mode=0)
    args = ("--listen", "127.0.0.1:0", "--directory", pair.destination)
    receiver = pair.start("receiver", *args, under=unprivileged(), env=inject("rename", "EXDEV", path=".data"))
    pair.sender(root, pair.address(receiver), "--chunk-size", "256KiB").succeeds()
    assert trees.differences(root, pair.destination / "s") == []
    assert left_behind(pair.destination) == []


@pytest.mark.parametrize("call", ["fsync"])
@pytest.mark.parametrize("error", ["EINVAL", "EBADF"])
def test_a_file_system_that_syncs_no_directories(pair: Pair, call: str, error: str) -> None:
    """The second sync of a single file is that of its directory."""
    receiver = pair.receiver(env=inject(call, error, nth=2))
    file = pair.file("f", 1000)
    pair.sender(file, pair.address(receiver)).succeeds()
    assert same(file, pair.destination / "f")


@pytest.mark.parametrize("kind", ["file", "empty file", "symlink", "hard link"])
def test_no_inodes_left(pair: Pair, kind: str) -> None:
    """Both sides name what is missing: there is free space. Where links are inodes, as on tmpfs, they count, too."""
    root = pair.source / "s"
    root.mkdir()
    (root / "first").write_text("x")
    for number in range(100):
        if kind == "symlink":
            (root / str(number)).symlink_to("x")
        elif kind == "hard link":
            os.link(root / "first", root / str(number))
        else:
            (root / str(number)).write_text("x" if kind == "file" else "")
    with mounted(pair.destination, "-t", "tmpfs", "-o", "nr_inodes=60", "filestreamer-test"):
        receiver = pair.receiver()
        assert "no inodes left" in pair.sender(root, pair.address(receiver)).fails(4, "no_space")
        assert "no inodes left" in receiver.wait_for("transfer_failed")["reason"]


def test_a_read_only_destination_is_named(pair: Pair) -> None:
    with mounted(pair.destination, "-t", "tmpfs", "-o", "ro", "filestreamer-test"):
        flags = ("--listen", "127.0.0.1:0", "--directory", pair.destination)
        assert "Read-only file system" in pair.start("receiver", *flags).fails(4, "destination")


@pytest.mark.parametrize("side", ["sender", "receiver"])
def test_few_descriptors_and_many_connections(pair: Pair, side: str) -> None:
    """Fewer connections, and fewer directories kept open: nothing fails."""
    root = pair.source / "s"
    for number in range(60):
        (root / f"{number}/x/y").mkdir(parents=True)
        (root / f"{number}/x/y/f").write_text(str(number))
        (root / f"{number}/g").write_bytes(bytes([number]) * 300_000)
    few = ["prlimit", "--nofile=64:64"]
    where = ("--listen", "127.0.0.1:0", "--directory", pair.destination)
    receiver = pair.start("receiver", *where, under=few if side == "receiver" else ())
    flags = (root, "--to", Pair.address(receiver), "--connections", 64, "--chunk-size", "64KiB")
    pair.start("sender", *flags, under=few if side == "sender" else ()).succeeds()
    assert trees.differences(root, pair.destination / "s") == []
    assert receiver.times("transfer_failed") == 0


def test_one_directory_mounted_twice(pair: Pair, tmp_path: Path) -> None:
    """It has one staging: each of the two mounts stages there under a name of its own."""
    (tmp_path / "other").mkdir()
    root = a_tree(pair)
    shutil.move(root / "b/large", root / "large")
    (root / "d").mkdir()
    (root / "d/f").write_text("f")
    with (
        mounted(pair.destination / "s/b", "--bind", tmp_path / "other"),
        mounted(pair.destination / "s/d", "--bind", tmp_path / "other"),
    ):
        pair.sender(root, pair.address(pair.receiver())).succeeds()
        assert (tmp_path / "other/f").read_text() == "f"
        assert (tmp_path / "other/c/7").read_text() == "7"
        assert left_behind(pair.destination) == []


def test_the_destination_is_mounted_below_itself(pair: Pair) -> None:
    root = a_tree(pair)
    (root / "d").mkdir()
    (root / "d/f").write_text("f")
    receiver = pair.receiver()
    with mounted(pair.destination / "s/d", "--bind", pair.destination):
        pair.sender(root, pair.address(receiver)).succeeds()
        assert (pair.destination / "f").read_text() == "f"
        assert (pair.destination / "s/b/c/7").read_text() == "7"
        assert not (pair.destination / ".filestreamer").exists()


def test_a_file_that_is_a_mount_point(pair: Pair, tmp_path: Path) -> None:
    """It can't be replaced, which is found before its bytes are sent; a file that is as it should be stays."""
    root = a_tree(pair)
    (tmp_path / "outside").write_text("outside")
    (pair.destination / "s").mkdir(parents=True)
    (pair.destination / "s/z").touch()
    with mounted(pair.destination / "s/z", "--bind", tmp_path / "outside"):
        address = pair.address(pair.receiver())
        for run in range(2):
            sender = pair.sender(root, address)
            assert sender.wait(HANG) == 5, sender.stderr
            (skipped,) = sender.result["skipped"]
            assert skipped["path"] == str(root / "z")
            assert "mounted" in skipped["reason"]
            assert run == 0 or sender.result["sent_bytes"] == 0
        assert (tmp_path / "outside").read_text() == "outside"


@pytest.mark.parametrize("to", ["--directory", "--output-file"])
def test_a_single_file_onto_a_mount_point(pair: Pair, tmp_path: Path, to: str) -> None:
    """As with `docker run -v FILE:/data/f`: that is told before a byte is sent, and nothing is staged."""
    file = pair.file("f", 3 * MIB)
    (tmp_path / "outside").write_text("outside")
    (pair.destination / "f").touch()
    args = (to, pair.destination / "f") if to == "--output-file" else (to, pair.destination)
    why = f"can't write {pair.destination}/f: something is mounted on it: unmount it, or mount its directory instead"
    with mounted(pair.destination / "f", "--bind", tmp_path / "outside"):
        receiver = pair.start("receiver", "--listen", "127.0.0.1:0", *args)
        failed = receiver
        if to == "--directory":
            failed = pair.sender(file, pair.address(receiver))
        assert failed.wait(HANG) == 4, failed.stderr
        assert why in failed.stderr
        assert failed.result.get("sent_bytes", 0) == 0
        assert (tmp_path / "outside").read_text() == "outside"
        assert left_behind(pair.destination) == []
