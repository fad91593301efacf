"""A part of a manifest: what its chunks carry, and when a bundle is ready."""

from sender.dispatch.part import Part
from tests.support.manifests import item_of


def test_a_bundle_is_ready_with_the_last_answer() -> None:
    part = Part(7, 3, [item_of(2), item_of(2), item_of(2)], 10, last=True)
    assert part.begin_comparing(8)
    assert not part.begin_comparing(8)
    assert part.need(range(7, 8)) == []
    assert part.do_without(range(9, 10)) == (2, [])
    assert part.do_without(range(9, 10)) == (0, [])
    assert part.do_without(range(8, 9)) == (0, [3])
    assert part.is_carrying(3)
    assert [segment.file_id for segment in part.carried(3)] == [7]


def test_files_that_are_needed() -> None:
    """Of a range that begins before the part and ends behind it; one is answered already, and one is empty."""
    part = Part(7, 3, [item_of(2), item_of(25), item_of(4), item_of(0), item_of(4)], 10, last=True)
    assert part.do_without(range(9, 10)) == (4, [])
    assert part.large_files(range(3, 100)) == [8]
    assert part.need(range(3, 100)) == [3, 7]
    assert [[segment.file_id for segment in part.carried(chunk_id)] for chunk_id in (3, 7)] == [[7], [11]]
    assert part.need(range(3, 100)) == []
    assert (part.need(range(3, 7)), part.need(range(12, 100))) == ([], [])


def test_a_bundle_of_which_nothing_is_needed() -> None:
    part = Part(0, 0, [item_of(2), item_of(2)], 10, last=True)
    assert (part.do_without(range(1)), part.do_without(range(2))) == ((2, []), (2, [0]))
    assert not part.is_carrying(0)
    part.forget_answers()
    assert part.need(part.files) == [0]
    assert part.is_carrying(0)
