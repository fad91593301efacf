"""Connections through ssh: each is a process `ssh -W`, whose standard streams are the other end of a socket.

Only the login may ask its user something. What a further ssh meets decides how all that follow are made:

1. by a login of its own, at the very address that the first one has reached;
2. the same without that address, where the machine can't be reached so, or its key not be checked;
3. where a login is refused that can't ask, or comes to no end: over the connection of the first login (ControlMaster);
4. where sshd forwards nothing: by the standard streams of `REMOTE_COMMAND relay` in place of `-W`.

The service says a marker first (`lines`): then the tunnel is up, and leads to that very service.
"""

import contextlib
import socket
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, cast

from filestreamer.ssh import explain, lines
from filestreamer.ssh.children import Child, Children
from filestreamer.ssh.command import Ssh
from filestreamer.wire.errors import ConnectionLost
from filestreamer.wire.sockets.addresses import IN_SSH, Address, SockAddress

AT_ONCE: Final = 4
"""How many are being opened at once: sshd drops connections where more than ten have not logged in (MaxStartups)."""
OPENING_SECONDS: Final = 45.0
"""How long one may take: to connect, to log in, and to reach the service."""
LAST_WORDS_SECONDS: Final = 2.0
LOOK_SECONDS: Final = 0.2
BUFFER_BYTES: Final = 1 << 20
"""Of each socket: what ssh takes or gives at once is bounded by it."""

ADDRESS: Final[Address] = (socket.AF_UNIX, cast(SockAddress, IN_SSH))
"""What stands for the address of every tunnel."""

OnSocket = Callable[[socket.socket], None]


class _Kind(NamedTuple):
    """How tunnels are made."""

    address: str | None
    """Where the machine is; None: wherever its name leads to."""
    shares: bool = False
    """Over the connection of the first login."""
    relays: bool = False
    """By the remote command, not by sshd."""


class Tunnels:
    """Opens connections through ssh. Any thread may."""

    def __init__(
        self, ssh: Ssh, remote_command: str, children: Children, *, control_path: str | None, host: str, log: Any
    ) -> None:
        """`control_path` is that of the login; None: the user's own, if he has one. `host` is for messages."""
        self._ssh = ssh
        self._remote_command = remote_command
        self._children = children
        self._control_path = control_path
        self._can_share = control_path is not None or ssh.multiplexes
        self._host = host
        self._log = log
        self._places = threading.BoundedSemaphore(AT_ONCE)
        self._mutex = threading.Lock()  # protects the fields below
        self._to: lines.Answer | None = None
        self._kind = _Kind(None)
        self._was_up = False
        self._lead_to_it: weakref.WeakSet[socket.socket] = weakref.WeakSet()  # those that were meant for `_to`

    def lead_to(self, answer: lines.Answer, address: str | None) -> None:
        """Lead to this service from now on; `address` is where its machine is, None where that is not known.

        What was opened to the service before is shut. Where that was killed, any user of its machine may listen on its
        port by now, tell its marker, and hand all on to the new service, to read what is in clear text there.
        """
        with self._mutex:
            self._to = answer
            if not self._was_up:
                self._kind = _Kind(address)
            for sock in self._lead_to_it:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            self._lead_to_it.clear()

    @property
    def shares(self) -> bool | None:
        """Whether they need the connection of the first login; None where that is not known yet."""
        with self._mutex:
            return self._kind.shares if self._was_up else None

    def open(self, seconds: float, on_socket: OnSocket) -> socket.socket:
        """Return a socket whose other end is the service; it has so many seconds as its timeout.

        `on_socket` is called with each socket, so that another thread can shut it. Raises ConnectionLost, which says
        what ssh has said last; and what `on_socket` raises.
        """
        while True:
            try:
                near, far = socket.socketpair()
            except OSError as error:
                raise ConnectionLost(f"ssh can't be started: {error.strerror}") from None
            try:
                with far:
                    for sock in (near, far):
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
                    on_socket(near)
                    with self._place(near):
                        is_up = self._try(near, far)
            except BaseException:
                near.close()
                raise
            if is_up:
                near.settimeout(seconds)
                return near
            near.close()

    @contextlib.contextmanager
    def _place(self, near: socket.socket) -> Iterator[None]:
        """Wait for one of the places. Raises ConnectionLost where another thread has shut the socket meanwhile."""
        while not self._places.acquire(timeout=LOOK_SECONDS):
            near.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                near.recv(1, socket.MSG_PEEK)
                raise ConnectionLost("the transfer is over")
        try:
            yield
        finally:
            self._places.release()

    def _try(self, near: socket.socket, far: socket.socket) -> bool:
        """Have ssh lead to the service; return False where another kind of tunnel is to be tried at once.

        Raises ConnectionLost.
        """
        with self._mutex:
            to, kind = self._to, self._kind
            self._lead_to_it.add(near)
        if to is None:
            raise ConnectionLost(f"the service at {self._host} is not up")
        child = self._start(to, kind, near, far)
        far.close()  # so that the end of ssh is the end of the stream
        try:
            if kind.relays:
                near.settimeout(OPENING_SECONDS)
                near.sendall(lines.request("relay", session=to.session))
            self._await_marker(near, to.session)
        except (OSError, ValueError) as error:
            with contextlib.suppress(ProcessLookupError):
                child.process.terminate()
            child.ended.wait(LAST_WORDS_SECONDS)
            if self._change(list(child.tail), kind, is_late=isinstance(error, TimeoutError)):
                return False
            words = explain.last_words(list(child.tail), child.process.returncode)
            reason = str(error) if isinstance(error, ValueError) else words
            raise ConnectionLost(f"{self._host}, through ssh: {reason}") from None
        with self._mutex:
            self._was_up = True
        return True

    def _start(self, to: lines.Answer, kind: _Kind, near: socket.socket, far: socket.socket) -> Child:
        if kind.relays:
            argv = self._ssh.further(
                f"{self._remote_command} relay",
                address=kind.address,
                control_path=self._control_path,
                shares=kind.shares,
            )
        else:
            argv = self._ssh.tunnel(
                to.address,
                to.tunnel_port,
                address=kind.address,
                control_path=self._control_path,
                shares=kind.shares,
            )
        try:
            return self._children.start(argv, self._said, stdin=far.fileno(), stdout=far.fileno(), carries=near)
        except (OSError, subprocess.SubprocessError) as error:
            raise ConnectionLost(f"ssh can't be started: {error}") from None

    def _said(self, line: bytes) -> None:
        self._log.debug("tunnel", host=self._host, reason=explain.shown(line.decode(errors="replace")))

    def _await_marker(self, near: socket.socket, session: str) -> None:
        """Read up to the marker, and not a byte more.

        Raises OSError where ssh has ended or takes too long, ValueError where this is another service.
        """
        until = time.monotonic() + OPENING_SECONDS
        line, skipped = b"", 0
        while True:
            near.settimeout(max(0.001, until - time.monotonic()))
            ahead = near.recv(lines.MARKER_BYTES, socket.MSG_PEEK)
            if not ahead:
                raise OSError("ssh has ended")
            end = ahead.find(b"\n") + 1
            line += near.recv(end or len(ahead))
            if end:
                skipped += len(line)
                if line.startswith(lines.PREFIX):
                    if lines.read_marker(line) == session:
                        return
                    raise ValueError("it leads to another service: the name leads to several machines")
                line = b""
            if skipped + len(line) > lines.SKIPPED_BYTES:
                raise ValueError("the remote shell prints too much")

    def _change(self, said: list[str], kind: _Kind, *, is_late: bool) -> bool:
        """Take in what a tunnel of this kind has met; return whether it is worth to try the one of now at once.

        `is_late` says that it has come to no end in time: something may wait for an answer, such as the ssh to a jump
        host, which an old version stops where it wants to ask on the terminal.
        """
        with self._mutex:
            if kind != self._kind:
                return True
            next_kind, reason = self._next_kind(said, kind, is_late=is_late)
            if next_kind is None:
                return False
            self._kind = next_kind
        if reason:
            self._log.info("way", way="ssh", host=self._host, reason=reason)
        return True

    def _next_kind(self, said: list[str], kind: _Kind, *, is_late: bool) -> tuple[_Kind | None, str]:
        """Return the kind that is to be tried now, and what the user should know of it; None: this one is right."""
        if explain.is_prohibited(said) and not kind.relays:
            return kind._replace(relays=True), "sshd forwards no connections there: each goes through a relay"
        if self._was_up:
            return None, ""
        if explain.is_unreachable_from_there(said) and not kind.relays:
            return kind._replace(relays=True), "sshd does not reach the service there: each connection takes a relay"
        has_failed = explain.is_host_key(said) or explain.is_refused(said) or explain.is_unreachable(said)
        if kind.address is not None and (has_failed or self._ssh.has_proxy):
            return kind._replace(address=None), ""
        if (is_late or explain.is_refused(said)) and not kind.shares and self._can_share:
            reason = "further logins would need your answer: all connections share the one of the first login"
            return kind._replace(shares=True), reason
        return None, ""
