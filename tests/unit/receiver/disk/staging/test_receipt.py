"""The receipt of a run: what it has committed, known to a later process of the same run alone."""

import os
from pathlib import Path
from typing import Any

import pytest

from filestreamer.wire.errors import Code, TransferFailed
from receiver.disk.destination import Destination
from receiver.disk.staging.receipt import Receipt
from receiver.disk.staging.sweep import discard_older_than
from tests.support.disks import record_syncs

RESULT: dict[str, Any] = {"status": "complete", "files": 3}


@pytest.fixture
def destination(tmp_path: Path) -> Destination:
    return Destination(str(tmp_path))


def only_file(destination: Destination) -> Path:
    (path,) = (Path(destination.path) / ".filestreamer").iterdir()
    return path


def test_a_receipt_is_read_by_the_same_run(destination: Destination) -> None:
    assert Receipt(destination, "uid-1", "photos").read() is None
    assert os.listdir(destination.path) == []
    Receipt(destination, "uid-1", "photos").keep(RESULT)
    assert Receipt(destination, "uid-1", "photos").read() == RESULT
    assert only_file(destination).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("run", "job"), [("uid-2", "photos"), ("uid-1", "mails"), ("uid-1", "")])
def test_no_other_run_and_no_other_job_reads_it(destination: Destination, run: str, job: str) -> None:
    Receipt(destination, "uid-1", "photos").keep(RESULT)
    assert Receipt(destination, run, job).read() is None


def test_a_receipt_is_durable_with_the_directory_that_it_is_in(
    destination: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transfer that is complete has removed that directory: the receipt makes it anew."""
    synced = record_syncs(monkeypatch)
    Receipt(destination, "uid-1", "photos").keep(RESULT)
    assert synced[1:] == [f"{destination.path}/.filestreamer", destination.path]


def test_a_run_may_end_twice(destination: Destination) -> None:
    receipt = Receipt(destination, "uid-1", "photos")
    receipt.keep(RESULT)
    receipt.keep({**RESULT, "files": 4})
    assert receipt.read() == {**RESULT, "files": 4}
    only_file(destination)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"{",
        b"null",
        b"[1]",
        b'{"run": "uid-1", "job": "photos"}',
        b'{"run": "uid-1", "job": "photos", "result": 1}',
    ],
)
def test_a_damaged_receipt_is_none(destination: Destination, content: bytes) -> None:
    receipt = Receipt(destination, "uid-1", "photos")
    receipt.keep(RESULT)
    only_file(destination).write_bytes(content)
    assert receipt.read() is None
    receipt.keep(RESULT)
    assert receipt.read() == RESULT


def test_a_link_in_its_place_is_not_followed(destination: Destination, tmp_path: Path) -> None:
    receipt = Receipt(destination, "uid-1", "photos")
    receipt.keep(RESULT)
    path = only_file(destination)
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(TransferFailed) as caught:
        receipt.read()
    assert caught.value.code is Code.DESTINATION


def test_only_the_newest_are_kept(destination: Destination, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("receiver.disk.staging.receipt._RECEIPTS_MAX", 3)
    for number in range(5):
        Receipt(destination, f"uid-{number}", "photos").keep(RESULT)
        newest = max((Path(destination.path) / ".filestreamer").iterdir(), key=lambda path: path.stat().st_ctime_ns)
        os.utime(newest, (number, number))
    read = [Receipt(destination, f"uid-{number}", "photos").read() for number in range(5)]
    assert read == [None, None, RESULT, RESULT, RESULT]


def test_they_are_discarded_by_age(destination: Destination) -> None:
    receipt = Receipt(destination, "uid-1", "photos")
    receipt.keep(RESULT)
    discard_older_than(destination, None, 1e12)
    assert receipt.read() == RESULT
    discard_older_than(destination, 10, 1e12)
    assert receipt.read() is None
