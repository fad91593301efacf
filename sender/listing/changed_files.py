"""Lists files again that changed while they were sent, each as soon as nobody writes to it any more."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from sender.listing.walk import Walk
from sender.source.item import Item, Unsendable, unreadable

QUIET_SECONDS: Final = 1.0
"""A file is quiet when its size and mtime have been the same for so long."""
LOOKS_MAX: Final = 4
"""How often a file is looked at before it counts as one that keeps changing."""


class ChangedFile(NamedTuple):
    """A file that changed since it was listed, or another name of such a file."""

    item: Item
    error: Unsendable
    """Why it was not sent."""


def list_quiet(
    walk: Walk, files: Sequence[ChangedFile], wait: Callable[[float], bool], given_up: list[ChangedFile]
) -> Iterator[Item]:
    """Yield the items of files as they are now, in order where they are quiet at once.

    `wait` waits so many seconds, and returns whether the transfer is over. Files that keep changing, and those that
    can't be listed, go to `given_up`.
    """
    waiting: list[tuple[ChangedFile, tuple[int, int] | None]] = [(file, None) for file in files]
    for _ in range(LOOKS_MAX):
        looked_at, waiting = waiting, []
        for file, before in looked_at:
            try:
                status = walk.look_again(file.item)
                if status is None:  # something else has its place
                    given_up.append(file)
                elif (status.st_size, status.st_mtime_ns) != before:
                    waiting.append((file, (status.st_size, status.st_mtime_ns)))
                else:
                    yield walk.list_again(file.item, status)
            except OSError as error:
                given_up.append(file._replace(error=unreadable(file.item, error)))
            except Unsendable as error:
                given_up.append(file._replace(error=error))
        if not waiting or wait(QUIET_SECONDS):
            break
    given_up += [file for file, _ in waiting]
