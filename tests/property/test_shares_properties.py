"""The shares of a file are a partition of its chunks, whatever its size, the chunk size and the number of shards."""

from hypothesis import given
from hypothesis import strategies as st

from filestreamer.wire import limits
from filestreamer.wire.grid import Grid, Share
from receiver.file.chunk_states import ChunkStates
from receiver.file.states import FREE

GRIDS = st.builds(Grid, size=st.integers(0, 300), chunk_size=st.integers(1, 40))
LARGE = st.builds(Grid, size=st.integers(0, limits.FILE_SIZE_MAX), chunk_size=st.integers(1, limits.CHUNK_SIZE_MAX))
COUNTS = st.integers(1, 12) | st.integers(1, limits.SHARDS_MAX)


def shares(count: int) -> list[Share]:
    return [Share(index, count) for index in range(count)]


@given(GRIDS, COUNTS)
def test_each_chunk_is_in_one_share(grid: Grid, count: int) -> None:
    chunks = [share.chunk(ordinal) for share in shares(count) for ordinal in range(share.chunks(grid.segments))]
    assert sorted(chunks) == list(range(grid.segments))
    assert all(share.holds(k) == (k % count == share.index) for share in shares(count) for k in range(grid.segments))


@given(GRIDS | LARGE, COUNTS)
def test_each_byte_is_in_one_share(grid: Grid, count: int) -> None:
    assert sum(share.bytes_of(grid) for share in shares(count)) == grid.size
    assert sum(share.chunks(grid.segments) for share in shares(count)) == grid.segments


@given(GRIDS, COUNTS, st.data())
def test_a_range_of_chunks_means_those_of_the_share(grid: Grid, count: int, data: st.DataObject) -> None:
    share = Share(data.draw(st.integers(0, count - 1)), count)
    first = data.draw(st.integers(0, grid.segments))
    end = data.draw(st.integers(first, grid.segments))
    ordinals = share.ordinals(first, end)
    assert [share.chunk(ordinal) for ordinal in ordinals] == [k for k in range(first, end) if share.holds(k)]
    assert [share.ordinal(share.chunk(ordinal)) for ordinal in ordinals] == list(ordinals)
    if ordinals:
        assert share.ordinals(*share.span(ordinals.start, ordinals.stop)) == ordinals
        lengths = [grid.length(share.chunk(ordinal)) for ordinal in ordinals]
        assert share.bytes_between(grid, ordinals.start, ordinals.stop) == sum(lengths)


@given(GRIDS, COUNTS, st.data())
def test_the_states_of_a_share_are_its_own(grid: Grid, count: int, data: st.DataObject) -> None:
    """What is written of a share is missing from its runs, and from no other one's."""
    states, writer = ChunkStates(grid), Writer()
    written = data.draw(st.sets(st.integers(0, grid.segments - 1))) if grid.segments else set()
    for k in written:
        states.begin(k, writer)
        states.deliver(k, writer, bytes([k % 256]) * 16, bytes([k % 256]) * 16)
    for share in shares(min(count, 30)):
        runs = [share.chunk(i) for start, stop in states.runs(FREE, share=share) for i in range(start, stop)]
        assert runs == [k for k in range(share.index, grid.segments, share.count) if k not in written]
        digests = b"".join(states.digests(share))
        of_share = range(share.index, grid.segments, share.count)
        assert digests == b"".join(bytes([k % 256]) * 16 if k in written else bytes(16) for k in of_share)


class Writer:
    """Writes chunks, and leaves at once."""

    def stop(self, seconds: float) -> bool:
        return seconds > 0
