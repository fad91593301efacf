"""A TLS session on a socket, with few system calls.

OpenSSL on a socket makes a system call for each record that it sends, and two for each that it reads; a record has at
most 16 KiB. Here it works in memory instead: one system call carries many records.

    send:       plain text → records in memory → `send` of all of them
    recv_into:  `recv` of what is there → records in memory → plain text, record by record

So the socket stays an ordinary one, and blocks, or not, as its owner wants.
"""

import errno
import select
import socket
import ssl
import threading
import time
from typing import Final

from filestreamer.wire import limits

BATCH_BYTES: Final = 256 * limits.KIB
"""The most that is encrypted, or received, at once. It has to fit into the cache of a CPU."""
SMALL_BATCH_BYTES: Final = 32 * limits.KIB
"""The most that is received at once where memory counts more, or little comes."""
RECORD_BYTES: Final = 16 * limits.KIB + 256 + 5
"""The most that a record of TLS 1.3 has, with its header (RFC 8446, section 5.2)."""


class TlsStream:
    """One TLS session; the handshake is not done yet. One thread may read while another writes."""

    def __init__(self, context: ssl.SSLContext, sock: socket.socket, server_hostname: str | None = None) -> None:
        """Begin a session on a connected socket without a timeout of Python's; the context says which side this is.

        Raises ValueError for a name that no certificate can have.
        """
        self.socket = sock
        self.batch_bytes = SMALL_BATCH_BYTES
        """The most that is received at once: what the session has in memory while it reads."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        is_server = context.protocol is ssl.PROTOCOL_TLS_SERVER
        self._tls: ssl.SSLObject | None = context.wrap_bio(
            self._incoming, self._outgoing, server_side=is_server, server_hostname=server_hostname
        )
        self._lock = threading.Lock()
        """Protects all fields: OpenSSL allows one thread in a session. Nobody waits for the socket while holding it."""
        self._unsent = memoryview(b"")
        """Records that were taken from `_outgoing`, and that the socket did not take yet."""
        self._accepted_bytes = 0
        """How much of the plain text of an unfinished `send` is encrypted."""
        self._error: ssl.SSLError | None = None
        """What the record behind the last plain text means; it is raised by the next read."""
        self._fed_bytes = 0
        """What came since the last plain text."""

    def do_handshake(self) -> None:
        """Go on with the handshake, as far as the bytes reach that are there.

        Raises SSLWantReadError, SSLWantWriteError where it has to be called again once the socket is ready; SSLEOFError
        where the peer has closed; SSLError, OSError.
        """
        while True:
            with self._lock:
                try:
                    self.session.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    self._flush_or_raise()
                except ssl.SSLZeroReturnError as error:  # some versions of OpenSSL call the end of the stream so here
                    raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, str(error)) from None
                except ssl.SSLError:
                    self._flush()  # the alert that tells the peer
                    raise
            self._feed_record()
        with self._lock:
            self._fed_bytes = 0
            self._flush_or_raise()

    def do_handshake_within(self, seconds: float) -> None:
        """Do the whole handshake; the socket does not block any more. Raises SSLError, TimeoutError, OSError."""
        self.socket.setblocking(False)
        ends_at = time.monotonic() + seconds
        while True:
            try:
                return self.do_handshake()
            except ssl.SSLWantReadError:
                events = select.POLLIN
            except ssl.SSLWantWriteError:
                events = select.POLLOUT
            poll = select.poll()
            poll.register(self.socket, events)
            if not poll.poll(max(0.0, ends_at - time.monotonic()) * 1000):
                raise TimeoutError(errno.ETIMEDOUT, "the TLS handshake was not answered in time")

    @property
    def session(self) -> ssl.SSLObject:
        """The session, as Python knows it: what the peer has shown. Raises OSError after `free`."""
        if self._tls is None:
            raise OSError(errno.EBADF, "the connection is closed")
        return self._tls

    # --- reading

    def recv(self, count: int) -> bytes:
        """Receive at most `count` bytes; nothing at the end of the stream. It never waits, and reads little ahead.

        Raises SSLWantReadError where nothing has come, or no whole record; SSLError, OSError.
        """
        buffer = memoryview(bytearray(count))
        received = self._decrypt(buffer)
        if received is None:
            self._feed_record()
            received = self._decrypt(buffer)
        if received is None:  # not in a loop: while a peer sends, the acceptor's thread would serve nobody else
            raise ssl.SSLWantReadError
        return bytes(buffer[:received])

    def recv_into(self, view: memoryview, flags: int = 0) -> int:
        """Receive into `view`, as much of what is there as fits; return 0 at the end of the stream.

        The bytes of `view` behind what is returned are overwritten. `flags` are those of recv(2). Raises
        BlockingIOError where nothing came; SSLWantReadError where something came, and no whole record is here yet;
        SSLError, OSError.
        """
        received = self._decrypt(view)
        if received is None:
            if len(view) < RECORD_BYTES:
                records: bytes | memoryview = self.socket.recv(RECORD_BYTES, flags)
            else:  # what is encrypted waits where the plain text is going to be
                records = view[: self.socket.recv_into(view[: self.batch_bytes], 0, flags)]
            self._feed(records)
            received = self._decrypt(view)
            if received is None:
                raise ssl.SSLWantReadError
        return received

    def _decrypt(self, view: memoryview) -> int | None:
        """Decrypt into `view`; return how many bytes, 0 at the end of the stream, None where no whole record is here.

        Raises SSLError.
        """
        with self._lock:
            try:
                return self._read_records(view)
            finally:
                if self._outgoing.pending:  # an alert, or an answer: each new key of the peer may ask for one
                    self._flush()
                    if self._outgoing.pending > SMALL_BATCH_BYTES:
                        raise ssl.SSLError(0, "the peer takes no answers to its new keys")

    def _read_records(self, view: memoryview) -> int | None:
        """Do the work of `_decrypt`. Needs the lock."""
        if self._error is not None:
            raise self._error
        read, size, received = self.session.read, len(view), 0
        try:
            # With a buffer it returns a number, whatever it is typed as. 0 is the end of the stream.
            while received < size and (count := int(read(size - received, view[received:]))):
                received += count
        except ssl.SSLWantReadError:
            if not received:
                # New keys cost this side much, and the peer little; it needs no other ones before it has sent data.
                if self._fed_bytes > self.batch_bytes + RECORD_BYTES:
                    raise ssl.SSLError(0, "the peer sends new keys, and nothing else") from None
                return None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            pass  # to cut a stream short is not an attack: the protocol says itself where it ends
        except ssl.SSLError as error:
            if not received:
                raise
            self._error = error  # what came before is good
        self._fed_bytes = 0
        return received

    def _feed_record(self) -> None:
        """Receive about one record, without waiting. Raises SSLWantReadError where nothing is there, OSError."""
        try:
            self._feed(self.socket.recv(RECORD_BYTES, socket.MSG_DONTWAIT))
        except BlockingIOError:
            raise ssl.SSLWantReadError from None

    def _feed(self, records: bytes | memoryview) -> None:
        with self._lock:
            if records:
                self._fed_bytes += len(records)
                self._incoming.write(records)
            else:
                self._incoming.write_eof()

    # --- writing

    def send(self, data: bytes | memoryview, *, more: bool = False) -> int:
        """Send the first bytes of `data`, without waiting; return how many, once the kernel has all of their records.

        `more` says that further bytes follow at once (MSG_MORE). Raises SSLWantWriteError where the kernel does not
        take all records: call it again, with data that begins with the same bytes, once the socket is writable.
        SSLError, OSError.
        """
        with self._lock:
            if not self._accepted_bytes:
                self._accepted_bytes = self.session.write(data[:BATCH_BYTES])
            self._flush_or_raise(more or len(data) > self._accepted_bytes)
            accepted_bytes, self._accepted_bytes = self._accepted_bytes, 0
        return accepted_bytes

    def _flush_or_raise(self, more: bool = False) -> None:
        """Send all records, without waiting. Raises SSLWantWriteError where the kernel does not take them, OSError."""
        flags = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT | (socket.MSG_MORE if more else 0)
        while self._unsent or self._outgoing.pending:
            self._unsent = self._unsent or memoryview(self._outgoing.read())
            try:
                self._unsent = self._unsent[self.socket.send(self._unsent, flags) :]
            except BlockingIOError:
                raise ssl.SSLWantWriteError from None

    def _flush(self) -> None:
        """Send what the kernel takes of the records; the next `send` sends the rest. Never raises."""
        try:
            self._flush_or_raise()
        except OSError:  # the thread that writes, or the next read, gets the same error
            pass

    # --- closing

    def free(self) -> None:
        """Give the memory of the session back; the socket stays as it is. Idempotent."""
        with self._lock:
            self._tls = None
            self._accepted_bytes = 0
            self._incoming = self._outgoing = ssl.MemoryBIO()
            self._unsent = memoryview(b"")
