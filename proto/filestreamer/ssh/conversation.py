"""What the near side and one ssh say to each other at the start: the request goes in, the answer comes out."""

import os
import select

from filestreamer.ssh import explain, lines
from filestreamer.ssh.children import Child
from filestreamer.wire.errors import FarSideFailed


class Conversation:
    """Says the request, and finds the answer in what a login shell and the service print."""

    def __init__(self, child: Child, request: bytes, host: str) -> None:
        stdin, stdout = child.process.stdin, child.process.stdout
        assert stdin is not None
        assert stdout is not None
        self._stdin, self._stdout = stdin.fileno(), stdout.fileno()
        for fd in (self._stdin, self._stdout):
            os.set_blocking(fd, False)
        self._host = host
        self._unsent = memoryview(request)
        self._poll = select.poll()
        self._poll.register(self._stdin, select.POLLOUT)
        self._poll.register(self._stdout, select.POLLIN)
        self._partial = b""
        self._skipped_bytes = 0
        self.last_line = ""
        """What was printed last before the answer."""
        self.is_over = False
        """Whether nothing will be printed any more."""

    def go_on(self, seconds: float) -> bytes | None:
        """Wait for at most so long; return the line with the answer once it is there. Raises FarSideFailed."""
        found = None
        for fd, _ in self._poll.poll(seconds * 1000):
            if fd == self._stdin:
                self._say()
            else:
                data = os.read(fd, 1 << 16)
                self.is_over = not data
                found = self._take(data)
        return found

    def _say(self) -> None:
        try:
            self._unsent = self._unsent[os.write(self._stdin, self._unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self._unsent = memoryview(b"")  # what is printed, or how it ends, says why
        if not self._unsent:
            self._poll.unregister(self._stdin)

    def _take(self, data: bytes) -> bytes | None:
        *whole, self._partial = (self._partial + data).split(b"\n")
        for line in whole:
            if line.startswith(lines.PREFIX):
                return line
            self._skipped_bytes += len(line) + 1
            self.last_line = line[: explain.SHOWN_CHARACTERS].decode(errors="replace").strip() or self.last_line
        is_answer = self._partial.startswith(lines.PREFIX)
        if len(self._partial) + (0 if is_answer else self._skipped_bytes) > lines.SKIPPED_BYTES:
            raise FarSideFailed(
                f"{self._host}: the login shell there prints more than {lines.SKIPPED_BYTES >> 10} KiB to standard"
                " output before the answer: it must print nothing where it runs a command"
            )
        return None
