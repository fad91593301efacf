"""Files of a tree that changed while they were sent, and are tried again in the same transfer.

Each was withdrawn. When everything else is done, it is listed again as soon as it is quiet (`listing.changed_files`):
as a new entry, in a later part of the manifest. So the last part waits for that.
"""

from typing import Final

from filestreamer.telemetry.counters import Skipped
from filestreamer.wire.messages import SkipKind
from sender.listing.changed_files import ChangedFile
from sender.listing.listing import ListedAgain, ListingThread
from sender.listing.skipped_entries import SkippedEntries
from sender.source.item import Item, Unsendable

TRIES_MAX: Final = 3
"""How often a file is listed again in a transfer."""
FILES_MAX: Final = 10_000
"""How many files wait to be listed again, at most: further ones are skipped, as each takes memory."""


class SecondTries:
    """The files that are tried again. For the coordinator's thread."""

    def __init__(self, listing: ListingThread, skipped: SkippedEntries) -> None:
        self._listing = listing
        self._skipped = skipped
        self._waiting: list[ChangedFile] = []
        self._tries: dict[bytes, int] = {}
        self._is_listing = False

    def take(self, item: Item, error: Unsendable) -> None:
        """Take a file that was withdrawn: it is tried again or, where that is of no use, counts as skipped."""
        # Another name of a file may be there, and be what it was, where the first name is gone.
        is_other_name = item.identity is None and error.kind is SkipKind.VANISHED
        is_worth_it = error.kind is SkipKind.CHANGED or is_other_name
        has_room = len(self._waiting) < FILES_MAX
        if is_worth_it and has_room and self._tries.get(item.path, 0) < TRIES_MAX:
            self._waiting.append(ChangedFile(item, error))
        else:
            self._skip(item, error)

    def go_on(self) -> bool:
        """List the files again that wait, now that everything else is done; return whether nothing is to come."""
        if self._waiting and not self._is_listing:
            self._is_listing = True
            for item, _ in self._waiting:
                self._tries[item.path] = self._tries.get(item.path, 0) + 1
            self._listing.list_again(self._waiting)
            self._waiting = []
        return not self._is_listing

    def take_listed(self, event: ListedAgain) -> None:
        """Go on: the files are listed again, but for some that are given up."""
        self._is_listing = False
        for file in event.given_up:
            self._skip(*file)

    def give_up(self) -> None:
        """Count the files that wait as skipped: the transfer has failed."""
        for file in self._waiting:
            self._skip(*file)
        self._waiting = []

    def _skip(self, item: Item, error: Unsendable) -> None:
        self._skipped.add(Skipped(item.shown, error.why, error.kind, item.entry.path))
