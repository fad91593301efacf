"""Patterns that a peer may choose so that they take long."""

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
