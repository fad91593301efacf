"""A part of a manifest: what its chunks carry, which of them lie in holes, and when a bundle is ready."""

import pytest

from filestreamer.wire.messages import Entry, EntryType, Hole
from sender.dispatch.part import Part
from sender.source.item import Identity, Item
from tests.support.manifests import item_of


def item(entry: Entry) -> Item:
    return Item(entry, b"/nowhere", Identity(1, 1, entry.size, 0, 0))


def holes_of(size: int, *holes: tuple[int, int], chunk_size: int = 10) -> Part:
    entry = Entry(b"f", EntryType.FILE, size, 0o644, 0, holes=tuple(Hole(*hole) for hole in holes))
    return Part(0, 100, [item_of(3), item(entry), item_of(3)], chunk_size, last=True)


@pytest.mark.parametrize(
    ("size", "holes", "chunks"),
    [
        (40, [(0, 40)], [0, 1, 2, 3]),
        (35, [(0, 35)], [0, 1, 2, 3]),
        (35, [(10, 25)], [1, 2, 3]),
        (35, [(9, 12)], [1]),
        (35, [(11, 18)], []),
        (35, [(11, 19)], [2]),
        (35, [(30, 5)], [3]),
        (35, [(30, 4)], []),
        (40, [(0, 10), (20, 10)], [0, 2]),
    ],
)
def test_chunks_in_holes(size: int, holes: list[tuple[int, int]], chunks: list[int]) -> None:
    """Those that lie in a hole entirely, the last one to the end of the file."""
    part = holes_of(size, *holes)
    assert [101 + chunk for chunk in chunks] == list(part.hole_chunks())
    assert part.bytes == 6 + size - sum(min(10, size - chunk * 10) for chunk in chunks)


def test_a_small_file_of_holes_alone_is_carried_by_its_bundle_and_not_sent() -> None:
    part = holes_of(4, (0, 4))
    assert list(part.hole_chunks()) == []
    assert part.need(0) is None
    assert part.need(2) == 100
    assert [segment.file_id for segment in part.carried(100)] == [0, 2]
    assert part.bytes == 6


def test_a_bundle_is_ready_with_the_last_answer() -> None:
    part = Part(7, 3, [item_of(2), item_of(2), item_of(2)], 10, last=True)
    assert part.begin_comparing(8)
    assert not part.begin_comparing(8)
    assert (part.need(7), part.do_without(9), part.do_without(9)) == (None, None, None)
    assert part.do_without(8) == 3
    assert [segment.file_id for segment in part.carried(3)] == [7]
