"""Which way the connections go: directly to the far side or, where it can't be reached so, through ssh."""

import socket
import sys
import time
from pathlib import Path
from typing import Final, NamedTuple

from filestreamer.ssh.lines import Answer
from filestreamer.wire import framing, limits
from filestreamer.wire.codec import decode
from filestreamer.wire.errors import FilestreamerError
from filestreamer.wire.messages import Greeting
from filestreamer.wire.session import Side
from filestreamer.wire.sockets.addresses import Address, format_address, resolve
from filestreamer.wire.sockets.dial import Dialing

DIRECT: Final = "direct"
THROUGH_SSH: Final = "ssh"
WAYS: Final = (DIRECT, THROUGH_SSH)
TRYING_SECONDS: Final = 5.0
"""How long a direct connection may take, the TLS handshake included."""
_ESTABLISHED: Final = "01"
_LINK_LOCAL: Final = ("fe8", "fe9", "fea", "feb")


class Way(NamedTuple):
    """The way that was chosen, and why."""

    name: str
    reason: str


def reached_address(pid: int, interface: str) -> str | None:
    """Return the address to which a process of this machine is connected over TCP; None where that is not known.

    A link-local one is on this `interface`; empty: on one that is not known. It is read from /proc: the sockets among
    the process's descriptors, in the tables of its network namespace (Linux, networking/proc_net_tcp.rst).
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
                host = _host(fields[2].partition(":")[0])
                if not host.startswith(_LINK_LOCAL):
                    return host
                return f"{host}%{interface}" if interface else None
    return None


def _host(digits: str) -> str:
    """Return the address that the kernel writes as words of 32 bits, each in the byte order of the machine."""
    words = [int(digits[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(digits), 8)]
    packed = b"".join(words)
    if len(packed) == 16 and packed.startswith(bytes(10) + b"\xff\xff"):
        packed = packed[12:]
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


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
    body = framing.read_body(lambda count: _read(sock, count), limits.OPENING_FRAME_BYTES)
    if not isinstance(decode(body), Greeting):
        raise OSError("it is another service")


def _read(sock: socket.socket, count: int) -> memoryview:
    data = bytearray()
    while len(data) < count:
        some = sock.recv(count - len(data))
        if not some:
            raise ConnectionResetError("it closed the connection")
        data += some
    return memoryview(data)
