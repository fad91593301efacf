"""One port: every connection begins here, in one thread with one selector, until it is welcomed or turned away.

A stranger costs one slot and OPENING_SECONDS. When all slots are taken, the one that has waited longest gives way, so
that a thousand silent connections keep nobody out. Who says Hello (and proves the token, where one is asked for) goes
on in a thread of its transfer.
"""

import contextlib
import errno
import os
import queue
import resource
import selectors
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from filestreamer.settings.sizes import format_size
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.telemetry.monitor import Monitor
from filestreamer.telemetry.report import report
from filestreamer.telemetry.result import TransferResult
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import (
    Code,
    ConnectionLost,
    FilestreamerError,
    RemoteProtocolError,
    TransferFailed,
)
from filestreamer.wire.grid import Grid, Share
from filestreamer.wire.opening import ReceiverOpening, random_id
from receiver.disk.destination import Destination
from receiver.file.file_share import FileShare
from receiver.memory import process_limit as memory
from receiver.memory.budget import Account, Budget
from receiver.memory.connection_budget import CONTROL, SECURED_BYTES, ConnectionBudget
from receiver.pipe.standard_output import OpenFile
from receiver.server.handshake import Handshake
from receiver.server.registry import Registry, join_all
from receiver.settings import ReceiverSettings
from receiver.transfer.connection import DataConnection
from receiver.transfer.transfer import ControlUp, Transfer
from receiver.tree.top_level_names import TopLevelNames

HANDSHAKES: Final = 512
"""Connections that may be in their opening at once, where there is memory for them."""
HANDSHAKES_MIN: Final = 16
CONNECTIONS: Final = 1024
"""Data connections that may be open at once, over all transfers."""
TRANSFERS: Final = 64
"""Transfers that may be under way at once."""
TICK_SECONDS: Final = 0.5
END_SECONDS: Final = 5.0
"""How long all transfers together may take to end when the service does."""
SPARE_DESCRIPTORS: Final = 32
"""What data connections leave for files."""
TRANSFER_BYTES: Final = 4 * limits.MIB
"""What is reserved for a transfer, with which it can finish: control (0.8 MiB, its socket's buffers included), the
smallest connection and one that takes its place (1.3), the first thread that re-hashes (0.6), the table of a small file
(0.3), frames that wait and one that is decoded (0.6), three threads (0.4). One over one connection was measured at 1.2
MiB: most of it is room that only a peer in a hurry, or a slow disk, fills."""
HANDSHAKE_BYTES: Final = 192 * limits.KIB
"""What a connection in its opening makes this process hold: a socket whose buffer is full, half a TLS handshake."""
HANDSHAKES_SHARE: Final = 8
"""Openings get one part in so many of what is for peers."""


class Server:
    """Serves transfers into one destination until it is told to end."""

    def __init__(
        self,
        settings: ReceiverSettings,
        destination: Destination | OpenFile,
        monitor: Monitor,
        *,
        output_name: bytes | None,
        listeners: list[socket.socket],
        token: str | None,
        log: Any,
    ) -> None:
        """`output_name` replaces the name that senders give; `listeners` are bound, listening, and not blocking.

        Raises UsageError where a TLS file can't be used.
        """
        self._settings = settings
        self._monitor = monitor
        self._stdout = destination if isinstance(destination, OpenFile) else None
        self._files = None if isinstance(destination, OpenFile) else Registry(destination, output_name)
        self._stdout_of: Transfer | None = None  # protected
        self._exit_code = 0
        self._listeners = listeners
        self._token = token.encode() if token else None
        self._tls, self._certificate_sha256 = _tls_context(settings)
        self._log = log
        self.on_few_threads: Callable[[], None] = _no_patience
        """Called where a thread that a transfer needs does not start: others may be done without."""
        self._incarnation = random_id()
        self._selector = selectors.DefaultSelector()
        self._handshakes: dict[int, Handshake] = {}  # by descriptor, oldest first
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._mailbox: queue.SimpleQueue[FilestreamerError | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._transfers: dict[bytes, Transfer] = {}  # protected
        self._last_name: bytes | None = None  # protected: with --once, the first one that was committed
        self._busy_at = time.monotonic()
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._descriptors = most - min(SPARE_DESCRIPTORS, most // 4)
        """Data connections have descriptors below this."""
        limit = settings.memory_limit or memory.default_limit()
        if limit < memory.LIMIT_MIN_BYTES:
            least = format_size(memory.LIMIT_MIN_BYTES)
            log.warning(
                "little_memory", limit_bytes=limit, reason=f"a receiver may take {least} all the same: allow it that"
            )
        for_peers = memory.budget_bytes(limit)
        self._handshakes_most = min(HANDSHAKES, max(HANDSHAKES_MIN, for_peers // HANDSHAKES_SHARE // HANDSHAKE_BYTES))
        self._budget = Budget(for_peers - self._handshakes_most * HANDSHAKE_BYTES)
        self._reach = memory.read_socket_limits()._replace(secured_bytes=0 if self._tls is None else SECURED_BYTES)

    # --- the selector thread

    def end(self, error: FilestreamerError | None) -> None:
        """End the service, from any thread or signal handler; None: its work is done."""
        self._mailbox.put(error)
        with contextlib.suppress(OSError):
            os.write(self._wake_writer, b"\0")

    def counters(self) -> list[TransferCounters]:
        """Return the transfers that are under way, for whoever shows them."""
        with self._lock:
            return [transfer.counters for transfer in self._transfers.values() if transfer.counters.name]

    def memory(self) -> tuple[int, int]:
        """Return what senders may make this process hold once they are let in, and what of it is taken: bytes."""
        return self._budget.total_bytes, self._budget.used_bytes

    def run(self) -> int:
        """Serve until the work is done; return the exit code. Raises what ended the service otherwise."""
        self._selector.register(self._wake_reader, selectors.EVENT_READ, None)
        for listener in self._listeners:
            self._selector.register(listener, selectors.EVENT_READ, listener)
        try:
            while self._mailbox.empty():
                for key, _ in self._selector.select(TICK_SECONDS):
                    self._act(key.data)
                self._tick()
            error = self._mailbox.get()
            if error is not None:
                raise error
            return self._exit_code
        finally:
            self._close()

    def _act(self, ready: socket.socket | Handshake | None) -> None:
        if isinstance(ready, Handshake):
            if self._handshakes.get(ready.socket.fileno()) is ready:  # it may have given way to another in this round
                if not ready.is_refused:
                    self._receive(ready)
                elif ready.finish_refusal():
                    self._forget(ready)
        elif ready is not None:
            self._accept(ready)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):  # the port stays readable: don't spin
                time.sleep(TICK_SECONDS / 10)
            return
        if len(self._handshakes) >= self._handshakes_most:
            self._turn_away(self._handshake_to_give_way(), Code.LIMIT, "too many connections are being opened")
        try:
            opening = ReceiverOpening(self._incarnation, self._token, self._certificate_sha256)
            handshake = Handshake(sock, opening, self._tls)
            handshake.greet()
        except OSError:
            sock.close()
            return
        self._keep(handshake)

    def _handshake_to_give_way(self) -> Handshake:
        """Return the oldest connection in its opening, of the address that has most of them."""
        hosts = Counter(handshake.host for handshake in self._handshakes.values())
        most = hosts.most_common(1)[0][0]
        return next(handshake for handshake in self._handshakes.values() if handshake.host == most)

    def _keep(self, handshake: Handshake) -> None:
        """Go on with a connection when it is readable, or writable where something is left to be sent."""
        descriptor = handshake.socket.fileno()
        events = selectors.EVENT_READ * (not handshake.is_refused) | selectors.EVENT_WRITE * handshake.wants_write
        if descriptor not in self._handshakes:
            self._handshakes[descriptor] = handshake
            self._selector.register(handshake.socket, events, handshake)
        elif self._selector.get_key(handshake.socket).events != events:
            self._selector.modify(handshake.socket, events, handshake)

    def _receive(self, handshake: Handshake) -> None:
        try:
            hello = handshake.receive()
            if hello is not None:
                self._let_in(handshake, hello)
            else:
                self._keep(handshake)
        except ConnectionLost as error:
            self._log.debug("connection_left", address=handshake.peer, reason=str(error))
            self._drop(handshake)
            handshake.socket.close()
        except (RemoteProtocolError, TransferFailed) as error:
            self._turn_away(handshake, error.code, error.reason)

    def _drop(self, handshake: Handshake) -> None:
        """Take a connection out of its opening."""
        if self._handshakes.pop(handshake.socket.fileno(), None) is not None:
            self._selector.unregister(handshake.socket)

    def _turn_away(self, handshake: Handshake, code: Code, reason: str) -> None:
        """Say why, and close. Where the socket does not take that, the next call closes it."""
        self._drop(handshake)
        if handshake.is_refused:
            handshake.close()
            return
        self._monitor.refused(code.name.lower())
        self._log.warning("connection_refused", code=code.name.lower(), reason=reason, address=handshake.peer)
        if handshake.refuse(code, reason):
            return
        self._keep(handshake)  # until the socket takes what is said, or it is overdue

    def _forget(self, handshake: Handshake) -> None:
        """Take out a connection that was refused and is closed."""
        for descriptor in [at for at, other in self._handshakes.items() if other is handshake]:
            del self._handshakes[descriptor]
            self._selector.unregister(descriptor)

    def _tick(self) -> None:
        now = time.monotonic()
        for handshake in [handshake for handshake in self._handshakes.values() if handshake.is_overdue(now)]:
            self._turn_away(handshake, Code.TIMEOUT, f"no Hello within {limits.OPENING_SECONDS:g} s")
        with self._lock:
            if self._transfers:
                self._busy_at = now
        timeout = self._settings.idle_timeout
        if timeout is not None and now - self._busy_at > timeout:
            self.end(TransferFailed(Code.TIMEOUT, f"no transfer for {timeout:g} s (--idle-timeout)"))

    def _let_in(self, handshake: Handshake, hello: m.Hello) -> None:
        """Hand a connection to its transfer. Raises TransferFailed (UNKNOWN_TRANSFER, LIMIT), RemoteProtocolError."""
        transfer = self._transfer_of(hello, handshake.host)
        is_data = hello.role is m.Role.DATA
        connection_budget = self._seat(handshake, transfer, hello.connection_id) if is_data else CONTROL
        self._drop(handshake)
        user_timeout = max(limits.DEAD_SECONDS, self._settings.give_up_after)
        try:
            channel = handshake.into_channel(_no_patience, user_timeout, connection_budget)
        except (ConnectionLost, MemoryError) as error:
            if is_data:
                transfer.connection_set.withdraw(connection_budget)
            if isinstance(error, ConnectionLost):
                raise
            self._monitor.refused("limit")
            self._log.warning("connection_refused", code="limit", reason="no memory for its buffer")
            handshake.socket.close()
            return
        if is_data:
            counters = transfer.connection_set.counters_of(hello.connection_id)
            try:
                DataConnection(transfer, channel, handshake.opening.welcome(), counters, connection_budget).start()
            except RuntimeError:
                self._monitor.refused("limit")
                if transfer.connection_set.threads <= 1:
                    self.on_few_threads()
                reason = "no thread can be started"
                self._log.warning("connection_refused", code="limit", reason=reason)
                with contextlib.suppress(FilestreamerError):
                    channel.send_message(m.Refusal(Code.LIMIT, f"{reason}: try again later"))
                channel.close()
                transfer.connection_set.withdraw(connection_budget)
        elif not transfer.post_now(ControlUp(channel, handshake.opening.welcome())):
            channel.close()

    def _seat(self, handshake: Handshake, transfer: Transfer, connection_id: int) -> ConnectionBudget:
        """Find a place for a data connection. Raises TransferFailed(LIMIT)."""
        if not self._has_room(handshake, transfer):
            raise TransferFailed(Code.LIMIT, "too many connections: try again later")
        return transfer.connection_set.admit(connection_id)

    def _has_room(self, handshake: Handshake, wanted_by: Transfer) -> bool:
        """Whether there is a place for another data connection; else one gives way, for the next try."""
        if handshake.socket.fileno() >= self._descriptors:
            return False
        with self._lock:
            transfers = sorted(self._transfers.values(), key=lambda each: each.connection_set.threads, reverse=True)
        if sum(each.connection_set.threads for each in transfers) < CONNECTIONS:
            return True
        now = time.monotonic()
        for other in transfers:
            if other.connection_set.threads <= wanted_by.connection_set.threads + 1:
                break
            if other.connection_set.shed(now, limits.OPENING_SECONDS):
                return False
        if transfers[0].connection_set.threads > max(
            CONNECTIONS // len(transfers), wanted_by.connection_set.threads + 1
        ):
            transfers[0].connection_set.shed(now, 0.0, busy=True)
        return False

    def _place_given_up(self) -> bool:
        """Have a transfer end that makes no progress, as somebody wants its place; whether there is one.

        One that has offered nothing gives way first. Call it with the lock.
        """
        there = [each for each in self._transfers.values() if not each.is_complete and not each.is_ending]
        idle = [each for each in there if each.has_offered_nothing]
        idle = idle or [each for each in there if each.is_stalled]
        if idle:
            max(idle, key=lambda each: each.liveness.idle_seconds).yield_place()
        return bool(idle)

    def _transfer_of(self, hello: m.Hello, peer: str) -> Transfer:
        with self._lock:
            transfer = self._transfers.get(hello.transfer_id)
            if transfer is not None:
                transfer.check(hello)
                return transfer
            if hello.role is m.Role.DATA:
                raise TransferFailed(Code.UNKNOWN_TRANSFER, "this receiver does not know the transfer")
            complete = [known for known in self._transfers.values() if known.is_complete]
            ending = sum(known.is_ending and not known.is_complete for known in self._transfers.values())
            is_full = len(self._transfers) - len(complete) - ending >= TRANSFERS
            if (is_full and not self._place_given_up()) or len(self._transfers) - len(complete) >= 2 * TRANSFERS:
                raise TransferFailed(Code.LIMIT, f"{TRANSFERS} transfers are under way: try again later")
            for known in complete[: max(0, len(complete) - TRANSFERS + 1)]:
                known.forget()
            log = self._log.bind(transfer=hello.transfer_id.hex()[:8])
            account = self._admit(peer, complete)
            settings = self._settings
            transfer = Transfer(
                self,
                hello,
                account,
                settings.give_up_after,
                log,
                window_bytes=settings.window,
                socket_limits=self._reach,
            )
            transfer.counters.tolerated = settings.tolerated
            self._transfers[hello.transfer_id] = transfer
        try:
            transfer.start()
        except RuntimeError:
            self.on_few_threads()
            with self._lock:
                del self._transfers[hello.transfer_id]
            account.close()
            raise TransferFailed(Code.LIMIT, "no thread can be started: try again later") from None
        return transfer

    def _admit(self, peer: str, complete: list[Transfer]) -> Account:
        """Reserve what a transfer needs.

        Raises TransferFailed(LIMIT); the next try finds what those have given back that are complete, and the one whose
        sender has been gone for longest, or that makes no progress: what came of that is kept. Call it with the lock.
        """
        try:
            return self._budget.admit(peer, TRANSFER_BYTES + 3 * self._reach.secured_bytes)
        except TransferFailed:
            for known in complete:
                known.forget()
            gone = [known for known in self._transfers.values() if known.may_be_let_go]
            if gone:
                reason = "its sender is gone, and others need the memory; what came is kept"
                min(gone, key=lambda known: known.connected_at).end_soon(TransferFailed(Code.TIMEOUT, reason))
            else:
                self._place_given_up()
            raise

    def _close(self) -> None:
        """Turn everybody away, end every transfer, release the port."""
        for handshake in list(self._handshakes.values()):
            self._turn_away(handshake, Code.SHUTTING_DOWN, "the receiver ends")
        for listener in self._listeners:
            listener.close()
        with self._lock:
            transfers = list(self._transfers.values())
        deadline = time.monotonic() + END_SECONDS
        for transfer in transfers:
            error = TransferFailed(Code.SHUTTING_DOWN, "the receiver was asked to end: run it again")
            transfer.end_by(deadline, error)
        join_all(transfers, END_SECONDS)
        self._selector.close()

    # --- what transfers call (Registry)

    def claim(self, transfer: Transfer, entry: m.Entry, grid: Grid, share: Share) -> FileShare:
        """Give a transfer its share of a file. Raises TransferFailed."""
        assert self._files is not None  # with standard output, nobody asks for a file
        return self._files.claim(transfer, entry, grid, share)

    def claim_root(self, transfer: Transfer, name: bytes) -> TopLevelNames:
        """Give a tree its first name in the destination. Raises TransferFailed."""
        assert self._files is not None  # nor for a tree
        return self._files.claim_root(transfer, name)

    def claim_stdout(self, transfer: Transfer) -> OpenFile | None:
        """Give a transfer standard output; None where files are received instead. Raises TransferFailed(BUSY).

        One that is deserted gives way, unless bytes of it were passed on: another's must not follow them.
        """
        if self._stdout is None:
            return None
        with self._lock:
            other = self._stdout_of
        if other is not None and other.yields and not other.has_passed_on:
            other.yield_to_newer()
            join_all([other])
        with self._lock:
            if self._stdout_of is not None:
                raise TransferFailed(Code.BUSY, "this receiver passes on another sender's bytes already")
            self._stdout_of = transfer
        return self._stdout

    def release(self, transfer: Transfer) -> None:
        """Let others write what a transfer has committed."""
        if self._files is not None:
            self._files.release(transfer)

    def leave(self, transfer: Transfer, *, cleanly: bool) -> None:
        """Take a transfer out of its file."""
        if self._files is not None:
            self._files.leave(transfer, cleanly=cleanly)

    def ended(self, transfer: Transfer, error: FilestreamerError | None) -> None:
        """Report how a transfer ended; with --once a committed one ends the service, when its shards have left."""
        committed = transfer.committed
        outcome = TransferResult.from_counters(
            transfer.counters,
            error=transfer.counters.shortfall() if transfer.is_complete else error,
            committed=committed,
            root_digest=transfer.root_digest,
        )
        if transfer.was_offered:  # remembered before it is forgotten: no scrape in between misses it
            self._monitor.ended(transfer.counters, outcome.status)
        with self._lock:
            self._transfers.pop(transfer.transfer_id, None)
            if self._stdout_of is transfer and not (committed or transfer.has_passed_on):
                self._stdout_of = None
            is_spent = self._stdout_of is transfer
            if committed and self._settings.once and self._last_name is None:
                self._last_name, self._exit_code = transfer.target_name, outcome.exit_code
        if transfer.was_offered:
            report(outcome, self._settings.result_file, self._log, file=transfer.counters.name)
            self._monitor.push()
        else:
            self._log.warning("sender_left", transfer=transfer.transfer_id.hex()[:8], reason=str(error))
        if is_spent:  # what was passed on can't be taken back: that was the one transfer, whatever became of it
            self._exit_code = outcome.exit_code
            self.end(None)
        if self._files and self._last_name is not None and not self._files.is_in_use(self._last_name):
            self.end(None)


def _no_patience() -> None:
    pass


def _tls_context(settings: ReceiverSettings) -> tuple[ssl.SSLContext | None, bytes]:
    """Make the context of this receiver, and its certificate's digest; (None, b"") where it speaks clear text.

    Raises UsageError.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None, b""
    from filestreamer.wire.sockets import tls

    return tls.server_context(settings.tls_cert, settings.tls_key, settings.tls_ca)
