"""What the connections of a transfer share: who comes, who leaves, whatever is wrong with the files meanwhile."""

import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Final

import pytest

from filestreamer.process import log
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, TransferFailed
from filestreamer.wire.progress_clock import Patience
from filestreamer.wire.sockets.control_link import ControlLink
from filestreamer.wire.sockets.transport import Channel, prepare
from receiver.disk.report import Report
from receiver.file.rehash import Rehasher
from receiver.memory.budget import Account, Budget
from receiver.transfer.connection import DataConnection, _Received
from receiver.transfer.connection_set import ConnectionSet
from receiver.transfer.context import Context
from receiver.transfer.liveness import Liveness
from receiver.transfer.mailbox import Mailbox
from tests.support.services import HANG, UNIT

POISONED: Final = TransferFailed(Code.DESTINATION, "somebody changed the staging")


class Poisoned:
    """A target whose `detach` fails: a file that the connection kept open can't be finished."""

    @property
    def chunks(self) -> "Poisoned":
        return self

    def detach(self, connection: DataConnection) -> None:
        del connection
        raise POISONED

    def stop_writes(self) -> None:
        """Nothing is open."""


class Host:
    """A transfer, as far as a connection knows it."""

    def __init__(self, account: Account) -> None:
        self.over = threading.Event()
        counters = TransferCounters(bytes(16), "", m.RECEIVER_STAGES)
        self.connection_set = ConnectionSet(counters, 4, account, self.over.is_set)
        self.mailbox = Mailbox(self.over)
        link = ControlLink("receiver", 1, self.over)
        rehasher = Rehasher(self.mailbox.post, self.mailbox.post)
        transfer: Any = SimpleNamespace(is_complete=False)
        unused: Any = None
        self.context = Context(
            transfer=transfer,
            names=unused,
            features=(),
            account=account,
            counters=counters,
            over=self.over,
            mailbox=self.mailbox,
            link=link,
            connection_set=self.connection_set,
            rehasher=rehasher,
            disk_worker=unused,
            syncer=unused,
            liveness=Liveness(counters, link, self.connection_set, rehasher, patience=Patience(UNIT, UNIT)),
            report=Report(lambda: None),
            log=log.configure("receiver"),
        )

    def connect(self, connection_id: int) -> tuple[DataConnection, socket.socket]:
        """Let a connection in; return it, and the end of its peer."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            peer = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
        budget = self.connection_set.admit(connection_id)
        channel = Channel(prepare(ours, 60.0), lambda: None, payload_bytes=budget.payload_bytes)
        made = DataConnection(
            self.context, channel, m.Welcome(b""), self.connection_set.counters_of(connection_id), budget
        )
        made.start()
        return made, peer


@pytest.fixture
def budget() -> Budget:
    return Budget(1 << 30)


@pytest.fixture
def host(budget: Budget) -> Iterator[Host]:
    made = Host(budget.admit("peer", 4 << 20))
    yield made
    made.over.set()
    made.connection_set.target = None
    made.connection_set.stop()


def joined(host: Host, connection: DataConnection) -> bool:
    """Whether a connection has its place, within some time."""
    until = time.monotonic() + HANG
    while host.connection_set._connections.get(connection.connection_id) is not connection and time.monotonic() < until:
        time.sleep(0.01)
    return host.connection_set._connections.get(connection.connection_id) is connection


def test_files_that_can_not_be_left_end_the_transfer_and_keep_no_place(host: Host, budget: Budget) -> None:
    before = budget.used_bytes
    first, peer = host.connect(1)
    assert joined(host, first)
    target: Any = Poisoned()
    host.connection_set.target = target
    peer.close()
    first.join(HANG)
    assert host.mailbox.take(0) is POISONED
    assert (host.connection_set.admitted, host.connection_set.is_connected) == (0, False)
    assert budget.used_bytes == before
    second, peer = host.connect(1)
    assert joined(host, second)  # and spins around no connection that never goes
    peer.close()
    second.join(HANG)
    assert not second.is_alive()


def test_connections_are_shut_before_what_may_wait_for_one(host: Host) -> None:
    """The thread of an output writes acknowledgements, which a peer need not read."""
    connection, peer = host.connect(1)
    assert joined(host, connection)
    peer.settimeout(HANG)
    ends = []

    class Waiting(Poisoned):
        def stop_writes(self) -> None:
            while some := peer.recv(1 << 16):
                ends.append(len(some))
            ends.append(0)

        def detach(self, connection: DataConnection) -> None:
            """Nothing is under way."""

    target: Any = Waiting()
    host.connection_set.target = target
    host.over.set()
    host.connection_set.stop()
    assert ends[-1:] == [0]
    peer.close()


# --- connections over which nothing comes


def waits(connection: DataConnection) -> bool:
    """Whether a connection waits for bytes, within some time."""
    until = time.monotonic() + HANG
    while connection.stage != "receive" and time.monotonic() < until:
        time.sleep(0.01)
    return connection.stage == "receive"


def test_a_connection_that_waits_for_bytes_is_starved_after_a_heartbeat(host: Host) -> None:
    connection, peer = host.connect(3)
    with peer:
        assert waits(connection)
        heard_at = connection.channel.heard_at
        assert host.connection_set.starved(heard_at + limits.HEARTBEAT_SECONDS) == []
        assert host.connection_set.starved(heard_at + limits.HEARTBEAT_SECONDS + 0.1) == [3]


class Waiting:
    """An output that passes a chunk on when it is told to."""

    def __init__(self) -> None:
        self.passed_on: list[Any] = []

    def when_passed_on(self, position: int, connection: DataConnection, act: Any) -> None:
        del position, connection
        self.passed_on.append(act)


def test_a_connection_that_owes_an_answer_is_not_starved(host: Host) -> None:
    """A chunk of a pipe is acknowledged when it was passed on: until then the sender has reason to wait."""
    connection, peer = host.connect(0)
    with peer:
        assert waits(connection)
        late = connection.channel.heard_at + 2 * limits.HEARTBEAT_SECONDS
        output: Any = Waiting()
        connection._acknowledge_later(output, 0, _Received(range(7, 8), 0.0, 1, 100))
        assert host.connection_set.starved(late) == []
        output.passed_on.pop()()
        assert host.connection_set.starved(late) == [0]
