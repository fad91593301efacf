"""A channel over TLS (proto/README.md, "Security")."""

import select
import socket
import ssl
import time

from filestreamer.wire import limits
from filestreamer.wire.errors import FilestreamerError
from filestreamer.wire.sockets.tls_errors import explain_refusal
from filestreamer.wire.sockets.tls_stream import BATCH_BYTES, SMALL_BATCH_BYTES, TlsStream
from filestreamer.wire.sockets.transport import TICK_SECONDS, Channel, Patience


class TlsChannel(Channel):
    """A channel over TLS. Reading waits in the kernel, as without TLS; writing waits outside of the session's lock."""

    def __init__(self, stream: TlsStream, patience: Patience, *, payload_bytes: int = 0) -> None:
        """Take over a session whose handshake is done; see `Channel`."""
        super().__init__(stream.socket, patience, payload_bytes=payload_bytes)
        stream.batch_bytes = BATCH_BYTES if payload_bytes >= limits.BLOCK_BYTES else SMALL_BATCH_BYTES
        self._stream = stream

    def _lost(self, error: OSError) -> FilestreamerError:
        """Make the error of a connection that was lost."""
        return explain_refusal(error) or super()._lost(error)

    def _receive_some(self, view: memoryview, wait: bool) -> int | None:
        try:
            return self._stream.recv_into(view, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except ssl.SSLWantReadError:
            self.heard_at = time.monotonic()  # over a slow link, a record takes longer than a tick
            return None

    def _send_some(self, view: memoryview, more: bool) -> int | None:
        try:
            return self._stream.send(view, more=more)
        except ssl.SSLWantWriteError:
            poll = select.poll()
            poll.register(self.socket, select.POLLOUT)
            return 0 if poll.poll(TICK_SECONDS * 1000) else None

    def close(self) -> None:
        """Close the socket and release the memory; only the thread that owns the channel may. Idempotent."""
        super().close()
        self._stream.free()
