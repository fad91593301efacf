"""Nobody waits for who reads a log or a result, and what is repeated is counted: real services that nobody reads.

Each is given a pipe that is full, or a terminal that is stopped: who writes there without care hangs.
"""

import contextlib
import fcntl
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from tests.support.disks import disk, fill
from tests.support.scrape import METRICS, scrape
from tests.support.services import HANG, UNIT, Pair, Service, held_port, same
from tests.support.waiting import until

MIB = 1 << 20
STRANGERS = 2000


class FullPipe:
    """A pipe that takes nothing more, until somebody reads it."""

    def __init__(self) -> None:
        self._reader, self.writer = (os.fdopen(fd, mode, 0) for fd, mode in zip(os.pipe(), ("rb", "wb"), strict=True))
        self.filling = 0
        flags = fcntl.fcntl(self.writer, fcntl.F_GETFL)
        os.set_blocking(self.writer.fileno(), False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.filling += os.write(self.writer.fileno(), b"\n" * 4096)
        fcntl.fcntl(self.writer, fcntl.F_SETFL, flags)
        self._content = b""
        self._thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        self._content = self._reader.read()

    def read(self) -> None:
        """Begin to read, to the end: of whoever else has it open."""
        self.writer.close()
        self._thread.start()

    def lines(self) -> list[dict[str, Any]]:
        """Return what was written behind what it was filled with, once it has ended."""
        self._thread.join()
        return [json.loads(line) for line in self._content[self.filling :].splitlines()]

    def close(self) -> None:
        self.writer.close()
        if self._thread.is_alive():
            self._thread.join()
        self._reader.close()


@pytest.fixture
def full() -> Iterator[FullPipe]:
    made = FullPipe()
    yield made
    made.close()


def ends(service: Service, code: int) -> None:
    """Check that a service ends soon, and waits for nobody who reads nothing."""
    begun = time.monotonic()
    assert service.wait() == code
    assert time.monotonic() - begun < 2 * UNIT


def is_alive(address: str) -> bool:
    """Ask a metrics port whether its service lives."""
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{address}/healthz", timeout=HANG) as response:
        return bool(response.read() == b"alive\n")
    return False


def disturb(address: str, number: int) -> None:
    """Connect so often, and say what no sender says."""
    host, _, port = address.rpartition(":")
    for _ in range(number):
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), HANG) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            while stranger.recv(4096):
                pass


# --- standard error


def test_a_receiver_whose_log_nobody_reads(pair: Pair, full: FullPipe) -> None:
    """It receives, answers, turns strangers away, and ends; what it logged is there for who comes back."""
    with held_port() as port, held_port() as metrics:
        receiver = pair.start(
            "receiver",
            *("--listen", f"127.0.0.1:{port}", "--directory", pair.destination, "--metrics", f"127.0.0.1:{metrics}"),
            stderr=full.writer,
        )
        file = pair.file("f", 3 * MIB)
        pair.sender(file, f"127.0.0.1:{port}").succeeds()
        assert same(file, pair.destination / "f")
        disturb(f"127.0.0.1:{port}", 50)
        assert is_alive(f"127.0.0.1:{metrics}")
        pair.sender(pair.file("g", 10), f"127.0.0.1:{port}").succeeds()
        receiver.signal(signal.SIGTERM)
        full.read()
        ends(receiver, 128 + signal.SIGTERM)
    events = [line["event"] for line in full.lines()]
    assert [event for event in events if event in ("metrics", "listening")] == ["metrics", "listening"]
    assert events.count("transfer_complete") == 2
    assert sum(line.get("count", 1) for line in full.lines() if line["event"] == "connection_refused") == 50


@contextlib.contextmanager
def unread(pair: Pair, full: FullPipe) -> Iterator[Service]:
    """Start a receiver whose log nobody reads, and wait until it lives."""
    with held_port() as port, held_port() as metrics:
        where = ("--directory", pair.destination, "--metrics", f"127.0.0.1:{metrics}")
        receiver = pair.start("receiver", "--listen", f"127.0.0.1:{port}", *where, stderr=full.writer)
        until(lambda: is_alive(f"127.0.0.1:{metrics}"), "a receiver")
        yield receiver


def test_sigterm_ends_a_receiver_whose_log_nobody_ever_reads(pair: Pair, full: FullPipe) -> None:
    with unread(pair, full) as receiver:
        receiver.signal(signal.SIGTERM)
        ends(receiver, 128 + signal.SIGTERM)


def test_a_second_signal_ends_it_at_once(pair: Pair, full: FullPipe) -> None:
    with unread(pair, full) as receiver:
        receiver.signal(signal.SIGTERM)
        receiver.signal(signal.SIGINT)
        assert receiver.wait() in (128 + signal.SIGTERM, 128 + signal.SIGINT)


def test_a_pipe_goes_on_beside_a_log_that_nobody_reads(pair: Pair, full: FullPipe) -> None:
    """Its result is a line of the same pipe."""
    file = pair.file("f", 3 * MIB)
    with held_port() as port, (pair.destination / "out").open("wb") as out:
        receiver = pair.start(
            "receiver", "--listen", f"127.0.0.1:{port}", "--output-file", "-", stdout=out, stderr=full.writer
        )
        pair.sender(file, f"127.0.0.1:{port}").succeeds()
        ends(receiver, 0)
    assert same(file, pair.destination / "out")


@pytest.mark.parametrize("is_blocking", [True, False])
def test_a_sender_whose_log_nobody_reads(pair: Pair, full: FullPipe, is_blocking: bool) -> None:
    address = pair.address(pair.receiver())
    file = pair.file("f", 3 * MIB)
    os.set_blocking(full.writer.fileno(), is_blocking)
    sender = pair.start("sender", file, "--to", address, "--log-level", "debug", stderr=full.writer)
    assert sender.wait() == 0
    assert json.loads(sender.stdout)["status"] == "complete"
    assert same(file, pair.destination / "f")


def test_a_usage_error_that_nobody_reads(pair: Pair, full: FullPipe) -> None:
    sender = pair.start("sender", "--nonsense", stderr=full.writer)
    ends(sender, 2)


@pytest.mark.parametrize("how", ["full disk", "/dev/full", "no reader", "closed"])
def test_a_log_that_can_not_be_written(pair: Pair, how: str, tmp_path: Path) -> None:
    """The transfer goes on; where the disk has room again, the log says how many lines are missing."""
    address = pair.address(pair.receiver())
    file = pair.file("f", 3 * MIB)
    with contextlib.ExitStack() as stack:
        under: tuple[str, ...] = ()
        stderr: IO[bytes] | None = None
        if how == "full disk":
            small = stack.enter_context(disk(tmp_path / "disk", MIB))
            fill(small)
            stderr = stack.enter_context((small / "log").open("ab"))
        elif how == "/dev/full":
            stderr = stack.enter_context(open("/dev/full", "wb"))
        elif how == "no reader":
            reader, writer = os.pipe()
            os.close(reader)
            stderr = stack.enter_context(os.fdopen(writer, "wb"))
        else:
            under = ("/bin/sh", "-c", 'exec "$@" 2>&-', "sh")
        sender = pair.start("sender", file, "--to", address, under=under, stderr=stderr)
        assert sender.wait() == 0
        assert sender.stdout.count('"complete"') == 1


def test_metrics_tell_what_was_dropped(pair: Pair) -> None:
    with open("/dev/full", "wb") as nowhere, held_port() as port, held_port() as metrics:
        receiver = pair.start(
            "receiver",
            *("--listen", f"127.0.0.1:{port}", "--directory", pair.destination, "--metrics", f"127.0.0.1:{metrics}"),
            stderr=nowhere,
        )
        pair.sender(pair.file("f", 10), f"127.0.0.1:{port}").succeeds()

        def dropped() -> float:
            with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=HANG) as response:
                lines = response.read().decode().splitlines()
            return float(
                next(x for x in lines if x.startswith("filestreamer_receiver_log_lines_dropped_total")).split()[1]
            )

        until(lambda: dropped() >= 3, "metrics, listening, transfer_started")
        receiver.signal(signal.SIGTERM)
        ends(receiver, 128 + signal.SIGTERM)


FLOOD = """
import sys
from filestreamer.process import log, signals, stderr
stderr.replace()
signals.exit_on_signal()
logger = log.configure("sender")
for number in range(20000):
    logger.info("line", number=number, filler="x" * 100)
print("logged", flush=True)
sys.stdin.read(1)
logger.info("line", number=20000)
"""


def test_lines_come_in_order_and_what_is_missing_is_told(full: FullPipe) -> None:
    """Six times what there is room for, and then a reader."""
    with subprocess.Popen(
        [sys.executable, "-c", FLOOD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=full.writer, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "logged\n"
        full.read()
        process.stdin.write("\n")
        process.stdin.close()
        assert process.wait(HANG) == 0
    at, told = 0, 0
    for line in full.lines():
        assert line["service"] == "sender"
        if line["event"] == "log_lines_dropped":
            assert line["level"] == "warning"
            at += line["count"]
            told += line["count"]
        else:
            assert line["number"] == at
            at += 1
    assert at == 20001
    assert told > 10000


BUG = """
import sys
from filestreamer.process import signals, stderr
stderr.replace()
signals.exit_on_signal()
raise RuntimeError("the bug")
"""


@pytest.mark.parametrize("is_read", [True, False])
def test_the_traceback_of_a_bug(full: FullPipe, is_read: bool) -> None:
    """It is written whole, and nobody waits for who does not read it."""
    process = subprocess.Popen([sys.executable, "-c", BUG], stderr=subprocess.PIPE if is_read else full.writer)
    _, told = process.communicate(timeout=HANG)
    assert process.returncode == 1
    assert not is_read or told.decode().endswith("RuntimeError: the bug\n")


# --- terminals


@pytest.mark.parametrize("how", ["stopped", "not read"])
def test_a_terminal_that_takes_nothing(pair: Pair, how: str) -> None:
    """Ctrl-S, or a terminal's program that hangs: the display is not worth waiting for, nor is its summary."""
    address = pair.address(pair.receiver())
    file = pair.file("f", 4 * MIB)
    main, terminal = pty.openpty()
    if how == "stopped":
        termios.tcflow(terminal, termios.TCOOFF)
    else:
        os.set_blocking(terminal, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(terminal, b"x" * 512)
        os.set_blocking(terminal, True)
    with os.fdopen(terminal, "wb", 0) as shown:
        sender = pair.start(
            *("sender", file, "--to", address, "--rate-limit", "3MiB/s", "--chunk-size", "64KiB"),
            env={"TERM": "xterm"},
            stdout=shown,
            stderr=shown,
        )
        assert sender.wait() == 0
    os.close(main)
    assert same(file, pair.destination / "f")


# --- results


@pytest.mark.parametrize("is_blocking", [True, False])
def test_a_receiver_whose_results_nobody_reads(pair: Pair, full: FullPipe, is_blocking: bool) -> None:
    """Each transfer ends, and the file has its result; the log says what was not taken."""
    result_file = pair.logs / "result.json"
    os.set_blocking(full.writer.fileno(), is_blocking)
    receiver = pair.start(
        "receiver",
        *("--listen", "127.0.0.1:0", "--directory", pair.destination, "--result-file", result_file, *METRICS),
        stdout=full.writer,
    )
    address = pair.address(receiver)
    for name in "abc":
        pair.sender(pair.file(name, 1000), address).succeeds()
    receiver.wait_for("transfer_complete", count=3)
    until(lambda: result_file.exists() and json.loads(result_file.read_text())["status"] == "complete", "a result")
    assert scrape(receiver).value("transfers_total", result="complete") == 3
    receiver.signal(signal.SIGTERM)
    ends(receiver, 128 + signal.SIGTERM)
    assert [line["to"] for line in receiver.events("result_not_written")] == ["standard output"]


def test_results_are_there_for_who_comes_back(pair: Pair, full: FullPipe) -> None:
    receiver = pair.start("receiver", "--listen", "127.0.0.1:0", "--directory", pair.destination, stdout=full.writer)
    address = pair.address(receiver)
    ids = []
    for name in "abc":
        ids.append(pair.sender(pair.file(name, 1000), address).succeeds()["transfer_id"])
        receiver.wait_for("transfer_complete", count=len(ids))
    full.read()
    receiver.signal(signal.SIGTERM)
    ends(receiver, 128 + signal.SIGTERM)
    results = full.lines()
    assert [result.get("transfer_id") for result in results] == [*ids, None]
    assert receiver.events("result_not_written") == []


def test_a_sender_whose_result_nobody_reads(pair: Pair, full: FullPipe) -> None:
    result_file = pair.logs / "result.json"
    address = pair.address(pair.receiver())
    sender = pair.start(
        "sender", pair.file("f", 1000), "--to", address, "--result-file", result_file, stdout=full.writer
    )
    ends(sender, 0)
    assert json.loads(result_file.read_text())["status"] == "complete"
    assert [line["to"] for line in sender.events("result_not_written")] == ["standard output"]


def test_a_result_on_a_pipe_that_does_not_block_is_whole(pair: Pair, full: FullPipe) -> None:
    address = pair.address(pair.receiver())
    os.set_blocking(full.writer.fileno(), False)
    sender = pair.start("sender", pair.file("f", 1000), "--to", address, stdout=full.writer)
    full.read()
    ends(sender, 0)
    (result,) = full.lines()
    assert result["status"] == "complete"


@pytest.mark.parametrize("command", ["sender", "receiver"])
def test_a_result_file_that_is_a_pipe(pair: Pair, command: str) -> None:
    """It is waited for a short while, and what was not taken is told; who reads it in time gets it."""
    for is_read in (False, True):
        fifo = pair.logs / f"fifo-{is_read}"
        os.mkfifo(fifo)
        flags = {command: ("--result-file", fifo)}
        receiver = pair.receiver("--once", *flags.get("receiver", ()))
        sender = pair.sender(pair.file(f"f-{is_read}", 1000), pair.address(receiver), *flags.get("sender", ()))
        service = sender if command == "sender" else receiver
        if is_read:
            assert json.loads(fifo.read_text())["status"] == "complete"
        for each in (sender, receiver):
            each.succeeds()
        not_written = [line["to"] for line in service.events("result_not_written")]
        assert not_written == ([] if is_read else [str(fifo)])


def test_a_receiver_goes_on_beside_a_result_file_that_nobody_reads(pair: Pair) -> None:
    fifo = pair.logs / "fifo"
    os.mkfifo(fifo)
    receiver = pair.receiver("--result-file", fifo)
    for name in "abc":
        pair.sender(pair.file(name, 1000), pair.address(receiver)).succeeds()
    assert [result["status"] for result in receiver.wait_for_results(3)] == ["complete"] * 3
    receiver.signal(signal.SIGTERM)
    ends(receiver, 128 + signal.SIGTERM)


# --- what is repeated


def test_thousands_of_strangers_are_a_few_lines_and_counted_exactly(pair: Pair) -> None:
    receiver = pair.receiver(*METRICS)
    address = pair.address(receiver)
    disturb(address, STRANGERS)
    pair.sender(pair.file("f", 10), address).succeeds()
    assert scrape(receiver).value("refused_connections_total", reason="protocol") == STRANGERS
    assert 5 <= len(receiver.events("connection_refused")) < 20
    receiver.signal(signal.SIGTERM)
    assert receiver.wait() == 128 + signal.SIGTERM
    lines = receiver.events("connection_refused")
    assert len(lines) < 20
    assert receiver.times("connection_refused") == STRANGERS
    assert lines[-1]["count"] > 1
    assert "HTTP" in lines[-1]["reason"]
    assert lines[-1]["level"] == "warning"


def test_skipped_entries_beyond_the_first_hundred_are_counted(pair: Pair) -> None:
    source = pair.source / "tree"
    source.mkdir()
    (source / "file").write_bytes(b"moved")
    for number in range(250):
        os.mkfifo(source / f"fifo-{number:03d}")
    sender = pair.sender(source, pair.address(pair.receiver()))
    assert sender.wait() == 0
    lines = sender.events("entry_skipped")
    assert len(lines) == 101
    assert sender.times("entry_skipped") == 250
    assert sender.result["skipped_files"] == 250
    assert len({line["path"] for line in lines}) == 101
