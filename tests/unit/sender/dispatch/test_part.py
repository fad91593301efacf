"""A part of a manifest: what its chunks carry, and when a bundle is ready."""

from sender.dispatch.part import Part
from tests.support.manifests import item_of


def test_a_bundle_is_ready_with_the_last_answer() -> None:
    part = Part(7, 3, [item_of(2), item_of(2), item_of(2)], 10, last=True)
    assert part.begin_comparing(range(8, 9)) == [8]
    assert part.begin_comparing(range(8, 9)) == []
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


def test_files_that_are_compared() -> None:
    """Of those that are held, one is answered already."""
    part = Part(7, 3, [item_of(2), item_of(4), item_of(4), item_of(25), item_of(0)], 10, last=True)
    assert part.do_without(range(8, 9)) == (4, [])
    assert part.begin_comparing(range(7, 10)) == [7, 9]
    assert part.begin_comparing(range(7, 10)) == []
    assert part.do_without(range(7, 8)) == (0, [])
    assert part.need(range(9, 10)) == [3]
    assert part.are_small(range(7, 10))
    assert not part.are_small(range(9, 11))
    assert not part.are_small(range(11, 12))


def test_a_bundle_of_which_nothing_is_needed() -> None:
    part = Part(0, 0, [item_of(2), item_of(2)], 10, last=True)
    assert (part.do_without(range(1)), part.do_without(range(2))) == ((2, []), (2, [0]))
    assert not part.is_carrying(0)
    part.forget_answers()
    assert part.need(part.files) == [0]
    assert part.is_carrying(0)


def test_one_file_at_a_time_is_as_ranges() -> None:
    """Answers for each file by itself, and those for all of them at once, leave the same."""
    sizes = [2, 25, 0, 4, 4, 3, 30, 5, 10]
    parts = [Part(7, 3, [item_of(size) for size in sizes], 10, last=True) for _ in range(2)]
    for part in parts:
        part.begin_comparing(range(10, 11))
    one, all_at_once = parts
    needed, left = range(7, 12), range(10, 16)
    ready = [chunk_id for file_id in needed for chunk_id in one.need(range(file_id, file_id + 1))]
    assert ready == all_at_once.need(needed)
    found = [one.do_without(range(file_id, file_id + 1)) for file_id in left]
    assert (sum(size for size, _ in found), [at for _, ready in found for at in ready]) == all_at_once.do_without(left)
    assert one.large_files(range(8, 14)) == [8, 13]
    assert one.large_files(range(9, 13)) == []
    for chunk_id in range(3, one.end_chunk):
        assert one.carried(chunk_id) == all_at_once.carried(chunk_id)
        assert one.is_carrying(chunk_id) == all_at_once.is_carrying(chunk_id)
