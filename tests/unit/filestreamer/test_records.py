from dataclasses import field, replace

import pytest

from filestreamer.records import Record


class Point(Record):
    x: int
    y: int = 0
    secret: str = field(default="", repr=False)


class Named(Point, kw_only=True):
    name: str


def test_records_of_one_class_with_equal_fields_are_equal() -> None:
    assert Point(1) == Point(1, 0)
    assert Point(1) != Point(2)
    assert Point(1) != Named(1, name="")
    assert Point(1) != (1, 0, "")
    assert {Point(1), Point(1), Point(2)} == {Point(1), Point(2)}


def test_a_record_shows_its_fields_but_for_those_that_are_secret() -> None:
    assert repr(Named(1, 2, "hidden", name="a")) == "Named(x=1, y=2, name='a')"


def test_fields_that_have_to_be_named() -> None:
    assert (replace(Named(1, name="a"), x=3).x, Named(1, 2, name="a").y) == (3, 2)
    with pytest.raises(TypeError, match="positional"):
        Named(1, 2, "", "a")  # type: ignore[call-arg]


def test_patterns_match_them() -> None:
    match Point(1, 2):
        case Point(x, y):
            assert (x, y) == (1, 2)
