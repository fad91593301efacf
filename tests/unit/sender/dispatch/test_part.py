"""A part of a manifest: what its chunks carry, and when a bundle is ready."""

from sender.dispatch.part import Part
from tests.support.manifests import item_of


def test_a_bundle_is_ready_with_the_last_answer() -> None:
    part = Part(7, 3, [item_of(2), item_of(2), item_of(2)], 10, last=True)
    assert part.begin_comparing(8)
    assert not part.begin_comparing(8)
    assert (part.need(7), part.do_without(9), part.do_without(9)) == (None, None, None)
    assert part.do_without(8) == 3
    assert [segment.file_id for segment in part.carried(3)] == [7]
