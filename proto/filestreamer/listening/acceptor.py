"""Accepts connections, and takes them through their opening: one thread, one selector, nothing ever blocks.

A stranger costs one `Handshake` for OPENING_SILENCE_SECONDS, or OPENING_SECONDS if it says something now and then. When
all places are taken, a new connection evicts the oldest one of its kind: those that say no word of what they are for,
or those that say one and prove nothing, whichever are more; if one network floods, of its own. So strangers keep no
peer out, wherever they come from, unless they take all places anew within its few round-trips. A connection whose
opening is over, so that the token is proved if one is required, goes on in a thread of its transfer.
"""

import contextlib
import errno
import os
import resource
import selectors
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final, Generic, NamedTuple

from filestreamer.listening.handshake import Handshake, O
from filestreamer.wire import limits
from filestreamer.wire.errors import Code, ConnectionLost, Refused, RemoteProtocolError, TransferFailed
from filestreamer.wire.sockets.listen import accept
from filestreamer.wire.sockets.own_address import is_peer_here

HANDSHAKES: Final = 512
"""Connections that may be in their opening at once, where there is memory for them."""
HANDSHAKES_MIN: Final = 16
HANDSHAKE_BYTES: Final = 192 * limits.KIB
"""The memory of a connection in its opening: a socket whose buffer is full, and half a TLS handshake."""
HANDSHAKES_SHARE: Final = 8
"""Openings get one part in so many of the memory for peers."""
FLOOD_SHARE: Final = 4
"""A network floods if it has more than one in so many of the connections."""
SPARE_DESCRIPTORS: Final = 16
"""Descriptors that connections in their opening leave for the transfers that are under way."""


def count_handshakes(peers_bytes: int) -> int:
    """Return how many connections may be in their opening, given the memory for all peers."""
    return min(HANDSHAKES, max(HANDSHAKES_MIN, peers_bytes // HANDSHAKES_SHARE // HANDSHAKE_BYTES))


class Listener(NamedTuple):
    """A socket that listens, and does not block."""

    socket: socket.socket
    marker: bytes = b""
    """Where not empty, peers come through ssh, from this very machine: they are told this first, and speak clear text,
    as ssh encrypts what they say. Nobody else is accepted."""


class Acceptor(Generic[O]):
    """The listening sockets, and the connections in their opening. For the server's thread, but for `wake`."""

    def __init__(
        self,
        listeners: list[Listener],
        most: int,
        *,
        opening: Callable[[bytes], O],
        tls: Callable[[], tuple[ssl.SSLContext | None, bytes]],
        refused: Callable[[str], None],
        log: Any,
    ) -> None:
        """Accept on these sockets; at most `most` connections are in their opening.

        `opening` makes one, given the digest of the certificate that is shown on the connection. `tls` returns the
        context and that digest; (None, b"") for clear text. `refused` is called with the code of each Refusal.
        """
        self._listeners = listeners
        self._opening = opening
        self._tls = tls
        self._refused = refused
        self._most = most
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._descriptors = allowed - min(SPARE_DESCRIPTORS, allowed // 4)
        """The descriptors of connections in their opening should be below this number."""
        self._log = log
        self._handshakes: dict[int, Handshake[O]] = {}  # by descriptor, oldest first
        # Sockets and no pipe: `wake` may be called after `close`, when a number could be that of another file.
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_writer.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_reader, selectors.EVENT_READ, None)
        for listener in listeners:
            self._selector.register(listener.socket, selectors.EVENT_READ, listener)

    def wake(self) -> None:
        """Make this and every later `select` return at once. For any thread and signal handler, also after `close`."""
        with contextlib.suppress(OSError):
            self._wake_writer.send(b"\0")

    def select(self, seconds: float) -> Iterator[Handshake[O]]:
        """Wait for sockets; yield the connections whose opening is over by now.

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
                elif self._receive(ready):
                    yield ready
            elif ready is not None:
                self._accept(ready)

    def _accept(self, listener: Listener) -> None:
        sock = accept(listener.socket)
        if sock is None:
            return
        is_full = len(self._handshakes) >= self._most or sock.fileno() >= self._descriptors
        if is_full and self._handshakes:
            self.turn_away(self._handshake_to_evict(), Code.LIMIT, "too many connections are being opened")
        try:
            if listener.marker and not is_peer_here(sock):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            tls, certificate_sha256 = (None, b"") if listener.marker else self._tls()
            handshake = Handshake(sock, self._opening(certificate_sha256), tls, listener.marker)
            handshake.greet()
        except OSError:
            sock.close()
            return
        self._keep(handshake)

    def _handshake_to_evict(self) -> Handshake[O]:
        """Return a connection in its opening to be given up for a new one."""
        oldest_first = list(self._handshakes.values())
        (network, count), *_ = Counter(handshake.network for handshake in oldest_first).most_common(1)
        # Where each stranger comes from another network, a peer with several connections is not the flood.
        if count > len(oldest_first) // FLOOD_SHARE:
            oldest_first = [handshake for handshake in oldest_first if handshake.network == network]
        # A peer is silent for one round-trip, and then has said Hello for another one: it is safe while strangers do
        # the other thing, and has the time of all other places while they do the same.
        silent = [handshake for handshake in oldest_first if not handshake.opening.has_heard]
        others = [handshake for handshake in oldest_first if handshake.opening.has_heard]
        return max(silent, others, key=len)[0]

    def _keep(self, handshake: Handshake[O]) -> None:
        """Go on with a connection when it is readable, or writable where something is left to be sent."""
        descriptor = handshake.socket.fileno()
        events = selectors.EVENT_READ * (not handshake.is_refused) | selectors.EVENT_WRITE * handshake.wants_write
        if descriptor not in self._handshakes:
            self._handshakes[descriptor] = handshake
            self._selector.register(handshake.socket, events, handshake)
        elif self._selector.get_key(handshake.socket).events != events:
            self._selector.modify(handshake.socket, events, handshake)

    def _receive(self, handshake: Handshake[O]) -> bool:
        """Read from a connection; return whether its opening is over."""
        try:
            is_over = handshake.receive()
            if not is_over:
                self._keep(handshake)
            return is_over
        except (ConnectionLost, Refused) as error:
            self.lose(handshake, error)
        except (RemoteProtocolError, TransferFailed) as error:
            self.turn_away(handshake, error.code, error.reason)
        return False

    # --- the end of an opening

    def take(self, handshake: Handshake[O]) -> None:
        """Remove a connection whose opening is over: the caller goes on with it, or closes it."""
        if self._handshakes.pop(handshake.socket.fileno(), None) is not None:
            self._selector.unregister(handshake.socket)

    def lose(self, handshake: Handshake[O], error: ConnectionLost | Refused) -> None:
        """Close a connection whose peer is gone."""
        self._log.debug("connection_left", address=handshake.peer, reason=str(error))
        self.take(handshake)
        handshake.socket.close()

    def turn_away(self, handshake: Handshake[O], code: Code, reason: str, **who: str) -> None:
        """Send a Refusal, and close. If the socket does not take it yet, close later, or at the next call.

        `who` goes into the log.
        """
        self.take(handshake)
        if handshake.is_refused:
            handshake.close()
            return
        self._refused(code.name.lower())
        self._log.warning("connection_refused", code=code.name.lower(), reason=reason, address=handshake.peer, **who)
        if not handshake.refuse(code, reason):
            self._keep(handshake)  # until the socket takes what is said, or the opening took too long

    def _forget(self, handshake: Handshake[O]) -> None:
        """Remove a connection that was refused and closed, whose descriptor is -1 now."""
        for descriptor in [at for at, other in self._handshakes.items() if other is handshake]:
            del self._handshakes[descriptor]
            self._selector.unregister(descriptor)

    def tick(self, now: float) -> None:
        """Turn away the connections whose opening took too long, and look for new certificates."""
        self._tls()  # now, and not only with the next connection: what is wrong with them is told at once
        for handshake in [handshake for handshake in self._handshakes.values() if handshake.is_overdue(now)]:
            said = f"said no {handshake.opening.awaits} in time ({handshake.waited(now):.0f} s)"
            self.turn_away(handshake, Code.TIMEOUT, f"the {handshake.peer_side} {said}")

    def stop(self) -> None:
        """Turn every connection away, and release the port."""
        for handshake in list(self._handshakes.values()):
            side = handshake.opening.side
            self.turn_away(handshake, Code.SHUTTING_DOWN, f"the {side} was asked to end: start it again")
        for listener in self._listeners:
            listener.socket.close()

    def close(self) -> None:
        """Close everything else: connections whose sockets did not take a Refusal in time, and the selector."""
        for handshake in self._handshakes.values():
            handshake.socket.close()
        self._handshakes.clear()
        self._selector.close()
        self._wake_reader.close()
        self._wake_writer.close()
