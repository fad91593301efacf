"""The opening of connections by real services: what may be said before what (proto/README.md, "Opening")."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestreamer.wire import auth, limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode, encode
from filestreamer.wire.errors import Code, RemoteProtocolError
from filestreamer.wire.framing import frame, frame_of, read_body
from filestreamer.wire.opening import ReceiverOpening, SenderOpening, random_id
from filestreamer.wire.receiver_dials import DiallingReceiverOpening
from tests.support.certificates import Authority, Pem
from tests.support.peer import NO_RUNS, Ended, Link, RawReceiver, RawSender, Sample, TreeSample, ack, read_chunk
from tests.support.services import HANG, Pair, Service
from tests.support.waiting import until

KIB = 1024
TOKEN = "a token of these tests, of more than 32 characters"
WITH_TOKEN = {"FILESTREAMER_TOKEN": TOKEN}
NOWHERE = {"XDG_RUNTIME_DIR": "/not/there", "XDG_CACHE_HOME": "/not/there", "HOME": "/not/there"}
"""The environment of a user who has no token."""


def greeting_of(receiver: RawReceiver, token: str | None = None) -> ReceiverOpening:
    return ReceiverOpening(receiver.incarnation, (token.encode(),) if token else None, features=NO_RUNS)


# --- the sender, whose receiver says nothing yet: each `expect` comes before a word of it


def test_an_offer_follows_hello_where_no_token_is_to_be_proved(pair: Pair) -> None:
    """Three round-trips for a small file: to connect, to offer it, to send it."""
    with RawReceiver() as receiver:
        sender = pair.sender(pair.file("f", KIB), receiver.address, "--connections", 1, env=NOWHERE)
        control, data = receiver.accept(), receiver.accept()
        assert control.expect(m.Hello).role is m.Role.CONTROL
        assert not control.expect(m.Offer).checksum
        (entry,) = control.expect(m.ManifestPart).entries
        assert entry.path == b"f"

        openings = [greeting_of(receiver), greeting_of(receiver)]
        control.send_raw(frame_of(openings[0].greeting_body) + frame(openings[0].welcome()))
        control.send(m.Needed((m.FileRange(0, 1),), ()))
        assert data.expect(m.Hello).role is m.Role.DATA
        chunk = read_chunk(data)
        assert control.expect(m.Finish).ahead

        data.send_raw(frame_of(openings[1].greeting_body) + frame(openings[1].welcome()))
        data.send(m.ChunkAck(m.Verdict.OK, (chunk.chunk_id,)))
        control.send(m.Complete(True))
        receiver.hang_up()
        assert sender.succeeds()["sent_bytes"] == KIB


def test_a_tree_is_offered_early_too(pair: Pair, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "f").write_bytes(b"one")
    with RawReceiver() as receiver:
        sender = pair.sender(tree, receiver.address, "--connections", 1, env=NOWHERE)
        control = receiver.accept()
        control.expect(m.Hello)
        control.expect(m.Offer)
        control.send(m.Refusal(Code.POLICY, "not today"))
        assert "not today" in sender.fails(3, "policy", status="refused")


@pytest.mark.parametrize("env", [WITH_TOKEN, {}], ids=["given", "the user's own"])
def test_nothing_but_hello_and_proof_is_said_before_the_receiver_has_proved_itself(
    pair: Pair, env: dict[str, str]
) -> None:
    with RawReceiver() as impostor:
        sender = pair.sender(pair.file("a-name-that-stands-out", KIB), impostor.address, env=env)
        link = impostor.accept()
        assert link.expect(m.Hello).can_prove
        opening = greeting_of(impostor, "another token, which the sender does not know")
        link.send_raw(frame_of(opening.greeting_body))
        link.expect(m.Proof)
        link.send(m.Welcome(bytes(limits.MAC_BYTES)))
        assert link.rest() == []
        assert "does not know the token" in sender.fails(3, "token", status="refused")


def next_control(receiver: RawReceiver) -> Link:
    """Accept connections until one is the control connection; return it, behind Hello."""
    while True:
        link = receiver.accept()
        with contextlib.suppress(Ended):  # a data connection that was opened for a control connection that is lost
            if link.expect(m.Hello).role is m.Role.CONTROL:
                return link


def test_a_lost_opening_is_begun_again_with_the_same_offer(pair: Pair) -> None:
    """What was said early is lost with its connection."""
    with RawReceiver() as receiver:
        sender = pair.sender(pair.file("f", KIB), receiver.address, "--connections", 1, env=NOWHERE)
        offers = []
        for _ in range(3):
            control = next_control(receiver)
            offers.append((control.expect(m.Offer), control.expect(m.ManifestPart)))
            control.close()
        assert offers[0] == offers[1] == offers[2]
        sender.process.kill()
        sender.wait()


def test_who_is_welcomed_late_still_gets_the_offer_once(pair: Pair) -> None:
    """The receiver knows a token, and the sender's user has one of its own: the offer waits for Welcome."""
    receiver = pair.receiver()
    sender = pair.sender(pair.file("f", 10 * KIB), pair.address(receiver), "--chunk-size", KIB)
    assert sender.succeeds()["chunks"] == 10


# --- the receiver


@pytest.fixture
def anonymous(pair: Pair) -> Iterator[RawSender]:
    """Yield a sender without a token, and a receiver that wants none."""
    with RawSender(pair.address(pair.receiver("--anonymous")), connections=2) as peer:
        yield peer


def test_a_receiver_takes_what_follows_hello_when_it_has_welcomed(pair: Pair, anonymous: RawSender) -> None:
    """All that a sender has to say goes out with two packets: Hello and what is offered, Hello and the chunk."""
    sample = Sample.random(1, KIB, KIB)
    control = anonymous.connect()
    control.send(anonymous.hello(m.Role.CONTROL), sample.offer, m.ManifestPart(0, (sample.entry,), True))
    control.expect(m.Greeting)
    control.expect(m.Welcome)
    control.expect(m.Needed)
    data = anonymous.connect()
    data.send_raw(frame(anonymous.hello(m.Role.DATA)) + sample.chunk(0))
    control.send(sample.finish._replace(ahead=True))
    data.expect(m.Greeting)
    data.expect(m.Welcome)
    ack(data)
    assert control.expect(m.Complete).committed
    assert (pair.destination / "sample.bin").read_bytes() == sample.content


def test_what_follows_hello_is_lost_where_the_receiver_refuses(pair: Pair) -> None:
    """It is not even decoded: a receiver that wants a token answers the Hello, whatever came behind it."""
    receiver = pair.receiver(env=WITH_TOKEN)
    with RawSender(pair.address(receiver)) as stranger:
        for behind in (b"\xff" * 200_000, frame(m.Offer(KIB, None, False, 0)), b"\x00\x00\xff\xff" + bytes(8)):
            link = stranger.connect()
            link.send_raw(frame(stranger.hello(m.Role.CONTROL)) + behind)
            link.expect(m.Greeting)
            assert link.expect(m.Refusal).code is Code.TOKEN
            link.ends()


def test_a_proof_may_not_be_replaced_by_an_offer(pair: Pair) -> None:
    """Who says that he can prove the token has to, before anything else is looked at."""
    receiver = pair.receiver(env=WITH_TOKEN)
    with RawSender(pair.address(receiver)) as stranger:
        link = stranger.connect()
        hello = stranger.hello(m.Role.CONTROL)._replace(can_prove=True)
        link.send(hello, m.Offer(KIB, None, False, 0))
        link.expect(m.Greeting)
        assert link.expect(m.Refusal).code is Code.TOKEN
        link.ends()


# --- Finish ahead of chunks


class Ahead:
    """A transfer of three chunks, of which Finish was said before any of them."""

    def __init__(self, peer: RawSender) -> None:
        self.peer = peer
        self.sample = Sample.random(2, 3 * KIB, KIB)
        self.control = peer.offer(self.sample)
        self.control.expect(m.Needed)
        self.control.send(self.sample.finish._replace(ahead=True))

    def is_held_back(self, pair: Pair) -> bool:
        """Whether the receiver lives, and has not acted on Finish: it answers one that is not ahead with Needed."""
        self.control.send(self.sample.finish)
        needed = self.control.expect(m.Needed)
        self.control.send(self.sample.finish._replace(ahead=True))
        return bool(needed.files or needed.segments) and "sample.bin" not in pair.received()


@pytest.fixture
def ahead(anonymous: RawSender) -> Ahead:
    return Ahead(anonymous)


def test_a_finish_that_came_ahead_counts_when_the_last_chunk_is_acknowledged(pair: Pair, ahead: Ahead) -> None:
    data = ahead.peer.data()
    for index in (2, 0):
        data.send_raw(ahead.sample.chunk(index))
        ack(data)
    assert ahead.is_held_back(pair)
    data.send_raw(ahead.sample.chunk(1))
    assert ahead.control.expect(m.Complete).committed
    assert ack(data).chunk_ids == (1,)
    assert (pair.destination / "sample.bin").read_bytes() == ahead.sample.content


def test_a_chunk_behind_finish_that_arrives_wrong_is_sent_again(pair: Pair, ahead: Ahead) -> None:
    data = ahead.peer.data()
    for index in range(3):
        chunk = ahead.sample.chunk(index)
        data.send_raw(chunk if index else chunk[:-1] + bytes([chunk[-1] ^ 1]))
    verdicts: dict[int, m.Verdict] = {}
    while len(verdicts) < 3:
        message = data.expect(m.ChunkAck)
        verdicts |= dict.fromkeys(message.chunk_ids, message.verdict)
    assert verdicts == {0: m.Verdict.DIGEST_MISMATCH, 1: m.Verdict.OK, 2: m.Verdict.OK}
    assert ahead.is_held_back(pair)
    data.send_raw(ahead.sample.chunk(0))
    assert ahead.control.expect(m.Complete).committed


def test_a_chunk_behind_finish_that_was_lost_comes_over_another_connection(pair: Pair, ahead: Ahead) -> None:
    first = ahead.peer.data(0)
    for index in range(2):
        first.send_raw(ahead.sample.chunk(index))
    first.send_raw(ahead.sample.chunk(2)[:-100])
    first.reset()
    second = ahead.peer.data(1)
    for index in range(3):  # whether those before were acknowledged, their sender can't know
        second.send_raw(ahead.sample.chunk(index))
    assert ahead.control.expect(m.Complete).committed
    assert (pair.destination / "sample.bin").read_bytes() == ahead.sample.content


def test_a_finish_that_came_ahead_is_repeated_on_another_control_connection(pair: Pair, ahead: Ahead) -> None:
    ahead.control.reset()
    control = ahead.peer.offer(ahead.sample)
    control.expect(m.Needed)
    control.send(ahead.sample.finish._replace(ahead=True))
    data = ahead.peer.data()
    for index in range(3):
        data.send_raw(ahead.sample.chunk(index))
    assert control.expect(m.Complete).committed


def test_a_wrong_root_digest_that_came_ahead_is_found(pair: Pair, anonymous: RawSender) -> None:
    sample = Sample.random(3, KIB, KIB)
    control = anonymous.offer(sample)
    control.expect(m.Needed)
    control.send(sample.finish._replace(ahead=True, root_digest=bytes(16)))
    anonymous.data().send_raw(sample.chunk(0))
    assert control.expect(m.Abort).code is Code.DIGEST
    assert "sample.bin" not in pair.received()


def test_no_finish_comes_ahead_of_a_tree(anonymous: RawSender) -> None:
    tree = TreeSample(KIB)
    tree.directory(b"d")
    tree.add(b"d/f", b"content")
    control = anonymous.control()
    control.send(tree.offer, *tree.parts)
    control.expect(m.Needed)
    control.send(tree.finish._replace(ahead=True))
    assert control.expect(m.Abort).code is Code.PROTOCOL


def test_a_sender_waits_for_acknowledgements_where_something_was_held(pair: Pair) -> None:
    """What is held may be found to differ, and what it then sends would come behind Finish."""
    with RawReceiver() as receiver:
        file = pair.file("f", 3 * KIB)
        sender = pair.sender(file, receiver.address, "--chunk-size", KIB, "--connections", 1)
        control, _, _ = receiver.control()
        control.send(m.Held(0, 0, bytes(limits.DIGEST_BYTES)), m.Needed((), (m.SegmentRange(0, 1, 2),)))
        data, _ = receiver.welcome(m.Role.DATA)
        sent = []
        for _ in range(3):
            sent.append(read_chunk(data).chunk_id)
            data.send(m.ChunkAck(m.Verdict.OK, (sent[-1],)))
        assert sorted(sent) == [0, 1, 2]
        assert not control.expect(m.Finish).ahead
        control.send(m.Complete(True))
        receiver.hang_up()
        sender.succeeds()


def test_a_sender_takes_acknowledgements_behind_complete(pair: Pair) -> None:
    """They come over other connections: what was sent counts as acknowledged in the result all the same."""
    with RawReceiver() as receiver:
        sender = pair.sender(pair.file("f", KIB), receiver.address, "--connections", 1)
        control, data = receiver.needs(1)
        chunk = read_chunk(data)
        assert control.expect(m.Finish).ahead
        control.send(m.Complete(True))
        data.send(m.ChunkAck(m.Verdict.OK, (chunk.chunk_id,)))
        result = sender.succeeds()
        assert (result["sent_bytes"], result["reconnects"]) == (KIB, 0)


# --- a proxy that connects on when it has read the first byte of its client


class LateProxy:
    """Connects on when the first byte has come, as proxies do that look at it to learn the protocol."""

    def __init__(self, to: str) -> None:
        host, _, port = to.rpartition(":")
        self._to = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "LateProxy":
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(HANG)
        for sock in (self._listener, *self._sockets):
            sock.close()

    def _start(self, target: object, *args: socket.socket) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        thread.start()
        self._threads.append(thread)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                self._start(self._carry, client)

    def _carry(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            first = client.recv(65536)
            if first:
                server = socket.create_connection(self._to)
                self._sockets.append(server)
                server.sendall(first)
                self._start(self._pump, server, client)
                self._pump(client, server)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while some := source.recv(65536):
                sink.sendall(some)
            sink.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("env", [NOWHERE, WITH_TOKEN, {}], ids=["no token", "a token", "the user's own"])
@pytest.mark.parametrize("what", ["a file", "a tree"])
def test_behind_a_proxy_that_waits_for_the_sender(pair: Pair, env: dict[str, str], what: str) -> None:
    receiver = pair.receiver(*(["--anonymous"] if env is NOWHERE else []), env=env if env is WITH_TOKEN else {})
    (pair.source / "d").mkdir()
    file = pair.file("d/f", 100_000)
    with LateProxy(pair.address(receiver)) as proxy:
        source = file if what == "a file" else file.parent
        sender = pair.sender(source, proxy.address, "--connections", 4, "--chunk-size", "16KiB", env=env)
        assert sender.succeeds()["reconnects"] == 0


# --- a relay that is the TLS server of both ends


def shake_hands(context: ssl.SSLContext, server: ssl.SSLContext) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """Return both ends of a TLS connection, the client first."""
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.settimeout(HANG)
    accepted: list[ssl.SSLSocket] = []
    thread = threading.Thread(target=lambda: accepted.append(server.wrap_socket(theirs, server_side=True)))
    thread.start()
    client = context.wrap_socket(ours)
    thread.join(HANG)
    return client, accepted[0]


def seen_twice(tmp_path: Path) -> Pem:
    """Return the certificate of a relay, which two TLS clients have seen."""
    pem = Authority(tmp_path, "ca").issue("relay")
    as_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    as_server.load_cert_chain(pem.certificate, pem.key)
    as_client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    as_client.check_hostname, as_client.verify_mode = False, ssl.CERT_NONE
    seen = []
    for _ in range(2):
        client, server = shake_hands(as_client, as_server)
        with client, server:
            seen.append(client.getpeercert(binary_form=True))
    assert seen[0] == seen[1] is not None
    return pem


def test_a_relay_with_one_certificate_for_two_ends_that_dial(tmp_path: Path) -> None:
    """Two ends that are both TLS clients trust any certificate that their token is bound to.

    The relay passes everything on, and takes the role out of the Greeting, which the sender would refuse. Each end
    writes into its proof who was the TLS server, as it knows it from its own handshake: so the proofs fit only where
    there is one handshake, and no relay.
    """
    pem, token = seen_twice(tmp_path), TOKEN.encode()
    receiver = DiallingReceiverOpening(random_id(), m.Role.CONTROL, token, pem.sha256)
    sender = SenderOpening(token, pem.sha256)
    greeting = decode(receiver.greeting_body)
    assert isinstance(greeting, m.Greeting)

    with pytest.raises(RemoteProtocolError, match=r"Greeting\.role"):
        sender.answer(receiver.greeting_body, random_id(), m.Role.CONTROL, 0, 1)
    hello, proof = sender.answer(encode(greeting._replace(role=None)), random_id(), m.Role.CONTROL, 0, 1)
    with pytest.raises(RemoteProtocolError, match="does not know the token"):
        sender.enter(receiver.answer(hello))
    with pytest.raises(RemoteProtocolError, match="does not know the token"):
        receiver.enter(proof)
    # Not only because of the role.
    of_receiver = auth.Transcript(receiver.greeting_body, hello, pem.sha256, "sender")
    of_sender = auth.Transcript(receiver.greeting_body, hello, pem.sha256, "receiver")
    assert of_receiver.receiver_proof(token) != of_sender.receiver_proof(token)


def test_the_relay_would_have_the_ends_agree_but_for_that(tmp_path: Path) -> None:
    """A check of the test above: an end that was dialled, and one that dialled, agree over the same certificate."""
    pem, token = seen_twice(tmp_path), TOKEN.encode()
    receiver = ReceiverOpening(random_id(), (token,), pem.sha256)
    sender = SenderOpening(token, pem.sha256)
    hello, proof = sender.answer(receiver.greeting_body, random_id(), m.Role.CONTROL, 0, 1)
    assert receiver.receive(hello) is None
    assert receiver.receive(proof) is not None
    sender.enter(encode(receiver.welcome()))


# --- TLS against clear text


def test_a_clear_text_sender_learns_at_once_that_the_receiver_speaks_tls(pair: Pair, tmp_path: Path) -> None:
    pem = Authority(tmp_path, "ca").issue("receiver")
    receiver = pair.receiver(*pem.shown)
    sender = pair.sender(pair.file("f", KIB), pair.address(receiver))
    assert "pass the sender --tls" in sender.fails(3, "policy", status="refused")
    until(lambda: receiver.times("connection_refused") >= 1, "it is logged")


def test_nothing_is_read_beyond_hello(pair: Pair) -> None:
    """What a sender says behind its Hello waits in the socket until the receiver has room for the connection."""
    receiver: Service = pair.receiver("--anonymous")
    sample = Sample.random(4, KIB, KIB)
    with RawSender(pair.address(receiver), connections=1) as peer:
        link: Link = peer.connect()
        # DATA for a transfer that nobody has offered: refused, and the chunk behind it is of no account.
        link.send_raw(frame(peer.hello(m.Role.DATA)) + sample.chunk(0))
        link.expect(m.Greeting)
        refusal = decode(read_body(link.read_exact, limits.OPENING_FRAME_BYTES))
        assert isinstance(refusal, m.Refusal)
        assert refusal.code is Code.UNKNOWN_TRANSFER
        link.ends()
