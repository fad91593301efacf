"""Trees, and what the kernel does to them: whatever is killed whenever, what has a final name is whole."""

import os
import random
import shutil
import signal
from pathlib import Path

import pytest

from tests.support.services import Pair, inject

KIB = 1024
FAST = ("--chunk-size", 64 * KIB, "--connections", 2)
OLD = b"what was there before"


@pytest.fixture
def source(pair: Pair, seed: int) -> Path:
    """Return a tree of small and large files, empty ones, links of both kinds, and directories."""
    rng = random.Random(seed)
    root = pair.source / "tree"
    for at in range(6):
        directory = root / f"d{at}" / "below"
        directory.mkdir(parents=True)
        for name, size in (("empty", 0), ("small", rng.randrange(1, 4 * KIB)), ("large", rng.randrange(70, 300) * KIB)):
            (directory / name).write_bytes(rng.randbytes(size))
        (directory / "symlink").symlink_to("small")
        os.link(directory / "small", directory.parent / "hard link")
        os.utime(directory, ns=(0, 1_500_000_000_000_000_000 + at))
    return root


def snapshot(root: Path) -> dict[str, object]:
    """Read all that is to be kept of a tree."""
    there: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        kept: tuple[object, ...] = (status.st_mode, status.st_mtime_ns, status.st_nlink if path.is_file() else 0)
        if path.is_symlink():
            kept = (status.st_mode, os.readlink(path))
        elif path.is_file():
            kept += (path.read_bytes(),)
        there[str(path.relative_to(root))] = kept
    return there


def check_whole(pair: Pair, source: Path) -> None:
    """Assert that each file that is there is that of the source, or the one from before."""
    for path in (pair.destination / "tree").rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            expected = (source / path.relative_to(pair.destination / "tree")).read_bytes()
            assert content in (expected, OLD), path


STEPS = [
    ("mkdir", "after", 4),
    ("open", "after", 60),
    ("pwrite", "before", 9),
    ("utime", "after", 9),
    ("ftruncate", "after", 2),
    ("rename", "before", 1),
    ("rename", "after", 9),
    ("unlink", "before", 4),
    ("link", "after", 3),
    ("chmod", "before", 12),
    ("rmdir", "before", 1),
]


@pytest.mark.parametrize("step", STEPS, ids=["-".join(map(str, step)) for step in STEPS])
@pytest.mark.parametrize("sender_goes_on", [True, False], ids=["sender goes on", "sender is killed, too"])
def test_receiver_is_killed(pair: Pair, source: Path, step: tuple[str, str, int], sender_goes_on: bool) -> None:
    call, how, nth = step
    (pair.destination / "tree/d0/below").mkdir(parents=True)
    (pair.destination / "tree/d0/below/large").write_bytes(OLD)
    receiver = pair.receiver(env=inject(call, how, nth=nth))
    address = pair.address(receiver)
    sender = pair.sender(source, address, *FAST)
    assert receiver.wait() == 137, "the step was never reached"
    check_whole(pair, source)
    if not sender_goes_on:
        sender.signal(signal.SIGKILL)
        sender.wait()
    receiver = pair.receiver("--once", listen=address)
    (sender if sender_goes_on else pair.sender(source, address, *FAST)).succeeds()
    receiver.succeeds()
    assert snapshot(source) == snapshot(pair.destination / "tree")
    assert os.listdir(pair.destination) == ["tree"]


@pytest.mark.parametrize("existing", ["skip", "newer", "refuse"])
def test_an_empty_file_is_not_left_without_its_time_where_nothing_is_replaced(pair: Pair, existing: str) -> None:
    """It would differ then, and no later run would replace it."""
    source = pair.source / "tree"
    source.mkdir()
    (source / "empty").touch()
    os.utime(source / "empty", (1_500_000_000, 1_500_000_000))
    receiver = pair.receiver(env=inject("utime", "before", nth=2))  # the first one finds out what times are kept
    address = pair.address(receiver)
    sender = pair.sender(source, address, "--existing", existing)
    assert receiver.wait() == 137, "the step was never reached"
    receiver = pair.receiver("--once", listen=address)
    sender.succeeds()
    receiver.succeeds()
    assert snapshot(source) == snapshot(pair.destination / "tree")


@pytest.mark.parametrize(
    ("call", "error", "code"),
    [("pwrite", "EIO", "destination"), ("pwrite", "ENOSPC", "no_space"), ("rename", "EIO", "destination"),
     ("utime", "EIO", "destination"), ("mkdir", "EACCES", "destination"), ("link", "EIO", "destination")],
)  # fmt: skip
def test_a_call_fails(pair: Pair, source: Path, call: str, error: str, code: str) -> None:
    receiver = pair.receiver(env=inject(call, error, nth=3))
    address = pair.address(receiver)
    pair.sender(source, address, *FAST).fails(4, code)
    check_whole(pair, source)
    pair.sender(source, address, *FAST).succeeds()
    assert snapshot(source) == snapshot(pair.destination / "tree")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_what_is_complete_is_kept_when_the_receiver_is_ended(pair: Pair, source: Path, number: signal.Signals) -> None:
    for at in range(200):
        (source / f"file {at}").write_bytes(b"x" * 20 * KIB)
    receiver = pair.receiver()
    address = pair.address(receiver)
    sender = pair.sender(source, address, *FAST, "--rate-limit", "600KiB/s")
    receiver.wait_for("progress")
    receiver.signal(number)
    assert 128 + number == receiver.wait()
    check_whole(pair, source)
    kept = [path for path in (pair.destination / "tree").rglob("*") if path.is_file() and path.stat().st_size]
    assert kept
    again = pair.receiver("--once", listen=address)
    result = sender.succeeds()
    again.succeeds()
    assert result["unchecked_bytes"] > 0
    assert snapshot(source) == snapshot(pair.destination / "tree")


def test_another_sender_of_the_same_tree_waits(pair: Pair, source: Path) -> None:
    receiver = pair.receiver()
    address = pair.address(receiver)
    first = pair.sender(source, address, *FAST, "--rate-limit", "100KiB/s")
    receiver.wait_for("transfer_started")
    second = pair.sender(source, address, *FAST)
    receiver.wait_for("sender_left")  # it was told BUSY
    first.signal(signal.SIGKILL)
    first.wait()
    second.succeeds()
    assert snapshot(source) == snapshot(pair.destination / "tree")


def test_a_tree_is_not_for_an_output_file(pair: Pair, source: Path) -> None:
    receiver = pair.start("receiver", "--listen", "127.0.0.1:0", "--output-file", pair.destination / "out")
    message = pair.sender(source, pair.address(receiver), *FAST).fails(3, "policy", status="refused")
    assert "--output-file" in message


def test_a_source_that_loses_a_directory_removes_nothing(pair: Pair, source: Path) -> None:
    receiver = pair.receiver()
    address = pair.address(receiver)
    pair.sender(source, address, *FAST).succeeds()
    shutil.rmtree(source / "d3")
    pair.sender(source, address, *FAST).succeeds()
    assert (pair.destination / "tree/d3/below/large").exists()
