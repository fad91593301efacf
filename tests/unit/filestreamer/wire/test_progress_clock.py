"""What counts as progress, and what never does (filestreamer/wire/progress_clock.py)."""

import itertools

import pytest

from filestreamer.wire.limits import MIB, REHASH_STEP_BYTES, SYNC_BYTES_PER_SECOND
from filestreamer.wire.progress_clock import FRESH_STARTS, LOSSES, Patience, ProgressClock, sync_seconds


@pytest.fixture
def clock() -> ProgressClock:
    return ProgressClock(0.0)


def test_more_than_ever_before_is_progress(clock: ProgressClock) -> None:
    assert clock.done(1, 1.0)
    assert clock.done(2, 2.0)
    assert clock.at == 2.0


def test_the_same_again_is_none(clock: ProgressClock) -> None:
    """Chunks that are taken back and acknowledged again, entries that are listed again."""
    clock.done(5, 1.0)
    for now, count in enumerate([3, 5, 0, 5], 2):
        assert not clock.done(count, float(now))
    assert clock.at == 1.0


def test_bytes_of_a_chunk_that_comes_slowly(clock: ProgressClock) -> None:
    for now in range(1, 100):
        assert clock.under_way(now * 1000, float(now))
    assert clock.done(1, 100.0)
    assert clock.under_way(500, 101.0)  # of the next one


def test_connections_that_come_and_go_make_no_progress_for_ever(clock: ProgressClock) -> None:
    """Each brings the same bytes: they count again a few times, for one that was honest."""
    progress = 0
    for now in itertools.islice(itertools.count(1), 10 * LOSSES):
        progress += clock.under_way(1000, float(now))
        clock.lose(0)
    assert progress == 1 + LOSSES


def test_a_chunk_that_is_done_renews_that(clock: ProgressClock) -> None:
    for done in range(1, 4 * LOSSES):
        assert clock.under_way(1000, 2.0 * done)
        clock.lose(0)
        assert clock.done(done, 2.0 * done + 1)


def test_a_receiver_that_forgets_again_and_again(clock: ProgressClock) -> None:
    progress = 0
    for now in range(1, 10 * FRESH_STARTS):
        progress += clock.done(7, float(now))
        clock.start_over()
    assert progress == 1 + FRESH_STARTS


def test_a_receiver_that_is_restarted_and_gets_further_each_time(clock: ProgressClock) -> None:
    for now in range(1, 10 * FRESH_STARTS):
        assert clock.done(now, float(now))
        clock.start_over()


def test_where_nothing_was_done_nothing_is_counted_again(clock: ProgressClock) -> None:
    """BUSY, said for ever."""
    clock.reach("listed", 1, 1.0)
    for now in range(2, 20):
        clock.start_over()
        assert not clock.reach("listed", 1, float(now))


def test_counts_that_go_on_are_counted_from_there(clock: ProgressClock) -> None:
    """To compare once more what a restarted receiver holds is progress, up to all of it."""
    clock.reach("rehashed", 100, 1.0, most=100)
    clock.done(1, 1.0)
    assert not clock.reach("rehashed", 150, 2.0, most=100)
    clock.start_over(rehashed=150)
    assert clock.reach("rehashed", 200, 3.0, most=100)
    assert clock.reach("rehashed", 250, 4.0, most=100)
    assert not clock.reach("rehashed", 400, 5.0, most=100)


def test_a_peer_that_counts_beyond_what_it_was_offered(clock: ProgressClock) -> None:
    size = 3 * MIB
    counted = [clock.reach("peer", count * MIB, float(count), most=size, step=REHASH_STEP_BYTES) for count in range(9)]
    assert counted == [False, True, True, True, False, False, False, False, False]


def test_a_peer_that_counts_bytes_one_by_one(clock: ProgressClock) -> None:
    assert not any(clock.reach("peer", count, 1.0, most=3 * MIB, step=REHASH_STEP_BYTES) for count in range(1000))


def test_the_last_bytes_of_a_small_file_count(clock: ProgressClock) -> None:
    assert clock.reach("peer", 10, 1.0, most=10, step=REHASH_STEP_BYTES)


def test_a_sync_counts_for_as_long_as_a_slow_disk_takes(clock: ProgressClock) -> None:
    seconds = sync_seconds(100 * SYNC_BYTES_PER_SECOND, 0)
    assert seconds == 100.0
    for now in range(10, 200):
        clock.sync(10.0, seconds, float(now))
    assert clock.at == 110.0


def test_a_sync_never_takes_progress_back(clock: ProgressClock) -> None:
    clock.done(1, 50.0)
    clock.sync(10.0, 1.0, 51.0)
    assert clock.at == 50.0


def test_names_take_a_disk_time_too() -> None:
    assert sync_seconds(0, 1_000_000) > 3600


def test_what_is_missing_after_finish_counts_once_more(clock: ProgressClock) -> None:
    clock.done(10, 1.0)
    clock.reopen(4)
    assert clock.done(5, 2.0)
    assert clock.done(10, 3.0)
    assert not clock.done(10, 4.0)


def test_what_the_peer_has_read_is_progress_where_its_kernel_had_it_before() -> None:
    clock = ProgressClock(0.0)
    assert clock.under_way(4_000_000, 1.0)
    assert clock.under_way(4_000_000, 2.0, read=1000)
    assert not clock.under_way(4_000_000, 3.0, read=1000)
    assert clock.under_way(4_000_000, 4.0, read=1001)
    assert clock.at == 4.0
    assert clock.done(1, 5.0)
    assert clock.under_way(0, 6.0, read=10)


def test_patience_grows_with_the_first_byte() -> None:
    patience = Patience(60.0, 1800.0)
    assert (patience.seconds(has_begun=False), patience.seconds(has_begun=True)) == (60.0, 1800.0)
