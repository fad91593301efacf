"""Raw peers where the receiver dials: frame by frame, as `tests.support.peer` has them where the sender does."""

import socket
from typing import Self

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.framing import frame_of, read_body
from filestreamer.wire.opening import random_id
from filestreamer.wire.receiver_dials import DialledSenderOpening, DiallingReceiverOpening, Joined
from tests.support.peer import NO_RUNS, Link, own_token
from tests.support.services import HANG


class DiallingReceiver:
    """Dials a real sender that listens; closes everything with the block."""

    def __init__(self, address: str, *, token: bytes | None = None, incarnation: bytes = b"") -> None:
        """`token` is this user's own where it is None."""
        host, _, port = address.rpartition(":")
        self._address = host, int(port)
        self.token = token if token is not None else own_token()
        self.incarnation = incarnation or random_id()
        self.job = ""
        """The job that its Welcome names, whatever that of the sender is; empty: that one."""
        self._links: list[Link] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for link in self._links:
            link.close()

    def connect(self) -> Link:
        """Connect, and no more."""
        link = Link(socket.create_connection(self._address, timeout=HANG))
        self._links.append(link)
        return link

    def greet(self, role: m.Role) -> tuple[Link, DiallingReceiverOpening]:
        """Say Greeting."""
        link = self.connect()
        opening = DiallingReceiverOpening(self.incarnation, role, self.token, features=NO_RUNS, job=self.job)
        link.send_raw(frame_of(opening.greeting_body))
        return link, opening

    def open(self, role: m.Role) -> tuple[Link, m.Hello]:
        """Open a connection. Raises Refused."""
        link, opening = self.greet(role)
        link.send_raw(frame_of(opening.answer(read_body(link.read_exact, limits.OPENING_FRAME_BYTES))))
        if opening.awaits_proof:
            opening.enter(read_body(link.read_exact, limits.OPENING_FRAME_BYTES))
        assert opening.hello is not None
        return link, opening.hello


class ListeningSender:
    """Takes the connections of a real receiver; closes everything with the block."""

    def __init__(self, *, connections: int = 4) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(HANG)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.token = own_token()
        self.transfer_id = random_id()
        self.connections = connections
        self._links: list[Link] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for link in self._links:
            link.close()

    def patience(self, seconds: float) -> None:
        """Wait no longer than this for connections from now on: `accept` raises TimeoutError."""
        self._listener.settimeout(seconds)

    def accept(self) -> Link:
        """Accept a connection, and no more."""
        link = Link(self._listener.accept()[0])
        self._links.append(link)
        return link

    def opening(self, connection_id: int = 0, token: bytes | None = None) -> DialledSenderOpening:
        """Make the opening of one connection."""
        joined = Joined(self.transfer_id, connection_id, self.connections)
        return DialledSenderOpening(token or self.token, join=lambda _: joined)

    def open(self, role: m.Role, connection_id: int = 0) -> Link:
        """Accept a connection of this role, and let it in."""
        link, opening = self.accept(), self.opening(connection_id)
        for _ in range(2):
            answer = opening.take(read_body(link.read_exact, limits.OPENING_FRAME_BYTES))
            if answer is not None:
                link.send_raw(frame_of(answer))
        assert opening.greeting is not None
        assert opening.greeting.role is role
        return link
