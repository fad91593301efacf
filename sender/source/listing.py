"""The walk, in a thread of its own: it lists a few parts ahead of what is sent, and waits.

A single file is no tree: it is listed at once, and is all or nothing. So is standard input.
"""

import os
import stat
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from filestreamer.process.threads import run_to_end
from filestreamer.telemetry.counters import Skipped
from filestreamer.wire.errors import Code, FilestreamerError, from_os_error
from filestreamer.wire.messages import Entry, EntryType
from sender.settings import SenderSettings
from sender.source.item import Item, check_readable
from sender.source.part_budget import PartBudget
from sender.source.stream import open_stdin
from sender.source.walk import Walk, pattern_filter

PARTS_AHEAD: Final = 16
"""Parts that are listed and not let go: some 16 thousand small files."""
PART_SECONDS: Final = 0.25
"""A part goes out after this long, full or not."""


class Listed(NamedTuple):
    """The walk found the entries of another part."""

    items: list[Item]
    last: bool


class Lister(threading.Thread):
    """Posts parts as they are found, until the walk has ended. `single` is what is no tree: a file, or a stream."""

    def __init__(
        self,
        settings: SenderSettings,
        listed: Callable[[Listed], None],
        failed: Callable[[FilestreamerError], None],
        skipped: Callable[[Skipped], None],
    ):
        """Look at what the settings name. Raises TransferFailed(SOURCE), UsageError."""
        super().__init__(name="walk", daemon=True)
        self._listed = listed
        self._failed = failed
        self._reserve = threading.Semaphore(PARTS_AHEAD)
        self._ended = threading.Event()
        self.single: Item | None = None
        if settings.reads_stdin:
            self.single = _stdin(settings)
            return
        self._walk = make_walk(settings, skipped)
        if _is_plain_file(settings.input_files):
            item = next(iter(self._walk))
            if item.entry.type is not EntryType.FILE:  # a directory has taken its place since
                return
            holes = item.entry.holes if settings.shard.count == 1 else ()  # shards may have copies of other holes
            self.single = item._replace(entry=item.entry._replace(hard_link_group=0, holes=holes))

    def run(self) -> None:
        """List, unless there is one file, which is listed."""
        if self.single is None and (error := run_to_end("the walk", self._list)):
            self._failed(error)

    def _list(self) -> None:
        items: list[Item] = []
        budget, since = PartBudget(), time.monotonic()
        for item in self._walk:
            if self._ended.is_set():
                return
            fits = budget.take(item)
            if not fits or (items and time.monotonic() - since > PART_SECONDS):
                self._say(items, last=False)
                items, budget, since = [], PartBudget(), time.monotonic()
                budget.take(item)
            items.append(item)
        self._say(items, last=True)

    def _say(self, items: list[Item], *, last: bool) -> None:
        self._reserve.acquire()
        self._listed(Listed(items, last))

    def room(self, parts: int) -> None:
        """Go on: so many parts were let go."""
        if parts:
            self._reserve.release(parts)

    def end(self) -> None:
        """Stop soon."""
        self._ended.set()
        self._reserve.release()


def _stdin(settings: SenderSettings) -> Item:
    """List standard input: made by now, and readable by all. Raises UsageError."""
    stream = open_stdin(settings)
    name = os.fsencode(settings.name)
    entry = Entry(name, EntryType.STREAM, 0, 0o644, time.time_ns())
    return Item(entry, os.fsencode(stream.path), stream=stream)


def make_walk(settings: SenderSettings, skipped: Callable[[Skipped], None]) -> Walk:
    """Return the walk of what the settings select; `skipped` hears what is left out. Raises UsageError."""
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

    Raises TransferFailed(SOURCE) where something is not there or can't be read, before anything is moved.
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
