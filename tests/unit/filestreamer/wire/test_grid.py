"""Where segments lie (proto/README.md, "Chunks and segments"). That they cover every byte once is in tests/property."""

import pytest

from filestreamer.wire import limits
from filestreamer.wire.grid import WHOLE, Grid, Share, comfortable_chunk_size, smallest_chunk_size

C = 8


@pytest.mark.parametrize(
    ("size", "lengths"),
    [
        (0, []),
        (1, [1]),
        (C - 1, [C - 1]),
        (C, [C]),
        (C + 1, [C, 1]),
        (2 * C - 1, [C, C - 1]),
        (2 * C, [C, C]),
        (2 * C + 1, [C, C, 1]),
    ],
)
def test_segments_of_small_files(size: int, lengths: list[int]) -> None:
    grid = Grid(size, C)

    assert grid.segments == len(lengths)
    assert [grid.length(i) for i in range(grid.segments)] == lengths
    assert [grid.offset(i) for i in range(grid.segments)] == [C * i for i in range(len(lengths))]


@pytest.mark.parametrize(
    ("first", "end", "expected"), [(0, 3, 17), (0, 2, 16), (2, 3, 1), (1, 3, 9), (1, 1, 0), (3, 3, 0), (0, 0, 0)]
)
def test_bytes_between_counts_the_short_last_segment(first: int, end: int, expected: int) -> None:
    assert Grid(17, C).bytes_between(first, end) == expected


@pytest.mark.parametrize(("offset", "length", "index"), [(0, 8, 0), (8, 8, 1), (16, 1, 2)])
def test_index_of_a_segment(offset: int, length: int, index: int) -> None:
    assert Grid(17, C).index_of(offset, length) == index


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, 7),  # part of a segment
        (0, 9),
        (0, 16),  # two segments
        (1, 8),  # across two
        (1, 7),
        (16, 8),  # beyond the end
        (16, 0),
        (17, 0),
        (17, 1),
        (24, 8),
        (-8, 8),
        (-8, 0),
        (0, 0),
        (0, -8),
        (1 << 63, 8),
    ],
)
def test_index_of_anything_else_is_none(offset: int, length: int) -> None:
    assert Grid(17, C).index_of(offset, length) is None


def test_an_empty_file_has_no_segment() -> None:
    assert Grid(0, C).index_of(0, 0) is None
    assert Grid(0, C).bytes_between(0, 0) == 0


def test_the_largest_file() -> None:
    grid = Grid(limits.FILE_SIZE_MAX, limits.CHUNK_SIZE_MAX)
    last = grid.segments - 1

    assert grid.offset(last) + grid.length(last) == limits.FILE_SIZE_MAX
    assert grid.length(last) == limits.CHUNK_SIZE_MAX - 1
    assert grid.index_of(grid.offset(last), grid.length(last)) == last


DEFAULT, COMFORTABLE = limits.CHUNK_SIZE_DEFAULT, limits.CHUNKS_PER_FILE_COMFORTABLE


@pytest.mark.parametrize(
    ("size", "chunk_size"),
    [
        (0, DEFAULT),
        (1, DEFAULT),
        (DEFAULT * COMFORTABLE, DEFAULT),
        (DEFAULT * COMFORTABLE + 1, 2 * DEFAULT),
        (2 * DEFAULT * COMFORTABLE, 2 * DEFAULT),
        (2 * DEFAULT * COMFORTABLE + 1, 4 * DEFAULT),
        (limits.FILE_SIZE_MAX, limits.CHUNK_SIZE_MAX),  # it never doubles beyond what may be offered
    ],
)
def test_the_default_chunk_size_doubles_with_the_file(size: int, chunk_size: int) -> None:
    assert comfortable_chunk_size(size) == chunk_size


def test_another_default_doubles_likewise() -> None:
    assert comfortable_chunk_size(3 * 1000 * COMFORTABLE, default=1000) == 4000


@pytest.mark.parametrize("size", [0, 1, limits.CHUNKS_PER_FILE, limits.CHUNKS_PER_FILE + 1, 10**15, 10**15 + 7])
def test_the_smallest_chunk_size_is_enough_and_no_smaller_one_is(size: int) -> None:
    smallest = smallest_chunk_size(size)

    assert Grid(size, smallest).segments <= limits.CHUNKS_PER_FILE
    assert smallest == 1 or Grid(size, smallest - 1).segments > limits.CHUNKS_PER_FILE


# ------------------------------------------------------------------------------------------------------------- shares


def test_a_share_takes_every_third() -> None:
    share = Share(1, 3)

    assert [chunk for chunk in range(8) if share.holds(chunk)] == [1, 4, 7]
    assert [share.chunk(ordinal) for ordinal in range(share.chunks(8))] == [1, 4, 7]
    assert [share.ordinal(chunk) for chunk in (1, 4, 7)] == [0, 1, 2]
    assert str(share) == "1/3"


@pytest.mark.parametrize(
    ("share", "expected"), [(Share(0, 3), 9), (Share(1, 3), 8), (Share(2, 3), 8), (Share(5, 9), 0), (WHOLE, 25)]
)
def test_bytes_of_a_share(share: Share, expected: int) -> None:
    """Four chunks of 8, 8, 8 and 1 bytes: shard 0 of 3 has the first and the last."""
    assert share.bytes_of(Grid(25, C)) == expected


def test_a_span_covers_its_chunks_and_no_more() -> None:
    share = Share(2, 5)
    first, end = share.span(1, 3)

    assert (first, end) == (7, 13)
    assert share.ordinals(first, end) == range(1, 3)
    assert share.ordinals(8, 12) == range(2, 2)
