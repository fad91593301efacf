"""The digests that the transfers of one process share."""

import random

from sender.source.item import Identity
from sender.source.known_digests import KnownDigests

FILE = Identity(1, 2, 3, 4, 5)


def test_a_digest_is_that_of_a_range_of_a_file_as_it_was() -> None:
    known = KnownDigests()
    known.add(FILE, 8, 4, b"digest")

    assert known.get(FILE, 8, 4) == b"digest"
    assert known.get(FILE, 8, 5) is None
    assert known.get(FILE, 0, 4) is None
    for field in Identity._fields:
        assert known.get(FILE._replace(**{field: 99}), 8, 4) is None


def test_what_is_forgotten_is_hashed_anew() -> None:
    known = KnownDigests()
    for offset in range(10):
        known.add(FILE, offset, 1, b"%d" % offset)
    known.forget(FILE, 3)
    known.forget(FILE, 3)

    assert [known.get(FILE, offset, 1) for offset in (2, 3, 9)] == [b"2", None, b"9"]
    known.add(FILE, 3, 1, b"new")
    assert known.get(FILE, 3, 1) == b"new"


def test_it_is_bounded_and_keeps_part_of_a_source_that_is_too_large() -> None:
    """Of a source twice as large as there is room for, which is read from its beginning again and again."""
    known = KnownDigests(100, random.Random(1))
    found = 0
    for _ in range(10):
        for offset in range(200):
            if known.get(FILE, offset, 1) is not None:
                found += 1
            else:
                known.add(FILE, offset, 1, b"%d" % offset)
        assert len(known) == 100

    assert found > 200
    assert all(known.get(FILE, offset, 1) in (None, b"%d" % offset) for offset in range(200))
