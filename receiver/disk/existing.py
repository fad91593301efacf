"""What becomes of a file or symlink of the destination that differs from an entry of its name ("Files that exist").

The sender's user may want it left, the receiver's may forbid to replace it: the stricter of the two wins.
"""

import enum
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from filestreamer.wire.messages import Existing, Offer


class Fate(enum.Enum):
    """What becomes of what is there."""

    REPLACED = enum.auto()
    LEFT = enum.auto()
    """It stays as it is, as the sender's user wants it: no failure."""
    REFUSED = enum.auto()
    """It stays as it is, as it may not be replaced."""


class Policy(NamedTuple):
    """The rule that both users together have set."""

    existing: Existing
    because: str
    """What forbids to replace, for people."""

    @property
    def replaces_all(self) -> bool:
        """Whether whatever is there is replaced, unseen."""
        return self.existing is Existing.REPLACE

    def fate(self, there: os.stat_result, mtime_ns: int) -> Fate:
        """Return what becomes of a file or symlink that differs from an entry with this mtime."""
        match self.existing:
            case Existing.REPLACE:
                return Fate.REPLACED
            case Existing.NEWER:
                return Fate.REPLACED if mtime_ns > there.st_mtime_ns else Fate.LEFT
            case Existing.SKIP:
                return Fate.LEFT
            case Existing.REFUSE:
                return Fate.REFUSED

    def put(self, put: Callable[[bool], None], name: bytes, directory_fd: int, mtime_ns: Callable[[], int]) -> Fate:
        """Give a name to what is staged, unless what has the name by now is to stay; return what became of that.

        `put` gives the name; its argument says whether it may replace what has it, or else raises FileExistsError. If
        something has the name, `mtime_ns` is asked for the time of what is staged. Raises OSError.
        """
        if self.replaces_all:
            put(True)
            return Fate.REPLACED
        try:
            put(False)
        except FileExistsError:
            there = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
            fate = self.fate(there, mtime_ns())
            if fate is not Fate.REPLACED and not stat.S_ISDIR(there.st_mode):
                return fate
            put(True)  # a directory is in the way: this says so
        return Fate.REPLACED


def policy(offer: Offer, *, replace: bool) -> Policy:
    """Return the stricter of what the sender wants and what this receiver permits (`replace`)."""
    if not replace:
        return permitted(replace=False)
    return Policy(offer.existing, f"--existing {offer.existing.name.lower()} keeps it")


def permitted(*, replace: bool) -> Policy:
    """Return what this receiver permits, whatever a sender wants."""
    return Policy(Existing.REPLACE if replace else Existing.REFUSE, "--no-replace forbids replacing it")
