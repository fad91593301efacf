"""How long to wait before the next attempt: the time doubles up to a limit.

A random part of it is left out, so that the connections of a transfer do not all come back at the same moment.
"""

import random
from typing import Final

FIRST_SECONDS: Final = 0.1
LONGEST_SECONDS: Final = 5.0
_RANDOM: Final = random.Random()
"""Not the generator of the module, whose numbers belong to the program that this is part of."""


class Backoff:
    """Computes the pauses between attempts; call `reset` after a success."""

    def __init__(self) -> None:
        self._seconds = FIRST_SECONDS

    def next(self) -> float:
        """Return the next pause in seconds: half to all of the current limit, which then doubles."""
        pause = self._seconds * _RANDOM.uniform(0.5, 1.0)
        self._seconds = min(self._seconds * 2, LONGEST_SECONDS)
        return pause

    def reset(self) -> None:
        """Start over with the shortest pause."""
        self._seconds = FIRST_SECONDS
