"""The patterns of --include and --exclude; `test_walk` has what they select."""

import os

import pytest

from filestreamer.wire.errors import UsageError
from filestreamer.wire.patterns import pattern_filter


@pytest.mark.parametrize("name", ["x\ny", "\nbuild", "x\n"])
def test_patterns_hold_for_names_with_newlines(name: str) -> None:
    """In which '.' and '$' of a regular expression see more than a character, and an end."""
    wanted = pattern_filter([], ["build/", "out/**", "/exact"])
    raw = os.fsencode(name)
    assert not wanted(raw + b"/build", True)
    assert not wanted(b"out/" + raw, False)
    assert wanted(raw, False)
    assert wanted(b"exact\n", False)
    assert not pattern_filter([], ["/x\ny"])(b"x\ny", False)


def test_no_pattern() -> None:
    for pattern in ("!", "[z-a]"):
        with pytest.raises(UsageError, match="--include, --exclude"):
            pattern_filter([pattern], [])
