"""Which way the connections go: directly to the far side or, where it can't be reached so, through ssh."""

import os
import socket
import sys
import time
from pathlib import Path
from typing import Final, NamedTuple

from filestreamer.ssh import round_trip
from filestreamer.ssh.lines import Answer
from filestreamer.wire import framing, limits
from filestreamer.wire.codec import decode
from filestreamer.wire.errors import FilestreamerError
from filestreamer.wire.messages import Greeting
from filestreamer.wire.session import Side
from filestreamer.wire.sockets.addresses import Address, format_address, resolve
from filestreamer.wire.sockets.dial import Dialing
from filestreamer.wire.sockets.transport import Deadline

DIRECT: Final = "direct"
THROUGH_SSH: Final = "ssh"
TRYING_SECONDS: Final = 5.0
"""How long a direct connection may take, the TLS handshake included."""
CONNECTIONS: Final = 8
"""The connections through ssh over a long path, or over one of which nothing is known."""
SHORT_SECONDS: Final = 0.005
"""The longest round-trip of a short path: the window of one ssh carries 400 MB/s there."""
_ESTABLISHED: Final = "01"
_LINK_LOCAL: Final = ("fe8", "fe9", "fea", "feb")


class Way(NamedTuple):
    """The way that was chosen, and why."""

    name: str
    reason: str


class Link(NamedTuple):
    """The TCP connection of a process of this machine."""

    local: round_trip.End
    remote: round_trip.End

    def host(self, interface: str) -> str | None:
        """Return the address of the peer; a link-local one is on this `interface`, and None where that is empty."""
        packed = self.remote[0]
        host = socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
        if not host.startswith(_LINK_LOCAL):
            return host
        return f"{host}%{interface}" if interface else None


def link_of(pid: int) -> Link | None:
    """Return the connection that a process of this machine has over TCP; None where that is not known.

    It is read from /proc: the sockets among the process's descriptors, in the tables of its network namespace (Linux,
    networking/proc_net_tcp.rst).
    """
    try:
        links = [entry.readlink() for entry in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return None
    inodes = {str(link)[len("socket:[") : -1] for link in links if str(link).startswith("socket:[")}
    for table in ("tcp", "tcp6"):
        try:
            rows = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, rows):
            if len(fields) > 9 and fields[9] in inodes and fields[3] == _ESTABLISHED:
                return Link(_end(fields[1]), _end(fields[2]))
    return None


def _end(text: str) -> round_trip.End:
    """Read ADDRESS:PORT as the kernel writes it: the address as words of 32 bits, in this machine's byte order."""
    digits, _, port = text.partition(":")
    words = [int(digits[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(digits), 8)]
    packed = b"".join(words)
    if len(packed) == 16 and packed.startswith(bytes(10) + b"\xff\xff"):
        packed = packed[12:]
    return packed, int(port, 16)


def connections_through_ssh(link: Link | None) -> int:
    """Return how many connections to use through ssh: nothing tells from outside how full such a connection is.

    Each ssh encrypts on one core, and has a window of 2 MiB: over a long path more are needed than cores are here.
    """
    rtt_seconds = None if link is None else round_trip.seconds(*link)
    if rtt_seconds is None or rtt_seconds > SHORT_SECONDS:
        return CONNECTIONS
    return min(CONNECTIONS, max(2, os.cpu_count() or 2))


def candidates(answer: Answer, reached: str | None) -> list[Address]:
    """Return where the far side may be reached directly: where ssh has reached it, and where it says that it listens.

    The two differ where addresses are translated on the way.
    """
    found: list[Address] = []
    # The interface behind a link-local address that the far side names is one of its own.
    there = None if answer.address.startswith(_LINK_LOCAL) else answer.address
    for host in (reached, there):
        if host is not None:
            try:
                found += [each for each in resolve(host, answer.port) if each not in found]
            except FilestreamerError:
                continue
    return found


def choose(asked: str | None, answer: Answer, addresses: list[Address], side: Side) -> Way:
    """Choose the way: the one that the user asks for or, where he does not, the direct one if that works now.

    `side` is the service that runs there.
    """
    if asked is not None:
        return Way(asked, "--via says so")
    if not addresses:
        return Way(THROUGH_SSH, "no address of that machine is known that could be reached directly")
    until = time.monotonic() + TRYING_SECONDS
    dialing = Dialing(addresses, TRYING_SECONDS)
    while True:
        try:
            address, sock = dialing.connect()
        except FilestreamerError as error:
            return Way(THROUGH_SSH, f"no direct connection: {error}")
        with sock:
            shown = format_address(address[1])
            try:
                sock.settimeout(max(0.1, until - time.monotonic()))
                _check(sock, answer, side)
                return Way(DIRECT, f"{shown} can be reached")
            except (FilestreamerError, OSError) as error:
                dialing.failed(address, str(error))
        if time.monotonic() >= until:
            return Way(THROUGH_SSH, f"no direct connection: {dialing.failure()}")


def _check(sock: socket.socket, answer: Answer, side: Side) -> None:
    """Make sure that this is the far side. Raises FilestreamerError, OSError."""
    if answer.sha256:
        from filestreamer.wire.sockets import tls

        context = tls.client_context(None, None, None, accepts_any=True)
        tls.handshake_as_sender(context.context, sock, answer.address, pins=(answer.sha256,))
        return
    # The token shows later that it is that very service. A sender says nothing before the Greeting that it waits for.
    if side == "sender":
        return
    deadline = Deadline(TRYING_SECONDS, "the Greeting")
    body = framing.read_body(lambda count: _read(sock, count, deadline), limits.OPENING_FRAME_BYTES)
    if not isinstance(decode(body), Greeting):
        raise OSError("it is another service")


def _read(sock: socket.socket, count: int, deadline: Deadline) -> memoryview:
    data = bytearray()
    while len(data) < count:
        deadline()  # beside the socket's timeout, which a peer that says a byte now and then never reaches
        some = sock.recv(count - len(data))
        if not some:
            raise ConnectionResetError("it closed the connection")
        data += some
    return memoryview(data)
