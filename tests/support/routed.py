"""Two hosts and a router between them, each a network namespace.

`Routed.lose_large` makes an MTU black hole of the router, and `Routed.police` has it lose nearly all of one connection.
"""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Final

import pytest

SENDER, RECEIVER = "10.99.1.1", "10.99.2.1"
ROUTER: Final = {SENDER: "10.99.1.2", RECEIVER: "10.99.2.2"}
ETHERNET_BYTES: Final = 14


class Routed:
    """The names of the namespaces, and what the router does."""

    def __init__(self, prefix: str) -> None:
        self._hosts = {SENDER: f"{prefix}-s", RECEIVER: f"{prefix}-r"}
        self._router = f"{prefix}-m"

    def at(self, host: str) -> tuple[str, ...]:
        """Return the command that runs another one on a host."""
        return ("ip", "netns", "exec", self._hosts[host])

    def lose_large(self, most_bytes: int, *, to: str) -> None:
        """Silently lose packets of more than `most_bytes`, IP header included, on the way to a host."""
        # A token bucket that has no room for a packet drops it, and says nothing.
        shape = f"tbf rate 10gbit burst {most_bytes + ETHERNET_BYTES} latency 100ms"
        self._run("tc", "-n", self._router, "qdisc", "replace", "dev", _device(to), "root", *shape.split())

    def limit(self, rate: str, *, to: str) -> None:
        """Forward no more than this to a host, such as 200mbit; a queue of 50 ms takes the rest."""
        shape = f"tbf rate {rate} burst 256kb latency 50ms"
        self._run("tc", "-n", self._router, "qdisc", "replace", "dev", _device(to), "root", *shape.split())

    def ports(self, least_bytes: int) -> list[int]:
        """Return the sender's ports of the connections on which the receiver has acknowledged so many bytes."""
        command = [*self.at(SENDER), "ss", "-tinOH", "state", "established", "dst", RECEIVER]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        acknowledged = [(line, re.search(r" bytes_acked:(\d+)", line)) for line in lines]
        return [
            int(line.split()[2].rpartition(":")[2])
            for line, found in acknowledged
            if found is not None and int(found[1]) >= least_bytes
        ]

    def police(self, port: int, kilobytes_per_second: int) -> None:
        """Lose what goes beyond this rate from one of the sender's ports, as a policer of the path does."""
        for rule in (
            "add table ip police",
            "add chain ip police forward { type filter hook forward priority 0; }",
            f"add rule ip police forward tcp sport {port} limit rate over {kilobytes_per_second} kbytes/second drop",
        ):
            self._run("ip", "netns", "exec", self._router, "nft", rule)

    def cut(self) -> None:
        """Lose everything, as a router does that was switched off."""
        for host in self._hosts:
            self._run("ip", "-n", self._router, "link", "set", _device(host), "down")

    def make(self) -> None:
        """Make the namespaces, and the links between them."""
        for name in (*self._hosts.values(), self._router):
            self._run("ip", "netns", "add", name)
            self._run("ip", "-n", name, "link", "set", "lo", "up")
        for host, name in self._hosts.items():
            device = _device(host)
            self._run(*f"ip link add eth0 netns {name} type veth peer name {device} netns {self._router}".split())
            for where, what, address in ((name, "eth0", host), (self._router, device, ROUTER[host])):
                self._run("ip", "-n", where, "addr", "add", f"{address}/24", "dev", what)
                self._run("ip", "-n", where, "link", "set", what, "up")
            self._run("ip", "-n", name, "route", "add", "default", "via", ROUTER[host])
        self._run("ip", "netns", "exec", self._router, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")

    def remove(self) -> None:
        """Remove everything. Never fails."""
        for name in (*self._hosts.values(), self._router):
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL, check=False)

    @staticmethod
    def _run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)


def _device(host: str) -> str:
    """Return the router's device that leads to a host."""
    return "to-sender" if host == SENDER else "to-receiver"


@contextlib.contextmanager
def routed() -> Iterator[Routed]:
    """Make two hosts and a router, and remove them; skip the test where this user may not."""
    if os.geteuid() != 0 or shutil.which("tc") is None:
        assert os.environ.get("CI") != "true", "network namespaces take root, and the Debian package iproute2"
        pytest.skip("network namespaces take root, ip and tc")
    made = Routed(f"fs{os.getpid()}")
    try:
        made.make()
        yield made
    finally:
        made.remove()
