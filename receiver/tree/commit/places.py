"""The places of a destination that a tree goes to: found when their directories are opened.

A file is staged in the place that it goes to (`receiver.disk.place`). Nearly always that is the destination itself.
"""

import os
import threading
from functools import partial

from filestreamer.wire.errors import Code, TransferFailed
from receiver.disk.destination import Destination, open_directory, shown_path
from receiver.disk.filesystem.boundary import side_of
from receiver.disk.filesystem.sync import sync_directory, sync_file_system
from receiver.disk.place import Place


class Places:
    """The places of one tree. Any thread may call."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._lock = threading.Lock()  # protects changes of what follows
        self._at: dict[bytes, Place] = {b"": destination}
        """The places by the path of their directory."""
        self.is_divided = False
        """Whether there is another place than the destination."""
        self._all: list[Place] = []
        """All that were ever found below the destination."""

    def of(self, path: bytes) -> Place:
        """Return the place that a file or symlink with this path goes to; its directory was opened before."""
        if not self.is_divided:
            return self._destination
        directory = path.rpartition(b"/")[0]
        while (place := self._at.get(directory)) is None:
            directory = directory.rpartition(b"/")[0]
        return place

    def enter(self, path: bytes, fd: int, above: Place, *, again: bool = False) -> Place:
        """Return the place of a directory that was opened; `above` is that of its parent.

        With `again` the directory was opened before in this transfer: its place may not have changed. Raises OSError,
        TransferFailed(DESTINATION).
        """
        side = side_of(fd)
        known = self._at.get(path)
        if known is None and side == above.side:
            return above
        with self._lock:
            known = self._at.get(path)
            if known is not None and side == known.side and os.path.samestat(os.fstat(fd), os.fstat(known.fd)):
                return known
            if again:
                raise self._changed(path)
            if side != above.side:
                return self._add(path, fd, above)
            self._at.pop(path, None)  # what was mounted there is mounted no more
            return above

    def _changed(self, path: bytes) -> TransferFailed:
        reason = "was moved, unmounted or mounted over during the transfer: run the same command again"
        return TransferFailed(Code.DESTINATION, f"the directory {shown_path(self._destination, path)} {reason}")

    def divide(self, path: bytes, fd: int, above: Place) -> Place:
        """Make a directory a place of its own: no file could be renamed into it, for a reason that is not known.

        Raises OSError.
        """
        with self._lock:
            known = self._at.get(path)
            return known if known is not None and known is not above else self._add(path, fd, above)

    def _add(self, path: bytes, fd: int, above: Place) -> Place:
        place = Place(os.dup(fd), shown_path(self._destination, path), path, above=above)
        self._at[path] = place
        self._all.append(place)
        self.is_divided = True
        return place

    def sync(self) -> None:
        """Make everything durable that was put into any place. Raises OSError."""
        for place in {place.side.device: place for place in self.all}.values():
            sync_file_system(place.fd)
        for place in self.all:
            if place.syncs_each:
                # Not only what this transfer has put there: a receiver that was killed may have given files their
                # names, and made directories and staging, and synced none of that. This run finds it all in place.
                sync_directory(place.fd)
                with place.staging_there() as staging_fd:
                    if staging_fd is not None:
                        sync_directory(staging_fd)

    @property
    def all(self) -> list[Place]:
        """The destination, and the places below it that were met."""
        with self._lock:
            return [self._destination, *self._all]

    def check_paths(self) -> None:
        """Check that every place is still where the user sees it. Raises TransferFailed: DESTINATION, LIMIT."""
        self._destination.check_path()
        with self._lock:
            places = list(self._all)
        for place in places:
            if not place.is_at(partial(self._open, place)):
                raise self._changed(place.prefix)

    def _open(self, place: Place) -> int:
        """Open what has the path of a place; the place itself where that is closed to this process. Raises OSError."""
        try:
            return open_directory(self._destination, place.prefix)
        except PermissionError:  # at the end, directories have the modes of the source: this was looked at before
            return os.dup(place.fd)

    def close(self) -> None:
        """Close the places below the destination. Idempotent."""
        with self._lock:
            for place in self._all:
                place.close()
            self._all.clear()
            self._at = {b"": self._destination}
            self.is_divided = False
