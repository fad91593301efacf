"""Connected sockets: whole buffers in and out, deadlines, an end in order. The only module of `wire` with sockets.

Sockets block in the kernel, for a second at a time (SO_RCVTIMEO, SO_SNDTIMEO): no poll before each call. Every second
without movement calls `patience`, which raises to give up. Another thread ends a blocked one by `shut()`. Every OSError
of a socket becomes ConnectionLost here, with the peer's address and what to look at.
"""

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from filestreamer.wire import limits
from filestreamer.wire.errors import ConnectionClosed, ConnectionLost, FilestreamerError
from filestreamer.wire.framing import check_body, frame, parse_header
from filestreamer.wire.messages import Message
from filestreamer.wire.sockets import memory

TICK_SECONDS: Final = 1.0
"""How long one system call blocks before `patience` is asked."""

_TIMEVAL = struct.pack("ll", int(TICK_SECONDS), int((TICK_SECONDS % 1) * 1_000_000))
_INT_MAX = 2**31 - 1
_SIOCOUTQ, _SIOCOUTQNSD = 0x5411, 0x894B
_AHEAD_BYTES = 4 * limits.KIB
"""What may be read behind a block: digests, the next header, and little of its payload."""
_FRAME_AREA = limits.FRAME_HEADER_BYTES + limits.FRAME_BYTES
_PAGE_BYTES = 4 * limits.KIB

SockAddress = tuple[str, int] | tuple[str, int, int, int]


class Patience(Protocol):
    """Called after every second in which a socket did not move; raises to give up."""

    def __call__(self) -> None: ...


class Deadline:
    """Patience that ends at a moment. Raises ConnectionLost then.

    A read asks it after every system call, not only after a second without movement: who dribbles moves for ever.
    """

    def __init__(self, seconds: float, what: str) -> None:
        self.at = time.monotonic() + seconds
        self._what = what

    def __call__(self) -> None:
        if time.monotonic() >= self.at:
            raise ConnectionLost(f"{self._what} took too long")


class Channel:
    """One connected socket with a receive buffer. One thread reads and one writes; any thread may `shut` it.

    `heard_at` is the monotonic time of the last byte from the peer. `on_dry` is called before a read that has to wait
    for the network: the moment to send what is pending. Bytes that `take` returns are a view of the buffer and stay
    valid until the next read. The constructor raises ConnectionLost where the peer has reset the connection already.
    """

    def __init__(self, sock: socket.socket, patience: Patience, *, payload_bytes: int = 0) -> None:
        """Take a connected socket; its buffer has room for a frame, and for as much payload as is said.

        It is in huge pages where there is room for a block, and goes back to the system when the channel is closed.
        """
        self.socket = sock
        self.patience = patience
        self.on_dry: Callable[[], None] = _nothing
        try:
            self.peer = format_address(sock.getpeername())
        except OSError as error:
            raise ConnectionLost(f"a connection was reset as soon as it was made: {error.strerror}") from None
        self.heard_at = time.monotonic()
        size = payload_bytes + _FRAME_AREA
        self._buffer = memory.mapped(size, huge=payload_bytes >= limits.BLOCK_BYTES)
        self._block_bytes = min(limits.BLOCK_BYTES, payload_bytes) or limits.BLOCK_BYTES
        self._start = 0
        self._end = 0

    # --- reading

    @property
    def buffered_bytes(self) -> int:
        """Bytes that have come and were not taken yet."""
        return self._end - self._start

    def take(self, count: int) -> memoryview:
        """Return the next `count` bytes (at most what the buffer has room for), having waited for them.

        Raises ConnectionLost where the stream ends first, and whatever `patience` raises.
        """
        if self._end - self._start < count:
            self._fill(count)
        start = self._start
        self._start = start + count
        return self._buffer[start : self._start]

    def payload(self, count: int) -> Iterator[memoryview]:
        """Yield the next `count` bytes as they come, in whole pages but for the last of them.

        A block has at least BLOCK_BYTES (a small buffer: what it has room for), and all that is here and fits into the
        buffer: who takes long over one finds the next one larger. Little is read beyond a block, as the next one would
        have to be moved for it; with the last bytes, fewer than a block, all that is here comes along: a read for each
        small chunk costs more than to move it.
        """
        while count:
            least = min(count, self._block_bytes)
            if self._end - self._start < least:
                self._fill(least, count - least + _AHEAD_BYTES if count >= self._block_bytes else None)
            size = min(count, self._end - self._start)
            if size < count:
                size -= size % _PAGE_BYTES
            yield self.take(size)
            count -= size

    def read_body(self, limit: int = limits.FRAME_BYTES) -> bytes:
        """Read one frame's body, its checksum checked. Raises ConnectionLost, RemoteProtocolError."""
        length, expected = parse_header(self.take(limits.FRAME_HEADER_BYTES), limit)
        if self._end - self._start < length:
            self._fill(length, deadline=Deadline(limits.DEAD_SECONDS, f"{self.peer}: the rest of a frame"))
        body = bytes(self.take(length))
        check_body(body, expected)
        return body

    def poll_body(self, limit: int = limits.FRAME_BYTES) -> bytes | None:
        """Return one frame's body if it is here already, without waiting; None if it is not.

        Raises ConnectionLost where the stream has ended, RemoteProtocolError.
        """
        while True:
            available = self._end - self._start
            wanted = limits.FRAME_HEADER_BYTES
            if available >= wanted:
                header = self._buffer[self._start : self._start + wanted]
                wanted += parse_header(header, limit)[0]
            if available >= wanted:
                return self.read_body(limit)
            self._make_room(wanted)
            if not self._receive(wait=False):
                return None

    def _fill(self, count: int, ahead: int | None = None, deadline: Deadline | None = None) -> None:
        """Wait until `count` bytes are in the buffer, and not beyond the deadline: who dribbles moves for ever.

        `ahead` bounds how much of what follows may be read with them; None is as much as there is room for.
        """
        self._make_room(count)
        self.on_dry()
        while True:
            moved = self._receive(room=None if ahead is None else count + ahead - (self._end - self._start))
            if self._end - self._start >= count:
                return
            if not moved or isinstance(self.patience, Deadline):
                self.patience()
            if deadline is not None:
                deadline()

    def _make_room(self, count: int) -> None:
        """Move what is left to the front where it is little, or `count` bytes would not fit where it is."""
        left = self._end - self._start
        if not self._start or (left > _PAGE_BYTES and self._start + count <= len(self._buffer)):
            return
        self._buffer[:left] = self._buffer[self._start : self._end]
        self._start, self._end = 0, left

    def _receive(self, *, wait: bool = True, room: int | None = None) -> bool:
        """Receive once, into the room there is, or `room` bytes of it; False where nothing came within the time.

        Raises ConnectionLost, ConnectionClosed.
        """
        if self._start == self._end:
            self._start = self._end = 0
        view = self._buffer[self._end :] if room is None else self._buffer[self._end : self._end + room]
        try:
            count = self._receive_some(view, wait)
        except OSError as error:
            raise self._lost(error) from None
        if count is None:
            return False
        if not count:
            raise ConnectionClosed(f"{self.peer} closed the connection")
        self._end += count
        self.heard_at = time.monotonic()
        return True

    def _receive_some(self, view: memoryview, wait: bool) -> int | None:
        """Receive into `view`; 0 at the end of the stream, None where nothing came. Raises OSError."""
        try:
            return self.socket.recv_into(view, 0, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None

    # --- writing

    def send(self, data: bytes | bytearray | memoryview, *, more: bool = False) -> None:
        """Send all of `data`; `more` says that the rest of a unit follows at once. Raises ConnectionLost."""
        view = memoryview(data)
        while view:
            try:
                sent = self._send_some(view, more)
            except OSError as error:
                raise self._lost(error) from None
            if sent is None:
                self.patience()
            else:
                view = view[sent:]

    def _send_some(self, view: memoryview, more: bool) -> int | None:
        """Send from `view`; None where nothing could be sent. Raises OSError."""
        try:
            return self.socket.send(view, socket.MSG_NOSIGNAL | (socket.MSG_MORE if more else 0))
        except BlockingIOError:
            return None

    def send_message(self, message: Message) -> None:
        """Send one frame."""
        self.send(frame(message))

    def unacknowledged_bytes(self) -> int:
        """Bytes that the kernel holds for the peer, sent or not (SIOCOUTQ): they shrink while the peer is alive."""
        return self._queue_bytes(_SIOCOUTQ)

    def is_window_bound(self) -> bool:
        """Whether bytes are under way and none of them waits here (SIOCOUTQNSD): the path could carry more."""
        return self._queue_bytes(_SIOCOUTQNSD) == 0 < self._queue_bytes(_SIOCOUTQ)

    def _queue_bytes(self, request: int) -> int:
        import fcntl

        try:
            return int(struct.unpack("i", fcntl.ioctl(self.socket, request, b"\0\0\0\0"))[0])
        except (OSError, ValueError):  # ValueError: its owner has closed it
            return 0

    # --- ending

    def shut(self) -> None:
        """End both directions now, from any thread: whoever is blocked on it wakes. Idempotent."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)

    def finish_writing(self) -> None:
        """Say that nothing follows (SHUT_WR); the peer's end of stream then ends the reader. Never raises."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.socket, socket.SHUT_WR)

    def close(self) -> None:
        """Release the socket and the buffer; only its owner may. Idempotent."""
        self.socket.close()
        self._buffer = memoryview(bytearray())
        self._start = self._end = 0

    def close_in_order(self, seconds: float = limits.CLOSING_SECONDS) -> None:
        """Say that nothing follows, read to the peer's end for at most so many seconds, close. Never raises."""
        try:
            socket.socket.shutdown(self.socket, socket.SHUT_WR)
            self.patience = Deadline(seconds, "closing")
            self.on_dry = _nothing
            while True:
                self._start = self._end = 0
                self._receive()
                self.patience()
        except (OSError, FilestreamerError):
            pass
        finally:
            self.close()

    def _lost(self, error: OSError) -> FilestreamerError:
        return ConnectionLost(f"{self.peer}: {error.strerror or error}")


def _nothing() -> None:
    pass


# --- addresses ---------------------------------------------------------------------------------------------------


def format_address(address: tuple[object, ...]) -> str:
    """Write a socket address as HOST:PORT, with brackets around IPv6."""
    host, port = str(address[0]), address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def resolve(host: str, port: int, *, passive: bool = False) -> list[tuple[int, SockAddress]]:
    """Look a name up, each time anew; (family, address) of every address of it, in the resolver's order.

    Raises ConnectionLost, which is retryable: in a container network a name may come later than its user.
    """
    flags = socket.AI_PASSIVE if passive else 0
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
    except OSError as error:
        raise ConnectionLost(f"{host} does not resolve: {error.strerror}") from None
    except UnicodeError:
        raise ConnectionLost(f"{host} is not a host name") from None
    unique = dict.fromkeys((int(family), sockaddr) for family, _, _, _, sockaddr in found)
    return [(family, sockaddr) for family, sockaddr in unique if family in (socket.AF_INET, socket.AF_INET6)]  # type: ignore[misc]


def connect(
    addresses: list[tuple[int, SockAddress]],
    timeout_seconds: float,
    on_socket: Callable[[socket.socket], None] | None = None,
) -> socket.socket:
    """Connect to the first address that answers, giving each at most `timeout_seconds`.

    `on_socket` is told of each socket before it connects, so that another thread can shut it. Raises ConnectionLost,
    which says what each address answered.
    """
    failures = []
    for family, address in addresses:
        try:
            return _connect(family, address, timeout_seconds, on_socket)
        except OSError as error:
            failures.append(f"{format_address(address)}: {error.strerror or 'no answer'}")
    raise ConnectionLost("; ".join(failures) or "the name has no address")


def _connect(
    family: int, address: SockAddress, timeout_seconds: float, on_socket: Callable[[socket.socket], None] | None
) -> socket.socket:
    """Connect to one address; the socket is closed where that fails. Raises OSError, and what `on_socket` raises."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if on_socket:
            on_socket(sock)
        sock.settimeout(timeout_seconds)
        sock.connect(address)
        if sock.getsockname() == sock.getpeername():  # who retries a free port often enough meets himself there
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    except BaseException:
        sock.close()
        raise
    return sock


def prepare(sock: socket.socket, dead_seconds: float) -> socket.socket:
    """Make a connected socket block for a tick at a time, send at once, and notice a dead peer; return it.

    TCP_USER_TIMEOUT is `dead_seconds`: never below the time after which a peer counts as dead, as a closed window is
    not death. The most that the kernel takes is 24 days.
    """
    sock.setblocking(True)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(min(dead_seconds * 1000, _INT_MAX)))
    if sock.getpeername()[0] == sock.getsockname()[0]:
        _do_not_pace(sock)
    return sock


def _do_not_pace(sock: socket.socket) -> None:
    """Use the congestion control that every kernel has: nothing congests the way through a machine's own memory.

    BBR, where it is the default, hands bytes out by a timer. That costs a tenth of all CPU time of a transfer.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


def listen(host: str, port: int, backlog: int = 512) -> list[socket.socket]:
    """Listen on every address of `host`; port 0 takes one free port for all of them. `[::]` takes IPv4, too.

    An address that this machine does not have is left out where the name has others: `localhost` often names ::1 where
    there is no IPv6. There, `[::]` is every address of IPv4: the images listen on it, on whatever kernel. Raises
    ConnectionLost where the name does not resolve, OSError where an address can't be bound.
    """
    addresses = resolve(host, port, passive=True)
    listeners: list[socket.socket] = []
    absent: OSError | None = None
    for family, address in addresses:
        try:
            listeners.append(_listen(family, (address[0], port, *address[2:]), backlog, alone=len(addresses) == 1))
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                absent = error
                continue
            for sock in listeners:
                sock.close()
            raise
        port = listeners[-1].getsockname()[1]
    if absent and not listeners:
        if host == "::" and absent.errno == errno.EAFNOSUPPORT:
            return listen("0.0.0.0", port, backlog)
        raise absent
    return listeners


def _listen(family: int, address: tuple[object, ...], backlog: int, *, alone: bool) -> socket.socket:
    """Listen on one address. `::` takes IPv4 only where it is alone: beside 0.0.0.0 the two would collide."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::" or not alone))
        sock.bind(address)
        sock.listen(backlog)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock
