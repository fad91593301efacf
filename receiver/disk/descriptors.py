"""Descriptors that large files of trees may have open, in the whole process: a cache takes what connections leave.

A process may have few (`ulimit -n`). Each tree has its share of the places, and one in any case.
"""

import resource
import threading
from typing import Final

PLACES_MAX: Final = 512
LEAVE: Final = 24
"""Descriptors that are no cache's: listeners, logs, metrics, the first connections."""
DESCRIPTORS_PER_FILE: Final = 3
WISHED: Final = 8192


def allowed() -> int:
    """Return how many descriptors this process may have, after asking for more where that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < WISHED and (hard == unlimited or soft < hard):
        more = WISHED if hard == unlimited else min(WISHED, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
            soft = more
        except (OSError, ValueError):  # what it has is enough to go on with
            pass
    return WISHED if soft == unlimited else soft


def places(descriptors: int) -> int:
    """Return how many large files may be open where a process may have so many descriptors."""
    return max(1, min(PLACES_MAX, (descriptors - LEAVE) // 4 // DESCRIPTORS_PER_FILE))


def directories(descriptors: int) -> int:
    """Return how many directories one thread of a tree may keep open."""
    return max(2, min(64, (descriptors - LEAVE) // 16))


class DescriptorPool:
    """Places for open files, shared by the trees that are under way. The lock protects both fields."""

    def __init__(self, count: int | None = None) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._held: dict[object, int] = {}

    @property
    def count(self) -> int:
        """How many there are."""
        if self._count is None:
            self._count = places(allowed())
        return self._count

    def enter(self, tree: object) -> None:
        """Count another tree."""
        with self._lock:
            self._held.setdefault(tree, 0)

    def leave(self, tree: object) -> None:
        """Give everything back that a tree has. Idempotent."""
        with self._lock:
            self._held.pop(tree, None)

    def try_take(self, tree: object) -> bool:
        """Take a place, if there is one for this tree; whether there was."""
        with self._lock:
            held = self._held.get(tree, 0)
            free = sum(self._held.values()) < self.count
            if held and not (free and held < self._share()):
                return False
            self._held[tree] = held + 1
            return True

    def give_back(self, tree: object) -> None:
        """Give one back."""
        with self._lock:
            if tree in self._held:
                self._held[tree] -= 1

    def excess(self, tree: object) -> int:
        """Return how many places a tree has beyond its share."""
        with self._lock:
            return max(0, self._held.get(tree, 0) - self._share())

    def _share(self) -> int:
        return max(1, self.count // max(1, len(self._held)))


PLACES: Final = DescriptorPool()
"""Those of this process."""
