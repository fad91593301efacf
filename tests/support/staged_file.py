"""One file of known content, staged through the receiver's own modules, and what is looked at of it on the disk."""

import os
from pathlib import Path

import pytest

from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import Code, TransferFailed
from filestreamer.wire.grid import Grid
from filestreamer.wire.messages import Entry, EntryType
from receiver.disk.destination import Destination
from receiver.disk.staging.staging import Staging

NAME = b"f"
KEY = segment_digest(NAME).hex()
CONTENT = b"0123456789" * 10
GRID = Grid(len(CONTENT), 30)
ENTRY = Entry(NAME, EntryType.FILE, len(CONTENT), 0o4640, 1_234_567_890_123_456_789)
MIB = 1 << 20
LARGE = Grid(64 * MIB, MIB)


def failure(code: Code, call: object, *args: object) -> str:
    """Call something that fails; return the line that says why."""
    assert callable(call)
    with pytest.raises(TransferFailed) as caught:
        call(*args)
    assert code is caught.value.code
    assert "\n" not in str(caught.value)
    return str(caught.value)


def stage(destination: Destination, grid: Grid = GRID, entry: Entry = ENTRY, reserved_bytes: int = 0) -> Staging:
    return Staging.open_single_file(destination, NAME, entry._replace(size=grid.size), grid, reserved_bytes)


def write(staged: Staging, *indices: int) -> None:
    """Write segments of CONTENT, and say so in the ledger."""
    for index in indices:
        offset = GRID.offset(index)
        block = CONTENT[offset : offset + GRID.length(index)]
        staged.write(memoryview(block), offset)
        staged.record([(index, segment_digest(block))])


def fill(staged: Staging, *indices: int) -> None:
    """Write segments of LARGE, each of another byte, and say so in the ledger."""
    for index in indices:
        block = bytes([index + 1]) * MIB
        staged.write(memoryview(block), index * MIB)
        staged.record([(index, segment_digest(block))])


def filled(path: Path, index: int) -> bool:
    with path.open("rb") as file:
        return bytes([index + 1]) * MIB == os.pread(file.fileno(), MIB, index * MIB)


def staged_data(path: Path) -> Path:
    return path / ".filestreamer" / f"{KEY}.data"


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def taken(path: Path) -> int:
    """Count the bytes that a file takes on the disk, without what the file system needs to find them."""
    return allocated(path) // MIB * MIB


def kill(staged: Staging) -> None:
    """Leave staging as a process that is killed does: the lock is gone, and nothing was cleaned up."""
    while staged._fds:
        os.close(staged._fds.pop())
    staged.space.close()


def never() -> bool:
    return False
