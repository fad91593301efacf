"""The patterns of --exclude and --include, in gitignore's syntax: both ends must agree on what they match.

The sender leaves out what they match; with a Deletion, the receiver keeps it (proto/README.md, "Deleting").
"""

from collections.abc import Callable, Iterable

Matches = Callable[[bytes, bool], bool]
"""Returns whether a path matches, relative to the directory that the user names; True: it is a directory."""


def matcher(patterns: Iterable[bytes]) -> Matches:
    """Return what tells whether a path matches one of the patterns. Raises ValueError for an invalid pattern."""
    from pathspec import GitIgnoreSpec

    spec = GitIgnoreSpec.from_lines(map(_on_one_line, patterns))

    def matches(path: bytes, is_directory: bool) -> bool:
        return spec.match_file(_on_one_line(path) + ("/" if is_directory else ""))

    return matches


def _on_one_line(name: bytes) -> str:
    # pathspec makes regular expressions in which `.` does not match a newline. A lone surrogate of this value is in no
    # name: surrogateescape makes only those from U+DC80 on.
    return name.decode("utf-8", "surrogateescape").replace("\n", "\udc0a")
