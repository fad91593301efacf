"""The far side behind firewalls, jump hosts and load balancers: what is in the way between the two machines.

`here` is where the user types the command, `there` the machine with the sshd, on port 22 of its address as anywhere.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.networks import End, network
from tests.support.services import HANG, UNIT, Pair, Service, make_file, same
from tests.support.sshd import Sshd, sshd
from tests.support.waiting import until

NAME = "nas.test"
ADDRESS, OTHER_ADDRESS, INNER_ADDRESS = "10.9.0.2", "10.9.0.3", "10.8.0.1"

SMALL = ("--chunk-size", "256KiB")
"""Chunks enough for each connection of a small file."""


class Move(NamedTuple):
    """A command that has been typed, and the file at both ends."""

    service: Service
    far: Sshd
    source: Path
    target: Path

    def arrives(self, seconds: float = HANG) -> dict[str, Any]:
        """Wait for the end; return the result. The file is there, and nothing of the far side runs any more."""
        result = self.service.succeeds(seconds)
        assert same(self.source, self.target)
        self.leaves_nobody()
        return result

    def leaves_nobody(self) -> None:
        """Wait until nothing runs there that this has started, nor any ssh here."""
        far = self.far
        until(lambda: not far.remote() and not far.logins() and not far.clients(), "all ends")


class Site(NamedTuple):
    """Two machines with a link between them, and what is done on them."""

    pair: Pair
    here: End
    there: End
    stack: ExitStack

    @property
    def root(self) -> Path:
        """A directory for this test's files."""
        return self.pair.source.parent

    def sshd(self, **options: Any) -> Sshd:
        """Start a sshd at the other end, on port 22 of an address; the client knows it as NAME."""
        where = {"address": ADDRESS, "port": 22, "inside": self.there.inside, "known": [NAME], **options}
        far = self.stack.enter_context(sshd(self.root, **where))
        far.write_config(far.block(HostName=NAME))
        return far

    def push(self, far: Sshd, size: int, *args: object, **options: Any) -> Move:
        """Send a file into a directory of the remote home."""
        source = self.pair.file("f", size)
        to = ("--to", f"{far.host}:incoming", "--ssh", far.ssh)
        service = self.pair.start("sender", source, *to, *args, under=self.here.inside, **options)
        return Move(service, far, source, far.home / "incoming" / "f")

    def pull(self, far: Sshd, size: int, *args: object, **options: Any) -> Move:
        """Receive a file from a directory of the remote home."""
        (far.home / "data").mkdir(exist_ok=True)
        source = make_file(far.home / "data" / "f", size)
        there = ("--from", f"{far.host}:data/f", "--directory", self.pair.destination, "--ssh", far.ssh)
        service = self.pair.start("receiver", *there, *args, under=self.here.inside, **options)
        return Move(service, far, source, self.pair.destination / "f")


Mover = Callable[..., Move]


@pytest.fixture
def site(pair: Pair) -> Iterator[Site]:
    """Return two machines; what runs on them ends with the test."""
    with network() as (here, there), ExitStack() as stack:
        here.set_names({NAME: [ADDRESS]})
        yield Site(pair, here, there, stack)


@pytest.fixture
def move(request: pytest.FixtureRequest, site: Site) -> Mover:
    """Return what moves a file, from here to there or back: `site.push`, `site.pull`."""
    mover: Mover = getattr(site, getattr(request, "param", "push"))
    return mover


PULL = pytest.mark.parametrize("move", ["pull"], indirect=True)
BOTH = pytest.mark.parametrize("move", ["push", "pull"], indirect=True)
"""What is in the way is met by the same code, whoever sends: the others are done in one direction."""


def way(service: Service) -> tuple[str, str]:
    """Wait until the way is chosen; return it, and why."""
    told = service.wait_for("way")
    return told["way"], told["reason"]


@BOTH
def test_without_anything_in_the_way(site: Site, move: Mover) -> None:
    far = site.sshd()
    moved = move(far, 3_000_000)
    assert way(moved.service)[0] == "direct"
    moved.arrives()
    assert far.log.count("Accepted publickey") == 1


# ---------------------------------------------------------------------------------------------------------- firewalls


@BOTH
@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("drop", ["timed out", "no answer"]),
        ("reject with tcp reset", ["Connection refused"]),
        ("reject with icmpx type admin-prohibited", ["No route to host", "unreachable"]),
    ],
)
def test_only_port_22_is_open(site: Site, move: Mover, verdict: str, words: list[str]) -> None:
    """It goes through ssh by itself, and says why."""
    site.there.admit_only(22, verdict)
    far = site.sshd()
    moved = move(far, 20_000_000)
    chosen, reason = way(moved.service)
    assert chosen == "ssh"
    assert ADDRESS in reason
    assert any(word in reason for word in words), reason
    moved.arrives()


def test_a_firewall_that_lets_only_small_packets_through(site: Site, move: Mover) -> None:
    """Connections come, and nothing can be done with them."""
    site.there.admit_only(22, "meta length > 100 drop")
    far = site.sshd()
    moved = move(far, 3_000_000)
    assert way(moved.service)[0] == "ssh"
    moved.arrives()


@PULL
def test_the_user_wants_no_other_way(site: Site, move: Mover) -> None:
    site.there.admit_only(22, "reject with tcp reset")
    far = site.sshd()
    moved = move(far, 1000, "--via", "direct", "--give-up-after", 0.8 * UNIT)
    message = moved.service.fails(1, "timeout")
    assert f"{ADDRESS}:" in message
    assert "Connection refused" in message
    moved.leaves_nobody()


def test_the_user_wants_ssh(site: Site, move: Mover) -> None:
    far = site.sshd()
    three = ("--via", "ssh", "--connections", 3, "--rate-limit", "4MB/s", *SMALL)
    moved = move(far, 24_000_000, *three)
    assert way(moved.service)[0] == "ssh"
    assert moved.arrives()["connections"] == 3
    assert far.log.count("Accepted publickey") == 5  # the login, control, and three


@PULL
@pytest.mark.parametrize("forbids", ["AllowTcpForwarding no", "PermitOpen none", "DisableForwarding yes"])
def test_neither_another_port_nor_forwarding(site: Site, move: Mover, forbids: str) -> None:
    """The bytes go through the standard streams of the remote command."""
    site.there.admit_only(22, "reject with tcp reset")
    far = site.sshd(config=dict([forbids.split()]))
    moved = move(far, 20_000_000)
    moved.arrives()
    assert any("relay" in told["reason"] for told in moved.service.events("way"))


# ----------------------------------------------------------------------------------------------- addresses on the way


@pytest.mark.parametrize("address", ["fd09::2", "fe80::2%v0"])
def test_by_ipv6(site: Site, move: Mover, address: str) -> None:
    """The address of a link names an interface, which differs at both ends."""
    far = site.sshd(address="::", known=[address])
    far.write_config(far.block(HostName=address.replace("%", "%%")))
    moved = move(far, 3_000_000)
    moved.arrives()


@PULL
def test_a_jump_host(site: Site, move: Mover) -> None:
    """Nothing but the jump host can be reached from here."""
    site.there.ip("address add", f"{INNER_ADDRESS}/32", "dev lo")
    far = site.sshd(address=INNER_ADDRESS, known=[INNER_ADDRESS])
    jump = site.sshd(name="jump")
    far.write_config(far.block(ProxyJump="jump"), jump.block("jump", HostName=NAME))
    three = ("--connections", 3, "--rate-limit", "4MB/s", *SMALL)
    moved = move(far, 24_000_000, *three)
    assert way(moved.service)[0] == "ssh"
    moved.arrives()
    assert not jump.remote()
    assert jump.log.count("Accepted publickey") == far.log.count("Accepted publickey") == 5


def test_a_router_that_translates_addresses(site: Site, move: Mover) -> None:
    """It hands its port 2222 on to port 22 of a machine behind it, whose own address is not known here."""
    site.there.ip("address add", f"{INNER_ADDRESS}/32", "dev lo")
    site.there.nft(
        "table ip nat {\nchain in {\ntype nat hook prerouting priority -100\n"
        f"tcp dport 2222 dnat to {INNER_ADDRESS}:22\n}}\n}}\n"
    )
    far = site.sshd(address=INNER_ADDRESS, known=[f"[{NAME}]:2222"])
    far.write_config(far.block(HostName=NAME, Port=2222))
    moved = move(far, 20_000_000)
    assert way(moved.service)[0] == "ssh"
    moved.arrives()


# ------------------------------------------------------------------------------------------ one name, several machines


@PULL
@pytest.mark.parametrize("via", ["direct", "ssh"])
@pytest.mark.parametrize("first", [0, 1])
def test_a_name_that_leads_to_two_machines(site: Site, move: Mover, via: str, first: int) -> None:
    """Each look at the name finds the other machine, and everything goes to the one that was reached first."""
    site.there.add(f"{OTHER_ADDRESS}/24")
    machines = [site.sshd(), site.sshd(name="other", address=OTHER_ADDRESS)]
    (site.root / "known").write_text("".join(each.known_hosts.read_text() for each in machines))
    # Each ssh reads its configuration once, or twice, and looks the name up then.
    hosts = [f"127.0.0.1 localhost\n{each.address} {NAME}\n" for each in machines]
    for number, text in enumerate(hosts):
        (site.root / f"hosts.{number}").write_text(text)
    turns = site.root / "turns"
    turns.write_text("x" * first)
    switch = site.root / "switch"
    switch.write_text(f"printf x >>{turns}\ncat {site.root}/hosts.$(($(wc -c <{turns}) % 2)) >/etc/hosts\n")
    far = machines[0]
    for machine in machines:
        (machine.home / "data").mkdir()
        make_file(machine.home / "data" / "f", 20_000_000)
        machine.authorized_keys.write_text(far.key.with_suffix(".pub").read_text())
    block = far.block(HostName=NAME, UserKnownHostsFile=site.root / "known")
    far.write_config(f'Match originalhost {far.host} exec "sh {switch}"\n', block)
    moved = move(far, 20_000_000, "--via", via, "--connections", 4)
    moved.service.succeeds()
    (used,) = [each for each in machines if "Accepted publickey" in each.log]
    if moved.target.parent == far.home / "incoming":
        moved = moved._replace(target=used.home / "incoming" / "f")
    moved._replace(far=used).arrives()
    assert len(turns.read_text()) > first + (5 if via == "ssh" else 0)


# ------------------------------------------------------------------------------------------------- limits of the sshd


def test_64_connections_where_10_may_be_logging_in(site: Site, move: Mover) -> None:
    far = site.sshd(config={"MaxStartups": "10"})
    many = ("--via", "ssh", "--connections", 64, *SMALL)
    moved = move(far, 200_000_000, *many, "--rate-limit", "2MB/s")
    # The login, control, and all others.
    until(lambda: far.log.count("Accepted publickey") == 66, "all have come")
    moved.service.signal(signal.SIGINT)
    assert moved.service.wait() == 130
    moved.leaves_nobody()
    assert move(far, 200_000_000, *many).arrives(6 * UNIT)["held_bytes"] > 0
    assert "drop connection" not in far.log


@PULL
def test_others_are_logging_in_too(site: Site, move: Mover) -> None:
    """Where some logins are refused, the transfer goes on with those that come."""
    far = site.sshd(config={"MaxStartups": "2"})
    move(far, 50_000_000, "--via", "ssh", "--connections", 16, *SMALL).arrives(12 * UNIT)
    assert "drop connection" in far.log


# ---------------------------------------------------------------------------------------------------- a second login


@pytest.mark.parametrize("forwards", ["yes", "no"])
def test_only_the_first_login_needs_no_answer(site: Site, move: Mover, forwards: str) -> None:
    """All share its connection, and the user is told."""
    site.there.admit_only(22, "reject with tcp reset")
    limits = {"AllowTcpForwarding": forwards, "PasswordAuthentication": "yes"}
    far = site.sshd(accepts_once=True, config=limits)
    moved = move(far, 20_000_000, "--connections", 4)
    moved.arrives()
    assert far.log.count("Accepted publickey") == 1
    assert any("first login" in told["reason"] for told in moved.service.events("way"))


@PULL
def test_fewer_sessions_than_connections(site: Site, move: Mover) -> None:
    """One connection with four sessions, of which the login is one: where neither forwarding nor logins are allowed."""
    limits = {"AllowTcpForwarding": "no", "PasswordAuthentication": "yes", "MaxSessions": 4}
    far = site.sshd(accepts_once=True, config=limits)
    moved = move(far, 20_000_000, "--via", "ssh", "--connections", 8)
    moved.arrives()


def asking(site: Site) -> tuple[Path, dict[str, str]]:
    """Return what has a line for each answer that the user was asked for, and the variables that ssh asks by."""
    asked = site.root / "asked"
    askpass = site.root / "askpass"
    askpass.write_text(f"#!/bin/sh\necho x >>{asked}\necho open sesame\n")
    askpass.chmod(0o755)
    return asked, {"SSH_ASKPASS": str(askpass), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":0"}


def test_a_passphrase_is_asked_for_once(site: Site, move: Mover) -> None:
    far = site.sshd(passphrase="open sesame")
    asked, env = asking(site)
    moved = move(far, 20_000_000, "--via", "ssh", env=env)
    moved.arrives()
    assert asked.read_text() == "x\n"


def test_a_jump_host_that_asks_something(site: Site) -> None:
    """The ssh to the jump host is one that ssh starts itself, without BatchMode: what it asks is answered only once."""
    site.there.ip("address add", f"{INNER_ADDRESS}/32", "dev lo")
    far = site.sshd(address=INNER_ADDRESS, known=[INNER_ADDRESS])
    jump = site.sshd(name="jump", passphrase="open sesame")
    far.write_config(far.block(ProxyJump="jump"), jump.block("jump", HostName=NAME))
    asked, env = asking(site)
    moved = site.push(far, 20_000_000, "--connections", 3, env=env)
    moved.arrives()
    assert asked.read_text() == "x\n"
    assert any("first login" in told["reason"] for told in moved.service.events("way"))


# --------------------------------------------------------------------------------------------------------- strangers


GREETED = """
import socket, sys
for port in sys.argv[2:]:
    with socket.create_connection((sys.argv[1], int(port)), 10) as sock:
        sock.settimeout(5)
        try:
            print(port, len(sock.recv(100)))
        except TimeoutError:
            print(port, "waits")
"""


@PULL
def test_strangers_are_told_nothing(site: Site, move: Mover) -> None:
    """The far side has two ports: one speaks TLS and waits, the other, in clear text, is for its own machine alone."""
    far = site.sshd()
    moved = move(far, 30_000_000, "--via", "ssh", "--rate-limit", "1MB/s")
    moved.service.wait_for("connected")
    listening = site.there.run("ss", "-Hltn").splitlines()
    ports = {line.split()[3].rpartition(":")[2] for line in listening} - {"22"}
    assert len(ports) == 2
    told = site.here.run(sys.executable, "-c", GREETED, ADDRESS, *ports)
    assert sorted(line.split()[1] for line in told.splitlines()) == ["0", "waits"]


# ---------------------------------------------------------------------------------------------------- while it moves


@BOTH
def test_a_firewall_that_closes_meanwhile(site: Site, move: Mover) -> None:
    """The run ends in time, nobody is left, and the same command goes on through ssh."""
    far = site.sshd()
    moved = move(far, 60_000_000, "--rate-limit", "6MB/s", "--give-up-after", 0.8 * UNIT, *SMALL)
    assert way(moved.service)[0] == "direct"
    assert moved.service.wait_for("progress")["acknowledged_bytes"] > 0
    site.there.admit_only(22, "reject with tcp reset")
    moved.service.fails(1, "timeout")
    moved.leaves_nobody()
    again = move(far, 60_000_000, *SMALL)
    assert way(again.service)[0] == "ssh"
    assert again.arrives()["held_bytes"] > 0


@BOTH
def test_tunnels_that_are_killed_come_back(site: Site, move: Mover) -> None:
    site.there.admit_only(22, "reject with tcp reset")
    far = site.sshd()
    slowly = ("--rate-limit", "6MB/s", "--connections", 4, "--log-level", "debug", *SMALL)
    moved = move(far, 40_000_000, *slowly)
    assert moved.service.wait_for("progress")["acknowledged_bytes"] > 0
    for ssh in far.clients():
        if "-W" in ssh.argv:
            ssh.signal(signal.SIGKILL)
    assert moved.arrives()["reconnects"] > 0


def test_the_sshd_is_not_there(site: Site, move: Mover) -> None:
    """It says so in the words of ssh, and names the machine."""
    far = site.sshd()
    far.end()
    message = move(far, 10).service.fails(1, "connection_lost")
    assert "Connection refused" in message
    assert far.host in message


@BOTH
def test_nobody_is_left_where_the_near_side_is_killed(site: Site, move: Mover) -> None:
    """Neither there nor here, and what arrived is there for the next run."""
    site.there.admit_only(22, "reject with tcp reset")
    far = site.sshd()
    moved = move(far, 60_000_000, "--rate-limit", "6MB/s", *SMALL)
    assert moved.service.wait_for("progress")["acknowledged_bytes"] > 0
    moved.service.signal(signal.SIGKILL)
    moved.leaves_nobody()
    assert move(far, 60_000_000, *SMALL).arrives()["held_bytes"] > 0
