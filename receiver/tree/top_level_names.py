"""The names at the top of the destination that a tree holds, so that no other transfer writes there meanwhile.

A file passes: its name is held from its listing until it is in place. A directory, and whatever has several names, is
held to the end, and may be one of a million: of these, eight bytes are kept, a digest.
"""

import threading
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from filestreamer.wire.digests import checksum

if TYPE_CHECKING:
    from receiver.disk.destination import Destination

_FIRST_SLOTS: Final = 1024


class Names:
    """A set of names to which names are only added, in 16 to 32 bytes each. Two names are one in 2^64 cases."""

    def __init__(self) -> None:
        self._handshakes = array("Q", bytes(8 * _FIRST_SLOTS))
        self._count = 0

    def __contains__(self, name: bytes) -> bool:
        return self._handshakes[self._slot(self._handshakes, _key(name))] != 0

    def add(self, name: bytes) -> None:
        """Add a name."""
        if 2 * (self._count + 1) > len(self._handshakes):
            self._grow()
        key = _key(name)
        handshake = self._slot(self._handshakes, key)
        self._count += not self._handshakes[handshake]
        self._handshakes[handshake] = key

    def growth_bytes(self, count: int) -> int:
        """Return how many bytes more are needed to add so many names."""
        slots = len(self._handshakes)
        while 2 * (self._count + count) > slots:
            slots *= 2
        return 8 * (slots - len(self._handshakes))

    def _grow(self) -> None:
        slots = array("Q", bytes(16 * len(self._handshakes)))
        for key in self._handshakes:
            if key:
                slots[self._slot(slots, key)] = key
        self._handshakes = slots

    @staticmethod
    def _slot(slots: "array[int]", key: int) -> int:
        """Return where a key is, or where it would go."""
        mask = len(slots) - 1
        handshake = key & mask
        while slots[handshake] not in (0, key):
            handshake = (handshake + 1) & mask
        return handshake


def _key(name: bytes) -> int:
    return int.from_bytes(checksum(name), "big") or 1


class TopLevelNames:
    """What one tree holds. Any thread may call."""

    def __init__(self, destination: "Destination", check: Callable[[bytes], None]) -> None:
        """`check` raises TransferFailed(BUSY) where another transfer has a name, and calls `take` where none has."""
        self.destination = destination
        self._check = check
        self._lock = threading.Lock()  # protects what follows
        self._passing: set[bytes] = set()
        self._kept = Names()

    def __contains__(self, name: bytes) -> bool:
        with self._lock:
            return name in self._passing or name in self._kept

    def claim(self, name: bytes, *, passes: bool = False) -> None:
        """Hold a name to the end, or until it is released where it `passes`. Raises TransferFailed: POLICY, BUSY."""
        if name not in self:
            self._check(name)
        if not passes:
            with self._lock:
                self._passing.discard(name)
                self._kept.add(name)

    def take(self, name: bytes) -> None:
        """Note a name that nobody else has."""
        with self._lock:
            self._passing.add(name)

    def release(self, name: bytes) -> None:
        """Let others have a name that passes."""
        with self._lock:
            self._passing.discard(name)

    def growth_bytes(self, count: int) -> int:
        """Return how many bytes more are needed to hold so many names to the end."""
        with self._lock:
            return self._kept.growth_bytes(count)
