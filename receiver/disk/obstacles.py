"""What lies in the way of one entry, told apart from what concerns everything that is written here.

A directory has the name of a file, a file belongs to somebody else, a name is none for this file system: in a tree the
entry is declined, and everything else goes on. A full or failing disk is one error for all: it ends the transfer.
"""

import errno
from typing import Final

from filestreamer.wire.errors import Code, TransferFailed, from_os_error

BROKEN: Final = frozenset(
    (
        *(errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.ENODEV, errno.ENXIO),
        *(errno.ESTALE, errno.ENOTCONN, errno.ECONNABORTED, errno.ESHUTDOWN, errno.EREMOTEIO, errno.ETIMEDOUT),
    )
)
"""The errors of a file system that is damaged, or does not answer any more."""
_OF_ALL: Final = BROKEN.union(
    (
        # The disk or the quota is full, or the file system is read-only.
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS),
        # This process lacks descriptors or memory, or has a bug.
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EBADF, errno.EFAULT, errno.EINTR, errno.EAGAIN),
    )
)
"""The errors that the next entry would meet, too."""


class Obstacle(TransferFailed):
    """Something is in the way of one entry. It ends the transfer of a single file; in a tree the entry is declined."""

    def __init__(self, code: Code, reason: str, why: str, directory: bytes | None = None) -> None:
        """`reason` names the entry and is a whole message; `why` is for a line that has the path already.

        With `directory`, the entry can't be made because this directory can't: neither can anything else below it.
        """
        super().__init__(code, reason)
        self.why = why
        self.directory = directory
        self.is_left = False
        """Whether this is none for the sender's user, who wants what is there left as it is."""

    @property
    def is_existing(self) -> bool:
        """Whether what is there stays because nothing may be replaced."""
        return self.code is Code.EXISTS


def failure(error: OSError, what: str, directory: bytes | None = None) -> TransferFailed:
    """Return the error for an OSError at the destination: an Obstacle if it concerns one entry.

    `what` names the entry and the step.
    """
    failed = from_os_error(error, Code.DESTINATION, what)
    if error.errno is None or error.errno in _OF_ALL:
        return failed
    return Obstacle(failed.code, failed.reason, error.strerror or str(error), directory)


def write_failure(error: OSError, what: str) -> TransferFailed:
    """Return the error for an OSError in staging: only that a file is too large concerns that file alone."""
    return failure(error, what) if error.errno == errno.EFBIG else from_os_error(error, Code.DESTINATION, what)


def existing(shown: str, what: str, because: str, *, is_left: bool) -> Obstacle:
    """Return the error for what is there under a path and is not replaced; `because` says what keeps it."""
    why = f"{what}, and {because}"
    obstacle = Obstacle(Code.EXISTS, f"{shown}: {why}", why)
    obstacle.is_left = is_left
    return obstacle
