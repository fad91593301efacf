"""One connection by the standard streams of ssh, where sshd forwards none: `REMOTE_COMMAND relay`.

One line on standard input names the session. What follows goes to the service of that session, and back, byte by byte.
"""

import contextlib
import os
import socket
import sys
import threading

from filestreamer.ssh import lines, places
from filestreamer.ssh.service import read_line
from filestreamer.wire.errors import FilestreamerError

BLOCK_BYTES = 256 << 10


def relay() -> int:
    """Be the relay; return the exit code."""
    try:
        line = read_line(0, lines.ANSWER_BYTES, 1)  # what follows is not for this process
        session = lines.read_request(line, "relay", {"session": str})["session"]
        service = places.connect_to(session, places.RELAY)
    except (FilestreamerError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        sys.stderr.write(f"relay: the service of this session can't be reached: {reason}\n")
        return 1
    with service:
        for fd in (0, 1):
            os.set_blocking(fd, True)
        threading.Thread(target=_send, args=(service,), name="relay", daemon=True).start()
        with contextlib.suppress(OSError):
            block = memoryview(bytearray(BLOCK_BYTES))
            while count := service.recv_into(block):
                _write(block[:count])
    return 0


def _send(service: socket.socket) -> None:
    """Carry what comes over ssh to the service, and tell it when nothing follows."""
    with contextlib.suppress(OSError):
        while block := os.read(0, BLOCK_BYTES):
            service.sendall(block)
    with contextlib.suppress(OSError):
        service.shutdown(socket.SHUT_WR)


def _write(view: memoryview) -> None:
    while view:
        view = view[os.write(1, view) :]
