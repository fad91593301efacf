"""The patterns of --exclude and --include, in gitignore's syntax: both ends must agree on what they match.

The sender leaves out what they match; with a Deletion, the receiver keeps it (proto/README.md, "Deleting"). There a
peer says both the patterns and the names, so no pattern may take long: see `_without_backtracking`. A receiver that has
named the patterns itself (--from) takes nothing that its sender was to leave out.
"""

import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence

from filestreamer.wire.errors import UsageError

Wanted = Callable[[bytes, bool], bool]
"""Returns whether an entry is sent, given its path relative to the named directory, and whether it is a directory."""
Matches = Callable[[bytes, bool], bool]
"""Returns whether a path matches, relative to the directory that the user names; True: it is a directory."""

# What pathspec makes of `*`, of `[...]`, and of `**/`.
_STAR = r"\[\^/\]\*"
_CLASS = r"\[\^?\]?(?:\\.|[^\]\\])*\]"
_CHARACTER = rf"(?:(?!{_STAR})(?:\(\?!/\))?(?:\\.|{_CLASS}|[^\\\[\]()/*+?|^$]))"
_BETWEEN_STARS = re.compile(rf"{_STAR}({_CHARACTER}+)(?={_STAR})")
_ANY_DIRECTORIES = r"(?:/.+)?/"
_FIRST_DIRECTORIES = r"(?:.+/)?"


def matcher(patterns: Iterable[bytes]) -> Matches:
    """Return what tells whether a path matches one of the patterns. Raises ValueError for an invalid pattern."""
    from pathspec import GitIgnoreSpec

    # Python warns of classes such as `[[a]`, on standard error, as later versions may read them in another way.
    made = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for pattern in patterns:
            try:
                for each in GitIgnoreSpec.from_lines([_on_one_line(pattern)]).patterns:
                    if each.regex is not None:
                        each.regex = re.compile(_without_backtracking(each.regex.pattern))
                    made.append(each)
            except re.error as error:  # such as `[z-a]`
                raise ValueError(f"{os.fsdecode(pattern)!r} is no pattern: {error.msg}") from None
    spec = GitIgnoreSpec(made)

    def matches(path: bytes, is_directory: bool) -> bool:
        return spec.match_file(_on_one_line(path) + ("/" if is_directory else ""))

    return matches


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


def _without_backtracking(regex: str) -> str:
    """Return a regular expression that matches the same, in a time that does not multiply with each `*` and `**`.

    What stands between two stars is looked for from the left, and stays where it was found first: the second star takes
    whatever follows. Without that, `*a*a*a*ab` takes minutes for a name of a hundred `a`.
    """
    # No class matches a slash: pathspec forgets that of `[!a]`.
    regex = re.sub(
        rf"\\.|(?!\[\^/\]){_CLASS}", lambda found: f"{'(?!/)' if found[0][0] == '[' else ''}{found[0]}", regex
    )
    regex = _BETWEEN_STARS.sub(r"(?>[^/]*?\1)", re.sub(rf"(?:{_STAR}){{2,}}", "[^/]*", regex))
    first, *others = regex.split(_ANY_DIRECTORIES)
    if first.startswith("^" + _FIRST_DIRECTORIES) and others:
        first = f"^(?>(?:.+?/)??{first.removeprefix('^' + _FIRST_DIRECTORIES)}(?=/))"
    between = [f"(?>(?:/.+?)??/{each}(?=/))" for each in others[:-1]]
    return "".join([first, *between, *(_ANY_DIRECTORIES + each for each in others[-1:])])


def _on_one_line(name: bytes) -> str:
    # pathspec makes regular expressions in which `.` does not match a newline. A lone surrogate of this value is in no
    # name: surrogateescape makes only those from U+DC80 on.
    return name.decode("utf-8", "surrogateescape").replace("\n", "\udc0a")
