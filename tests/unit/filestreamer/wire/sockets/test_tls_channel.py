"""Channels over TLS: the same as without, in few system calls, whatever the peer does with records, keys and alerts.

The peer is OpenSSL by itself: a bare socket, and a session that the test seals and opens records with.
"""

import contextlib
import random
import select
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import encode
from filestreamer.wire.errors import Code, ConnectionClosed, ConnectionLost, RemoteProtocolError
from filestreamer.wire.framing import frame
from filestreamer.wire.sockets import transport
from filestreamer.wire.sockets.tls_channel import TlsChannel
from filestreamer.wire.sockets.tls_stream import BATCH_BYTES, RECORD_BYTES, SMALL_BATCH_BYTES, TlsStream
from tests.support.certificates import Authority, Pem

LONG_SECONDS = 30.0
"""Far longer than anything here takes: what waits for it has failed."""

FINISH = m.Finish(3, bytes(range(16)))


def endless() -> None:
    """Be patient for ever."""


class Gone(Exception):
    """A patience of the test's has ended."""


def give_up() -> None:
    raise Gone


class Counting(socket.socket):
    """A socket that counts its system calls."""

    calls = 0

    def send(self, *args: object) -> int:
        self.calls += 1
        return super().send(*args)  # type: ignore[arg-type]

    def recv(self, *args: object) -> bytes:
        self.calls += 1
        return super().recv(*args)  # type: ignore[arg-type]

    def recv_into(self, *args: object) -> int:
        self.calls += 1
        return super().recv_into(*args)  # type: ignore[arg-type]


class Peer:
    """The other end: a bare socket, and a TLS session in memory."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.socket = sock
        self._incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        is_server = context.protocol is ssl.PROTOCOL_TLS_SERVER
        self.session = context.wrap_bio(self._incoming, self.outgoing, server_side=is_server)

    def go_on(self) -> bool:
        """Go on with the handshake, as far as it goes; return whether it is done."""
        if select.select([self.socket], [], [], 0)[0]:
            self._incoming.write(self.socket.recv(RECORD_BYTES))
        try:
            self.session.do_handshake()
            return True
        except ssl.SSLWantReadError:
            return False
        finally:
            self.socket.sendall(self.outgoing.read())

    def seal(self, data: bytes) -> bytes:
        """Return the records of `data`."""
        self.session.write(data)
        return self.outgoing.read()

    def send(self, data: bytes) -> None:
        self.socket.sendall(self.seal(data))

    def close_notify(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            self.session.unwrap()
        self.socket.sendall(self.outgoing.read())

    def receive(self, count: int) -> bytes:
        """Wait for `count` bytes."""
        received = bytearray()
        while len(received) < count:
            try:
                received += self.session.read(count - len(received))
            except ssl.SSLWantReadError:
                self._incoming.write(self.socket.recv(65536))
        return bytes(received)


class Pairs:
    """Makes connections whose TLS handshake is done, and closes them."""

    def __init__(self, server: ssl.SSLContext, client: ssl.SSLContext) -> None:
        self.contexts = server, client
        self._open: list[socket.socket] = []

    def raw(self) -> tuple[Counting, socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname())
            accepted, _ = listener.accept()
        ours = Counting(fileno=accepted.detach())
        theirs.settimeout(LONG_SECONDS)
        theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open += [ours, theirs]
        return ours, theirs

    def begin(self, *, as_client: bool = False) -> tuple[TlsStream, Peer]:
        """Return a session of this side's and its peer, before the handshake."""
        ours, theirs = self.raw()
        contexts = self.contexts[::-1] if as_client else self.contexts
        ours.setblocking(False)
        return TlsStream(contexts[0], ours), Peer(theirs, contexts[1])

    def __call__(
        self, patience: transport.Patience = endless, *, payload_bytes: int = 0, as_client: bool = False
    ) -> tuple[TlsChannel, Peer]:
        stream, peer = self.begin(as_client=as_client)
        shake(stream, peer)
        transport.prepare(stream.socket, limits.DEAD_SECONDS)
        return TlsChannel(stream, patience, payload_bytes=payload_bytes), peer

    def close(self) -> None:
        for sock in self._open:
            sock.close()


def shake(stream: TlsStream, peer: Peer) -> None:
    """Do the whole handshake."""
    done = [False, False]
    while not all(done):
        done[0] = done[0] or peer.go_on()
        with contextlib.suppress(ssl.SSLWantReadError):
            stream.do_handshake()
            done[1] = True


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Pem:
    return Authority(tmp_path_factory.mktemp("pki"), "ca").issue("receiver")


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch, shown: Pem) -> Iterator[Pairs]:
    """Make connections whose system calls block for hundredths of a second, not for a second."""
    monkeypatch.setattr(transport, "_TIMEVAL", struct.pack("ll", 0, 20_000))
    monkeypatch.setattr("filestreamer.wire.sockets.tls_channel.TICK_SECONDS", 0.02)
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(shown.certificate, shown.key)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    pairs = Pairs(server, client)
    yield pairs
    pairs.close()


def in_thread(what: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=what)
    thread.start()
    return thread


def wait_until_delivered(sock: socket.socket) -> None:
    """Wait until the other end's kernel has everything."""
    channel = transport.Channel(sock, endless)
    end = time.monotonic() + LONG_SECONDS
    while channel.unacknowledged_bytes():
        assert time.monotonic() < end
        select.select([], [], [], 0.001)


def room_for(sock: socket.socket, option: int, size: int) -> None:
    """Have the kernel buffer so much in one direction."""
    sock.setsockopt(socket.SOL_SOCKET, option, size)


# --- reading


@pytest.mark.parametrize("as_client", [False, True], ids=["server", "client"])
@pytest.mark.parametrize("payload_bytes", [limits.LARGE_BLOCK_BYTES, limits.BLOCK_BYTES, 64 * limits.KIB, 0])
def test_payload_and_frames(pair: Pairs, payload_bytes: int, as_client: bool) -> None:
    """Whatever the size of the buffer, and on either side of the handshake."""
    channel, peer = pair(payload_bytes=payload_bytes, as_client=as_client)
    data = random.Random(5).randbytes(3_000_001)
    sending = in_thread(lambda: peer.send(frame(FINISH) + data + frame(FINISH)))
    assert channel.read_body() == encode(FINISH)
    if payload_bytes:
        assert b"".join(bytes(view) for view in channel.payload(len(data))) == data
    else:
        assert take(channel, len(data)) == data
    assert channel.read_body() == encode(FINISH)
    sending.join()


def take(channel: TlsChannel, count: int) -> bytes:
    """Take so many bytes, in parts that fit into any buffer."""
    parts = []
    while count:
        parts.append(bytes(channel.take(min(count, 50_000))))
        count -= len(parts[-1])
    return b"".join(parts)


@pytest.mark.parametrize("run", range(4))
def test_records_in_any_pieces(pair: Pairs, run: int) -> None:
    """Records of any size, which arrive in pieces of any size, and are taken in any other."""
    rng = random.Random(run)
    channel, peer = pair(payload_bytes=rng.choice([limits.BLOCK_BYTES, 64 * limits.KIB]))
    data = rng.randbytes(300_000)

    def send() -> None:
        at = 0
        while at < len(data):
            size = rng.choice([1, 7, 100, 5000, 16_384, 60_000])
            sealed = peer.seal(data[at : at + size])
            cut = rng.randrange(len(sealed) + 1)
            peer.socket.sendall(sealed[:cut])
            peer.socket.sendall(sealed[cut:])
            at += size

    taking = random.Random(~run)
    sending = in_thread(send)
    taken = bytearray()
    while len(taken) < len(data):
        taken += channel.take(min(taking.choice([1, 3, 1000, 16_000, 70_000]), len(data) - len(taken)))
    sending.join()
    assert bytes(taken) == data


def test_one_system_call_reads_many_records(pair: Pairs) -> None:
    channel, peer = pair(payload_bytes=limits.BLOCK_BYTES)
    assert isinstance(channel.socket, Counting)
    room_for(channel.socket, socket.SO_RCVBUF, 8 * BATCH_BYTES)
    data = bytes(BATCH_BYTES)
    peer.send(data)
    wait_until_delivered(peer.socket)
    channel.socket.calls = 0
    assert b"".join(bytes(view) for view in channel.payload(len(data))) == data
    assert channel.socket.calls <= 3, "16 records"


def test_one_system_call_sends_many_records(pair: Pairs) -> None:
    channel, peer = pair()
    assert isinstance(channel.socket, Counting)
    room_for(channel.socket, socket.SO_SNDBUF, 8 * BATCH_BYTES)
    channel.socket.calls = 0
    channel.send(bytes(BATCH_BYTES))
    assert channel.socket.calls <= 2, "16 records"
    assert peer.receive(BATCH_BYTES) == bytes(BATCH_BYTES)


def test_poll_and_part_of_a_record(pair: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting, byte by byte; a peer that sends part of a record is heard."""
    channel, peer = pair()
    assert channel.poll_body() is None
    whole = peer.seal(frame(FINISH))
    now = channel.heard_at
    for number, byte in enumerate(whole, 1):
        peer.socket.sendall(bytes([byte]))
        select.select([channel.socket], [], [], LONG_SECONDS)
        now += 1
        monkeypatch.setattr(time, "monotonic", lambda at=now: at)
        assert channel.poll_body() == (encode(FINISH) if number == len(whole) else None)
        assert channel.heard_at == now


def test_a_deadline_ends_a_read_of_a_record_that_dribbles(pair: Pairs) -> None:
    channel, peer = pair(transport.Deadline(0, "it"))
    peer.socket.sendall(peer.seal(b"word")[:-1])
    with pytest.raises(ConnectionLost, match="took too long"):
        channel.take(4)


@pytest.mark.parametrize("how", ["close_notify", "cut between records", "cut in a record"])
def test_the_end_of_the_stream(pair: Pairs, how: str) -> None:
    """However it comes, what was whole before is delivered; then it stays the end."""
    channel, peer = pair()
    peer.send(b"all of it")
    if how == "close_notify":
        peer.close_notify()
    else:
        peer.socket.sendall(peer.seal(b"more")[: 9 * (how == "cut in a record")])
        peer.socket.shutdown(socket.SHUT_WR)
    assert bytes(channel.take(9)) == b"all of it"
    for _ in range(2):
        with pytest.raises(ConnectionClosed):
            channel.take(1)


def test_a_damaged_record(pair: Pairs) -> None:
    """What came before it is delivered, and nothing of it; the peer gets an alert."""
    channel, peer = pair()
    good, bad = peer.seal(b"good"), bytearray(peer.seal(b"bad!"))
    bad[-1] ^= 1
    peer.socket.sendall(good + bad + peer.seal(b"later"))
    wait_until_delivered(peer.socket)
    assert bytes(channel.take(4)) == b"good"
    for _ in range(2):
        with pytest.raises(ConnectionLost, match=r"(?i)bad record mac"):
            channel.take(1)
    with pytest.raises(ssl.SSLError, match=r"(?i)alert bad record mac"):
        peer.receive(1)


# --- writing


@pytest.mark.parametrize("size", [1, 16_384, BATCH_BYTES, BATCH_BYTES + 1, 3_000_001])
def test_send_all_of_it(pair: Pairs, size: int) -> None:
    channel, peer = pair()
    data = random.Random(size).randbytes(size)

    def send() -> None:
        channel.send(data, more=True)
        channel.send(b"end")

    sending = in_thread(send)
    assert peer.receive(size + 3) == data + b"end"
    sending.join()


def test_what_is_sent_is_on_its_way(pair: Pairs) -> None:
    """`more` is a hint, and what is sent without it waits for nothing."""
    channel, peer = pair()
    channel.send(b"first, ", more=True)
    channel.send(b"last")
    assert peer.receive(11) == b"first, last"


def test_send_asks_patience_where_the_peer_does_not_read(pair: Pairs) -> None:
    """And goes on where it stopped; meanwhile the other direction is read."""
    asked = threading.Event()
    channel, peer = pair(asked.set)
    data = random.Random(1).randbytes(12_000_000)  # more than loopback holds
    sending = in_thread(lambda: channel.send(data))
    assert asked.wait(LONG_SECONDS)
    peer.send(frame(FINISH))
    assert channel.read_body() == encode(FINISH)
    assert peer.receive(len(data)) == data
    sending.join()


def test_send_gives_up_as_patience_says(pair: Pairs) -> None:
    channel, _peer = pair(give_up)
    with pytest.raises(Gone):
        channel.send(bytes(12_000_000))


def test_both_directions_at_once(pair: Pairs) -> None:
    """One thread reads while another writes."""
    channel, peer = pair(payload_bytes=limits.BLOCK_BYTES)
    rng = random.Random(2)
    up, down = rng.randbytes(5_000_000), rng.randbytes(5_000_000)
    got: list[bytes] = []

    def write() -> None:
        for at in range(0, len(down), 1000):
            channel.send(down[at : at + 1000])

    writing = in_thread(write)
    reading = in_thread(lambda: got.append(b"".join(bytes(view) for view in channel.payload(len(up)))))
    back = bytearray()
    for at in range(0, len(up), 10_000):
        peer.send(up[at : at + 10_000])
        back += peer.receive(10_000)
    writing.join()
    reading.join()
    assert bytes(back) == down
    assert got == [up]


def test_a_certificate_that_is_refused_after_the_handshake(pair: Pairs) -> None:
    """In TLS 1.3 a client's handshake is done before the server has seen its certificate."""
    pair.contexts[0].verify_mode = ssl.CERT_REQUIRED
    stream, peer = pair.begin(as_client=True)
    with pytest.raises(ssl.SSLError, match=r"(?i)peer did not return a certificate"):
        shake(stream, peer)
    stream.do_handshake()
    transport.prepare(stream.socket, limits.DEAD_SECONDS)
    with pytest.raises(RemoteProtocolError, match="certificate") as refused:
        TlsChannel(stream, endless).take(1)
    assert refused.value.code is Code.POLICY


# --- new keys


def test_new_keys(pair: Pairs, shown: Pem) -> None:
    """A peer that changes its keys, and asks for new ones, is understood and answered (RFC 8446, section 4.6.3)."""
    command = shutil.which("openssl")
    assert command
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        client = subprocess.Popen(
            [command, "s_client", "-connect", address, "-CAfile", str(Path(shown.certificate))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        accepted, _ = listener.accept()
    assert client.stdin is not None
    assert client.stdout is not None
    assert client.stderr is not None
    with client, accepted:
        stream = TlsStream(pair.contexts[0], accepted)
        stream.do_handshake_within(LONG_SECONDS)
        transport.prepare(accepted, LONG_SECONDS)
        channel = TlsChannel(stream, endless)
        for number in range(3):
            client.stdin.write(b"K\n")  # new keys of its own, and new ones wanted
            client.stdin.flush()
            while b"KEYUPDATE" not in (said := client.stderr.readline()):
                assert said, "it has ended"
            client.stdin.write(b"word %d\n" % number)
            client.stdin.flush()
            assert channel.take(7) == b"word %d\n" % number
            channel.send(b"answer %d\n" % number)
            while b"answer %d" % number not in (said := client.stdout.readline()):
                assert said, "it has ended"
        client.kill()


def test_answers_that_the_peer_does_not_take_are_bounded(pair: Pairs) -> None:
    """Each new key of the peer may ask for an answer: who never reads them must not fill the memory."""
    stream, peer = pair.begin()
    shake(stream, peer)
    view = memoryview(bytearray(100_000))

    def ask() -> None:
        for _ in range(1000):  # more than loopback holds
            stream._outgoing.write(bytes(SMALL_BATCH_BYTES + 1))
            peer.send(b"word")
            select.select([stream.socket], [], [], LONG_SECONDS)
            assert stream.recv_into(view) == 4

    with pytest.raises(ssl.SSLError, match="takes no answers"):
        ask()


class NewKeys:
    """A session to which new keys come, and nothing else."""

    def read(self, *_: object) -> int:
        raise ssl.SSLWantReadError


def test_new_keys_and_nothing_else(pair: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger that sends them as fast as it can: others are served meanwhile, and soon the stranger is not."""
    stream, peer = pair.begin()
    shake(stream, peer)
    monkeypatch.setattr(stream, "_tls", NewKeys())

    def send_keys() -> None:
        with contextlib.suppress(OSError):
            peer.socket.sendall(bytes(10_000_000))

    sender = threading.Thread(target=send_keys)
    sender.start()
    sock = stream.socket
    assert isinstance(sock, Counting)

    def receive_all() -> None:
        while True:
            select.select([sock], [], [], LONG_SECONDS)
            before = sock.calls
            try:
                stream.recv(12)
            except ssl.SSLWantReadError:
                assert sock.calls - before <= 1, "the acceptor's thread has other connections, too"

    with pytest.raises(ssl.SSLError, match="new keys, and nothing else"):
        receive_all()
    peer.socket.shutdown(socket.SHUT_RDWR)
    sender.join()


# --- the handshake, and the end


def test_a_handshake_byte_by_byte(pair: Pairs) -> None:
    stream, peer = pair.begin()
    with pytest.raises(ssl.SSLWantReadError):
        stream.do_handshake()
    with contextlib.suppress(ssl.SSLWantReadError):
        peer.session.do_handshake()
    for byte in peer.outgoing.read():
        peer.socket.sendall(bytes([byte]))
        select.select([stream.socket], [], [], LONG_SECONDS)
        with pytest.raises(ssl.SSLWantReadError):
            stream.do_handshake()
    shake(stream, peer)
    peer.send(b"word")
    assert stream.recv(4) == b"word"


def test_nothing_is_received_yet(pair: Pairs) -> None:
    stream, peer = pair.begin()
    shake(stream, peer)
    with pytest.raises(ssl.SSLWantReadError):
        stream.recv(5)
    peer.send(b"four and more")
    select.select([stream.socket], [], [], LONG_SECONDS)
    assert stream.recv(4) == b"four"
    transport.prepare(stream.socket, limits.DEAD_SECONDS)
    assert bytes(TlsChannel(stream, endless).take(9)) == b" and more", "what was read ahead goes with the session"


def test_a_peer_that_leaves_in_the_handshake(pair: Pairs) -> None:
    stream, peer = pair.begin()
    peer.socket.close()
    with pytest.raises(ssl.SSLEOFError):
        stream.do_handshake_within(LONG_SECONDS)


def test_a_peer_that_is_silent_in_the_handshake(pair: Pairs) -> None:
    stream, _peer = pair.begin()
    with pytest.raises(TimeoutError, match="not answered in time"):
        stream.do_handshake_within(0)


def test_a_peer_that_speaks_something_else_gets_an_alert(pair: Pairs) -> None:
    stream, peer = pair.begin()
    peer.socket.sendall(b"\x16\x03\x01\x00\x05hello")
    with pytest.raises(ssl.SSLError, match=r"(?i)unexpected message"):
        stream.do_handshake_within(LONG_SECONDS)
    assert peer.socket.recv(1) == b"\x15"


@pytest.mark.parametrize("what", ["read", "write"])
def test_shut_wakes_a_blocked_thread(pair: Pairs, what: str) -> None:
    asked, lost = threading.Event(), threading.Event()
    channel, _peer = pair(asked.set)

    def blocked() -> None:
        try:
            channel.take(1) if what == "read" else channel.send(bytes(12_000_000))
        except ConnectionLost:
            lost.set()

    thread = in_thread(blocked)
    assert asked.wait(LONG_SECONDS)
    channel.shut()
    assert lost.wait(LONG_SECONDS)
    thread.join()


def test_close_in_order(pair: Pairs) -> None:
    """The last frame arrives although bytes of the peer's are unread."""
    channel, peer = pair()
    peer.send(bytes(100_000))
    channel.send(frame(FINISH))
    closing = in_thread(channel.close_in_order)
    assert peer.receive(len(frame(FINISH))) == frame(FINISH)
    assert peer.socket.recv(1) == b""
    peer.socket.close()
    closing.join()
    assert channel.socket.fileno() == -1


def test_after_the_end(pair: Pairs) -> None:
    channel, _peer = pair()
    channel.close()
    channel.close()
    with pytest.raises(ConnectionLost):
        channel.take(1)
    with pytest.raises(ConnectionLost):
        channel.send(b"word")
