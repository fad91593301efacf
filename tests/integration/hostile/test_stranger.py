"""A peer without the token guesses, listens, replays, speaks another protocol, connects in crowds; all others go on."""

import contextlib
import random
import select
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode
from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import Code
from filestreamer.wire.framing import frame, frame_of, read_body
from filestreamer.wire.opening import SenderOpening, random_id
from tests.support.attacks import DAMAGE, GROWTH_BYTES, MIB, STRANGERS, TOKEN, WITH_TOKEN, Running, sockets_of, unharmed
from tests.support.peer import Link, RawSender
from tests.support.processes import Watch, command_line
from tests.support.relay import Relay
from tests.support.services import HANG, UNIT, Pair, Service, fresh, impatient, same
from tests.support.waiting import until

# ------------------------------------------------------------------------------------------------------------- guessing


def opening_of(link: Link, peer: RawSender, role: m.Role, token: str, connection_id: int = 0) -> tuple[bytes, ...]:
    """Read a Greeting; return the bodies that answer it."""
    greeting = read_body(link.read_exact, limits.OPENING_FRAME_BYTES)
    return SenderOpening(token.encode()).answer(greeting, peer.transfer_id, role, connection_id, peer.connections)


def answer_to(link: Link, bodies: tuple[bytes, ...]) -> m.Message:
    """Say these bodies; return the one answer, after which the receiver closes unless it is Welcome."""
    link.send_raw(b"".join(map(frame_of, bodies)))
    answer = decode(read_body(link.read_exact, limits.OPENING_FRAME_BYTES))
    if not isinstance(answer, m.Welcome):
        link.ends()
    return answer


def code_of(answer: m.Message) -> Code:
    assert isinstance(answer, m.Refusal), answer
    return answer.code


def test_replayed_opening_of_another_connection(pair: Pair) -> None:
    """A true Hello and Proof are worth nothing on the next connection: its Greeting has another nonce."""
    receiver = pair.receiver(env=WITH_TOKEN)
    with RawSender(pair.address(receiver), token=TOKEN) as peer:
        first = peer.connect()
        recorded = opening_of(first, peer, m.Role.CONTROL, TOKEN)
        assert isinstance(answer_to(first, recorded), m.Welcome)
        for _ in range(3):
            second = peer.connect()
            greeting = decode(read_body(second.read_exact, limits.OPENING_FRAME_BYTES))
            assert isinstance(greeting, m.Greeting)
            assert code_of(answer_to(second, recorded)) is Code.TOKEN
    unharmed(receiver)


def test_proof_of_another_connection_with_a_new_hello(pair: Pair) -> None:
    """The Proof alone can't be moved either: to another role, connection or transfer, or behind the same Hello."""
    receiver = pair.receiver(env=WITH_TOKEN)
    with RawSender(pair.address(receiver), token=TOKEN) as peer:
        first = peer.connect()
        hello, proof = opening_of(first, peer, m.Role.CONTROL, TOKEN)
        for role, connection_id in ((m.Role.CONTROL, 0), (m.Role.DATA, 0), (m.Role.DATA, 3)):
            link = peer.connect()
            new_hello, _ = opening_of(link, peer, role, TOKEN, connection_id)
            assert code_of(answer_to(link, (new_hello, proof))) is Code.TOKEN
        link = peer.connect()
        _, new_proof = opening_of(link, peer, m.Role.CONTROL, TOKEN)
        assert code_of(answer_to(link, (hello, new_proof))) is Code.TOKEN, "of another Hello on the same connection"
    unharmed(receiver)


def test_proof_of_another_token(pair: Pair) -> None:
    receiver = pair.receiver(env=WITH_TOKEN)
    for token in ("another token of some length", TOKEN + " ", TOKEN[:-1], TOKEN.upper()):
        with RawSender(pair.address(receiver), token=token) as peer:
            assert peer.refused(m.Role.CONTROL).code is Code.TOKEN, token
    unharmed(receiver)


def test_a_stranger_learns_nothing_of_transfers(pair: Pair) -> None:
    """Whether a transfer exists is told to nobody who has no token: the answer is the same, word for word."""
    receiver = pair.receiver(env=WITH_TOKEN)
    address = pair.address(receiver)
    with RawSender(address, token=TOKEN) as friend, RawSender(address, token=TOKEN[::-1]) as stranger:
        friend.control()
        answers = set()
        for transfer_id in (friend.transfer_id, random_id(), bytes(16)):
            stranger.transfer_id = transfer_id
            for role in m.Role:
                refusal = stranger.refused(role)
                answers.add((refusal.code, refusal.reason))
        assert [code for code, _ in answers] == [Code.TOKEN]
        friend.data().close()
    assert TOKEN not in receiver.stderr
    unharmed(receiver)


# ------------------------------------------------------------------------------------------------- listening on the way


def test_superseding_without_the_token(pair: Pair) -> None:
    """Who listens on the way knows the transfer_id and every connection_id, and still can't take a place."""
    receiver = pair.receiver(env=WITH_TOKEN)
    with Relay(pair.address(receiver)) as relay:
        running = Running(pair, relay.address, env=WITH_TOKEN)
        overheard = relay.openings(4 + 1)
        host, _, port = pair.address(receiver).rpartition(":")
        for recording in overheard:
            hello = decode(read_body(reader(recording), limits.OPENING_FRAME_BYTES))
            assert isinstance(hello, m.Hello)
            with RawSender(pair.address(receiver), connections=hello.connections, token=TOKEN[::-1]) as peer:
                peer.transfer_id = hello.transfer_id
                assert peer.refused(hello.role, hello.connection_id).code is Code.TOKEN
            with socket.create_connection((host, int(port)), HANG) as sock:
                link = Link(sock)
                link.send_raw(recording)  # the whole conversation again, from its Hello on
                link.expect(m.Greeting)
                assert [code_of(message) for message in link.rest()] == [Code.TOKEN]
        running.arrives()
    unharmed(receiver)


def reader(recording: bytes) -> Callable[[int], bytes]:
    """Return what reads a recording from its beginning."""
    at = 0

    def read_exact(count: int) -> bytes:
        nonlocal at
        at += count
        return recording[at - count : at]

    return read_exact


@pytest.mark.parametrize("given", ["environment", "file"])
@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_the_token_is_told_to_nobody(pair: Pair, tmp_path: Path, given: str, right: bool) -> None:
    """Not in a log of any level, a result, a list of processes, or on the wire; nor is what was compared with it."""
    wrong = "quite another token, also long"
    tokens = {"receiver": TOKEN, "sender": TOKEN if right else wrong}
    flags: dict[str, list[object]] = {"receiver": [], "sender": []}
    env: dict[str, dict[str, str]] = {"receiver": {}, "sender": {}}
    for service, token in tokens.items():
        if given == "file":
            path = tmp_path / f"{service}.token"
            path.write_text(token + "\n")
            flags[service] = ["--token-file", path]
        else:
            env[service] = {"FILESTREAMER_TOKEN": token}
        flags[service] += ["--log-level", "debug", "--result-file", tmp_path / f"{service}.result"]
    file = pair.file("f", 6 * MIB)
    where = ("--listen", "127.0.0.1:0", "--directory", pair.destination, "--once")
    receiver = pair.start("receiver", *where, *flags["receiver"], env=env["receiver"], program=fresh("receiver"))
    with Relay(pair.address(receiver)) as relay:
        rate = ("--rate-limit", "6MiB/s", "--chunk-size", "64KiB")
        what = (file, "--to", relay.address, *rate, *flags["sender"])
        sender = pair.start("sender", *what, env=env["sender"], program=fresh("sender"))
        lines = command_line(receiver.process.pid) + command_line(sender.process.pid)
        if right:
            sender.succeeds()
            receiver.succeeds()
        else:
            sender.fails(3, "token", status="refused")
            receiver.wait_for("connection_refused")
            receiver.signal(signal.SIGTERM)
            receiver.wait()
        heard = relay.heard
    files = [*pair.logs.iterdir(), *tmp_path.glob("*.result")]
    assert len(files) >= 5
    told = lines + heard + b"".join(path.read_bytes() for path in files)
    assert len(heard) > 150
    for token in (TOKEN, wrong):
        for form in (token.encode(), token.encode().hex().encode(), segment_digest(token.encode())):
            assert form not in told


# ---------------------------------------------------------------------------------------------- speaking something else


def test_strangers_are_told_why(pair: Pair, receiver: Service) -> None:
    """A cheap end with a clear reason, at once; the log names the first few of a kind, and no result is written."""
    reasons: dict[Code, list[str]] = {}
    for what, first_bytes in STRANGERS.items():
        with RawSender(Pair.address(receiver)) as stranger:
            link = stranger.connect()
            link.expect(m.Greeting)
            link.send_raw(first_bytes)
            refusal = link.expect(m.Refusal)
            link.ends()
        assert refusal.code is (Code.CORRUPT if what in DAMAGE else Code.PROTOCOL), what
        assert {"http": "HTTP", "tls": "TLS", "ssh": "SSH"}.get(what, "") in refusal.reason
        reasons.setdefault(refusal.code, []).append(refusal.reason)
    for code, told in reasons.items():
        until(lambda told=told, code=code: told[:5] == refused(receiver, code)[:5], f"the first few of {code.name}")  # type: ignore[misc]
        assert len(refused(receiver, code)) <= 6, "beyond the first few they are summed up"
    assert receiver.results == []
    assert pair.received() == []


def refused(receiver: Service, code: Code) -> list[str]:
    """Return the reasons that the log has of this code."""
    lines = receiver.events("connection_refused")
    return [line["reason"] for line in lines if line["code"] == code.name.lower()]


def test_a_stranger_that_says_hello_and_resets(pair: Pair) -> None:
    """Gone before it could be welcomed: it offered nothing, so it has no result, not even when the receiver ends."""
    receiver = pair.receiver("--anonymous")
    with RawSender(pair.address(receiver)) as stranger:
        link = stranger.connect()
        link.expect(m.Greeting)
        receiver.signal(signal.SIGSTOP)
        link.send(stranger.hello(m.Role.CONTROL))
        link.reset()
        receiver.signal(signal.SIGCONT)
    pair.sender(pair.file("f", 100), pair.address(receiver)).succeeds()
    receiver.wait_for_results()
    unharmed(receiver)
    receiver.signal(signal.SIGTERM)  # whatever transfer there is ends now
    assert receiver.wait() == 128 + signal.SIGTERM
    assert [result["status"] for result in receiver.results] == ["complete", "interrupted"], (
        "the second: of the service"
    )


# --------------------------------------------------------------------------------------------------------------- crowds


def test_a_thousand_idle_connections(pair: Pair) -> None:
    """They come while a transfer runs, and a new transfer finds its way in between them."""
    receiver = pair.receiver()
    address = pair.address(receiver)
    host, _, port = address.rpartition(":")
    before = len(sockets_of(receiver))
    with contextlib.ExitStack() as stack:
        running = Running(pair, address)
        watch = stack.enter_context(Watch(receiver.process.pid))
        idle = [stack.enter_context(socket.create_connection((host, int(port)), HANG)) for _ in range(1000)]
        late = pair.file("late", 100_000)
        pair.sender(late, address, "--connections", 8, "--chunk-size", "8KiB").succeeds()
        assert same(late, pair.destination / "late")
        running.arrives()
        assert watch.grown_bytes < GROWTH_BYTES
        assert watch.most_descriptors < 600, "512 openings, and what the transfers have"
        until_closed(idle)
    assert {"limit", "timeout"} >= {line["code"] for line in receiver.events("connection_refused")}
    until(lambda: len(sockets_of(receiver)) == before, "no socket of a peer is left")
    unharmed(receiver)


def until_closed(sockets: list[socket.socket], seconds: float = HANG) -> None:
    """Wait until the other end has closed every one of these."""
    end = time.monotonic() + seconds
    for sock in sockets:
        sock.settimeout(max(0.1, end - time.monotonic()))
        with contextlib.suppress(ConnectionError):
            while sock.recv(4096):
                pass


def test_a_flood_of_connects(pair: Pair, seed: int) -> None:
    """Nothing, another protocol's words or random bytes, then a close or a reset: each costs as long as it lasts."""
    generator = random.Random(seed)
    receiver = pair.receiver()
    address = pair.address(receiver)
    before = len(sockets_of(receiver))
    running = Running(pair, address)
    with Watch(receiver.process.pid) as watch, RawSender(address) as peer:
        for index in range(3000):
            link = peer.connect()
            if index % 3 == 1:
                link.send_raw(b"GET / HTTP/1.1\r\n\r\n")
            if index % 3 == 2:
                link.send_raw(generator.randbytes(generator.randrange(1, 200)))
            if index % 2:
                link.reset()
            else:
                link.close()
        running.arrives()
        assert watch.grown_bytes < GROWTH_BYTES
    until(lambda: len(sockets_of(receiver)) == before, "no socket of a peer is left")
    unharmed(receiver)


OPENING, SILENCE = (f"filestreamer.wire.limits.{name}" for name in ("OPENING_SECONDS", "OPENING_SILENCE_SECONDS"))
A_THIRD = {OPENING: limits.OPENING_SECONDS / 3, SILENCE: limits.OPENING_SILENCE_SECONDS / 3}
"""Of the time that an opening has, for those who use it up."""


def test_slow_openings(pair: Pair) -> None:
    """Silence, half a frame, Hello without Proof, a byte now and then: the time runs from accept, whatever comes.

    All of them are refused with TIMEOUT in the end; a transfer beside them runs on, and the next one is let in.
    """
    flags = ("--listen", "127.0.0.1:0", "--directory", pair.destination)
    receiver = pair.start("receiver", *flags, **impatient("receiver", A_THIRD, WITH_TOKEN))
    address = pair.address(receiver)
    running = Running(pair, address, env=WITH_TOKEN)
    with RawSender(address) as peer:
        hello = frame(peer.hello(m.Role.CONTROL)._replace(can_prove=True))
        begun = time.monotonic()
        links = {what: peer.connect() for what in ("silent", "half a frame", "no proof", "ten bytes a second")}
        links |= {f"a byte a second, {number}": peer.connect() for number in range(50)}
        for link in links.values():
            link.expect(m.Greeting)
        links["half a frame"].send_raw(hello[:20])
        links["no proof"].send_raw(hello)
        unanswered = {link.socket: what for what, link in links.items()}
        for step in range(10 * len(hello)):
            for answered in select.select(list(unanswered), [], [], 0.1)[0]:  # the attack is to be this slow
                del unanswered[answered]
            for sock, what in unanswered.items():
                if what.startswith("ten") and step < len(hello):
                    sock.sendall(hello[step : step + 1])
                if what.startswith("a byte") and step % 10 == 0:
                    sock.sendall(hello[step // 10 : step // 10 + 1])
            if not unanswered or time.monotonic() - begun > A_THIRD[OPENING] + 2 * UNIT:
                break
        codes = {
            what: [message.code for message in link.rest() if isinstance(message, m.Refusal)]
            for what, link in links.items()
        }
    assert codes == {what: [Code.TIMEOUT] for what in links}
    until(lambda: len(receiver.events("connection_refused")) >= 5, "the first few are told")
    assert {each["code"] for each in receiver.events("connection_refused")} == {"timeout"}
    running.arrives()
    pair.sender(pair.file("f", 10), address, env=WITH_TOKEN).succeeds()
    assert [result["status"] for result in receiver.wait_for_results(2)] == ["complete"] * 2
    unharmed(receiver)
    receiver.signal(signal.SIGTERM)
    assert receiver.wait() == 128 + signal.SIGTERM
    assert receiver.times("connection_refused") == len(links)


def test_more_connections_than_descriptors(pair: Pair) -> None:
    """Where descriptors run out, a new sender has to wait; it is not told that the destination can't be written."""
    limit = 128
    flags = ("--listen", "127.0.0.1:0", "--directory", pair.destination)
    few = ["prlimit", f"--nofile={limit}:{limit}"]
    receiver = pair.start("receiver", *flags, under=few, **impatient("receiver", A_THIRD))
    address = pair.address(receiver)
    host, _, port = address.rpartition(":")
    with contextlib.ExitStack() as stack:
        for _ in range(limit + 20):
            stack.enter_context(socket.create_connection((host, int(port)), HANG))
        file = pair.file("f", 1000)
        pair.sender(file, address, "--give-up-after", 3 * UNIT).succeeds()
    assert same(file, pair.destination / "f")
    unharmed(receiver)
