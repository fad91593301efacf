"""Who dials is not who sends: the same with `sender --to` and with `sender --listen` and `receiver --connect`."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.certificates import Authority
from tests.support.forwarder import Forwarder
from tests.support.services import HANG, Pair, Service, make_file, same, tree
from tests.support.staging import statuses
from tests.support.waiting import until, with_patience

MIB = 1 << 20
TOKEN = {"FILESTREAMER_TOKEN": "a token of these tests, of more than 32 characters"}
OTHER_TOKEN = {"FILESTREAMER_TOKEN": "another token of these tests, of as many characters"}
SENDER, RECEIVER = "sender", "receiver"


def listening_sender(
    pair: Pair, source: object, *args: object, listen: str = "127.0.0.1:0", env: dict[str, str] | None = None
) -> Service:
    return pair.start("sender", source, "--listen", listen, *args, env=env)


def connecting_receiver(
    pair: Pair, address: str, *args: object, directory: Path | None = None, env: dict[str, str] | None = None
) -> Service:
    return pair.start("receiver", "--connect", address, "--directory", directory or pair.destination, *args, env=env)


def begin(
    pair: Pair,
    dials: str,
    source: object,
    *,
    sender: tuple[object, ...] = (),
    receiver: tuple[object, ...] = (),
    env: dict[str, str] | None = None,
) -> tuple[Service, Service]:
    """Start both services, the one that listens first; return the sender and the receiver."""
    if dials == RECEIVER:
        sending = listening_sender(pair, source, "--once", *sender, env=env)
        return sending, connecting_receiver(pair, pair.address(sending), *receiver, env=env)
    receiving = pair.receiver("--once", *receiver, env=env)
    return pair.start("sender", source, "--to", pair.address(receiving), *sender, env=env), receiving


both = pytest.mark.parametrize("dials", [SENDER, RECEIVER])


# --- the same, whoever dials


@both
@pytest.mark.parametrize("size", [0, 1, 3 * MIB + 7])
@pytest.mark.parametrize("env", [{}, TOKEN], ids=["own token", "token"])
def test_a_file(pair: Pair, dials: str, size: int, env: dict[str, str]) -> None:
    file = pair.file("f", size)
    sending, receiving = begin(pair, dials, file, sender=("--chunk-size", "256KiB", "--connections", 4), env=env)
    sent, received = sending.succeeds(), receiving.succeeds()

    assert same(file, pair.destination / "f")
    assert (sent["transfer_id"], sent["bytes"], sent["root_digest"]) == (
        received["transfer_id"],
        size,
        received["root_digest"],
    )
    assert (sent["reconnects"], received["reconnects"]) == (0, 0)


@both
def test_a_tree(pair: Pair, dials: str) -> None:
    (pair.source / "t" / "d").mkdir(parents=True)
    for number in range(300):
        pair.file(f"t/d/{number}", number * 10, number)
    pair.file("t/large", 2 * MIB)
    (pair.source / "t" / "link").symlink_to("large")
    sending, receiving = begin(pair, dials, pair.source / "t", sender=("--chunk-size", "128KiB"))
    sending.succeeds()
    receiving.succeeds()

    assert tree(pair.destination) == tree(pair.source)


@both
def test_standard_input_to_standard_output(pair: Pair, dials: str, tmp_path: Path) -> None:
    file = pair.file("f", 3 * MIB + 7)
    with file.open("rb") as stdin, (tmp_path / "out").open("wb") as stdout:
        if dials == RECEIVER:
            sending = pair.start("sender", "-", "--listen", "127.0.0.1:0", stdin=stdin)
            at = pair.address(sending)
            receiving = pair.start("receiver", "--connect", at, "--output-file", "-", stdout=stdout)
        else:
            receiving = pair.start("receiver", "--listen", "127.0.0.1:0", "--output-file", "-", stdout=stdout)
            sending = pair.start("sender", "-", "--to", pair.address(receiving), stdin=stdin)
        sending.succeeds()
        assert receiving.wait() == 0

    assert same(file, tmp_path / "out")


@both
@pytest.mark.parametrize("certificate", ["made", "given"])
def test_tls(pair: Pair, dials: str, certificate: str, tmp_path: Path) -> None:
    """The end that was dialled shows the certificate; the token vouches for it, or a CA does."""
    file = pair.file("f", MIB)
    authority = Authority(tmp_path, "ca")
    shown = ("--tls",) if certificate == "made" else (*authority.issue("server").shown,)
    checks = ("--tls",) if certificate == "made" else ("--tls-ca", authority.certificate)
    ends = {SENDER: checks, RECEIVER: shown} if dials == SENDER else {SENDER: shown, RECEIVER: checks}
    sending, receiving = begin(pair, dials, file, sender=ends[SENDER], receiver=ends[RECEIVER], env=TOKEN)
    sending.succeeds()
    receiving.succeeds()

    assert same(file, pair.destination / "f")


@both
def test_another_token_is_refused(pair: Pair, dials: str) -> None:
    file = pair.file("f", 1000)
    if dials == RECEIVER:
        listening = listening_sender(pair, file, env=TOKEN)
        dialling = connecting_receiver(pair, pair.address(listening), env=OTHER_TOKEN)
    else:
        listening = pair.receiver(env=TOKEN)
        dialling = pair.sender(file, pair.address(listening), env=OTHER_TOKEN)

    assert "the token is wrong" in dialling.fails(3, "token", status="refused")
    assert pair.received() == []
    until(lambda: listening.times("connection_refused") == 1, "it is logged")


@both
def test_killed_connections(pair: Pair, dials: str) -> None:
    """All of them are reset again and again, in the middle of chunks: each is opened anew, by who opened it before."""
    file = pair.file("f", 4 * MIB)
    slow = ("--rate-limit", "4MiB/s", "--chunk-size", "64KiB", "--connections", 3)
    if dials == RECEIVER:
        sending = listening_sender(pair, file, "--once", *slow)
        with Forwarder(pair.address(sending)) as forwarder:
            receiving = connecting_receiver(pair, forwarder.address)
            cut_again_and_again(forwarder)
            sending.succeeds()
            receiving.succeeds()
    else:
        receiving = pair.receiver("--once")
        with Forwarder(pair.address(receiving)) as forwarder:
            sending = pair.sender(file, forwarder.address, *slow)
            cut_again_and_again(forwarder)
            sending.succeeds()
            receiving.succeeds()

    assert same(file, pair.destination / "f")


def cut_again_and_again(forwarder: Forwarder) -> None:
    for _ in range(3):
        before = forwarder.carried_bytes
        until(lambda before=before: forwarder.carried_bytes > before + 300_000, "chunks move")  # type: ignore[misc]
        assert forwarder.cut() > 0


@both
@pytest.mark.parametrize("killed", [SENDER, RECEIVER])
def test_the_same_command_resumes_what_was_killed(pair: Pair, dials: str, killed: str) -> None:
    """Whichever service is killed and started again, the other one goes on, and what is there is not sent again."""
    file = pair.file("f", 4 * MIB)
    slow = ("--rate-limit", "2MiB/s", "--chunk-size", "64KiB", "--connections", 2)
    port = f"127.0.0.1:{pair.port()}"
    if dials == RECEIVER:
        services = {
            SENDER: lambda: listening_sender(pair, file, "--once", *slow, listen=port),
            RECEIVER: lambda: connecting_receiver(pair, port),
        }
        order = [SENDER, RECEIVER]
    else:
        services = {
            SENDER: lambda: pair.sender(file, port, *slow),
            RECEIVER: lambda: pair.receiver("--once", listen=port),
        }
        order = [RECEIVER, SENDER]
    running = {}
    for side in order:
        running[side] = services[side]()
        if side == order[0]:
            pair.address(running[side])
    staging = pair.destination / ".filestreamer"
    until(lambda: sum(each.st_blocks for each in statuses(staging)) > 2048, "chunks come")
    running[killed].signal(signal.SIGKILL)
    assert running[killed].wait() == 137
    running[killed] = services[killed]()
    for side in order:
        assert running[side].wait(HANG) == 0
    assert same(file, pair.destination / "f")
    # The end that listens may have a result of the transfer that was lost, too.
    (sent,), (received,) = [
        [result for result in running[side].results if result["status"] == "complete"] for side in (SENDER, RECEIVER)
    ]
    assert sent["held_bytes"] > 0
    assert sent["transfer_id"] == received["transfer_id"]


# --- a sender that listens


def test_several_receivers_at_once_one_of_which_is_stopped(pair: Pair, tmp_path: Path) -> None:
    """One that reads nothing delays no other one; it goes on when it can."""
    file = pair.file("f", 8 * MIB)
    sending = listening_sender(pair, file, "--chunk-size", "256KiB")
    address = pair.address(sending)
    places = [tmp_path / f"place {number}" for number in range(4)]
    for place in places:
        place.mkdir()
    stopped = connecting_receiver(pair, address, "--rate-limit", "1MiB/s", directory=places[0])
    staging = places[0] / ".filestreamer"
    until(staging.is_dir, "it receives")
    stopped.signal(signal.SIGSTOP)
    others = [connecting_receiver(pair, address, directory=place) for place in places[1:]]
    for receiver, place in zip(others, places[1:], strict=True):
        receiver.succeeds()
        assert same(file, place / "f")
    assert stopped.poll() is None
    stopped.signal(signal.SIGCONT)
    stopped.succeeds()
    assert same(file, places[0] / "f")

    results = sending.wait_for_results(4)
    assert [result["status"] for result in results] == ["complete"] * 4
    assert len({result["transfer_id"] for result in results}) == 4
    sending.signal(signal.SIGTERM)
    assert sending.wait() == 143


def test_a_dead_receiver_and_strangers_delay_nobody(pair: Pair, tmp_path: Path) -> None:
    """Connections that say nothing, or nonsense, and a receiver that is gone in the middle."""
    import socket

    file = pair.file("f", 2 * MIB)
    sending = listening_sender(pair, file, "--rate-limit", "20MiB/s", "--chunk-size", "64KiB")
    host, _, port = pair.address(sending).rpartition(":")
    strangers = [socket.create_connection((host, int(port))) for _ in range(20)]
    for number, stranger in enumerate(strangers):
        stranger.sendall([b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b"\0" * 64][number % 4])
    (tmp_path / "dead").mkdir()
    dead = connecting_receiver(pair, f"{host}:{port}", directory=tmp_path / "dead")
    dead.wait_for("transfer_started")
    dead.signal(signal.SIGKILL)
    receiver = connecting_receiver(pair, f"{host}:{port}")
    receiver.succeeds()

    assert same(file, pair.destination / "f")
    for stranger in strangers:
        stranger.close()


def test_standard_input_has_one_receiver(pair: Pair, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdout=subprocess.PIPE) as silent:
        sending = pair.start("sender", "-", "--listen", "127.0.0.1:0", stdin=silent.stdout)
        address = pair.address(sending)
        first = connecting_receiver(pair, address)
        first.wait_for("transfer_started")
        (tmp_path / "other").mkdir()

        def is_told(give_up_after: float) -> bool:
            second = connecting_receiver(pair, address, "--give-up-after", give_up_after, directory=tmp_path / "other")
            return "another receiver gets it" in second.fails(1, "timeout")

        with_patience(is_told, "the sender has answered")
        assert first.poll() is None
        silent.kill()
        first.succeeds()
        sending.succeeds()


def test_off_loopback_a_token_is_made_and_shown(pair: Pair) -> None:
    file = pair.file("f", 1000)
    sending = listening_sender(pair, file, "--once", "--tls", listen="0.0.0.0:0")
    address = pair.address(sending)
    until(lambda: "receive with:" in sending.stderr, "the command is shown")
    (line,) = [line for line in sending.stderr.splitlines() if line.startswith("receive with:")]
    shown = dict(word.split("=") for word in line.split() if "=" in word)
    assert line.endswith(f":{address.rpartition(':')[2]} --tls")
    here = f"127.0.0.1:{address.rpartition(':')[2]}"
    assert "pass the receiver --tls" in connecting_receiver(pair, here).fails(3, "policy", status="refused")
    assert "another token" in connecting_receiver(pair, here, "--tls").fails(3, "token", status="refused")
    connecting_receiver(pair, here, "--tls", env=shown).succeeds()
    sending.succeeds()


def test_a_missing_source_is_told_at_once(pair: Pair) -> None:
    sending = listening_sender(pair, pair.source / "missing")
    assert "missing" in sending.fails(4, "source")


def test_a_source_that_is_gone_is_told_to_the_receiver_and_ends_no_sender(pair: Pair) -> None:
    file = pair.file("f", 1000)
    sending = listening_sender(pair, file)
    address = pair.address(sending)
    file.rename(pair.source / "away")
    assert "can't read" in connecting_receiver(pair, address).fails(4, "source")
    (pair.source / "away").rename(file)
    connecting_receiver(pair, address).succeeds()
    assert same(file, pair.destination / "f")


def test_idle_timeout(pair: Pair) -> None:
    sending = listening_sender(pair, pair.file("f", 10), "--idle-timeout", "0.5")
    assert "--idle-timeout" in sending.fails(1, "timeout")


def test_a_receiver_waits_for_its_sender_and_gives_up(pair: Pair) -> None:
    address = f"127.0.0.1:{pair.port()}"
    receiver = connecting_receiver(pair, address, "--give-up-after", "1")
    message = receiver.fails(1, "timeout")
    assert "gave up after 1 s" in message
    assert address in message


def test_a_receiver_that_is_started_first(pair: Pair) -> None:
    address = f"127.0.0.1:{pair.port()}"
    file = pair.file("f", 1000)
    receiver = connecting_receiver(pair, address)
    receiver.wait_for("cannot_connect")
    listening_sender(pair, file, "--once", listen=address).succeeds()
    receiver.succeeds()


@pytest.mark.parametrize("who", [SENDER, RECEIVER])
def test_two_of_a_kind_say_so(pair: Pair, who: str) -> None:
    file = pair.file("f", 10)
    if who == SENDER:
        listening = listening_sender(pair, file, env=TOKEN)
        dialling = pair.sender(file, pair.address(listening), env=TOKEN)
    else:
        listening = pair.receiver(env=TOKEN)
        dialling = connecting_receiver(pair, pair.address(listening), env=TOKEN)
    assert f"both ends {'send' if who == SENDER else 'receive'}" in dialling.fails(3, "protocol", status="refused")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_either_in_order(pair: Pair, number: signal.Signals) -> None:
    file = pair.file("f", 4 * MIB)
    sending = listening_sender(pair, file, "--rate-limit", "256KiB/s", "--chunk-size", "64KiB")
    receiver = connecting_receiver(pair, pair.address(sending))
    receiver.wait_for("transfer_started")
    receiver.signal(number)
    assert "signal" in receiver.fails(128 + number, "interrupted", status="interrupted")
    other = connecting_receiver(pair, pair.address(sending))
    other.wait_for("transfer_started")
    sending.signal(number)
    assert sending.wait() == 128 + number
    assert sending.results[-1]["status"] == "interrupted"


def test_the_next_receiver_gets_what_has_changed(pair: Pair, tmp_path: Path) -> None:
    """A digest is that of a file as it was: a source that was written to is hashed anew."""
    file = pair.file("f", MIB)
    sending = listening_sender(pair, file, "--chunk-size", "64KiB")
    address = pair.address(sending)
    connecting_receiver(pair, address).succeeds()
    make_file(file, MIB, seed=7)
    (tmp_path / "next").mkdir()
    connecting_receiver(pair, address, directory=tmp_path / "next").succeeds()

    assert same(file, tmp_path / "next" / "f")


# --- TLS where the receiver dials: its words are about the sender


def test_a_certificate_that_is_not_the_senders(pair: Pair, tmp_path: Path) -> None:
    file = pair.file("f", 1000)
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    sending = listening_sender(pair, file, *ours.issue("server").shown, env=TOKEN)
    address = pair.address(sending)
    unknown = connecting_receiver(pair, address, "--tls-ca", theirs.certificate, env=TOKEN)
    assert "the sender's certificate" in unknown.fails(3, "policy", status="refused")
    other_pin = connecting_receiver(pair, address, "--tls-pin", "ab" * 32, env=TOKEN)
    assert "the sender's certificate has the SHA-256" in other_pin.fails(3, "policy", status="refused")
    short = {"FILESTREAMER_TOKEN": "0123456789abcdef"}
    assert "too short to vouch for the" in connecting_receiver(pair, address, "--tls", env=short).fails(2, "usage")
    clear = listening_sender(pair, file, env=TOKEN)
    tls = connecting_receiver(pair, pair.address(clear), "--tls", env=TOKEN)
    assert "start the sender with --tls" in tls.fails(3, "policy", status="refused")
    assert pair.received() == []


def test_both_ends_show_a_certificate(pair: Pair, tmp_path: Path) -> None:
    file = pair.file("f", 1000)
    authority = Authority(tmp_path, "ca")
    checks = ("--tls-ca", authority.certificate)
    sending = listening_sender(pair, file, "--once", *authority.issue("server").shown, *checks, env=TOKEN)
    address = pair.address(sending)
    for shown, told in (
        ((), "the sender asks for a certificate: pass --tls-cert and --tls-key"),
        (authority.issue("old", expired=True).shown, "the sender does not accept this receiver's certificate"),
        (Authority(tmp_path, "other").issue("foreign").shown, "--tls-ca there must have the CA that signed it"),
    ):
        assert told in connecting_receiver(pair, address, *shown, *checks, env=TOKEN).fails(
            3, "policy", status="refused"
        )
    assert pair.received() in ([], [".filestreamer"])
    connecting_receiver(pair, address, *authority.issue("client").shown, *checks, env=TOKEN).succeeds()
    sending.succeeds()
