"""All errors, as one tree of exceptions, with the exit code of each.

    FilestreamerError
    ├── UsageError             settings that make no sense                                    exit 2
    ├── LocalProtocolError     this side was about to break the protocol: a bug               exit 1
    ├── RemoteProtocolError    the peer broke the protocol                                    by its code
    ├── ConnectionLost         reset, closed, timed out or refused: a new one may work        exit 1, retryable
    │   ├── ConnectionClosed   the peer closed the connection in order
    │   └── AddressNotReady    this machine, or its name server, is not ready: it may be later
    ├── Refused                the peer sent Refusal                                          by its code
    ├── Aborted                the peer sent Abort                                            by its code
    ├── TransferFailed         this side ends the transfer, and tells the peer why            by its code
    ├── FarSideFailed          the service that ssh starts did not come up                    by what it says
    ├── Partial                complete, but for entries that were skipped                    exit 5
    ├── Absent                 the other side of a job never came, or does not come back      exit 6
    ├── Different              the two sides of a dry run with --checksum differ              exit 5
    └── Interrupted            a signal asked this process to end                             exit 128+N

Only `CONSEQUENCES` maps a code of the protocol to an exit code and to `retryable`. Both ends use it, so that a full
disk of the receiver is exit code 4 at the sender, too. Only `from_os_error` maps an OSError.
"""

import enum
import errno
from typing import Literal, NamedTuple


class Code(enum.IntEnum):
    """Why a connection or a transfer ended (`Code` of wire.proto)."""

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
    JOB = 21


class Exit(enum.IntEnum):
    """The exit codes, on which scripts rely. A process that signal N ended exits with 128+N."""

    COMPLETE = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    DATA = 4
    PARTIAL = 5
    ABSENT = 6


class Consequence(NamedTuple):
    """What follows from a code: whether the service may retry by itself, and the exit code if it does not."""

    retryable: bool
    exit_code: Exit


CONSEQUENCES: dict[Code, Consequence] = {
    Code.VERSION: Consequence(False, Exit.REFUSED),
    Code.TOKEN: Consequence(False, Exit.REFUSED),
    Code.POLICY: Consequence(False, Exit.REFUSED),
    Code.PATH: Consequence(False, Exit.REFUSED),
    Code.EXISTS: Consequence(False, Exit.REFUSED),
    Code.PROTOCOL: Consequence(False, Exit.REFUSED),
    Code.CORRUPT: Consequence(True, Exit.FAILED),
    Code.BUSY: Consequence(True, Exit.FAILED),
    Code.UNKNOWN_TRANSFER: Consequence(True, Exit.FAILED),
    Code.LIMIT: Consequence(True, Exit.FAILED),
    Code.SHUTTING_DOWN: Consequence(True, Exit.FAILED),
    Code.SUPERSEDED: Consequence(False, Exit.FAILED),
    Code.TIMEOUT: Consequence(True, Exit.FAILED),
    Code.SOURCE: Consequence(False, Exit.DATA),
    Code.SOURCE_CHANGED: Consequence(False, Exit.DATA),
    Code.DESTINATION: Consequence(False, Exit.DATA),
    Code.NO_SPACE: Consequence(False, Exit.DATA),
    Code.DIGEST: Consequence(False, Exit.FAILED),
    Code.INTERNAL: Consequence(False, Exit.FAILED),
    Code.TOO_LARGE: Consequence(False, Exit.REFUSED),
    Code.JOB: Consequence(False, Exit.REFUSED),
}


class FilestreamerError(Exception):
    """Root of the tree. `str()` is one line for people, which says what to do; `name` is a word for scripts."""

    retryable: bool = False
    exit_code: int = Exit.FAILED
    name: str = "failed"

    @property
    def ends_job(self) -> bool:
        """Whether both sides of a job end with this error: it was refused, or meets its data, at every try."""
        return self.exit_code in (Exit.REFUSED, Exit.DATA) and not self.retryable


class UsageError(FilestreamerError):
    """Settings that make no sense. Nothing was started."""

    exit_code = Exit.USAGE
    name = "usage"


class LocalProtocolError(FilestreamerError):
    """This side was about to send what the protocol forbids: a bug on this side."""

    name = "internal"


class ConnectionLost(FilestreamerError):
    """A connection can't be made or has ended; the transfer may go on over a new one."""

    retryable = True
    name = "connection_lost"


class ConnectionClosed(ConnectionLost):
    """The peer closed the connection in order: no byte was lost on the way."""


class AddressNotReady(ConnectionLost):
    """This machine lacks an address or an interface now, or its name server does not answer: it may be well later."""

    name = "address_not_ready"

    def __init__(self, reason: str, wait_seconds: float = 0.0) -> None:
        """`wait_seconds` is how long it is worth to wait where a service starts."""
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class _Coded(FilestreamerError):
    """An error with a code of the protocol, from which exit code and `retryable` follow."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.name = code.name.lower()
        self.retryable, self.exit_code = CONSEQUENCES[code]

    def __str__(self) -> str:
        return self.reason


class RemoteProtocolError(_Coded):
    """The peer sent what the protocol forbids (PROTOCOL), or a frame was damaged on the way (CORRUPT)."""

    def __init__(self, reason: str, code: Code = Code.PROTOCOL) -> None:
        super().__init__(code, reason)


class Refused(_Coded):
    """The peer answered Refusal in the opening. `by` is the service that did."""

    def __init__(self, code: Code, reason: str, by: Literal["sender", "receiver"] = "receiver") -> None:
        super().__init__(code, reason)
        self.by = by

    def __str__(self) -> str:
        return f"the {self.by} refused: {self.reason}"


class Aborted(_Coded):
    """The peer sent Abort."""

    def __str__(self) -> str:
        return f"the other side ended the transfer: {self.reason}"


class TransferFailed(_Coded):
    """This side ends the transfer, and sends the peer an Abort with the reason."""


class FarSideFailed(FilestreamerError):
    """The service at the other machine did not come up: ssh, the remote shell or the service itself says why."""

    def __init__(self, reason: str, *, exit_code: int = Exit.FAILED, name: str = "far_side") -> None:
        super().__init__(reason)
        self.exit_code = exit_code
        self.name = name


class Partial(FilestreamerError):
    """The transfer is complete and durable, but for entries that were skipped."""

    exit_code = Exit.PARTIAL
    name = "partial"


class Different(FilestreamerError):
    """A dry run has compared the two sides by their bytes, and found differences."""

    exit_code = Exit.PARTIAL
    name = "different"


class Absent(FilestreamerError):
    """The other side of a job never came, or does not come back: somebody has to look why."""

    exit_code = Exit.ABSENT
    name = "absent"

    @classmethod
    def waited_for(cls, other: str, job: str, seconds: float, this: str) -> "Absent":
        """Return the error of `this` side, which listens, where the `other` one does not come."""
        return cls(
            f"no {other} of job '{job}' for {seconds:g} s (--idle-timeout): it has ended for good"
            f" (its result says why), or it can't reach this {this}"
        )

    @classmethod
    def looked_for(cls, other: str, job: str, seconds: float, trouble: FilestreamerError | None) -> "Absent":
        """Return the error of the side that dials; `trouble` is the last error of a connection."""
        why = f" ({trouble})" if trouble is not None else ""
        return cls(
            f"no {other} of job '{job}' for {seconds:g} s{why}: it has ended (its result says how: if"
            " that is complete, everything is in place), or it was never started, or can't be reached"
        )


class Interrupted(FilestreamerError):
    """A signal asked this process to end. The next run resumes the transfer."""

    retryable = True
    name = "interrupted"

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"ended by signal {signal_number}: run the same command again to resume")
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


def from_os_error(error: OSError, code: Code, what: str) -> TransferFailed:
    """Map an OSError of a file (never of a socket) to an error with a code; `what` names the file and the step.

    `code` is SOURCE or DESTINATION; a full disk becomes NO_SPACE.
    """
    # This process lacks descriptors or memory, perhaps only for a moment: nothing is wrong with the file.
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        code = Code.LIMIT
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and code is Code.DESTINATION:
        code = Code.NO_SPACE
    return TransferFailed(code, f"{what}: {error.strerror or error}")
