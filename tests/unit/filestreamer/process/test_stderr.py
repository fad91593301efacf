"""Standard error that nobody waits for: order, what is dropped, how it ends, with and without a thread."""

import contextlib
import os
import threading
import time
from pathlib import Path

import pytest

from filestreamer.process.background import BACKLOG_BYTES
from filestreamer.process.stderr import Stderr
from tests.support.disks import disk, fill
from tests.support.services import HANG

LINE = "{:06d} " + 1000 * "x" + "\n"


def no_thread(_thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def drained(reader: int, stderr: Stderr) -> list[str]:
    """Read until all is written; return the lines."""
    content = bytearray()
    os.set_blocking(reader, False)
    end = time.monotonic() + HANG
    while True:
        is_finished = stderr.drain(0.01)
        with contextlib.suppress(BlockingIOError):
            while some := os.read(reader, 1 << 20):
                content += some
        if is_finished:
            return content.decode().splitlines()
        assert time.monotonic() < end


def accounted(lines: list[str]) -> int:
    """Check that lines are in order, each gap told where it is; return how many they stand for."""
    at = 0
    for line in lines:
        if line.endswith(" log lines were dropped"):
            at += int(line.split()[0])
        else:
            assert line == LINE.format(at).rstrip("\n")
            at += 1
    return at


@pytest.mark.parametrize("has_threads", [True, False])
def test_lines_come_in_order_and_each_gap_is_told_where_it_is(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, has_threads: bool
) -> None:
    """Twice as many as there is room for, while nobody reads; then some more, and a reader."""
    if not has_threads:
        monkeypatch.setattr(threading.Thread, "start", no_thread)
    reader, writer = pipe
    stderr = Stderr(writer, "utf-8")
    number = 2 * BACKLOG_BYTES // len(LINE.format(0))
    begun = time.monotonic()
    for at in range(number):
        stderr.write(LINE.format(at))
    assert time.monotonic() - begun < HANG
    assert not stderr.drain(0.0)
    dropped = stderr.dropped
    assert number // 3 < dropped < number

    lines = drained(reader, stderr)
    for at in range(number, number + 10):
        stderr.write(LINE.format(at))
    lines += drained(reader, stderr)
    assert accounted(lines) == number + 10
    assert stderr.dropped == dropped
    assert len(lines) == number + 10 - dropped + 1, "all that was dropped in one place is told in one line"


def test_what_is_dropped_is_told_without_a_further_line(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    stderr = Stderr(writer, "utf-8")
    number = 2 * BACKLOG_BYTES // len(LINE.format(0))
    for at in range(number):
        stderr.write(LINE.format(at))

    assert accounted(drained(reader, stderr)) == number


@pytest.mark.parametrize("has_threads", [True, False])
def test_a_pipe_that_somebody_made_not_blocking_loses_nothing(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, has_threads: bool
) -> None:
    if not has_threads:
        monkeypatch.setattr(threading.Thread, "start", no_thread)
    reader, writer = pipe
    os.set_blocking(writer, False)
    stderr = Stderr(writer, "utf-8")
    for at in range(500):
        stderr.write(LINE.format(at))
    assert accounted(drained(reader, stderr)) == 500
    assert stderr.dropped == 0


def test_who_has_written_a_line_finds_it_written(tmp_path: Path) -> None:
    """As long as its reader reads."""
    with (tmp_path / "log").open("wb") as file:
        stderr = Stderr(file.fileno(), "utf-8")
        for at in range(100):
            stderr.write(f"{at}\n")
            assert (tmp_path / "log").read_text().endswith(f"{at}\n")


def test_a_reader_that_left(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(reader)
    stderr = Stderr(writer, "utf-8")
    for at in range(10):
        stderr.write(f"{at}\n")

    assert stderr.drain(HANG)
    assert stderr.dropped == 10


def test_a_full_disk_tears_one_line_and_the_next_ones_are_whole(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", 1 << 20) as small:
        ballast = fill(small, leave_bytes=8192)
        fd = os.open(small / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        stderr = Stderr(fd, "utf-8")
        for at in range(50):
            stderr.write(LINE.format(at))
        assert stderr.drain(HANG)
        dropped = stderr.dropped
        assert 0 < dropped < 50
        ballast.unlink()
        for at in range(50, 60):
            stderr.write(LINE.format(at))
        assert stderr.drain(HANG)
        lines = (small / "log").read_text().splitlines()
        os.close(fd)
    torn = [line for line in lines if not line.endswith("xxx" * 100) or len(line) != 1007]
    assert torn[-1] == f"{dropped} log lines were dropped"
    assert len(torn) <= 2
    assert accounted([line for line in lines if line not in torn[:-1]]) == 60


def test_pieces_of_a_line_are_one_line(pipe: tuple[int, int]) -> None:
    """As print and tracebacks write them."""
    reader, writer = pipe
    stderr = Stderr(writer, "utf-8")
    print("send", "with", file=stderr)
    stderr.write("half")
    os.set_blocking(reader, False)
    assert os.read(reader, 1000) == b"send with\n"
    stderr.flush()
    assert os.read(reader, 1000) == b"half"


def test_what_the_encoding_has_no_bytes_for_is_escaped(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    Stderr(writer, "ascii").write("\u00fc\udcff\n")

    assert os.read(reader, 1000) == b"\\xfc\\udcff\n"


def test_threads_that_come_back_are_used(pipe: tuple[int, int]) -> None:
    """Without one, what can't be written at once waits for the next line."""
    reader, writer = pipe
    stderr = Stderr(writer, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        for at in range(200):
            stderr.write(LINE.format(at))
        assert not stderr.drain(0.0)
    stderr.write(LINE.format(200))
    lines = b""
    while lines.count(b"\n") < 201:
        lines += os.read(reader, 1 << 20)
    assert accounted(lines.decode().splitlines()) == 201
