"""A long link between two network namespaces: delay, rate, loss and a finite queue (tests/bench/wanlink.c)."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tests.bench.contestants import Place

SOURCE: Final = Path(__file__).with_name("wanlink.c")
CLIENT, SERVER = "10.77.0.1", "10.77.0.2"
ETC: Final = Path("/etc/netns")
"""What `ip netns exec NAME` lays over /etc is in a directory NAME here."""
HOSTS: Final = f"127.0.0.1 localhost\n{CLIENT} client\n{SERVER} server\n"
"""Some peers look up the names of addresses, and their own, and there is no server of names to be asked."""


class Link(NamedTuple):
    """What lies between the two ends."""

    rtt_ms: int
    loss_percent: float
    megabits: int = 1000
    queue_kib: int = 8192

    def __str__(self) -> str:
        return f"{self.rtt_ms} ms, {self.megabits} Mbit/s, {self.loss_percent:g} % loss"


LINKS: Final = {f"{rtt_ms}ms-{loss:g}": Link(rtt_ms, loss) for rtt_ms in (10, 50, 100) for loss in (0, 0.01, 0.1)}


@contextlib.contextmanager
def link(over: Link | None) -> Iterator[Place]:
    """Make the link, and take it away again; for None everything runs on loopback. Needs root, gcc and /dev/net/tun."""
    if over is None:
        yield Place()
        return
    names = [f"fs-{os.getpid()}-{end}" for end in "ab"]
    scratch = Path(tempfile.mkdtemp())
    program = scratch / "wanlink"
    process = None
    try:
        subprocess.run(["gcc", "-O2", "-o", program, SOURCE], check=True)
        for name, address in zip(names, (CLIENT, SERVER), strict=True):
            subprocess.run(["ip", "netns", "add", name], check=True)
            subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
            (ETC / name).mkdir(parents=True)
            (ETC / name / "hosts").write_text(f"{HOSTS}{address} {socket.gethostname()}\n")
            (ETC / name / "resolv.conf").touch()
        shape = [over.rtt_ms / 2, over.megabits, over.loss_percent, over.queue_kib, 9000]
        process = subprocess.Popen(
            [program, names[0], CLIENT, names[1], SERVER, *map(str, shape)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield Place(SERVER, CLIENT, ("ip", "netns", "exec", names[1]), ("ip", "netns", "exec", names[0]))
    finally:
        if process is not None:
            process.terminate()
            process.communicate()
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL, check=False)
            shutil.rmtree(ETC / name, ignore_errors=True)
        shutil.rmtree(scratch)
