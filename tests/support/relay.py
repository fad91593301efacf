"""A relay between the real services that reads what it carries, as who sits on the way can.

    with Relay(receiver_address) as relay:
        sender = pair.sender(file, relay.address)
    assert token not in relay.heard

With TLS contexts it is a man in the middle: it ends the sender's TLS with a certificate of its own, and begins another
one to the receiver. It misbehaves in no other way; `tests.support.proxy` is for that.
"""

import contextlib
import itertools
import socket
import ssl
import struct
import threading
import time
from collections.abc import Mapping
from typing import Self

from filestreamer.wire import limits
from tests.support.services import HANG

READ_BYTES = 64 * 1024
KEPT_BYTES = 4 << 20
"""How much of a direction is remembered."""


def _frames(said: bytes | bytearray) -> int:
    """Count the whole frames at the beginning, of which an opening has two each way; 2 is as far as it counts."""
    at = 0
    for seen in range(2):
        if len(said) < at + limits.FRAME_HEADER_BYTES:
            return seen
        at += limits.FRAME_HEADER_BYTES + int.from_bytes(said[at : at + 4], "big")
        if len(said) < at:
            return seen
    return 2


class Carried:
    """One connection: what each side said, from its first byte on."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.up = bytearray()
        """From the sender to the receiver."""
        self.down = bytearray()
        """Back."""

    def reset(self) -> None:
        """End both sides with a reset, as a firewall does."""
        for sock in (self.client, self.server):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close both sides. Idempotent."""
        self.client.close()
        self.server.close()


class Relay:
    """Carries connections to `to`, and remembers their bytes; `as_server` and `as_client` speak TLS on either side.

    `delay_seconds` is how long anything takes in either direction, as on a long way. `flips` are connections, by the
    order in which they come, each with the number of a byte that who was dialled says: one bit of it is changed, and
    nobody is told.
    """

    def __init__(
        self,
        to: str,
        *,
        as_server: ssl.SSLContext | None = None,
        as_client: ssl.SSLContext | None = None,
        delay_seconds: float = 0.0,
        flips: Mapping[int, int] = {},
    ) -> None:
        host, _, port = to.rpartition(":")
        self._to = (host, int(port))
        self._as_server = as_server
        self._as_client = as_client
        self._delay_seconds = delay_seconds
        self._flips = flips
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()  # protects the two fields below
        self._carried: dict[int, Carried] = {}  # by the order in which they came
        self._threads: list[threading.Thread] = []
        self._ended = False

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self.carried:
            each.reset()
        while True:
            with self._lock:
                if not self._threads:
                    break
                thread = self._threads.pop()
            thread.join(HANG)
        for each in self.carried:
            each.close()

    @property
    def carried(self) -> list[Carried]:
        """The connections so far, in the order in which they came."""
        with self._lock:
            return [self._carried[number] for number in sorted(self._carried)]

    def openings(self, count: int, seconds: float = HANG, *, said: int = 2) -> list[bytes]:
        """Wait until `count` connections are let in, and the sender `said` so many frames on each; return these."""
        deadline = time.monotonic() + seconds
        while True:
            carried = self.carried
            if len(carried) >= count and all(_frames(each.up) >= said and _frames(each.down) >= 2 for each in carried):
                return [bytes(each.up) for each in carried]
            if time.monotonic() > deadline:
                raise AssertionError(f"{len(carried)} connections, not all of them open: {count} were expected")
            time.sleep(0.005)

    @property
    def heard(self) -> bytes:
        """Everything that was said over all connections, both ways (the first KEPT_BYTES of each)."""
        return b"".join(bytes(each.up) + b"|" + bytes(each.down) + b"|" for each in self.carried)

    def _start(self, body: object, *args: object) -> None:
        thread = threading.Thread(target=body, args=args, name="relay", daemon=True)  # type: ignore[arg-type]
        with self._lock:  # started in it: the end of the block joins what it finds
            thread.start()
            self._threads.append(thread)

    def _accept(self) -> None:
        for number in itertools.count():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._carry, client, number)

    def _carry(self, client: socket.socket, number: int) -> None:
        """Connect onwards, do both handshakes, then copy both ways."""
        server: socket.socket | None = None
        try:
            client.settimeout(HANG)
            if self._as_server is not None:
                client = self._as_server.wrap_socket(client, server_side=True)
            server = socket.create_connection(self._to, HANG)
            if self._as_client is not None:
                server = self._as_client.wrap_socket(server, server_hostname=self._to[0])
        except OSError:
            client.close()
            if server is not None:
                server.close()
            return
        carried = Carried(client, server)
        with self._lock:
            self._carried[number] = carried
        if self._ended:  # while it was connected: who ends the block has not seen it
            carried.reset()
        self._start(self._copy, client, server, carried.up)
        self._copy(server, client, carried.down, self._flips.get(number))

    def _copy(self, source: socket.socket, target: socket.socket, kept: bytearray, flip: int | None = None) -> None:
        """Copy one direction to its end, and end the other side's direction with it; `flip` is a byte to be changed."""
        with contextlib.suppress(OSError):
            while some := source.recv(READ_BYTES):
                if flip is not None and 0 <= (at := flip - len(kept)) < len(some):
                    some = some[:at] + bytes([some[at] ^ 1]) + some[at + 1 :]
                kept += some[: max(0, KEPT_BYTES - len(kept))]
                time.sleep(self._delay_seconds)
                target.sendall(some)
        with contextlib.suppress(OSError):
            socket.socket.shutdown(target, socket.SHUT_WR)
