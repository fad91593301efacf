"""A steady rate over all data connections (--rate-limit).

Each piece reserves its time on one line that all connections share, so the pieces of all threads follow one another.
Time that was not used is not saved up, beyond BURST_SECONDS.
"""

import threading
import time
from typing import Final

BURST_SECONDS: Final = 0.05


class Pacer:
    """Computes when each piece may be sent. Pure: the caller has the clock."""

    def __init__(self, bytes_per_second: int) -> None:
        self.bytes_per_second = bytes_per_second
        self._free_at = 0.0  # when everything that was reserved is sent

    def reserve(self, count: int, now: float) -> float:
        """Reserve the time of `count` bytes; return how many seconds to wait before they are sent."""
        start = max(self._free_at, now - BURST_SECONDS)
        self._free_at = start + count / self.bytes_per_second
        return max(0.0, start - now)


class RateLimit:
    """A Pacer that all data connections share, and that waits."""

    def __init__(self, bytes_per_second: int) -> None:
        self.piece_bytes = max(1, min(256 * 1024, bytes_per_second // 20))
        """The size of a piece: what may be sent in a twentieth of a second, so that a low rate is steady, too."""
        self._pacer = Pacer(bytes_per_second)
        self._mutex = threading.Lock()  # protects _pacer
        self._is_closed = threading.Event()

    def wait(self, count: int) -> None:
        """Wait until `count` bytes may be sent, or until `close`."""
        with self._mutex:
            seconds = self._pacer.reserve(count, time.monotonic())
        if seconds > 0:
            self._is_closed.wait(seconds)

    def close(self) -> None:
        """Wake the threads that wait: the transfer is over."""
        self._is_closed.set()
