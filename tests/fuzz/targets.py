"""What is fuzzed: each target takes one mutated input, and raises only what is listed, or it has found something.

A case is its number: `run_case(seed, number)` makes the same input each time, whatever ran before.
"""

import contextlib
import os
import socket
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple
from unittest import mock

from filestreamer.listening.handshake import Handshake
from filestreamer.wire import auth, limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode, encode
from filestreamer.wire.errors import (
    Code,
    ConnectionLost,
    LocalProtocolError,
    Refused,
    RemoteProtocolError,
    TransferFailed,
)
from filestreamer.wire.framing import read_body
from filestreamer.wire.grid import Grid
from filestreamer.wire.messages import Role
from filestreamer.wire.opening import ReceiverOpening, SenderOpening
from filestreamer.wire.receiver_dials import DialledSenderOpening, DiallingReceiverOpening, Joined
from filestreamer.wire.session import Session, Side
from filestreamer.wire.sockets.transport import Channel, Deadline
from filestreamer.wire.xattr_parts import PartJoiner, split
from receiver.disk.paths import check_name
from receiver.disk.staging import ledger
from tests.fuzz import corpus as corpora
from tests.fuzz.corpus import Corpus, corpus
from tests.fuzz.mutate import changed, damaged

TOKEN: Final = b"correct horse battery staple"


class Found(AssertionError):
    """A target did what it must not. `str()` says how to do it again."""


class Ended(Exception):
    """An input is over: what a connection says as ConnectionLost."""


# --- inputs


def some_body(rng: Random, have: Corpus) -> bytes:
    """Take a frame body, mostly a small one."""
    return rng.choice(have.large_bodies if rng.random() < 0.002 and have.large_bodies else have.bodies)


def mutated_body(rng: Random, have: Corpus) -> bytes:
    """Make a body that is mostly not what it was."""
    body, other = some_body(rng, have), some_body(rng, have)
    chance = rng.random()
    if chance < 0.02:
        return body
    if chance < 0.04:
        return rng.choice(have.refused)
    return changed(rng, body, other) if chance < 0.7 else damaged(rng, body, other)


def mutated_stream(rng: Random, bodies: list[bytes], have: Corpus) -> bytes:
    """Put bodies on the wire: some left out, twice, in another order, changed, or damaged as frames."""
    said = list(bodies)
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        at = rng.randrange(len(said) + 1)
        match rng.randrange(6):
            case 0:
                said[at : at + 1] = []
            case 1:
                said[at:at] = said[at : at + 1] * rng.choice((1, 3))
            case 2:
                said[at:at] = [some_body(rng, have)]
            case 3:
                said[at:at] = [mutated_body(rng, have)]
            case 4:
                rng.shuffle(said)
            case _:
                said[at : at + 1] = [changed(rng, body, some_body(rng, have)) for body in said[at : at + 1]]
    stream = corpora.wire(said)
    return damaged(rng, stream, corpora.wire([some_body(rng, have)])) if rng.random() < 0.3 else stream


class Reading:
    """Reads a stream to its end."""

    def __init__(self, data: bytes) -> None:
        self._view = memoryview(data)

    def __call__(self, count: int) -> memoryview:
        if count > len(self._view):
            raise Ended
        some, self._view = self._view[:count], self._view[count:]
        return some


# --- wire


def fuzz_codec(rng: Random, have: Corpus) -> None:
    """Decode a body; what is accepted can be said again, and is then the same."""
    message = decode(mutated_body(rng, have))
    if rng.random() < 0.3:
        expect(
            repr(decode(encode(message))) == repr(message), "what was accepted reads differently when it is said again"
        )


def fuzz_conversation(rng: Random, have: Corpus) -> None:
    """Read a conversation as one of the two ends does: frames, messages, and which of them is legal now."""
    me: Side = rng.choice(("sender", "receiver"))
    role = rng.choice((Role.CONTROL, Role.CONTROL, Role.CONTROL, Role.DATA))
    said = have.control_up if me == "receiver" else have.control_down
    read = Reading(mutated_stream(rng, said, have))
    dialled: Side = rng.choice(("sender", "receiver"))
    session = Session(me, role, dialled)
    if me == "sender" and rng.random() < 0.8:  # what a sender sends before it receives anything
        for body in have.control_up[: rng.randrange(4)]:
            try_sending(session, decode(body))
    while True:
        message = decode(read_body(read, rng.choice((limits.FRAME_BYTES, limits.OPENING_FRAME_BYTES))))
        session.received(message)
        if rng.random() < 0.3:
            answers = have.control_down if me == "receiver" else have.control_up
            try_sending(session, decode(rng.choice(answers)))


def fuzz_xattrs(rng: Random, have: Corpus) -> None:
    """Put a part together whose last entry has attributes that follow, with messages missing, repeated and changed."""
    names = [b"user.%d" % number for number in range(rng.choice((1, 3, 3, 40)))]
    xattrs = tuple([m.Xattr(name, bytes(rng.choice((0, 10, 20_000, 300_000)))) for name in names])
    entry = m.Entry(b"f", m.EntryType.FILE, 1, 0o644, 0, xattrs=xattrs)
    part = m.ManifestPart(0, (entry,), rng.random() < 0.5)
    bodies = [encode(message) for message in split(part)]
    is_changed = rng.random() < 0.8
    if is_changed:
        at = rng.randrange(len(bodies))
        bodies[at : at + 1] = rng.choice(
            ([], bodies[at : at + 1] * 20, [changed(rng, bodies[at], some_body(rng, have))])
        )
    joiner = PartJoiner()
    for body in bodies:
        message = decode(body)
        joined = joiner.join(message) if isinstance(message, m.ManifestPart) else None
        for each in joined.entries if joined is not None else ():
            expect(len(each.xattrs) <= limits.XATTRS_PER_ENTRY, "an entry has too many attributes")
            expect(sum(map(len, sum(each.xattrs, ()))) <= limits.XATTRS_BYTES, "an entry has too large attributes")
        expect(is_changed or joined in (None, part), "a part is put together otherwise than it was cut")
    expect(is_changed or not joiner.is_waiting, "a part is not put together")


def try_sending(session: Session, message: m.Message) -> None:
    """Say something where it is legal; a LocalProtocolError changes nothing."""
    before = session.state
    try:
        session.sending(message)
    except LocalProtocolError:
        expect(session.state == before, "what was not said changed the state")


JOBS: Final = ("", "photos", "mails")
ANOTHERS: Final = b"the token of another user, as long"
JOINED: Final = Joined(bytes(16), 0, 8)


def fuzz_receiver_opening(rng: Random, have: Corpus) -> None:
    """Let in who has said Hello, and proved a token where one is asked for."""
    tokens, certificate = rng.choice((None, (TOKEN,), (ANOTHERS, TOKEN))), rng.choice((b"", bytes(32)))
    job = rng.choice(JOBS)
    end = ReceiverOpening(bytes(16), tokens, certificate, job=job)
    greeting = end.greeting_body
    their_token = rng.choice((TOKEN, TOKEN, ANOTHERS))
    theirs = SenderOpening(their_token, certificate, job=rng.choice((job, job, *JOBS)))
    role, connection_id = rng.choice(((Role.CONTROL, 0), (Role.DATA, 3)))
    if tokens is None:
        bodies = [encode(corpora.HELLO._replace(can_prove=rng.random() < 0.5, job=rng.choice(JOBS)))]
    else:
        bodies = list(theirs.answer(greeting, bytes(16), role, connection_id, 8))
    for _ in range(rng.choice((0, 1, 1, 2))):
        at = rng.randrange(len(bodies) + 1)
        bodies[at : at + rng.randrange(2)] = [
            mutated_body(rng, have) if rng.random() < 0.5 else damaged(rng, bodies[0], b"")
        ]
    heard: list[bytes] = []
    for body in bodies:
        heard.append(body)
        hello = end.receive(body)
        if hello is not None:
            expect(end.token in (tokens or (None,)), "let in by a token that nobody has")
            check_entry(end.token, certificate, greeting, heard, hello)
            expect(hello.job == job or not job, "let in for another job")
            expect(end.welcome().job == hello.job, "welcomed for another job")
            expect(len(encode(end.welcome())) <= limits.OPENING_FRAME_BYTES, "Welcome is too long")
            return
    raise Ended


def check_entry(token: bytes | None, certificate: bytes, greeting: bytes, heard: list[bytes], hello: m.Hello) -> None:
    """Nobody comes in by anything but a Hello and, where a token is asked for, the one proof of this opening."""
    expect(decode(heard[0]) == hello, "let in by another Hello than was said")
    if token is None:
        expect(len(heard) == 1, "more than Hello was read")
        return
    expect(len(heard) == 2, "let in without a proof, or by a second one")
    proof = decode(heard[1])
    expected = auth.Transcript(greeting, heard[0], certificate).sender_proof(token)
    expect(isinstance(proof, m.Proof) and proof.mac == expected, "let in by a wrong proof")


def fuzz_sender_opening(rng: Random, have: Corpus) -> None:
    """Enter, as a sender, only where the greeting fits, and the receiver proved the token where there is one."""
    token = rng.choice((None, TOKEN))
    job = rng.choice(JOBS)
    end = SenderOpening(token, job=job)
    their_token = rng.choice((token, token, TOKEN, None))
    theirs = ReceiverOpening(bytes(16), (their_token,) if their_token else None)
    greeting = theirs.greeting_body
    if rng.random() < 0.5:
        greeting = mutated_body(rng, have) if rng.random() < 0.5 else changed(rng, greeting, some_body(rng, have))
    bodies = end.answer(greeting, bytes(16), Role.CONTROL, 0, 8)
    expect(len(bodies) == (1 if token is None else 2), "a proof without a token, or none with one")
    transcript = auth.Transcript(greeting, bodies[0])
    expected = transcript.receiver_proof(token, decode_proof(bodies[1])) if token else b""
    right = m.Welcome(expected, rng.choice((job, job, *JOBS)))
    answer = encode(right) if rng.random() < 0.3 else mutated_body(rng, have)
    end.enter(answer)
    welcome = decode(answer)
    expect(isinstance(welcome, m.Welcome) and (token is None or welcome.mac == expected), "entered without a proof")
    expect(isinstance(welcome, m.Welcome) and welcome.job == job, "entered for another job")


def fuzz_dialled_sender_opening(rng: Random, have: Corpus) -> None:
    """Let a receiver that dials in only by a Greeting with a role and, with a token, the one proof of this opening."""
    token, certificate = rng.choice((None, TOKEN)), rng.choice((b"", bytes(32)))
    job = rng.choice(JOBS)
    end = DialledSenderOpening(token, certificate, join=lambda _: JOINED._replace(job=job))
    their_token = rng.choice((token, token, TOKEN, None))
    theirs = DiallingReceiverOpening(bytes(16), rng.choice(tuple(Role)), their_token, certificate)
    greeting = theirs.greeting_body
    if rng.random() < 0.5:
        greeting = mutated_body(rng, have) if rng.random() < 0.5 else changed(rng, greeting, some_body(rng, have))
    hello = end.take(greeting)
    said = decode(greeting)
    expect(isinstance(said, m.Greeting) and said.role is not None, "another body than the Greeting of one that dials")
    expect(hello is not None and not end.is_over, "let in by the Greeting")
    transcript = auth.Transcript(greeting, hello or b"", certificate, "sender")
    expected = transcript.receiver_proof(token) if token else b""
    right = m.Welcome(expected, rng.choice((job, job, *JOBS)))
    answer = encode(right) if rng.random() < 0.3 else mutated_body(rng, have)
    proof = end.take(answer)
    welcome = decode(answer)
    is_proved = isinstance(welcome, m.Welcome) and (token is None or welcome.mac == expected)
    expect(end.is_over and is_proved, "let in without a proof")
    expect(isinstance(welcome, m.Welcome) and welcome.job == job, "let in for another job")
    expect((proof is None) == (token is None), "a proof without a token, or none with one")


def fuzz_dialling_receiver_opening(rng: Random, have: Corpus) -> None:
    """Enter, as a receiver that dials, only where Hello fits and the sender proved the token where there is one."""
    token, role = rng.choice((None, TOKEN)), rng.choice(tuple(Role))
    job = rng.choice(JOBS)
    end = DiallingReceiverOpening(bytes(16), role, token, job=job)
    theirs = corpora.HELLO._replace(role=rng.choice(tuple(Role)), connection_id=0, can_prove=rng.random() < 0.8)
    hello = encode(theirs._replace(job=rng.choice((job, job, *JOBS))))
    if rng.random() < 0.5:
        hello = mutated_body(rng, have) if rng.random() < 0.5 else changed(rng, hello, some_body(rng, have))
    welcome = decode(end.answer(hello))
    assert end.hello is not None  # it was answered
    expect(decode(hello) == end.hello and end.hello.role is role, "answered another Hello")
    assert isinstance(welcome, m.Welcome)
    expect(bool(welcome.mac) == (token is not None), "a proof without a token")
    if token is None:
        expect(end.hello.job == job or not job, "let in for another job")
        return
    expected = auth.Transcript(end.greeting_body, hello, b"", "sender").sender_proof(token, welcome.mac)
    answer = encode(m.Proof(expected)) if rng.random() < 0.3 else mutated_body(rng, have)
    end.enter(answer)
    proof = decode(answer)
    expect(isinstance(proof, m.Proof) and proof.mac == expected, "entered without a proof")
    expect(end.hello.job == job or not job, "let in for another job")


def decode_proof(body: bytes) -> bytes:
    proof = decode(body)
    assert isinstance(proof, m.Proof)
    return proof.mac


def fuzz_channel(rng: Random, have: Corpus) -> None:
    """Read frames off a socket as they come, in pieces, by waiting and by polling."""
    stream = mutated_stream(rng, [some_body(rng, have) for _ in range(rng.randrange(4))], have)[:60_000]
    ours, theirs = connected()
    with contextlib.closing(ours), contextlib.closing(theirs):
        send_in_pieces(rng, theirs, stream)
        theirs.shutdown(socket.SHUT_WR)
        channel = Channel(ours, Deadline(30, "a read"))
        limit = rng.choice((limits.FRAME_BYTES, limits.OPENING_FRAME_BYTES))
        while True:
            body = channel.poll_body(limit) if rng.random() < 0.5 else channel.read_body(limit)
            expect(body is not None, "nothing came, and it had")
            decode(body or b"")


# --- the receiver


def fuzz_handshake(rng: Random, have: Corpus) -> None:
    """Run the opening of the receiver on a socket, with any bytes, cut anywhere."""
    token = rng.choice((None, TOKEN))
    ours, theirs = connected()
    with contextlib.closing(theirs):
        handshake = Handshake(ours, ReceiverOpening(bytes(16), (token,) if token else None), None)
        try:
            handshake.greet()
            greeting = read_body(Reading(theirs.recv(2000)), limits.OPENING_FRAME_BYTES)
            bodies = SenderOpening(TOKEN).answer(greeting, bytes(16), Role.CONTROL, 0, 8) if token else ()
            stream = mutated_stream(rng, list(bodies or (encode(corpora.HELLO),)), have)[:60_000]
            drive_handshake(rng, handshake, theirs, stream)
        except RemoteProtocolError as error:
            refused_well(handshake, theirs, error)
            raise
        finally:
            handshake.socket.close()


def drive_handshake(rng: Random, handshake: Handshake[ReceiverOpening], theirs: socket.socket, stream: bytes) -> None:
    """Feed a handshake as the selector would, until it ends."""
    pieces = rng.choice((1, 1, 2, 5))
    cuts = sorted(rng.randrange(len(stream) + 1) for _ in range(pieces - 1))
    for first, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        theirs.sendall(stream[first:end])
        if handshake.receive():
            return
    theirs.shutdown(rng.choice((socket.SHUT_WR, socket.SHUT_RDWR)))
    handshake.receive()
    raise Ended


def refused_well(handshake: Handshake[ReceiverOpening], theirs: socket.socket, error: RemoteProtocolError) -> None:
    """Who is turned away over a sound connection is told why, in a frame."""
    handshake.refuse(error.code, error.reason)
    theirs.settimeout(10)
    said = bytearray()
    with contextlib.suppress(ConnectionError):
        while some := theirs.recv(4096):
            said += some
    if said:
        refusal = decode(read_body(Reading(bytes(said)), limits.OPENING_FRAME_BYTES))
        expect(isinstance(refusal, m.Refusal) and refusal.code is error.code, "refused otherwise than it was")


def fuzz_handshake_tls(rng: Random, have: Corpus) -> None:
    """Do the same where a TLS handshake comes first: what OpenSSL makes of garbage ends here, too."""
    ours, theirs = connected()
    with contextlib.closing(theirs):
        handshake = Handshake(ours, ReceiverOpening(bytes(16), None, bytes(32)), tls_context())
        try:
            handshake.greet()
            stream = damaged(rng, corpora.CLIENT_HELLO, corpora.wire([some_body(rng, have)]))
            drive_handshake(rng, handshake, theirs, stream)
        except RemoteProtocolError as error:
            handshake.refuse(error.code, error.reason)
            raise
        finally:
            handshake.socket.close()


def fuzz_ledger(rng: Random, have: Corpus) -> None:
    """Read a ledger that a crash, a disk or a person changed; claims are inside the grid, and of what was claimed."""
    content = rng.choice(have.ledgers)
    if rng.random() < 0.3:
        chunk_size = rng.choice((1, 8, 100, 4096, 1 << 22, 1 << 30, rng.randrange(1, 1 << 30)))
        segments = rng.choice((0, 1, 2, 100, 1000, rng.randrange(1 << 16)))
        size = min(limits.FILE_SIZE_MAX, max(0, segments * chunk_size - rng.randrange(chunk_size)))
        content = ledger.encode_header(Grid(size, chunk_size)) + content[ledger.HEADER_BYTES :]
    elif rng.random() < 0.1:
        header = Grid(rng.choice(SIZES), rng.choice(SIZES))
        content = ledger.encode_header(header) if header.chunk_size > header.size >> 20 else content
    for _ in range(rng.choice((0, 1, 2))):
        content = damaged(rng, content, rng.choice(have.ledgers))
    claims = ledger.decode(content)
    if claims is None:
        return
    check_claims(claims)
    grid = claims.grid
    for _ in range(2):
        other = rng.choice((grid, grid._replace(size=max(0, grid.size + rng.choice((-1, 1, 100)))), near(rng, grid)))
        if other.segments > 1 << 17:
            continue
        found = ledger.claims_on(claims, other)
        expect(found.grid == other, "claims of another grid")
        check_claims(found)
        expect(claimed_bytes(found) <= claimed_bytes(claims), "more is claimed than was there")
        ledger.is_exact(len(content), claims, other)


SIZES = (
    0,
    1,
    7,
    8,
    255,
    1 << 20,
    (1 << 23) - 1,
    1 << 23,
    1 << 30,
    (1 << 30) + 1,
    1 << 53,
    (1 << 63) - 1,
    (1 << 64) - 1,
)


def near(rng: Random, grid: Grid) -> Grid:
    """Take a chunk size that cuts the file into about as many segments."""
    return grid._replace(chunk_size=max(1, grid.chunk_size * rng.choice((1, 2, 3)) // rng.choice((1, 2, 3))))


def check_claims(claims: ledger.Claims) -> None:
    segments = claims.grid.segments
    expect(segments <= limits.CHUNKS_PER_FILE, "more segments than a file may have")
    sizes = len(claims.present), len(claims.digests)
    expect(sizes in ((0, 0), (segments, 16 * segments)), f"tables of {sizes} for {segments} segments")
    expect(claims.claimed == len(list(claims.indices())), "claimed segments are counted wrongly")


def claimed_bytes(claims: ledger.Claims) -> int:
    return sum(claims.grid.length(index) for index in claims.indices())


def fuzz_name(rng: Random, have: Corpus) -> None:
    """Check a name: one that is accepted is one plain component, and not ours."""
    name = rng.choice(have.names)
    for _ in range(rng.choice((0, 1, 2))):
        name = damaged(rng, name, rng.choice(have.names))
    accepted = check_name(name)
    expect(accepted == name, "another name than was said")
    plain = b"/" not in name and b"\0" not in name and name not in (b"", b".", b"..", b".filestreamer")
    expect(plain and len(name) <= limits.NAME_BYTES, f"the name {name!r} was accepted")


# --- sockets


class Ours(socket.socket):
    """One end of a socketpair, with an address as TCP sockets have one."""

    def getpeername(self) -> tuple[str, int]:
        return "127.0.0.1", 1


def connected() -> tuple[socket.socket, socket.socket]:
    """Make two connected sockets: one for the code, one for the peer."""
    ours, theirs = socket.socketpair()
    return Ours(ours.family, ours.type, ours.proto, ours.detach()), theirs


def send_in_pieces(rng: Random, sock: socket.socket, data: bytes) -> None:
    cut = rng.randrange(len(data) + 1)
    sock.sendall(data[:cut])
    sock.sendall(data[cut:])


_made: dict[str, Any] = {}


def tls_context() -> ssl.SSLContext:
    """Make a receiver's context, once a process."""
    if "tls" not in _made:
        from filestreamer.wire.sockets.tls import server_context
        from tests.support.certificates import Authority

        with tempfile.TemporaryDirectory() as directory:
            pem = Authority(Path(directory), "ca").issue("receiver")
            _made["tls"], _ = server_context(str(pem.certificate), str(pem.key), None)
    context: ssl.SSLContext = _made["tls"]
    return context


# --- cases


def expect(holds: bool, what: str) -> None:
    if not holds:
        raise Found(what)


class FuzzTarget(NamedTuple):
    """What runs, how often, and what it may raise."""

    run: Callable[[Random, Corpus], None]
    weight: int
    listed: tuple[type[Exception], ...]
    codes: frozenset[Code]


WIRE_CODES: Final = frozenset({Code.PROTOCOL, Code.CORRUPT})
OPENING_CODES: Final = frozenset({Code.PROTOCOL, Code.VERSION, Code.TOKEN, Code.JOB})

TARGETS: dict[str, FuzzTarget] = {
    "codec": FuzzTarget(fuzz_codec, 35, (RemoteProtocolError,), frozenset({Code.PROTOCOL})),
    "conversation": FuzzTarget(fuzz_conversation, 25, (RemoteProtocolError, Ended), WIRE_CODES),
    "xattrs": FuzzTarget(fuzz_xattrs, 2, (RemoteProtocolError,), WIRE_CODES),
    "receiver opening": FuzzTarget(fuzz_receiver_opening, 8, (RemoteProtocolError, Ended), OPENING_CODES),
    "sender opening": FuzzTarget(fuzz_sender_opening, 8, (RemoteProtocolError, Refused), frozenset(Code)),
    "dialled sender opening": FuzzTarget(
        fuzz_dialled_sender_opening, 4, (RemoteProtocolError, Refused), frozenset(Code)
    ),
    "dialling receiver opening": FuzzTarget(
        fuzz_dialling_receiver_opening, 4, (RemoteProtocolError, Refused), frozenset(Code)
    ),
    "channel": FuzzTarget(fuzz_channel, 6, (RemoteProtocolError, ConnectionLost), WIRE_CODES),
    "handshake": FuzzTarget(
        fuzz_handshake, 8, (RemoteProtocolError, ConnectionLost, Ended), WIRE_CODES | OPENING_CODES
    ),
    "handshake in TLS": FuzzTarget(
        fuzz_handshake_tls, 2, (RemoteProtocolError, ConnectionLost, Ended), frozenset({Code.POLICY, Code.CORRUPT})
    ),
    "ledger": FuzzTarget(fuzz_ledger, 5, (), frozenset()),
    "name": FuzzTarget(fuzz_name, 3, (TransferFailed,), frozenset({Code.PATH, Code.POLICY})),
}
_NAMES: Final = list(TARGETS)
_WEIGHTS: Final = [target.weight for target in TARGETS.values()]


def run_case(seed: int, number: int, rng: Random | None = None) -> tuple[str, str]:
    """Run one case; return its target and how it ended. Raises Found for what is not listed."""
    rng = rng or Random()
    rng.seed(seed << 64 | number)
    (name,) = rng.choices(_NAMES, _WEIGHTS)
    target, have = TARGETS[name], corpus()
    try:
        # The nonces as well: what a mutation makes of a body depends on every byte of it.
        with mock.patch.object(os, "urandom", rng.randbytes):
            target.run(rng, have)
    except target.listed as error:
        code = getattr(error, "code", None)
        text = str(error)
        if code is not None and code not in target.codes:
            raise Found(f"{_where(seed, number, name)}: the code {code.name} is not one of its own") from error
        if "\n" in text or len(text) > 1000:
            raise Found(f"{_where(seed, number, name)}: the reason is not one short line: {text!r}") from error
        return name, code.name if code is not None else type(error).__name__
    except Exception as error:
        raise Found(f"{_where(seed, number, name)}: {error!r}") from error
    return name, "accepted"


def _where(seed: int, number: int, name: str) -> str:
    return f"target {name!r} (again: python -m tests.fuzz.run --seed {seed} --first {number} --cases 1)"
