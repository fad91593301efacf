"""Move a real file from a sender to a receiver over loopback, and compare the two files byte by byte.

    demo.py [FILE]

    1  take FILE, or make one of 1 GiB in a temporary directory
    2  start a receiver on a free port of 127.0.0.1, and read the port from its log
    3  run a sender in the foreground, with its progress shown
    4  wait for the receiver to end by itself
    5  compare what arrived with what was sent, and say so

Exits 0 only if they are identical. Only the standard library and the two commands beside this interpreter are used.
"""

import argparse
import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

MIB = 1024 * 1024
GIB = 1024 * MIB
MADE_BYTES = GIB
SPARE_BYTES = 64 * MIB
START_SECONDS = 30.0
END_SECONDS = 90.0
"""A receiver with --once stays for up to 60 s after its transfer, if its sender does not close."""
TERMINATE_SECONDS = 10.0


class DemoFailed(Exception):
    """The demo can't go on; `str()` is one line that says why."""


# -------------------------------------------------------------------------------------------------------- the two files


def make_file(path: Path, size_bytes: int) -> None:
    """Write random bytes, quickly: each MiB is another window of 2 MiB of them, so that no two are alike."""
    pool = memoryview(os.urandom(2 * MIB))
    with path.open("wb", buffering=0) as file:
        for index in range(size_bytes // MIB):
            offset = index * 1021 % MIB
            file.write(pool[offset : offset + MIB])
        os.fsync(file.fileno())  # its write-back would compete with the transfer


def first_difference(left: Path, right: Path) -> int | None:
    """Return the offset of the first byte that differs, None where there is none."""
    offset = 0
    with left.open("rb", buffering=0) as left_file, right.open("rb", buffering=0) as right_file:
        while True:
            ours, theirs = left_file.read(4 * MIB), right_file.read(4 * MIB)
            if ours != theirs:
                pairs = enumerate(zip(ours, theirs, strict=False))
                shorter = min(len(ours), len(theirs))
                return offset + next((index for index, (our, their) in pairs if our != their), shorter)
            if not ours:
                return None
            offset += len(ours)


def require_space(directory: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < needed_bytes + SPARE_BYTES:
        raise DemoFailed(
            f"{directory} has {human_size(free_bytes)} free and the demo needs {human_size(needed_bytes)}: "
            "set TMPDIR to a directory with more room"
        )


# ----------------------------------------------------------------------------------------------------- the two services


def command(name: str) -> str:
    """Find a command of the package beside this interpreter."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise DemoFailed(f"{path} is missing: install the package into this environment, or run `make demo`")
    return str(path)


def plain_environment(private: Path) -> dict[str, str]:
    """Leave out settings of the services, and let the token that they make lie in a private directory of the demo's."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("FILESTREAMER_")}
    return {**plain, "XDG_RUNTIME_DIR": str(private)}


@contextlib.contextmanager
def running(arguments: list[str], private: Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a process for the length of the block; it does not outlive it."""
    with subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, text=True, errors="replace", env=plain_environment(private), **options
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(TERMINATE_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()


class Log:
    """The receiver's log, read to its end by a thread of its own so that the receiver never waits for a reader."""

    def __init__(self, stream: IO[str]) -> None:
        self._address: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._last: deque[str] = deque(maxlen=10)
        self._thread = threading.Thread(target=self._read, args=(stream,), name="receiver-log", daemon=True)
        self._thread.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._last.append(line.rstrip())
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and event.get("event") == "listening":
                self._address.put(str(event["address"]))
        self._address.put(None)

    def address(self) -> str:
        """Wait for the address that the receiver listens on."""
        try:
            address = self._address.get(timeout=START_SECONDS)
        except queue.Empty:
            address = None
        if address is None:
            raise DemoFailed(f"the receiver did not start; its log:\n{self.text()}")
        return address

    def text(self) -> str:
        """Return the last lines."""
        self._thread.join(1.0)
        return "\n".join(self._last) or "(empty)"


def transfer(source: Path, directory: Path) -> dict[str, Any]:
    """Move the file with the two commands; return the sender's result object."""
    receive = [command("receiver"), "--listen", "127.0.0.1:0", "--once", "--directory", str(directory)]
    with running(receive, directory.parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as receiver:
        assert receiver.stderr is not None
        log = Log(receiver.stderr)
        send = [command("sender"), str(source), "--to", log.address()]
        with running(send, directory.parent, stdout=subprocess.PIPE) as sender:
            output, _ = sender.communicate()
        if sender.returncode != 0:
            ended = "" if receiver.poll() is None else f"\nand the receiver with {receiver.returncode}:\n{log.text()}"
            raise DemoFailed(f"the sender exited with {sender.returncode}: {output.strip() or 'no result'}{ended}")
        try:
            receiver.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            raise DemoFailed(f"the receiver did not end; its log:\n{log.text()}") from None
        if receiver.returncode != 0:
            raise DemoFailed(f"the receiver exited with {receiver.returncode}; its log:\n{log.text()}")
    try:
        result: dict[str, Any] = json.loads(output)
    except ValueError:
        raise DemoFailed(f"the sender's result is not one JSON object: {output.strip()!r}") from None
    return result


# ------------------------------------------------------------------------------------------------------------- the demo


def human_size(size_bytes: int) -> str:
    size, unit = float(size_bytes), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size_bytes} bytes" if unit == "bytes" else f"{size:.2f} {unit}"


def human_rate(bytes_per_second: float) -> str:
    if bytes_per_second < 1e9:
        return f"{bytes_per_second / 1e6:.0f} MB/s"
    return f"{bytes_per_second / 1e9:.2f} GB/s"


def say(text: str) -> None:
    print(f"demo: {text}", flush=True)


def demo(given: Path | None, scratch: Path) -> None:
    """Make the file, move it, compare."""
    if given is None:
        source = scratch / "demo.bin"
        require_space(scratch, 2 * MADE_BYTES)
        say(f"making {source}, {human_size(MADE_BYTES)} of random bytes")
        make_file(source, MADE_BYTES)
    else:
        source = given
        if not source.is_file():
            raise DemoFailed(f"{source} is not a file")
        require_space(scratch, source.stat().st_size)
    size_bytes = source.stat().st_size
    destination = scratch / "received"
    destination.mkdir()

    say(f"sending {source}, {human_size(size_bytes)}")
    result = transfer(source, destination)

    say("comparing the two files byte by byte")
    arrived = destination / source.name
    if not arrived.is_file():
        raise DemoFailed(f"the sender reported success and {arrived.name} is not there")
    difference = first_difference(source, arrived)
    if difference is not None:
        raise DemoFailed(f"DIFFERENT from byte {difference} on")
    say(
        f"IDENTICAL: {human_size(size_bytes)} in {result['seconds']:.2f} s, "
        f"{human_rate(result['bytes_per_second'])} over {result['connections']} connections"
    )


def main() -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(description="Move a file over loopback and compare it byte by byte.")
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="the file to move; default: one of 1 GiB")
    given: Path | None = parser.parse_args().file
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # unwinds: processes and files go
    try:
        with tempfile.TemporaryDirectory(prefix="filestreamer-demo-") as scratch:
            demo(given, Path(scratch))
    except DemoFailed as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
