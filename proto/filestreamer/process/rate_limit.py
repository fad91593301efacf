"""A steady rate over all data connections (--rate-limit).

The sender waits before it sends, the receiver before it reads: TCP then lets the sender wait.

Each piece reserves its time on one line that all connections share, so the pieces of all threads follow one another.
Time that was not used is not saved up, beyond BURST_SECONDS.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

BURST_SECONDS: Final = 0.05
LOOK_SECONDS: Final = 0.5
KIB: Final = 1024


def _never() -> bool:
    return False


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
        self.bytes_per_second = bytes_per_second
        self.piece_bytes = max(1, min(256 * KIB, bytes_per_second // 20))
        """The size of a piece: what may be sent in a twentieth of a second, so that a low rate is steady, too."""
        self.read_bytes = max(self.piece_bytes, min(16 * KIB, bytes_per_second))
        """The size of a piece that is received: more, as TCP opens a closed window only for some KiB at a time. So at a
        low rate, now this connection moves on visibly and now that one, and none of them seems to stall."""
        self._pacer = Pacer(bytes_per_second)
        self._mutex = threading.Lock()  # protects _pacer
        self._is_closed = threading.Event()

    def wait(self, count: int, is_over: Callable[[], bool] = _never) -> None:
        """Wait until `count` bytes may be moved, or until `close` or `is_over`, asked each LOOK_SECONDS."""
        with self._mutex:
            now = time.monotonic()
            until = now + self._pacer.reserve(count, now)
        while (seconds := until - time.monotonic()) > 0 and not is_over():
            if self._is_closed.wait(min(seconds, LOOK_SECONDS)):
                return

    def close(self) -> None:
        """Wake the threads that wait: the transfer is over."""
        self._is_closed.set()
