"""What could not be done for an entry, or was done otherwise: told to both users, while everything else goes on.

Fatal errors (no space, quota, read-only, a failing disk or sync) are not reported here: they end the transfer.

In memory are the latest entries alone. A tree keeps all others on disk, whether they are told or not: it may have any
number of them, and a sender may read none.
"""

import threading
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final, Protocol

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


class Report:
    """Collects reports of one transfer, for its coordinator to send. Any thread may call.

    `messages` and `again` are for one thread at a time: that of the coordinator, or what it does beside.
    """

    def __init__(self, nudge: Callable[[], object]) -> None:
        """`nudge` has the coordinator ask for `messages` soon; any thread may call it."""
        self._nudge = nudge
        self._mutex = threading.Lock()  # protects the fields below
        self._entries: list[DeclinedEntry] = []
        """The latest entries: fewer than a message may have."""
        self._untold = Counter[SkipKind]()
        """How many entries of each kind are not told yet."""
        self._warnings: list[str] = []
        self._warned: dict[str, None] = {}  # in order; the first WARNINGS_MAX
        self.is_short = False
        """Whether an entry was declined, or left because it may not be replaced."""
        self.left = 0
        """Entries that exist and differ, and are left as they are, as the sender's user wants it: no failure."""
        self.store: Store | None = None
        """Where messages are kept, for a sender that does not read them now, or comes again; without it, in memory."""
        self._kept: list[bytes] = []
        self._stored = array("Q")
        """Offset and length of each message in the store, one after the other."""
        self._told = 0
        """How many of the messages that are kept were told: the first ones."""

    def decline(self, file_id: int, path: bytes, reason: str) -> None:
        """Report an entry that can't be made, replaced or linked: it is skipped."""
        self._add(file_id, path, SkipKind.DECLINED, reason)

    def leave_existing(self, file_id: int, path: bytes, reason: str) -> None:
        """Report an entry whose place is taken, where nothing may be replaced: what is there stays."""
        self._add(file_id, path, SkipKind.EXISTING, reason)

    def skip_attribute(self, file_id: int, path: bytes, reason: str) -> None:
        """Report an entry that was made without an attribute that the sender's user asked for by a flag."""
        self._add(file_id, path, SkipKind.ATTRIBUTE, reason)

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

    def _add(self, file_id: int, path: bytes, kind: SkipKind, reason: str) -> None:
        """Add an entry; `reason` is without its path."""
        entry = DeclinedEntry(file_id, kind, clip(reason, limits.LEFT_OUT_REASON_BYTES), clip_path(path))
        with self._mutex:
            self.is_short = self.is_short or kind is not SkipKind.ATTRIBUTE
            self._untold[kind] += 1
            self._entries.append(entry)
            if len(self._entries) == limits.ENTRIES_PER_DECLINED:
                self._keep()
        self._nudge()

    @property
    def is_empty(self) -> bool:
        """Whether everything is told."""
        return not (self._entries or self._warnings or self._told < self._count)

    def untold(self, counts: Callable[[SkipKind], bool]) -> int:
        """Return how many entries of some kinds are not told yet."""
        with self._mutex:
            return sum(number for kind, number in self._untold.items() if counts(kind))

    # --- for the sender

    def messages(self) -> Iterator[Declined | Notice]:
        """Yield what was reported since the last call, as messages."""
        with self._mutex:
            warnings, self._warnings = self._warnings, []
            self._keep()
        if warnings:
            yield Notice(tuple(warnings))
        while self._told < self._count:
            message = self._message(self._told)
            with self._mutex:
                self._untold.subtract(entry.kind for entry in message.entries)
                self._told += 1
            yield message

    def again(self) -> Iterator[Declined | Notice]:
        """Yield all that was told before, in the same order: control was opened anew."""
        with self._mutex:
            told = tuple([text for text in self._warned if text not in self._warnings])
        if told:
            yield Notice(told)
        yield from map(self._message, range(self._told))

    # --- the messages that are kept

    def _keep(self) -> None:
        """Keep the latest entries as messages. Call it with the mutex. Raises what the store raises."""
        for message in _messages(self._entries):
            body = encode(message)
            if self.store is None:
                self._kept.append(body)
            else:
                self._stored.extend((self.store.append(body), len(body)))
        self._entries.clear()

    @property
    def _count(self) -> int:
        """How many messages are kept."""
        return len(self._kept) + len(self._stored) // 2

    def _message(self, number: int) -> Declined:
        """Return a message that is kept."""
        at = 2 * (number - len(self._kept))
        if at < 0:
            return _declined(self._kept[number])
        assert self.store is not None
        return _declined(self.store.read(self._stored[at], self._stored[at + 1]))

    @property
    def table_bytes(self) -> int:
        """About how much memory it takes to find again what was told."""
        return len(self._stored) * self._stored.itemsize


def _declined(body: bytes) -> Declined:
    message = decode(body)
    assert isinstance(message, Declined)  # it was encoded here
    return message


def _messages(entries: list[DeclinedEntry]) -> Iterator[Declined]:
    """Yield messages with these entries, each within the limits of a frame."""
    some: list[DeclinedEntry] = []
    size = 0
    for entry in entries:
        entry_bytes = _OVERHEAD_BYTES + len(entry.path) + len(entry.reason.encode("utf-8", "replace"))
        if size + entry_bytes > _FRAME_BYTES:
            yield Declined(tuple(some))
            some, size = [], 0
        some.append(entry)
        size += entry_bytes
    if some:
        yield Declined(tuple(some))
