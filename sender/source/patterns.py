"""The patterns of --include and --exclude, in gitignore's syntax."""

import os
from collections.abc import Callable, Sequence

from filestreamer.wire.errors import UsageError

Wanted = Callable[[bytes, bool], bool]
"""Returns whether an entry is sent, given its path relative to the named directory, and whether it is a directory."""


def pattern_filter(include: Sequence[str], exclude: Sequence[str]) -> Wanted:
    """Return the filter that patterns make. They are relative to each directory that the user names.

    A directory that is excluded is not entered. With `include`, only files that match one of its patterns are sent.
    Raises UsageError for an invalid pattern.
    """
    from pathspec import GitIgnoreSpec

    try:
        included, excluded = (GitIgnoreSpec.from_lines(map(_on_one_line, each)) for each in (include, exclude))
    except ValueError as error:
        raise UsageError(f"--include, --exclude: {error}") from None

    def wanted(path: bytes, is_directory: bool) -> bool:
        name = _on_one_line(os.fsdecode(path)) + ("/" if is_directory else "")
        if excluded.match_file(name):
            return False
        return is_directory or not include or included.match_file(name)

    return wanted


def _on_one_line(text: str) -> str:
    # pathspec makes regular expressions in which `.` does not match a newline. A lone surrogate of this value is in no
    # name: os.fsdecode makes only those from U+DC80 on.
    return text.replace("\n", "\udc0a")
