"""How long to wait before trying again: doubling, bounded, with jitter, so that many peers don't come back at once."""

import random
from typing import Final

FIRST_SECONDS: Final = 0.1
LONGEST_SECONDS: Final = 5.0


class Backoff:
    """Seconds to wait, one after another; `reset` after a success."""

    def __init__(self) -> None:
        self._seconds = FIRST_SECONDS

    def next(self) -> float:
        """Return the next pause: between half of it and all of it."""
        pause = self._seconds * random.uniform(0.5, 1.0)
        self._seconds = min(self._seconds * 2, LONGEST_SECONDS)
        return pause

    def reset(self) -> None:
        """Start over with the shortest pause."""
        self._seconds = FIRST_SECONDS
