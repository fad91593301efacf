"""What becomes of a file or symlink of the destination that differs from an entry of its name ("Files that exist").

The sender's user may want it left, the receiver's may forbid to replace it: the stricter of the two wins.
"""

import enum
import os
from typing import NamedTuple

from filestreamer.wire.messages import Entry, Existing, Offer


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

    def fate(self, there: os.stat_result, entry: Entry) -> Fate:
        """Return what becomes of a file or symlink that differs from the entry; `there` is its stat(2)."""
        match self.existing:
            case Existing.REPLACE:
                return Fate.REPLACED
            case Existing.NEWER:
                return Fate.REPLACED if entry.mtime_ns > there.st_mtime_ns else Fate.LEFT
            case Existing.SKIP:
                return Fate.LEFT
            case Existing.REFUSE:
                return Fate.REFUSED


def policy(offer: Offer, *, replace: bool) -> Policy:
    """Return the stricter of what the sender wants and what this receiver permits (`replace`)."""
    if not replace:
        return Policy(Existing.REFUSE, "--no-replace forbids replacing it")
    return Policy(offer.existing, f"--existing {offer.existing.name.lower()} keeps it")
