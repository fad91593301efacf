"""Places, connections and memory: what one user of a receiver can't take from the others."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from filestreamer.telemetry.monitor import Monitor
from filestreamer.wire import features, limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, FilestreamerError, TransferFailed
from filestreamer.wire.opening import random_id
from receiver.disk.destination import Destination
from receiver.memory.budget import Budget
from receiver.server.admission import CONNECTIONS, TRANSFER_BYTES, TRANSFERS, Admission
from receiver.server.homes import Homes
from receiver.settings import ReceiverSettings
from receiver.transfer.transfer import Transfer
from tests.support.waiting import until


class Quiet:
    """Logs nothing."""

    def bind(self, **_: Any) -> "Quiet":
        return self

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_, **__: None


class Peer:
    """A connection that has proved the token of a user (`Arrival`)."""

    host = "192.0.2.1"

    def __init__(self, user: str) -> None:
        self.user = user
        self.token = f"the token of {user}".encode()
        self.socket = socket.socket()
        self.socket.close()  # it has no descriptor: those of the tests don't count

    def welcome(self) -> None:
        return None

    def into_channel(self, *_: object, **__: object) -> Any:
        raise NotImplementedError


class Receiver:
    """An admission whose transfers wait for a control connection that never comes."""

    def __init__(self, destination: Destination, budget_bytes: int = 64 * limits.GIB) -> None:
        self.ended: list[tuple[Transfer, FilestreamerError | None]] = []
        settings = ReceiverSettings(tokens="tokens")
        self.homes = Homes(destination, None)
        self.admission = Admission(
            settings,
            self.homes,
            Budget(budget_bytes),
            ended=self._end,
            monitor=Monitor("receiver", settings, Quiet()),
            log=Quiet(),
        )

    def _end(self, transfer: Transfer, error: FilestreamerError | None) -> None:
        self.ended.append((transfer, error))
        self.admission.remove(transfer)

    def hello(self, user: str, transfer_id: bytes | None = None, role: m.Role = m.Role.CONTROL, number: int = 0) -> Any:
        """Come with a Hello; return the transfer and the memory of the connection. Raises TransferFailed."""
        hello = m.Hello(1, 1, transfer_id or random_id(), role, number, 256, bytes(16), True, features.KNOWN)
        return self.admission.find_place(Peer(user), hello)

    def begin(self, user: str, transfer_id: bytes | None = None) -> Transfer:
        """Begin a transfer, or rejoin one. Raises TransferFailed."""
        transfer: Transfer = self.hello(user, transfer_id)[0]
        return transfer

    def fill(self, user: str) -> list[Transfer]:
        """Begin as many transfers as this user can have."""
        begun: list[Transfer] = []
        with contextlib.suppress(TransferFailed):
            while len(begun) < 2 * TRANSFERS:
                begun.append(self.begin(user))
        return begun

    def connect(self, transfer: Transfer, number: int = 0) -> None:
        """Open a data connection of a transfer. Raises TransferFailed."""
        self.hello(transfer.user, transfer.transfer_id, m.Role.DATA, number)


@contextlib.contextmanager
def refused(code: Code) -> Iterator[None]:
    with pytest.raises(TransferFailed) as caught:
        yield
    assert caught.value.code is code
    for other in ("alice", "bob", "carol"):
        assert other not in str(caught.value)


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    """Return a receiver with memory for any number of transfers."""
    made = Receiver(Destination(str(tmp_path)))
    yield made
    made.admission.stop()


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()], ids=["threads", "memory"])
def test_a_transfer_that_gets_no_thread_is_refused(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It takes no place, and the service goes on: its sender tries again."""

    def fail(_: Transfer) -> None:
        raise error

    with monkeypatch.context() as without_threads, refused(Code.LIMIT):
        without_threads.setattr(Transfer, "start", fail)
        receiver.begin("alice")
    assert receiver.admission.is_idle
    assert receiver.begin("alice").is_alive()


# ------------------------------------------------------------------------------------------------------------- whose


def test_another_users_transfer_is_an_unknown_one(receiver: Receiver) -> None:
    of_alice = receiver.begin("alice")
    said = []
    for transfer_id in (of_alice.transfer_id, random_id()):
        with pytest.raises(TransferFailed) as caught:
            receiver.hello("bob", transfer_id, m.Role.DATA)
        said.append((caught.value.code, caught.value.reason))
    assert said[0] == said[1]
    assert said[0][0] is Code.UNKNOWN_TRANSFER
    of_bob = receiver.begin("bob", of_alice.transfer_id)
    assert of_bob is not of_alice
    assert receiver.begin("bob", of_alice.transfer_id) is of_bob
    assert receiver.begin("alice", of_alice.transfer_id) is of_alice


def test_the_token_of_before_is_that_of_its_transfer(receiver: Receiver) -> None:
    of_alice, of_bob = receiver.begin("alice"), receiver.begin("bob")
    old = b"the token of alice"
    admission = receiver.admission
    assert admission.earlier_tokens({old, b"the token of bob"}) == {}
    assert admission.earlier_tokens({b"the token of bob"}) == {old: {of_alice.transfer_id}}
    assert admission.user_of(of_alice.transfer_id, old) == "alice"
    assert admission.user_of(of_bob.transfer_id, old) is None


def test_a_user_who_is_gone_loses_everything_and_nobody_else_does(receiver: Receiver) -> None:
    gone, left = [receiver.begin("alice") for _ in range(3)], receiver.begin("bob")
    receiver.admission.expel_others({"bob"})
    assert receiver.admission.earlier_tokens(()) == {b"the token of bob": {left.transfer_id}}
    until(lambda: len(receiver.ended) == 3, "they end")
    assert {transfer for transfer, _ in receiver.ended} == set(gone)
    for _, error in receiver.ended:
        assert isinstance(error, TransferFailed)
        assert (error.code, error.exit_code) == (Code.TOKEN, 3)
        assert "alice was taken away" in error.reason
    assert receiver.begin("bob", left.transfer_id) is left


def test_a_user_has_one_registry_while_there_are_transfers(receiver: Receiver) -> None:
    first, second, other = receiver.begin("alice"), receiver.begin("alice"), receiver.begin("bob")
    assert first.context.names is second.context.names
    assert first.context.names is not other.context.names
    receiver.admission.expel_others({"bob"})
    until(lambda: len(receiver.ended) == 2, "they end")
    assert receiver.begin("alice").context.names is not first.context.names


# ------------------------------------------------------------------------------------------------------------ how much


def test_a_user_leaves_places_for_others(receiver: Receiver) -> None:
    """The first one half of them, the second one half of what is left, and so on: nobody finds none."""
    users = [f"u{number}" for number in range(7)]
    assert [len(receiver.fill(user)) for user in users] == [32, 16, 8, 4, 2, 1, 1]
    for user in users:
        with refused(Code.LIMIT):
            receiver.begin(user)


def test_without_users_one_sender_may_have_all_places(receiver: Receiver) -> None:
    assert len(receiver.fill("")) == TRANSFERS


def test_little_memory_is_shared_as_places_are(tmp_path: Path) -> None:
    receiver = Receiver(Destination(str(tmp_path)), 8 * TRANSFER_BYTES)
    counts = [len(receiver.fill(user)) for user in ("alice", "bob", "carol")]
    receiver.admission.stop()
    assert counts == [4, 2, 1]


def stall(transfers: list[Transfer], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have these transfers look as if nothing had been offered for long."""
    stalled = {each.liveness for each in transfers}
    monkeypatch.setattr(
        "receiver.transfer.liveness.Liveness.has_offered_nothing", property(lambda self: self in stalled)
    )


def test_an_idle_transfer_gives_way_to_a_user_who_has_less(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """And to no other one: whoever has most would else take the last place of the others."""
    of_users = {user: receiver.fill(user) for user in ("alice", *(f"u{number}" for number in range(6)))}
    (idle,) = of_users["u5"]
    stall([idle], monkeypatch)
    for user in ("alice", "u0"):
        with refused(Code.LIMIT):
            receiver.begin(user)
    assert not idle.is_ending
    stall(of_users["alice"][:1], monkeypatch)
    receiver.begin("late")
    until(lambda: [transfer for transfer, _ in receiver.ended] == of_users["alice"][:1], "it ends")


def test_a_user_leaves_connections_for_others(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many transfers they are of: and another user's busy one is closed for nobody who has more."""
    monkeypatch.setattr(receiver.admission, "_descriptors", 4 * CONNECTIONS)

    def connect(user: str, transfers: int) -> int:
        admitted = 0
        for transfer in [receiver.begin(user) for _ in range(transfers)]:
            with contextlib.suppress(TransferFailed):
                for number in range(256):
                    receiver.connect(transfer, number)
                    admitted += 1
        return admitted

    assert connect("alice", 4) == CONNECTIONS // 2
    assert connect("bob", 2) == CONNECTIONS // 4
    assert connect("carol", 1) == CONNECTIONS // 8
    assert connect("late", 1) == CONNECTIONS // 16


def test_few_descriptors_are_shared_alike(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver.admission, "_descriptors", 32)  # for 16 connections, with a file each
    greedy, modest = receiver.begin("alice"), receiver.begin("bob")
    for number in range(8):
        receiver.connect(greedy, number)
    with refused(Code.LIMIT):
        receiver.connect(greedy, 8)
    for number in range(4):
        receiver.connect(modest, number)
