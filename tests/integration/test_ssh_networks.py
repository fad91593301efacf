"""The far side behind firewalls, jump hosts and load balancers: what is in the way between the two machines.

`here` is where the user types the command, `there` the machine with the sshd, on port 22 of its address as anywhere.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.networks import End, network
from tests.support.services import UNIT, Pair, Service, same
from tests.support.sshd import Sshd, sshd
from tests.support.waiting import until

NAME = "nas.test"
ADDRESS, OTHER_ADDRESS, INNER_ADDRESS = "10.9.0.2", "10.9.0.3", "10.8.0.1"

SMALL = ("--chunk-size", "256KiB")
"""Chunks enough for each connection of a small file."""

StartSshd = Callable[..., Sshd]


@pytest.fixture
def ends() -> Iterator[tuple[End, End]]:
    """Return two ends of a link: where the command is typed, and where the sshd is."""
    with network() as made:
        made[0].set_names({NAME: [ADDRESS]})
        yield made


@pytest.fixture
def start_sshd(tmp_path: Path, ends: tuple[End, End]) -> Iterator[StartSshd]:
    """Return what starts a sshd at the other end, on port 22 of an address; the client knows it as NAME."""
    with ExitStack() as stack:

        def start(**options: Any) -> Sshd:
            where = {"address": ADDRESS, "port": 22, "inside": ends[1].inside, "known": [NAME], **options}
            far = stack.enter_context(sshd(tmp_path, **where))
            far.write_config(far.block(HostName=NAME))
            return far

        yield start


def push(pair: Pair, far: Sshd, end: End, file: Path, *args: object, **options: Any) -> Service:
    """Send a file into a directory of the remote home."""
    to = ("--to", f"{far.host}:incoming", "--ssh", far.ssh)
    return pair.start("sender", file, *to, *args, under=end.inside, **options)


def way(service: Service) -> tuple[str, str]:
    """Wait until the way is chosen; return it, and why."""
    told = service.wait_for("way")
    return told["way"], told["reason"]


def arrived(file: Path, far: Sshd) -> bool:
    """Whether the file is in the directory that `push` names, and nothing of the far side runs any more."""
    until(lambda: not far.remote() and not far.logins(), "the far side ends")
    return same(file, far.home / "incoming" / file.name)


def test_without_anything_in_the_way(pair: Pair, ends: tuple[End, End], start_sshd: StartSshd) -> None:
    far = start_sshd()
    sender = push(pair, far, ends[0], file := pair.file("f", 3_000_000))
    assert way(sender)[0] == "direct"
    sender.succeeds()
    assert arrived(file, far)
    assert far.log.count("Accepted publickey") == 1


# ---------------------------------------------------------------------------------------------------------- firewalls


@pytest.mark.timeout(6 * UNIT)
@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("drop", ["timed out", "no answer"]),
        ("reject with tcp reset", ["Connection refused"]),
        ("reject with icmpx type admin-prohibited", ["No route to host", "unreachable"]),
    ],
)
def test_only_port_22_is_open(
    pair: Pair, ends: tuple[End, End], start_sshd: StartSshd, verdict: str, words: list[str]
) -> None:
    """It goes through ssh by itself, and says why."""
    here, there = ends
    there.admit_only(22, verdict)
    far = start_sshd()
    sender = push(pair, far, here, file := pair.file("f", 20_000_000))
    chosen, reason = way(sender)
    assert chosen == "ssh"
    assert ADDRESS in reason
    assert any(word in reason for word in words), reason
    sender.succeeds()
    assert arrived(file, far)


@pytest.mark.timeout(6 * UNIT)
def test_a_firewall_that_lets_only_small_packets_through(
    pair: Pair, ends: tuple[End, End], start_sshd: StartSshd
) -> None:
    """Connections come, and nothing can be done with them."""
    here, there = ends
    there.admit_only(22, "meta length > 100 drop")
    far = start_sshd()
    sender = push(pair, far, here, file := pair.file("f", 3_000_000))
    assert way(sender)[0] == "ssh"
    sender.succeeds()
    assert arrived(file, far)


@pytest.mark.timeout(6 * UNIT)
def test_the_user_wants_no_other_way(pair: Pair, ends: tuple[End, End], start_sshd: StartSshd) -> None:
    here, there = ends
    there.admit_only(22, "reject with tcp reset")
    far = start_sshd()
    sender = push(pair, far, here, pair.file("f", 1000), "--via", "direct", "--give-up-after", 2)
    message = sender.fails(1, "timeout")
    assert f"{ADDRESS}:" in message
    assert "Connection refused" in message
    until(lambda: not far.remote() and not far.logins(), "the far side ends")


def test_the_user_wants_ssh(pair: Pair, ends: tuple[End, End], start_sshd: StartSshd) -> None:
    far = start_sshd()
    three = ("--via", "ssh", "--connections", 3, "--rate-limit", "5MB/s", *SMALL)
    sender = push(pair, far, ends[0], file := pair.file("f", 10_000_000), *three)
    assert way(sender)[0] == "ssh"
    assert sender.succeeds()["connections"] == 3
    assert arrived(file, far)
    assert far.log.count("Accepted publickey") == 5  # the login, control, and three


@pytest.mark.timeout(6 * UNIT)
@pytest.mark.parametrize("forbids", ["AllowTcpForwarding no", "PermitOpen none", "DisableForwarding yes"])
def test_neither_another_port_nor_forwarding(
    pair: Pair, ends: tuple[End, End], start_sshd: StartSshd, forbids: str
) -> None:
    """The bytes go through the standard streams of the remote command."""
    here, there = ends
    there.admit_only(22, "reject with tcp reset")
    far = start_sshd(config=dict([forbids.split()]))
    sender = push(pair, far, here, file := pair.file("f", 20_000_000))
    sender.succeeds()
    assert arrived(file, far)
    assert any("relay" in told["reason"] for told in sender.events("way"))


# ----------------------------------------------------------------------------------------------- addresses on the way


@pytest.mark.parametrize("address", ["fd09::2", "fe80::2%v0"])
def test_by_ipv6(pair: Pair, ends: tuple[End, End], start_sshd: StartSshd, address: str) -> None:
    """The address of a link names an interface, which differs at both ends."""
    far = start_sshd(address="::", known=[address])
    far.write_config(far.block(HostName=address.replace("%", "%%")))
    sender = push(pair, far, ends[0], file := pair.file("f", 3_000_000))
    sender.succeeds()
    assert arrived(file, far)


@pytest.mark.timeout(6 * UNIT)
def test_a_jump_host(pair: Pair, tmp_path: Path, ends: tuple[End, End], start_sshd: StartSshd) -> None:
    """Nothing but the jump host can be reached from here."""
    here, there = ends
    there.ip("address add", f"{INNER_ADDRESS}/32", "dev lo")
    far = start_sshd(address=INNER_ADDRESS, known=[INNER_ADDRESS])
    jump = start_sshd(name="jump")
    far.write_config(far.block(ProxyJump="jump"), jump.block("jump", HostName=NAME))
    three = ("--connections", 3, "--rate-limit", "5MB/s", *SMALL)
    sender = push(pair, far, here, file := pair.file("f", 10_000_000), *three)
    assert way(sender)[0] == "ssh"
    sender.succeeds()
    assert arrived(file, far)
    assert not jump.remote()
    assert jump.log.count("Accepted publickey") == far.log.count("Accepted publickey") == 5


@pytest.mark.timeout(6 * UNIT)
def test_a_router_that_translates_addresses(pair: Pair, ends: tuple[End, End], start_sshd: StartSshd) -> None:
    """It hands its port 2222 on to port 22 of a machine behind it, whose own address is not known here."""
    here, there = ends
    there.ip("address add", f"{INNER_ADDRESS}/32", "dev lo")
    there.nft(
        "table ip nat {\nchain in {\ntype nat hook prerouting priority -100\n"
        f"tcp dport 2222 dnat to {INNER_ADDRESS}:22\n}}\n}}\n"
    )
    far = start_sshd(address=INNER_ADDRESS, known=[f"[{NAME}]:2222"])
    far.write_config(far.block(HostName=NAME, Port=2222))
    sender = push(pair, far, here, file := pair.file("f", 20_000_000))
    assert way(sender)[0] == "ssh"
    sender.succeeds()
    assert arrived(file, far)


# ------------------------------------------------------------------------------------------ one name, several machines


@pytest.mark.timeout(6 * UNIT)
@pytest.mark.parametrize("via", ["direct", "ssh"])
@pytest.mark.parametrize("first", [0, 1])
def test_a_name_that_leads_to_two_machines(
    pair: Pair, ends: tuple[End, End], start_sshd: StartSshd, via: str, first: int
) -> None:
    """Each look at the name finds the other machine, and everything goes to the one that was reached first."""
    here, there = ends
    there.add(f"{OTHER_ADDRESS}/24")
    machines = [start_sshd(), start_sshd(name="other", address=OTHER_ADDRESS)]
    tmp_path = pair.source.parent
    (tmp_path / "known").write_text("".join(each.known_hosts.read_text() for each in machines))
    # Each ssh reads its configuration once, or twice, and looks the name up then.
    hosts = [f"127.0.0.1 localhost\n{each.address} {NAME}\n" for each in machines]
    for number, text in enumerate(hosts):
        (tmp_path / f"hosts.{number}").write_text(text)
    turns = tmp_path / "turns"
    turns.write_text("x" * first)
    switch = tmp_path / "switch"
    switch.write_text(f"printf x >>{turns}\ncat {tmp_path}/hosts.$(($(wc -c <{turns}) % 2)) >/etc/hosts\n")
    far = machines[0]
    for machine in machines:
        machine.authorized_keys.write_text(far.key.with_suffix(".pub").read_text())
    block = far.block(HostName=NAME, UserKnownHostsFile=tmp_path / "known")
    far.write_config(f'Match originalhost {far.host} exec "sh {switch}"\n', block)
    sender = push(pair, far, here, file := pair.file("f", 20_000_000), "--via", via, "--connections", 4)
    sender.succeeds()
    (used,) = [each for each in machines if (each.home / "incoming").exists()]
    assert arrived(file, used)
    (unused,) = [each for each in machines if each is not used]
    assert "Accepted publickey" not in unused.log
    assert len(turns.read_text()) > first + (5 if via == "ssh" else 0)


# ------------------------------------------------------------------------------------------------- limits of the sshd


@pytest.mark.timeout(12 * UNIT)
def test_64_connections_where_10_may_be_logging_in(pair: Pair, ends: tuple[End, End], start_sshd: StartSshd) -> None:
    far = start_sshd(config={"MaxStartups": "10"})
    file = pair.file("f", 200_000_000)
    many = ("--via", "ssh", "--connections", 64, "--rate-limit", "12MB/s")
    sender = push(pair, far, ends[0], file, *many, *SMALL)
    sender.succeeds(12 * UNIT)
    assert arrived(file, far)
    assert "drop connection" not in far.log
    assert far.log.count("Accepted publickey") == 66


@pytest.mark.timeout(12 * UNIT)
def test_others_are_logging_in_too(pair: Pair, ends: tuple[End, End], start_sshd: StartSshd) -> None:
    """Where some logins are refused, the transfer goes on with those that come."""
    far = start_sshd(config={"MaxStartups": "2"})
    file = pair.file("f", 50_000_000)
    sender = push(pair, far, ends[0], file, "--via", "ssh", "--connections", 16, "--chunk-size", "1MiB")
    sender.succeeds(12 * UNIT)
    assert arrived(file, far)
    assert "drop connection" in far.log


# ---------------------------------------------------------------------------------------------------- a second login


@pytest.mark.timeout(6 * UNIT)
@pytest.mark.parametrize("forwards", ["yes", "no"])
def test_only_the_first_login_needs_no_answer(
    pair: Pair, ends: tuple[End, End], start_sshd: StartSshd, forwards: str
) -> None:
    """All share its connection, and the user is told."""
    here, there = ends
    there.admit_only(22, "reject with tcp reset")
    limits = {"AllowTcpForwarding": forwards, "PasswordAuthentication": "yes"}
    far = start_sshd(accepts_once=True, config=limits)
    sender = push(pair, far, here, file := pair.file("f", 20_000_000), "--connections", 4)
    sender.succeeds()
    assert arrived(file, far)
    assert far.log.count("Accepted publickey") == 1
    assert any("first login" in told["reason"] for told in sender.events("way"))


@pytest.mark.timeout(6 * UNIT)
def test_fewer_sessions_than_connections(pair: Pair, ends: tuple[End, End], start_sshd: StartSshd) -> None:
    """One connection with four sessions, of which the login is one: where neither forwarding nor logins are allowed."""
    limits = {"AllowTcpForwarding": "no", "PasswordAuthentication": "yes", "MaxSessions": 4}
    far = start_sshd(accepts_once=True, config=limits)
    sender = push(pair, far, ends[0], file := pair.file("f", 20_000_000), "--via", "ssh", "--connections", 8)
    sender.succeeds()
    assert arrived(file, far)


@pytest.mark.timeout(6 * UNIT)
def test_a_passphrase_is_asked_for_once(
    pair: Pair, tmp_path: Path, ends: tuple[End, End], start_sshd: StartSshd
) -> None:
    far = start_sshd(passphrase="open sesame")
    asked = tmp_path / "asked"
    askpass = tmp_path / "askpass"
    askpass.write_text(f"#!/bin/sh\necho x >>{asked}\necho open sesame\n")
    askpass.chmod(0o755)
    env = {"SSH_ASKPASS": str(askpass), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":0"}
    sender = push(pair, far, ends[0], file := pair.file("f", 20_000_000), "--via", "ssh", env=env)
    sender.succeeds()
    assert arrived(file, far)
    assert asked.read_text() == "x\n"


# --------------------------------------------------------------------------------------------------------- strangers


GREETED = """
import socket, sys
for port in sys.argv[2:]:
    with socket.create_connection((sys.argv[1], int(port)), 10) as sock:
        sock.settimeout(2)
        try:
            print(port, len(sock.recv(100)))
        except TimeoutError:
            print(port, "waits")
"""


def test_strangers_are_told_nothing(pair: Pair, ends: tuple[End, End], start_sshd: StartSshd) -> None:
    """The far side has two ports: one speaks TLS and waits, the other, in clear text, is for its own machine alone."""
    here, there = ends
    far = start_sshd()
    sender = push(pair, far, here, pair.file("f", 30_000_000), "--via", "ssh", "--rate-limit", "1MB/s")
    sender.wait_for("connected")
    listening = there.run("ss", "-Hltn").splitlines()
    ports = {line.split()[3].rpartition(":")[2] for line in listening} - {"22"}
    assert len(ports) == 2
    told = here.run(sys.executable, "-c", GREETED, ADDRESS, *ports)
    assert sorted(line.split()[1] for line in told.splitlines()) == ["0", "waits"]


# ---------------------------------------------------------------------------------------------------- while it moves


@pytest.mark.timeout(6 * UNIT)
def test_a_firewall_that_closes_meanwhile(pair: Pair, ends: tuple[End, End], start_sshd: StartSshd) -> None:
    """Connections that are cut come back through the hole that is left, or the run ends in time, and nothing stays."""
    here, there = ends
    far = start_sshd()
    file = pair.file("f", 30_000_000)
    sender = push(pair, far, here, file, "--rate-limit", "4MB/s", "--give-up-after", 3)
    assert way(sender)[0] == "direct"
    sender.wait_for("connected")
    there.admit_only(22, "reject with tcp reset")
    code = sender.wait()
    assert code in (0, 1)
    until(lambda: not far.remote() and not far.logins(), "the far side ends", seconds=4 * UNIT)
    if code == 0:
        assert same(file, far.home / "incoming" / file.name)


@pytest.mark.timeout(6 * UNIT)
def test_tunnels_that_are_killed_come_back(pair: Pair, ends: tuple[End, End], start_sshd: StartSshd) -> None:
    here, there = ends
    there.admit_only(22, "reject with tcp reset")
    far = start_sshd()
    file = pair.file("f", 30_000_000)
    sender = push(pair, far, here, file, "--rate-limit", "6MB/s", "--connections", 4, "--log-level", "debug", *SMALL)
    sender.wait_for("connection_up", count=4)
    for ssh in far.clients():
        if "-W" in ssh.argv:
            ssh.signal(signal.SIGKILL)
    assert sender.succeeds()["reconnects"] > 0
    assert arrived(file, far)


def test_the_sshd_is_not_there(pair: Pair, ends: tuple[End, End], start_sshd: StartSshd) -> None:
    """It says so in the words of ssh, and names the machine."""
    far = start_sshd()
    far.end()
    message = push(pair, far, ends[0], pair.file("f", 10)).fails(1, "connection_lost")
    assert "Connection refused" in message
    assert far.host in message


def test_nobody_is_left_where_the_near_side_is_killed(pair: Pair, ends: tuple[End, End], start_sshd: StartSshd) -> None:
    """Neither there nor here, and what arrived is there for the next run."""
    here, there = ends
    there.admit_only(22, "reject with tcp reset")
    far = start_sshd()
    file = pair.file("f", 60_000_000)
    sender = push(pair, far, here, file, "--rate-limit", "6MB/s", *SMALL)
    assert sender.wait_for("progress")["acknowledged_bytes"] > 0
    sender.signal(signal.SIGKILL)
    until(lambda: not far.remote() and not far.logins() and not far.clients(), "nobody is left", seconds=4 * UNIT)
    result = push(pair, far, here, file).succeeds()
    assert arrived(file, far)
    assert result["held_bytes"] > 0
