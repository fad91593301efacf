"""What a receiver remembers of the shards of a job, across its own end."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestreamer.wire.errors import Code, TransferFailed
from filestreamer.wire.grid import Grid, Share
from filestreamer.wire.tree_shares import shard_of
from receiver.disk.destination import Destination
from receiver.disk.staging import job_record, ledger
from receiver.disk.staging.job_record import FinishedShard, JobRecord, SharedFile
from receiver.disk.staging.sweep import discard_older_than

A, B = "aa" * 16, "bb" * 16


@pytest.fixture
def destination(tmp_path: Path) -> Iterator[Destination]:
    made = Destination(str(tmp_path))
    yield made
    made.close()


def shard(destination: Destination, index: int, count: int = 2, job: str = "job", run: str = "") -> JobRecord:
    """Begin a shard."""
    record = JobRecord(destination, job, run, index, count)
    record.begin()
    return record


def end(record: JobRecord, walk_digest: str = A, *, left_out: bool = False) -> int:
    """End a shard; return how many are finished by now."""
    return len(record.finish(FinishedShard(walk_digest, 10, 1000, left_out)).shards)


def fails(record: JobRecord, code: Code, walk_digest: str = A) -> str:
    """End a shard, which fails with this code; return the reason."""
    with pytest.raises(TransferFailed) as caught:
        end(record, walk_digest)
    assert caught.value.code is code
    return caught.value.reason


def seal(top: Path, stem: str, segment: int, count: int = 2) -> None:
    """Leave the bytes of a shared file, and the ledger of a share that is sealed."""
    staging = top / ".filestreamer"
    (staging / f"{stem}.shared").touch()
    records = ledger.encode_records([ledger.seal_record(Share(segment, count), bytes(16))])
    (staging / f"{stem}-{segment}.ledger").write_bytes(ledger.encode_header(Grid(5, 3)) + records)


def test_the_last_one_completes_a_job(destination: Destination) -> None:
    assert end(shard(destination, 1)) == 1
    assert end(shard(destination, 0)) == 2
    assert end(shard(destination, 0)) == 2  # it comes again


def test_a_shard_that_runs_again_is_not_finished(destination: Destination) -> None:
    end(shard(destination, 0))
    again = shard(destination, 0)
    assert end(shard(destination, 1)) == 1
    assert end(again) == 2


def test_shards_that_saw_different_trees(destination: Destination) -> None:
    """Whoever comes second fails, until all have seen the same."""
    end(shard(destination, 0), A)
    for _ in range(2):
        assert "job job saw different trees" in fails(shard(destination, 1), Code.SOURCE_CHANGED, B)
    assert end(shard(destination, 0), B) == 2


def test_a_job_that_is_complete_may_begin_anew(destination: Destination) -> None:
    end(shard(destination, 0), A)
    end(shard(destination, 1), A)
    assert end(shard(destination, 0), B) == 1
    assert end(shard(destination, 1), B) == 2


def test_a_tree_that_changes_when_some_shards_of_a_complete_job_have_come_again(destination: Destination) -> None:
    """What came since may belong to a shard that saw the tree without it: they have to come once more."""
    for index in (0, 1, 0):
        end(shard(destination, index), A)
    fails(shard(destination, 1), Code.SOURCE_CHANGED, B)
    assert end(shard(destination, 0), B) == 2
    assert end(shard(destination, 1), A) == 1  # all had finished since


def test_a_new_run_of_the_receiver_begins_anew(destination: Destination) -> None:
    for index in (0, 1):
        end(shard(destination, index, run="uid-1"))
    assert end(shard(destination, 0, run="uid-2")) == 1
    assert end(shard(destination, 1, run="uid-2")) == 2


def test_another_number_of_shards_begins_anew(tmp_path: Path, destination: Destination) -> None:
    first = shard(destination, 0, 2)
    first.note_pending(SharedFile("x.shared", b"", b"large", 5, 2))
    late = shard(destination, 1, 2)
    end(first)
    assert end(shard(destination, 1, 3)) == 1
    assert not list((tmp_path / ".filestreamer").glob("*.pending"))
    assert end(late) == 1  # it counts for its own number alone


def test_jobs_do_not_know_each_other(destination: Destination) -> None:
    end(shard(destination, 0, job="a"))
    assert end(shard(destination, 1, job="b")) == 1


def test_a_file_that_waits_for_a_share_that_is_gone(tmp_path: Path, destination: Destination) -> None:
    """Whose share is gone is not finished any more, and the one that finds that fails: else all had exited 0."""
    first, second = shard(destination, 0), shard(destination, 1)
    for each in (first, second):
        each.note_pending(SharedFile("x.shared", b"", b"large", 5, 1))
    end(first)
    reason = fails(second, Code.DESTINATION)
    assert (reason.startswith("1 large file"), "Run all of them again" in reason) == (True, True)
    assert end(shard(destination, 1)) == 1
    (tmp_path / "large").write_bytes(b"whole")
    (tmp_path / ".filestreamer" / "x.shared").touch()
    first.note_pending(SharedFile("x.shared", b"", b"large", 5, 1))
    fails(first, Code.DESTINATION)
    (tmp_path / ".filestreamer" / "x.shared").unlink()
    assert end(first) == 2


def test_files_of_two_places_may_have_one_name_in_staging(tmp_path: Path, destination: Destination) -> None:
    """As replicas on two disks have: one of them is in place, and a share of the other one is gone."""
    first = shard(destination, 0)
    for place in ("m1", "m2"):
        (tmp_path / place).mkdir()
        first.note_pending(SharedFile("x.shared", place.encode(), f"{place}/large".encode(), 5, 1))
    end(first)
    (tmp_path / "m1" / "large").write_bytes(b"whole")
    second = shard(destination, 1)
    second.look_for_pending()
    assert "Run all of them again" in fails(second, Code.DESTINATION)


def test_a_file_of_which_a_shard_left_its_share_out_waits_for_nobody(tmp_path: Path, destination: Destination) -> None:
    first = shard(destination, 0)
    first.note_pending(SharedFile("x.shared", b"", b"large", 5, 2))
    seal(tmp_path, "x", segment=0 if shard_of(b"large", 0, 2) == 0 else 1)
    end(first)
    assert end(shard(destination, 1), left_out=True) == 2


def test_a_share_that_is_gone_is_missed_also_where_another_shard_left_something_out(destination: Destination) -> None:
    first = shard(destination, 0)
    first.note_pending(SharedFile("x.shared", b"", b"large", 5, 2))
    end(first)
    with pytest.raises(TransferFailed, match="Run all of them again"):
        end(shard(destination, 1), left_out=True)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"run": "", "shard_count": 2, "shards": {"0": [1]}}', b"\xff"])
def test_a_record_that_is_damaged_knows_nothing(tmp_path: Path, destination: Destination, content: bytes) -> None:
    end(shard(destination, 0))
    (record,) = (tmp_path / ".filestreamer").glob("*.job")
    record.write_bytes(content)
    assert end(shard(destination, 1)) == 1


def test_a_line_that_is_torn_is_left_out(tmp_path: Path, destination: Destination) -> None:
    first = shard(destination, 0)
    first.note_pending(SharedFile("x.shared", b"", b"l", 5, 2))
    end(first)
    (pending,) = (tmp_path / ".filestreamer").glob("*-0.pending")
    pending.write_bytes(b'["x.shared", "", "6c"')
    assert end(shard(destination, 1)) == 2


def test_a_disk_that_fills_while_a_file_is_noted(destination: Destination, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a line would be left out, and spoil the next one: the shard ends, and comes again."""
    record, write = shard(destination, 0), os.write
    monkeypatch.setattr(os, "write", lambda fd, line: write(fd, line[:9]))
    with pytest.raises(TransferFailed) as caught:
        record.note_pending(SharedFile("x.shared", b"", b"l", 5, 2))
    assert caught.value.code is Code.NO_SPACE


def test_the_oldest_of_many_jobs_is_forgotten(
    tmp_path: Path, destination: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_record, "_JOBS_MAX", 2)
    for number, job in enumerate(("a", "b", "c")):
        end(shard(destination, 0, job=job))
        for path in (tmp_path / ".filestreamer").iterdir():
            os.utime(path, (path.stat().st_mtime - 100 + number,) * 2)
    assert len(list((tmp_path / ".filestreamer").glob("*.job"))) == 2
    assert end(shard(destination, 1, job="a")) == 1
    assert end(shard(destination, 1, job="c")) == 2


def test_records_go_by_their_age(tmp_path: Path, destination: Destination) -> None:
    end(shard(destination, 0))
    (record,) = (tmp_path / ".filestreamer").glob("*.job")
    record.with_name(record.name + "-new").write_bytes(b"torn")  # as a crash leaves it
    discard_older_than(destination, None, 1 << 40)
    assert (tmp_path / ".filestreamer").exists()
    discard_older_than(destination, 100.0, 1 << 40)
    assert os.listdir(tmp_path) == []


def test_a_job_that_never_ended_is_bounded_too(
    tmp_path: Path, destination: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its shards have noted goes with its record."""
    monkeypatch.setattr(job_record, "_JOBS_MAX", 2)
    for number in range(5):
        shard(destination, 0, job=f"{number}").note_pending(SharedFile("x.shared", b"", b"l", 5, 2))
    assert len(os.listdir(tmp_path / ".filestreamer")) == 4
