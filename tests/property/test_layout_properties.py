"""Files are cut into chunks that cover every byte exactly once, in order, and bundles are within their limits."""

from unittest import mock

from hypothesis import example, given
from hypothesis import strategies as st

from filestreamer.wire import limits
from filestreamer.wire.layout import Layout
from filestreamer.wire.messages import Segment

SIZES = st.lists(st.integers(0, 50) | st.just(0), max_size=40)
CHUNK_SIZES = st.integers(1, 20)


def layout(chunk_size: int, sizes: list[int]) -> Layout:
    return Layout(chunk_size, sizes)


@given(CHUNK_SIZES, SIZES)
@example(10, [1, 0, 1])
def test_every_byte_exactly_once_in_order(chunk_size: int, sizes: list[int]) -> None:
    """Reading the chunks one after another is reading the files one after another."""
    made = layout(chunk_size, sizes)
    at = 0
    ends = [sum(sizes[: file_id + 1]) for file_id in range(len(sizes))]
    for chunk_id in range(made.chunks):
        segments = made.segments(chunk_id)
        assert segments, f"chunk {chunk_id} is empty"
        for file_id, offset, length, _ in segments:
            assert length > 0
            assert at == ends[file_id] - sizes[file_id] + offset
            at += length
            assert at <= ends[file_id]
    assert sum(sizes) == at


@given(CHUNK_SIZES, SIZES, st.integers(1, 5))
@example(10, [1, 0, 1], 5)
def test_bundles_are_within_limits_and_closed_for_a_reason(chunk_size: int, sizes: list[int], most: int) -> None:
    """At most C bytes and so many segments; and a chunk that could have taken what follows it has taken it."""
    with mock.patch.object(limits, "SEGMENTS_PER_CHUNK", most):
        made = layout(chunk_size, sizes)
        chunks = [made.segments(chunk_id) for chunk_id in range(made.chunks)]
    lengths = [sum(segment.length for segment in segments) for segments in chunks]
    for segments, length in zip(chunks, lengths, strict=True):
        assert length <= chunk_size
        assert len(segments) <= most
        if len(segments) > 1:
            assert all((segment.offset, segment.length) == (0, sizes[segment.file_id]) for segment in segments)
    for chunk_id in range(made.chunks - 1):
        this, following = chunks[chunk_id], chunks[chunk_id + 1]
        small = all(sizes[segment.file_id] <= chunk_size for segment in (this[-1], following[0]))
        has_room = lengths[chunk_id] + following[0].length <= chunk_size and len(this) < most
        assert not (small and has_room)


@given(CHUNK_SIZES, SIZES)
def test_large_files_begin_a_chunk_and_keep_to_their_grid(chunk_size: int, sizes: list[int]) -> None:
    made = layout(chunk_size, sizes)
    for file_id, size in enumerate(sizes):
        grid = made.grid(file_id)
        assert (size, chunk_size) == grid
        for index in range(grid.segments):
            segments = made.segments(made.chunk_of(file_id, index))
            mine = [segment for segment in segments if segment.file_id == file_id]
            assert [Segment(file_id, grid.offset(index), grid.length(index))] == mine
            if size > chunk_size:
                assert segments == tuple(mine)


@given(CHUNK_SIZES, st.integers(0, 1000))
def test_chunk_k_of_a_single_file(chunk_size: int, size: int) -> None:
    made = layout(chunk_size, [size])
    assert made.chunks == -(-size // chunk_size)
    for chunk_id in range(made.chunks):
        (segment,) = made.segments(chunk_id)
        start = chunk_id * chunk_size
        assert Segment(0, start, min(chunk_size, size - start)) == segment


@given(CHUNK_SIZES, SIZES, SIZES)
def test_a_cut_depends_on_what_comes_before_alone(chunk_size: int, sizes: list[int], more: list[int]) -> None:
    """Files that are added later change no chunk but the one that is still open."""
    before, after = layout(chunk_size, sizes), layout(chunk_size, sizes + more)
    for chunk_id in range(before.chunks - 1):
        assert before.segments(chunk_id) == after.segments(chunk_id)
    if before.chunks:
        last = before.chunks - 1
        assert before.segments(last) == after.segments(last)[: len(before.segments(last))]


@given(CHUNK_SIZES, SIZES)
@example(10, [1, 0, 1])
def test_empty_files_change_nothing(chunk_size: int, sizes: list[int]) -> None:
    """The receiver leaves them out when it counts chunks."""
    assert layout(chunk_size, list(filter(None, sizes))).chunks == layout(chunk_size, sizes).chunks
