"""The far side: a service that ssh starts, `REMOTE_COMMAND serve`.

1. one line on standard input says all that it is to do; it takes nothing from a config file or FILESTREAMER_*;
2. where a service of this session runs, this process holds it (`leases`); else it becomes the service;
3. it listens on the address that ssh has reached: on one port for direct connections, on another for those that sshd
   makes, and on a socket of a private directory for those of a relay;
4. one line on standard output says where, or what is wrong; nothing else is ever written there;
5. it ends with the near side.
"""

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol

from filestreamer.listening.acceptor import Listener
from filestreamer.process import log, signals
from filestreamer.process.threads import as_failure, log_defects
from filestreamer.settings import values
from filestreamer.settings.common import FIRST_SECONDS, LATER_SECONDS
from filestreamer.ssh import lines, places
from filestreamer.ssh.leases import Leases, Streams, hold
from filestreamer.wire.errors import FarSideFailed, FilestreamerError, Interrupted
from filestreamer.wire.progress_clock import Patience
from filestreamer.wire.session import Side

REQUEST_SECONDS: Final = 60.0
"""How long the request may take, once this runs."""

_KNOWN: Final[Mapping[str, lines.Types]] = {
    "session": str,
    "token": str,
    "tls": bool,
    "give_up_after": (float, int, type(None)),
    "log_level": str,
    "machine": str,
    "asked": dict,
}


class Request(NamedTuple):
    """What the near side asks for."""

    token: str
    tls: bool
    give_up_after: float | None
    log_level: str
    asked: dict[str, Any]
    """What this service alone has to know."""


class Service(Protocol):
    """A service that is set up."""

    @property
    def certificate_sha256(self) -> bytes:
        """The digest of the certificate that it shows; empty without TLS."""
        ...

    def is_used(self) -> bool:
        """Whether the near side has a connection."""
        ...

    def run(self) -> int:
        """Serve until the work is done, or `stop`; return the exit code. Raises what it was stopped with."""
        ...

    def stop(self, error: FilestreamerError | None) -> None:
        """Make `run` raise this error, or return. For any thread and signal handler."""
        ...


Begin = Callable[[Request, list[Listener], Any], Service]
"""Sets a service up that listens there, given a logger. Raises FilestreamerError."""


def serve(side: Side, begin: Begin) -> int:
    """Be the far side; return the exit code."""
    if sys.stdin is None or sys.stdout is None:
        return 2
    if os.isatty(0):
        other = lines.other(side)
        sys.stderr.write(f"{side} serve: this is what {other} starts over ssh: see {other} --help\n")
        return 2
    answers = _take_stdout()
    try:
        return _serve(side, begin, answers)
    except Exception as error:  # noqa: BLE001 - the top of the command: whatever happens, the near side is told
        failure = as_failure("starting over ssh", error)
        _say(answers, lines.failure(failure))
        return int(failure.exit_code)


def _serve(side: Side, begin: Begin, answers: int) -> int:
    content = lines.read_request(read_line(0, lines.REQUEST_BYTES), side, _KNOWN)
    give_up_after = content["give_up_after"]
    request = Request(
        str(values.token(values.Literally(content["token"]))),
        content["tls"],
        None if give_up_after is None else values.seconds(give_up_after),
        values.one_of(*log.LEVELS)(content["log_level"]),
        content["asked"],
    )
    session, streams = content["session"], Streams(0, answers)
    with contextlib.suppress(OSError):
        lease = places.connect_to(session, places.LEASE)
        _say(answers, lines.held(session))
        return hold(lease, streams)
    if content["machine"] not in ("", places.machine()):
        raise FarSideFailed("this is another machine than before: the name leads to several", exit_code=1)
    logger = log.configure(side, request.log_level)
    log_defects(logger)
    places.sweep()
    directory = places.make_directory(session)
    try:
        return _run(request, begin, _Place(session, directory, streams, answers), logger)
    finally:
        places.remove_directory(directory)


class _Place(NamedTuple):
    session: str
    directory: str
    streams: Streams
    answers: int


def _run(request: Request, begin: Begin, place: _Place, logger: Any) -> int:
    session, directory, streams, answers = place
    address = places.server_address(os.environ)
    marker = lines.marker(session)
    direct, tunnels = places.listen_on(address), places.listen_on(address)
    relays = places.listen_in(directory, places.RELAY)
    service = begin(request, [Listener(direct), Listener(tunnels, marker), Listener(relays, marker)], logger)

    answer = lines.Answer(
        session,
        address,
        direct.getsockname()[1],
        service.certificate_sha256,
        tunnels.getsockname()[1],
        places.machine(),
    )

    def end(reason: str | None) -> None:
        service.stop(None if reason is None else FarSideFailed(reason))

    seconds = request.give_up_after
    signals.on_signal(lambda number: service.stop(Interrupted(number)))
    with places.listen_in(directory, places.LEASE) as listener:
        leases = Leases(
            streams,
            listener,
            is_used=service.is_used,
            end=end,
            patience=Patience(FIRST_SECONDS, LATER_SECONDS) if seconds is None else Patience(seconds, seconds),
        )
        leases.start()
        if not _say(answers, lines.answer(answer)):
            end("ssh was lost before it was up")
        try:
            # How the transfer has ended, the near side knows from the transfer; any other code has it start this again.
            service.run()
            return 0
        except FilestreamerError as error:
            logger.error("far_side_ended", reason=str(error))
            return int(error.exit_code)
        finally:
            leases.tell()


def _take_stdout() -> int:
    """Return standard output; what is printed by accident goes nowhere."""
    answers = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, 1)
    os.close(null)
    return answers


def _say(answers: int, line: bytes) -> bool:
    """Say a line to the near side; return whether it is there to hear it."""
    try:
        while line:
            line = line[os.write(answers, line) :]
    except OSError:
        return False
    return True


def read_line(fd: int, most_bytes: int, block_bytes: int = 1 << 16) -> bytes:
    """Read a line, and what comes with it in a block. Raises FarSideFailed."""
    until = time.monotonic() + REQUEST_SECONDS
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    data = bytearray()
    while b"\n" not in data[-block_bytes:]:
        if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
            raise FarSideFailed("this is no request: nothing came", exit_code=2)
        some = os.read(fd, block_bytes)
        if not some or len(data) > most_bytes:
            raise FarSideFailed("this is no request: no line" if not some else "the request is too long", exit_code=2)
        data += some
    return bytes(data).partition(b"\n")[0]
