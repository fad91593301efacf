"""What the kernel does to a transfer: a call fails, or the machine stops at any step of the commit.

`inject` makes exactly one call of a real service fail, or kills the service right before or after it. So each step of
the commit is a place to crash at, and a disk that fails needs no broken disk.
"""

import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.disks import MIB
from tests.support.services import Pair, inject, same
from tests.support.staging import Staging

SIZE = 3 * MIB + 77
CHUNK_SIZE = 64 * 1024
OLD = b"what was there before"
FAST = ("--chunk-size", CHUNK_SIZE, "--connections", 2)
STEADY = (*FAST, "--rate-limit", "3MiB/s")


@pytest.fixture
def file(pair: Pair, seed: int) -> Path:
    """Return the source."""
    return pair.file("f", SIZE, seed)


def check_arrived(pair: Pair, file: Path) -> None:
    """Assert that the file is there, identical, and nothing else is."""
    assert same(file, pair.destination / file.name)
    assert [file.name] == pair.received()


def check_untouched(pair: Pair, content: bytes = OLD) -> None:
    """Assert that what was there before still is."""
    assert (pair.destination / "f").read_bytes() == content


# -------------------------------------------------------------------------------------------- crashes while it commits

STEPS = [
    ("chmod", "before", 1),
    ("fsync", "before", 1),
    ("rename", "before", 1),
    ("rename", "after", 1),
    ("fsync", "after", 2),
    ("unlink", "after", 1),
    ("rmdir", "after", 2),  # the first one asks whether the file can be replaced
]
RENAMED = STEPS.index(("rename", "after", 1))


GOES_ON = [(step, True) for step in range(len(STEPS))]
DIES = [(step, False) for step in (1, RENAMED - 1, RENAMED)]


@pytest.mark.parametrize(
    ("step", "sender_goes_on"),
    [*GOES_ON, *DIES],
    ids=[
        f"{'-'.join(map(str, STEPS[step]))}{'' if goes_on else ', sender dies'}" for step, goes_on in [*GOES_ON, *DIES]
    ],
)
def test_receiver_crashes_while_it_commits(pair: Pair, file: Path, step: int, sender_goes_on: bool) -> None:
    """Before the rename the old file is there, after it the new one, never anything else; what comes next is right."""
    call, how, nth = STEPS[step]
    final = pair.destination / "f"
    final.write_bytes(OLD)
    receiver = pair.receiver(env=inject(call, how, nth=nth))
    address = pair.address(receiver)
    sender = pair.sender(file, address, *FAST)
    assert receiver.wait() == 137, "the step was never reached"
    if step < RENAMED:
        check_untouched(pair)
    else:
        assert same(file, final)
    if not sender_goes_on:
        sender.signal(signal.SIGKILL)
        sender.wait()
    receiver = pair.receiver("--once", listen=address)
    result = (sender if sender_goes_on else pair.sender(file, address, *FAST)).succeeds()
    receiver.succeeds()
    check_arrived(pair, file)
    if step < RENAMED:
        assert result["held_bytes"] == SIZE


@pytest.mark.parametrize("call", ["link", "unlink"])
def test_receiver_crashes_while_it_commits_without_replacing(pair: Pair, file: Path, call: str) -> None:
    """The name is there, and belongs to the same file as what is staged: a later run leaves neither in a bad state."""
    receiver = pair.receiver("--no-replace", env=inject(call, "after"))
    sender = pair.sender(file, pair.address(receiver), *FAST)
    assert receiver.wait() == 137
    assert same(file, pair.destination / "f")
    sender.signal(signal.SIGKILL)
    sender.wait()
    receiver = pair.receiver("--once")
    pair.sender(file, pair.address(receiver), *FAST).succeeds()
    receiver.succeeds()
    check_arrived(pair, file)


# ------------------------------------------------------------------------------------------ calls of the receiver fail


def fails_and_resumes(pair: Pair, file: Path, error_code: str, env: Mapping[str, str]) -> None:
    """Run into the fault: exit 4 on both sides, the old file untouched; then the same command completes."""
    final = pair.destination / "f"
    final.write_bytes(OLD)
    receiver = pair.receiver(env=env)
    address = pair.address(receiver)
    message = pair.sender(file, address, *FAST).fails(4, error_code)
    assert str(final) in message
    failed = receiver.wait_for("transfer_failed")
    assert failed["error"] == error_code
    check_untouched(pair)
    pair.sender(file, address, *FAST).succeeds()
    check_arrived(pair, file)


@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EDQUOT"])
@pytest.mark.parametrize("call", ["pwrite", "write"], ids=["data", "ledger"])
def test_a_write_fails(pair: Pair, file: Path, call: str, error: str) -> None:
    # The first write to the ledger is its head; the next one notes all chunks that are acknowledged together.
    path, nth = {"pwrite": (".data", 5), "write": (".ledger", 2)}[call]
    code = "destination" if error == "EIO" else "no_space"
    fails_and_resumes(pair, file, code, inject(call, error, nth=nth, path=path))


@pytest.mark.parametrize(("error", "code"), [("EIO", "destination"), ("ENOSPC", "no_space")])
def test_the_sync_of_the_file_fails(pair: Pair, file: Path, error: str, code: str) -> None:
    fails_and_resumes(pair, file, code, inject("fsync", error))


def test_after_a_failed_sync_nothing_is_believed(pair: Pair, file: Path) -> None:
    """What the kernel dropped is not found by hashing what it still caches: all of it is sent again."""
    receiver = pair.receiver(env=inject("fsync", "EIO"))
    address = pair.address(receiver)
    pair.sender(file, address, *FAST).fails(4, "destination")
    receiver.wait_for("transfer_failed")
    assert pair.received() == []
    result = pair.sender(file, address, *FAST).succeeds()
    assert (result["sent_bytes"], result["held_bytes"]) == (SIZE, 0)
    check_arrived(pair, file)


def test_a_sync_ahead_fails(pair: Pair, seed: int) -> None:
    """The kernel reports a lost write once: every thread that syncs the file must learn of it."""
    file = pair.file("f", 70 * MIB, seed)
    receiver = pair.receiver(env=inject("fdatasync", "EIO"))
    address = pair.address(receiver)
    pair.sender(file, address, "--rate-limit", "35MiB/s").fails(4, "destination")
    receiver.wait_for("transfer_failed")
    result = pair.sender(file, address).succeeds()
    assert (result["sent_bytes"], result["held_bytes"]) == (file.stat().st_size, 0)
    check_arrived(pair, file)


@pytest.mark.parametrize(("call", "error"), [("rename", "EIO"), ("rename", "EXDEV")])
def test_a_step_of_the_commit_fails(pair: Pair, file: Path, call: str, error: str) -> None:
    fails_and_resumes(pair, file, "destination", inject(call, error))


def test_the_mode_can_not_be_set(pair: Pair, file: Path) -> None:
    """The bytes are right: that is worth a warning."""
    receiver = pair.receiver(env=inject("chmod", "EPERM"))
    (warning,) = pair.sender(file, pair.address(receiver), *FAST).succeeds()["warnings"]
    assert "some modes can't be set" in warning
    check_arrived(pair, file)


def test_the_sync_of_the_directory_fails(pair: Pair, file: Path) -> None:
    """The file is in place, perhaps not for good: that is no success."""
    receiver = pair.receiver(env=inject("fsync", "EIO", nth=2))
    address = pair.address(receiver)
    pair.sender(file, address, *FAST).fails(4, "destination")
    receiver.wait_for("transfer_failed")
    pair.sender(file, address, *FAST).succeeds()
    check_arrived(pair, file)


@pytest.mark.parametrize("nth", [1, 40])
def test_staged_data_can_not_be_read_again(pair: Pair, file: Path, nth: int) -> None:
    """A bad sector under what the ledger claims: that is sent again, or it ends in one clear line."""
    Staging(pair.destination, "f").make(file, CHUNK_SIZE, range(45))
    receiver = pair.receiver(env=inject("preadv", "EIO", nth=nth, path=".data"))
    address = pair.address(receiver)
    sender = pair.sender(file, address, *FAST)
    if sender.wait() != 0:
        sender.fails(4, "destination")
        pair.sender(file, address, *FAST).succeeds()
    check_arrived(pair, file)


# -------------------------------------------------------------------------------------------- calls of the sender fail


@pytest.mark.parametrize(("nth", "error", "code"), [(1, "EIO", "source"), (9, "ESTALE", "source_changed")])
def test_the_source_can_not_be_read(pair: Pair, file: Path, nth: int, error: str, code: str) -> None:
    """Exit 4 on both sides; when it can be read again, the same command resumes. ESTALE is NFS's word for gone."""
    receiver = pair.receiver()
    address = pair.address(receiver)
    settings = ("--chunk-size", 2 * CHUNK_SIZE)  # beyond what is gathered
    sender = pair.sender(file, address, *settings, env=inject("preadv", error, nth=nth))
    assert str(file) in sender.fails(4, code)
    assert receiver.wait_for("transfer_failed")["error"] == code
    assert not (pair.destination / "f").exists()
    pair.sender(file, address, *settings).succeeds()
    check_arrived(pair, file)


# -------------------------------------------------------------------------------------------- calls do less than asked


@pytest.mark.parametrize("call", ["pwrite", "write", "preadv"])
def test_calls_of_the_receiver_do_a_third(pair: Pair, file: Path, call: str) -> None:
    """They are all repeated for the rest, the ledger's included: what was staged is found."""
    Staging(pair.destination, "f").make(file, CHUNK_SIZE, range(20))
    path = ".ledger" if call == "write" else ".data"
    receiver = pair.receiver(env=inject(call, "short", nth=0, path=path))
    sender = pair.sender(file, pair.address(receiver), *STEADY)
    Staging(pair.destination, "f").wait_for_records(30)
    sender.signal(signal.SIGKILL)
    sender.wait()
    result = pair.sender(file, pair.address(receiver), *FAST).succeeds()
    assert result["held_bytes"] >= 30 * CHUNK_SIZE
    check_arrived(pair, file)


def test_calls_of_the_sender_do_a_third(pair: Pair, file: Path) -> None:
    Staging(pair.destination, "f").make(file, 2 * CHUNK_SIZE, range(10))
    receiver = pair.receiver()
    settings = ("--chunk-size", 2 * CHUNK_SIZE)
    sender = pair.sender(file, pair.address(receiver), *settings, env=inject("preadv", "short", nth=0))
    assert sender.succeeds()["held_bytes"] == 20 * CHUNK_SIZE
    check_arrived(pair, file)


# ---------------------------------------------------------------------------- somebody else is busy in the destination


def test_staging_is_removed_while_a_file_comes(pair: Pair, file: Path) -> None:
    """Somebody tidies up with rm -r: the transfer ends in a clear line, and the same command completes."""
    receiver = pair.receiver()
    address = pair.address(receiver)
    sender = pair.sender(file, address, *STEADY)
    staging = Staging(pair.destination, "f")
    staging.wait_for_records(5)
    shutil.rmtree(staging.directory)
    sender.fails(4, "destination")
    assert pair.received() == []
    pair.sender(file, address, *FAST).succeeds()
    check_arrived(pair, file)


def test_destination_is_removed_while_a_file_comes(pair: Pair, file: Path) -> None:
    receiver = pair.receiver()
    sender = pair.sender(file, pair.address(receiver), *STEADY)
    Staging(pair.destination, "f").wait_for_records(5)
    shutil.rmtree(pair.destination)
    sender.fails(4, "destination")
    assert not pair.destination.exists()


def test_a_directory_takes_the_name_while_a_file_comes(pair: Pair, file: Path) -> None:
    receiver = pair.receiver()
    address = pair.address(receiver)
    sender = pair.sender(file, address, *STEADY)
    Staging(pair.destination, "f").wait_for_records(5)
    (pair.destination / "f").mkdir()
    sender.fails(4, "destination")
    (pair.destination / "f").rmdir()
    result = pair.sender(file, address, *FAST).succeeds()
    assert result["held_bytes"] == SIZE
    check_arrived(pair, file)


def test_a_file_takes_the_name_while_one_comes_that_may_not_replace_it(pair: Pair, file: Path) -> None:
    receiver = pair.receiver("--no-replace")
    address = pair.address(receiver)
    sender = pair.sender(file, address, *STEADY)
    Staging(pair.destination, "f").wait_for_records(5)
    (pair.destination / "f").write_bytes(OLD)
    sender.fails(3, "exists", status="refused")
    check_untouched(pair)
    (pair.destination / "f").unlink()
    result = pair.sender(file, address, *FAST).succeeds()
    assert result["held_bytes"] == SIZE
    check_arrived(pair, file)
