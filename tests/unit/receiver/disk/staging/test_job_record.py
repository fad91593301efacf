"""What a receiver remembers of the shards of a job, across its own end."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestreamer.wire.errors import Code, TransferFailed
from receiver.disk.destination import Destination
from receiver.disk.staging import job_record
from receiver.disk.staging.job_record import FinishedShard, JobRecord, SharedFile
from receiver.disk.staging.sweep import discard_older_than

A, B = "aa" * 16, "bb" * 16


@pytest.fixture
def destination(tmp_path: Path) -> Iterator[Destination]:
    made = Destination(str(tmp_path))
    yield made
    made.close()


def shard(destination: Destination, index: int, count: int = 2, job: str = "job") -> JobRecord:
    """Begin a shard."""
    record = JobRecord(destination, job, index, count)
    record.begin()
    return record


def end(record: JobRecord, walk_digest: str = A, *, left_out: bool = False) -> tuple[int, str, int]:
    """End a shard; return how many are finished, the digest if all are, and how many files still wait."""
    state, waiting = record.finish(FinishedShard(walk_digest, 10, 1000, left_out))
    return len(state.shards), state.complete, waiting


def test_the_last_one_completes_a_job(destination: Destination) -> None:
    assert end(shard(destination, 1)) == (1, "", 0)
    assert end(shard(destination, 0)) == (2, A, 0)
    assert end(shard(destination, 0)) == (2, A, 0)  # it comes again


def test_a_shard_that_runs_again_is_not_finished(destination: Destination) -> None:
    end(shard(destination, 0))
    again = shard(destination, 0)
    assert end(shard(destination, 1)) == (1, "", 0)
    assert end(again) == (2, A, 0)


def test_shards_that_saw_different_trees(destination: Destination) -> None:
    """Whoever comes second fails, until all have seen the same."""
    end(shard(destination, 0), A)
    for _ in range(2):
        with pytest.raises(TransferFailed, match="job job saw different trees") as caught:
            end(shard(destination, 1), B)
        assert caught.value.code is Code.SOURCE_CHANGED
    assert end(shard(destination, 0), B) == (2, B, 0)


def test_a_job_that_is_complete_may_begin_anew(destination: Destination) -> None:
    end(shard(destination, 0), A)
    end(shard(destination, 1), A)
    assert end(shard(destination, 0), B) == (1, "", 0)
    assert end(shard(destination, 1), B) == (2, B, 0)


def test_another_number_of_shards_begins_anew(destination: Destination) -> None:
    end(shard(destination, 0, 2))
    assert end(shard(destination, 1, 3)) == (1, "", 0)


def test_jobs_do_not_know_each_other(destination: Destination) -> None:
    end(shard(destination, 0, job="a"))
    assert end(shard(destination, 1, job="b")) == (1, "", 0)


def test_a_new_run_of_a_job_does_not_know_the_shards_of_an_earlier_one(tmp_path: Path) -> None:
    """The earlier one was not completed, and the source has changed since: shard 1 of it has seen another tree."""
    with contextlib.closing(Destination(str(tmp_path), run="uid-1")) as earlier:
        end(shard(earlier, 1), A)
    with contextlib.closing(Destination(str(tmp_path), run="uid-2")) as later:
        assert end(shard(later, 0), B) == (1, "", 0)
        assert end(shard(later, 1), B) == (2, B, 0)
    with contextlib.closing(Destination(str(tmp_path), run="uid-1")) as earlier:
        assert end(shard(earlier, 0), A) == (2, A, 0)


def test_a_file_that_waits_for_a_share_that_is_gone(tmp_path: Path, destination: Destination) -> None:
    first = shard(destination, 0)
    first.note_pending(SharedFile("x.shared", b"", b"large", 5))
    end(first)
    assert end(shard(destination, 1)) == (2, "", 1)
    (tmp_path / "large").write_bytes(b"whole")
    (tmp_path / ".filestreamer" / "x.shared").touch()
    assert end(shard(destination, 1)) == (2, "", 1)
    (tmp_path / ".filestreamer" / "x.shared").unlink()
    assert end(shard(destination, 1)) == (2, A, 0)


def test_a_file_of_which_a_shard_left_its_share_out_waits_for_nobody(destination: Destination) -> None:
    first = shard(destination, 0)
    first.note_pending(SharedFile("x.shared", b"", b"large", 5))
    end(first)
    assert end(shard(destination, 1), left_out=True) == (2, A, 0)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"shard_count": 2, "shards": {"0": [1]}, "complete": ""}', b"\xff"]
)
def test_a_record_that_is_damaged_knows_nothing(tmp_path: Path, destination: Destination, content: bytes) -> None:
    end(shard(destination, 0))
    (record,) = (tmp_path / ".filestreamer").glob("*.job")
    record.write_bytes(content)
    assert end(shard(destination, 1)) == (1, "", 0)


def test_a_line_that_is_torn_is_left_out(tmp_path: Path, destination: Destination) -> None:
    first = shard(destination, 0)
    first.note_pending(SharedFile("x.shared", b"", b"l", 5))
    end(first)
    (pending,) = (tmp_path / ".filestreamer").glob("*-0.pending")
    pending.write_bytes(b'["x.shared", "", "6c"')
    assert end(shard(destination, 1)) == (2, A, 0)


def test_the_oldest_of_many_jobs_is_forgotten(
    tmp_path: Path, destination: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_record, "_JOBS_MAX", 2)
    for number, job in enumerate(("a", "b", "c")):
        end(shard(destination, 0, job=job))
        for path in (tmp_path / ".filestreamer").iterdir():
            os.utime(path, (path.stat().st_mtime - 100 + number,) * 2)
    assert len(list((tmp_path / ".filestreamer").glob("*.job"))) == 2
    assert end(shard(destination, 1, job="a")) == (1, "", 0)
    assert end(shard(destination, 1, job="c")) == (2, A, 0)


def test_records_go_by_their_age(tmp_path: Path, destination: Destination) -> None:
    end(shard(destination, 0))
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
        shard(destination, 0, job=f"{number}").note_pending(SharedFile("x.shared", b"", b"l", 5))
    assert len(os.listdir(tmp_path / ".filestreamer")) == 4
