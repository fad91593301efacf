"""What can go wrong, as one tree, and what each end means to whoever runs the command.

    FilestreamerError
    ├── UsageError             settings that make no sense                                    exit 2
    ├── LocalProtocolError     this side is about to break the protocol: a bug                exit 1
    ├── RemoteProtocolError    the peer broke the protocol                                    by its code
    ├── ConnectionLost         reset, closed, timed out, refused: another one may work        exit 1, retryable
    │   └── ConnectionClosed   the peer closed it in order
    ├── Refused                the peer said Refusal                                          by its code
    ├── Aborted                the peer said Abort                                            by its code
    ├── TransferFailed         this side ends the transfer, and tells the peer why            by its code
    ├── Partial                everything was moved but for what is listed as skipped         exit 5
    └── Interrupted            a signal asked this process to end                             exit 128+N

`VERDICTS` is the only place that maps a wire code to `retryable` and to an exit code; both ends exit by it, so a full
disk at the receiver is exit 4 at the sender, too. `from_os_error` is the only place that maps an OSError.
"""

import enum
import errno
from typing import NamedTuple


class Code(enum.IntEnum):
    """Why a connection or a transfer ends (`Code` of wire.proto)."""

    VERSION = 1
    TOKEN = 2
    POLICY = 3
    PATH = 4
    EXISTS = 5
    PROTOCOL = 6
    CORRUPT = 7
    BUSY = 8
    UNKNOWN_TRANSFER = 9
    LIMIT = 10
    SHUTTING_DOWN = 11
    SUPERSEDED = 12
    TIMEOUT = 13
    SOURCE = 14
    SOURCE_CHANGED = 15
    DESTINATION = 16
    NO_SPACE = 17
    DIGEST = 18
    INTERNAL = 19
    TOO_LARGE = 20


class Exit(enum.IntEnum):
    """The exit codes that users script against. 128+N is added for an end by signal N."""

    COMPLETE = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    DATA = 4
    PARTIAL = 5


class Verdict(NamedTuple):
    """What an end means: whether the same transfer may go on by itself, and how the command exits if it does not."""

    retryable: bool
    exit_code: Exit


VERDICTS: dict[Code, Verdict] = {
    Code.VERSION: Verdict(False, Exit.REFUSED),
    Code.TOKEN: Verdict(False, Exit.REFUSED),
    Code.POLICY: Verdict(False, Exit.REFUSED),
    Code.PATH: Verdict(False, Exit.REFUSED),
    Code.EXISTS: Verdict(False, Exit.REFUSED),
    Code.PROTOCOL: Verdict(False, Exit.REFUSED),
    Code.CORRUPT: Verdict(True, Exit.FAILED),
    Code.BUSY: Verdict(True, Exit.FAILED),
    Code.UNKNOWN_TRANSFER: Verdict(True, Exit.FAILED),
    Code.LIMIT: Verdict(True, Exit.FAILED),
    Code.SHUTTING_DOWN: Verdict(True, Exit.FAILED),
    Code.SUPERSEDED: Verdict(False, Exit.FAILED),
    Code.TIMEOUT: Verdict(True, Exit.FAILED),
    Code.SOURCE: Verdict(False, Exit.DATA),
    Code.SOURCE_CHANGED: Verdict(False, Exit.DATA),
    Code.DESTINATION: Verdict(False, Exit.DATA),
    Code.NO_SPACE: Verdict(False, Exit.DATA),
    Code.DIGEST: Verdict(False, Exit.FAILED),
    Code.INTERNAL: Verdict(False, Exit.FAILED),
    Code.TOO_LARGE: Verdict(False, Exit.REFUSED),
}


class FilestreamerError(Exception):
    """Root of the tree. `str()` is one line for people that says what to do; `name` is for scripts."""

    retryable: bool = False
    exit_code: int = Exit.FAILED
    name: str = "failed"


class UsageError(FilestreamerError):
    """Settings that make no sense; nothing was started."""

    exit_code = Exit.USAGE
    name = "usage"


class LocalProtocolError(FilestreamerError):
    """This side was about to send what the protocol forbids: a bug here, never the peer's doing."""

    name = "internal"


class ConnectionLost(FilestreamerError):
    """A connection that can't be made or has ended: the transfer may go on over another."""

    retryable = True
    name = "connection_lost"


class ConnectionClosed(ConnectionLost):
    """The peer closed the connection in order: nothing was lost on its way."""


class _Coded(FilestreamerError):
    """An end that carries a wire code, and exits by the code's verdict."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.name = code.name.lower()
        self.retryable, self.exit_code = VERDICTS[code]

    def __str__(self) -> str:
        return self.reason


class RemoteProtocolError(_Coded):
    """The peer sent what the protocol forbids (PROTOCOL), or a frame was damaged on its way (CORRUPT)."""

    def __init__(self, reason: str, code: Code = Code.PROTOCOL) -> None:
        super().__init__(code, reason)


class Refused(_Coded):
    """The peer answered Refusal before Welcome."""

    def __str__(self) -> str:
        return f"the receiver refused: {self.reason}"


class Aborted(_Coded):
    """The peer sent Abort."""

    def __str__(self) -> str:
        return f"the other side ended the transfer: {self.reason}"


class TransferFailed(_Coded):
    """This side ends the transfer for a reason of its own, and sends the peer an Abort with it."""


class Partial(FilestreamerError):
    """The transfer is complete and durable, but for entries that were left out."""

    exit_code = Exit.PARTIAL
    name = "partial"


class Interrupted(FilestreamerError):
    """A signal asked this process to end; a later run resumes."""

    retryable = True
    name = "interrupted"

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"ended by signal {signal_number}: run the same command again to resume")
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


def from_os_error(error: OSError, code: Code, what: str) -> TransferFailed:
    """Map an OSError of a file (never of a socket) to the end that it means; `what` names the file and the step.

    What this process may have no more of, for now, is LIMIT: it is nothing that is wrong with the file.
    """
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        code = Code.LIMIT
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and code is Code.DESTINATION:
        code = Code.NO_SPACE
    return TransferFailed(code, f"{what}: {error.strerror or error}")
