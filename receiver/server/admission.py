"""Finds the transfer of each accepted connection, and reserves a place and memory for both.

If all places or all memory are taken, a transfer or a connection that makes no progress is ended. That takes a moment:
the new connection is refused with LIMIT nevertheless, and its sender tries again.

Users (--tokens) have transfers of their own: nobody rejoins another user's, or learns of it. And no user keeps the
others out: whoever has n transfers, or n connections, gets another one only while more than n places are free. So half
of the places is the most for one user, a quarter is left for a second one, and so on (dynamic thresholds, Choudhury and
Hahne 1998). Nothing of a user is ended for another one who has more.
"""

import contextlib
import resource
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Mapping
from typing import Any, Final, Protocol

from filestreamer.process.rate_limit import RateLimit
from filestreamer.process.threads import start_thread
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.telemetry.monitor import Monitor
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, ConnectionLost, FilestreamerError, TransferFailed
from filestreamer.wire.sockets.transport import USER_TIMEOUT_SECONDS, Channel, Patience
from receiver.memory import process_limit
from receiver.memory.budget import Account, Budget
from receiver.memory.connection_budget import CONTROL, SECURED_BYTES, ConnectionBudget, limit_socket_buffers
from receiver.server.homes import Homes
from receiver.server.registry import join_all
from receiver.settings import ReceiverSettings
from receiver.transfer.asked import Asked
from receiver.transfer.connection import DataConnection
from receiver.transfer.dialling import Dialling
from receiver.transfer.mailbox import ControlUp
from receiver.transfer.transfer import Transfer

CONNECTIONS: Final = 1024
"""Data connections that may be open at once, over all transfers."""
TRANSFERS: Final = 64
"""Transfers that may be under way at once."""
END_SECONDS: Final = 5.0
"""How long all transfers together may take to end when the service does."""
SPARE_DESCRIPTORS: Final = 32
"""Descriptors that data connections leave for files."""
TRANSFER_BYTES: Final = 4 * limits.MIB
"""The memory that is reserved for a transfer, with which it can finish: control (0.8 MiB, with the buffers of its
socket), the smallest connection and one that takes its place (1.3), the first thread that re-hashes (0.6), the table of
a small file (0.3), frames that wait and one that is decoded (0.6), three threads (0.4). One over one connection was
measured at 1.2 MiB: most of it is room that only a peer in a hurry, or a slow disk, fills."""


class Arrival(Protocol):
    """A connection whose peer may come in."""

    @property
    def host(self) -> str:
        """The address of the peer."""
        ...

    @property
    def socket(self) -> socket.socket:
        """The connection."""
        ...

    @property
    def token(self) -> bytes | None:
        """The token that both ends have proved, if there is one."""
        ...

    @property
    def user(self) -> str:
        """Whose token that is; NOBODY where the receiver has no users."""
        ...

    def welcome(self) -> m.Welcome | None:
        """Return the Welcome to be said; None where it was said."""
        ...

    def into_channel(self, patience: Patience, user_timeout: float, *, payload_bytes: int = 0) -> Channel:
        """Return the channel that a thread of the transfer goes on with. Raises ConnectionLost, MemoryError."""
        ...


class Admission:
    """The transfers of one receiver. `let_in` is for the server's thread; the rest is for any thread."""

    def __init__(
        self,
        settings: ReceiverSettings,
        homes: Homes,
        budget: Budget,
        *,
        ended: Callable[[Transfer, FilestreamerError | None], None],
        monitor: Monitor,
        log: Any,
        asked: Asked | None = None,
        dialling: Dialling | None = None,
        committed: Callable[[Transfer], None] | None = None,
    ) -> None:
        """Have no transfers yet. `homes` has the names of each user, `budget` the memory for all transfers.

        `asked` is all that they may bring. `dialling` dials their connections, if the senders do not. `committed` is
        called by each that has put everything in place, before its sender learns of it.

        `ended` is called in the thread of a transfer that has ended, with its error; it has to call `remove`.
        """
        self._settings = settings
        self._homes = homes
        self._ended = ended
        self._budget = budget
        self._monitor = monitor
        self._log = log
        self._asked = asked
        self._dialling = dialling
        self._committed = committed
        self.on_few_threads: Callable[[], None] = lambda: None
        """Called if a thread that a transfer needs can't be started: the caller may stop another thread for it."""
        self._lock = threading.Lock()  # protects _transfers and _homes
        self._transfers: dict[tuple[str, bytes], Transfer] = {}
        """By user and transfer_id."""
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._descriptors = most - min(SPARE_DESCRIPTORS, most // 3)
        """The descriptors that data connections may have, each one for its socket and one for a file that it writes."""
        secured_bytes = SECURED_BYTES if settings.tls else 0
        self._transfer_bytes = TRANSFER_BYTES + 3 * secured_bytes
        self._rate_limit = RateLimit(settings.rate_limit) if settings.rate_limit else None
        self._socket_limits = process_limit.read_socket_limits()._replace(secured_bytes=secured_bytes)

    @property
    def is_idle(self) -> bool:
        """Whether there is no transfer."""
        with self._lock:
            return not self._transfers

    @property
    def is_connected(self) -> bool:
        """Whether any transfer has a connection."""
        with self._lock:
            return any(transfer.liveness.is_connected for transfer in self._transfers.values())

    def counters(self) -> list[TransferCounters]:
        """Return the counters of the transfers that are under way."""
        with self._lock:
            return [transfer.counters for transfer in self._transfers.values() if transfer.counters.name]

    def memory(self) -> tuple[int, int]:
        """Return (limit, used): the bytes that senders can make this process hold after their opening."""
        return self._budget.total_bytes, self._budget.used_bytes

    def earlier_tokens(self, current: Container[bytes]) -> Mapping[bytes, set[bytes]]:
        """Return the tokens with which transfers that are under way were let in, and which are not `current` any more.

        Each has the ids of these transfers.
        """
        found: dict[bytes, set[bytes]] = {}
        with self._lock:
            for (_, transfer_id), transfer in self._transfers.items():
                if transfer.token is not None and transfer.token not in current:
                    found.setdefault(transfer.token, set()).add(transfer_id)
        return found

    def user_of(self, transfer_id: bytes, token: bytes) -> str | None:
        """Return whose the transfer of this id is that was let in with this token; None where there is none."""
        with self._lock:
            for (user, known), transfer in self._transfers.items():
                if known == transfer_id and transfer.token == token:
                    return user
        return None

    def expel_others(self, users: Container[str]) -> None:
        """End the transfers of all but these users."""
        with self._lock:
            others = [transfer for (user, _), transfer in self._transfers.items() if user not in users]
        for transfer in others:
            transfer.expel()

    def remove(self, transfer: Transfer) -> None:
        """Remove a transfer that has ended."""
        with self._lock:
            self._transfers.pop((transfer.user, transfer.transfer_id), None)
            if not any(user == transfer.user for user, _ in self._transfers):
                self._homes.leave(transfer.user)

    def stop(self) -> None:
        """End every transfer; wait at most END_SECONDS."""
        if self._rate_limit is not None:
            self._rate_limit.close()
        with self._lock:
            transfers = list(self._transfers.values())
        deadline = time.monotonic() + END_SECONDS
        for transfer in transfers:
            error = TransferFailed(Code.SHUTTING_DOWN, "the receiver was asked to end: start it again")
            transfer.end_by(deadline, error)
        join_all(transfers, END_SECONDS)

    # --- a connection

    def find_place(self, arrival: Arrival, hello: m.Hello) -> tuple[Transfer, ConnectionBudget]:
        """Return the transfer of a connection, new where it is not known, and the memory that the connection may use.

        Raises TransferFailed (UNKNOWN_TRANSFER, LIMIT), RemoteProtocolError. Follow it with `let_in`.
        """
        transfer = self._transfer_of(hello, arrival)
        transfer.token = arrival.token
        if hello.role is not m.Role.DATA:
            return transfer, CONTROL
        if not self._has_room(arrival, transfer):
            raise TransferFailed(Code.LIMIT, "too many connections: try again later")
        return transfer, transfer.connection_set.admit(hello.connection_id)

    def let_in(self, arrival: Arrival, hello: m.Hello, transfer: Transfer, budget: ConnectionBudget) -> None:
        """Hand a connection over to a thread of its transfer. Raises ConnectionLost where the peer is gone."""
        is_data = hello.role is m.Role.DATA
        try:
            channel = _channel(arrival, budget)
        except (ConnectionLost, MemoryError) as error:
            if is_data:
                transfer.connection_set.cancel(budget)
            if isinstance(error, ConnectionLost):
                raise
            self._report_refusal("no memory for its buffer")
            arrival.socket.close()
            return
        if is_data:
            self._start_data(arrival, hello, transfer, budget, channel)
        elif not transfer.mailbox.post_now(ControlUp(channel, arrival.welcome())):
            channel.close()

    def _start_data(
        self,
        arrival: Arrival,
        hello: m.Hello,
        transfer: Transfer,
        budget: ConnectionBudget,
        channel: Channel,
    ) -> None:
        counters = transfer.connection_set.counters_of(hello.connection_id)
        try:
            connection = DataConnection(transfer.context, channel, arrival.welcome(), counters, budget)
            start_thread(connection, "a data connection")
        except (TransferFailed, MemoryError):
            if transfer.connection_set.admitted <= 1:
                self.on_few_threads()
            reason = "no thread can be started"
            self._report_refusal(reason)
            with contextlib.suppress(FilestreamerError):
                refusal = m.Refusal if arrival.welcome() is not None else m.Abort
                channel.send_message(refusal(Code.LIMIT, f"{reason}: try again later"))
            channel.close()
            transfer.connection_set.cancel(budget)

    def _report_refusal(self, reason: str) -> None:
        self._monitor.refused("limit")
        self._log.warning("connection_refused", code="limit", reason=reason)

    def _has_room(self, arrival: Arrival, wanted_by: Transfer) -> bool:
        """Return whether there is a place for another data connection; if not, close one, for the next try."""
        with self._lock:
            transfers = sorted(self._transfers.values(), key=lambda each: each.connection_set.admitted, reverse=True)
        of_users = Counter[str]()
        for each in transfers:
            of_users[each.user] += each.connection_set.admitted
        admitted, of_user = of_users.total(), of_users[wanted_by.user]
        if arrival.socket.fileno() + (admitted if wanted_by.connection_set.admitted else 0) >= self._descriptors:
            return False
        places = min(CONNECTIONS, self._descriptors // 2)
        is_within = not (wanted_by.user and of_user) or of_user < places - admitted
        if admitted < CONNECTIONS and is_within:
            return True
        now = time.monotonic()
        # First, try an idle connection of a transfer that has more connections than this one will have; then a busy one
        # of a transfer that has more than its share.
        least = wanted_by.connection_set.admitted + 1
        yielding = _yielding(transfers, wanted_by.user, of_users)
        for other in yielding:
            if other.connection_set.admitted <= least:
                break
            if other.connection_set.shed(now, limits.OPENING_SILENCE_SECONDS):
                return False
        share = sum(each.connection_set.admitted for each in yielding) // max(1, len(yielding))
        if yielding and yielding[0].connection_set.admitted > max(share, least):
            yielding[0].connection_set.shed(now, 0.0, busy=True)
        return False

    # --- a transfer

    def _transfer_of(self, hello: m.Hello, arrival: Arrival) -> Transfer:
        with self._lock:
            transfer = self._transfers.get((arrival.user, hello.transfer_id))
            if transfer is not None:
                transfer.check(hello)
                return transfer
            if hello.role is m.Role.DATA:
                raise TransferFailed(Code.UNKNOWN_TRANSFER, "this receiver does not know the transfer")
            transfer = self._new_transfer(hello, arrival)
            self._transfers[arrival.user, hello.transfer_id] = transfer
        try:
            start_thread(transfer, "a transfer")
        except TransferFailed:
            self.on_few_threads()
            self.remove(transfer)
            transfer.account.close()
            raise TransferFailed(Code.LIMIT, "no thread can be started: try again later") from None
        return transfer

    def _new_transfer(self, hello: m.Hello, arrival: Arrival) -> Transfer:
        """Make a transfer, if there is a place for it. Raises TransferFailed(LIMIT). Call it with the lock."""
        user = arrival.user
        complete = [known for known in self._transfers.values() if known.is_complete]
        under_way = [known for known in self._transfers.values() if not known.is_complete]
        if (self._is_full_for(user, under_way) and not self._make_place(user)) or len(under_way) >= 2 * TRANSFERS:
            raise TransferFailed(
                Code.LIMIT, f"{'too many' if user else TRANSFERS} transfers are under way: try again later"
            )
        kept = Counter(known.user for known in complete)
        complete.sort(key=lambda known: -kept[known.user])
        for known in complete[: max(0, len(complete) - TRANSFERS + 1)]:
            known.dismiss()
        account = self._reserve(arrival, complete)
        log = self._log.bind(user=user) if user else self._log
        transfer = Transfer(
            self._homes.of(user),
            hello,
            account,
            self._settings.patience,
            ended=self._ended,
            user=user,
            log=log.bind(transfer=hello.transfer_id.hex()[:8]),
            window_bytes=self._settings.window,
            socket_limits=self._socket_limits,
            rate_limit=self._rate_limit,
            run=self._settings.run or "",
            asked=self._asked,
            dialling=self._dialling,
            committed=self._committed,
        )
        transfer.counters.tolerated = self._settings.tolerated
        return transfer

    def _is_full_for(self, user: str, under_way: list[Transfer]) -> bool:
        """Return whether this user may have no further transfer. Call it with the lock."""
        places = TRANSFERS
        if user:  # each keeps the memory that is reserved for it, so that places and memory are shared alike
            places = min(places, self._budget.total_bytes // self._transfer_bytes)
        free = places - sum(not known.is_ending for known in under_way)
        return free <= (sum(known.user == user for known in under_way) if user else 0)

    def _make_place(self, user: str) -> bool:
        """End a transfer that makes no progress, for one of this user; return whether there is one.

        A transfer that has offered nothing is ended first. Call it with the lock.
        """
        under_way = [each for each in self._transfers.values() if not each.is_complete]
        yielding = _yielding(under_way, user, Counter(each.user for each in under_way))
        running = [each for each in yielding if not each.is_ending]
        idle = [each for each in running if each.liveness.has_offered_nothing]
        idle = idle or [each for each in running if each.liveness.is_stalled]
        if idle:
            max(idle, key=lambda each: each.liveness.idle_seconds).yield_place()
        return bool(idle)

    def _reserve(self, arrival: Arrival, complete: list[Transfer]) -> Account:
        """Reserve the memory of a transfer. Raises TransferFailed(LIMIT). Call it with the lock.

        If there is no memory, transfers are asked to end now, so that the next try finds theirs: complete ones, and the
        one whose sender has been gone for longest or, if there is none, one that makes no progress.
        """
        try:
            return self._budget.admit(arrival.user or arrival.host, self._transfer_bytes)
        except TransferFailed:
            for known in complete:
                known.dismiss()
            under_way = [known for known in self._transfers.values() if not known.is_complete]
            yielding = _yielding(under_way, arrival.user, Counter(known.user for known in under_way))
            gone = [known for known in yielding if known.liveness.is_abandoned and not known.has_passed_on]
            if gone:
                reason = "the sender is gone, and other transfers need the memory; what was received is kept"
                longest = min(gone, key=lambda known: known.liveness.connected_at)
                longest.end_soon(TransferFailed(Code.TIMEOUT, reason))
            else:
                self._make_place(arrival.user)
            raise


def _yielding(transfers: list[Transfer], user: str, has: Counter[str]) -> list[Transfer]:
    """Return those that may lose something for a transfer of this user: its own, and those of users who have more."""
    return [each for each in transfers if each.user == user or has[each.user] > has[user]]


def _channel(arrival: Arrival, budget: ConnectionBudget) -> Channel:
    """Return the channel of a connection, which keeps to its budget. Raises ConnectionLost, MemoryError."""
    with contextlib.suppress(OSError):  # where the peer is gone, the channel says so
        limit_socket_buffers(arrival.socket, budget)
    return arrival.into_channel(lambda: None, USER_TIMEOUT_SECONDS, payload_bytes=budget.payload_bytes)
