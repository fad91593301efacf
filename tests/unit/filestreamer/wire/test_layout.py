"""Files to chunks, by example: single files at the edges of the grid, bundles, and what closes them."""

import pytest

from filestreamer.wire import limits
from filestreamer.wire.layout import Layout
from filestreamer.wire.messages import Segment


def layout(chunk_size: int, *sizes: int) -> Layout:
    return Layout(chunk_size, sizes)


def chunks(made: Layout) -> list[list[tuple[int, int, int]]]:
    """Return the segments of every chunk; each equals a tuple of file_id, offset and length."""
    return [[segment[:3] for segment in made.segments(chunk_id)] for chunk_id in range(made.chunks)]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, []),
        (1, [[(0, 0, 1)]]),
        (9, [[(0, 0, 9)]]),
        (10, [[(0, 0, 10)]]),
        (11, [[(0, 0, 10)], [(0, 10, 1)]]),
        (20, [[(0, 0, 10)], [(0, 10, 10)]]),
        (25, [[(0, 0, 10)], [(0, 10, 10)], [(0, 20, 5)]]),
    ],
)
def test_one_file(size: int, expected: list[list[tuple[int, int, int]]]) -> None:
    """Chunk k of a single file is bytes [k*C, (k+1)*C)."""
    assert expected == chunks(layout(10, size))


def test_chunk_size_of_one_byte() -> None:
    assert chunks(layout(1, 3)) == [[(0, 0, 1)], [(0, 1, 1)], [(0, 2, 1)]]


def test_small_files_share_a_chunk() -> None:
    assert chunks(layout(10, 3, 3, 4)) == [[(0, 0, 3), (1, 0, 3), (2, 0, 4)]]


def test_a_bundle_closes_before_it_is_too_long() -> None:
    assert chunks(layout(10, 3, 3, 5, 5, 1)) == [[(0, 0, 3), (1, 0, 3)], [(2, 0, 5), (3, 0, 5)], [(4, 0, 1)]]


def test_a_file_of_one_whole_chunk_is_bundled_alone() -> None:
    """Of exactly C bytes it has one segment: it closes the bundle before it, and leaves no room behind it."""
    assert chunks(layout(10, 1, 10, 1)) == [[(0, 0, 1)], [(1, 0, 10)], [(2, 0, 1)]]


def test_a_large_file_starts_and_ends_its_own_chunks() -> None:
    expected = [[(0, 0, 1)], [(1, 0, 10)], [(1, 10, 2)], [(2, 0, 1), (3, 0, 1)]]
    assert expected == chunks(layout(10, 1, 12, 1, 1))


def test_empty_files_belong_to_no_chunk() -> None:
    """They neither open nor close a bundle."""
    made = layout(10, 0, 1, 0, 1, 0, 12, 0)
    assert chunks(made) == [[(1, 0, 1), (3, 0, 1)], [(5, 0, 10)], [(5, 10, 2)]]
    assert made.grid(0).segments == made.grid(6).segments == 0


def test_a_bundle_closes_at_its_segments() -> None:
    most = limits.SEGMENTS_PER_CHUNK
    made = layout(1 << 20, *[1] * (most + 1))
    assert [most, 1] == [len(segments) for segments in chunks(made)]


def test_which_chunk_carries_a_segment() -> None:
    made = layout(10, 1, 25, 2, 3)
    assert made.chunk_of(0, 0) == 0
    assert [made.chunk_of(1, segment) for segment in range(3)] == [1, 2, 3]
    assert [made.chunk_of(2, 0), made.chunk_of(3, 0)] == [4, 4]


@pytest.mark.parametrize("chunk_id", [-1, 3, 1 << 60])
def test_chunks_that_are_not_there(chunk_id: int) -> None:
    with pytest.raises(IndexError, match=f"chunk {chunk_id} of 3"):
        layout(10, 25).segments(chunk_id)


def test_memory_does_not_grow_with_bytes() -> None:
    """2^23 chunks cost nothing, and the last one is found at once."""
    made = layout(1 << 30, 1 << 53)
    assert made.chunks == limits.CHUNKS_PER_FILE
    last = limits.CHUNKS_PER_FILE - 1
    assert made.segments(last) == (Segment(0, last << 30, 1 << 30),)
