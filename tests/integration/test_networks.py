"""Senders and receivers on a network of their own: several addresses, late ones, holes, a name server that is dead."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.certificates import Authority
from tests.support.networks import INTERFACE, End, network
from tests.support.services import HANG, Pair, Service, same

PORT = 7800
LATE = "2001:db8::9"


@pytest.fixture
def ends() -> Iterator[tuple[End, End]]:
    """Return two ends of a link: that of the sender, and that of the receiver."""
    with network() as made:
        yield made


def receiver(pair: Pair, end: End, host: str, *args: object, metrics: str = "off") -> Service:
    """Start a receiver in the namespace of its end; it asks for no token."""
    where = ("--listen", f"{host}:{PORT}", "--directory", pair.destination, "--metrics", metrics)
    return pair.start("receiver", *where, "--anonymous", *args, under=end.inside)


def sender(pair: Pair, end: End, file: Path, host: str, *args: object) -> Service:
    """Start a sender in the namespace of its end."""
    return pair.start("sender", file, "--to", f"{host}:{PORT}", *args, under=end.inside)


# ------------------------------------------------------------------------------------------------ addresses of a name


@pytest.mark.parametrize("hole", ["10.9.0.200", "fd09::200"])
def test_an_address_without_an_answer_costs_no_timeout(pair: Pair, ends: tuple[End, End], hole: str) -> None:
    """Whichever the system's resolver puts first: the whole run is given less time than a connection is."""
    here, there = ends
    here.make_hole(hole)
    here.set_names({"receiver.test": [hole, "10.9.0.2"]})
    receiver(pair, there, "0.0.0.0").wait_for("listening")
    file = pair.file("f", 100_000)
    result = sender(pair, here, file, "receiver.test").succeeds()
    assert same(file, pair.destination / "f")
    assert result["reconnects"] == 0


def test_a_family_without_a_route(pair: Pair, ends: tuple[End, End]) -> None:
    here, there = ends
    here.set_names({"receiver.test": ["2001:db8::1", "10.9.0.2"]})
    receiver(pair, there, "0.0.0.0").wait_for("listening")
    sender(pair, here, pair.file("f", 1000), "receiver.test").succeeds()


def test_each_address_is_named_with_its_reason(pair: Pair, ends: tuple[End, End]) -> None:
    here, _ = ends
    here.set_names({"receiver.test": ["2001:db8::1", "10.9.0.2", "10.9.0.2", "fd09::2"]})
    message = sender(pair, here, pair.file("f", 10), "receiver.test", "--give-up-after", 6).fails(1, "timeout")
    assert f"[2001:db8::1]:{PORT}: Network is unreachable" in message
    assert f"[fd09::2]:{PORT}: Connection refused" in message
    assert message.count(f"10.9.0.2:{PORT}: Connection refused") == 1


def test_a_name_server_that_does_not_answer(pair: Pair, ends: tuple[End, End]) -> None:
    """The run gives up in time, and says why."""
    here, _ = ends
    here.make_hole("10.9.0.53")
    here.set_names({}, server="10.9.0.53")
    message = sender(pair, here, pair.file("f", 10), "receiver.test", "--give-up-after", 8).fails(1, "timeout")
    assert "receiver.test: the name server has not answered" in message


@pytest.mark.parametrize("service", ["sender", "receiver"])
def test_a_signal_does_not_wait_for_the_name_server(pair: Pair, ends: tuple[End, End], service: str) -> None:
    here, _ = ends
    here.make_hole("10.9.0.53")
    here.set_names({}, server="10.9.0.53")
    if service == "sender":
        started = sender(pair, here, pair.file("f", 10), "receiver.test")
        started.wait_for("cannot_connect")
    else:
        started = receiver(pair, here, "receiver.test")
        started.wait_for("waiting_for_address")
    started.signal(signal.SIGTERM)
    assert started.wait() == 128 + signal.SIGTERM
    assert started.result["status"] == "interrupted"


# ---------------------------------------------------------------------------------------------------- late addresses


@pytest.mark.parametrize("setting", ["--listen", "--metrics"])
@pytest.mark.parametrize("is_there", [True, False], ids=["tentative", "missing"])
def test_an_address_that_is_not_ready_is_waited_for(
    pair: Pair, ends: tuple[End, End], setting: str, is_there: bool
) -> None:
    _, there = ends
    if is_there:
        there.add_tentative(f"{LATE}/64")
    listen = LATE if setting == "--listen" else "fd09::2"
    metrics = f"[{LATE}]:9464" if setting == "--metrics" else "off"
    started = receiver(pair, there, f"[{listen}]", metrics=metrics)
    waiting = started.wait_for("waiting_for_address")
    assert waiting["setting"] == setting
    assert ("checks it for duplicates" if is_there else "`ip address` lists") in waiting["reason"]
    if not is_there:
        there.add(f"{LATE}/64")
    started.wait_for("listening")
    assert len(started.events("waiting_for_address")) == 1


@pytest.mark.parametrize("setting", ["--listen", "--metrics"])
def test_an_address_that_never_comes(pair: Pair, ends: tuple[End, End], setting: str) -> None:
    """Exit 1, as the same command may work later, and not after long: it may be mistyped."""
    _, there = ends
    metrics = f"[{LATE}]:9464" if setting == "--metrics" else "off"
    started = receiver(pair, there, f"[{LATE}]" if setting == "--listen" else "10.9.0.2", metrics=metrics)
    message = started.fails(1, "address_not_ready")
    assert message.startswith(f"{setting}: {LATE}: this machine does not have this address")


def test_an_address_that_another_machine_has(pair: Pair, ends: tuple[End, End]) -> None:
    here, there = ends
    here.add(f"{LATE}/64")
    there.add_tentative(f"{LATE}/64", checks=1)
    until = time.monotonic() + HANG
    while "dadfailed" not in there.ip("-6 address show dev", INTERFACE):
        assert time.monotonic() < until
        time.sleep(0.01)
    message = receiver(pair, there, f"[{LATE}]").fails(1, "address_not_ready")
    assert "another machine of the network has it" in message


def test_an_interface_that_this_machine_lacks(pair: Pair, ends: tuple[End, End]) -> None:
    here, there = ends
    message = receiver(pair, there, "[fe80::2%nowhere0]").fails(1, "address_not_ready")
    assert f"no interface nowhere0; it has lo, {INTERFACE}" in message
    message = sender(pair, here, pair.file("f", 10), "[fe80::2%nowhere0]", "--give-up-after", 6).fails(1, "timeout")
    assert f"no interface nowhere0; it has lo, {INTERFACE}" in message


# --------------------------------------------------------------------------------------------- link-local, final dots


def test_link_local_addresses_with_tls(pair: Pair, ends: tuple[End, End], tmp_path: Path) -> None:
    here, there = ends
    authority = Authority(tmp_path, "ca")
    shown = authority.issue("receiver", "IP:fe80::2").shown
    host = f"[fe80::2%{INTERFACE}]"
    listening = receiver(pair, there, host, *shown).wait_for("listening")
    assert listening["address"] == f"{host}:{PORT}"
    sender(pair, here, pair.file("f", 1000), host, *authority.trusted).succeeds()


@pytest.mark.parametrize(("service", "verb"), [("receiver", "send"), ("sender", "receive")])
def test_the_printed_command_has_the_interface(pair: Pair, ends: tuple[End, End], service: str, verb: str) -> None:
    """And says so: it means another one, or none, on the machine that connects."""
    here, there = ends
    file, directory = pair.file("f", 1000), ("--directory", pair.destination)
    listens, connects = {"receiver": (directory, (file,)), "sender": ((file, "--once"), directory)}[service]
    started = pair.start(service, *listens, "--listen", f"[fe80::2%{INTERFACE}]:{PORT}", under=there.inside)
    until = time.monotonic() + HANG
    while f"(in place of {INTERFACE}: " not in started.stderr:
        assert time.monotonic() < until
        time.sleep(0.01)
    (command,) = [line.partition("  ")[2] for line in started.stderr.splitlines() if line.startswith(f"{verb} with:")]
    token, program, *arguments = command.split()
    env = dict([token.split("=")])
    assert arguments[-1] == f"[fe80::2%{INTERFACE}]:{PORT}"
    other = program.removeprefix("filestreamer-")
    pair.start(other, *connects, *arguments[-2:], env=env, under=here.inside).succeeds()


def test_a_name_with_a_final_dot(pair: Pair, ends: tuple[End, End], tmp_path: Path) -> None:
    here, there = ends
    for end in ends:
        end.set_names({"receiver.test.": ["10.9.0.2"]})
    authority = Authority(tmp_path, "ca")
    shown = authority.issue("receiver", "DNS:receiver.test").shown
    receiver(pair, there, "receiver.test.", *shown).wait_for("listening")
    sender(pair, here, pair.file("f", 1000), "receiver.test.", *authority.trusted).succeeds()


# ---------------------------------------------------------------------------------------------------- --source-address


@pytest.mark.parametrize(
    ("source", "to"),
    [("10.9.0.77", "10.9.0.2"), ("fd09::77", "[fd09::2]"), (f"[fe80::77%{INTERFACE}]", f"[fe80::2%{INTERFACE}]")],
)
def test_all_connections_come_from_the_source_address(pair: Pair, ends: tuple[End, End], source: str, to: str) -> None:
    """The receiver's machine answers to no other address of the sender's."""
    here, there = ends
    bare = source.strip("[]").partition("%")[0]
    here.add(f"{bare}/24" if "." in bare else f"{bare}/64")
    for refused in ("10.9.0.1", "fd09::1", "fe80::1"):
        there.make_hole(refused)
    receiver(pair, there, "[::]").wait_for("listening")
    file = pair.file("f", 1_000_000)
    shape = ("--connections", 4, "--chunk-size", "64KiB", "--strict-modulo")  # so that each of the four has chunks
    result = sender(pair, here, file, to, "--source-address", source, *shape).succeeds()
    assert result["connections"] == 4


def test_addresses_of_the_other_family_are_left_out(pair: Pair, ends: tuple[End, End]) -> None:
    here, there = ends
    here.set_names({"receiver.test": ["fd09::2", "10.9.0.2"]})
    receiver(pair, there, "0.0.0.0").wait_for("listening")
    file = pair.file("f", 1000)
    sender(pair, here, file, "receiver.test", "--source-address", "10.9.0.1").succeeds()
    flags = ("--source-address", "fd09::1", "--give-up-after", 6)
    message = sender(pair, here, file, "receiver.test", *flags).fails(1, "timeout")
    assert f"10.9.0.2:{PORT}: not tried, as --source-address fd09::1 is of the other family" in message
    assert f"[fd09::2]:{PORT}: Connection refused" in message


@pytest.mark.parametrize("command", [(), ("--dry-run",)], ids=["move", "ask"])
@pytest.mark.parametrize("is_there", [True, False], ids=["tentative", "missing"])
def test_a_source_address_that_is_not_ready_is_waited_for(
    pair: Pair, ends: tuple[End, End], command: tuple[str, ...], is_there: bool
) -> None:
    here, there = ends
    there.add("2001:db8::2/64")
    receiver(pair, there, "[::]").wait_for("listening")
    if is_there:
        here.add_tentative(f"{LATE}/64")
    started = sender(pair, here, pair.file("f", 1000), "[2001:db8::2]", "--source-address", LATE, *command)
    assert started.wait_for("waiting_for_address")["setting"] == "--source-address"
    if not is_there:
        here.add(f"{LATE}/64")
    assert started.wait() == 0


@pytest.mark.parametrize("source", [LATE, "fe80::9%nowhere0"])
def test_a_source_address_that_never_comes(pair: Pair, ends: tuple[End, End], source: str) -> None:
    here, _ = ends
    to = "[fd09::2]"
    message = sender(pair, here, pair.file("f", 10), to, "--source-address", source).fails(1, "address_not_ready")
    assert message.startswith(f"--source-address {source}: this machine")


def test_a_source_address_that_goes_away_and_comes_back(pair: Pair, ends: tuple[End, End]) -> None:
    """As with a lease that is renewed: the run goes on, within --give-up-after."""
    here, there = ends
    here.add("10.9.0.77/24")
    started = sender(pair, here, pair.file("f", 1000), "10.9.0.2", "--source-address", "10.9.0.77")
    started.wait_for("cannot_connect")  # there is no receiver yet
    here.ip("address delete 10.9.0.77/24 dev", INTERFACE)
    until = time.monotonic() + HANG
    while not any("10.9.0.77: this machine does not" in line["reason"] for line in started.events("cannot_connect")):
        assert time.monotonic() < until, started.stderr
        time.sleep(0.01)
    receiver(pair, there, "10.9.0.2").wait_for("listening")
    here.add("10.9.0.77/24")
    started.succeeds()
