"""The near side's view of the far side: it logs in, has the service started, and keeps hold of it until the end."""

import contextlib
import dataclasses
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any, Final, NamedTuple, TypeVar

from filestreamer.process.backoff import Backoff
from filestreamer.process.threads import run_to_end, start_thread
from filestreamer.settings.source import SourceSettings
from filestreamer.ssh import explain, lines, said, way
from filestreamer.ssh.children import Child, Children
from filestreamer.ssh.command import Ssh, can_ask
from filestreamer.ssh.conversation import Conversation
from filestreamer.ssh.remote import Remote
from filestreamer.ssh.tunnels import ADDRESS, OnSocket, Tunnels
from filestreamer.wire.errors import ConnectionLost, FarSideFailed, FilestreamerError
from filestreamer.wire.progress_clock import Patience
from filestreamer.wire.session import Side
from filestreamer.wire.sockets.addresses import Address
from filestreamer.wire.sockets.dial import Dialing

S = TypeVar("S", bound=SourceSettings)

ANEW_SECONDS: Final = 60.0
"""How long a login may take that asks nothing."""
STEADY_SECONDS: Final = 30.0
"""A login that has lasted for so long was a good one; others are not made anew at once, again and again."""
PATIENT_SECONDS: Final = 15.0
"""After how long it is said what the login is waited for."""
LAST_WORDS_SECONDS: Final = 2.0
LOOK_SECONDS: Final = 0.2
END_SECONDS: Final = 3.0
"""How long ssh, and with it the far side, may take to end in order."""
CONTROL_PATH_BYTES: Final = 60
"""The longest directory for the socket of a shared connection: ssh adds some, and the system takes 108 in all."""
_PLAIN: Final = re.compile(r"[A-Za-z0-9/._+,:=@-]+")
"""A path that is the same in an option of every ssh: blanks end it, and quotes, ~, $ and % mean something there."""


class Start(NamedTuple):
    """What is to be started, and how."""

    remote: Remote
    side: Side
    """The service that is started there."""
    asked: Mapping[str, Any]
    """What it alone has to know."""
    ssh: str
    remote_command: str
    via: str | None
    """The way that the user asks for; None: the direct one, if it works."""
    tls: bool
    """Whether direct connections are encrypted."""
    give_up_after: float | None
    patience: Patience
    log_level: str


class FarSide:
    """A service at another machine that ssh starts. `log_in`, then use `route`; `end` at the end, whatever happened."""

    def __init__(self, start: Start, log: Any) -> None:
        """Look for ssh. Raises UsageError where it is not there."""
        self._start = start
        self._log = log
        self.token = secrets.token_urlsafe(32)
        self._session = secrets.token_hex(16)
        self._host = start.remote.destination
        self._ssh = Ssh(start.ssh, start.remote)
        self._directory = None if self._ssh.multiplexes else _make_directory()
        self._control_path = None if self._directory is None else os.path.join(self._directory, "c")
        self._children = Children(self._directory)
        self._tunnels = Tunnels(
            self._ssh,
            start.remote_command,
            self._children,
            control_path=self._control_path,
            host=self._host,
            log=log,
        )
        self._said = said.Said(self._host, start.remote_command, log)
        self._is_over = threading.Event()
        self._talks = threading.Lock()  # held while an ssh is begun and asked; protects the streams of `_login`
        self._login: Child | None = None
        self._answer: lines.Answer | None = None
        self._reached: str | None = None
        self.connections = way.CONNECTIONS
        """How many connections to use through ssh, where the user does not say it."""
        self._keeper: threading.Thread | None = None
        self.route = FarRoute(str(start.remote), self._tunnels)

    @property
    def uses_tls(self) -> bool:
        """Whether the connections of the transfer are to speak TLS; ssh encrypts the others."""
        return self._start.tls and self.route.is_direct

    def log_in(self) -> None:
        """Start the service, and choose the way to it. ssh may ask its user. Raises FilestreamerError."""
        start = self._start
        command = f"{start.remote_command} serve"
        argv = self._ssh.login(command, control_path=self._control_path)
        with self._talks:
            child = self._begin(argv, asks=True)
            seconds = None if can_ask(os.environ) else start.patience.first_seconds
            answer = self._converse(child, self._request(machine=""), seconds)
        if not isinstance(answer, lines.Answer):
            raise FarSideFailed(f"{self._host}: the answer is that of a service which runs already")
        self._answer = answer
        link = way.link_of(child.process.pid)
        self._reached = None if link is None else link.host(self._ssh.interface)
        self.connections = way.connections_through_ssh(link)
        addresses = way.candidates(answer, self._reached)
        chosen = way.choose(start.via, answer, addresses, start.side)
        self.route.lead(answer, addresses, is_direct=chosen.name == way.DIRECT)
        self._tunnels.lead_to(answer, self._pinned)
        if self.route.is_direct:
            self._forget_directory()
        self._log.info("way", way=chosen.name, host=self._host, reason=chosen.reason)
        keeper = threading.Thread(target=self._run_keeper, name="far side", daemon=True)
        start_thread(keeper, "keeping the far side")
        self._keeper = keeper

    @property
    def _pinned(self) -> str | None:
        """Where every further ssh goes; None: wherever the name leads to."""
        if self._reached is None and self._ssh.has_proxy and self._answer is not None:
            return self._answer.address
        return self._reached

    def _request(self, *, machine: str) -> bytes:
        start = self._start
        return lines.request(
            start.side,
            session=self._session,
            token=self.token,
            tls=start.tls,
            give_up_after=start.give_up_after,
            log_level="debug" if start.log_level == "debug" else "error",
            machine=machine,
            asked=dict(start.asked),
        )

    # --- one ssh

    def _begin(self, argv: list[str], *, asks: bool) -> Child:
        try:
            child = self._children.start(
                argv, self._said.take, stdin=subprocess.PIPE, stdout=subprocess.PIPE, asks=asks
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise ConnectionLost(f"ssh can't be started: {error}") from None
        if self._login is not None:
            _close_streams(self._login)
        self._login = child
        return child

    def _converse(self, child: Child, request: bytes, seconds: float | None) -> lines.Answer | str:
        """Send the request, and wait for the answer, for at most so many seconds. Raises FilestreamerError."""
        began_at, is_told = time.monotonic(), False
        conversation = Conversation(child, request, self._host)
        while True:
            line = conversation.go_on(LOOK_SECONDS)
            if line is not None:
                return lines.read_answer(line, self._host)
            if conversation.is_over:
                child.ended.wait(LAST_WORDS_SECONDS)
                code, words = child.process.returncode, list(child.tail)
                raise explain.explain(
                    self._host,
                    self._start.remote_command,
                    code,
                    words,
                    conversation.last_line,
                    login=self._ssh.by_hand,
                    service=self._start.side,
                )
            if self._is_over.is_set():
                raise ConnectionLost("the transfer is over")
            waited = time.monotonic() - began_at
            if seconds is not None and waited > seconds:
                reason = "ssh hangs, or what it starts there"
                raise ConnectionLost(f"{self._host}: no answer within {seconds:g} s: {reason}")
            if waited > PATIENT_SECONDS and not is_told:
                is_told, reason = True, "ssh, or what it starts, has not answered yet"
                self._log.info("waiting_for_far_side", host=self._host, reason=reason)

    # --- until the end

    def _run_keeper(self) -> None:
        if error := run_to_end("keeping the far side", self._keep):
            self._log.error("far_side_failed", host=self._host, reason=str(error))

    def _keep(self) -> None:
        """Wait for the end of ssh; make it anew, again and again, until the transfer is over."""
        backoff = Backoff()
        while True:
            child, began_at = self._login, time.monotonic()
            assert child is not None
            while not child.ended.wait(1.0):
                if self.route.is_direct is False and self._tunnels.shares is False:
                    self._forget_directory()
            if self._is_over.is_set() or child.process.returncode == 0:
                return
            words = explain.last_words(list(child.tail), child.process.returncode)
            self._log.warning("ssh_lost", host=self._host, reason=words, hint="it is made anew; connections live on")
            if time.monotonic() - began_at > STEADY_SECONDS:
                backoff.reset()
            if not self._renew(backoff):
                return
            self._log.info("ssh_back", host=self._host)

    def _renew(self, backoff: Backoff) -> bool:
        """Make ssh anew; return False where the transfer is over, or has waited for it for too long."""
        until = time.monotonic() + self._start.patience.later_seconds
        pinned = True
        while time.monotonic() < until and not self._is_over.wait(backoff.next()):
            try:
                self._log_in_again(self._pinned if pinned else None)
                return True
            except FilestreamerError as error:
                self._log.warning("ssh_lost", host=self._host, reason=str(error))
                pinned = not pinned
        return False

    def _log_in_again(self, address: str | None) -> None:
        assert self._answer is not None
        argv = self._ssh.further(
            f"{self._start.remote_command} serve",
            address=address,
            control_path=None,
            shares=self._ssh.multiplexes,
        )
        with self._talks:
            if self._is_over.is_set():
                raise ConnectionLost("the transfer is over")
            child = self._begin(argv, asks=False)
            try:
                answer = self._converse(child, self._request(machine=self._answer.machine), ANEW_SECONDS)
            except FilestreamerError:
                child.signal(signal.SIGTERM)
                raise
        if isinstance(answer, lines.Answer):  # the service is another one now
            self._answer = answer
            self.route.lead(answer, way.candidates(answer, self._reached), is_direct=self.route.is_direct)
            self._tunnels.lead_to(answer, self._pinned)

    def end(self) -> None:
        """Have the far side end, and with it all ssh. Idempotent."""
        self._is_over.set()
        with self._talks:
            child = self._login
            if child is not None and child.process.stdin is not None:
                _close(child.process.stdin)
        # Where nothing has answered, ssh may be asking its user, and hears nothing.
        self._children.close(0.0 if self._answer is None else END_SECONDS)
        if child is not None:
            _close_streams(child)
        if self._keeper is not None:
            self._keeper.join(END_SECONDS)
        self._forget_directory()

    def _forget_directory(self) -> None:
        """Remove the socket of the first login's connection, which is needed no more."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None


@contextlib.contextmanager
def logged_in(
    settings: S, remote: Remote, side: Side, asked: Mapping[str, Any], log: Any
) -> Iterator[tuple[S, FarSide]]:
    """Start a service as the settings say; it ends with the block.

    `asked` is what it alone has to know. Yield the settings of the transfer to it, and the far side. Raises
    FilestreamerError.
    """
    start = Start(
        remote,
        side,
        asked,
        settings.ssh,
        settings.remote_command or side,
        settings.via,
        not settings.no_tls,
        settings.give_up_after,
        settings.patience,
        settings.log_level,
    )
    far_side = FarSide(start, log)
    try:
        far_side.log_in()
        uses_tls = far_side.uses_tls
        yield dataclasses.replace(settings, token=far_side.token, tls=uses_tls, no_tls=not uses_tls), far_side
    finally:
        far_side.end()


class FarRoute:
    """The way to the service (`filestreamer.wire.sockets.route`): direct, or through ssh. Any thread may call."""

    def __init__(self, shown: str, tunnels: Tunnels) -> None:
        self._shown = shown
        self._tunnels = tunnels
        self._mutex = threading.Lock()  # protects the fields below
        self._answer: lines.Answer | None = None
        self._addresses: list[Address] = []
        self._is_direct = False

    def lead(self, answer: lines.Answer, addresses: list[Address], *, is_direct: bool) -> None:
        """Lead to this service from now on."""
        with self._mutex:
            self._answer, self._addresses, self._is_direct = answer, addresses, is_direct

    @property
    def is_direct(self) -> bool:
        """Whether connections go directly, and not through ssh."""
        with self._mutex:
            return self._is_direct

    @property
    def host(self) -> str:
        """The address of the peer's machine."""
        with self._mutex:
            return self._answer.address if self._answer is not None else ""

    def attempts(
        self, timeout_seconds: float, on_socket: OnSocket, addresses: Iterable[Address] | None = None
    ) -> "Dialing | TunnelAttempt":
        """Prepare to connect to the service. Raises ConnectionLost where the addresses are those of an earlier one."""
        if not self.is_direct:
            return TunnelAttempt(self._tunnels, timeout_seconds, on_socket)
        with self._mutex:
            known, answer = list(self._addresses), self._answer
        wanted = known if addresses is None else list(addresses)
        if not set(wanted) <= set(known):
            raise ConnectionLost(f"{self}: the service was started anew")
        # The certificate that the service has told over ssh.
        pins = (answer.sha256,) if answer is not None and answer.sha256 else ()
        return Dialing(wanted, timeout_seconds, on_socket, pins=pins)

    def waits_for(self) -> str:
        """Return what is waited for."""
        return f"a connection to {self}" if self.is_direct else f"a connection through ssh to {self}"

    def __str__(self) -> str:
        return self._shown


class TunnelAttempt:
    """The attempt to make one connection through ssh."""

    pins: tuple[bytes, ...] = ()
    """ssh has checked who the peer is."""

    def __init__(self, tunnels: Tunnels, timeout_seconds: float, on_socket: OnSocket) -> None:
        self._tunnels = tunnels
        self._timeout_seconds = timeout_seconds
        self._on_socket = on_socket
        self._failure: str | None = None

    def connect(self) -> tuple[Address, socket.socket]:
        """Return a socket that leads to the service. Raises ConnectionLost."""
        if self._failure is not None:
            raise ConnectionLost(self._failure)
        return ADDRESS, self._tunnels.open(self._timeout_seconds, self._on_socket)

    def failed(self, address: Address, reason: str) -> None:  # noqa: ARG002 - all tunnels have one address
        """Take in that the connection was of no use."""
        self._failure = reason


def _close_streams(child: Child) -> None:
    for stream in (child.process.stdin, child.process.stdout):
        if stream is not None:
            _close(stream)


def _close(stream: IO[bytes]) -> None:
    with contextlib.suppress(OSError):
        stream.close()


def _make_directory() -> str | None:
    """Make a private directory, whose path is short and plain enough for a socket in it; None: nothing is shared."""
    with contextlib.suppress(OSError):  # all is read-only, as in a container may be
        place = tempfile.gettempdir()
        is_fit = len(os.fsencode(place)) < CONTROL_PATH_BYTES and _PLAIN.fullmatch(place)
        return tempfile.mkdtemp(prefix="filestreamer-", dir=place if is_fit else "/tmp")
    return None
