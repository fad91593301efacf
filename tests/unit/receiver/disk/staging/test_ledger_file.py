"""The ledger as a file: several threads append to it, on a disk that may be full."""

import errno
import os
import threading
from pathlib import Path

import pytest

from filestreamer.wire.errors import Code
from receiver.disk.destination import Destination
from receiver.disk.staging import ledger
from tests.support.staged_file import KEY, failure, stage, write


def records(path: Path) -> dict[int, bytes]:
    claims = ledger.decode((path / ".filestreamer" / f"{KEY}.ledger").read_bytes())
    assert claims is not None
    return {index: claims.digest(index) for index in claims.indices()}


def test_a_record_that_does_not_fit_leaves_no_part_of_it(
    path: Path, destination: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that follow, when there is space again, are read."""
    staged = stage(destination)
    write(staged, 0)
    real = os.write

    def full(fd: int, view: memoryview) -> int:
        if len(view) < ledger.RECORD_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, view[:10])

    monkeypatch.setattr(os, "write", full)
    failure(Code.NO_SPACE, staged.record, [(1, bytes(16))])
    monkeypatch.undo()
    write(staged, 2)
    staged.close()
    assert records(path).keys() == {0, 2}


def test_records_of_two_threads_do_not_run_into_each_other(
    path: Path, destination: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the kernel takes a part of one, and another thread comes in between."""
    staged = stage(destination)
    real = os.write
    other = threading.Thread(target=write, args=(staged, 1))

    def third(fd: int, view: memoryview) -> int:
        if other.ident is not None:
            return real(fd, view)
        written = real(fd, view[:10])
        other.start()
        other.join(0.2)  # it waits for its turn, or has damaged the record by then
        return written

    monkeypatch.setattr(os, "write", third)
    write(staged, 0)
    other.join()
    staged.close()
    assert records(path).keys() == {0, 1}
