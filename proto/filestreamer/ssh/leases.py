"""What keeps the far side up: the ssh that has started it, and each one that has been made anew since.

Where the standard input of ssh ends while its standard output stands, the near side has ended, and the service ends
with it. Where both are gone, ssh was lost: then the service goes on for as long as the near side has a connection to
it, and waits for another ssh where it has none. That one runs `serve` with the same session, and holds a lease: a
connection to the socket `lease` for as long as its own streams stand.
"""

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from filestreamer.process.threads import run_to_end
from filestreamer.wire.progress_clock import Patience
from filestreamer.wire.sockets.listen import accept

WAIT_SECONDS: Final = 30.0
"""How long another ssh is waited for, while there is no connection either."""
FIRST_WAIT_SECONDS: Final = 5.0
"""The same before the near side has had a connection: then it has hardly begun, and nothing is lost."""
TICK_SECONDS: Final = 1.0
CLOSING_SECONDS: Final = 0.5
"""How long after its input the output of a lost ssh may look as if it stood."""
_ENDED: Final = b"E"
"""What a lease says when the near side has ended, and a service that ends in order."""


class Streams:
    """The standard streams that sshd has given this process."""

    def __init__(self, stdin: int, stdout: int) -> None:
        self._stdin = stdin
        self._stdout = stdout

    def fileno(self) -> int:
        """Return what becomes readable when something changes."""
        return self._stdin

    def look(self) -> bool | None:
        """Return None while they stand, True where the near side has ended, False where ssh was lost."""
        try:
            if os.read(self._stdin, 4096):
                return None
        except BlockingIOError:
            return None
        except OSError:
            return False
        poll = select.poll()
        poll.register(self._stdout, 0)
        return not poll.poll(CLOSING_SECONDS * 1000)


class Leases(threading.Thread):
    """Watches what keeps the service up, and has it end."""

    def __init__(
        self,
        streams: Streams,
        listener: socket.socket,
        *,
        is_used: Callable[[], bool],
        end: Callable[[str | None], None],
        patience: Patience,
    ) -> None:
        """`is_used` says whether the near side has a connection.

        `end` is called once: with None where the near side has ended, else with the reason. `patience` is how long the
        near side may be without a connection, whatever ssh says: a line that is cut says nothing.
        """
        super().__init__(name="leases", daemon=True)
        self._streams: Streams | None = streams
        self._listener = listener
        self._is_used = is_used
        self._end = end
        self._patience = patience
        self._leases: dict[int, socket.socket] = {}

    def run(self) -> None:
        """Watch until the end."""
        if error := run_to_end("watching ssh", self._watch):
            self._end(str(error))

    def _watch(self) -> None:
        used_at = held_at = time.monotonic()
        was_used = False
        while True:
            if self._look(TICK_SECONDS):
                self._end(None)
                return
            now = time.monotonic()
            if self._is_used():
                used_at, was_used = now, True
            if self._streams is not None or self._leases:
                held_at = now
            if now - max(used_at, held_at) > (WAIT_SECONDS if was_used else FIRST_WAIT_SECONDS):
                self._end("ssh was lost, and did not come back")
                return
            patience_seconds = self._patience.seconds(has_begun=was_used)
            if now - used_at > patience_seconds + WAIT_SECONDS:  # the near side gives up first, and says why
                self._end(f"the near side had no connection for {now - used_at:.0f} s")
                return

    def _look(self, seconds: float) -> bool:
        """Wait for news; return whether the near side has ended."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        if self._streams is not None:
            poll.register(self._streams.fileno(), select.POLLIN)
        for fd in self._leases:
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(seconds * 1000):
            if fd == self._listener.fileno():
                self._accept()
            elif self._streams is not None and fd == self._streams.fileno():
                has_ended = self._streams.look()
                if has_ended:
                    return True
                if has_ended is False:
                    self._streams = None
            elif self._hear(fd):
                return True
        return False

    def _accept(self) -> None:
        if (lease := accept(self._listener)) is not None:
            self._leases[lease.fileno()] = lease

    def _hear(self, fd: int) -> bool:
        """Hear what a lease says; return whether the near side has ended."""
        try:
            data = self._leases[fd].recv(1)
        except OSError:
            data = b""
        if not data:
            self._leases.pop(fd).close()
        return data == _ENDED

    def tell(self) -> None:
        """Tell all leases that the service ends in order."""
        for lease in list(self._leases.values()):
            with contextlib.suppress(OSError):
                lease.send(_ENDED)


def hold(lease: socket.socket, streams: Streams) -> int:
    """Hold a lease of a service that another ssh has started; return the exit code."""
    with lease:
        poll = select.poll()
        poll.register(lease, select.POLLIN)
        poll.register(streams.fileno(), select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == lease.fileno():
                    return 0 if _heard(lease) == _ENDED else 1
                has_ended = streams.look()
                if has_ended is None:
                    continue
                if has_ended:
                    with contextlib.suppress(OSError):
                        lease.send(_ENDED)
                        lease.recv(1)  # until the service has ended, so that ssh ends no earlier
                return 0


def _heard(lease: socket.socket) -> bytes:
    try:
        return lease.recv(1)
    except OSError:
        return b""
