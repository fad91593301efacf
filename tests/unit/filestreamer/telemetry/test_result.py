"""The result object: what a script reads of every kind of end, and where it is written."""

import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from filestreamer.telemetry.counters import SKIPPED_MAX, ConnectionCounters, JobCounts, Skipped, TransferCounters
from filestreamer.telemetry.result import TransferResult, write
from filestreamer.version import VERSION
from filestreamer.wire.errors import (
    Code,
    ConnectionLost,
    Interrupted,
    Partial,
    Refused,
    RemoteProtocolError,
    TransferFailed,
    UsageError,
)
from filestreamer.wire.messages import SkipKind, Standing

FIELDS = (
    "status version exit_code error transfer_id committed files bytes sent_bytes held_bytes unchecked_bytes seconds "
    "bytes_per_second connections chunk_size chunks resent_chunks stolen_chunks reconnects straggler_seconds "
    "bottleneck root_digest job left_files deleted_files undeletable_files dry_run verdicts "
    "skipped_files skipped_kinds skipped warnings per_connection"
).split()


class Log:
    """Remembers warnings."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))


@pytest.fixture
def log() -> Any:
    return Log()


class Terminal(io.StringIO):
    """Standard output, as a terminal."""

    def isatty(self) -> bool:
        return True


def counters(**fields: Any) -> TransferCounters:
    """Return the counters of a transfer of 10 seconds over two connections, of which some was there before."""
    connections = [
        ConnectionCounters(0, moved_bytes=700, acknowledged_bytes=600, chunks=6, resent_chunks=1, finished_at=107.5),
        ConnectionCounters(1, moved_bytes=400, acknowledged_bytes=400, chunks=4, stolen_chunks=2, finished_at=109.0),
        ConnectionCounters(2, reconnects=3, stage_seconds={"read": 0.25}),
        ConnectionCounters(3),  # opened ahead, and not needed
    ]
    known: dict[str, Any] = {
        "transfer_id": bytes(range(16)),
        "name": "in.txt",
        "size_bytes": 1500,
        "held_bytes": 500,
        "chunks": 15,
        "chunk_size": 100,
        "phase": "complete",
        "started_at": 100.0,
        "ended_at": 110.0,
        "connections": connections,
    }
    return TransferCounters(**known | fields)


def result(error: BaseException | None = None, **fields: Any) -> TransferResult:
    committed = error is None
    digest = b"\xab" * 16 if committed else None
    return TransferResult.from_counters(counters(**fields), error=error, committed=committed, root_digest=digest)


def test_a_complete_transfer() -> None:
    read = json.loads(result().to_json())

    assert list(read) == FIELDS
    per_connection = read.pop("per_connection")
    assert read == {
        "status": "complete",
        "version": VERSION,
        "exit_code": 0,
        "error": None,
        "transfer_id": "000102030405060708090a0b0c0d0e0f",
        "committed": True,
        "files": 1,
        "bytes": 1500,
        "sent_bytes": 1100,
        "held_bytes": 500,
        "unchecked_bytes": 0,
        "seconds": 10.0,
        "bytes_per_second": 100.0,
        "connections": 3,
        "chunk_size": 100,
        "chunks": 15,
        "resent_chunks": 1,
        "stolen_chunks": 2,
        "reconnects": 3,
        "straggler_seconds": 1.5,
        "bottleneck": None,
        "root_digest": "ab" * 16,
        "job": None,
        "left_files": 0,
        "deleted_files": 0,
        "undeletable_files": 0,
        "dry_run": False,
        "verdicts": {},
        "skipped_files": 0,
        "skipped_kinds": {},
        "skipped": [],
        "warnings": [],
    }
    assert [item["connection_id"] for item in per_connection] == [0, 1, 2]
    assert [item["bytes"] for item in per_connection] == [600, 400, 0]
    assert [item["chunks"] for item in per_connection] == [6, 4, 0]
    assert [item["reconnects"] for item in per_connection] == [0, 0, 3]
    assert per_connection[2]["stage_seconds"] == {"read": 0.25}


def test_a_connection_that_was_given_up_on_the_way_is_no_first_one_of_many() -> None:
    """It ended because fewer did as well; it waited for nobody."""
    made = counters()
    made.connections.append(ConnectionCounters(3, moved_bytes=100, chunks=1, finished_at=101.0, is_dismissed=True))

    outcome = TransferResult.from_counters(made, error=None, committed=True, root_digest=None)
    assert (outcome.connections, outcome.straggler_seconds) == (4, 1.5)


def test_json_is_one_line_of_ascii() -> None:
    line = result(TransferFailed(Code.SOURCE, "can't read ü\n\udcff")).to_json()

    assert line.isascii()
    assert "\n" not in line


@pytest.mark.parametrize(
    ("error", "status", "exit_code", "code", "retryable"),
    [
        (ConnectionLost("nobody answers"), "failed", 1, "connection_lost", True),
        (TransferFailed(Code.BUSY, "busy"), "failed", 1, "busy", True),
        (TransferFailed(Code.NO_SPACE, "full"), "failed", 4, "no_space", False),
        (RemoteProtocolError("nonsense"), "refused", 3, "protocol", False),
        (Refused(Code.TOKEN, "wrong token"), "refused", 3, "token", False),
        (Refused(Code.BUSY, "busy"), "failed", 1, "busy", True),
        (Interrupted(15), "interrupted", 143, "interrupted", True),
        (KeyboardInterrupt(), "interrupted", 130, "interrupted", True),
        (UsageError("--to is required"), "failed", 2, "usage", False),
        (ZeroDivisionError("division by zero"), "failed", 1, "internal", False),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_every_end_has_its_status(
    error: BaseException, status: str, exit_code: int, code: str, *, retryable: bool
) -> None:
    for made in (result(error), TransferResult.without_transfer(error)):
        read = json.loads(made.to_json())
        assert list(read) == FIELDS
        assert (read["status"], read["exit_code"], read["committed"]) == (status, exit_code, False)
        assert (read["error"]["code"], read["error"]["retryable"]) == (code, retryable)
        assert str(error) in read["error"]["message"]


def test_without_a_transfer_there_is_no_id() -> None:
    read = json.loads(TransferResult.without_transfer(UsageError("--to is required")).to_json())

    assert read["error"] == {"code": "usage", "message": "--to is required", "retryable": False}
    assert read["transfer_id"] is None
    assert read["per_connection"] == []
    assert (read["bytes"], read["seconds"]) == (0, 0.0)


def test_an_empty_file_in_no_time() -> None:
    read = json.loads(result(size_bytes=0, held_bytes=0, connections=[], chunk_size=0, ended_at=100.0).to_json())

    assert (read["bytes_per_second"], read["straggler_seconds"], read["chunk_size"]) == (0.0, 0.0, None)


def test_a_line_of_json_where_standard_output_is_no_terminal(log: Any) -> None:
    stdout = io.StringIO()
    write(result(), stdout, None, log)

    assert stdout.getvalue() == result().to_json() + "\n"
    assert log.lines == []


def test_a_summary_on_a_terminal(log: Any) -> None:
    stdout = Terminal()
    write(result(), stdout, None, log)

    assert stdout.getvalue().splitlines() == [
        "complete: 1.46 KiB in 10.00 s (100 B/s over 3 connections)",
        "  500 B of it were there before",
        "  1 chunk resent, 3 reconnects",
    ]


def test_a_plain_summary_is_one_line() -> None:
    made = result(held_bytes=0, connections=[ConnectionCounters(0, moved_bytes=1500, acknowledged_bytes=1500)])

    assert made.summary() == "complete: 1.46 KiB in 10.00 s (150 B/s over 1 connection)"


def test_the_result_of_a_shard_of_a_tree() -> None:
    counts = JobCounts("move-1", "2/4", 3, 1200, 5 << 30)
    made = TransferResult.from_counters(
        TransferCounters(bytes(16), "t", job=counts), error=None, committed=False, root_digest=None
    )

    lines = made.summary().splitlines()
    assert "  shard 2/4 of job move-1: 3 shards are finished, with 1200 files and 5.00 GiB" in lines
    assert "  not all of the job: other shards are not complete yet" in lines
    assert json.loads(made.to_json())["job"] == {
        "name": "move-1",
        "shard": "2/4",
        "shards_finished": 3,
        "files": 1200,
        "bytes": 5 << 30,
    }


def test_a_summary_of_a_shard_says_that_the_file_waits() -> None:
    made = TransferResult.from_counters(TransferCounters(bytes(16), "f"), error=None, committed=False, root_digest=None)

    assert made.summary().splitlines()[1] == "  one share of the file: other shares are not complete yet"


def test_an_error_on_a_terminal_is_one_line_that_the_terminal_does_not_obey() -> None:
    shown = TransferResult.without_transfer(Refused(Code.POLICY, "no\x1b[2J\nreally")).summary()

    assert shown == r"refused: the receiver refused: no\x1b[2J\nreally"


def test_the_result_file_holds_json_even_on_a_terminal(tmp_path: Path, log: Any) -> None:
    path = tmp_path / "result.json"
    path.write_text("an older and much longer result" * 1000)
    write(result(), Terminal(), str(path), log)

    assert path.read_text() == result().to_json() + "\n"
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_link_to_the_result_file_stays_a_link(tmp_path: Path, log: Any) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(result(), io.StringIO(), str(tmp_path / "link"), log)

    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "real").read_text())["status"] == "complete"


def test_a_device_is_written_and_not_replaced(log: Any) -> None:
    write(result(), io.StringIO(), os.devnull, log)

    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert log.lines == []


@pytest.mark.parametrize("path", ["/dev/fd/{}", "/proc/self/fd/{}", "{link}"])
def test_an_open_descriptor_is_written_to(tmp_path: Path, log: Any, path: str) -> None:
    """As the shell gives it: `>(...)` is a pipe without a path, and `>> FILE` a file with more than this in it."""
    reads, writes = os.pipe()
    os.set_inheritable(writes, True)
    link = tmp_path / "link"
    link.symlink_to(f"/dev/fd/{writes}")
    write(result(), io.StringIO(), path.format(writes, link=link), log)
    os.close(writes)
    with open(reads) as pipe:
        assert json.loads(pipe.read())["status"] == "complete"
    assert (log.lines, os.listdir(tmp_path)) == ([], ["link"])


def test_a_file_that_is_open_is_not_replaced(tmp_path: Path, log: Any) -> None:
    path = tmp_path / "transfers.log"
    path.write_text("the run before\n")
    inode = path.stat().st_ino
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.set_inheritable(fd, True)
    write(result(), io.StringIO(), f"/dev/fd/{fd}", log)
    os.close(fd)
    assert path.read_text().splitlines() == ["the run before", result().to_json()]
    assert path.stat().st_ino == inode


def test_a_descriptor_of_this_program_is_not_written_to(tmp_path: Path, log: Any) -> None:
    with (tmp_path / "its own").open("wb") as file:
        write(result(), io.StringIO(), f"/dev/fd/{file.fileno()}", log)
        write(result(), io.StringIO(), "/dev/fd/999", log)
    assert (tmp_path / "its own").read_bytes() == b""
    assert [event for event, _ in log.lines] == ["result_not_written"] * 2


def test_a_file_that_can_not_be_replaced_is_written_in_place(
    tmp_path: Path, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Kubernetes' termination log: a mount point."""
    path = tmp_path / "termination-log"
    path.write_text("")

    def busy(_from: str, _to: str) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(os, "replace", busy)
    write(result(), io.StringIO(), str(path), log)

    assert json.loads(path.read_text())["status"] == "complete"
    assert os.listdir(tmp_path) == ["termination-log"]


def test_a_termination_message_is_whole_json_however_many_connections(
    tmp_path: Path, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubernetes keeps the last 4096 bytes: the end of a longer one would be no JSON."""
    path = tmp_path / "termination-log"
    monkeypatch.setattr("filestreamer.telemetry.result.TERMINATION_LOG", str(path))
    many = result(connections=[ConnectionCounters(number, moved_bytes=1) for number in range(256)])
    stdout = io.StringIO()
    write(many, stdout, str(path), log)

    assert len(path.read_bytes()) <= 4096
    kept = json.loads(path.read_text())
    assert kept["connections"] == len(json.loads(stdout.getvalue())["per_connection"]) == 256
    assert kept["per_connection"] == []
    write(result(), None, str(path), log)
    assert len(json.loads(path.read_text())["per_connection"]) == 3


@pytest.mark.parametrize("length", [10, 200, 4000], ids=["short paths", "long paths", "a path longer than the message"])
def test_a_termination_message_names_as_much_of_what_was_skipped_as_fits(
    tmp_path: Path, log: Any, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """How many there are of each kind is always there."""
    path = tmp_path / "termination-log"
    monkeypatch.setattr("filestreamer.telemetry.result.TERMINATION_LOG", str(path))
    counted = counters()
    for number in range(SKIPPED_MAX + 50):
        kind = SkipKind.VANISHED if number % 3 else SkipKind.SPECIAL
        counted.leave_out(Skipped(f"{number:03}é" + "x" * length, "it is gone", kind))
    error = counted.shortfall()
    assert error is not None
    full = TransferResult.from_counters(counted, error=error, committed=True, root_digest=None)
    write(full, None, str(path), log)

    assert len(path.read_bytes()) <= 4096
    kept = json.loads(path.read_text())
    assert kept["skipped_kinds"] == {"vanished": 100, "special": 50}
    assert (kept["skipped_files"], kept["exit_code"], kept["error"]["code"]) == (150, 5, "partial")
    assert kept["error"]["message"]
    if length < 4000:
        assert kept["error"]["message"] == str(error)
        assert kept["skipped"] == json.loads(full.to_json())["skipped"][: len(kept["skipped"])]
        room = 4096 - len(path.read_bytes())
        assert room < len(json.dumps(json.loads(full.to_json())["skipped"][0])) + 10


def test_everything_but_what_was_skipped() -> None:
    """The exit code says so, unless nothing but special files and tolerated kinds were skipped."""
    counted = counters(tolerated=frozenset({SkipKind.VANISHED}))
    assert counted.shortfall() is None
    counted.leave_out(Skipped("a", "it is a FIFO", SkipKind.SPECIAL))
    counted.leave_out(Skipped("b", "it is gone", SkipKind.VANISHED))
    assert counted.shortfall() is None
    counted.leave_out(Skipped("c", "its times changed", SkipKind.CHANGED))
    error = counted.shortfall()
    assert (error and error.exit_code, error and error.name, error and error.retryable) == (5, "partial", False)
    made = TransferResult.from_counters(counted, error=error, committed=True, root_digest=None)
    assert (made.status, made.exit_code, made.committed) == ("failed", 5, True)
    assert made.skipped_kinds == {"vanished": 1, "changed": 1, "special": 1}
    lines = made.summary("tree").splitlines()
    assert lines[0] == (
        "failed: tree: 1 entry was skipped (1 changed), the first: c: its times changed; all other files are complete"
    )
    assert lines[1].startswith("  moved: ")
    assert "3 entries skipped (1 vanished, 1 changed, 1 special)" in lines[2]


def test_a_result_file_that_can_not_be_written_is_one_warning(tmp_path: Path, log: Any) -> None:
    path = str(tmp_path / "missing" / "result.json")
    stdout = io.StringIO()
    write(result(), stdout, path, log)

    assert log.lines == [("result_not_written", {"to": path, "reason": "No such file or directory"})]
    assert stdout.getvalue() != ""


def test_no_standard_output_is_no_failure(tmp_path: Path, log: Any) -> None:
    write(result(), None, str(tmp_path / "result.json"), log)

    assert (tmp_path / "result.json").exists()
    assert log.lines == []


def test_a_full_standard_output_changes_no_exit_code() -> None:
    """Without care the interpreter fails a second time, at its end, and exits with 120."""
    program = (
        "import sys; from filestreamer.process import log; from filestreamer.telemetry import result;"
        "from filestreamer.wire.errors import Interrupted;"
        "made = result.TransferResult.without_transfer(Interrupted(15));"
        "result.write(made, sys.stdout, None, log.configure('sender')); sys.exit(made.exit_code)"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, check=False
        )

    assert done.returncode == 143
    (line,) = done.stderr.splitlines()
    assert json.loads(line)["event"] == "result_not_written"


def test_what_could_not_be_read_goes_before_what_is_merely_left_out() -> None:
    """However many entries of a tree are special files: the first that failed is what the error names."""
    counters = TransferCounters(bytes(16), "tree")
    for number in range(SKIPPED_MAX + 5):
        counters.leave_out(Skipped(f"fifo {number}", "it is a FIFO", SkipKind.SPECIAL))
    for number in range(SKIPPED_MAX + 5):
        counters.leave_out(Skipped(f"secret {number}", "no", SkipKind.UNREADABLE))
    assert [f"secret {number}" for number in range(SKIPPED_MAX)] == [each.path for each in counters.skipped]
    assert (counters.skipped_files, counters.failed_files) == (2 * SKIPPED_MAX + 10, SKIPPED_MAX + 5)


def test_what_could_not_be_removed_is_a_failure() -> None:
    """It is no skipped entry, but the mirror is not exact; who tolerates declined entries tolerates it."""
    counted = counters(undeletable_files=2, deleted_files=5)
    error = counted.shortfall()
    assert error is not None
    assert (error.exit_code, counted.failed_files, counted.skipped_files) == (5, 2, 0)
    assert "2 not removed" in str(error)
    assert counters(undeletable_files=2, tolerated=frozenset({SkipKind.DECLINED})).shortfall() is None


def test_the_summary_of_a_dry_run_and_of_a_mirror() -> None:
    asked = TransferResult.from_counters(
        counters(verdicts={Standing.SAME: 3, Standing.NEW: 1}), error=None, committed=False, root_digest=None
    )
    assert "only asked: 1 new, 3 same" in asked.summary()
    assert "share" not in asked.summary()
    mirrored = result(left_files=1, deleted_files=20).summary()
    assert "1 entry left as it is" in mirrored
    assert "20 entries removed" in mirrored


@pytest.mark.parametrize("error", [None, Partial("1 entry was skipped")])
def test_a_result_that_was_kept_is_the_same_result(error: BaseException | None) -> None:
    """As a receipt keeps it, in JSON."""
    skipped = [Skipped("t/a", "gone", SkipKind.VANISHED, b"t/a")]
    first = result(error, skipped=skipped, job=JobCounts("photos", "1/2", 2, 3, 4), warnings=["copies"])
    again = TransferResult.from_fields(json.loads(json.dumps(first.fields())))
    assert again == first
    assert again.to_json() == first.to_json()


@pytest.mark.parametrize("fields", [{}, {"status": "complete"}, {"status": "complete", "exit_code": 0, "unknown": 1}])
def test_fields_that_are_no_result(fields: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        TransferResult.from_fields(fields)
