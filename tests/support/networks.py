"""Two network namespaces with a link between them, and names of their own. Making them takes root."""

import contextlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ETC: Final = Path("/etc/netns")
"""What `ip netns exec NAME` lays over /etc is in a directory NAME here."""
INTERFACE: Final = "v0"
"""The name of the interface at both ends of the link."""
NOBODYS_CARD: Final = "02:00:00:00:00:01"

_NUMBERS = itertools.count()


class End(NamedTuple):
    """One end of the link: a network namespace. Each of its addresses is usable at once, unless it says otherwise."""

    name: str

    @property
    def inside(self) -> Sequence[str]:
        """What runs a command in it."""
        return ("ip", "netns", "exec", self.name)

    def ip(self, *words: object) -> str:
        """Change it, or look at it, with the command ip; return what that has printed."""
        command = ["ip", "-n", self.name, *" ".join(map(str, words)).split()]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def run(self, *command: str) -> str:
        """Run a command in it; return what that has printed."""
        return subprocess.run([*self.inside, *command], check=True, capture_output=True, text=True).stdout

    def add(self, address: str) -> None:
        """Give the interface an address, written with its prefix length."""
        self.ip("address add", address, "dev", INTERFACE, "nodad" if ":" in address else "")

    def add_tentative(self, address: str, *, checks: int = 3) -> None:
        """Give it an IPv6 address that is checked for duplicates first, a second for each check."""
        setting = f"/proc/sys/net/ipv6/conf/{INTERFACE}/dad_transmits"
        subprocess.run([*self.inside, "sh", "-c", f"echo {checks} >{setting}"], check=True)
        self.ip("address add", address, "dev", INTERFACE)

    def make_hole(self, address: str) -> None:
        """Let what is sent to an address on the link vanish without an answer."""
        self.ip("neighbor replace", address, "lladdr", NOBODYS_CARD, "dev", INTERFACE, "nud permanent")

    def nft(self, ruleset: str) -> None:
        """Load rules of netfilter (Debian: nftables)."""
        assert shutil.which("nft") is not None, "the command nft is missing: install it (Debian: package nftables)"
        command = [*self.inside, "nft", "-f", "-"]
        subprocess.run(command, input=ruleset, check=True, capture_output=True, text=True)

    def admit_only(self, port: int, verdict: str = "drop") -> None:
        """Do that with what comes over the link to another TCP port: `drop`, `reject with tcp reset`, ..."""
        rule = f'iifname "{INTERFACE}" tcp dport != {port} {verdict}'
        self.nft(f"table inet firewall {{\nchain in {{\ntype filter hook input priority 0\n{rule}\n}}\n}}\n")

    def set_names(self, names: Mapping[str, Sequence[str]], *, server: str | None = None) -> None:
        """Set the addresses of names, and the name server that is asked for others."""
        lines = [f"{address} {name}\n" for name, addresses in names.items() for address in addresses]
        (ETC / self.name / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
        (ETC / self.name / "nsswitch.conf").write_text("hosts: files dns\n")
        # Not to be answered within the time of a test.
        asked = f"nameserver {server}\noptions timeout:30 attempts:5\n" if server is not None else ""
        (ETC / self.name / "resolv.conf").write_text(asked)


@contextlib.contextmanager
def network() -> Iterator[tuple[End, End]]:
    """Make two ends that reach each other, for the length of the block. Skips the test where that is not allowed.

    They have the addresses 10.9.0.1 and 10.9.0.2 (/24), fd09::1 and fd09::2, fe80::1 and fe80::2 (/64).
    """
    if os.geteuid() != 0 or shutil.which("ip") is None:
        assert os.environ.get("CI") != "true", "network namespaces take root, and the Debian package iproute2"
        pytest.skip("network namespaces take root, and ip(8)")
    ends = [End(f"fs-{os.getpid()}-{next(_NUMBERS)}") for _ in range(2)]
    first, second = ends
    try:
        for end in ends:
            made = subprocess.run(["ip", "netns", "add", end.name], capture_output=True, text=True, check=False)
            if made.returncode != 0:
                pytest.skip(f"no network namespace can be made: {made.stderr.strip()}")
            (ETC / end.name).mkdir(parents=True)
            end.set_names({})
            end.ip("link set lo up")
        first.ip("link add", INTERFACE, "type veth peer name", INTERFACE, "netns", second.name)
        for number, end in enumerate(ends, start=1):
            end.ip("link set", INTERFACE, "up")
            for address in (f"10.9.0.{number}/24", f"fd09::{number}/64", f"fe80::{number}/64"):
                end.add(address)
        yield first, second
    finally:
        for end in ends:
            subprocess.run(["ip", "netns", "delete", end.name], stderr=subprocess.DEVNULL, check=False)
            shutil.rmtree(ETC / end.name, ignore_errors=True)
