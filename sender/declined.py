"""The coordinator's handling of Declined and Notice: what the receiver can't do for single entries.

A declined entry is skipped. If it is a file with segments that are not done, it is withdrawn, as a file is that can't
be read (`withdrawals`): so both ends leave it out of the root digest. A file that is done stays in it.
"""

import os

from filestreamer.process.log import printable
from filestreamer.telemetry.counters import Skipped, TransferCounters
from filestreamer.wire import messages as m
from filestreamer.wire.errors import RemoteProtocolError
from sender.dispatch.manifest import Manifest
from sender.dispatch.part import Part
from sender.dispatch.send_queue import SendQueue
from sender.listing.skipped_entries import SkippedEntries
from sender.withdrawals import Withdrawals


class DeclinedEntries:
    """Handles what the receiver reports. For the coordinator's thread."""

    def __init__(
        self,
        manifest: Manifest,
        queue: SendQueue,
        withdrawals: Withdrawals,
        skipped: SkippedEntries,
        counters: TransferCounters,
        *,
        is_tree: bool,
    ) -> None:
        self._manifest = manifest
        self._queue = queue
        self._withdrawals = withdrawals
        self._skipped = skipped
        self._counters = counters
        self._is_tree = is_tree
        self._offers = 0
        """How many control connections there were."""
        self._told = 0
        """Entries that were told on this control connection."""
        self._taken = 0
        """Entries that were taken. On another connection the receiver first repeats all of them, in the same order."""
        self._kinds: set[m.SkipKind] = set()
        """What was told of a single file: after a restart the receiver may tell it again."""

    def begin_offer(self) -> None:
        """Begin with another control connection: what was told before is repeated on it."""
        self._offers += 1
        self._told = 0

    def take(self, message: m.Declined) -> None:
        """Skip declined entries; withdraw those of which something is still to come. Raises RemoteProtocolError."""
        # An attribute that is not set, and after that a place that is refused: no entry is told more often.
        if self._told + len(message.entries) > 2 * self._manifest.files:
            raise RemoteProtocolError("the receiver declines more entries than were offered")
        withdrawn = []
        for entry, part in [(entry, self._manifest.part_of_file(entry.file_id)) for entry in message.entries]:
            self._told += 1
            if not self._is_tree:
                self._take_single(entry, part)
            elif self._told > self._taken:
                self._taken += 1
                if self._take(entry, part):
                    withdrawn.append(entry.file_id)
        self._withdrawals.take_declined(withdrawn)

    def _take_single(self, entry: m.DeclinedEntry, part: Part | None) -> None:
        if entry.kind is not m.SkipKind.ATTRIBUTE:
            raise RemoteProtocolError("the receiver declines the one file of a transfer, but does not end the transfer")
        if entry.kind not in self._kinds:
            self._kinds.add(entry.kind)
            self._skip(entry, part)

    def _take(self, entry: m.DeclinedEntry, part: Part | None) -> bool:
        """Skip an entry; return whether it is withdrawn now."""
        file_id = entry.file_id
        if file_id in self._manifest.withdrawn:  # the reason that this end has found is told already
            return False
        if self._offers == 1:  # on a later connection it may be told again before its part has come
            self._manifest.take_answer(file_id)
        self._skip(entry, part)
        if entry.kind is m.SkipKind.ATTRIBUTE:
            return False
        if part is not None and self._queue.withdraw_open(part, file_id):
            return True
        # Of a part that is done and dropped, nearly all that is declined is files: they are renamed last.
        if part is None or part.item(file_id).entry.type is m.EntryType.FILE:
            self._counters.files -= 1
        return False

    def _skip(self, entry: m.DeclinedEntry, part: Part | None) -> None:
        # A part that is done was dropped: the receiver knows the path at the destination.
        path = part.item(entry.file_id).shown if part is not None else printable(os.fsdecode(entry.path))
        self._skipped.add(Skipped(path, entry.reason, entry.kind, entry.path, is_told=True))

    def notice(self, message: m.Notice) -> None:
        """Tell a warning of the receiver, once."""
        for text in message.texts:
            self._skipped.warn(text)
