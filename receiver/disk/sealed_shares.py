"""The shares of large files that this process has sealed in staging: they need not be re-hashed before they count."""

import os
import threading
from collections.abc import Iterable
from typing import Final

_MOST: Final = 1 << 16
"""Further ones are re-hashed: each takes some 64 bytes."""


class SealedShares:
    """A bounded set of shares: `key` names the ledger of one, `data` is the status of its bytes.

    Any thread may call.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects _sealed
        self._sealed: set[int] = set()

    def __len__(self) -> int:
        return len(self._sealed)

    def add(self, key: str, data: os.stat_result) -> None:
        """Note that a share was sealed, or is as it was sealed."""
        with self._lock:
            if len(self._sealed) < _MOST:
                self._sealed.add(_mark(key, data))

    def has(self, key: str, data: os.stat_result) -> bool:
        """Whether a share was noted."""
        return _mark(key, data) in self._sealed

    def forget(self, keys: Iterable[str], data: os.stat_result) -> None:
        """Forget the shares of a file that is in place; or of one that is new, as it may have the inode of another."""
        with self._lock:
            self._sealed.difference_update([_mark(key, data) for key in keys])


def _mark(key: str, data: os.stat_result) -> int:
    return hash((key, data.st_dev, data.st_ino))
