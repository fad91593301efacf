"""A steady rate over all connections: a token bucket without a bucket.

Each piece reserves its time on one shared line, so that the line is never busier than the rate, however many threads
send: the pieces of all connections follow one another. Time that nobody used is not saved up beyond BURST_SECONDS.
"""

import threading
import time
from typing import Final

BURST_SECONDS: Final = 0.05


class Pacer:
    """When each piece may go, purely: `reserve` with any clock."""

    def __init__(self, bytes_per_second: int) -> None:
        self.bytes_per_second = bytes_per_second
        self._free_at = 0.0

    def reserve(self, count: int, now: float) -> float:
        """Take the next place for `count` bytes; return how many seconds to wait before sending them."""
        start = max(self._free_at, now - BURST_SECONDS)
        self._free_at = start + count / self.bytes_per_second
        return max(0.0, start - now)


class RateLimit:
    """A Line that all sending threads share."""

    def __init__(self, bytes_per_second: int) -> None:
        self.piece_bytes = max(1, min(256 * 1024, bytes_per_second // 20))
        """Pieces of a twentieth of a second at most, so that a slow rate is steady, too."""
        self._pacer = Pacer(bytes_per_second)
        self._mutex = threading.Lock()  # protects _line
        self._ended = threading.Event()

    def wait(self, count: int) -> None:
        """Wait until `count` bytes may be sent, or until `end`."""
        with self._mutex:
            seconds = self._pacer.reserve(count, time.monotonic())
        if seconds > 0:
            self._ended.wait(seconds)

    def end(self) -> None:
        """Wake every waiting thread: the transfer is over."""
        self._ended.set()
