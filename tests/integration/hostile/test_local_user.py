"""Another user of the receiver's machine, who can write in the destination: links, FIFOs and swaps lead nowhere."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import sending
from tests.support.attacks import GROWTH_BYTES, MIB, Running, unharmed
from tests.support.processes import Watch
from tests.support.services import HANG, Pair, Service, same, tree
from tests.support.staging import Staging

# ------------------------------------------------------------------------------------------------------- the final name


def is_untouched(outside: Path) -> None:
    """Nothing was added, nothing written, and no mode changed."""
    assert tree(outside) == {"precious": 16}
    assert (outside / "precious").read_bytes() == b"precious content"


LINK_TARGETS = ("precious", "missing", ".")


def test_symlink_at_the_final_name(pair: Pair, receiver: Service, outside: Path) -> None:
    """It is replaced as what it is, never followed."""
    for target in LINK_TARGETS:
        link = pair.destination / "f"
        link.unlink(missing_ok=True)
        link.symlink_to(outside / target)
        file = pair.file("f", 100_000)
        sending.send(file, "--to", Pair.address(receiver))
        assert not link.is_symlink()
        assert same(file, link)
        is_untouched(outside)
        assert pair.received() == ["f"]


def test_symlink_that_is_not_to_be_replaced(pair: Pair, outside: Path) -> None:
    """With --no-replace it is there, and stays, whatever it leads to."""
    receiver = pair.receiver("--no-replace")
    for target in LINK_TARGETS:
        link = pair.destination / "f"
        link.unlink(missing_ok=True)
        link.symlink_to(outside / target)
        pair.sender(pair.file("f", 100_000), pair.address(receiver)).fails(3, "exists", status="refused")
        assert link.is_symlink()
        is_untouched(outside)
        assert pair.received() == ["f"]


def test_hard_link_at_the_final_name(pair: Pair, receiver: Service, outside: Path) -> None:
    """The name is replaced; the file that it was a second name of is not."""
    os.link(outside / "precious", pair.destination / "f")
    file = pair.file("f", 100_000)
    sending.send(file, "--to", Pair.address(receiver))
    assert same(file, pair.destination / "f")
    is_untouched(outside)


def test_fifo_at_the_final_name(pair: Pair, receiver: Service) -> None:
    os.mkfifo(pair.destination / "f")
    file = pair.file("f", 100_000)
    sending.send(file, "--to", Pair.address(receiver))
    assert same(file, pair.destination / "f")


# -------------------------------------------------------------------------------------------------------------- staging


TRAPS: dict[str, Callable[[Path, Path], None]] = {
    "symlink to a file": lambda trap, outside: trap.symlink_to(outside / "precious"),
    "symlink to nothing": lambda trap, outside: trap.symlink_to(outside / "missing"),
    "symlink to a directory": lambda trap, outside: trap.symlink_to(outside),
    "hard link": lambda trap, outside: os.link(outside / "precious", trap),
    "fifo": lambda trap, _: os.mkfifo(trap),
    "directory": lambda trap, _: trap.mkdir(),
}


@pytest.mark.parametrize("which", ["data", "ledger"])
def test_traps_in_staging(pair: Pair, receiver: Service, outside: Path, which: str) -> None:
    """What lies where a file would be staged is not the receiver's own: nothing is written through it.

    Whether it takes the trap away or refuses is its own affair, but for symlinks, which it refuses; who sends is told
    the truth.
    """
    for trap, lay in TRAPS.items():
        file = pair.file(trap, 100_000)
        staging = Staging(pair.destination, trap)
        staging.directory.mkdir(mode=0o700, exist_ok=True)
        lay(staging.data if which == "data" else staging.ledger, outside)
        sender = pair.sender(file, pair.address(receiver))
        if sender.wait() == 0 and "symlink" not in trap:
            sender.succeeds()
            assert same(file, pair.destination / trap)
        else:
            assert str(pair.destination / trap) in sender.fails(4, "destination")
            assert trap not in pair.received()
        is_untouched(outside)


@pytest.mark.parametrize("which", ["data", "ledger"])
def test_hard_links_that_look_like_a_staged_file(pair: Pair, outside: Path, which: str) -> None:
    """A whole staging that claims everything, one file of which has a second name elsewhere."""
    file = pair.file("f", 100_000)
    staging = Staging(pair.destination, "f")
    staging.make(file, 10_000, range(5))
    place = staging.data if which == "data" else staging.ledger
    os.link(place, outside / "second name")
    before = (outside / "second name").read_bytes()
    receiver = pair.receiver()
    sender = pair.sender(file, pair.address(receiver), "--chunk-size", 10_000)
    assert sender.wait() in (0, 4), sender.stderr
    assert (outside / "second name").read_bytes() == before
    unharmed(receiver)


@pytest.mark.parametrize("swapped_for", ["symlink", "file"])
def test_staged_file_swapped_before_commit(pair: Pair, outside: Path, swapped_for: str) -> None:
    """What is put in place is the file that was written and synced, not whatever has its name by then."""
    receiver = pair.receiver()
    running = Running(pair, pair.address(receiver), rate_limit="1MiB/s")
    staging = Staging(pair.destination, "running")
    staging.data.unlink()
    if swapped_for == "symlink":
        staging.data.symlink_to(outside / "precious")
    else:
        staging.data.write_bytes(b"evil content")
    if running.sender.wait(HANG) == 0:
        assert not (pair.destination / "running").is_symlink()
        assert same(running.file, pair.destination / "running")
    else:
        running.sender.fails(4, "destination")
        assert "running" not in pair.received()
    is_untouched(outside)
    unharmed(receiver)


def test_ledger_beyond_measure(pair: Pair) -> None:
    """A ledger of a terabyte, sparse as it may be, is no ledger: it is not read into memory."""
    file = pair.file("f", 100_000)
    staging = Staging(pair.destination, "f")
    staging.make(file, 10_000, range(5))
    staging.truncate_ledger(1 << 40)
    receiver = pair.receiver()
    address = pair.address(receiver)
    with Watch(receiver.process.pid) as watch:
        pair.sender(file, address, "--chunk-size", 10_000).succeeds()
        assert watch.grown_bytes < GROWTH_BYTES
    assert same(file, pair.destination / "f")
    unharmed(receiver)


@pytest.mark.parametrize("whose", ["", "data", "ledger"])
def test_staging_of_somebody_else(pair: Pair, whose: str) -> None:
    """Who owns a file can change it at any time, and what is committed would stay theirs."""
    if os.geteuid() != 0:
        pytest.skip("only root can make what belongs to somebody else")
    file = pair.file("f", 100_000)
    staging = Staging(pair.destination, "f")
    staging.make(file, 10_000, range(5))
    os.chown({"": staging.directory, "data": staging.data, "ledger": staging.ledger}[whose], 65534, 65534)
    receiver = pair.receiver()
    sender = pair.sender(file, pair.address(receiver), "--chunk-size", 10_000)
    if sender.wait() == 0:
        assert (pair.destination / "f").stat().st_uid == 0
        assert same(file, pair.destination / "f")
    else:
        sender.fails(4, "destination")
    unharmed(receiver)


# ---------------------------------------------------------------------------------------------------------- directories


def test_destination_replaced_by_a_symlink(pair: Pair, outside: Path) -> None:
    """The path is followed, but for a symlink that took the place of the directory: the sender is told."""
    receiver = pair.receiver()
    address = pair.address(receiver)
    moved = pair.destination.with_name("moved")
    pair.destination.rename(moved)
    pair.destination.symlink_to(outside)
    file = pair.file("f", 3 * MIB)
    pair.sender(file, address).fails(4, "destination")
    is_untouched(outside)
    pair.destination.unlink()
    moved.rename(pair.destination)
    pair.sender(file, address).succeeds()
    assert same(file, pair.destination / "f")


def test_destination_replaced_in_the_middle(pair: Pair, outside: Path) -> None:
    receiver = pair.receiver()
    running = Running(pair, pair.address(receiver), rate_limit="1MiB/s")
    moved = pair.destination.with_name("moved")
    pair.destination.rename(moved)
    pair.destination.symlink_to(outside)
    assert "moved" in running.sender.fails(4, "destination")
    assert os.listdir(moved) == [".filestreamer"]
    is_untouched(outside)


def test_staging_replaced_by_a_symlink(pair: Pair, outside: Path) -> None:
    """Between two transfers of one receiver, and under one that runs."""
    receiver = pair.receiver()
    address = pair.address(receiver)
    running = Running(pair, address, rate_limit="1MiB/s")
    staging = pair.destination / ".filestreamer"
    staging.rename(pair.destination / "elsewhere")
    staging.symlink_to(outside)
    pair.sender(pair.file("f", 1000), address).fails(4, "destination")
    running.arrives()
    is_untouched(outside)
    assert {"running", "elsewhere", ".filestreamer"} >= set(pair.received())
    unharmed(receiver)
