"""Patterns match what pathspec says, however they are matched."""

from hypothesis import given
from hypothesis import strategies as st
from pathspec import GitIgnoreSpec

from filestreamer.wire.patterns import matcher

PATTERNS = st.lists(st.sampled_from(["*", "**", "/", "/", "a", "b", "?", "[ab]", "\\*", "."]), min_size=1).map("".join)
PATHS = st.lists(st.sampled_from(["a", "b", "/", "/", "*", "."]), min_size=1, max_size=12).map("".join)


@given(PATTERNS, PATHS)
def test_what_matches_is_what_matched(pattern: str, path: str) -> None:
    try:
        expected = GitIgnoreSpec.from_lines([pattern]).match_file(path)
    except ValueError:
        return
    assert matcher([pattern.encode()])(path.encode(), False) == expected
