"""What the connections of a transfer share: who comes, who leaves, whatever is wrong with the files meanwhile."""

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, Final, Self

import pytest

from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, FilestreamerError, TransferFailed
from filestreamer.wire.sockets.transport import Channel, prepare
from receiver.memory.budget import Account, Budget
from receiver.transfer.connection import DataConnection
from receiver.transfer.connection_set import ConnectionSet
from tests.support.services import UNIT

SPOILT: Final = TransferFailed(Code.DESTINATION, "somebody changed the staging")


class Spoilt:
    """A cargo that can't let go of a connection: a file that it kept open can't be finished."""

    @property
    def chunks(self) -> Self:
        return self

    def detach(self, connection: DataConnection) -> None:
        del connection
        raise SPOILT

    def stop_writes(self) -> None:
        """Nothing is open."""


class Host:
    """A transfer as far as a connection knows it."""

    def __init__(self, account: Account) -> None:
        self.over = threading.Event()
        self.connection_set = ConnectionSet(
            TransferCounters(bytes(16), "", m.RECEIVER_STAGES), 4, account, self.over.is_set
        )
        self.heard: list[FilestreamerError | None] = []

    def left(self, connection: DataConnection, error: FilestreamerError | None) -> None:
        del connection
        self.heard.append(error)

    def note_mismatch(self, connection: DataConnection, chunk_id: int) -> None:
        """Nothing comes."""

    def peer_is_silent(self) -> bool:
        return False

    def connect(self, connection_id: int) -> tuple[DataConnection, socket.socket]:
        """Let a connection in; return it, and the end of its peer."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            peer = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
        seat = self.connection_set.admit(connection_id)
        channel = Channel(prepare(ours, 60.0), lambda: None, payload_bytes=seat.payload_bytes)
        made = DataConnection(self, channel, m.Welcome(b""), self.connection_set.counters_of(connection_id), seat)
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
    made.connection_set.end()


def joined(host: Host, connection: DataConnection) -> bool:
    """Whether a connection has its place, within some time."""
    until = time.monotonic() + UNIT
    while host.connection_set._connections.get(connection.connection_id) is not connection and time.monotonic() < until:
        time.sleep(0.01)
    return host.connection_set._connections.get(connection.connection_id) is connection


def test_files_that_can_not_be_left_end_the_transfer_and_keep_no_place(host: Host, budget: Budget) -> None:
    before = budget.used_bytes
    first, peer = host.connect(1)
    assert joined(host, first)
    target: Any = Spoilt()
    host.connection_set.target = target
    peer.close()
    first.join(UNIT)
    assert host.heard == [SPOILT]
    assert (host.connection_set.threads, host.connection_set.is_connected) == (0, False)
    assert budget.used_bytes == before
    second, peer = host.connect(1)
    assert joined(host, second)  # and spins around no connection that never goes
    peer.close()
    second.join(UNIT)
    assert not second.is_alive()


def test_connections_are_shut_before_what_may_wait_for_one(host: Host) -> None:
    """The thread of an output writes acknowledgements, which a peer need not read."""
    connection, peer = host.connect(1)
    assert joined(host, connection)
    peer.settimeout(UNIT)
    ends = []

    class Waiting(Spoilt):
        def stop_writes(self) -> None:
            while some := peer.recv(1 << 16):
                ends.append(len(some))
            ends.append(0)

        def detach(self, connection: DataConnection) -> None:
            """Nothing is under way."""

    target: Any = Waiting()
    host.connection_set.target = target
    host.over.set()
    host.connection_set.end()
    assert ends[-1:] == [0]
    peer.close()
