"""The states of chunks: what is answered and done, in which ranges, and the first chunk that is not done."""

from filestreamer.telemetry.chunk_map import ChunkMap
from filestreamer.wire.grid import Share
from sender.dispatch.chunk_states import ChunkStates


def make(chunks: int) -> ChunkStates:
    states = ChunkStates()
    assert states.extend(chunks) == chunks
    return states


def test_unanswered_ranges() -> None:
    states = make(10)
    states.mark_answered(3, 5)
    states.mark_answered(9, 10)
    assert list(states.unanswered(0, 10)) == [(0, 3), (5, 9)]
    assert list(states.unanswered(4, 7)) == [(5, 7)]
    assert list(states.unanswered(3, 5)) == list(states.unanswered(7, 7)) == []
    assert [states.is_answered(ordinal) for ordinal in (2, 3, 4, 5)] == [False, True, True, False]


def test_lowest_moves_over_what_is_done() -> None:
    states = make(4)
    states.mark_done(1, 7)
    assert (states.advance(), states.lowest) == (False, 0)
    states.mark_done(0, None)
    assert (states.advance(), states.lowest) == (True, 2)
    states.mark_done(2, 7)
    states.mark_done(3, 7)
    assert (states.advance(), states.lowest, states.done_count) == (True, 4, 4)
    assert states.extend(6) == 2
    assert (states.advance(), states.lowest) == (False, 4)


def test_what_is_reopened_is_not_done() -> None:
    states = make(3)
    for ordinal in range(3):
        states.mark_done(ordinal, 0 if ordinal else None)
    states.advance()
    assert states.reopen(1)
    assert not states.reopen(1)
    assert (states.done_count, states.lowest, states.is_done(1), states.is_done(2)) == (2, 1, False, True)
    assert (states.chunk_map.held, states.chunk_map.brought) == ([1, 0, 0], [0, 0, 1])


def test_clearing_forgets_everything() -> None:
    states = make(3)
    states.mark_answered(0, 3)
    states.mark_done(0, 1)
    states.advance()
    states.clear()
    assert (states.chunks, states.done_count, states.lowest) == (0, 0, 0)
    assert states.extend(3) == 3
    assert list(states.unanswered(0, 3)) == [(0, 3)]
    assert states.chunk_map.brought == ChunkMap(3).brought


def test_what_other_shards_send_is_done_and_never_opened() -> None:
    states = ChunkStates()
    states.extend(12)
    assert states.leave_to_others(2, 12, Share(1, 4)) == 7  # of the ten segments of one file, 1, 5 and 9 are sent
    assert list(states.unanswered(0, 12)) == [(0, 2), (3, 4), (7, 8), (11, 12)]
    assert (states.done_count, states.others) == (7, 7)
    assert list(states.not_done()) == [0, 1, 3, 7, 11]
    assert not states.reopen(2)
    assert states.zeros(0, 12) == []
