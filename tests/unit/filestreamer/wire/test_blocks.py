"""Small segments are taken together as far as a block has room for them, in order."""

from hypothesis import example, given
from hypothesis import strategies as st

from filestreamer.wire.blocks import blocks
from filestreamer.wire.messages import Segment

BLOCK = 10


@given(st.lists(st.tuples(st.integers(1, 2 * BLOCK), st.booleans()), max_size=30))
@example([(BLOCK, False), (BLOCK, False)])
@example([(1, False), (BLOCK, False)])
@example([(1, False), (1, True), (1, False)])
def test_each_segment_is_in_one_block(lengths: list[tuple[int, bool]]) -> None:
    """No block is too large, and none could have taken what follows it."""
    segments = [Segment(at, 0, length, (0, length) if is_hole else ()) for at, (length, is_hole) in enumerate(lengths)]
    found = list(blocks(segments, BLOCK))
    assert [at for first, end, _ in found for at in range(first, end)] == list(range(len(segments)))
    for number, (first, end, size) in enumerate(found):
        is_alone = any(segment.runs or segment.length > BLOCK for segment in segments[first:end])
        assert size == (0 if is_alone else sum(segment.length for segment in segments[first:end]))
        assert size <= BLOCK
        assert not is_alone or end - first == 1
        if not is_alone and number + 1 < len(found) and found[number + 1][2]:
            assert size + segments[end].length > BLOCK
