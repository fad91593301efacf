"""Resuming: what both sides agree on is not sent again, and whatever is wrong in staging costs time, never bytes.

Most tests put in place by hand what a killed transfer leaves (`Staging.make`), and damage it: then what has to be sent
is known to the byte.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from filestreamer.wire.grid import Grid
from receiver.disk.staging import ledger
from tests.support.disks import MIB, disk
from tests.support.services import HANG, Pair, Service, make_file, no_holes, same
from tests.support.staging import Staging

CHUNK_SIZE = 64 * 1024
SIZE = 60 * CHUNK_SIZE + 12_345
GRID = Grid(SIZE, CHUNK_SIZE)
HELD = [*range(30), *range(40, 55), 60]
"""The chunks that were there when it was interrupted; the last one is short."""
MISSING_BYTES = SIZE - sum(GRID.length(index) for index in HELD)
GIB = 1 << 30


@pytest.fixture
def file(pair: Pair, seed: int) -> Path:
    """Return the source."""
    return pair.file("f", SIZE, seed)


@pytest.fixture
def staging(pair: Pair, file: Path) -> Staging:
    """Return what an interrupted transfer of it left: the chunks HELD."""
    made = Staging(pair.destination, file.name)
    made.make(file, CHUNK_SIZE, HELD)
    return made


def run(pair: Pair, file: Path, *settings: object) -> dict[str, Any]:
    """Send the file with both services; it arrives, and nothing else is left. Return the sender's result."""
    receiver = pair.receiver("--once")
    sender = pair.sender(file, pair.address(receiver), *(settings or ("--chunk-size", CHUNK_SIZE)))
    sent, received = sender.succeeds(), receiver.succeeds()
    assert same(file, pair.destination / file.name)
    assert [file.name] == pair.received()
    assert (sent["held_bytes"], sent["bytes"]) == (received["held_bytes"], file.stat().st_size)
    return sent


def check_sent(result: dict[str, Any], sent_bytes: int) -> None:
    """Exactly so much was sent, and the rest was there."""
    assert (sent_bytes, result["bytes"] - sent_bytes) == (result["sent_bytes"], result["held_bytes"])


# ----------------------------------------------------------------------------------------------------- another command


@pytest.mark.parametrize("connections", [1, 3, 16])
def test_other_connections(pair: Pair, file: Path, staging: Staging, connections: int) -> None:
    check_sent(run(pair, file, "--chunk-size", CHUNK_SIZE, "--connections", connections), MISSING_BYTES)


@pytest.mark.parametrize("chunk_size", [1000, CHUNK_SIZE // 4, CHUNK_SIZE - 1, CHUNK_SIZE + 1, 4 * CHUNK_SIZE, MIB])
def test_another_chunk_size(pair: Pair, file: Path, staging: Staging, chunk_size: int) -> None:
    """What the new chunks wholly cover of the old ones is not sent."""
    grid = Grid(SIZE, chunk_size)
    claimed = staging.claimed_bytes(grid)
    assert claimed > SIZE // 4
    check_sent(run(pair, file, "--chunk-size", chunk_size), SIZE - claimed)


def test_chunk_size_changes_between_runs_that_are_killed(pair: Pair, seed: int) -> None:
    """Each run leaves a ledger on its own grid, from which the next one starts."""
    file = pair.file("f", 16 * MIB, seed)
    staging = Staging(pair.destination, "f")
    before = 0
    for chunk_size, connections in ((1000, 5), (256 * 1024, 4), (100_000, 1)):
        receiver = pair.receiver()
        address = pair.address(receiver)
        rate = ("--chunk-size", chunk_size, "--connections", connections, "--rate-limit", "8MiB/s")
        sender = pair.sender(file, address, *rate)
        wait_for_bytes(staging, Grid(16 * MIB, chunk_size), before + 3 * MIB)
        before = staging.claimed_bytes(Grid(16 * MIB, chunk_size))
        for service in (sender, receiver):
            service.signal(signal.SIGKILL)
            service.wait()
    result = run(pair, file, "--chunk-size", 128 * 1024)
    assert result["held_bytes"] >= 8 * MIB
    assert result["held_bytes"] + result["sent_bytes"] == 16 * MIB


def wait_for_bytes(staging: Staging, grid: Grid, count: int, seconds: float = HANG) -> None:
    """Wait until the ledger is on this grid, and claims so much."""
    end = time.monotonic() + seconds
    while True:
        there = ledger.decode(staging.ledger.read_bytes()) if staging.ledger.exists() else None
        if there is not None and there.grid == grid and staging.claimed_bytes(grid) >= count:
            return
        assert time.monotonic() < end, f"less than {count} bytes within {seconds} s"
        time.sleep(0.01)


# ---------------------------------------------------------------------------------------------------- another source


def test_one_chunk_of_the_source_is_another(pair: Pair, file: Path, staging: Staging) -> None:
    with file.open("r+b") as stream:
        stream.seek(7 * CHUNK_SIZE + 100)
        stream.write(b"another byte or two")
    check_sent(run(pair, file), MISSING_BYTES + CHUNK_SIZE)


@pytest.mark.parametrize("more", [1, CHUNK_SIZE - 12_345, 300_000])
def test_source_was_appended_to(pair: Pair, file: Path, staging: Staging, more: int) -> None:
    with file.open("ab") as stream:
        stream.write(random.Random(more).randbytes(more))
    # The last chunk was short; it is another one now.
    check_sent(run(pair, file), MISSING_BYTES + GRID.length(60) + more)


@pytest.mark.parametrize("less", [1, 12_345, 10 * CHUNK_SIZE, SIZE - 1000])
def test_source_was_truncated(pair: Pair, file: Path, staging: Staging, less: int) -> None:
    os.truncate(file, SIZE - less)
    grid = Grid(SIZE - less, CHUNK_SIZE)
    held = {index for index in HELD if index < grid.segments}
    check_sent(run(pair, file), sum(grid.length(index) for index in set(range(grid.segments)) - held))


def test_source_became_empty(pair: Pair, file: Path, staging: Staging) -> None:
    os.truncate(file, 0)
    check_sent(run(pair, file), 0)


def test_source_is_another_file(pair: Pair, file: Path, staging: Staging, seed: int) -> None:
    """Nothing that is there is any use; nothing of it stays."""
    make_file(file, SIZE, seed + 1)
    check_sent(run(pair, file), SIZE)


def test_source_was_shifted(pair: Pair, file: Path, staging: Staging) -> None:
    content = file.read_bytes()
    file.write_bytes(b"x" + content)
    check_sent(run(pair, file), SIZE + 1)


def test_only_the_times_of_the_source_are_others(pair: Pair, file: Path, staging: Staging) -> None:
    os.utime(file, ns=(1, 1))
    check_sent(run(pair, file), MISSING_BYTES)


# ----------------------------------------------------------------------------------------------- the ledger is damaged

LEDGER_BYTES = ledger.HEADER_BYTES + len(HELD) * ledger.RECORD_BYTES


def torn(index: int) -> int:
    """Where the ledger is torn in one of the cases."""
    edges = [0, 1, ledger.HEADER_BYTES - 1, ledger.HEADER_BYTES, ledger.HEADER_BYTES + 1, LEDGER_BYTES - 1]
    return edges[index] if index < len(edges) else random.Random(index).randrange(ledger.HEADER_BYTES, LEDGER_BYTES)


@pytest.mark.parametrize("case", range(8))
def test_ledger_is_torn(pair: Pair, file: Path, staging: Staging, case: int) -> None:
    """Whole records before the tear count."""
    length = torn(case)
    staging.truncate_ledger(length)
    left = HELD[: max(0, length - ledger.HEADER_BYTES) // ledger.RECORD_BYTES]
    check_sent(run(pair, file), SIZE - sum(GRID.length(index) for index in left))


@pytest.mark.parametrize("case", range(8))
def test_a_byte_of_the_ledger_is_another(pair: Pair, file: Path, staging: Staging, case: int) -> None:
    """In the header it costs everything, in a record that one chunk."""
    generator = random.Random(case)
    at = generator.randrange(ledger.HEADER_BYTES) if case % 4 == 0 else generator.randrange(LEDGER_BYTES)
    staging.change_byte(staging.ledger, at, generator)
    record = (at - ledger.HEADER_BYTES) // ledger.RECORD_BYTES
    lost = SIZE - MISSING_BYTES if record < 0 else GRID.length(HELD[record])
    check_sent(run(pair, file), MISSING_BYTES + lost)


def garbage(staging: Staging) -> int:
    """Fill the ledger with random bytes."""
    staging.ledger.write_bytes(random.Random(1).randbytes(LEDGER_BYTES))
    return SIZE


def deleted(staging: Staging) -> int:
    """Remove it."""
    staging.ledger.unlink()
    return SIZE


def emptied(staging: Staging) -> int:
    """Leave it as a file system may that lost its content in a crash."""
    staging.truncate_ledger(0)
    return SIZE


def zeroed(staging: Staging) -> int:
    """Leave it as a file system may that kept its length only."""
    staging.ledger.write_bytes(bytes(LEDGER_BYTES))
    return SIZE


def zeroed_at_its_end(staging: Staging) -> int:
    """Zero what was written last, as a file system may that kept the length only."""
    content = staging.ledger.read_bytes()
    kept = ledger.HEADER_BYTES + 20 * ledger.RECORD_BYTES
    staging.ledger.write_bytes(content[:kept] + bytes(len(content) - kept))
    return SIZE - 20 * CHUNK_SIZE


def of_another_size(staging: Staging) -> int:
    """Write that of a larger file, on which the same chunks lie at the same places: hashing decides."""
    staging.write_ledger(Grid(SIZE + 10 * CHUNK_SIZE, CHUNK_SIZE), _records(staging))
    return MISSING_BYTES


def of_a_smaller_file(staging: Staging) -> int:
    """Write that of a file which ends in chunk 20."""
    staging.write_ledger(Grid(20 * CHUNK_SIZE + 5, CHUNK_SIZE), _records(staging))
    return SIZE - 20 * CHUNK_SIZE


def beyond_the_file(staging: Staging) -> int:
    """Add sound records of chunks that the file does not have."""
    staging.write_ledger(GRID, [*_records(staging), (61, bytes(16)), (1 << 40, bytes(16)), ((1 << 64) - 1, bytes(16))])
    return MISSING_BYTES


def of_other_chunks(staging: Staging) -> int:
    """Give every chunk another one's digest."""
    indices = [index for index, _ in _records(staging)]
    digests = [digest for _, digest in _records(staging)]
    staging.write_ledger(GRID, zip(indices, digests[1:] + digests[:1], strict=True))
    return SIZE


def twice(staging: Staging) -> int:
    """Write each record twice: wrong, then right."""
    wrong = [(index, bytes(16)) for index in HELD]
    staging.write_ledger(GRID, [*wrong, *_records(staging)])
    return MISSING_BYTES


def claims_all(staging: Staging) -> int:
    """Claim chunks that were never written."""
    found = dict(_records(staging))
    staging.write_ledger(GRID, [(index, found.get(index, b"never there 1234")) for index in range(GRID.segments)])
    return MISSING_BYTES


def _records(staging: Staging) -> list[tuple[int, bytes]]:
    claims = staging.claims()
    return [(index, claims.digest(index)) for index in claims.indices()]


@pytest.mark.parametrize(
    "damage",
    [
        garbage,
        deleted,
        emptied,
        zeroed,
        zeroed_at_its_end,
        of_another_size,
        of_a_smaller_file,
        beyond_the_file,
        of_other_chunks,
        twice,
        claims_all,
    ],
)
def test_ledger_is_wrong(pair: Pair, file: Path, staging: Staging, damage: Callable[[Staging], int]) -> None:
    """Each says how many bytes are to be sent then."""
    sent_bytes = damage(staging)
    check_sent(run(pair, file), sent_bytes)


# ------------------------------------------------------------------------------------------ the staged data is damaged


@pytest.mark.parametrize("chunk", [0, 17, 60])
def test_staged_data_is_damaged_under_a_sound_ledger(pair: Pair, file: Path, staging: Staging, chunk: int) -> None:
    """A lost write, a bad disk: it shows when the data is hashed again, and that chunk is sent."""
    staging.change_byte(staging.data, GRID.offset(chunk) + 77, random.Random(chunk))
    check_sent(run(pair, file), MISSING_BYTES + GRID.length(chunk))


def test_staged_data_is_damaged_and_the_chunk_size_is_another(pair: Pair, file: Path, staging: Staging) -> None:
    """Then no digest of the ledger can tell: the sender's own does."""
    staging.change_byte(staging.data, 5 * CHUNK_SIZE, random.Random(1))
    missing = SIZE - staging.claimed_bytes(Grid(SIZE, CHUNK_SIZE // 4))
    check_sent(run(pair, file, "--chunk-size", CHUNK_SIZE // 4), missing + CHUNK_SIZE // 4)


@pytest.mark.parametrize("env", [{}, no_holes()], ids=["told", "not told"])
@pytest.mark.parametrize("was_hole", [True, False], ids=["was a hole", "was data"])
def test_holes(pair: Pair, file: Path, staging: Staging, was_hole: bool, env: Mapping[str, str]) -> None:
    """What was staged counts, also where it has data and the source has a hole now; also if the disk can't tell."""
    data_bytes = 20 * CHUNK_SIZE
    os.truncate(file, data_bytes)
    os.truncate(file, SIZE)
    if was_hole:
        staging.make(file, CHUNK_SIZE, range(15))
    receiver = pair.receiver("--once", env=env)
    sent = pair.sender(file, pair.address(receiver), "--chunk-size", CHUNK_SIZE).succeeds()
    receiver.succeeds()
    assert same(file, pair.destination / file.name)
    assert sent["bytes"] == data_bytes
    # What was staged with data in the holes is kept where it is right, and made zeros where it is not.
    check_sent(sent, 5 * CHUNK_SIZE if was_hole else 0)


def test_staged_data_is_shorter(pair: Pair, file: Path, staging: Staging) -> None:
    os.truncate(staging.data, 10 * CHUNK_SIZE + 1)
    check_sent(run(pair, file), SIZE - 10 * CHUNK_SIZE)


def test_staged_data_is_longer(pair: Pair, file: Path, staging: Staging) -> None:
    with staging.data.open("ab") as stream:
        stream.write(bytes(1000))
    check_sent(run(pair, file), MISSING_BYTES)


def test_staged_data_is_gone(pair: Pair, file: Path, staging: Staging) -> None:
    staging.data.unlink()
    check_sent(run(pair, file), SIZE)


def test_all_is_staged(pair: Pair, file: Path, staging: Staging) -> None:
    """It was killed between the last chunk and the commit."""
    staging.make(file, CHUNK_SIZE, range(GRID.segments))
    check_sent(run(pair, file), 0)


def test_killed_between_the_rename_and_the_end_of_the_commit(pair: Pair, file: Path, staging: Staging) -> None:
    """The file is in place, and its ledger was left: the next run is a new one, and leaves nothing."""
    staging.make(file, CHUNK_SIZE, range(GRID.segments))
    staging.data.rename(pair.destination / file.name)
    check_sent(run(pair, file), SIZE)


# --------------------------------------------------------------------------------------------------------- large files


def sparse(path: Path, size: int, island_every: int, seed: int) -> Path:
    """Make a file of holes with islands of random bytes."""
    island = make_file(path.with_name("island"), 70_001, seed).read_bytes()
    with path.open("wb") as stream:
        stream.truncate(size)
        for number, at in enumerate(range(7, size - len(island), island_every)):
            os.pwrite(stream.fileno(), number.to_bytes(8, "big") + island, at)
    path.with_name("island").unlink()
    return path


class Large:
    """Directories on a file system of holes, which the services are not told of: all of it is moved, or compared."""

    def __init__(self, root: Path, logs: Path) -> None:
        self.source = root / "source"
        self.destination = root / "destination"
        self.destination.mkdir()
        self.logs = logs
        self.services: list[Service] = []

    def start(self, command: str, *args: object) -> Service:
        """Start a service; it is ended with the fixture."""
        self.services.append(Service(command, *args, directory=self.logs, env=no_holes()))
        return self.services[-1]


@pytest.fixture
def large(memory: Path, tmp_path: Path) -> Iterator[Large]:
    """Return directories with room for more than there is memory, as long as it is holes."""
    with disk(memory / "large", 1 << 40) as root:
        made = Large(root, tmp_path)
        try:
            yield made
        finally:
            for service in made.services:
                service.end()


def memory_peak(service: Service) -> int:
    """Return the most memory that a process had, in bytes."""
    for line in Path(f"/proc/{service.process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def test_ten_gib_at_90_percent(large: Large, seed: int) -> None:
    """It sends at most 10 % and the windows; here exactly what is missing."""
    size, chunk_size = 10 * GIB, 4 * MIB
    source = sparse(large.source, size, 31 * MIB, seed)
    staging = Staging(large.destination, "source")
    grid = Grid(size, chunk_size)
    missing = [index for index in range(grid.segments) if index % 10 == 3]
    staging.make(source, chunk_size, (index for index in range(grid.segments) if index % 10 != 3))
    receiver = large.start("receiver", "--listen", "127.0.0.1:0", "--directory", large.destination, "--once")
    sender = large.start("sender", source, "--to", receiver.wait_for("listening")["address"])
    result = sender.succeeds(240)
    assert receiver.wait() == 0
    assert len(missing) * chunk_size == result["sent_bytes"] <= size // 10
    assert size - result["sent_bytes"] == result["held_bytes"]
    assert same(source, large.destination / "source")
    assert staging.is_gone()


def test_600_gb_begin_to_move_at_once(large: Large, seed: int) -> None:
    """What is missing moves within seconds, while the rest is re-hashed for minutes; memory stays bounded."""
    size, chunk_size = 600_000_000_000, 4 * MIB
    source = sparse(large.source, size, 5_000_000_000, seed)
    staging = Staging(large.destination, "source")
    grid = Grid(size, chunk_size)
    missing = {5, grid.segments // 2, grid.segments - 1}
    staging.make(source, chunk_size, (index for index in range(grid.segments) if index not in missing))
    records = staging.records
    receiver = large.start("receiver", "--listen", "127.0.0.1:0", "--directory", large.destination, "--once")
    sender = large.start("sender", source, "--to", receiver.wait_for("listening")["address"])
    staging.wait_for_records(records + len(missing))
    progress = sender.wait_for("progress", count=len(sender.events("progress")) + 2)
    moved = sum(grid.length(index) for index in missing)
    assert (moved, size) == (progress["acknowledged_bytes"], progress["size_bytes"])
    assert moved / size < progress["percent"] / 100 < 1, "held chunks are compared as the answer flows in"
    assert [memory_peak(service) // MIB for service in (sender, receiver) if memory_peak(service) > 300 * MIB] == []
    for service in (sender, receiver):
        service.signal(signal.SIGTERM)
        assert service.wait() == 143
