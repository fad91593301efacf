"""The shares of large files that this process has sealed in staging: they need not be re-hashed before they count."""

import threading
from typing import Final

_MOST: Final = 1 << 16
"""Further ones are re-hashed: each takes some 64 bytes."""


class SealedShares:
    """A bounded set of shares. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects _sealed
        self._sealed: set[int] = set()

    def add(self, key: str, inode: int) -> None:
        """Note that a share was sealed; `key` names its ledger, `inode` is that of the bytes."""
        with self._lock:
            if len(self._sealed) < _MOST:
                self._sealed.add(hash((key, inode)))

    def __contains__(self, share: tuple[str, int]) -> bool:
        return hash(share) in self._sealed
