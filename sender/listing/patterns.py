"""The filter that --include and --exclude make (`filestreamer.wire.patterns`)."""

import os
from collections.abc import Callable, Sequence

from filestreamer.wire.errors import UsageError
from filestreamer.wire.patterns import matcher

Wanted = Callable[[bytes, bool], bool]
"""Returns whether an entry is sent, given its path relative to the named directory, and whether it is a directory."""


def pattern_filter(include: Sequence[str], exclude: Sequence[str]) -> Wanted:
    """Return the filter that patterns make. They are relative to each directory that the user names.

    A directory that is excluded is not entered. With `include`, only files that match one of its patterns are sent.
    Raises UsageError for an invalid pattern.
    """
    try:
        included, excluded = (matcher(map(os.fsencode, patterns)) for patterns in (include, exclude))
    except ValueError as error:
        raise UsageError(f"--include, --exclude: {error}") from None

    def wanted(path: bytes, is_directory: bool) -> bool:
        if excluded(path, is_directory):
            return False
        return is_directory or not include or included(path, is_directory)

    return wanted
