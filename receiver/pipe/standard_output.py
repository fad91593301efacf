"""An output that is written in order: standard output, a device, a FIFO. It is never replaced.

The rest of the process can't write to standard output any more, whatever path led to it: only the received bytes get
there.
"""

import contextlib
import errno
import fcntl
import os
import re
import select
import stat
import sys
from typing import Final

from filestreamer.wire import limits
from filestreamer.wire.errors import Code, TransferFailed, UsageError, from_os_error

PIPE_BYTES: Final = 1 * limits.MIB
"""The size that a pipe is set to: fewer, larger system calls."""
PIECE_BYTES: Final = 64 * limits.KIB
"""The most bytes of one write: each write that returns shows that a slow reader still reads."""
LINKS: Final = 40
"""Most symlinks that are followed, as in the kernel."""
_OPEN: Final = os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC
_DESCRIPTOR: Final = re.compile(r"/proc/(\d+)(?:/task/\d+)?/fd/(\d+)")


class OpenFile:
    """An output that is open. It is an `OrderedWriter`."""

    def __init__(self, path: str, fd: int | None) -> None:
        """Write to a descriptor. Where it is None, `path` is a FIFO, which is opened when there are bytes."""
        self.path = path
        self._fd = fd
        if fd is not None:
            _enlarge(fd)

    def write(self, view: memoryview) -> None:
        """Write all bytes; wait for the reader. Raises TransferFailed: DESTINATION, NO_SPACE."""
        try:
            fd = self._open()
            while view:
                view = view[_write_some(fd, view[:PIECE_BYTES]) :]
        except BrokenPipeError:
            raise TransferFailed(Code.DESTINATION, f"the reader of {self.path} closed the pipe") from None
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't write to {self.path}") from None

    def _open(self) -> int:
        if self._fd is None:  # opening a FIFO waits for its reader
            fd = os.open(self.path, _OPEN)
            if not stat.S_ISFIFO(os.fstat(fd).st_mode):
                os.close(fd)
                raise OSError(errno.ESTALE, "it is no longer a FIFO")
            _enlarge(fd)
            self._fd = fd
        return self._fd

    def finish(self, size: int) -> None:  # noqa: ARG002 - part of OrderedWriter
        """Sync a device; let the reader of a pipe see its end. Raises TransferFailed: DESTINATION, NO_SPACE."""
        try:
            fd = self._open()
        except OSError as error:
            raise from_os_error(error, Code.DESTINATION, f"can't write to {self.path}") from None
        self._fd = -1
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EROFS, errno.ENOTSUP):  # a pipe, a terminal, a socket
                raise from_os_error(error, Code.DESTINATION, f"can't sync {self.path}") from None
        finally:
            os.close(fd)


class Stdout(OpenFile):
    """Standard output of the process. After this, `sys.stdout` and other writes to it go to standard error."""

    def __init__(self) -> None:
        """Take standard output, once in a process. Raises UsageError where it is closed."""
        if sys.stdout is None:
            raise UsageError("--output-file -: standard output is closed")
        fd = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)
        _divert_stdout()
        super().__init__("standard output", fd)


def open_special(path: str) -> OpenFile | None:
    """Open the output that a path leads to; return None where it leads to a plain file, or to nothing yet.

    Raises TransferFailed(DESTINATION) where it can't be written to, UsageError where the log goes there.
    """
    place = follow(path)
    descriptor = _DESCRIPTOR.fullmatch(place)
    try:
        if descriptor and int(descriptor[1]) == os.getpid():
            return _open_descriptor(path, int(descriptor[2]))
        try:
            status = os.stat(place)
        except FileNotFoundError:
            if path.endswith("/"):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)) from None
            return None
        if path.endswith("/") and not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if stat.S_ISREG(status.st_mode) and descriptor:
            raise _unfit(path, "a file that another process has open: give its own name")
        if stat.S_ISREG(status.st_mode):
            return None
        if stat.S_ISDIR(status.st_mode):
            raise _unfit(path, "a directory")
        if stat.S_ISSOCK(status.st_mode):
            raise _unfit(path, "a socket")
        return _open_device(path, place, status)
    except OSError as error:
        raise from_os_error(error, Code.DESTINATION, f"can't write to {path}") from None


def follow(path: str) -> str:
    """Return where the last component of a path leads, symlinks followed. Raises TransferFailed(DESTINATION).

    An open descriptor of a process (`/proc/.../fd/N`) is returned as such.
    """
    directory, name = os.path.split(path)
    for _ in range(LINKS):
        place = os.path.join(os.path.realpath(directory), name)
        if _DESCRIPTOR.fullmatch(place):
            return place
        try:
            target = os.readlink(place)
        except OSError:  # not a symlink; any other error shows when the path is opened
            return place
        directory, name = os.path.split(os.path.join(os.path.dirname(place), target))
    raise TransferFailed(Code.DESTINATION, f"can't write to {path}: {os.strerror(errno.ELOOP)}")


def _unfit(path: str, what: str) -> TransferFailed:
    return TransferFailed(Code.DESTINATION, f"can't write to {path}: it is {what}")


def _open_descriptor(path: str, number: int) -> OpenFile:
    """Return the output of an open descriptor of this process. Raises OSError, TransferFailed, UsageError."""
    if number == 1:
        return Stdout()
    if number == 2:
        raise UsageError(f"--output-file {path}: that is where the log goes")
    if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise _unfit(path, "open for reading")
    _keep_apart(path, os.fstat(number))
    return OpenFile(path, fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3))


def _open_device(path: str, place: str, status: os.stat_result) -> OpenFile:
    """Return the output of a device or a FIFO. Raises OSError, UsageError."""
    if not os.access(place, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    fd = None if stat.S_ISFIFO(status.st_mode) else os.open(place, _OPEN)
    _keep_apart(path, status)
    return OpenFile(path, fd)


def _keep_apart(path: str, status: os.stat_result) -> None:
    """Keep the result away from the output. Raises UsageError where the log goes to the same place."""
    is_device = stat.S_ISCHR(status.st_mode)  # the log may go to the same terminal, or to /dev/null
    if sys.stderr is not None and not is_device and os.path.samestat(status, os.fstat(2)):
        raise UsageError(f"--output-file {path}: that is where the log goes")
    if sys.stdout is not None and os.path.samestat(status, os.fstat(1)):
        _divert_stdout()


def _divert_stdout() -> None:
    """Have everything that is written to standard output go to standard error."""
    sys.stdout.flush()
    if sys.stderr is not None:
        os.dup2(2, 1)
    else:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)


def _enlarge(fd: int) -> None:
    with contextlib.suppress(OSError):  # it is no pipe, or may not grow
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _write_some(fd: int, view: memoryview) -> int:
    try:
        return os.write(fd, view)
    except BlockingIOError:  # another process, which shares the descriptor, has set O_NONBLOCK
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        poll.poll()
        return 0
