"""The patterns of --exclude and --include, in gitignore's syntax: both ends must agree on what they match.

The sender leaves out what they match; with a Deletion, the receiver keeps it (proto/README.md, "Deleting").
"""

import re
from collections.abc import Callable, Iterable
from typing import Final

STARS_MOST: Final = 3
"""The most `*` in a component of a pattern that a peer may have matched: the time grows with that power of a name."""
DOUBLE_STARS_MOST: Final = 2
"""The most `**` in such a pattern."""

Matches = Callable[[bytes, bool], bool]
"""Returns whether a path matches, relative to the directory that the user names; True: it is a directory."""


def matcher(patterns: Iterable[bytes]) -> Matches:
    """Return what tells whether a path matches one of the patterns. Raises ValueError for an invalid pattern."""
    from pathspec import GitIgnoreSpec

    spec = GitIgnoreSpec.from_lines(map(_on_one_line, patterns))

    def matches(path: bytes, is_directory: bool) -> bool:
        return spec.match_file(_on_one_line(path) + ("/" if is_directory else ""))

    return matches


def check_cost(patterns: Iterable[bytes]) -> None:
    """Check that matching these patterns never takes long, whatever the path. Raises ValueError."""
    for pattern in patterns:
        components = pattern.split(b"/")
        doubles = components.count(b"**")
        stars = max(len(re.findall(rb"\*+", component)) for component in components)
        if doubles > DOUBLE_STARS_MOST or stars > STARS_MOST:
            raise ValueError(
                f"{pattern.decode('utf-8', 'replace')[:80]!a} has more than {STARS_MOST} * in a component, or more"
                f" than {DOUBLE_STARS_MOST} **: matching it may take too long"
            )


def _on_one_line(name: bytes) -> str:
    # pathspec makes regular expressions in which `.` does not match a newline. A lone surrogate of this value is in no
    # name: surrogateescape makes only those from U+DC80 on.
    return name.decode("utf-8", "surrogateescape").replace("\n", "\udc0a")
