"""What could not be done for an entry, or was done otherwise: told to both users, while everything else goes on.

Fatal errors (no space, quota, read-only, a failing disk or sync) are not reported here: they end the transfer.
"""

import threading
from array import array
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, Protocol

from filestreamer.telemetry.counters import WARNINGS_MAX
from filestreamer.wire import limits
from filestreamer.wire.codec import clip, clip_path, decode, encode
from filestreamer.wire.messages import Declined, DeclinedEntry, Notice, SkipKind

_FRAME_BYTES: Final = limits.FRAME_BYTES - limits.KIB
"""What the entries of a Declined may take: the rest is for the message around them."""
_OVERHEAD_BYTES: Final = 32
"""The most that an entry takes in a Declined beside its path and its reason."""


class Store(Protocol):
    """Where messages are kept that may have to be repeated: a tree has a file for that."""

    def append(self, data: bytes | bytearray) -> int:
        """Add bytes; return their offset."""

    def read(self, at: int, count: int) -> bytes:
        """Read bytes that were added."""


class Reported(NamedTuple):
    """An entry that was declined, or an attribute of an entry that was not set."""

    file_id: int
    path: bytes
    kind: SkipKind
    reason: str
    """Without the path."""


class Report:
    """Collects reports of one transfer, for its coordinator to send. Any thread may call.

    `messages` and `again` are for one thread at a time: that of the coordinator, or what it does beside.
    """

    def __init__(self, nudge: Callable[[], object]) -> None:
        """`nudge` has the coordinator `take` soon; any thread may call it."""
        self._nudge = nudge
        self._mutex = threading.Lock()  # protects the fields below
        self._entries: list[Reported] = []
        self._warnings: list[str] = []
        self._warned: dict[str, None] = {}  # in order; the first WARNINGS_MAX
        self.is_short = False
        """Whether an entry was declined, or left because it may not be replaced."""
        self.left = 0
        """Entries that exist and differ, and are left as they are, as the sender's user wants it: no failure."""
        self.store: Store | None = None
        """Where what was told is kept, for a sender that comes again; in memory without it."""
        self._kept: list[bytes] = []
        self._stored = array("Q")
        """Offset and length of each message in the store, one after the other."""

    def decline(self, file_id: int, path: bytes, reason: str) -> None:
        """Report an entry that can't be made, replaced or linked: it is skipped."""
        self._add(Reported(file_id, path, SkipKind.DECLINED, reason))

    def leave_existing(self, file_id: int, path: bytes, reason: str) -> None:
        """Report an entry whose place is taken, where nothing may be replaced: what is there stays."""
        self._add(Reported(file_id, path, SkipKind.EXISTING, reason))

    def skip_attribute(self, file_id: int, path: bytes, reason: str) -> None:
        """Report an entry that was made without an attribute that the sender's user asked for by a flag."""
        self._add(Reported(file_id, path, SkipKind.ATTRIBUTE, reason))

    def warn(self, text: str) -> None:
        """Warn both users, once in a transfer for each text: a substitute, or an attribute that nobody asked for."""
        with self._mutex:
            if text in self._warned or len(self._warned) >= WARNINGS_MAX:
                return
            self._warned[text] = None
            self._warnings.append(text)
        self._nudge()

    def leave(self) -> None:
        """Count an entry that exists and differs, and is left as it is (`Offer.existing`)."""
        with self._mutex:
            self.left += 1

    def _add(self, reported: Reported) -> None:
        with self._mutex:
            self.is_short = self.is_short or reported.kind is not SkipKind.ATTRIBUTE
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

    def untold(self, counts: Callable[[SkipKind], bool]) -> int:
        """Return how many entries of some kinds were reported since the last call of `take`."""
        with self._mutex:
            return sum(counts(entry.kind) for entry in self._entries)

    # --- for the sender

    def messages(self) -> Iterator[Declined | Notice]:
        """Yield what was reported since the last call, as messages."""
        entries, warnings = self.take()
        if warnings:
            yield Notice(tuple(warnings))
        for message in _messages(entries):
            self._keep(encode(message))
            yield message

    def again(self) -> Iterator[Declined | Notice]:
        """Yield all that was told before, in the same order: control was opened anew."""
        with self._mutex:
            told = tuple([text for text in self._warned if text not in self._warnings])
        if told:
            yield Notice(told)
        for body in self._kept:
            yield _declined(body)
        for at in range(0, len(self._stored), 2):
            assert self.store is not None
            yield _declined(self.store.read(self._stored[at], self._stored[at + 1]))

    def _keep(self, body: bytes) -> None:
        if self.store is None:
            self._kept.append(body)
        else:
            self._stored.extend((self.store.append(body), len(body)))

    @property
    def table_bytes(self) -> int:
        """About how much memory it takes to find again what was told."""
        return len(self._stored) * self._stored.itemsize


def _declined(body: bytes) -> Declined:
    message = decode(body)
    assert isinstance(message, Declined)  # it was encoded here
    return message


def _messages(entries: list[Reported]) -> Iterator[Declined]:
    """Yield messages with these entries, each within the limits of a frame."""
    some: list[DeclinedEntry] = []
    size = 0
    for file_id, path, kind, reason in entries:
        entry = DeclinedEntry(file_id, kind, clip(reason, limits.LEFT_OUT_REASON_BYTES), clip_path(path))
        entry_bytes = _OVERHEAD_BYTES + len(entry.path) + len(entry.reason.encode("utf-8", "replace"))
        if len(some) == limits.ENTRIES_PER_DECLINED or size + entry_bytes > _FRAME_BYTES:
            yield Declined(tuple(some))
            some, size = [], 0
        some.append(entry)
        size += entry_bytes
    if some:
        yield Declined(tuple(some))
