"""Patterns that a peer may choose so that they take long."""

import warnings

import pytest

from filestreamer.wire.patterns import matcher


def test_no_pattern_takes_long() -> None:
    """Each of these takes minutes where a regular expression tries every place for every star."""
    assert not matcher([b"*a" * 100 + b"b"])(b"a" * 255, False)
    assert not matcher([b"**/a/" * 100 + b"b"])(b"a/" * 2000 + b"c", False)
    assert not matcher([b"/a/**/" + b"*a*a*a/**/" * 20 + b"b"])(b"aaaa/" * 800 + b"c", False)


def test_classes_match_no_slash_and_take_no_time() -> None:
    matches = matcher([b"a[!b]c", b"[!b]*" * 100 + b"c"])
    assert matches(b"axc", False)
    assert not matches(b"x/a/c" + b"x" * 250 + b"d", False)
    assert not matches(b"]" * 255, False)


@pytest.mark.parametrize("pattern", [b"[z-a]", b"*[z-a]*", b"x/[b-a]/**"])
def test_a_class_that_makes_no_sense(pattern: bytes) -> None:
    with pytest.raises(ValueError, match="is no pattern: bad character range") as caught:
        matcher([b"fine", pattern, b"fine, too"])
    assert str(caught.value).startswith(f"{pattern.decode()!r} is no pattern")


@pytest.mark.parametrize("pattern", [b"[[a]", b"[a&&b]", b"[a||b]", b"[[:alpha:]]"])
def test_nothing_is_said_of_a_class_that_python_may_read_in_another_way(pattern: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not matcher([pattern])(b"x/y", False)
