"""Sockets: whole buffers in and out, deadlines, an end in order. Real connections over loopback."""

import itertools
import random
import select
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import encode
from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import Code, ConnectionLost, RemoteProtocolError
from filestreamer.wire.framing import frame, frame_of
from filestreamer.wire.sockets import transport
from filestreamer.wire.sockets.transport import Channel, Deadline

LONG_SECONDS = 30.0
"""Far longer than anything here takes: what waits for it has failed."""

ABORT = m.Abort(Code.SOURCE, "because")
FINISH = m.Finish(3, bytes(range(16)))
HEADER = m.ChunkHeader(7, (m.Segment(0, 0, 3), m.Segment(1, 0, 4)))


def endless() -> None:
    """Be patient for ever."""


class Gone(Exception):
    """A patience of the test's has ended."""


def give_up() -> None:
    raise Gone


class Pairs:
    """Makes connected sockets over loopback, and closes them."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def raw(self) -> tuple[socket.socket, socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours = socket.create_connection(server.getsockname())
            theirs, _ = server.accept()
        self._sockets += [ours, theirs]
        transport.prepare(ours, limits.DEAD_SECONDS)
        theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        theirs.settimeout(LONG_SECONDS)
        return ours, theirs

    def __call__(
        self, patience: transport.Patience = endless, *, payload_bytes: int = 0
    ) -> tuple[Channel, socket.socket]:
        """Return a channel, and the bare socket at its other end."""
        ours, theirs = self.raw()
        return Channel(ours, patience, payload_bytes=payload_bytes), theirs

    def keep(self, *sockets: socket.socket) -> None:
        self._sockets += sockets

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pairs]:
    """Make connections whose system calls block for hundredths of a second, not for a second."""
    monkeypatch.setattr(transport, "_TIMEVAL", struct.pack("ll", 0, 20_000))
    pairs = Pairs()
    yield pairs
    pairs.close()


class Thread(threading.Thread):
    """Runs a function; `result` waits for it, and raises what it raised."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._result: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:  # noqa: BLE001 (handed to whoever asks for the result)
            self._error = error

    def result(self) -> Any:
        self.join(LONG_SECONDS)
        assert not self.is_alive(), "it hangs"
        if self._error is not None:
            raise self._error
        return self._result


class Dribble:
    """A socket that receives no more at a time than it is told to; all else is the real one's."""

    def __init__(self, sock: socket.socket, sizes: Iterator[int]) -> None:
        self._sock = sock
        self._sizes = sizes

    def recv_into(self, buffer: memoryview, count: int, flags: int) -> int:
        return self._sock.recv_into(buffer[: next(self._sizes)], count, flags)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def dribbled(channel: Channel, sizes: Iterator[int]) -> None:
    channel.socket = Dribble(channel.socket, sizes)  # type: ignore[assignment]


def ones() -> Iterator[int]:
    while True:
        yield 1


def wait_readable(sock: socket.socket) -> None:
    assert select.select([sock], [], [], LONG_SECONDS)[0], "nothing came"


def pattern(count: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(count)


# --- reading


def test_take_waits_for_all_of_it(pair: Pairs) -> None:
    channel, peer = pair()
    peer.sendall(b"abcdef")

    assert bytes(channel.take(2)) == b"ab"
    assert bytes(channel.take(4)) == b"cdef"


def test_take_byte_by_byte(pair: Pairs) -> None:
    channel, peer = pair()
    dribbled(channel, ones())
    peer.sendall(b"abcdef")

    assert [bytes(channel.take(count)) for count in (1, 3, 2)] == [b"a", b"bcd", b"ef"]


def test_take_nothing(pair: Pairs) -> None:
    channel, _ = pair(give_up)

    assert bytes(channel.take(0)) == b""


@pytest.mark.parametrize("run", range(5))
def test_take_any_counts_in_any_pieces(pair: Pairs, run: int) -> None:
    """Across the end of the buffer, many times, with views that are whole each time."""
    rng = random.Random(run)
    channel, peer = pair(payload_bytes=limits.BLOCK_BYTES)
    data = pattern(3_000_000, run)
    dribbled(channel, iter(lambda: rng.choice([1, 100, 65_536, 400_000]), None))
    feeder = Thread(lambda: peer.sendall(data))

    at = 0
    while at < len(data):
        count = min(rng.choice([0, 1, 12, 5000, limits.FRAME_BYTES, limits.BLOCK_BYTES]), len(data) - at)
        assert channel.take(count) == data[at : at + count]
        at += count
    feeder.result()


PAGE_BYTES = 4096


@pytest.mark.parametrize("room", [limits.BLOCK_BYTES, limits.LARGE_BLOCK_BYTES])
@pytest.mark.parametrize(
    "count", [1, 4096, 4097, limits.BLOCK_BYTES, limits.BLOCK_BYTES + 1, 3 * limits.BLOCK_BYTES - 1, 5_000_001]
)
def test_payload_comes_in_blocks(pair: Pairs, count: int, room: int) -> None:
    channel, peer = pair(payload_bytes=room)
    data = pattern(count)
    feeder = Thread(lambda: peer.sendall(data + b"next"))

    blocks = [bytes(block) for block in channel.payload(count)]

    assert b"".join(blocks) == data
    assert all(len(block) >= limits.BLOCK_BYTES and len(block) % PAGE_BYTES == 0 for block in blocks[:-1])
    assert bytes(channel.take(4)) == b"next"
    feeder.result()


@pytest.mark.parametrize("size", [1, 100, limits.BLOCK_BYTES - 1, limits.BLOCK_BYTES])
def test_who_sends_little_at_once_is_not_waited_for(pair: Pairs, size: int) -> None:
    """A block is handed on as soon as it has BLOCK_BYTES, however much room there is."""
    channel, peer = pair(payload_bytes=limits.LARGE_BLOCK_BYTES)
    data = pattern(limits.BLOCK_BYTES)
    dribbled(channel, iter(lambda: size, None))
    feeder = Thread(lambda: peer.sendall(data))

    assert bytes(next(channel.payload(1 << 30))) == data
    feeder.result()


class Plenty(Dribble):
    """A socket that always has as much as there is room for."""

    def recv_into(self, buffer: memoryview, _count: int, _flags: int) -> int:
        return len(buffer)


@pytest.mark.parametrize("room", [limits.BLOCK_BYTES, limits.LARGE_BLOCK_BYTES])
def test_a_block_has_all_that_is_here(pair: Pairs, room: int) -> None:
    """Who was busy meanwhile takes it in one piece."""
    channel, _ = pair(payload_bytes=room)
    channel.socket = Plenty(channel.socket, ones())  # type: ignore[assignment]

    blocks = itertools.islice(channel.payload(1 << 30), 10)
    assert all(len(block) >= room for block in blocks)


class Counting(Dribble):
    """A socket that fills all the room there is, and counts what was received."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, iter(lambda: 1 << 30, None))
        self.received = 0

    def recv_into(self, buffer: memoryview, count: int, flags: int) -> int:
        received = super().recv_into(buffer, count, flags | socket.MSG_WAITALL)
        self.received += received
        return received


@pytest.mark.parametrize("size", [limits.BLOCK_BYTES, 600_000])
def test_payload_reads_little_of_what_follows_a_block(pair: Pairs, size: int) -> None:
    """What was read of the next block would have to be moved."""
    channel, peer = pair(payload_bytes=limits.LARGE_BLOCK_BYTES)
    channel.socket = counting = Counting(channel.socket)  # type: ignore[assignment]
    data = pattern(2 * size)

    def feed() -> None:
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)

    feeder = Thread(feed)
    assert b"".join(map(bytes, channel.payload(size))) == data[:size]
    assert counting.received <= size + PAGE_BYTES
    assert channel.take(size) == data[size:]
    feeder.result()


@pytest.mark.parametrize("size", [5_000, 50_000, 500_000])
def test_small_payloads_come_by_the_buffer(pair: Pairs, size: int) -> None:
    """One read for all that there is room for, and one round of acknowledgements: `on_dry` comes before each read."""
    channel, _ = pair(payload_bytes=limits.LARGE_BLOCK_BYTES)
    channel.socket = Plenty(channel.socket, ones())  # type: ignore[assignment]
    reads: list[None] = []
    channel.on_dry = lambda: reads.append(None)
    count = limits.LARGE_BLOCK_BYTES // size

    assert [len(block) for _ in range(count) for block in channel.payload(size)] == [size] * count
    assert len(reads) == 1


def test_payload_byte_by_byte(pair: Pairs) -> None:
    channel, peer = pair(payload_bytes=limits.BLOCK_BYTES)
    dribbled(channel, ones())
    data = pattern(5000)
    peer.sendall(data)

    assert b"".join(bytes(block) for block in channel.payload(5000)) == data


def test_a_chunk_on_the_wire(pair: Pairs) -> None:
    """A frame, payload behind it, digests, a frame: each read by its own means from one stream."""
    channel, peer = pair(payload_bytes=limits.BLOCK_BYTES)
    digests = segment_digest(b"abc") + segment_digest(b"defg")
    peer.sendall(frame(HEADER) + b"abcdefg" + digests + frame(FINISH))

    assert channel.read_body() == encode(HEADER)
    assert b"".join(bytes(block) for block in channel.payload(7)) == b"abcdefg"
    assert channel.take(32) == digests
    assert channel.read_body() == encode(FINISH)


@pytest.mark.parametrize("at", range(len(frame(FINISH)) + 1))
def test_a_frame_is_split_anywhere(pair: Pairs, at: int) -> None:
    channel, peer = pair()
    whole = frame(FINISH)
    dribbled(channel, iter([size for size in (at, len(whole) - at) if size]))
    peer.sendall(whole)

    assert channel.read_body() == encode(FINISH)


def test_frames_back_to_back(pair: Pairs) -> None:
    channel, peer = pair()
    peer.sendall(frame(FINISH) * 3)

    assert [channel.read_body() for _ in range(3)] == [encode(FINISH)] * 3
    assert channel.poll_body() is None


def test_the_largest_frame(pair: Pairs) -> None:
    body = bytes(limits.FRAME_BYTES)
    channel, peer = pair()
    feeder = Thread(lambda: peer.sendall(frame(FINISH) + frame_of(body) * 3))

    assert channel.read_body() == encode(FINISH)
    assert [channel.read_body() for _ in range(3)] == [body] * 3
    feeder.result()


def test_a_body_outlives_the_buffer(pair: Pairs) -> None:
    channel, peer = pair()
    peer.sendall(frame(FINISH) + frame(ABORT))
    first = channel.read_body()
    channel.read_body()

    assert first == encode(FINISH)


def test_a_frame_over_the_limit(pair: Pairs) -> None:
    channel, peer = pair()
    peer.sendall(frame_of(bytes(limits.OPENING_FRAME_BYTES + 1)))

    with pytest.raises(RemoteProtocolError, match="announces 1025 bytes"):
        channel.read_body(limits.OPENING_FRAME_BYTES)


def test_a_damaged_frame(pair: Pairs) -> None:
    channel, peer = pair()
    peer.sendall(frame(FINISH)[:-1] + b"\xff")

    with pytest.raises(RemoteProtocolError) as caught:
        channel.read_body()
    assert caught.value.code is Code.CORRUPT


# --- polling


def test_poll_says_at_once_that_nothing_is_here(pair: Pairs) -> None:
    channel, _ = pair(give_up)

    assert channel.poll_body() is None


def test_poll_byte_by_byte(pair: Pairs) -> None:
    """Each byte has come before the next is sent; only the last one makes a frame."""
    channel, peer = pair(give_up)
    whole = frame(FINISH)
    for number, byte in enumerate(whole, 1):
        peer.sendall(bytes([byte]))
        wait_readable(channel.socket)
        assert channel.poll_body() == (encode(FINISH) if number == len(whole) else None)


def test_poll_takes_frames_that_came_together(pair: Pairs) -> None:
    channel, peer = pair(give_up)
    peer.sendall(frame(FINISH) + frame(ABORT) + frame(FINISH)[:13])
    wait_readable(channel.socket)
    found: list[bytes] = []
    while len(found) < 2:
        body = channel.poll_body()
        if body is not None:
            found.append(body)

    assert found == [encode(FINISH), encode(ABORT)]
    assert channel.poll_body() is None


def test_poll_and_read_share_the_buffer(pair: Pairs) -> None:
    channel, peer = pair()
    whole = frame(FINISH)
    peer.sendall(whole[:20])
    wait_readable(channel.socket)
    assert channel.poll_body() is None
    peer.sendall(whole[20:] + b"rest")

    assert channel.read_body() == encode(FINISH)
    assert bytes(channel.take(4)) == b"rest"


def test_poll_refuses_a_length_before_the_body_is_here(pair: Pairs) -> None:
    channel, peer = pair(give_up)
    peer.sendall(b"\x7f\xff\xff\xff" + bytes(8))
    wait_readable(channel.socket)

    with pytest.raises(RemoteProtocolError, match="2147483647"):
        channel.poll_body()


def test_poll_at_the_end_of_the_stream(pair: Pairs) -> None:
    channel, peer = pair(give_up)
    peer.sendall(frame(FINISH))
    peer.shutdown(socket.SHUT_WR)
    wait_readable(channel.socket)
    assert channel.poll_body() == encode(FINISH)
    wait_readable(channel.socket)

    with pytest.raises(ConnectionLost, match="closed the connection"):
        channel.poll_body()


def test_poll_of_many_frames_across_the_end_of_the_buffer(pair: Pairs) -> None:
    channel, peer = pair()
    body = pattern(50_000)
    feeder = Thread(lambda: peer.sendall(frame_of(body) * 20))
    found = 0
    while found < 20:
        if (polled := channel.poll_body()) is not None:
            assert polled == body
            found += 1
        else:
            wait_readable(channel.socket)  # what came so far is in the buffer: the next byte is still to come
    feeder.result()


# --- the end of a stream, and patience


@pytest.mark.parametrize("sent", [0, 5, 12, 20])
def test_the_stream_ends_early(pair: Pairs, sent: int) -> None:
    channel, peer = pair()
    peer.sendall(frame(FINISH)[:sent])
    peer.shutdown(socket.SHUT_WR)

    with pytest.raises(ConnectionLost, match=r"127\.0\.0\.1:\d+ closed the connection"):
        channel.read_body()


def test_a_reset(pair: Pairs) -> None:
    channel, peer = pair()
    reset(peer)

    with pytest.raises(ConnectionLost, match=r"127\.0\.0\.1:\d+"):
        channel.take(1)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_a_connection_that_was_reset_before_it_was_looked_at(pair: Pairs) -> None:
    """A port scan: accepted, and gone."""
    ours, theirs = pair.raw()
    reset(theirs)
    with pytest.raises(ConnectionResetError):
        ours.recv(1)

    with pytest.raises(ConnectionLost):
        Channel(ours, endless)


def test_patience_is_asked_while_nothing_moves(pair: Pairs) -> None:
    asked: list[int] = []

    def patience() -> None:
        asked.append(len(asked))
        if len(asked) == 3:
            raise Gone

    channel, _ = pair(patience)
    with pytest.raises(Gone):
        channel.take(1)
    assert asked == [0, 1, 2]


def test_patience_is_not_asked_while_bytes_come(pair: Pairs) -> None:
    channel, peer = pair(give_up)
    dribbled(channel, ones())
    peer.sendall(bytes(1000))

    channel.take(1000)


def test_what_came_before_patience_ended_is_not_lost(pair: Pairs) -> None:
    channel, peer = pair(give_up)
    peer.sendall(b"ab")
    wait_readable(channel.socket)
    with pytest.raises(Gone):
        channel.take(3)
    peer.sendall(b"c")
    wait_readable(channel.socket)

    assert bytes(channel.take(3)) == b"abc"


def test_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    deadline = Deadline(5.0, "the answer")
    now = 104.9
    deadline()
    now = 105.0

    with pytest.raises(ConnectionLost, match="the answer took too long"):
        deadline()


def test_a_deadline_ends_a_read(pair: Pairs) -> None:
    channel, _ = pair(Deadline(0.0, "the answer"))

    with pytest.raises(ConnectionLost, match="the answer took too long"):
        channel.read_body()


def test_a_deadline_ends_a_read_from_a_peer_that_dribbles(pair: Pairs) -> None:
    """Who sends a byte now and then never stops moving, and must not hold anybody for ever."""
    channel, peer = pair(Deadline(0.0, "the answer"))
    dribbled(channel, ones())
    peer.sendall(frame(FINISH))

    with pytest.raises(ConnectionLost, match="the answer took too long"):
        channel.read_body()


def test_on_dry_is_called_before_the_network_is_waited_for(pair: Pairs) -> None:
    channel, peer = pair()
    peer.sendall(b"abcd")
    dry: list[str] = []
    channel.on_dry = lambda: dry.append("dry")

    channel.take(2)
    before = list(dry)
    channel.take(2)  # here already
    assert (before, dry) == (["dry"], ["dry"])
    channel.on_dry = lambda: peer.sendall(b"e")  # what was pending makes the peer go on
    assert bytes(channel.take(1)) == b"e"


def test_heard_at_is_the_time_of_the_last_byte(pair: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    channel, peer = pair(give_up)
    now = 200.0
    with pytest.raises(Gone):
        channel.take(1)
    assert channel.heard_at == 100.0
    peer.sendall(b"x")
    channel.take(1)

    assert channel.heard_at == 200.0


# --- writing


def test_send_all_of_it(pair: Pairs) -> None:
    channel, peer = pair()
    data = pattern(5_000_000)
    reader = Thread(lambda: read_exactly(peer, len(data)))
    channel.send(data)

    assert reader.result() == data


def read_exactly(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = sock.recv(min(1 << 20, count - len(data)))
        assert piece, f"the stream ended after {len(data)} of {count} bytes"
        data += piece
    return bytes(data)


def read_to_end(sock: socket.socket) -> bytes:
    data = bytearray()
    while piece := sock.recv(1 << 20):
        data += piece
    return bytes(data)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_send_any_buffer_in_parts(pair: Pairs, kind: Callable[[bytes], bytes]) -> None:
    channel, peer = pair()
    channel.send(kind(b"abc"), more=True)
    channel.send(kind(b""))
    channel.send(kind(b"def"))

    assert read_exactly(peer, 6) == b"abcdef"


def test_send_message(pair: Pairs) -> None:
    channel, peer = pair()
    channel.send_message(FINISH)

    assert read_exactly(peer, len(frame(FINISH))) == frame(FINISH)


def test_send_asks_patience_where_the_peer_does_not_read(pair: Pairs) -> None:
    channel, _ = pair(give_up)

    with pytest.raises(Gone):
        channel.send(bytes(64 * limits.MIB))


def test_send_to_a_peer_that_is_gone(pair: Pairs) -> None:
    channel, peer = pair()
    reset(peer)

    with pytest.raises(ConnectionLost, match=r"127\.0\.0\.1:\d+: "):
        channel.send(bytes(64 * limits.MIB))


def test_unacknowledged_bytes(pair: Pairs) -> None:
    channel, peer = pair(give_up)
    assert channel.unacknowledged_bytes() == 0
    assert not channel.is_window_bound()  # nothing is under way
    with pytest.raises(Gone):
        channel.send(bytes(64 * limits.MIB))
    full = channel.unacknowledged_bytes()
    assert full > 0
    peer.close()
    channel.close()

    assert channel.unacknowledged_bytes() == 0  # nothing is asked of a socket that is closed
    assert not channel.is_window_bound()


# --- ending


@pytest.mark.parametrize("what", ["take", "read_body", "payload"])
def test_shut_wakes_a_blocked_reader(pair: Pairs, what: str) -> None:
    """Its patience never ends, so nothing else can."""
    channel, _ = pair(payload_bytes=limits.BLOCK_BYTES)
    waiting = threading.Event()
    channel.on_dry = waiting.set
    calls: dict[str, Callable[[], Any]] = {
        "take": lambda: channel.take(1),
        "read_body": channel.read_body,
        "payload": lambda: list(channel.payload(1 << 30)),
    }
    reader = Thread(calls[what])
    assert waiting.wait(LONG_SECONDS)
    channel.shut()

    with pytest.raises(ConnectionLost):
        reader.result()


def test_shut_wakes_a_blocked_writer(pair: Pairs) -> None:
    blocked = threading.Event()
    channel, _ = pair(blocked.set)
    writer = Thread(lambda: channel.send(bytes(64 * limits.MIB)))
    assert blocked.wait(LONG_SECONDS)
    channel.shut()

    with pytest.raises(ConnectionLost):
        writer.result()


def test_shut_and_close_are_idempotent(pair: Pairs) -> None:
    channel, peer = pair()
    channel.shut()
    channel.shut()
    channel.close()
    channel.close()
    channel.shut()

    assert peer.recv(1) == b""
    with pytest.raises(ConnectionLost):
        channel.send(b"x")
    with pytest.raises(ConnectionLost):
        channel.take(1)


def test_close_in_order(pair: Pairs) -> None:
    channel, peer = pair()
    channel.send_message(ABORT)
    closing = Thread(channel.close_in_order)

    assert read_to_end(peer) == frame(ABORT)
    peer.close()
    closing.result()
    assert channel.socket.fileno() == -1


def test_close_in_order_delivers_the_last_frame_although_bytes_are_unread(pair: Pairs) -> None:
    """A plain close would reset the connection, and the peer might never read why."""
    channel, peer = pair()
    peer.sendall(bytes(50_000))
    wait_readable(channel.socket)
    channel.send_message(ABORT)
    closing = Thread(channel.close_in_order)

    assert read_to_end(peer) == frame(ABORT)
    peer.sendall(bytes(50_000))  # it may even go on
    peer.close()
    closing.result()


def test_close_in_order_does_not_wait_for_a_silent_peer(pair: Pairs) -> None:
    channel, _ = pair()
    Thread(lambda: channel.close_in_order(0.0)).result()

    assert channel.socket.fileno() == -1


def test_close_in_order_waits_for_as_long_as_the_limit_says_now(pair: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    channel, _ = pair()
    began, usual_seconds = time.monotonic(), limits.CLOSING_SECONDS
    monkeypatch.setattr(limits, "CLOSING_SECONDS", 0.0)
    channel.close_in_order()

    assert time.monotonic() - began < usual_seconds


def test_close_in_order_does_not_read_for_ever(pair: Pairs) -> None:
    """A peer that goes on sending always moves; the time is over all the same."""
    channel, peer = pair()

    def flood() -> None:
        while True:
            peer.sendall(bytes(65_536))

    flooding = Thread(flood)
    wait_readable(channel.socket)
    Thread(lambda: channel.close_in_order(0.0)).result()

    with pytest.raises(ConnectionError):
        flooding.result()


def test_close_in_order_calls_nothing_back(pair: Pairs) -> None:
    channel, peer = pair(give_up)
    channel.on_dry = give_up
    peer.close()

    channel.close_in_order()


def test_close_in_order_of_a_connection_that_is_gone(pair: Pairs) -> None:
    channel, peer = pair()
    reset(peer)
    channel.close_in_order()
    channel.close_in_order()

    assert channel.socket.fileno() == -1


def test_a_buffer_goes_with_its_connection(pair: Pairs) -> None:
    """Not with the last one that knows of it: a thread that failed is kept by its error."""
    channel, _ = pair(payload_bytes=limits.BLOCK_BYTES)
    pages = weakref.ref(channel._buffer.obj)
    channel.close()
    assert pages() is None
    with pytest.raises(ConnectionLost):
        channel.take(1)


def test_payload_in_a_small_buffer(pair: Pairs) -> None:
    channel, theirs = pair(payload_bytes=64 * limits.KIB)
    content = random.Random(1).randbytes(3 * limits.MIB + 17)
    sending = threading.Thread(target=theirs.sendall, args=(content + b"digest",))
    sending.start()
    received = b"".join(bytes(view) for view in channel.payload(len(content)))
    assert received == content
    assert bytes(channel.take(6)) == b"digest"
    sending.join(LONG_SECONDS)


# --- options of a connected socket


@pytest.mark.parametrize("seconds", [limits.DEAD_SECONDS, 2_000_000, 2_147_483.7, 3_000_000, 1e9, 1e300])
def test_prepare_for_a_peer_that_may_be_silent_for_as_long_as_anybody_writes(pair: Pairs, seconds: float) -> None:
    sock, _ = pair.raw()
    transport.prepare(sock, seconds)
    set_to = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert set_to == int(min(seconds * 1000, 2**31 - 1))


def test_prepare(pair: Pairs) -> None:
    sock, _ = pair.raw()
    sock.settimeout(3.0)
    transport.prepare(sock, 31.5)

    assert sock.gettimeout() is None
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 31_500


def test_no_pacing_between_two_ends_on_one_machine(pair: Pairs) -> None:
    sock, _ = pair.raw()
    assert sock.getpeername()[0] == sock.getsockname()[0]
    assert congestion_control(sock) == "reno"


def test_between_two_addresses_the_systems_congestion_control_stays() -> None:
    with socket.create_server(("127.0.0.2", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        before = congestion_control(sock)
        assert sock.getpeername()[0] != sock.getsockname()[0]
        transport.prepare(sock, 31.5)
        assert congestion_control(sock) == before


def congestion_control(sock: socket.socket) -> str:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()


def test_a_tick_is_a_second() -> None:
    assert struct.unpack("ll", transport._TIMEVAL) == (1, 0)


def test_a_close_at_once_waits_for_no_peer_that_never_stops(pair: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a thread that serves all peers which closes it."""
    channel, theirs = pair()
    reads = 0

    def receive(_channel: Channel, view: memoryview, _wait: bool) -> int:
        nonlocal reads
        reads += 1
        assert reads < 100_000, "it reads for ever"
        return len(view)

    monkeypatch.setattr(Channel, "_receive_some", receive)
    channel.close_at_once()
    assert reads > 1
    assert theirs.recv(1) == b""
