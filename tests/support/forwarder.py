"""A TCP forwarder between the real services, whichever of them dials, whose connections a test can cut.

    with Forwarder(address) as forwarder:
        receiver = pair.start("receiver", "--connect", forwarder.address, ...)
        forwarder.cut()

It knows nothing of the protocol; `tests.support.proxy` does, where the sender dials.
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Self

from tests.support.services import HANG

_RESET = struct.pack("ii", 1, 0)


class Forwarder:
    """Forwards every connection to one address."""

    def __init__(self, to: str) -> None:
        host, _, port = to.rpartition(":")
        self._to = host.strip("[]"), int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._mutex = threading.Lock()  # protects the fields below
        self._open: set[tuple[socket.socket, socket.socket]] = set()
        self._threads: list[threading.Thread] = []
        self.carried_bytes = 0
        """Bytes so far, both directions."""
        self._has_ended = False
        self._start(self._accept)

    def _start(self, run: Callable[..., None], *args: object) -> threading.Thread:
        thread = threading.Thread(target=run, args=args, daemon=True)
        thread.start()
        self._threads.append(thread)
        return thread

    def cut(self) -> int:
        """Reset all connections; return how many there were."""
        with self._mutex:
            pairs = list(self._open)
            for pair in pairs:
                _reset(*pair)
        return len(pairs)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._start(self._carry, client)

    def _carry(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._to)
        except OSError:
            client.close()
            return
        with client, server:
            with self._mutex:
                self._open.add((client, server))
                if self._has_ended:  # while it was connected
                    _reset(client, server)
            back = self._start(self._pump, server, client)
            self._pump(client, server)
            back.join()
            with self._mutex:
                self._open.remove((client, server))

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while some := source.recv(65536):
                with self._mutex:
                    self.carried_bytes += len(some)
                sink.sendall(some)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            _reset(source, sink)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._mutex:
            self._has_ended = True
        self.cut()
        for thread in self._threads:
            thread.join(HANG)


def _reset(*sockets: socket.socket) -> None:
    """Have these connections reset when they are closed, and the threads that use them end."""
    for sock in sockets:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.shutdown(socket.SHUT_RDWR)
