"""Connecting: the first address that answers, and what becomes of the sockets of the others. Real connections."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from filestreamer.wire.errors import ConnectionLost
from filestreamer.wire.sockets.addresses import SockAddress, resolve
from filestreamer.wire.sockets.dial import FAILURES_SHOWN, Dialing, connect, interleave

LONG_SECONDS = 3600.0
"""Far longer than a test may take: what waits for it has failed."""
SHORT_SECONDS = 0.01


class CalledOff(Exception):
    """What the test raises while a socket is being connected."""


@pytest.fixture
def refusing() -> Iterator[int]:
    """Keep a port of 127.0.0.1 where nobody listens, and nobody else can."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield int(sock.getsockname()[1])


@pytest.fixture
def hole() -> Iterator[SockAddress]:
    """Return an address from which no answer comes: connections wait there to be accepted, as many as there may be."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as kept:
        for _ in range(2):
            waiting = kept.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        yield full.getsockname()


def ipv4(*addresses: SockAddress) -> list[tuple[int, SockAddress]]:
    return [(socket.AF_INET, address) for address in addresses]


def test_connect(listening: socket.socket) -> None:
    with connect(ipv4(listening.getsockname()), LONG_SECONDS) as sock:
        assert sock.getpeername() == listening.getsockname()


def test_the_first_address_refuses(listening: socket.socket, refusing: int) -> None:
    addresses = ipv4(("127.0.0.1", refusing), listening.getsockname())

    with connect(addresses, LONG_SECONDS) as sock:
        assert sock.getpeername() == listening.getsockname()


def test_a_name_whose_first_address_refuses(listening: socket.socket, names: Callable[..., None]) -> None:
    names("::1", "127.0.0.1")
    port = listening.getsockname()[1]

    with connect(resolve("two.example", port), LONG_SECONDS) as sock:
        assert sock.getpeername() == listening.getsockname()


def test_an_address_family_that_this_machine_lacks(listening: socket.socket) -> None:
    addresses = [(int(socket.AF_APPLETALK), ("127.0.0.1", 1)), *ipv4(listening.getsockname())]

    with connect(addresses, LONG_SECONDS) as sock:
        assert sock.getpeername() == listening.getsockname()


def test_every_address_refuses(refusing: int) -> None:
    addresses = ipv4(("127.0.0.1", refusing), ("127.0.0.2", refusing))

    with pytest.raises(ConnectionLost) as caught:
        connect(addresses, LONG_SECONDS)
    assert f"127.0.0.1:{refusing}: Connection refused; 127.0.0.2:{refusing}: Connection refused" == str(caught.value)


def test_no_address() -> None:
    with pytest.raises(ConnectionLost, match="the name has no address"):
        connect([], LONG_SECONDS)


def test_nobody_connects_to_himself() -> None:
    """TCP allows it where the port that the kernel picks is the very one that nobody listens on yet."""
    with socket.socket() as free:
        free.bind(("127.0.0.77", 0))  # where nobody else listens meanwhile
        address = free.getsockname()

    with pytest.raises(ConnectionLost, match="Connection refused"):
        connect(ipv4(address), LONG_SECONDS, lambda sock: sock.bind(address))


def test_a_socket_is_told_before_it_connects(listening: socket.socket, refusing: int) -> None:
    told: list[socket.socket] = []
    addresses = ipv4(("127.0.0.1", refusing), listening.getsockname())

    with connect(addresses, LONG_SECONDS, told.append) as sock:
        assert len(told) == 2
        assert told[0].fileno() == -1  # what failed is closed
        assert told[1] is sock


def test_a_connect_that_is_called_off_leaves_no_socket_open(listening: socket.socket) -> None:
    told: list[socket.socket] = []

    def call_off(sock: socket.socket) -> None:
        told.append(sock)
        raise CalledOff

    with pytest.raises(CalledOff):
        connect(ipv4(listening.getsockname()) * 2, LONG_SECONDS, call_off)
    assert [sock.fileno() for sock in told] == [-1]


def test_an_address_without_an_answer_costs_no_timeout(listening: socket.socket, hole: SockAddress) -> None:
    told: list[socket.socket] = []

    with connect(ipv4(hole, listening.getsockname()), LONG_SECONDS, told.append) as sock:
        assert sock.getpeername() == listening.getsockname()
        assert sock.gettimeout() == LONG_SECONDS
    assert [one.fileno() for one in told] == [-1, -1]


def test_the_next_one_is_tried_at_once_where_one_fails(
    listening: socket.socket, hole: SockAddress, refusing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the delay between two attempts is, and whatever is under way."""
    told: list[socket.socket] = []

    def tell(sock: socket.socket) -> None:
        told.append(sock)
        if len(told) == 2:  # the one that refuses
            monkeypatch.setattr("filestreamer.wire.sockets.dial.ATTEMPT_DELAY_SECONDS", LONG_SECONDS)

    with connect(ipv4(hole, ("127.0.0.1", refusing), listening.getsockname()), LONG_SECONDS, tell) as sock:
        assert sock.getpeername() == listening.getsockname()


def test_no_address_answers(hole: SockAddress, refusing: int) -> None:
    """Each address is named once, however often the name has it."""
    addresses = ipv4(hole, ("127.0.0.1", refusing), hole, ("127.0.0.1", refusing))

    with pytest.raises(ConnectionLost) as caught:
        connect(addresses, SHORT_SECONDS)
    assert sorted(str(caught.value).split("; ")) == sorted(
        [f"127.0.0.1:{hole[1]}: no answer within 0.01 s", f"127.0.0.1:{refusing}: Connection refused"]
    )


def test_very_many_addresses(refusing: int) -> None:
    addresses = ipv4(*((f"127.0.0.{number}", refusing) for number in range(1, 251)))

    with pytest.raises(ConnectionLost) as caught:
        connect(addresses, LONG_SECONDS)
    *named, others = str(caught.value).split("; ")
    assert [f"127.0.0.{number}:{refusing}: Connection refused" for number in range(1, FAILURES_SHOWN + 1)] == named
    assert others == f"and {250 - FAILURES_SHOWN} other addresses"


def test_the_others_are_tried_where_the_one_that_answered_is_of_no_use(
    listening: socket.socket, hole: SockAddress, refusing: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as second:
        useless, useful = listening.getsockname(), second.getsockname()
        dialing = Dialing(ipv4(("127.0.0.1", refusing), hole, useless, useful), LONG_SECONDS)
        address, sock = dialing.connect()
        sock.close()
        assert address[1] == useless
        dialing.failed(address, "it is a printer")

        address, sock = dialing.connect()
        sock.close()
        assert address[1] == useful
        dialing.failed(address, f"127.0.0.1:{useful[1]} closed the connection")
    named = str(dialing.failure()).split("; ")
    assert named == [
        f"127.0.0.1:{refusing}: Connection refused",
        f"127.0.0.1:{useless[1]}: it is a printer",
        f"127.0.0.1:{useful[1]} closed the connection",
    ]


def test_attempts_that_were_called_off_are_made_again(listening: socket.socket, hole: SockAddress) -> None:
    dialing = Dialing(ipv4(hole, listening.getsockname()), 0.5)
    address, sock = dialing.connect()
    sock.close()
    dialing.failed(address, "it is a printer")

    with pytest.raises(ConnectionLost, match=f"127.0.0.1:{hole[1]}: no answer"):
        dialing.connect()


def test_another_thread_shuts_what_is_being_connected(hole: SockAddress) -> None:
    begun = threading.Event()
    told: list[socket.socket] = []

    def tell(sock: socket.socket) -> None:
        told.append(sock)
        begun.set()

    def shut() -> None:
        assert begun.wait(30)
        while told[0].fileno() >= 0:  # until the connecting thread has noticed: it may not have begun to connect
            with contextlib.suppress(OSError):
                told[0].shutdown(socket.SHUT_RDWR)

    thread = threading.Thread(target=shut)
    thread.start()
    with pytest.raises(ConnectionLost):
        connect(ipv4(hole), LONG_SECONDS, tell)
    thread.join()


def test_families_take_turns() -> None:
    """RFC 8305, section 4; the first family is that of the resolver's first address."""
    six = [(int(socket.AF_INET6), (f"fd00::{number}", 1, 0, 0)) for number in (1, 2, 3)]
    four = [(int(socket.AF_INET), ("192.0.2.1", 1))]

    assert interleave([*six, *four, *six]) == [six[0], four[0], six[1], six[2]]
    assert interleave([]) == []


def test_connect_from_an_address(listening: socket.socket) -> None:
    with connect(ipv4(listening.getsockname()), LONG_SECONDS, source="127.0.0.9") as sock:
        accepted, peer = listening.accept()
        accepted.close()
        assert peer == sock.getsockname()
        assert peer[0] == "127.0.0.9"
        assert sock.getsockopt(socket.IPPROTO_IP, 24) == 1  # IP_BIND_ADDRESS_NO_PORT: ports are shared among peers


def test_connect_from_an_address_of_the_other_family(listening: socket.socket) -> None:
    six = (int(socket.AF_INET6), ("::1", 1, 0, 0))
    with connect([six, *ipv4(listening.getsockname())], LONG_SECONDS, source="127.0.0.9") as sock:
        assert sock.getsockname()[0] == "127.0.0.9"
    with pytest.raises(ConnectionLost, match=r"^\[::1\]:1: not tried, as --source-address 127.0.0.9 is of the other"):
        connect([six], LONG_SECONDS, source="127.0.0.9")


def test_connect_from_an_address_that_this_machine_lacks(listening: socket.socket) -> None:
    told: list[socket.socket] = []
    with pytest.raises(ConnectionLost, match=r"--source-address 192\.0\.2\.1: this machine does not have this address"):
        connect(ipv4(listening.getsockname()), LONG_SECONDS, told.append, source="192.0.2.1")
    assert [sock.fileno() for sock in told] == [-1]
