"""A channel over TLS (proto/README.md, "Security")."""

import select
import ssl
import threading
from typing import cast

from filestreamer.wire.errors import FilestreamerError
from filestreamer.wire.sockets.tls import explain
from filestreamer.wire.sockets.transport import TICK_SECONDS, Channel, Patience


class TlsChannel(Channel):
    """A channel over TLS.

    One thread may read while another writes, but OpenSSL allows only one thread in its calls. So the calls never block,
    a lock keeps them apart, and threads wait for the socket outside of the lock.
    """

    def __init__(self, sock: ssl.SSLSocket, patience: Patience, *, payload_bytes: int = 0) -> None:
        super().__init__(sock, patience, payload_bytes=payload_bytes)
        sock.setblocking(False)
        self._tls = sock
        self._lock = threading.Lock()  # protects the TLS state of the socket

    def _lost(self, error: OSError) -> FilestreamerError:
        """Make the error of a connection that was lost."""
        # In TLS 1.3, a peer refuses this side's certificate only after the handshake.
        reason = (error.reason or "") if isinstance(error, ssl.SSLError) else ""
        if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
            return explain(cast("ssl.SSLError", error))
        return super()._lost(error)

    def _receive_some(self, view: memoryview, wait: bool) -> int | None:
        for last in (not wait, True):
            try:
                with self._lock:
                    return self._tls.recv_into(view)
            except ssl.SSLWantReadError:
                if last or not self._wait(select.POLLIN):
                    return None
            except ssl.SSLWantWriteError:
                if last or not self._wait(select.POLLOUT):
                    return None
        return None

    def _send_some(self, view: memoryview, more: bool) -> int | None:  # noqa: ARG002 - TLS sends whole records
        try:
            with self._lock:
                return self._tls.send(view)
        except ssl.SSLWantWriteError:
            events = select.POLLOUT
        except ssl.SSLWantReadError:
            events = select.POLLIN
        return 0 if self._wait(events) else None

    def _wait(self, events: int) -> bool:
        """Wait at most a tick until the socket is ready; return whether it is."""
        poll = select.poll()
        poll.register(self._tls, events)
        return bool(poll.poll(TICK_SECONDS * 1000))
