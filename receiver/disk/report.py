"""What could not be done for an entry, or was done otherwise: told to both users, while everything else goes on.

Fatal errors (no space, quota, read-only, a failing disk or sync) are not reported here: they end the transfer.
"""

import threading
from collections.abc import Callable
from typing import NamedTuple

from filestreamer.wire.messages import SkipKind


class Reported(NamedTuple):
    """An entry that was declined, or an attribute of an entry that was not set."""

    file_id: int
    path: bytes
    kind: SkipKind
    reason: str
    """Without the path."""


class Report:
    """Collects reports of one transfer, for its coordinator to send. Any thread may call."""

    def __init__(self, nudge: Callable[[], object]) -> None:
        """`nudge` has the coordinator `take` soon; any thread may call it."""
        self._nudge = nudge
        self._mutex = threading.Lock()  # protects the fields below
        self._entries: list[Reported] = []
        self._warnings: list[str] = []
        self._warned: set[str] = set()

    def decline(self, file_id: int, path: bytes, reason: str) -> None:
        """Report an entry that can't be made, replaced or linked: it is skipped."""
        self._add(Reported(file_id, path, SkipKind.DECLINED, reason))

    def skip_attribute(self, file_id: int, path: bytes, reason: str) -> None:
        """Report an entry without an attribute that the sender's user asked for by a flag."""
        self._add(Reported(file_id, path, SkipKind.ATTRIBUTE, reason))

    def warn(self, text: str) -> None:
        """Warn both users, once in a transfer for each text: a substitute, or an attribute that nobody asked for."""
        with self._mutex:
            if text in self._warned:
                return
            self._warned.add(text)
            self._warnings.append(text)
        self._nudge()

    def _add(self, reported: Reported) -> None:
        with self._mutex:
            self._entries.append(reported)
        self._nudge()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to take."""
        return not (self._entries or self._warnings)

    def take(self) -> tuple[list[Reported], list[str]]:
        """Return what was reported since the last call: entries, and warnings."""
        with self._mutex:
            taken = self._entries, self._warnings
            self._entries, self._warnings = [], []
        return taken
