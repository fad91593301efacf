"""Who is measured, each at the best settings that were found, and how one of its runs is timed.

A run moves a file or a tree from one path to another, both given. It lasts from the start of the client's process to
its end, by when all of it has to be in place; servers are started before. CPU time and memory are those of both ends.
"""

import contextlib
import datetime
import functools
import json
import mmap  # noqa: TID251 - memory of no file
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

RUN_SECONDS = 900
"""Whoever takes longer is left out, and the report says so."""
START_SECONDS = 20
GRACE_SECONDS = 2
"""What a server has to end by itself, once its client has."""
SETTLE_SECONDS = 0.2
"""What one that would go on for ever has to collect its children."""
LOOK_SECONDS = 0.01
SCRAPE_SECONDS = 0.25

ORIGINAL = os.environ.get("FILESTREAMER_ORIGINAL", "/nonexistent")
"""The directory that holds the original Go program's `server` and `client`, built."""

End = Literal["client", "server"]


class Run(NamedTuple):
    """What one run took."""

    seconds: float
    cpu_seconds: float
    """User and system time of all processes of both ends."""
    client_peak_bytes: int
    server_peak_bytes: int
    """Resident memory, of all processes of that end together; 0 where they ended before anybody looked."""
    scrape_seconds: tuple[float, ...] = ()


class Place(NamedTuple):
    """Where the two ends run."""

    host: str = "127.0.0.1"
    """The server's address, as the client sees it."""
    client_host: str = "127.0.0.1"
    server: tuple[str, ...] = ()
    """What a command of the server's side is run under: `ip netns exec NAME`, or nothing."""
    client: tuple[str, ...] = ()
    fills_bytes: int = 0
    """As much memory a run is going to fill."""


class Contestant(NamedTuple):
    """One program with its settings."""

    name: str
    run: Callable[[Place, Path, Path], Run]
    needs: str = ""
    """The command that has to be there."""
    verifies: bool = False
    """Whether the receiving end checks what came against a digest of the sender's."""
    keeps_times: bool = True
    """Whether files have the mtime of their source."""
    makes_copy: bool = True
    is_ours: bool = False
    works: Callable[[], bool] = lambda: True
    """Whether the command, which is there, can run."""

    @property
    def is_there(self) -> bool:
        return not self.needs or (shutil.which(self.needs) is not None and self.works())


class Usage:
    """Sums up what the processes of a run use while they run, and once each has ended."""

    def __init__(self) -> None:
        self.begun = 0.0
        """When the client was started."""
        self.said = ""
        """By the client, on standard error."""
        self.cpu_seconds = 0.0
        self.peak_bytes: dict[End, int] = {"client": 0, "server": 0}
        self._running: dict[subprocess.Popen[bytes], End] = {}

    def start(self, end: End, command: Sequence[object], **options: Any) -> subprocess.Popen[bytes]:
        """Start a process whose output nobody needs, and look at it from now on. It leads a session of its own."""
        silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([str(word) for word in command], start_new_session=True, **{**silent, **options})
        self._running[process] = end
        return process

    def wait(self, process: subprocess.Popen[bytes], seconds: float) -> bool:
        """Wait for the end of a process, looking at the memory of all; whether it ended within the time.

        The peak is read while they run: what the kernel tells at the end (ru_maxrss) holds what they were forked from.
        """
        end, pause = time.monotonic() + seconds, LOOK_SECONDS / 16
        ended = os.pidfd_open(process.pid)
        try:
            while not select.select([ended], [], [], pause)[0]:
                for each in self._running:
                    self._look(each)
                if time.monotonic() > end:
                    return False
                pause = min(2 * pause, LOOK_SECONDS)
        finally:
            os.close(ended)
        del self._running[process]
        _, status, used = os.wait4(process.pid, 0)  # with the children that it waited for
        process.returncode = os.waitstatus_to_exitcode(status)
        self.cpu_seconds += used.ru_utime + used.ru_stime
        return True

    def kill(self) -> None:
        """End what still runs, with its children."""
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._running.clear()

    def run(self, seconds: float, scrapes: Sequence[float] = ()) -> Run:
        """Return the run, which took so long."""
        return Run(seconds, self.cpu_seconds, self.peak_bytes["client"], self.peak_bytes["server"], tuple(scrapes))

    def _look(self, process: subprocess.Popen[bytes]) -> None:
        end = self._running[process]
        self.peak_bytes[end] = max(self.peak_bytes[end], sum(map(peak_bytes, family(process.pid))))


def family(pid: int) -> Iterator[int]:
    """Yield a process and its descendants."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                yield from family(int(child))


def peak_bytes(pid: int) -> int:
    """Return the most that a process has had resident so far; 0 where it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def free_ports(count: int) -> range:
    """Return ports one after another that were free a moment ago, below those that the kernel gives to clients."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(100):
        first = random.randrange(1024, lowest - count)
        with contextlib.suppress(OSError), contextlib.ExitStack() as taken:
            for port in range(first, first + count):
                taken.enter_context(socket.create_server(("127.0.0.1", port)))
            return range(first, first + count)
    raise RuntimeError(f"no {count} ports in a row are free")


@contextlib.contextmanager
def serving(
    command: Sequence[object],
    ports: int | range,
    place: Place,
    *,
    grace_seconds: float = GRACE_SECONDS,
    **options: Any,
) -> Iterator[Usage]:
    """Start a server, wait until it listens, and end it with the block, by SIGTERM where it has not ended by itself."""
    usage = Usage()
    try:
        process = usage.start("server", [*place.server, *command], **options)
        for port in (ports,) if isinstance(ports, int) else ports:
            wait_for_listener(port, place)
        yield usage
        if not usage.wait(process, grace_seconds):
            process.terminate()
            usage.wait(process, START_SECONDS)
    finally:
        usage.kill()


def wait_for_listener(port: int, place: Place) -> None:
    """Wait until somebody listens there, without connecting: some servers serve one connection and end."""
    end = time.monotonic() + START_SECONDS
    wanted = f":{port:04X} "
    while time.monotonic() < end:
        tables = subprocess.run(
            [*place.server, "cat", "/proc/net/tcp", "/proc/net/tcp6"], capture_output=True, text=True, check=False
        ).stdout
        if any(wanted in line and " 0A " in line for line in tables.splitlines()):
            return
        time.sleep(0.02)
    raise TimeoutError(f"nobody listens on port {port}")


def warm_up(size: int) -> None:
    """Use as much memory as a run is going to fill, and give it back.

    The host of a virtual machine may have taken free memory away: to get it again takes several times as long as to
    copy a file into it, and differs from run to run.
    """
    pages = max(1, min(size // mmap.PAGESIZE, os.sysconf("SC_AVPHYS_PAGES") // 2))
    with mmap.mmap(-1, pages * mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        memory[:: mmap.PAGESIZE] = bytes(pages)


def timed(command: Sequence[object], place: Place, usage: Usage, **options: Any) -> float:
    """Run a client; return its seconds. Raises RuntimeError where it fails, TimeoutError where it takes too long."""
    warm_up(place.fills_bytes)
    with tempfile.TemporaryFile() as said:
        usage.begun = time.perf_counter()
        process = usage.start("client", [*place.client, *command], stderr=said, **options)
        has_ended = usage.wait(process, RUN_SECONDS)
        seconds = time.perf_counter() - usage.begun
        if not has_ended:
            raise TimeoutError(f"took longer than {RUN_SECONDS} s")
        said.seek(0)
        usage.said = said.read().decode(errors="replace").strip()
        if process.returncode != 0:
            raise RuntimeError(f"exit code {process.returncode}: {usage.said}")
    return seconds


# --- the pair


COMPILED = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""Has Python keep what it compiled in the first run, as an installer does."""

Metrics = Literal["off", "served", "scraped"]
"""Of both ends; scraped four times a second."""


def filestreamer(
    *flags: object,
    name: str = "filestreamer",
    metrics: Metrics = "off",
    is_steady: bool = False,
    is_secured: bool = False,
    token: str = "",
    python: str = "",
) -> Contestant:
    """Return the pair, with the sender's flags, on this interpreter or another one that is in PATH.

    `is_steady` has the seconds be those at its rate after a ramp; `is_secured` has it speak TLS. With a `token`, the
    ends prove that they know it.
    """
    run = functools.partial(
        _filestreamer,
        flags,
        metrics,
        is_steady=is_steady,
        is_secured=is_secured,
        token=token,
        python=python or sys.executable,
    )
    needs = python or ("openssl" if is_secured else "")
    return Contestant(name, run, needs, verifies=True, is_ours=True, works=lambda: not python or _has_pair(python))


def _has_pair(python: str) -> bool:
    """Return whether the pair is installed for an interpreter."""
    return not subprocess.run(
        [python, "-P", "-c", "import receiver, sender"], capture_output=True, check=False
    ).returncode


def _filestreamer(
    flags: Sequence[object],
    metrics: Metrics,
    place: Place,
    source: Path,
    target: Path,
    *,
    is_steady: bool,
    is_secured: bool,
    token: str,
    python: str,
) -> Run:
    port = free_port()
    listen = f"{place.host}:{port}"
    serves = ["off" if metrics == "off" else f"{host}:{free_port()}" for host in (place.host, place.client_host)]
    module = [python, "-P", "-m"]
    where, sent = ["--output-file", target], f"{source}"
    if source.is_dir():
        target.mkdir(exist_ok=True)
        where, sent = ["--directory", target, "--once"], f"{source}/"
    receiver = [*module, "receiver", "--listen", listen, *where, "--metrics", serves[0]]
    env = {**COMPILED, "FILESTREAMER_TOKEN": token} if token else COMPILED
    if not token:
        receiver.append("--anonymous")
    sender = [*module, "sender", sent, "--to", listen, "--metrics", serves[1], *flags]
    scraped = serves if metrics == "scraped" else []
    with tempfile.TemporaryDirectory() as scratch:
        if is_secured:
            key, certificate = make_certificate(Path(scratch), place.host)
            receiver += ["--tls-cert", certificate, "--tls-key", key]
            sender += ["--tls-ca", certificate]
        with serving(receiver, port, place, env=env) as usage, scraping(scraped) as scrapes:
            seconds = timed(sender, place, usage, env=env)
    return usage.run(steady_seconds(usage.said) if is_steady else seconds, scrapes)


def make_certificate(directory: Path, host: str) -> tuple[Path, Path]:
    """Make a key, and a certificate for an address that is its own authority; return their files."""
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    made: list[object] = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-keyout",
        key,
        "-out",
        certificate,
    ]
    command = ["openssl", "req", "-x509", "-days", "2", "-subj", "/CN=bench", "-addext", f"subjectAltName=IP:{host}"]
    subprocess.run([*command, *map(str, made)], check=True, capture_output=True)
    return key, certificate


def steady_seconds(log: str) -> float:
    """Return what all would have taken at a sender's rate between its first line of progress, after 5 s, and its last.

    What is under way is the same at both. Raises RuntimeError where it ended within 10 s.
    """
    events = [json.loads(line) for line in log.splitlines()]
    looks = [event for event in events if event["event"] == "progress"]
    if len(looks) < 2:
        raise RuntimeError("it ended within ten seconds")
    begin, end = looks[0], looks[-1]
    begun, ended = (datetime.datetime.fromisoformat(event["timestamp"]) for event in (begin, end))
    moved: int = end["acknowledged_bytes"] - begin["acknowledged_bytes"]
    size: int = end["size_bytes"]
    return (ended - begun).total_seconds() * size / moved


@contextlib.contextmanager
def scraping(addresses: Sequence[str]) -> Iterator[list[float]]:
    """Scrape these until the block ends, each in a thread; yield the seconds of scrapes that show connections.

    The first one of each, which has it import what it needs, is not among them.
    """
    over = threading.Event()
    seconds: list[float] = []

    def scrape(url: str) -> None:
        is_first = True
        while not over.wait(SCRAPE_SECONDS):
            begun = time.perf_counter()
            with contextlib.suppress(OSError):  # it does not serve yet, or has ended
                with urllib.request.urlopen(url, timeout=10) as response:
                    body = response.read()
                if b"connection_up{" in body and not is_first:
                    seconds.append(time.perf_counter() - begun)
                is_first = False

    threads = [threading.Thread(target=scrape, args=(f"http://{each}/metrics",)) for each in addresses]
    for thread in threads:
        thread.start()
    try:
        yield seconds
    finally:
        over.set()
        for thread in threads:
            thread.join()


# --- its peers


def _cp(is_synced: bool, place: Place, source: Path, target: Path) -> Run:
    usage = Usage()
    copy = ["cp", "-a", source, target]
    sync = "sync -f" if source.is_dir() else "sync"
    try:
        seconds = timed(["sh", "-c", f'"$@" && {sync} {target}', "sh", *copy] if is_synced else copy, place, usage)
    finally:
        usage.kill()
    return usage.run(seconds)


class Stream(NamedTuple):
    """What the two ends of one stream are run as, by a shell."""

    receive: str
    send: str


def _stream(of_file: Stream, of_tar: Stream, source: Path, target: Path) -> Stream:
    """Return what moves a file, or a tree from tar to tar, between which `of_tar` passes standard input on."""
    if not source.is_dir():
        return Stream(f"exec {of_file.receive}", f"exec {of_file.send}")
    target.mkdir()
    tar = f"tar -C {source} --format=posix -cf - ."
    return Stream(f"{of_tar.receive} | tar -C {target} -xf -", f"{tar} | {of_tar.send}")


def _run_stream(stream: Stream, port: int, place: Place) -> Run:
    with serving(["sh", "-c", stream.receive], port, place, grace_seconds=RUN_SECONDS) as usage:
        timed(["sh", "-c", stream.send], place, usage)
    # The sending end does not know when the receiving end has written everything: that is when the receiving end exits.
    return usage.run(time.perf_counter() - usage.begun)


def _socat(block_bytes: int, place: Place, source: Path, target: Path) -> Run:
    port = free_port()
    socat = f"socat -u -b {block_bytes}"
    listen, connect = f"TCP-LISTEN:{port},bind={place.host},reuseaddr", f"TCP:{place.host}:{port}"
    of_file = Stream(f"{socat} {listen} OPEN:{target},creat,trunc,wronly", f"{socat} OPEN:{source} {connect}")
    of_tar = Stream(f"{socat} {listen} -", f"{socat} - {connect}")
    return _run_stream(_stream(of_file, of_tar, source, target), port, place)


def _mbuffer(place: Place, source: Path, target: Path) -> Run:
    port = free_port()
    mbuffer = "mbuffer -q -s 1M -m 64M"
    of_tar = Stream(f"{mbuffer} -I {place.host}:{port}", f"{mbuffer} -O {place.host}:{port}")
    of_file = Stream(f"{of_tar.receive} -o {target}", f"{of_tar.send} -i {source}")
    return _run_stream(_stream(of_file, of_tar, source, target), port, place)


def _socat_tls(place: Place, source: Path, target: Path) -> Run:
    port = free_port()
    socat = ["socat", "-u", "-b", 1024 * 1024]
    with tempfile.TemporaryDirectory() as scratch:
        key, certificate = make_certificate(Path(scratch), place.host)
        listen = f"OPENSSL-LISTEN:{port},bind={place.host},reuseaddr,cert={certificate},key={key},verify=0"
        connect = f"OPENSSL:{place.host}:{port},cafile={certificate}"
        server = [*socat, listen, f"OPEN:{target},creat,trunc,wronly"]
        with serving(server, port, place, grace_seconds=RUN_SECONDS) as usage:
            timed([*socat, f"OPEN:{source}", connect], place, usage)
    return usage.run(time.perf_counter() - usage.begun)


def _gridftp(streams: int, place: Place, source: Path, target: Path) -> Run:
    port = free_port()
    server = ["globus-gridftp-server", "-aa", "-allow-root", "-anonymous-user", "root", "-home-dir", "/"]
    where = ["-control-interface", place.host, "-data-interface", place.host, "-p", port, "-c", "/dev/null"]
    client = ["globus-url-copy", "-fast", *(["-p", streams] if streams > 1 else [])]
    end, many = "", []
    if source.is_dir():
        end, many = "/", ["-r", "-cd", "-pp", "-cc", 4]
    # Without a name of its own it looks one up, which takes long where there is no server to ask.
    names = [{**os.environ, "GLOBUS_HOSTNAME": host} for host in (place.host, place.client_host)]
    with serving([*server, *where, *([] if many else ["-1"])], port, place, env=names[0]) as usage:
        to = f"ftp://{place.host}:{port}{target}{end}"
        seconds = timed([*client, *many, f"file://{source}{end}", to], place, usage, env=names[1])
    return usage.run(seconds)


def _rsync(place: Place, source: Path, target: Path) -> Run:
    port = free_port()
    end = "/" if source.is_dir() else ""
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch, "rsyncd.conf")
        config.write_text(
            f"pid file = {scratch}/pid\nuse chroot = no\nuid = root\ngid = root\n"
            f"[here]\npath = {target.parent}\nread only = no\n"
        )
        server = ["rsync", "--daemon", "--no-detach", f"--config={config}", f"--port={port}", f"--address={place.host}"]
        client = ["rsync", "-aW", "--inplace", f"{source}{end}", f"rsync://{place.host}:{port}/here/{target.name}{end}"]
        with serving(server, port, place, grace_seconds=SETTLE_SECONDS) as usage:
            seconds = timed(client, place, usage)
    return usage.run(seconds)


def _rclone(place: Place, source: Path, target: Path) -> Run:
    port = free_port()
    rclone = ["rclone", "--config", "/dev/null"]
    if source.is_dir():  # its client of WebDAV begins a request each 10 ms and no sooner
        protocol, options, how = "sftp", ["--user", "bench", "--pass", "bench"], ["copy", "--transfers", 8]
        hidden = subprocess.run(["rclone", "obscure", "bench"], capture_output=True, text=True, check=True).stdout
        remote = f":sftp,host={place.host},port={port},user=bench,pass={hidden.strip()}:{target.name}"
    else:
        protocol, options, how = "webdav", [], ["copyto", "--buffer-size", "4M"]
        remote = f":webdav,url='http://{place.host}:{port}':{target.name}"
    server = [*rclone, "serve", protocol, "--addr", f"{place.host}:{port}", *options, target.parent]
    with serving(server, port, place, grace_seconds=SETTLE_SECONDS) as usage:
        seconds = timed([*rclone, *how, source, remote], place, usage)
    return usage.run(seconds)


def _xrootd(streams: int, is_checked: bool, place: Place, source: Path, target: Path) -> Run:
    port = free_port()
    flags = ["-N", "-f", *(["-S", streams] if streams > 1 else []), *(["-C", "adler32"] if is_checked else [])]
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch, "xrootd.cf")
        config.write_text(
            f"all.export /\nall.adminpath {scratch}\nall.pidpath {scratch}\noss.localroot /\n"
            f"xrd.port {port}\nxrd.network nodnr\nxrootd.chksum max 2 adler32\n"
        )
        server: list[object] = ["xrootd", "-c", config, "-l", f"{scratch}/log"]
        if os.geteuid() == 0:  # it refuses to be root
            server += ["-R", "nobody"]
            for each in (scratch, target.parent):
                shutil.chown(each, "nobody")
        sent = [source]
        if source.is_dir():
            target.mkdir()
            shutil.chown(target, "nobody" if os.geteuid() == 0 else os.geteuid())
            flags += ["-r", "--parallel", 4]
            sent = sorted(source.iterdir())
        with serving(server, port, place, grace_seconds=SETTLE_SECONDS) as usage:
            no_pages = {**os.environ, "XRD_CPUSEPGWRTRD": "0"}  # without a checksum of every 4 KiB it is thrice as fast
            to = f"root://{place.host}:{port}/{target}"
            seconds = timed(["xrdcp", *flags, *sent, to], place, usage, env=no_pages)
    return usage.run(seconds)


def _wdt(ports: int, is_encrypted: bool, place: Place, source: Path, target: Path) -> Run:
    # A sender that finds one of the ports not listened to, as another process has it, waits for a second.
    free = free_ports(ports)
    both = ["wdt", "-ipv4", "-static_ports", "-start_port", free[0], "-num_ports", ports, "-transfer_id", "bench"]
    both += ["-enable_checksum", "-minloglevel", 2]
    # A receiver makes the key and prints it. For both ends to be given one, this is the only flag.
    secret = ["aes128gcm", "-test_only_encryption_secret", os.urandom(8).hex()]
    both += ["-encryption_type", *(secret if is_encrypted else ["none"])]
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        wanted, files = [], source
        if source.is_file():  # of a directory it takes those that a manifest names, and it gives nothing another name
            Path(scratch, "manifest").write_text(source.name)
            wanted, files = ["-manifest", f"{scratch}/manifest"], source.parent
        server = [*both, "-directory", f"{scratch}/here"]
        client = [*both, "-directory", files, *wanted, "-destination", place.host]
        with serving(server, free, place) as usage:
            seconds = timed(client, place, usage)
        Path(scratch, "here", source.name if wanted else "").rename(target)
    return usage.run(seconds)


def _fastsync(streams: int, place: Place, source: Path, target: Path) -> Run:
    """Move a file: the end that has it serves, and the other one asks whether it may overwrite what is there."""
    port = free_port()
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        served = place._replace(server=place.client, client=place.server)
        server = ["fastsync", "send", f"{place.client_host}:{port}", source.name]
        client = ["sh", "-c", f"echo y | fastsync recv {place.client_host}:{port} {streams}"]
        with serving(server, port, served, cwd=source.parent) as usage:
            seconds = timed(client, served, usage, cwd=scratch)
        Path(scratch, source.name).rename(target)
    return usage.run(seconds)


def _iperf3(streams: int, place: Place, source: Path, _target: Path) -> Run:
    """Move as many bytes from memory to memory: what the network alone takes."""
    port = free_port()
    client = ["iperf3", "-c", place.host, "-p", port, "-P", streams, "-n", source.stat().st_size]
    with serving(["iperf3", "-s", "-1", "-B", place.host, "-p", port], port, place) as usage:
        seconds = timed(client, place, usage)
    return usage.run(seconds)


def _original(connections: int, chunk_bytes: int, place: Place, source: Path, target: Path) -> Run:
    port = free_port()
    address = f"{place.host}:{port}"
    with tempfile.TemporaryDirectory() as scratch:
        settings = {"ServerAddr": address, "InputFile": str(source), "ParallelPage": connections, "Chunk": chunk_bytes}
        Path(scratch, "config.json").write_text(
            json.dumps({**settings, "ClientAddr": address, "OutputFile": str(target)})
        )
        with serving([f"{ORIGINAL}/server"], port, place, cwd=scratch) as usage:
            seconds = timed([f"{ORIGINAL}/client"], place, usage, cwd=scratch)
    return usage.run(seconds)


def cp(*, is_synced: bool = False) -> Contestant:
    """Return `cp -a`; `is_synced` has it wait for the disk, as the pair does."""
    return Contestant("cp and sync" if is_synced else "cp", functools.partial(_cp, is_synced))


def socat(block_kib: int = 1024, *, with_tar: bool = False) -> Contestant:
    """Return socat, which tells nobody of what it loses; of a tree, tar at both ends of it."""
    name = "tar, socat" if with_tar else f"socat -b {block_kib}Ki"
    return Contestant(name, functools.partial(_socat, block_kib * 1024), "socat", keeps_times=with_tar)


def gridftp(streams: int = 1) -> Contestant:
    """Return GridFTP, which leaves data connections open between files and has so many of them."""
    name = "GridFTP" if streams == 1 else f"GridFTP -p {streams}"
    return Contestant(name, functools.partial(_gridftp, streams), "globus-gridftp-server", keeps_times=False)


def rsync() -> Contestant:
    """Return an rsync daemon; whole files, as there is nothing to compare with."""
    return Contestant("rsync", _rsync, "rsync", verifies=True)


def rclone() -> Contestant:
    """Return rclone to its own server: of WebDAV, which encrypts nothing; of SFTP for trees."""
    return Contestant("rclone", _rclone, "rclone", keeps_times=False)


def xrootd(streams: int = 1, *, is_checked: bool = False) -> Contestant:
    """Return xrdcp to a server of XRootD; `is_checked` has both ends compute a checksum, after the copy."""
    name = "xrdcp" + (f" -S {streams}" if streams > 1 else "") + (" -C adler32" if is_checked else "")
    run = functools.partial(_xrootd, streams, is_checked)
    return Contestant(name, run, "xrootd", verifies=is_checked, keeps_times=False)


def wdt(ports: int = 2, *, is_encrypted: bool = False) -> Contestant:
    """Return WDT, which compares a CRC-32C of each block; `is_encrypted` has it use AES-128-GCM."""
    name = f"WDT -num_ports {ports}" + (", AES-128-GCM" if is_encrypted else "")
    return Contestant(name, functools.partial(_wdt, ports, is_encrypted), "wdt", verifies=True, keeps_times=False)


def socat_tls() -> Contestant:
    """Return socat over TLS 1.3, for one file."""
    return Contestant("socat, TLS", _socat_tls, "socat", keeps_times=False)


def mbuffer(*, with_tar: bool = False) -> Contestant:
    """Return mbuffer, a buffer at both ends of one connection; of a tree, between tar and tar."""
    return Contestant("tar, mbuffer" if with_tar else "mbuffer", _mbuffer, "mbuffer", keeps_times=with_tar)


def fastsync(streams: int = 2) -> Contestant:
    """Return fastsync of Chorus One: chunks of one file over several connections, and no check of what came."""
    run = functools.partial(_fastsync, streams)
    return Contestant(f"fastsync {streams}", run, "fastsync", keeps_times=False)


def iperf3(streams: int = 1) -> Contestant:
    """Return iperf3, which moves no file: the ceiling."""
    return Contestant(f"iperf3 -P {streams}", functools.partial(_iperf3, streams), "iperf3", makes_copy=False)


def original(connections: int, chunk_kib: int) -> Contestant:
    """Return the original Go program."""
    run = functools.partial(_original, connections, chunk_kib * 1024)
    return Contestant("the original", run, f"{ORIGINAL}/server", keeps_times=False)
