"""One obstacle costs one entry: every kind of entry meets every kind of obstacle, before its bytes and meanwhile.

Each case asserts what arrived (everything else), what both sides told, the exit codes, that the obstacle is as it was,
and that a second run tells the same, and moves nothing more.
"""

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.support import trees
from tests.support.disks import MIB
from tests.support.services import Pair, inject, make_file
from tests.support.trees import Look, look
from tests.support.waiting import until

NAME: Final = "m entry"
"""The entry that meets the obstacle: neither the first nor the last one of its directory."""
SLOW: Final = ("--rate-limit", "1MB", "--connections", "2")


class Made(NamedTuple):
    """An entry that was made."""

    below: tuple[str, ...] = ()
    """What is declined with it, relative to the tree."""


# ------------------------------------------------------------------------------------------------- kinds of entries


def _small(at: Path) -> Made:
    trees.write(at, b"small")
    return Made()


def _large(at: Path) -> Made:
    make_file(at, MIB + 77, seed=7)
    return Made()


def _empty(at: Path) -> Made:
    trees.write(at, b"")
    return Made()


def _sparse(at: Path) -> Made:
    trees.sparse(at, MIB, (300_000, b"island"))
    return Made()


def _symlink(at: Path) -> Made:
    at.symlink_to("a first")
    return Made()


def _further_name(at: Path) -> Made:
    os.link(at.parent / "a first", at)
    return Made()


def _first_name(at: Path) -> Made:
    trees.write(at, b"of two names")
    os.link(at, at.parent / "n another name")
    return Made(("d/n another name",))


def _directory(at: Path) -> Made:
    trees.write(at / "inner" / "file", b"below")
    trees.write(at / "file", b"below")
    return Made(tuple(f"d/{NAME}/{name}" for name in ("file", "inner", "inner/file")))


ENTRIES: Final[Mapping[str, Callable[[Path], Made]]] = {
    "small file": _small,
    "large file": _large,
    "empty file": _empty,
    "sparse file": _sparse,
    "symlink": _symlink,
    "further name": _further_name,
    "first name": _first_name,
    "directory": _directory,
}

# ------------------------------------------------------------------------------------------------ kinds of obstacles


def _directory_there(at: Path) -> None:
    trees.write(at / "of somebody", b"precious")


def _empty_directory_there(at: Path) -> None:
    at.mkdir()


def _file_there(at: Path) -> None:
    trees.write(at, b"precious")


def _symlink_there(at: Path) -> None:
    at.symlink_to(at.parent.parent.parent.parent)


def _fifo_there(at: Path) -> None:
    os.mkfifo(at)


def _immutable_file(at: Path) -> None:
    trees.write(at, b"precious")
    subprocess.run(["chattr", "+i", at], check=True)


def _immutable_directory(at: Path) -> None:
    trees.write(at / "of somebody", b"precious")
    subprocess.run(["chattr", "+i", at], check=True)


OBSTACLES: Final[Mapping[str, Callable[[Path], None]]] = {
    "a directory": _directory_there,
    "an empty directory": _empty_directory_there,
    "a file": _file_there,
    "a symlink": _symlink_there,
    "a FIFO": _fifo_there,
    "an immutable file": _immutable_file,
}
IN_THE_WAY_OF_A_FILE: Final = ("a directory", "an empty directory", "an immutable file")
IN_THE_WAY_OF_A_DIRECTORY: Final = ("a file", "a symlink", "a FIFO", "an immutable file")


CASES: Final = [
    (entry, obstacle)
    for entry in ENTRIES
    for obstacle in (IN_THE_WAY_OF_A_DIRECTORY if entry == "directory" else IN_THE_WAY_OF_A_FILE)
]


@pytest.fixture
def _mutable_at_the_end(tmp_path: Path) -> Iterator[None]:
    if os.geteuid() != 0 or shutil.which("chattr") is None:
        pytest.skip("immutable files take root, and chattr")
    yield
    subprocess.run(["chattr", "-R", "-f", "-i", tmp_path], check=False, capture_output=True)  # it grumbles at symlinks


pytestmark = pytest.mark.usefixtures("_mutable_at_the_end")


# ------------------------------------------------------------------------------------------------------------- trees


class Case:
    """A tree with one entry that meets an obstacle."""

    def __init__(self, pair: Pair, entry: str) -> None:
        self.pair = pair
        self.tree = pair.source / "tree"
        self.at = pair.destination / "tree" / "d" / NAME
        trees.write(self.tree / "d" / "a first", b"first")
        self.declined = {f"d/{NAME}", *ENTRIES[entry](self.tree / "d" / NAME).below}
        make_file(self.tree / "d" / "x large", 2 * MIB, seed=3)
        trees.write(self.tree / "y" / "small", b"y")
        os.link(self.tree / "y" / "small", self.tree / "z another name")
        (self.tree / "z last").mkdir()
        for directory in ("d", "y", "z last", ""):
            os.utime(self.tree / directory, ns=(0, 1_500_000_000_000_000_000))
        self.before: dict[bytes, Look] = {}
        self.is_resumable = False
        """Whether what was staged of the entry is kept: of a large file that only lacks its name."""

    def obstruct(self, obstacle: str) -> None:
        self.at.parent.mkdir(parents=True, exist_ok=True)
        OBSTACLES[obstacle](self.at)
        self.before = look(self.at.parent) if self.at.is_dir() and not self.at.is_symlink() else {}
        self.status = os.lstat(self.at)

    def check_told(self, *results: dict[str, Any]) -> None:
        for result in results:
            assert result["skipped_kinds"] == {"declined": len(self.declined)}, result["skipped"]
            told = {each["path"].partition("tree/")[2]: each for each in result["skipped"]}
            assert set(told) == self.declined
            assert all(each["kind"] == "declined" and each["reason"] for each in told.values())

    def check_arrived(self) -> None:
        """Everything else is there, with its times and links; the obstacle is as it was."""
        but = [os.fsencode(path) for path in self.declined]
        found = {
            path: each
            for path, each in look(self.pair.destination / "tree").items()
            if path not in but and not path.startswith(os.fsencode(f"d/{NAME}/"))
        }
        assert trees.compare(look(self.tree), found, *but) == []
        now = os.lstat(self.at)
        assert (stat.S_IFMT(now.st_mode), now.st_ino) == (stat.S_IFMT(self.status.st_mode), self.status.st_ino)
        if stat.S_ISDIR(now.st_mode):
            name = os.fsencode(NAME)
            kept = {path: each for path, each in look(self.at.parent).items() if path.startswith(name + b"/")}
            assert kept == {path: each for path, each in self.before.items() if path.startswith(name + b"/")}
        assert self.is_resumable or not (self.pair.destination / ".filestreamer").exists()

    def send_again(self) -> None:
        receiver = self.pair.receiver("--once")
        sent = self.pair.sender(self.tree, self.pair.address(receiver), "--chunk-size", "256KiB").falls_short()
        self.check_told(sent, receiver.falls_short())
        assert sent["sent_bytes"] == 0
        self.check_arrived()


@pytest.mark.parametrize(("entry", "obstacle"), CASES)
def test_an_obstacle_that_is_there_before(pair: Pair, entry: str, obstacle: str) -> None:
    case = Case(pair, entry)
    case.obstruct(obstacle)
    receiver = pair.receiver("--once")
    sent = pair.sender(case.tree, pair.address(receiver), "--chunk-size", "256KiB").falls_short()
    case.check_told(sent, receiver.falls_short())
    case.check_arrived()
    case.send_again()


@pytest.mark.parametrize("obstacle", IN_THE_WAY_OF_A_FILE)
@pytest.mark.parametrize("entry", ["small file", "large file", "sparse file", "further name", "first name"])
def test_an_obstacle_that_comes_while_files_move(pair: Pair, entry: str, obstacle: str) -> None:
    """It is there when the file is to get its name: after its bytes, most often."""
    case = Case(pair, entry)
    case.is_resumable = entry in ("large file", "sparse file")
    receiver = pair.receiver("--once")
    sender = pair.sender(case.tree, pair.address(receiver), "--chunk-size", "256KiB", *SLOW)
    until((pair.destination / "tree" / "z last").exists, "the entries are prepared")
    case.obstruct(obstacle)
    case.check_told(sender.falls_short(), receiver.falls_short())
    case.check_arrived()
    case.send_again()


@pytest.mark.parametrize("obstacle", IN_THE_WAY_OF_A_DIRECTORY)
def test_a_directory_that_is_replaced_while_files_move(pair: Pair, obstacle: str) -> None:
    """What is to go below it is declined; the directory itself was made, and is not there any more."""
    case = Case(pair, "directory")
    receiver = pair.receiver("--once")
    sender = pair.sender(case.tree, pair.address(receiver), "--chunk-size", "256KiB", *SLOW)
    until((pair.destination / "tree" / "z last").exists, "the entries are prepared")
    case.at.rename(pair.destination.parent / "moved away")
    case.obstruct(obstacle)
    for result in (sender.falls_short(), receiver.falls_short()):
        told = {each["path"].partition("tree/")[2] for each in result["skipped"]}
        assert {f"d/{NAME}/file", f"d/{NAME}/inner/file"} <= told <= case.declined
        assert set(result["skipped_kinds"]) == {"declined"}
    case.check_arrived()
    case.send_again()


def test_an_immutable_directory(pair: Pair) -> None:
    """Nothing can be put into it; its time can't be set, which is only a warning."""
    case = Case(pair, "directory")
    case.at.parent.mkdir(parents=True)
    _immutable_directory(case.at)
    case.declined.remove(f"d/{NAME}")
    for sent_bytes in (2 * MIB + len(b"first") + len(b"y"), 0):
        receiver = pair.receiver("--once")
        sent = pair.sender(case.tree, pair.address(receiver), "--chunk-size", "256KiB").falls_short()
        received = receiver.falls_short()
        case.check_told(sent, received)
        assert sent["warnings"]
        assert sent["warnings"] == received["warnings"]
        assert (case.at / "of somebody").read_bytes() == b"precious"
        assert sent["sent_bytes"] == sent_bytes


REFUSED: Final = {"EILSEQ", "EINVAL", "ENAMETOOLONG", "EPERM", "EACCES", "EBUSY", "ETXTBSY"}
"""What file systems say to names, types and files that they do not take."""
FATAL: Final = {"ENOSPC": "no_space", "EDQUOT": "no_space", "EROFS": "destination", "EIO": "destination"}
"""What concerns the disk, and not one entry."""


@pytest.mark.parametrize("error", sorted(REFUSED))
def test_a_name_that_the_file_system_refuses(pair: Pair, error: str) -> None:
    """The rename of one file among many fails."""
    case = Case(pair, "small file")
    case.declined = {f"d/{NAME}"}
    receiver = pair.receiver("--once", env=_failing_rename(error))
    sent = pair.sender(case.tree, pair.address(receiver), "--chunk-size", "256KiB").falls_short()
    received = receiver.falls_short()
    declined = [os.fsencode(each["path"].partition("tree/")[2]) for each in sent["skipped"]]
    assert 1 <= len(declined) <= 2  # the first name of a file takes its other name with it
    for result in (sent, received):
        assert result["skipped_kinds"] == {"declined": len(declined)}
    assert trees.compare(look(case.tree), look(pair.destination / "tree"), *declined) == []


@pytest.mark.parametrize("error", sorted(FATAL))
def test_what_concerns_the_whole_disk_ends_the_transfer(pair: Pair, error: str) -> None:
    """A full disk is one error, not one for each of a million files."""
    case = Case(pair, "small file")
    receiver = pair.receiver(env=_failing_rename(error))
    pair.sender(case.tree, pair.address(receiver), "--chunk-size", "256KiB").fails(4, FATAL[error])


def _failing_rename(error: str) -> Mapping[str, str]:
    return inject("rename", error, nth=1)


def test_a_limit_on_the_size_of_files(pair: Pair) -> None:
    """EFBIG: a file above what the file system, or the user's limit, takes; everything else arrives."""
    case = Case(pair, "large file")
    make_file(case.tree / "d" / NAME, 9 * MIB, seed=9)
    receiver = pair.start(
        "receiver",
        "--listen",
        "127.0.0.1:0",
        "--directory",
        pair.destination,
        "--once",
        under=("prlimit", f"--fsize={8 * MIB}"),
    )
    sent = pair.sender(case.tree, pair.address(receiver), "--chunk-size", "256KiB").falls_short()
    case.check_told(sent, receiver.falls_short())
    assert trees.compare(look(case.tree), look(pair.destination / "tree"), os.fsencode(f"d/{NAME}")) == []
    assert not (pair.destination / ".filestreamer").exists()


# ------------------------------------------------------------------------------------------- single files and pipes


@pytest.mark.parametrize("to_output_file", [False, True])
@pytest.mark.parametrize("obstacle", IN_THE_WAY_OF_A_FILE)
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_single_file_ends_with_its_obstacle(pair: Pair, obstacle: str, when: str, *, to_output_file: bool) -> None:
    """The one entry is all of the transfer: it fails, what is there stays, and what was moved is not moved again."""
    file = pair.file("file", 2 * MIB)
    target = pair.destination / ("output" if to_output_file else "file")
    if when == "before":
        OBSTACLES[obstacle](target)
    args = ("--output-file", target) if to_output_file else ("--directory", pair.destination)
    receiver = pair.start("receiver", "--listen", "127.0.0.1:0", *args)
    if when == "before" and to_output_file and (target.is_dir() or obstacle == "an immutable file"):
        assert os.fspath(target) in receiver.fails(4, "destination")
        return
    sender = pair.sender(file, pair.address(receiver), "--chunk-size", "256KiB", *SLOW)
    if when == "meanwhile":
        until((pair.destination / ".filestreamer").exists, "the file is staged")
        OBSTACLES[obstacle](target)
    assert os.fspath(target) in sender.fails(4, "destination")
    there = target / "of somebody" if obstacle == "a directory" else target
    if obstacle != "an empty directory":
        assert there.read_bytes() == b"precious"
