"""Pipes: standard input to a file, a file to standard output, and one command's output to another one's input.

What leads into and out of the services are real pipes. A reader that takes nothing is one that does not read; a writer
that is slow is one that was not told to write yet.
"""

import hashlib
import os
import random
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from filestreamer.wire import limits
from tests.support.processes import peak_bytes
from tests.support.relay import Relay
from tests.support.scrape import METRICS, Scrape, scrape
from tests.support.services import HANG, UNIT, Pair, Service, make_file, same
from tests.support.waiting import until

MIB = 1 << 20
OUT = ("--output-file", "-")


class Writer:
    """The write end of a pipe, written to by a thread that ends when nobody reads any more."""

    def __init__(self) -> None:
        read_fd, self._write_fd = os.pipe()
        self.end = os.fdopen(read_fd, "rb", buffering=0)
        """Give this to who is to read, then close it."""
        self.written = 0

    def write(self, content: bytes) -> None:
        """Write all of it; waits for the reader. Raises BrokenPipeError."""
        view = memoryview(content)
        while view:
            count = os.write(self._write_fd, view[: 64 * 1024])
            self.written += count
            view = view[count:]

    def close(self) -> None:
        """Say that nothing follows."""
        os.close(self._write_fd)

    def write_soon(self, content: bytes) -> threading.Thread:
        """Write all of it and close, in a thread."""

        def write() -> None:
            try:
                self.write(content)
            except BrokenPipeError:
                pass
            self.close()

        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        return thread


class Reader:
    """The read end of a pipe."""

    def __init__(self) -> None:
        read_fd, write_fd = os.pipe()
        self.end = os.fdopen(write_fd, "wb", buffering=0)
        """Give this to who is to write, then close it."""
        self._file = os.fdopen(read_fd, "rb", buffering=0)

    def read(self, count: int) -> bytes:
        """Read so many bytes, less where it ends before."""
        content = b""
        while len(content) < count and (some := self._file.read(count - len(content))):
            content += some
        return content

    def read_all(self) -> bytes:
        """Read to the end."""
        return self._file.readall() or b""

    def close(self) -> None:
        """Go away. Idempotent."""
        self._file.close()


class Pipes:
    """Services whose standard input and output are pipes."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self._files: list[IO[bytes] | Reader] = []

    def receiver(self, *args: object) -> tuple[Service, Reader]:
        """Start a receiver that writes to standard output; return who reads that."""
        reader = Reader()
        self._files += [reader, reader.end]
        service = self.pair.start(
            "receiver", "--listen", "127.0.0.1:0", *OUT, *args, cwd=self.pair.destination, stdout=reader.end
        )
        reader.end.close()
        return service, reader

    def sender(self, to: str, *args: object) -> tuple[Service, Writer]:
        """Start a sender that reads standard input; return who writes that."""
        writer = Writer()
        self._files.append(writer.end)
        service = self.pair.start("sender", "-", "--to", to, *args, stdin=writer.end)
        writer.end.close()
        return service, writer

    def end(self) -> None:
        """Close what is open."""
        for file in self._files:
            file.close()


@pytest.fixture
def pipes(pair: Pair) -> Iterator[Pipes]:
    made = Pipes(pair)
    yield made
    made.end()


def random_bytes(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def result_of(service: Service) -> dict[str, Any]:
    """Return the result, which stands on standard error where standard output is the destination."""
    (result,) = service.results
    return result


# ------------------------------------------------------------------------------------------------ the four combinations


@pytest.mark.parametrize("connections", [1, 2, 8])
@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1, 20 * MIB + 12345])
def test_standard_input_to_standard_output(pipes: Pipes, seed: int, size: int, connections: int) -> None:
    content = random_bytes(size, seed)
    receiver, reader = pipes.receiver()
    sender, writer = pipes.sender(pipes.pair.address(receiver), "--connections", connections)
    writer.write_soon(content)
    assert hashlib.sha256(reader.read_all()).digest() == hashlib.sha256(content).digest()
    sent, received = sender.succeeds(), receiver.succeeds()
    assert sent["bytes"] == received["bytes"] == size
    assert sent["root_digest"] == received["root_digest"]
    assert sent["chunks"] == received["chunks"] == -(-size // MIB)
    assert pipes.pair.received() == []


@pytest.mark.parametrize("size", [0, 1, 3 * MIB, 20 * MIB + 12345])
def test_standard_input_to_a_file(pipes: Pipes, seed: int, size: int) -> None:
    content = random_bytes(size, seed)
    receiver = pipes.pair.receiver("--once")
    sender, writer = pipes.sender(pipes.pair.address(receiver), "--as", "it")
    writer.write_soon(content)
    sent, received = sender.succeeds(), receiver.succeeds()
    assert pipes.pair.received() == ["it"]
    assert (pipes.pair.destination / "it").read_bytes() == content
    assert sent["bytes"] == received["bytes"] == size
    assert sent["root_digest"] == received["root_digest"]


@pytest.mark.parametrize("size", [0, 1, 4 * MIB, 20 * MIB + 12345])
def test_a_file_to_standard_output(pipes: Pipes, seed: int, size: int) -> None:
    file = pipes.pair.file("f", size, seed)
    receiver, reader = pipes.receiver()
    sender = pipes.pair.sender(file, pipes.pair.address(receiver))
    assert hashlib.sha256(reader.read_all()).digest() == hashlib.sha256(file.read_bytes()).digest()
    sent, received = sender.succeeds(), receiver.succeeds()
    assert sent["bytes"] == received["bytes"] == size


@pytest.mark.parametrize("data", [(), (0,), (7,), (40, 41, 90)], ids=["none", "first", "in it", "far apart"])
def test_a_file_with_holes_to_standard_output(pipes: Pipes, seed: int, data: tuple[int, ...]) -> None:
    """More of them than a window has chunks; nobody sends them."""
    file = pipes.pair.source / "f"
    with file.open("wb") as sparse:
        sparse.truncate(100 * MIB + 1)
        for at in data:
            sparse.seek(at * MIB)
            sparse.write(random_bytes(MIB, seed + at))
    receiver, reader = pipes.receiver("--window", "4MiB")
    sender = pipes.pair.sender(file, pipes.pair.address(receiver), "--chunk-size", "1MiB")
    assert hashlib.sha256(reader.read_all()).digest() == hashlib.sha256(file.read_bytes()).digest()
    sent, received = sender.succeeds(), receiver.succeeds()
    assert sent["sent_bytes"] == sent["bytes"] == received["bytes"] == len(data) * MIB
    assert sent["root_digest"] == received["root_digest"]


def test_without_a_name_it_is_called_stdin(pipes: Pipes) -> None:
    receiver = pipes.pair.receiver("--once")
    sender, writer = pipes.sender(pipes.pair.address(receiver))
    writer.write_soon(b"content")
    sender.succeeds()
    receiver.succeeds()
    assert pipes.pair.received() == ["stdin"]


def test_a_stream_replaces_what_an_earlier_one_left(pipes: Pipes) -> None:
    receiver = pipes.pair.receiver()
    address = pipes.pair.address(receiver)
    for content in (b"long content", b"short"):
        sender, writer = pipes.sender(address, "--as", "f")
        writer.write_soon(content)
        sender.succeeds()
        assert (pipes.pair.destination / "f").read_bytes() == content


def test_tar_at_both_ends(pair: Pair, seed: int, tmp_path: Path) -> None:
    """The commands of the documentation, in a shell, over several connections."""
    directory = pair.source / "d"
    directory.mkdir()
    for number in range(20):
        make_file(directory / f"{number}", 100_000 * number, seed + number)
    errors = tmp_path / "errors"
    python = sys.executable
    receiving = subprocess.Popen(
        f"set -o pipefail;"
        f" {python} -P -m receiver --listen 127.0.0.1:0 --metrics off --output-file - 2>{errors} | tar x",
        shell=True,
        executable="/bin/bash",
        cwd=pair.destination,
    )
    until(lambda: errors.exists() and "listening" in errors.read_text(), "the receiver listens")
    port = errors.read_text().partition("127.0.0.1:")[2].partition('"')[0]
    subprocess.run(
        f"set -o pipefail; tar c d | {python} -P -m sender - --to 127.0.0.1:{port} --connections 4",
        shell=True,
        executable="/bin/bash",
        cwd=pair.source,
        check=True,
        capture_output=True,
        timeout=HANG,
    )
    assert receiving.wait(HANG) == 0
    for number in range(20):
        assert same(directory / f"{number}", pair.destination / "d" / f"{number}")


# ------------------------------------------------------------------------------------------------------ standard output


def test_nothing_but_the_file_is_on_standard_output(pipes: Pipes) -> None:
    """The result goes to standard error, beside the log."""
    receiver, reader = pipes.receiver()
    sender, writer = pipes.sender(pipes.pair.address(receiver))
    writer.write_soon(b"only this")
    assert reader.read_all() == b"only this"
    sender.succeeds()
    receiver.succeeds()
    assert result_of(receiver)["committed"]
    assert '"status": "complete"' in receiver.stderr


def test_one_transfer_and_no_other(pipes: Pipes) -> None:
    """--output-file - implies --once."""
    receiver, reader = pipes.receiver()
    sender, writer = pipes.sender(pipes.pair.address(receiver))
    writer.write_soon(b"")
    sender.succeeds()
    receiver.succeeds()
    assert reader.read_all() == b""


# --------------------------------------------------------------------------------------------------------- backpressure


def stands_still(service: Service) -> bool:
    """Whether the last progress moves on for seconds, and no byte does."""
    before, after = scrape(service), scrape(service)
    while (seconds := _last_progress(after) - _last_progress(before)) < 3 and _moved(before) == _moved(after):
        after = scrape(service)
    return seconds >= 3 and _moved(before) == _moved(after)


def _last_progress(seen: Scrape) -> float:
    return seen.value("transfer_last_progress_time_seconds")


def _moved(seen: Scrape) -> float:
    return seen.value("transfer_acknowledged_bytes") + sum(seen.values("connection_bytes_in_flight"))


@pytest.mark.parametrize("who_waits", ["reader", "writer"])
def test_waiting_for_a_program_is_no_stall(pipes: Pipes, seed: int, who_waits: str) -> None:
    """Nothing moves; what the metrics of both sides say is that the last progress was a moment ago."""
    flags = ("--window", "1MiB", *METRICS)
    receiver, reader = pipes.receiver(*flags)
    sender, writer = pipes.sender(Pair.address(receiver), *flags, "--chunk-size", "256KiB")
    content = random_bytes(8 * MIB if who_waits == "reader" else 1000, seed)
    if who_waits == "reader":
        writer.write_soon(content)
    else:
        writer.write(content)
    for service in (sender, receiver):
        until(lambda service=service: stands_still(service), "nothing moves any more, and that is progress")  # type: ignore[misc]
        assert scrape(service).value("transfer_phase", phase="moving") == 1

    if who_waits == "writer":
        writer.close()
    assert reader.read_all() == content
    assert (sender.wait(), receiver.wait()) == (0, 0)


def test_a_reader_that_takes_nothing_is_waited_for(pipes: Pipes, seed: int) -> None:
    """Neither side reads more than its window, nobody gives up, and it goes on when the reader does."""
    content = random_bytes(24 * MIB, seed)
    window = 4 * MIB
    receiver, reader = pipes.receiver("--window", window)
    sender, writer = pipes.sender(
        pipes.pair.address(receiver), "--window", window, "--give-up-after", 5, "--connections", 3
    )
    writing = writer.write_soon(content)
    receiver.wait_for("output_waits")
    stuck: list[int] = []

    def stands_still() -> bool:
        stuck.append(writer.written)
        return len(stuck) > 800 and len(set(stuck[-800:])) == 1  # eight seconds: longer than --give-up-after

    until(stands_still, "nothing more is taken")
    # Two windows, and what pipes hold: of the writer, of the reader, and one write of either.
    assert writer.written <= 2 * window + 3 * MIB
    assert reader.read_all() == content
    writing.join()
    sender.succeeds()
    receiver.succeeds()
    assert len(receiver.events("output_goes_on")) >= 1


def test_a_writer_that_pauses_is_waited_for(pipes: Pipes) -> None:
    """Longer than the sender waits for progress of a receiver."""
    receiver, reader = pipes.receiver()
    sender, writer = pipes.sender(pipes.pair.address(receiver), "--give-up-after", 4, "--chunk-size", 10)
    writer.write(b"0123456789")
    assert reader.read(10) == b"0123456789"
    with pytest.raises(subprocess.TimeoutExpired):
        sender.process.wait(6)  # the pause
    writer.write_soon(b"more")
    assert reader.read_all() == b"more"
    sender.succeeds()
    receiver.succeeds()


def test_a_chunk_that_does_not_fit_into_the_window_is_refused(pipes: Pipes) -> None:
    receiver, _ = pipes.receiver("--window", "1MiB")
    file = pipes.pair.file("f", 10 * MIB)
    sender = pipes.pair.sender(file, pipes.pair.address(receiver))
    assert "--chunk-size" in sender.fails(3, "policy", status="refused")
    sender = pipes.pair.sender(file, pipes.pair.address(receiver), "--chunk-size", "1MiB", "--as", "other")
    receiver.wait_for("transfer_started")


# ------------------------------------------------------------------------------------------------------------- failures


def test_a_reader_that_leaves_ends_both(pipes: Pipes, seed: int) -> None:
    receiver, reader = pipes.receiver()
    sender, writer = pipes.sender(pipes.pair.address(receiver))
    writer.write_soon(random_bytes(20 * MIB, seed))
    reader.read(100)
    reader.close()
    assert "the reader of standard output closed the pipe" in sender.fails(4, "destination")
    assert "the reader of standard output closed the pipe" in receiver.fails(4, "destination")


def test_a_writer_that_dies_is_an_end(pipes: Pipes) -> None:
    """As for every program at the end of a pipe: the shell's pipefail tells."""
    receiver, reader = pipes.receiver()
    address = pipes.pair.address(receiver)
    producer = subprocess.Popen(
        [sys.executable, "-c", "import sys,time; print('begun', flush=True); time.sleep(1000)"], stdout=subprocess.PIPE
    )
    sender = pipes.pair.start("sender", "-", "--to", address, stdin=producer.stdout)
    assert producer.stdout is not None
    producer.stdout.close()
    sender.wait_for("connected")
    producer.kill()
    producer.wait()
    sender.succeeds()
    receiver.succeeds()
    assert reader.read_all() in (b"begun\n", b"")


def test_a_read_error_fails_the_source(pair: Pair) -> None:
    receiver = pair.receiver()
    with Path("/proc/self/mem").open("rb", buffering=0) as broken:  # nothing lies at its beginning
        sender = pair.start("sender", "-", "--to", pair.address(receiver), stdin=broken)
    assert "can't read standard input" in sender.fails(4, "source")


def test_what_was_received_of_a_stream_that_fails_is_dropped(pipes: Pipes) -> None:
    receiver = pipes.pair.receiver()
    sender, writer = pipes.sender(pipes.pair.address(receiver), "--chunk-size", 10)
    writer.write(b"x" * 100)
    receiver.wait_for("transfer_started")
    until(lambda: any((pipes.pair.destination / ".filestreamer").glob("*.data")), "it is staged")
    sender.signal(signal.SIGTERM)
    sender.wait()
    receiver.wait_for("transfer_failed")
    until(lambda: pipes.pair.received() == [], "nothing is left")
    writer.close()


def test_a_restarted_receiver_gets_a_short_stream_again(pipes: Pipes) -> None:
    """What is still in the window was not lost: nothing was put in place before."""
    with Relay("127.0.0.1:1") as relay:
        first = pipes.pair.receiver("--once")
        relay._to = ("127.0.0.1", int(pipes.pair.address(first).rpartition(":")[2]))
        sender, writer = pipes.sender(relay.address, "--chunk-size", 10)
        writer.write(b"x" * 100)
        first.wait_for("transfer_started")
        first.end()
        second = pipes.pair.receiver("--once")
        relay._to = ("127.0.0.1", int(pipes.pair.address(second).rpartition(":")[2]))
        second.wait_for("transfer_started")
        writer.write_soon(b"y" * 5)
        sender.succeeds()
        second.succeeds()
    assert (pipes.pair.destination / "stdin").read_bytes() == b"x" * 100 + b"y" * 5


def test_a_restarted_receiver_ends_a_stream_that_is_not_here_any_more(pipes: Pipes) -> None:
    with Relay("127.0.0.1:1") as relay:
        first, reader = pipes.receiver()
        relay._to = ("127.0.0.1", int(pipes.pair.address(first).rpartition(":")[2]))
        sender, writer = pipes.sender(relay.address, "--chunk-size", 10, "--window", 40)
        writer.write(b"x" * 100)
        reader.read(100)
        first.end()
        second, _ = pipes.receiver()
        relay._to = ("127.0.0.1", int(pipes.pair.address(second).rpartition(":")[2]))
        assert "run the pipe again" in sender.fails(1, "unknown_transfer")
        writer.close()


def test_another_sender_is_kept_away_from_what_was_passed_on(pipes: Pipes) -> None:
    """Bytes of two senders never follow each other; a first sender that does not come back ends the receiver."""
    receiver, reader = pipes.receiver("--give-up-after", 0.8 * UNIT)
    address = pipes.pair.address(receiver)
    first, writer = pipes.sender(address, "--chunk-size", 10)
    writer.write(b"x" * 10)
    assert reader.read(10) == b"x" * 10
    first.end()
    second, other = pipes.sender(address)
    other.write_soon(b"y")
    assert "is locked by another transfer; retrying" in second.wait_for("control_lost")["reason"]
    assert "did not come back" in receiver.fails(1, "timeout")
    assert reader.read_all() == b""
    writer.close()


def test_another_sender_takes_over_what_nothing_was_passed_on_of(pipes: Pipes) -> None:
    receiver, reader = pipes.receiver()
    address = pipes.pair.address(receiver)
    first, writer = pipes.sender(address)
    receiver.wait_for("transfer_started")
    first.end()
    second, other = pipes.sender(address)
    other.write_soon(b"second")
    assert reader.read_all() == b"second"
    second.succeeds()
    assert receiver.wait() == 0
    writer.close()


@pytest.mark.parametrize("which", ["data", "control", "all"])
def test_connections_that_are_cut(pipes: Pipes, seed: int, which: str) -> None:
    content = random_bytes(12 * MIB, seed)
    receiver, reader = pipes.receiver("--window", "2MiB")
    with Relay(pipes.pair.address(receiver)) as relay:
        sender, writer = pipes.sender(relay.address, "--connections", 3, "--chunk-size", "100KiB")
        writing = writer.write_soon(content)
        got = reader.read(3 * MIB)
        relay.openings(4, said=1)  # one that came late has nothing to send while the window is full
        carried = {"control": relay.carried[:1], "data": relay.carried[1:3], "all": relay.carried}[which]
        for each in carried:
            each.reset()
        got += reader.read_all()
        writing.join()
        sent, _ = sender.succeeds(), receiver.succeeds()
    assert got == content
    assert (sent["reconnects"] > 0) == (which != "control")


# ------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["-", "--shard", "0/2"], "--shard"),
        (["-", "--chunk-size", "128MiB"], "--window"),
    ],
)
def test_what_standard_input_can_not(pair: Pair, args: list[str], says: str) -> None:
    sender = pair.start("sender", *args, "--to", "127.0.0.1:1")
    assert sender.wait() == 2
    assert says in sender.stderr


def test_a_terminal_is_no_input(pair: Pair) -> None:
    primary, secondary = os.openpty()
    with os.fdopen(secondary, "rb", buffering=0) as terminal:
        sender = pair.start("sender", "-", "--to", "127.0.0.1:1", stdin=terminal)
        assert sender.wait() == 2
    os.close(primary)
    assert "is a terminal" in sender.stderr


# --------------------------------------------------------------------------------------------------------------- memory


def pipe_through(pipes: Pipes, size: int, window: int) -> tuple[int, int]:
    """Send zeros through a pipe whose reader only counts; return the peak memory of sender and receiver."""
    receiver, reader = pipes.receiver("--window", window)
    address = pipes.pair.address(receiver)
    with subprocess.Popen(["head", "-c", str(size), "/dev/zero"], stdout=subprocess.PIPE) as producer:
        assert producer.stdout is not None
        sender = pipes.pair.start("sender", "-", "--to", address, "--window", window, stdin=producer.stdout)
        producer.stdout.close()
        peaks = [0, 0]
        got = 0
        while some := reader._file.read(MIB):
            got += len(some)
            if got < size:  # a process that has ended has none
                peaks = [
                    max(peak, peak_bytes(s.process.pid)) for peak, s in zip(peaks, (sender, receiver), strict=True)
                ]
    assert got == size
    assert sender.succeeds(10 * UNIT)["bytes"] == size
    receiver.succeeds()
    return peaks[0], peaks[1]


MEMORY = 100 * MIB
"""What either side takes beside its window: the interpreter, and the buffers of its connections."""


def test_memory_is_bounded_by_the_window(pipes: Pipes) -> None:
    window = 16 * MIB
    for peak in pipe_through(pipes, 512 * MIB, window):
        assert window < peak < window + MEMORY


@pytest.mark.skipif("TEST_LARGE" not in os.environ, reason="ten GiB: set TEST_LARGE")
@pytest.mark.timeout(600)
def test_ten_gibibytes(pipes: Pipes) -> None:
    window = 64 * MIB
    peaks = pipe_through(pipes, 10 << 30, window)
    print(f"peak memory: sender {peaks[0] // MIB} MiB, receiver {peaks[1] // MIB} MiB")
    assert all(peak < window + MEMORY for peak in peaks)


def test_the_default_window_is_what_the_documentation_says() -> None:
    from sender.settings import parse

    settings, _ = parse(["-", "--to", "h:1"], {})
    assert settings.window == 64 * limits.MIB


# --------------------------------------------------------------------------------------- an output file that is no file


def special(pair: Pair, path: object, *args: object, **more: Any) -> Service:
    """Start a receiver that writes one file there."""
    return pair.start("receiver", "--listen", "127.0.0.1:0", "--output-file", path, *args, cwd=pair.destination, **more)


def move(pair: Pair, receiver: Service, size: int = 3 * MIB + 5) -> Path:
    """Send a file to the end; return it."""
    file = pair.file("f", size)
    pair.sender(file, pair.address(receiver)).succeeds()
    assert receiver.wait() == 0, receiver.stderr
    return file


def node(path: Path, number: int) -> Path:
    """Make a character device of memory: 3 is null, 7 is full."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, number))
        os.close(os.open(path, os.O_WRONLY))
    except PermissionError:
        pytest.skip("making a device takes root, and a file system that has devices")
    return path


@pytest.mark.parametrize("flags", [(), ("--no-replace",)])
@pytest.mark.parametrize("is_link", [False, True])
def test_a_device_is_written_to(pair: Pair, flags: tuple[str, ...], *, is_link: bool) -> None:
    """It stays a device, also where a symlink leads to it; nothing is staged beside it."""
    path = node(pair.destination / "null", 3)
    if is_link:
        (pair.destination / "link").symlink_to("null")
    receiver = special(pair, "link" if is_link else "null", *flags)
    move(pair, receiver)
    assert stat.S_ISCHR(path.lstat().st_mode)
    assert (pair.destination / "link").is_symlink() is is_link
    assert pair.received() == (["link"] if is_link else []) + ["null"]
    assert receiver.result["status"] == "complete"


def test_a_device_that_is_full(pair: Pair) -> None:
    path = node(pair.destination / "full", 7)
    receiver = special(pair, path)
    sender = pair.sender(pair.file("f", MIB), pair.address(receiver))
    assert f"can't write to {path}: No space left on device" in sender.fails(4, "no_space")
    assert f"can't write to {path}: No space left on device" == receiver.fails(4, "no_space")
    assert stat.S_ISCHR(path.lstat().st_mode)


@pytest.mark.parametrize("size", [0, 1, 3 * MIB + 5])
def test_a_fifo_is_written_to(pair: Pair, size: int) -> None:
    """Its reader may come later than the sender, and sees the end."""
    path = pair.destination / "fifo"
    os.mkfifo(path)
    receiver = special(pair, "fifo")
    file = pair.file("f", size)
    sender = pair.sender(file, pair.address(receiver))
    receiver.wait_for("transfer_started")
    assert path.read_bytes() == file.read_bytes()
    sender.succeeds()
    assert receiver.wait() == 0
    assert stat.S_ISFIFO(path.lstat().st_mode)
    assert pair.received() == ["fifo"]


def test_a_fifo_that_nobody_reads(pair: Pair) -> None:
    """It is waited for, as any reader is; a signal ends that."""
    os.mkfifo(pair.destination / "fifo")
    receiver = special(pair, "fifo")
    pair.sender(pair.file("f", MIB), pair.address(receiver))
    receiver.wait_for("output_waits")
    receiver.signal(signal.SIGTERM)
    assert receiver.wait() == 143
    assert stat.S_ISFIFO((pair.destination / "fifo").lstat().st_mode)


@pytest.mark.parametrize("name", ["/dev/fd/1", "/proc/self/fd/1", "link", "link to a link"])
@pytest.mark.parametrize("is_pipe", [False, True], ids=["file", "pipe"])
def test_standard_output_by_another_name(pair: Pair, name: str, *, is_pipe: bool) -> None:
    """Nothing but the file gets there: the result goes to standard error, as with a hyphen.

    The links are as /dev/stdout is, which this test does not put at risk.
    """
    (pair.destination / "link").symlink_to("/proc/self/fd/1")
    (pair.destination / "link to a link").symlink_to("link")
    path = pair.logs / "out"
    reader = Reader()
    with path.open("wb") if not is_pipe else reader.end as out:
        receiver = special(pair, name, stdout=out)
    file = pair.file("f", MIB + 3)
    sender = pair.sender(file, pair.address(receiver))
    content = reader.read_all() if is_pipe else b""
    sender.succeeds()
    assert receiver.succeeds()["bytes"] == MIB + 3
    assert (content if is_pipe else path.read_bytes()) == file.read_bytes()
    assert (pair.destination / "link").is_symlink()
    reader.close()
    reader.end.close()


def test_standard_output_that_is_named_as_a_fifo(pair: Pair) -> None:
    """Both names lead to one FIFO: the result does not get between the bytes."""
    path = pair.destination / "fifo"
    os.mkfifo(path)
    with open(os.open(path, os.O_RDWR), "wb", buffering=0) as out:
        receiver = special(pair, path, stdout=out)
        address = pair.address(receiver)
    file = pair.file("f", 200_000)
    sender = pair.sender(file, address)
    assert path.read_bytes() == file.read_bytes()
    sender.succeeds()
    assert receiver.succeeds()["bytes"] == 200_000


def test_a_descriptor_that_was_opened_for_it(pair: Pair) -> None:
    """As of a shell's `3>file`: what stands in it already stays, and the result is on standard output."""
    path = pair.logs / "out"
    under = ("sh", "-c", 'exec "$@" 3>>' + str(path), "sh")
    path.write_bytes(b"before ")
    receiver = special(pair, "/dev/fd/3", under=under)
    file = move(pair, receiver)
    assert path.read_bytes() == b"before " + file.read_bytes()
    assert receiver.result["status"] == "complete"


@pytest.mark.parametrize("exists", [True, False])
def test_a_symlink_to_a_file(pair: Pair, *, exists: bool) -> None:
    """What it leads to is replaced whole, in its own directory, or made there; the link stays."""
    (pair.destination / "there").mkdir()
    target = pair.destination / "there" / "target"
    held = None
    if exists:
        target.write_bytes(b"old")
        held = target.open("rb")
    (pair.destination / "link").symlink_to("there/target")
    file = move(pair, special(pair, "link"))
    assert os.readlink(pair.destination / "link") == "there/target"
    assert same(file, target)
    assert pair.received() == ["link", "there"]
    assert os.listdir(target.parent) == ["target"]
    if held is not None:
        assert held.read() == b"old", "it was written into, and not replaced"
        held.close()


def test_a_symlink_to_a_file_that_may_not_be_replaced(pair: Pair) -> None:
    (pair.destination / "target").write_bytes(b"old")
    (pair.destination / "link").symlink_to("target")
    assert "--no-replace" in special(pair, "link", "--no-replace").fails(3, "exists", status="refused")
    assert (pair.destination / "target").read_bytes() == b"old"


def test_a_file_that_becomes_a_fifo_meanwhile(pair: Pair) -> None:
    """It is not replaced either."""
    receiver = special(pair, "f")
    pair.address(receiver)
    os.mkfifo(pair.destination / "f")
    pair.sender(pair.file("f", MIB), pair.address(receiver)).fails(4, "destination")
    assert stat.S_ISFIFO((pair.destination / "f").lstat().st_mode)


UNFIT: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "socket": (lambda path: os.mknod(path, stat.S_IFSOCK | 0o600), 4, "it is a socket"),
    "loop": (lambda path: path.symlink_to(path.name), 4, "Too many levels of symbolic links"),
    "dangling into nowhere": (lambda path: path.symlink_to("missing/f"), 4, "No such file or directory"),
    "closed descriptor": (lambda path: path.symlink_to("/dev/fd/99"), 4, "Bad file descriptor"),
    "standard input": (lambda path: path.symlink_to("/dev/stdin"), 4, "open for reading"),
    "standard error": (lambda path: path.symlink_to("/dev/stderr"), 2, "where the log goes"),
    "symlink to a directory": (lambda path: path.symlink_to("."), 4, "directory"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_what_can_not_be_written_to(pair: Pair, kind: str) -> None:
    """It is told at start, in one line, and nothing is changed."""
    make, code, says = UNFIT[kind]
    path = pair.destination / "x"
    make(path)
    before = path.lstat()
    with open(os.devnull, "rb") as nothing:
        message = special(pair, path, stdin=nothing).fails(code, "usage" if code == 2 else "destination")
    assert says in message
    assert "Traceback" not in message
    assert (before.st_ino, before.st_mode) == (path.lstat().st_ino, path.lstat().st_mode)
    assert pair.received() == ["x"]


def test_a_tree_does_not_go_into_a_device(pair: Pair) -> None:
    path = node(pair.destination / "null", 3)
    (pair.source / "tree").mkdir()
    (pair.source / "tree" / "f").write_bytes(b"content")
    receiver = special(pair, path)
    message = pair.sender(pair.source / "tree", pair.address(receiver)).fails(3, "policy", status="refused")
    assert str(path) in message
    assert stat.S_ISCHR(path.lstat().st_mode)
