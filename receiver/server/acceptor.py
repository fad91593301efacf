"""Accepts connections, and takes them through their opening: one thread, one selector, nothing ever blocks.

A stranger costs one `Handshake` for OPENING_SILENCE_SECONDS, or OPENING_SECONDS if it says something now and then. When
all places are taken, a new connection evicts a handshake of the address that has most of them, the oldest one without a
whole Hello: so a thousand silent connections keep no sender out, however long its path. A connection whose
peer has said Hello, and proved the token if one is required, goes on in a thread of its transfer.
"""

import contextlib
import errno
import resource
import selectors
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

from filestreamer.telemetry.monitor import Monitor
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, ConnectionLost, RemoteProtocolError
from filestreamer.wire.opening import ReceiverOpening, random_id
from receiver.server.handshake import Handshake

HANDSHAKES: Final = 512
"""Connections that may be in their opening at once, where there is memory for them."""
HANDSHAKES_MIN: Final = 16
HANDSHAKE_BYTES: Final = 192 * limits.KIB
"""The memory of a connection in its opening: a socket whose buffer is full, and half a TLS handshake."""
HANDSHAKES_SHARE: Final = 8
"""Openings get one part in so many of the memory for peers."""
SPARE_DESCRIPTORS: Final = 16
"""Descriptors that connections in their opening leave for the transfers that are under way."""
PAUSE_SECONDS: Final = 0.05
"""How long to pause if no descriptor is free: the port stays readable, and the loop must not spin."""


def count_handshakes(peers_bytes: int) -> int:
    """Return how many connections may be in their opening, given the memory for all peers."""
    return min(HANDSHAKES, max(HANDSHAKES_MIN, peers_bytes // HANDSHAKES_SHARE // HANDSHAKE_BYTES))


class Acceptor:
    """The listening sockets, and the connections in their opening. For the server's thread, but for `wake`."""

    def __init__(
        self,
        listeners: list[socket.socket],
        most: int,
        *,
        token: Callable[[], str | None],
        earlier_token: Callable[[bytes], bytes | None],
        tls: Callable[[], tuple[ssl.SSLContext | None, bytes]],
        monitor: Monitor,
        log: Any,
    ) -> None:
        """Accept on sockets that are listening, and not blocking; at most `most` connections are in their opening.

        `token` returns the token that is required now, `earlier_token` the one with which a transfer was let in. `tls`
        returns the context and the digest of the certificate; (None, b"") for clear text.
        """
        self._listeners = listeners
        self._token = token
        self._earlier_token = earlier_token
        self._tls = tls
        self._most = most
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._descriptors = allowed - min(SPARE_DESCRIPTORS, allowed // 4)
        """The descriptors of connections in their opening should be below this number."""
        self._monitor = monitor
        self._log = log
        self._incarnation = random_id()
        self._handshakes: dict[int, Handshake] = {}  # by descriptor, oldest first
        # Sockets and no pipe: `wake` may be called after `close`, when a number could be that of another file.
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_writer.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_reader, selectors.EVENT_READ, None)
        for listener in listeners:
            self._selector.register(listener, selectors.EVENT_READ, listener)

    def wake(self) -> None:
        """Make this and every later `select` return at once. For any thread and signal handler, also after `close`."""
        with contextlib.suppress(OSError):
            self._wake_writer.send(b"\0")

    def select(self, seconds: float) -> Iterator[tuple[Handshake, m.Hello]]:
        """Wait for sockets; yield the connections whose peers have said Hello by now.

        The caller answers each of them with `take` or `turn_away` before it asks for the next one.
        """
        for key, _ in self._selector.select(seconds):
            ready = key.data
            if isinstance(ready, Handshake):
                if self._handshakes.get(ready.socket.fileno()) is not ready:
                    continue  # evicted for a new connection since `select` returned
                if ready.is_refused:
                    if ready.finish_refusal():
                        self._forget(ready)
                elif (hello := self._receive(ready)) is not None:
                    yield ready, hello
            elif ready is not None:
                self._accept(ready)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(PAUSE_SECONDS)
            return
        is_full = len(self._handshakes) >= self._most or sock.fileno() >= self._descriptors
        if is_full and self._handshakes:
            self.turn_away(self._handshake_to_evict(), Code.LIMIT, "too many connections are being opened")
        try:
            token, (tls, certificate_sha256) = self._token(), self._tls()
            opening = ReceiverOpening(
                self._incarnation, token.encode() if token else None, certificate_sha256, earlier=self._earlier_token
            )
            handshake = Handshake(sock, opening, tls)
            handshake.greet()
        except OSError:
            sock.close()
            return
        self._keep(handshake)

    def _handshake_to_evict(self) -> Handshake:
        """Return a connection in its opening, of the address that has most of them: the oldest one without a Hello."""
        hosts = Counter(handshake.host for handshake in self._handshakes.values())
        most = hosts.most_common(1)[0][0]
        oldest_first = [handshake for handshake in self._handshakes.values() if handshake.host == most]
        return next((handshake for handshake in oldest_first if not handshake.has_hello), oldest_first[0])

    def _keep(self, handshake: Handshake) -> None:
        """Go on with a connection when it is readable, or writable where something is left to be sent."""
        descriptor = handshake.socket.fileno()
        events = selectors.EVENT_READ * (not handshake.is_refused) | selectors.EVENT_WRITE * handshake.wants_write
        if descriptor not in self._handshakes:
            self._handshakes[descriptor] = handshake
            self._selector.register(handshake.socket, events, handshake)
        elif self._selector.get_key(handshake.socket).events != events:
            self._selector.modify(handshake.socket, events, handshake)

    def _receive(self, handshake: Handshake) -> m.Hello | None:
        """Read from a connection; return its Hello once it is accepted."""
        try:
            hello = handshake.receive()
            if hello is None:
                self._keep(handshake)
            return hello
        except ConnectionLost as error:
            self.lose(handshake, error)
        except RemoteProtocolError as error:
            self.turn_away(handshake, error.code, error.reason)
        return None

    # --- the end of an opening

    def take(self, handshake: Handshake) -> None:
        """Remove a connection whose opening is over: the caller goes on with it, or closes it."""
        if self._handshakes.pop(handshake.socket.fileno(), None) is not None:
            self._selector.unregister(handshake.socket)

    def lose(self, handshake: Handshake, error: ConnectionLost) -> None:
        """Close a connection whose peer is gone."""
        self._log.debug("connection_left", address=handshake.peer, reason=str(error))
        self.take(handshake)
        handshake.socket.close()

    def turn_away(self, handshake: Handshake, code: Code, reason: str) -> None:
        """Send a Refusal, and close. If the socket does not take it yet, close later, or at the next call."""
        self.take(handshake)
        if handshake.is_refused:
            handshake.close()
            return
        self._monitor.refused(code.name.lower())
        self._log.warning("connection_refused", code=code.name.lower(), reason=reason, address=handshake.peer)
        if not handshake.refuse(code, reason):
            self._keep(handshake)  # until the socket takes what is said, or the opening took too long

    def _forget(self, handshake: Handshake) -> None:
        """Remove a connection that was refused and closed, whose descriptor is -1 now."""
        for descriptor in [at for at, other in self._handshakes.items() if other is handshake]:
            del self._handshakes[descriptor]
            self._selector.unregister(descriptor)

    def tick(self, now: float) -> None:
        """Turn away the connections whose opening took too long, and look for new certificates and tokens."""
        self._token()  # now, and not only with the next connection: what is wrong with them is told at once
        self._tls()
        for handshake in [handshake for handshake in self._handshakes.values() if handshake.is_overdue(now)]:
            said = "no Proof" if handshake.has_hello else "no Hello"
            self.turn_away(handshake, Code.TIMEOUT, f"the sender said {said} in time ({handshake.waited(now):.0f} s)")

    def stop(self) -> None:
        """Turn every connection away, and release the port."""
        for handshake in list(self._handshakes.values()):
            self.turn_away(handshake, Code.SHUTTING_DOWN, "the receiver was asked to end: start it again")
        for listener in self._listeners:
            listener.close()

    def close(self) -> None:
        """Close everything else: connections whose sockets did not take a Refusal in time, and the selector."""
        for handshake in self._handshakes.values():
            handshake.socket.close()
        self._handshakes.clear()
        self._selector.close()
        self._wake_reader.close()
        self._wake_writer.close()
