"""Lists what is sent, in a thread of its own, a few parts ahead of those that are done.

A single file is not a tree: it is listed at once, without the thread, and so is standard input.
"""

import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from filestreamer.process.threads import run_to_end
from filestreamer.telemetry.counters import Skipped
from filestreamer.wire.errors import Code, from_os_error
from filestreamer.wire.messages import Entry, EntryType
from sender.mailbox import Event, Failed, Mailbox
from sender.settings import SenderSettings
from sender.source.item import Item, check_readable
from sender.source.part_budget import PartBudget
from sender.source.patterns import pattern_filter
from sender.source.skipped_entries import SkippedEntries
from sender.source.stream import open_stdin
from sender.source.walk import Walk

PARTS_AHEAD: Final = 16
"""How many parts are listed and not done: some 16 thousand small files."""
PART_SECONDS: Final = 0.25
"""A part is posted after this long, full or not."""


@dataclass(frozen=True, slots=True)
class Listed(Event):
    """The entries of another part were found."""

    items: list[Item]
    last: bool


class ListingThread(threading.Thread):
    """Walks what the settings name, and posts its entries in parts."""

    def __init__(self, settings: SenderSettings, mailbox: Mailbox, skipped: SkippedEntries):
        """Look at the paths that the user names. Raises TransferFailed(SOURCE), UsageError."""
        super().__init__(name="walk", daemon=True)
        self._mailbox = mailbox
        self._room = threading.Semaphore(PARTS_AHEAD)  # how many more parts may be posted
        self._is_stopped = threading.Event()
        self.single: Item | None = None
        """The one file, or the stream, that is sent: then there is nothing to walk. None: a tree."""
        if settings.reads_stdin:
            self.single = _list_stdin(settings)
            return
        self._walk = make_walk(settings, skipped.add)
        if _is_plain_file(settings.input_files):
            item = next(iter(self._walk))
            if item.entry.type is not EntryType.FILE:  # a directory has taken its place since
                return
            self.single = item._replace(entry=item.entry._replace(hard_link_group=0))

    def run(self) -> None:
        """Walk until the end, or `stop`."""
        if error := run_to_end("the walk", self._list):
            self._mailbox.post(Failed(error))

    def _list(self) -> None:
        items: list[Item] = []
        budget, since = PartBudget(), time.monotonic()
        for item in self._walk:
            if self._is_stopped.is_set():
                return
            fits = budget.take(item)
            if not fits or (items and time.monotonic() - since > PART_SECONDS):
                self._post_part(items, last=False)
                items, budget, since = [], PartBudget(), time.monotonic()
                budget.take(item)
            items.append(item)
        self._post_part(items, last=True)

    def _post_part(self, items: list[Item], *, last: bool) -> None:
        self._room.acquire()
        self._mailbox.post(Listed(items, last))

    def make_room(self, parts: int) -> None:
        """Let so many more parts be posted, as others are done."""
        if parts:
            self._room.release(parts)

    def stop(self) -> None:
        """Have the thread end, soon."""
        self._is_stopped.set()
        self._room.release()


def _list_stdin(settings: SenderSettings) -> Item:
    """List standard input, as a file made now that everybody may read. Raises UsageError."""
    stream = open_stdin(settings)
    name = os.fsencode(settings.name)
    entry = Entry(name, EntryType.STREAM, 0, 0o644, time.time_ns())
    return Item(entry, os.fsencode(stream.path), stream=stream)


def make_walk(settings: SenderSettings, skipped: Callable[[Skipped], None]) -> Walk:
    """Return the walk of what the settings select; `skipped` is called with each entry that is left out.

    Raises UsageError.
    """
    wanted = None
    if settings.include or settings.exclude:
        wanted = pattern_filter(settings.include, settings.exclude)
    return Walk(
        settings.input_files,
        skipped,
        as_name=settings.as_name or "",
        wanted=wanted,
        is_sparing=bool(settings.include),
        owner=settings.owner,
    )


def _is_plain_file(paths: tuple[str, ...]) -> bool:
    """Whether the user names one file, and no directory.

    Raises TransferFailed(SOURCE) where a path is not there or can't be read, before anything is sent.
    """
    is_directory = []
    for path in paths:
        try:
            is_directory.append(stat.S_ISDIR(os.stat(path).st_mode))
        except OSError as error:
            raise from_os_error(error, Code.SOURCE, f"can't read {path}") from None
        if not is_directory[-1]:
            check_readable(os.fsencode(path))
    return is_directory == [False]
