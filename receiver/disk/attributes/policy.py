"""What follows where a destination does not take a mode or times: the bytes are right all the same.

Both users are warned, once. But a file that more people could read or write than at the source is an obstacle.
"""

import os
import stat
from typing import Final, Protocol

from filestreamer.wire.errors import Code
from filestreamer.wire.messages import Entry
from receiver.disk.obstacles import Obstacle, failure

_FOR_OTHERS: Final = 0o066
"""Who may read and write besides the owner. A file system without modes often lets everybody execute everything."""


class AttributeReport(Protocol):
    """What is told of attributes: `Report`, or what passes it on."""

    def skip_attribute(self, file_id: int, path: bytes, reason: str) -> None:
        """Report an entry without an attribute that the sender's user asked for by a flag."""

    def warn(self, text: str) -> None:
        """Warn both users, once in a transfer for each text."""


class AttributePolicy:
    """Sets modes and times of the entries of one transfer. Any thread may call. All methods raise OSError, Obstacle."""

    def __init__(self, report: AttributeReport) -> None:
        self._report = report
        self._warned: set[str] = set()

    def set_mode(self, this: int | str, entry: Entry, mode: int) -> None:
        """Set the mode of an open file, or of what has this path in /proc."""
        why = "the file system ignores it"
        try:
            os.chmod(this, mode)
        except OSError as error:
            why = _own(error)
        self._check_mode(os.stat(this), entry, mode, why)

    def _check_mode(self, there: os.stat_result, entry: Entry, mode: int, why: str) -> None:
        """Check the permissions of what is there: warn if they differ, raise Obstacle if they are wider."""
        wanted, found = mode & 0o777, there.st_mode & 0o777
        if found == wanted:
            return
        # Of a directory that somebody else has made and opened to others, the mode is not ours to judge.
        is_judged = not stat.S_ISDIR(there.st_mode) or there.st_uid == os.geteuid()
        if found & ~wanted & _FOR_OTHERS and is_judged:
            what = f"its mode would be {found:03o} and can't be made as narrow as at the source, {wanted:03o} ({why})"
            raise Obstacle(Code.DESTINATION, f"can't write {os.fsdecode(entry.path)!a}: {what}", what)
        self._warn("modes", entry, why)

    def set_times(self, this: int | str, entry: Entry) -> None:
        """Set the times of an open file, or of what has this path in /proc."""
        try:
            os.utime(this, ns=(entry.mtime_ns, entry.mtime_ns))
        except OSError as error:
            self._warn("times", entry, _own(error))

    def _warn(self, what: str, entry: Entry, why: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            first = os.fsdecode(entry.path)
            self._report.warn(f"some {what} can't be set at the destination ({why}), the first of {first!a}")


def _own(error: OSError) -> str:
    """Return what an error says of one attribute; raise it where it concerns all that is written."""
    if not isinstance(failure(error, ""), Obstacle):
        raise error
    return error.strerror or str(error)
