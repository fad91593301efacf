"""Standard output as a destination: taken away from everybody else, so that nothing but the file gets there."""

import contextlib
import errno
import fcntl
import os
import select
import sys
from typing import Final

from wire import limits
from wire.errors import Code, TransferFailed, UsageError, from_os_error

PIPE_BYTES: Final = 1 * limits.MIB
"""What a pipe is asked to hold: fewer, larger system calls."""
PIECE_BYTES: Final = 64 * limits.KIB
"""Bytes in one write, so that it is seen that a slow reader takes some."""


class Stdout:
    """Writes to what was standard output; `sys.stdout`, and what else is written there, goes to standard error."""

    path = "standard output"

    def __init__(self) -> None:
        """Take standard output. Once in a process. Raises UsageError where it is closed."""
        if sys.stdout is None:
            raise UsageError("--output-file -: standard output is closed")
        sys.stdout.flush()
        self._fd = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)
        if sys.stderr is not None:
            os.dup2(2, 1)
        else:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.close(null)
        with contextlib.suppress(OSError):  # no pipe, or one that may not grow
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def write(self, view: memoryview) -> None:
        """Write all of it; waits for the reader. Raises TransferFailed: DESTINATION, NO_SPACE."""
        try:
            while view:
                view = view[self._write_some(view[:PIECE_BYTES]) :]
        except BrokenPipeError:
            raise TransferFailed(Code.DESTINATION, "whoever reads the output has gone") from None
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, "can't write to standard output") from None

    def _write_some(self, view: memoryview) -> int:
        try:
            return os.write(self._fd, view)
        except BlockingIOError:  # somebody else, who shares it, made it so
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            poll.poll()
            return 0

    def finish(self, size: int) -> None:  # noqa: ARG002 - a file in staging has to know it
        """Sync a file; let the reader of a pipe see its end. Raises TransferFailed: DESTINATION, NO_SPACE."""
        fd, self._fd = self._fd, -1
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EROFS, errno.ENOTSUP):  # a pipe, a terminal, a socket
                raise from_os_error(error, Code.DESTINATION, "can't sync standard output") from None
        finally:
            os.close(fd)
