"""A TCP proxy between the real services that misbehaves by a plan.

    with Proxy(receiver_address, [Reset(on="data 1", at=100_000)]) as proxy:
        sender = pair.sender(file, proxy.address)

A fault is a value: its repr is what makes it again. It says which connection (`on`, `nth`), which direction, and after
how many bytes of that direction it strikes: the same plan strikes at the same bytes, however fast they come.
Connections are told apart by their Hello, which is held back until it is whole. What the proxy is to do at a moment
that only the test knows (`reset`, `hold`, `refuse`), it is told by name.

One thread with one poll does everything; nothing here waits for a peer.
"""

import contextlib
import dataclasses
import queue
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, Self

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.codec import decode
from filestreamer.wire.errors import FilestreamerError
from filestreamer.wire.features import KNOWN
from filestreamer.wire.framing import frame, parse_header
from tests.support.services import HANG

Direction = Literal["up", "down"]
"""up: from the sender to the receiver. down: back."""

OPENED_BYTES = len(frame(m.Greeting(1, 1, bytes(16), bytes(16), False, KNOWN)) + frame(m.Welcome(b"")))
"""What a receiver that asks for no token says until a connection is open: Greeting, and a Welcome without a proof."""
READ_BYTES = 64 * 1024
POLL_SECONDS = 1.0


# -------------------------------------------------------------------------------------------------------------- faults


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """Happens to one direction of a connection once `at` bytes of it have passed."""

    on: str
    """`control`, `data 3`, `data *`, `*`, or `#4` for the connection that was accepted as the fifth of all."""
    direction: Direction = "up"
    at: int = 0
    nth: int | None = 0
    """The first connection of that name, the second (after it was opened again), ...; None: each of them."""

    def is_on(self, name: str, nth: int) -> bool:
        """Whether it happens to this connection."""
        known = (name, "*", "data *") if name.startswith("data") else (name, "*")
        return self.on in known and self.nth in (None, nth)

    def strike(self, half: "Half") -> None:
        """Happen now to the connection."""

    def change(self, data: bytes) -> bytes:
        """Happen now to what was read from byte `at` on; return what goes on its way."""
        return data


class Cut(Fault):
    """The connection ends in order, both ways (FIN), inside whatever was under way."""

    def strike(self, half: "Half") -> None:
        half.connection.cut()


class Reset(Fault):
    """The connection ends at once, both ways (RST)."""

    def strike(self, half: "Half") -> None:
        half.connection.reset()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Truncate(Fault):
    """The next `lost` bytes vanish, though they were taken from who sent them; then the connection ends in order."""

    lost: int = 1

    def strike(self, half: "Half") -> None:
        half.swallow(self.lost)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stall(Fault):
    """Nothing moves in this direction for a while; then everything goes on."""

    seconds: float

    def strike(self, half: "Half") -> None:
        half.pause(self.seconds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delay(Fault):
    """The connection begins so much later than the others: nothing moves either way for a while."""

    seconds: float

    def strike(self, half: "Half") -> None:
        for each in half.connection.halves:
            each.pause(self.seconds)


class Blackhole(Fault):
    """Nothing moves any more, either way, and nobody is told: both sockets stay open."""

    def strike(self, half: "Half") -> None:
        for each in half.connection.halves:
            each.stop()


class HalfOpen(Fault):
    """This direction ends in order and is read no more, while the other one goes on."""

    def strike(self, half: "Half") -> None:
        half.stop()
        half.end()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlowReader(Fault):
    """For `span` bytes, only `bytes_per_read` are read at a time, with a pause after each."""

    bytes_per_read: int
    pause_seconds: float
    span: int

    def strike(self, half: "Half") -> None:
        half.slow_down(self.bytes_per_read, self.pause_seconds, self.span)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flip(Fault):
    """One bit is another one."""

    bit: int = 0

    def change(self, data: bytes) -> bytes:
        return bytes([data[0] ^ 1 << self.bit]) + data[1:]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aimed(Fault):
    """A flip whose place is known only once the stream was read so far: `at` counts from there."""

    bit: int = 0
    again: bool = False
    """Whether it happens at each such place, or at the first only, over whatever connection that comes."""

    def aims_at(self, mark: "Mark") -> bool:
        """Whether this is the place."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlipPayload(Aimed):
    """One bit of a chunk's payload is another one; `at` counts from the payload's first byte."""

    chunk: int

    def aims_at(self, mark: "Mark") -> bool:
        """Whether this is the payload of the chunk."""
        return mark.kind == "payload" and mark.number == self.chunk


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlipFrame(Aimed):
    """One bit of a frame is another one; `at` counts from the frame's first byte: 4 of length, 8 of checksum, body."""

    frame: int
    """Which frame of this direction: 0 is Hello, or Greeting."""

    def aims_at(self, mark: "Mark") -> bool:
        """Whether this frame begins here."""
        return mark.kind == "frame" and mark.number == self.frame


# ----------------------------------------------------------------------------------------------- what a stream carries


class Mark(NamedTuple):
    """Something begins at byte `start` of a direction."""

    kind: Literal["frame", "payload"]
    number: int
    """Of a frame, which one; of a payload, its chunk_id: each chunk of a run has one."""
    start: int


class Frames:
    """Follows the frames of one direction, and the payload between them."""

    def __init__(self) -> None:
        self.first: bytes | None = None
        """The body of the first frame."""
        self._buffer = bytearray()
        self._at = 0  # where the buffer begins
        self._count = 0
        self._to_skip = 0
        self._is_open = False  # a frame began, and its mark was given
        self._lost = False

    def feed(self, data: bytes) -> Iterator[Mark]:
        """Take the next bytes; yield what begins in them, or right behind them."""
        if self._lost:
            return
        self._buffer += data
        while self._skip() and self._buffer:
            if not self._is_open:
                self._is_open = True
                yield Mark("frame", self._count, self._at)
            try:
                body = self._whole_frame()
            except FilestreamerError:
                self._lost = True
                return
            if body is None:
                return
            yield from self._take(body)

    def _skip(self) -> bool:
        """Drop payload and digests; whether none is owed any more."""
        skipped = min(self._to_skip, len(self._buffer))
        del self._buffer[:skipped]
        self._to_skip -= skipped
        self._at += skipped
        return not self._to_skip

    def _whole_frame(self) -> bytes | None:
        if len(self._buffer) < limits.FRAME_HEADER_BYTES:
            return None
        length, _ = parse_header(bytes(self._buffer[: limits.FRAME_HEADER_BYTES]), limits.FRAME_BYTES)
        end = limits.FRAME_HEADER_BYTES + length
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[limits.FRAME_HEADER_BYTES : end])
        del self._buffer[:end]
        self._at += end
        self._is_open = False
        self._count += 1
        return body

    def _take(self, body: bytes) -> Iterator[Mark]:
        if self.first is None:
            self.first = body
        message = decode(body)
        if isinstance(message, m.ChunkHeader):
            length = sum(segment.length for segment in message.segments)
            self._to_skip = message.chunks * (length + limits.DIGEST_BYTES * len(message.segments))
            for index, chunk_id in enumerate(message.chunk_ids):
                yield Mark("payload", chunk_id, self._at + index * length)


# --------------------------------------------------------------------------------------------------------- connections


class Half:
    """One direction of a connection. Only the proxy's thread touches it."""

    def __init__(
        self, connection: "Connection", direction: Direction, source: socket.socket, sink: socket.socket
    ) -> None:
        self.connection = connection
        self.direction = direction
        self.source = source
        self.sink = sink
        self.position = 0
        """Bytes read from the source so far."""
        self.faults: list[Fault] = []
        self.has_ended = False
        """Whether the source ended its side."""
        self._frames = Frames()
        self._pending = b""
        self._resumes_at = 0.0
        self._is_stopped = False
        self._ends = False
        self._to_swallow: int | None = None
        self._discards = False
        self._slow: tuple[int, float, int] | None = None  # bytes, seconds, until which position

    # --- what faults do

    def pause(self, seconds: float) -> None:
        """Let nothing move for a while."""
        self._resumes_at = max(self._resumes_at, time.monotonic() + seconds)

    def stop(self) -> None:
        """Read no more."""
        self._is_stopped = True

    def go(self) -> None:
        """Take back `stop`."""
        self._is_stopped = False

    def swallow(self, count: int) -> None:
        """Let the next bytes vanish, then end the connection."""
        self._to_swallow = count

    def end(self) -> None:
        """Say end of stream to the sink, after what is pending."""
        self._ends = True
        self._finish()

    def discard(self) -> None:
        """Read whatever still comes, and drop it."""
        self._discards = True
        self._is_stopped = False
        self._resumes_at = 0.0

    def slow_down(self, bytes_per_read: int, pause_seconds: float, span: int) -> None:
        """Read little at a time, up to so many bytes from here."""
        self._slow = (bytes_per_read, pause_seconds, self.position + span)

    # --- what the loop does

    @property
    def wants_to_read(self) -> bool:
        return not (self.has_ended or self._is_stopped or self._pending or time.monotonic() < self._resumes_at)

    @property
    def wants_to_write(self) -> bool:
        return bool(self._pending) and time.monotonic() >= self._resumes_at

    def seconds_to_wait(self, now: float) -> float:
        """Return how long it pauses still."""
        return max(0.0, self._resumes_at - now)

    def read(self) -> None:
        """Read once, and let the plan have its way with it. Raises OSError."""
        try:
            data = self.source.recv(self._slow[0] if self._slow else READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self.has_ended = True
            self.end()
            return
        if not self._discards:
            self._work_on(data)

    def _work_on(self, data: bytes) -> None:
        begin, self.position = self.position, self.position + len(data)
        for mark in self._frames.feed(data):
            self._aim(mark)
        if not self.connection.name and self.direction == "up":
            data, begin = self.connection.hold_back(data), 0
            if self._frames.first is None:
                return
            self.connection.introduce(self._frames.first)
            for fault in [fault for fault in self.faults if isinstance(fault, Aimed)]:
                again = Frames()
                self._aim_one(fault, list(again.feed(data)))
        self._strike(data, begin)
        if self._slow:
            self.pause(self._slow[1])
            if self.position >= self._slow[2]:
                self._slow = None

    def _aim(self, mark: Mark) -> None:
        for fault in [fault for fault in self.faults if isinstance(fault, Aimed)]:
            self._aim_one(fault, [mark])

    def _aim_one(self, fault: Aimed, marks: list[Mark]) -> None:
        for mark in marks:
            if fault.aims_at(mark) and (fault.again or fault not in self.connection.proxy.spent):
                self.connection.proxy.spent.append(fault)
                self.faults.append(_Hit(on=fault.on, at=mark.start + fault.at, bit=fault.bit, of=fault))

    def _strike(self, data: bytes, begin: int) -> None:
        """Send `data`, which was read from byte `begin` on, as far as no fault keeps it from that."""
        end = begin + len(data)
        for fault in sorted(self.faults, key=lambda fault: fault.at):
            if isinstance(fault, Aimed) or fault.at >= end:
                continue
            self.faults.remove(fault)
            before = max(0, fault.at - begin)
            self._send(data[:before])
            data, begin = data[before:], begin + before
            self.connection.note(fault)
            fault.strike(self)
            data = fault.change(data)
            if self._is_stopped or self._discards or self.connection.is_closed:
                return
        self._send(data)

    def _send(self, data: bytes) -> None:
        if self._to_swallow is not None:
            swallowed = min(self._to_swallow, len(data))
            self._to_swallow -= swallowed
            if not self._to_swallow:
                self.connection.cut()
            return
        self._pending += data
        self.write()

    def write(self) -> None:
        """Send what is pending, as far as it goes at once."""
        if not self.wants_to_write:
            return
        try:
            self._pending = self._pending[self.sink.send(self._pending, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            pass
        except OSError:
            self.connection.reset()
        self._finish()

    def _finish(self) -> None:
        if self._ends and not self._pending:
            with contextlib.suppress(OSError):
                self.sink.shutdown(socket.SHUT_WR)

    @property
    def is_over(self) -> bool:
        return self.has_ended and not self._pending


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Hit(Flip):
    """An aimed flip that has found its place."""

    of: Aimed


class Connection:
    """One connection through the proxy. Only the proxy's thread changes it."""

    def __init__(self, proxy: "Proxy", number: int, client: socket.socket, server: socket.socket) -> None:
        self.number = number
        self.name = ""
        """`control` or `data 3`, once its Hello has come."""
        self.nth = 0
        self.is_closed = False
        self.proxy = proxy
        self._hello = b""
        self._sockets = (client, server)
        self.up = Half(self, "up", client, server)
        self.down = Half(self, "down", server, client)
        self.halves = (self.up, self.down)
        self._add_faults(f"#{number}")

    def _add_faults(self, name: str) -> None:
        for half in self.halves:
            half.faults += [
                fault for fault in self.proxy.plan if fault.direction == half.direction and fault.is_on(name, self.nth)
            ]

    def half(self, direction: Direction) -> Half:
        """Return one of its directions."""
        return self.up if direction == "up" else self.down

    def hold_back(self, data: bytes) -> bytes:
        """Keep the first bytes; return all of them so far."""
        self._hello += data
        return self._hello

    def introduce(self, hello: bytes) -> None:
        """Take its Hello, and with its name what is planned for it."""
        message = decode(hello)
        assert isinstance(message, m.Hello)
        name = "control" if message.role is m.Role.CONTROL else f"data {message.connection_id}"
        self.nth = sum(other.name == name for other in self.proxy.connections)
        self._add_faults(name)
        self.name = name

    def note(self, fault: Fault) -> None:
        """Note that a fault struck."""
        self.proxy.struck.append(fault.of if isinstance(fault, _Hit) else fault)

    def cut(self) -> None:
        """End it in order, both ways; what still comes is read and dropped, so that nobody gets a reset."""
        for half in self.halves:
            half.discard()
            half.end()

    def reset(self) -> None:
        """End it at once, both ways."""
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Close both sockets. Idempotent."""
        self.is_closed = True
        for sock in self._sockets:
            sock.close()

    # --- the loop

    def register(self, poll: "select.poll", ready: dict[int, list[Callable[[], None]]]) -> None:
        """Register what it waits for; `ready` gets what to do then."""
        masks: dict[socket.socket, int] = dict.fromkeys(self._sockets, 0)
        for half in self.halves:
            if half.wants_to_read:
                masks[half.source] |= select.POLLIN
                ready.setdefault(half.source.fileno(), []).append(half.read)
            if half.wants_to_write:
                masks[half.sink] |= select.POLLOUT
                ready.setdefault(half.sink.fileno(), []).append(half.write)
        for sock, mask in masks.items():
            if mask:
                poll.register(sock, mask)

    def run(self, act: Callable[[], None]) -> None:
        """Do one of these things."""
        if self.is_closed:
            return
        try:
            act()
        except OSError:
            self.reset()
        if all(half.is_over for half in self.halves):
            self.close()


# --------------------------------------------------------------------------------------------------------------- proxy


class Proxy:
    """Listens on loopback and forwards to `to`, HOST:PORT. Ends with the block, and every connection with it."""

    def __init__(self, to: str, plan: Sequence[Fault] = ()) -> None:
        self.plan = list(plan)
        self.struck: list[Fault] = []
        """What has happened, in order."""
        self.spent: list[Fault] = []
        """Flips that have found their place."""
        self.connections: list[Connection] = []
        """All that were ever let through, in order."""
        self.refused = 0
        """How many were reset at once: those of `refuse`, and those that found nobody behind the proxy."""
        self._to = _split(to)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._refuses = False
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Ends of streams that are here by now are passed on: a sender that has Complete does not wait for the receiver.
        for _turn in range(3):
            if self._thread.is_alive():
                self.do(lambda: None)
        self.close()

    def close(self) -> None:
        """End every connection at once, and the thread. Idempotent."""
        if self._thread.is_alive():
            self._command(None)
            self._thread.join()

    # --- what a test tells it

    def do(self, act: Callable[[], None]) -> None:
        """Have the proxy's thread do something, and wait until it is done."""
        done = threading.Event()

        def run() -> None:
            act()
            done.set()

        self._command(run)
        assert done.wait(HANG), "the proxy does not answer"

    def reset(self, name: str) -> None:
        """Reset the connection of this name that is open; `*`: all of them."""
        self._each(name, Connection.reset)

    def cut(self, name: str) -> None:
        """End the connection of this name in order; `*`: all of them."""
        self._each(name, Connection.cut)

    def hold(self, name: str, direction: Direction) -> None:
        """Let nothing through, in this direction, until `release`, `reset` or `cut`."""
        self._each(name, lambda connection: connection.half(direction).stop())

    def release(self, name: str, direction: Direction) -> None:
        """Take back `hold`."""
        self._each(name, lambda connection: connection.half(direction).go())

    def passed(self, name: str, direction: Direction) -> int:
        """Return how many bytes the connections of this name have passed on, in this direction."""
        return sum(each.half(direction).position for each in self.connections if each.name == name)

    def refuse(self, refuses: bool = True) -> None:
        """Reset new connections from now on, or accept them again."""

        def act() -> None:
            self._refuses = refuses

        self.do(act)

    def redirect(self, to: str) -> None:
        """Forward new connections to another address."""
        self._to = _split(to)

    def _each(self, name: str, act: Callable[[Connection], None]) -> None:
        def run() -> None:
            for connection in self.connections:
                if not connection.is_closed and name in (connection.name, "*"):
                    act(connection)

        self.do(run)

    def wait_until(self, holds: Callable[[], object], what: str, seconds: float = HANG) -> None:
        """Wait until something holds of the proxy."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"{what}: not within {seconds} s; struck: {self.struck}"
            time.sleep(0.01)

    def _command(self, act: Callable[[], None] | None) -> None:
        self._commands.put(act)
        with contextlib.suppress(OSError):  # closed: the thread was awake, and obeyed the command to end already
            self._wake_writer.send(b"\0")

    # --- the thread

    def _run(self) -> None:
        try:
            while self._obey():
                self._wait_and_act()
        finally:
            for connection in self.connections:
                connection.reset()
            for sock in (self._listener, self._wake_reader, self._wake_writer):
                sock.close()

    def _obey(self) -> bool:
        while not self._commands.empty():
            act = self._commands.get()
            if act is None:
                return False
            act()
        return True

    def _wait_and_act(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake_reader, select.POLLIN)
        acts: list[tuple[Connection, dict[int, list[Callable[[], None]]]]] = []
        now, wait = time.monotonic(), POLL_SECONDS
        for connection in self.connections:
            if connection.is_closed:
                continue
            ready: dict[int, list[Callable[[], None]]] = {}
            connection.register(poll, ready)
            acts.append((connection, ready))
            wait = min([wait, *(left for half in connection.halves if (left := half.seconds_to_wait(now)) > 0)])
        descriptors = {fd for fd, _ in poll.poll(wait * 1000)}
        for connection, ready in acts:
            for fd in descriptors & ready.keys():
                for act in ready[fd]:
                    connection.run(act)
        if self._wake_reader.fileno() in descriptors:
            self._wake_reader.recv(4096)
        if self._listener.fileno() in descriptors:
            self._accept()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        server = None
        try:
            if self._refuses:
                raise ConnectionRefusedError
            server = socket.create_connection(self._to, HANG)
        except OSError:
            self.refused += 1
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            return
        for sock in (client, server):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connections.append(Connection(self, len(self.connections), client, server))


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
