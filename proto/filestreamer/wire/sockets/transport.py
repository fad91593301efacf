"""A connected socket as a `Channel`: whole frames and payload in and out, with a limit for each wait.

A socket blocks in the kernel for a second at a time (SO_RCVTIMEO, SO_SNDTIMEO), so that no call needs a poll before it.
After each second without movement the channel calls `patience`, which raises to give up. `shut` makes a blocked call of
another thread return. Every OSError of the socket becomes ConnectionLost with the peer's address.
"""

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from filestreamer.wire import framing, limits
from filestreamer.wire.errors import ConnectionClosed, ConnectionLost, FilestreamerError
from filestreamer.wire.messages import Message
from filestreamer.wire.sockets import memory
from filestreamer.wire.sockets.addresses import format_address

TICK_SECONDS: Final = 1.0
"""How long one system call blocks before `patience` is called."""

USER_TIMEOUT_SECONDS: Final = 2 * limits.DEAD_SECONDS
"""After how long the kernel ends a connection that the peer's kernel takes nothing from, or that is idle and has no
peer any more. How long the user wants to wait for progress makes no difference: a dead connection is opened anew long
before that."""

CLOSING_BYTES: Final = 16 * limits.MIB
"""How much is read before a connection is closed at once: more than the kernel holds unread, and not all that a peer
sends who never stops."""

_TIMEVAL = struct.pack("ll", int(TICK_SECONDS), int((TICK_SECONDS % 1) * 1_000_000))
_INT_MAX = 2**31 - 1
SIOCOUTQ: Final = 0x5411
"""Asks the kernel how many bytes it holds for the peer, sent or not (Linux)."""
_SIOCOUTQNSD = 0x894B
_AHEAD_BYTES = 4 * limits.KIB
"""How much may be read behind a block of payload: enough for digests and the next chunk header."""
_FRAME_AREA_BYTES = limits.FRAME_HEADER_BYTES + limits.FRAME_BYTES
_PAGE_BYTES = 4 * limits.KIB


class Patience(Protocol):
    """Called after every second in which a socket did not move; raises to give up."""

    def __call__(self) -> None: ...


class Deadline:
    """Patience until a fixed moment; raises ConnectionLost after it.

    While this is a channel's patience, a read calls it after every system call, and not only after a second without
    movement: otherwise a peer that sends one byte a second could go on for ever.
    """

    def __init__(self, seconds: float, what: str) -> None:
        self.at = time.monotonic() + seconds
        self._what = what

    def __call__(self) -> None:
        if time.monotonic() >= self.at:
            raise ConnectionLost(f"{self._what} took too long")


class Channel:
    """One connected socket with a receive buffer. One thread reads and one writes; any thread may call `shut`.

    `heard_at` is the monotonic time of the last byte from the peer. `on_dry` is called before a read that has to wait
    for the network: the moment to send what is pending. What `take` and `payload` return are views of the buffer, valid
    until the next read.
    """

    def __init__(self, sock: socket.socket, patience: Patience, *, payload_bytes: int = 0) -> None:
        """Take over a connected socket; the receive buffer has room for one frame and `payload_bytes`.

        The buffer goes back to the system when the channel is closed. Raises ConnectionLost where the peer has reset
        the connection already.
        """
        self.socket = sock
        self.patience = patience
        self.on_dry: Callable[[], None] = _nothing
        self.pace: Callable[[int], None] | None = None
        """Called before each read with the number of bytes that were read since the last call: it waits for as long as
        a rate limit says. The peer is then slow, as its window is closed."""
        self.read_bytes: int | None = None
        """The most that is read at once; None: whatever is there."""
        self._unpaced_bytes = 0
        try:
            self.peer = format_address(sock.getpeername())
        except OSError as error:
            raise ConnectionLost(f"the peer reset the connection as soon as it was made: {error.strerror}") from None
        self.heard_at = time.monotonic()
        # A buffer that is too small for a block is not worth a huge page, which takes 2 MiB.
        self._buffer = memory.mapped(payload_bytes + _FRAME_AREA_BYTES, huge=payload_bytes >= limits.BLOCK_BYTES)
        self.block_bytes = min(limits.BLOCK_BYTES, payload_bytes) or limits.BLOCK_BYTES
        """The unit of I/O: so much payload at a time, and a frame, `take` has room for."""
        # The bytes _buffer[_start:_end] were received and not taken yet.
        self._start = 0
        self._end = 0

    # --- reading

    @property
    def buffered_bytes(self) -> int:
        """Bytes that were received and not taken yet."""
        return self._end - self._start

    def take(self, count: int) -> memoryview:
        """Wait for the next `count` bytes, at most the size of the buffer, and return them.

        Raises ConnectionLost where the stream ends first, and whatever `patience` raises.
        """
        if self._end - self._start < count:
            self._fill(count)
        start = self._start
        self._start = start + count
        return self._buffer[start : self._start]

    def payload(self, count: int) -> Iterator[memoryview]:
        """Yield the next `count` bytes in blocks as they come; every block but the last is whole pages.

        A block has at least BLOCK_BYTES, or what a smaller buffer has room for. Raises as `take` does.
        """
        while count:
            least = min(count, self.block_bytes)
            if self._end - self._start < least:
                # In the middle of a chunk, little is read beyond the block, as the rest would have to be moved to the
                # front of the buffer for the next read. With the last bytes of a chunk, everything is read that is
                # there: of small chunks, moving some costs less than one more system call for each.
                self._fill(least, count - least + _AHEAD_BYTES if count >= self.block_bytes else None)
            # All that is here is one block: a caller that is slower than the network gets larger ones.
            size = min(count, self._end - self._start)
            if size < count:
                size -= size % _PAGE_BYTES
            yield self.take(size)
            count -= size

    def read_body(self, limit: int = limits.FRAME_BYTES) -> bytes:
        """Read one frame; return its body, whose checksum is right. Raises ConnectionLost, RemoteProtocolError."""
        if self._end - self._start < limits.FRAME_HEADER_BYTES:
            self._fill(limits.FRAME_HEADER_BYTES)
        return framing.read_body(self._take_in_time, limit)

    def _take_in_time(self, count: int) -> memoryview:
        """Take part of a frame that has begun. Its end must come within DEAD_SECONDS, however patient the caller is."""
        if self._end - self._start < count:
            self._fill(count, deadline=Deadline(limits.DEAD_SECONDS, f"{self.peer}: the rest of a frame"))
        start = self._start
        self._start = start + count
        return self._buffer[start : self._start]

    def poll_body(self, limit: int = limits.FRAME_BYTES) -> bytes | None:
        """Return the body of the next frame where all of it is here, without waiting; None where it is not.

        Raises ConnectionLost where the stream has ended, RemoteProtocolError.
        """
        while True:
            available = self._end - self._start
            wanted = limits.FRAME_HEADER_BYTES
            if available >= wanted:
                header = self._buffer[self._start : self._start + wanted]
                wanted += framing.parse_header(header, limit)[0]
            if available >= wanted:
                return self.read_body(limit)
            self._make_room(wanted)
            if not self._receive(wait=False):
                return None

    def _fill(self, count: int, ahead: int | None = None, deadline: Deadline | None = None) -> None:
        """Wait until `count` bytes are in the buffer.

        At most `ahead` bytes of what follows are read with them; None: as many as there is room for. `deadline` is
        checked after every system call, in addition to `patience`.
        """
        self._make_room(count)
        self.on_dry()
        while True:
            # The rest of a frame has a deadline, which must not be spent here: it is paid for with the next read.
            if self.pace is not None and deadline is None:
                unpaced_bytes, self._unpaced_bytes = self._unpaced_bytes, 0
                self.pace(unpaced_bytes)
            moved = self._receive(room=None if ahead is None else count + ahead - (self._end - self._start))
            if self._end - self._start >= count:
                return
            if not moved or isinstance(self.patience, Deadline):
                self.patience()
            if deadline is not None:
                deadline()

    def _make_room(self, count: int) -> None:
        """Make room for `count` bytes from `_start`, by moving the bytes that are left to the front of the buffer."""
        left = self._end - self._start
        # Up to a page is moved even where there is room: that is cheap, and leaves the most room for what follows.
        if not self._start or (left > _PAGE_BYTES and self._start + count <= len(self._buffer)):
            return
        self._buffer[:left] = self._buffer[self._start : self._end]
        self._start, self._end = 0, left

    def _receive(self, *, wait: bool = True, room: int | None = None) -> bool:
        """Receive once, at most `room` bytes; return False where nothing came within a tick.

        Raises ConnectionLost, ConnectionClosed.
        """
        if self._start == self._end:
            self._start = self._end = 0
        if self.read_bytes is not None:
            room = self.read_bytes if room is None else min(room, self.read_bytes)
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
        self._unpaced_bytes += count
        self.heard_at = time.monotonic()
        return True

    def _receive_some(self, view: memoryview, wait: bool) -> int | None:
        """Receive into `view`; return 0 at the end of the stream, None where nothing came. Raises OSError."""
        try:
            return self.socket.recv_into(view, 0, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None

    # --- writing

    def send(self, data: bytes | bytearray | memoryview, *, more: bool = False) -> None:
        """Send all of `data`. Raises ConnectionLost, and whatever `patience` raises.

        `more` says that further data follows at once, so that the kernel need not send a short packet now (MSG_MORE).
        """
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
        """Send from `view`; return how many bytes, None where none could be sent within a tick. Raises OSError."""
        try:
            return self.socket.send(view, socket.MSG_NOSIGNAL | (socket.MSG_MORE if more else 0))
        except BlockingIOError:
            return None

    def send_message(self, message: Message) -> None:
        """Send a message as one frame. Raises LocalProtocolError, and what `send` raises."""
        self.send(framing.frame(message))

    def unacknowledged_bytes(self) -> int:
        """Read how many bytes the kernel holds for the peer, sent or not (SIOCOUTQ); 0 after `close`.

        The number shrinks as long as the peer's kernel acknowledges bytes.
        """
        return self._queue_bytes(SIOCOUTQ)

    def tolerate_closed_window(self) -> None:
        """Have the kernel keep the connection however long the peer's window is closed, if the peer's kernel answers.

        The caller has to notice a dead peer while bytes are unacknowledged.
        """
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)

    def is_window_bound(self) -> bool:
        """Whether bytes are unacknowledged and none is unsent (SIOCOUTQNSD): then the path could carry more."""
        return self._queue_bytes(_SIOCOUTQNSD) == 0 < self._queue_bytes(SIOCOUTQ)

    def _queue_bytes(self, request: int) -> int:
        import fcntl

        try:
            return int(struct.unpack("i", fcntl.ioctl(self.socket, request, b"\0\0\0\0"))[0])
        except (OSError, ValueError):  # ValueError: the socket is closed
            return 0

    # --- closing

    def shut(self) -> None:
        """Shut both directions now, from any thread; a blocked call of another thread returns. Idempotent."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def finish_writing(self) -> None:
        """Tell the peer that nothing follows (SHUT_WR); reading goes on. Never raises."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket and release the buffer; only the thread that owns the channel may. Idempotent."""
        self.socket.close()
        self._buffer = memoryview(bytearray())
        self._start = self._end = 0

    def close_at_once(self) -> None:
        """Tell the peer that nothing follows, and close: it has said all that counts. Never raises."""
        self.finish_writing()
        self._start = self._end = 0
        left = CLOSING_BYTES
        with contextlib.suppress(FilestreamerError):
            # Bytes that are unread at the close would reset the connection.
            while left > 0 and self._receive(wait=False):
                left -= self._end
                self._start = self._end = 0
        self.close()

    def close_in_order(self, seconds: float | None = None) -> None:
        """Tell the peer that nothing follows, read up to its end of stream, close. Never raises.

        It reads for at most `seconds`; None: CLOSING_SECONDS. Without the reading, bytes that arrive after `close`
        would make the kernel reset the connection, and a reset can overtake what was sent last.
        """
        try:
            self.socket.shutdown(socket.SHUT_WR)
            self.patience = Deadline(limits.CLOSING_SECONDS if seconds is None else seconds, "closing")
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


def prepare(sock: socket.socket, dead_seconds: float) -> socket.socket:
    """Set the options of a connected socket: block for a tick, send at once, notice a dead peer; return the socket.

    `dead_seconds` becomes TCP_USER_TIMEOUT, usually USER_TIMEOUT_SECONDS. It must not be below DEAD_SECONDS.
    """
    sock.setblocking(True)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL)
    if sock.family == socket.AF_UNIX:
        return sock  # its other end is a program of this machine, and no network is between
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    # The kernel takes milliseconds as an int: 24 days at most.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(min(dead_seconds * 1000, _INT_MAX)))
    if sock.getpeername()[0] == sock.getsockname()[0]:
        # Both ends are on this machine, where nothing is congested. BBR, where it is the default, paces with a timer,
        # which takes a tenth of all CPU time of a transfer. Reno does not, and every kernel has it.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    return sock
