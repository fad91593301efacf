"""How often Python searches all objects for cycles that nothing refers to."""

import gc
from typing import Final

OBJECTS_BETWEEN: Final = 10_000
"""New containers that are alive before the youngest are searched; Python's own choice is 700."""


def collect_seldom() -> None:
    """Search seldom: entries of a tree are many tuples without a cycle, and searching them holds up every thread.

    What takes much memory does not wait for that: buffers are released when their connection is closed.
    """
    gc.set_threshold(OBJECTS_BETWEEN)
