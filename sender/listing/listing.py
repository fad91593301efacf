"""Lists what is sent, in a thread of its own, a few parts ahead of those that are done.

A single file is not a tree: it is listed at once, without the thread, and so is standard input.

When the walk has ended, the thread lists files again that changed while they were sent, as soon as they are quiet.
"""

import errno
import os
import stat
import threading
import time
from collections.abc import Iterable, Sequence
from queue import SimpleQueue
from typing import Final

from filestreamer.process.threads import run_to_end
from filestreamer.wire.errors import Code, TransferFailed, UsageError, from_os_error
from filestreamer.wire.messages import Entry, EntryType
from filestreamer.wire.patterns import pattern_filter
from filestreamer.wire.tree_shares import TreeShares
from sender.listing.changed_files import ChangedFile, list_quiet
from sender.listing.files_from import PathList, read_list
from sender.listing.part_budget import PartBudget
from sender.listing.skipped_entries import SkippedEntries
from sender.listing.walk import Walk
from sender.mailbox import Event, Failed, Mailbox
from sender.settings import SenderSettings
from sender.source.chunk_size import choose_chunk_size
from sender.source.item import Item, check_readable
from sender.source.stream import open_stdin

PARTS_AHEAD: Final = 12
"""How many parts are listed and not done: some 12 thousand small files."""
PART_SECONDS: Final = 0.25
"""A part is posted after this long, full or not."""


class Listed(Event):
    """The entries of another part were found."""

    items: list[Item]
    last: bool
    """Whether the walk has ended."""


class ListedAgain(Event):
    """All files that were to be listed again are, but for those that still change, or can't be read."""

    given_up: list[ChangedFile]


class ListingThread(threading.Thread):
    """Walks what the settings name, and posts its entries in parts."""

    def __init__(
        self, settings: SenderSettings, mailbox: Mailbox, skipped: SkippedEntries, listed: PathList | None = None
    ) -> None:
        """Look at the paths that the user names. Raises TransferFailed(SOURCE), UsageError.

        `listed` are the paths of --files-from, if they were read before: it may be a pipe, which can be read once.
        """
        super().__init__(name="walk", daemon=True)
        self._mailbox = mailbox
        self._room = threading.Semaphore(PARTS_AHEAD)  # how many more parts may be posted
        self._is_over = threading.Event()
        self._changed: SimpleQueue[Sequence[ChangedFile]] = SimpleQueue()
        self.single: Item | None = None
        """The one file, or the stream, that is sent: then there is nothing to walk. None: a tree."""
        self.listed: PathList | None = None
        """The paths of --files-from; None without it."""
        if settings.reads_stdin:
            self.single = _list_stdin(settings)
            return
        self.listed = listed if listed is not None else read_files_from(settings)
        self._walk = make_walk(settings, skipped, self.listed)
        if _is_plain_file(settings.input_files):
            item = next(iter(self._walk))
            if item.entry.type is EntryType.FILE:  # else a directory has taken its place since
                self.single = item._replace(entry=item.entry._replace(hard_link_group=0))
        if self.single is None and settings.shard.count > 1:
            chunk_size = choose_chunk_size(settings, None)
            self._walk.share_out(TreeShares(settings.shard, chunk_size, checksum=settings.checksum))

    @property
    def walk_digest(self) -> bytes:
        """The digest of all that the walk found, once it has ended; b"" if no shard of a tree is sent."""
        return self._walk.digest if self.single is None else b""

    @property
    def passed_over(self) -> int:
        """How many entries the walk has found so far that are not sent."""
        return self._walk.passed_over if self.single is None else 0

    def run(self) -> None:
        """Walk until the end, then list files again as they are asked for, until `stop`."""

        def run() -> None:
            self._list()
            while not self._is_over.is_set():
                self._list_again(self._changed.get())

        if error := run_to_end("the walk", run):
            self._mailbox.post(Failed(error))

    def _list(self) -> None:
        self._post_part(self._post_full_parts(self._walk), last=True)

    def list_again(self, files: Sequence[ChangedFile]) -> None:
        """Have these files listed again, each as soon as it is quiet: parts are posted, and then ListedAgain."""
        self._changed.put(files)

    def _list_again(self, files: Sequence[ChangedFile]) -> None:
        given_up: list[ChangedFile] = []
        if rest := self._post_full_parts(list_quiet(self._walk, files, self._is_over.wait, given_up)):
            self._post_part(rest, last=False)
        self._mailbox.post(ListedAgain(given_up))

    def _post_full_parts(self, found: Iterable[Item]) -> list[Item]:
        """Post these items in parts; return those of the last part, which is not posted yet."""
        items: list[Item] = []
        budget, since = PartBudget(), time.monotonic()
        for item in found:
            if self._is_over.is_set():
                break
            fits = budget.take(item)
            if not fits or (items and time.monotonic() - since > PART_SECONDS):
                self._post_part(items, last=False)
                items, budget, since = [], PartBudget(), time.monotonic()
                budget.take(item)
            items.append(item)
        return items

    def _post_part(self, items: list[Item], *, last: bool) -> None:
        self._room.acquire()
        if self._is_over.is_set():
            self._room.release()  # what `stop` has released is for every part that is still to come
            return
        self._mailbox.post(Listed(items, last))

    def make_room(self, parts: int) -> None:
        """Let so many more parts be posted, as others are done."""
        if parts:
            self._room.release(parts)

    def stop(self) -> None:
        """Have the thread end, soon."""
        self._is_over.set()
        self._room.release()
        self._changed.put(())


def _list_stdin(settings: SenderSettings) -> Item:
    """List standard input, as a file made now that everybody may read. Raises UsageError."""
    stream = open_stdin(settings)
    name = os.fsencode(settings.name)
    entry = Entry(name, EntryType.STREAM, 0, 0o644, time.time_ns())
    return Item(entry, os.fsencode(stream.path), stream=stream)


def read_files_from(settings: SenderSettings) -> PathList | None:
    """Read the list of --files-from; return None without it. Raises UsageError."""
    if settings.files_from is None:
        return None
    (directory,) = settings.input_files
    if os.path.exists(directory) and not os.path.isdir(directory):
        raise UsageError(f"--files-from: {directory} is not the directory that its paths are relative to")
    return read_list(settings.files_from, directory)


def make_walk(settings: SenderSettings, skipped: SkippedEntries, listed: PathList | None) -> Walk:
    """Return the walk of what the settings select, and `listed`, if any; `skipped` gets what is left out.

    Raises UsageError.
    """
    wanted = None
    if settings.include or settings.exclude:
        wanted = pattern_filter(settings.include, settings.exclude)
    mounts = None
    if settings.one_file_system:
        from sender.listing.mounts import Mounts

        mounts = Mounts(skipped.warn)
    return Walk(
        settings.input_files,
        skipped.add,
        as_name=settings.as_name or "",
        wanted=wanted,
        is_sparing=bool(settings.include),
        owner=settings.owner,
        keeps=settings.delete,
        xattrs=settings.xattrs,
        warn=skipped.warn,
        listed=listed,
        follows=settings.dereference,
        mounts=mounts,
        chunk_size=choose_chunk_size(settings, None),
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
            raise not_readable(path, error) from None
        if not is_directory[-1]:
            check_readable(os.fsencode(path))
    return is_directory == [False]


def not_readable(path: str, error: OSError) -> TransferFailed:
    """Make the error of a path that the user names; it says how to fetch one of another machine."""
    from filestreamer.ssh.remote import is_remote  # few runs need it

    failure = from_os_error(error, Code.SOURCE, f"can't read {path}")
    if error.errno != errno.ENOENT or not is_remote(path):
        return failure
    hint = f"what is on another machine, the receiver fetches: filestreamer-receiver --from {path}"
    return TransferFailed(failure.code, f"{failure.reason}: {hint}")
