"""A value of a disk, read by a thread of its own: a disk that hangs must not keep whoever asks for the value."""

import threading
import time
from collections.abc import Callable
from typing import Final

from filestreamer.wire.errors import TransferFailed

WAIT_SECONDS: Final = 0.25
"""How long to wait for the reading that was begun."""
KEEP_SECONDS: Final = 30.0
"""How old a value may be that is given while the next one is being read."""


class SlowValue:
    """The last value that was read. For any thread."""

    def __init__(self, read: Callable[[], int]) -> None:
        """`read` may take any time, and may raise OSError, TransferFailed."""
        self._read = read
        self._changed = threading.Condition()  # protects the attributes below
        self._is_reading = False
        self._last: tuple[int, float] | None = None  # the value, and when it was read (monotonic)

    def get(self) -> int | None:
        """Read the value anew; return an older one where that takes too long, and None where there is none."""
        with self._changed:
            if not self._is_reading:
                try:
                    threading.Thread(target=self._read_once, name="disk-value", daemon=True).start()
                    self._is_reading = True
                except RuntimeError:  # no more threads
                    return None
            self._changed.wait_for(lambda: not self._is_reading, WAIT_SECONDS)
            if self._last is None or time.monotonic() - self._last[1] > KEEP_SECONDS:
                return None
            return self._last[0]

    def _read_once(self) -> None:
        last = None
        try:
            last = self._read(), time.monotonic()
        except (OSError, TransferFailed):
            pass
        finally:
            with self._changed:
                self._last, self._is_reading = last, False
                self._changed.notify_all()
