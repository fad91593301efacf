"""The files that are withdrawn: they can't be sent as they were listed, so the rest of the tree goes on without them.

A thread that reads a file withdraws it; the coordinator handles that, and sends Withdrawn to the receiver
(proto/README.md). The last messages on a control connection that was lost may not have arrived. So a file is kept here
until the receiver answers a part of the manifest that was sent after the Withdrawn.
"""

import threading
from collections import deque
from collections.abc import Sequence


class WithdrawnFiles:
    """Sets of file_ids. Any thread may call."""

    def __init__(self) -> None:
        self.said_count = 0
        """For how many files Withdrawn was sent on this control connection."""
        self._mutex = threading.Lock()  # protects every field below, and writes of said_count
        self._withdrawn: set[int] = set()  # without those that the receiver knows of and that are not read any more
        self._not_taken: set[int] = set()  # those that the coordinator has not handled yet
        self._said: deque[int] = deque()  # sent on this control connection, and not known to have arrived; in order
        self._known: set[int] = set()  # those that the receiver knows of
        self._first_file_id = 0  # files below it are in parts that were dropped

    def __contains__(self, file_id: object) -> bool:
        return file_id in self._withdrawn

    def __bool__(self) -> bool:
        return bool(self._withdrawn)

    def add(self, file_id: int) -> bool:
        """Withdraw a file; return whether that is new. Its part is not dropped before `take`."""
        with self._mutex:
            # A file of a dropped part is done, and the receiver knows its state.
            if file_id in self._withdrawn or file_id < self._first_file_id:
                return False
            self._withdrawn.add(file_id)
            self._not_taken.add(file_id)
            return True

    def take(self, file_id: int) -> None:
        """Note that the coordinator has handled a withdrawn file."""
        with self._mutex:
            self._not_taken.discard(file_id)

    @property
    def is_all_taken(self) -> bool:
        """Whether the coordinator has handled every withdrawn file."""
        return not self._not_taken

    def drop_part(self, files: range) -> bool:
        """Drop a part that is done, the first one that is left; return False where the coordinator still needs it."""
        with self._mutex:
            if any(file_id in files for file_id in self._not_taken):
                return False
            self._first_file_id = files.stop
            self._forget_known()
            return True

    def between(self, first: int, end: int) -> list[int]:
        """Return the withdrawn files of [first, end) that the receiver may not know, in order."""
        with self._mutex:
            if len(self._withdrawn) < end - first:
                return sorted(file_id for file_id in self._withdrawn if first <= file_id < end)
            return [file_id for file_id in range(first, end) if file_id in self._withdrawn]

    def said(self, file_ids: Sequence[int]) -> None:
        """Note that Withdrawn was sent for these files on this control connection."""
        with self._mutex:
            self._said.extend(file_ids)
            self.said_count += len(file_ids)

    def say_again(self) -> None:
        """Begin with another control connection, on which no Withdrawn was sent yet."""
        with self._mutex:
            self._said.clear()
            self.said_count = 0

    def arrived(self, count: int) -> None:
        """Note that the receiver has the first `count` files that were sent on this control connection."""
        with self._mutex:
            new = count - (self.said_count - len(self._said))
            for _ in range(new):
                self._known.add(self._said.popleft())
            if new > 0:
                self._forget_known()

    def _forget_known(self) -> None:
        """Drop files that the receiver knows and whose part was dropped: no thread reads them any more."""
        for file_id in [file_id for file_id in self._known if file_id < self._first_file_id]:
            self._known.discard(file_id)
            self._withdrawn.discard(file_id)
