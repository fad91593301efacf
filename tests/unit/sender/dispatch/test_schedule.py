"""Whose chunk is next, by example. Chunk k belongs to connection k mod N."""

import pytest

from sender.dispatch.schedule import Schedule


def taken(schedule: Schedule, connection_id: int, count: int = 1 << 20) -> list[int]:
    """Take chunks for one connection until there is none for it, or `count` times."""
    chunk_ids: list[int] = []
    while len(chunk_ids) < count and (chunk_id := schedule.take(connection_id)) is not None:
        chunk_ids.append(chunk_id)
    return chunk_ids


def test_homes_take_turns() -> None:
    schedule = Schedule(3, strict_modulo=True)
    schedule.add(0, 10)
    assert [schedule.remaining_of(connection_id) for connection_id in range(3)] == [4, 3, 3]
    assert [taken(schedule, connection_id) for connection_id in range(3)] == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    assert schedule.remaining == 0


def test_homes_follow_the_chunk_id_wherever_a_range_begins() -> None:
    schedule = Schedule(4, strict_modulo=True)
    schedule.add(5, 8)
    assert [taken(schedule, connection_id) for connection_id in range(4)] == [[], [5], [6], [7]]


def test_more_connections_than_chunks() -> None:
    schedule = Schedule(256, strict_modulo=True)
    schedule.add(0, 2)
    assert [schedule.take(connection_id) for connection_id in (0, 1, 2)] == [0, 1, None]


def test_an_empty_range_adds_nothing() -> None:
    schedule = Schedule(2)
    schedule.add(7, 7)
    assert (schedule.remaining, schedule.take(0)) == (0, None)


def test_who_has_none_takes_over_from_who_has_most() -> None:
    schedule = Schedule(3)
    schedule.add(0, 9)
    assert taken(schedule, 0, 3) == [0, 3, 6]
    schedule.take(1)
    assert schedule.take(0) == 2, "connection 2 has three left, connection 1 has two"
    assert [schedule.remaining_of(1), schedule.remaining_of(2)] == [2, 2]


def test_strict_modulo_takes_over_nothing() -> None:
    schedule = Schedule(2, strict_modulo=True)
    schedule.add(0, 4)
    assert taken(schedule, 0) == [0, 2]
    assert schedule.take(0) is None
    assert schedule.remaining == 2


def test_put_back_is_taken_first_and_lowest_first() -> None:
    schedule = Schedule(2, strict_modulo=True)
    schedule.add(0, 12)
    assert taken(schedule, 0, 4) == [0, 2, 4, 6]
    schedule.put_back([4, 2])
    assert taken(schedule, 0) == [2, 4, 8, 10]


def test_put_back_goes_home_whoever_had_it() -> None:
    schedule = Schedule(2)
    schedule.add(0, 2)
    assert (schedule.take(0), schedule.take(0)) == (0, 1)
    schedule.put_back([1])
    assert (schedule.remaining_of(0), schedule.remaining_of(1)) == (0, 1)


def test_chunks_of_one_shard() -> None:
    """Shard 1 of 3 on 2 connections: the home of chunk k is (k // 3) mod 2."""
    schedule = Schedule(2, shard_count=3, strict_modulo=True)
    schedule.add(1, 17, 3)
    assert taken(schedule, 0) == [1, 7, 13]
    assert taken(schedule, 1) == [4, 10, 16]


def test_doubling_splits_each_home_in_two() -> None:
    schedule = Schedule(2, strict_modulo=True)
    schedule.add(0, 16)
    assert (schedule.take(0), schedule.take(1)) == (0, 1)
    schedule.resize(4)
    assert [taken(schedule, connection_id) for connection_id in range(4)] == [
        [4, 8, 12],
        [5, 9, 13],
        [2, 6, 10, 14],
        [3, 7, 11, 15],
    ]


def test_halving_brings_the_homes_of_those_who_leave_to_those_who_stay() -> None:
    schedule = Schedule(4, strict_modulo=True)
    schedule.add(0, 16)
    assert (schedule.take(2), schedule.take(3)) == (2, 3)
    schedule.put_back([2])
    schedule.resize(2)
    assert schedule.take(2) is None, "it is not one of the two"
    assert sorted(taken(schedule, 0)) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert sorted(taken(schedule, 1)) == [1, 5, 7, 9, 11, 13, 15]


def test_resizing_again_and_again_leaves_no_more_pieces_than_the_largest_size() -> None:
    """A transfer of days looks for the right number of connections every half minute."""
    schedule = Schedule(2)
    schedule.add(0, 1 << 20)
    for _ in range(50):
        schedule.resize(8)
        schedule.resize(2)
    assert sum(map(len, schedule._homes)) == 8
    assert schedule.remaining == 1 << 20


@pytest.mark.parametrize("connections", [1, 7, 256])
def test_a_million_chunks_cost_nothing(connections: int) -> None:
    schedule = Schedule(connections)
    schedule.add(0, 1 << 23)
    assert schedule.remaining == 1 << 23
    assert list(range(connections)) == [schedule.take(connection_id) for connection_id in range(connections)]


@pytest.mark.parametrize("connections", [1, 2, 4])
@pytest.mark.parametrize(("first", "end"), [(0, 40), (3, 9), (7, 7), (0, 5), (33, 99)])
def test_chunks_are_taken_out_of_the_queue(connections: int, first: int, end: int) -> None:
    """Wherever they are, also after the number of connections has changed; the others stay, the lowest first."""
    schedule = Schedule(connections)
    schedule.add(0, 40)
    schedule.resize(4)
    schedule.resize(2)
    schedule.put_back([schedule.take(0) or 0])
    removed = sorted(chunk_id for chunk_ids in schedule.remove(first, end) for chunk_id in chunk_ids)
    left = [chunk_id for chunk_id in range(40) if not first <= chunk_id < end]
    assert removed == [chunk_id for chunk_id in range(40) if first <= chunk_id < end]
    assert schedule.remaining == len(left)
    assert schedule.lowest == min(left, default=None)
    assert sorted(taken(schedule, 0)) == left


def test_a_run_is_what_follows_at_one_distance() -> None:
    """Also where chunks were put back one by one; it ends where the distance changes, or the caller says so."""
    schedule = Schedule(3, strict_modulo=True)
    schedule.add(0, 60)
    assert schedule.take(1) == 1
    assert schedule.take_run(1, 4, 60) == range(1, 13, 3)
    schedule.put_back([1, 4, 7, 10])
    assert schedule.take(1) == 1
    assert schedule.take_run(1, 100, 40) == range(1, 40, 3)
    schedule.put_back([4, 7, 13, 16])
    assert schedule.take(1) == 4
    assert schedule.take_run(4, 100, 60) == range(4, 8, 3)
    assert (schedule.take(1), schedule.take_run(13, 1, 60)) == (13, range(13, 14))
    assert taken(schedule, 1) == [16, *range(40, 60, 3)]
    assert (schedule.remaining_of(1), schedule.remaining) == (0, 40)
