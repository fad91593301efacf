"""Few descriptors (`ulimit -n`) make a transfer slower, not fail: how many files and directories may be open at once.

A pool has a number of places for the large files of all trees of this process, one for each open file. A tree may take
its share of the places, and one place in any case. Where a descriptor is missing nevertheless, `patiently` waits until
another thread closes one.
"""

import errno
import resource
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

PLACES_MAX: Final = 512
LEAVE: Final = 24
"""Descriptors that are not for files: listeners, logs, metrics, the first connections."""
DESCRIPTORS_PER_FILE: Final = 3
"""The data, the ledger, and the staging directory."""
WISHED: Final = 8192
"""Descriptors that are enough for any number of transfers."""
PATIENCE_SECONDS: Final = 20.0
"""How long a thread waits for a descriptor."""
_RETRY_SECONDS: Final = 0.05

_Opened = TypeVar("_Opened")


def patiently(call: Callable[[], _Opened], make_room: Callable[[], object] = lambda: None) -> _Opened:
    """Return what a call opens; while this process lacks descriptors, `make_room` and try again. Raises OSError."""
    until = None
    while True:
        try:
            return call()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            until = until or time.monotonic() + PATIENCE_SECONDS
            if time.monotonic() > until:
                raise
        make_room()
        time.sleep(_RETRY_SECONDS)


def allowed() -> int:
    """Return how many descriptors this process may have, after raising its soft limit up to WISHED if it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < WISHED and (hard == unlimited or soft < hard):
        more = WISHED if hard == unlimited else min(WISHED, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
            soft = more
        except (OSError, ValueError):  # the present limit is enough to go on with
            pass
    return WISHED if soft == unlimited else soft


def places(descriptors: int) -> int:
    """Return how many large files may be open in a process that may have so many descriptors: a quarter is for them."""
    return max(1, min(PLACES_MAX, (descriptors - LEAVE) // 4 // DESCRIPTORS_PER_FILE))


def directories(descriptors: int) -> int:
    """Return how many directories one thread of a tree may keep open where a process may have so many descriptors."""
    return max(2, min(64, (descriptors - LEAVE) // 16))


class DescriptorPool:
    """Places for open files, shared by the trees that are under way."""

    def __init__(self, count: int | None = None) -> None:
        """Have `count` places; None has as many as this process may have."""
        self._count = count
        self._lock = threading.Lock()  # protects _held
        self._held: dict[object, int] = {}
        """How many places each tree has taken."""

    @property
    def count(self) -> int:
        """How many places there are. The limit of the process is read at the first call."""
        if self._count is None:
            self._count = places(allowed())
        return self._count

    def add_tree(self, tree: object) -> None:
        """Give a tree a share of the places from now on; the shares of the other trees become smaller."""
        with self._lock:
            self._held.setdefault(tree, 0)

    def remove_tree(self, tree: object) -> None:
        """Take back the share of a tree, and all places that it has. Idempotent."""
        with self._lock:
            self._held.pop(tree, None)

    def try_take(self, tree: object) -> bool:
        """Take a place for this tree; return False where it has its share already, or no place is free."""
        with self._lock:
            held = self._held.get(tree, 0)
            free = sum(self._held.values()) < self.count
            if held and not (free and held < self._share()):
                return False
            self._held[tree] = held + 1
            return True

    def give_back(self, tree: object) -> None:
        """Give back one place of this tree."""
        with self._lock:
            if tree in self._held:
                self._held[tree] -= 1

    def excess(self, tree: object) -> int:
        """Return how many places a tree has beyond its share, which may have become smaller."""
        with self._lock:
            return max(0, self._held.get(tree, 0) - self._share())

    def _share(self) -> int:
        return max(1, self.count // max(1, len(self._held)))


PLACES: Final = DescriptorPool()
"""The places of this process."""
