"""Who is measured, each at the best settings that were found, and how one of its runs is timed.

A run is one file from one path to another, both given. It lasts from the start of the client's process to its end, by
when the whole file has to be in place; servers are started before. CPU time and memory are those of both ends.
"""

import contextlib
import functools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

RUN_SECONDS = 600
START_SECONDS = 20
GRACE_SECONDS = 2
"""What a server has to end by itself, once its client has."""
LOOK_SECONDS = 0.002


class Run(NamedTuple):
    """What one run took."""

    seconds: float
    cpu_seconds: float
    """User and system time of all processes of both ends."""
    peak_bytes: int
    """Resident memory of the larger one."""


class Place(NamedTuple):
    """Where the two ends run."""

    host: str = "127.0.0.1"
    """The server's address, as the client sees it."""
    server: tuple[str, ...] = ()
    """What a command of the server's side is run under: `ip netns exec NAME`, or nothing."""
    client: tuple[str, ...] = ()


class Contestant(NamedTuple):
    """One program with its settings."""

    name: str
    run: Callable[[Place, Path, Path], Run]
    needs: str = ""
    """The command that has to be there."""
    verifies: bool = True
    """Whether the receiving end checks what came against a digest of the sender's."""

    @property
    def is_there(self) -> bool:
        return not self.needs or shutil.which(self.needs) is not None


class Usage:
    """Sums up what processes use while they run, and once each has ended."""

    def __init__(self) -> None:
        self.cpu_seconds = 0.0
        self.peak_bytes = 0
        self._running: list[subprocess.Popen[bytes]] = []

    def add(self, process: "subprocess.Popen[bytes]") -> None:
        """Look at a process from now on."""
        self._running.append(process)

    def wait(self, process: "subprocess.Popen[bytes]", seconds: float) -> bool:
        """Wait for the end of a process, looking at the memory of all; whether it ended within the time.

        The peak is read while they run: what the kernel tells at the end (ru_maxrss) holds what they were forked from.
        """
        end = time.monotonic() + seconds
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            for each in self._running:
                self._look(each)
            if time.monotonic() > end:
                return False
            time.sleep(LOOK_SECONDS)
        self._running.remove(process)
        _, status, used = os.wait4(process.pid, 0)  # with the children that it waited for
        process.returncode = os.waitstatus_to_exitcode(status)
        self.cpu_seconds += used.ru_utime + used.ru_stime
        return True

    def _look(self, process: "subprocess.Popen[bytes]") -> None:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    self.peak_bytes = max(self.peak_bytes, int(line.split()[1]) * 1024)


def start(command: Sequence[object], **options: object) -> "subprocess.Popen[bytes]":
    """Start a process whose output nobody needs."""
    silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([str(word) for word in command], **{**silent, **options})  # type: ignore[call-overload,no-any-return]


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def serving(command: Sequence[object], port: int, place: Place, usage: Usage) -> Iterator[None]:
    """Start a server, wait until it listens, and end it with the block, by SIGTERM where it has not ended by itself."""
    process = start([*place.server, *command])
    usage.add(process)
    try:
        wait_for_listener(port, place)
        yield
        if not usage.wait(process, GRACE_SECONDS):
            process.terminate()
            usage.wait(process, START_SECONDS)
    except BaseException:
        process.kill()
        process.wait()
        raise


def wait_for_listener(port: int, place: Place) -> None:
    """Wait until somebody listens there, without connecting: some servers serve one connection and end."""
    end = time.monotonic() + START_SECONDS
    wanted = f":{port:04X} "
    while time.monotonic() < end:
        tables = subprocess.run(
            [*place.server, "cat", "/proc/net/tcp", "/proc/net/tcp6"], capture_output=True, text=True, check=True
        ).stdout
        if any(wanted in line and " 0A " in line for line in tables.splitlines()):
            return
        time.sleep(0.02)
    raise TimeoutError(f"nobody listens on port {port}")


def timed(command: Sequence[object], place: Place, usage: Usage) -> float:
    """Run a client; return its seconds. Raises RuntimeError where it fails."""
    with tempfile.TemporaryFile() as said:
        begun = time.perf_counter()
        process = start([*place.client, *command], stderr=said)
        usage.add(process)
        usage.wait(process, RUN_SECONDS)
        seconds = time.perf_counter() - begun
        if process.returncode != 0:
            said.seek(0)
            raise RuntimeError(f"{command} ended with {process.returncode}: {said.read().decode()}")
    return seconds


# --- the pair


def filestreamer(*flags: object, name: str = "filestreamer") -> Contestant:
    """Return the pair, with the sender's flags."""
    return Contestant(name, functools.partial(_filestreamer, flags))


def _filestreamer(flags: Sequence[object], place: Place, source: Path, target: Path) -> Run:
    usage, port = Usage(), free_port()
    python = [sys.executable, "-m"]
    listen = f"{place.host}:{port}"
    receiver = [*python, "receiver", "--listen", listen, "--output-file", target, "--anonymous", "--metrics", "off"]
    sender = [*python, "sender", source, "--to", listen, *flags]
    with serving(receiver, port, place, usage):
        seconds = timed(sender, place, usage)
    return Run(seconds, usage.cpu_seconds, usage.peak_bytes)


# --- its peers


def _cp(_place: Place, source: Path, target: Path) -> Run:
    usage = Usage()
    seconds = timed(["cp", source, target], Place(), usage)
    return Run(seconds, usage.cpu_seconds, usage.peak_bytes)


def _socat(place: Place, source: Path, target: Path) -> Run:
    usage, port = Usage(), free_port()
    common = ["socat", "-u", "-b", 1 << 20]
    server = [*common, f"TCP-LISTEN:{port},bind={place.host},reuseaddr", f"OPEN:{target},creat,trunc,wronly"]
    begun = time.perf_counter()
    with serving(server, port, place, usage):
        begun = time.perf_counter()
        timed([*common, f"OPEN:{source}", f"TCP:{place.host}:{port}"], place, usage)
    # The sending end does not hear when the other one has written all of it: that is when the latter has ended.
    return Run(time.perf_counter() - begun, usage.cpu_seconds, usage.peak_bytes)


def _gridftp(streams: int, place: Place, source: Path, target: Path) -> Run:
    usage, port = Usage(), free_port()
    server = ["globus-gridftp-server", "-1", "-aa", "-allow-root", "-anonymous-user", "root", "-home-dir", "/"]
    where = ["-control-interface", place.host, "-data-interface", place.host, "-p", port, "-c", "/dev/null"]
    client = ["globus-url-copy", "-fast", *(["-p", streams] if streams > 1 else [])]
    with serving([*server, *where], port, place, usage):
        seconds = timed([*client, f"file://{source}", f"ftp://{place.host}:{port}{target}"], place, usage)
    return Run(seconds, usage.cpu_seconds, usage.peak_bytes)


def _rsync(place: Place, source: Path, target: Path) -> Run:
    usage, port = Usage(), free_port()
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch, "rsyncd.conf")
        config.write_text(
            f"pid file = {scratch}/pid\nuse chroot = no\nuid = root\ngid = root\n"
            f"[here]\npath = {target.parent}\nread only = no\n"
        )
        server = ["rsync", "--daemon", "--no-detach", f"--config={config}", f"--port={port}", f"--address={place.host}"]
        client = ["rsync", "-W", "--inplace", source, f"rsync://{place.host}:{port}/here/{target.name}"]
        with serving(server, port, place, usage):
            seconds = timed(client, place, usage)
    return Run(seconds, usage.cpu_seconds, usage.peak_bytes)


def _rclone(place: Place, source: Path, target: Path) -> Run:
    usage, port = Usage(), free_port()
    server = ["rclone", "--config", "/dev/null", "serve", "webdav", "--addr", f"{place.host}:{port}", target.parent]
    remote = f":webdav,url='http://{place.host}:{port}':{target.name}"
    client = ["rclone", "--config", "/dev/null", "copyto", "--buffer-size", "4M", source, remote]
    with serving(server, port, place, usage):
        seconds = timed(client, place, usage)
    return Run(seconds, usage.cpu_seconds, usage.peak_bytes)


def _iperf3(streams: int, place: Place, source: Path, _target: Path) -> Run:
    """Move as many bytes from memory to memory: what the network alone takes."""
    usage, port = Usage(), free_port()
    client = ["iperf3", "-c", place.host, "-p", port, "-P", streams, "-n", source.stat().st_size]
    with serving(["iperf3", "-s", "-1", "-p", port], port, place, usage):
        seconds = timed(client, place, usage)
    return Run(seconds, usage.cpu_seconds, usage.peak_bytes)


CP = Contestant("cp", _cp, verifies=False)
SOCAT = Contestant("socat -u -b 1048576", _socat, "socat", verifies=False)
GRIDFTP = Contestant("GridFTP -fast", functools.partial(_gridftp, 1), "globus-url-copy", verifies=False)
GRIDFTP_4 = Contestant("GridFTP -fast -p 4", functools.partial(_gridftp, 4), "globus-url-copy", verifies=False)
RSYNC = Contestant("rsync daemon -W --inplace", _rsync, "rsync")
RCLONE = Contestant("rclone webdav", _rclone, "rclone", verifies=False)
IPERF3 = Contestant("iperf3 (memory to memory)", functools.partial(_iperf3, 4), "iperf3", verifies=False)
