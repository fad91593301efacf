"""The queue: which chunks are answered, taken and done."""

import threading
import tracemalloc

import pytest

from filestreamer.telemetry.counters import ConnectionCounters
from filestreamer.wire import limits
from filestreamer.wire.digests import root_digest
from filestreamer.wire.errors import Code, ConnectionLost, RemoteProtocolError, TransferFailed
from filestreamer.wire.grid import Share
from filestreamer.wire.messages import Segment
from sender.dispatch.schedule import Schedule
from sender.dispatch.send_queue import PartDone, SendQueue
from sender.mailbox import Event, Mailbox
from tests.support.manifests import manifest_of
from tests.support.services import HANG, UNIT


class DoneParts(Mailbox):
    """Counts the parts that are done."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def post(self, event: Event) -> None:
        assert isinstance(event, PartDone)
        self.count += 1


def make(chunks: int, connections: int = 2, *, strict_modulo: bool = False) -> tuple[SendQueue, DoneParts]:
    done = DoneParts()
    return SendQueue(manifest_of(chunks), Schedule(connections, strict_modulo=strict_modulo), done), done


def pin_digest(queue: SendQueue, chunk_id: int, digest: bytes) -> bool:
    return not queue.pin_digest(chunk_id, [Segment(0, chunk_id, 1)], [digest])


def taken(queue: SendQueue, connection_id: int = 0) -> list[int]:
    chunk_ids = []
    while (chunk_id := queue.next(connection_id, queue.epoch)) is not None:
        chunk_ids.append(chunk_id)
    return chunk_ids


def test_only_what_was_answered_is_queued() -> None:
    queue, _ = make(10)
    assert queue.next(0, queue.epoch) is None
    assert queue.need(2, 5) == 3
    assert sorted(taken(queue)) == [2, 3, 4]


def test_an_answer_that_was_given_before_changes_nothing() -> None:
    queue, _ = make(10)
    queue.need(2, 5)
    assert sorted(taken(queue)) == [2, 3, 4]
    assert queue.need(0, 10) == 7
    assert sorted(taken(queue)) == [0, 1, 5, 6, 7, 8, 9]
    assert queue.need(0, 10) == 0


def test_held_is_told_in_ranges_that_were_not_answered() -> None:
    queue, _ = make(10)
    queue.need(3, 5)
    assert queue.hold(0, 10) == [(0, 3), (5, 10)]
    assert queue.hold(0, 10) == []


def test_done_when_all_are_answered_and_acknowledged() -> None:
    queue, done = make(3)
    queue.need(0, 2)
    taken(queue)
    queue.mark_done((0, 1), queue.epoch)
    assert (queue.all_done, done.count) == (False, 0)
    queue.hold(2, 3)
    queue.mark_done((2,), queue.epoch)
    assert (queue.all_done, done.count) == (True, 1)


def test_nothing_to_send_is_done_at_once() -> None:
    queue, _ = make(0)
    assert queue.all_done
    assert queue.digests.root_digest() == root_digest([])


def test_what_is_done_twice_counts_once() -> None:
    queue, _ = make(2)
    queue.need(0, 2)
    queue.mark_done((0,), queue.epoch)
    queue.mark_done((0,), queue.epoch)
    assert not queue.all_done


def test_held_that_differs_is_queued() -> None:
    queue, _ = make(2)
    queue.hold(0, 2)
    queue.compared(1, queue.epoch, is_equal=False)
    queue.mark_done((0,), queue.epoch)
    assert taken(queue) == [1]
    assert not queue.all_done


def test_lost_chunks_are_queued_again() -> None:
    queue, _ = make(4)
    queue.need(0, 4)
    assert len(taken(queue)) == 4
    queue.put_back([3, 1], queue.epoch)
    assert sorted(taken(queue)) == [1, 3]


def test_needed_after_all_is_queued_again() -> None:
    """In answer to Finish: whatever was believed of them."""
    queue, done = make(3)
    queue.need(0, 3)
    taken(queue)
    queue.mark_done(range(3), queue.epoch)
    queue.reopen(1, 3)
    assert not queue.all_done
    assert sorted(taken(queue)) == [1, 2]
    queue.mark_done((1, 2), queue.epoch)
    assert (queue.all_done, done.count) == (True, 2)


def test_damaged_chunks_are_queued_again_until_it_is_enough() -> None:
    queue, _ = make(1)
    queue.need(0, 1)
    for _ in range(limits.SENDS_PER_CHUNK - 1):
        assert queue.next(0, queue.epoch) == 0
        queue.put_back_damaged(0, ConnectionCounters(7), queue.epoch)
    assert queue.next(0, queue.epoch) == 0
    with pytest.raises(TransferFailed, match="chunk 0 arrived damaged 4 times over connection 7") as caught:
        queue.put_back_damaged(0, ConnectionCounters(7), queue.epoch)
    assert caught.value.code is Code.DIGEST


def test_lost_connections_do_not_count_as_damage() -> None:
    """Nor does Needed after Finish (proto/README.md, "On the wire"): DIGEST_MISMATCH alone does, on any connection."""
    queue, _ = make(1)
    queue.need(0, 1)
    for connection_id in range(limits.SENDS_PER_CHUNK - 1):
        for _ in range(3):
            assert queue.next(0, queue.epoch) == 0
            queue.put_back([0], queue.epoch)
        assert queue.next(0, queue.epoch) == 0
        queue.mark_done((0,), queue.epoch)
        queue.reopen(0, 1)
        assert queue.next(0, queue.epoch) == 0
        queue.put_back_damaged(0, ConnectionCounters(connection_id), queue.epoch)
    assert queue.next(0, queue.epoch) == 0
    with pytest.raises(TransferFailed):
        queue.put_back_damaged(0, ConnectionCounters(7), queue.epoch)


def test_damage_takes_little_memory() -> None:
    """A receiver may say of each chunk that it arrived damaged, and take it when it comes again."""
    queue, _ = make(chunks := 20_000)
    queue.need(0, chunks)
    chunk_ids = taken(queue)
    counters = ConnectionCounters(0)
    tracemalloc.start()
    try:
        for chunk_id in chunk_ids:
            queue.put_back_damaged(chunk_id, counters, queue.epoch)
            assert queue.next(0, queue.epoch) == chunk_id
            queue.mark_done((chunk_id,), queue.epoch)
        used_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert queue.all_done
    assert used_bytes < 8 * chunks


def test_another_incarnation_answers_anew() -> None:
    """What the old one acknowledged, and what connections to it lost, counts no more; digests stay binding."""
    queue, done = make(3)
    queue.need(0, 3)
    taken(queue)
    old = queue.epoch
    assert pin_digest(queue, 0, b"a" * 16)
    queue.mark_done((0, 1), old)
    queue.start_over()
    queue.mark_done((2,), old)
    queue.put_back([1], old)
    queue.compared(0, old, is_equal=False)
    assert (queue.all_done, done.count, queue.next(0, queue.epoch)) == (False, 0, None)
    assert queue.need(0, 3) == 3
    assert sorted(taken(queue)) == [0, 1, 2]
    assert not pin_digest(queue, 0, b"b" * 16)
    assert pin_digest(queue, 0, b"a" * 16)


def test_the_first_digest_is_binding() -> None:
    queue, _ = make(2)
    assert (pin_digest(queue, 1, b"x" * 16), pin_digest(queue, 1, b"x" * 16), pin_digest(queue, 1, b"y" * 16)) == (
        True,
        True,
        False,
    )
    assert pin_digest(queue, 0, b"w" * 16)
    assert queue.digests.root_digest() == root_digest([b"w" * 16, b"x" * 16])


def test_the_first_failure_counts() -> None:
    queue, _ = make(1)
    queue.fail(ConnectionLost("first"))
    queue.fail(ConnectionLost("second"))
    with pytest.raises(ConnectionLost, match="first"):
        queue.next(0, queue.epoch)
    assert (queue.is_over, queue.is_complete) == (True, False)


def test_completing_ends_the_waiting() -> None:
    queue, _ = make(1)
    queue.complete()
    assert queue.next(0, queue.epoch, wait_seconds=100 * UNIT) is None
    assert (queue.is_over, queue.is_complete, queue.wait_over(0)) == (True, True, True)


@pytest.mark.parametrize("how", ["need", "put_back", "complete", "fail"])
def test_a_connection_that_waits_is_woken(how: str) -> None:
    queue, _ = make(2)
    got: list[object] = []

    def wait() -> None:
        try:
            got.append(queue.next(0, queue.epoch, wait_seconds=100 * UNIT))
        except ConnectionLost as error:
            got.append(str(error))

    if how == "put_back":
        queue.need(0, 1)
        assert queue.next(1, queue.epoch) == 0
    thread = threading.Thread(target=wait)
    thread.start()
    if how == "need":
        queue.need(0, 1)
    elif how == "put_back":
        queue.put_back([0], queue.epoch)
    elif how == "complete":
        queue.complete()
    else:
        queue.fail(ConnectionLost("over"))
    thread.join(HANG)
    assert not thread.is_alive()
    assert got == {"need": [0], "put_back": [0], "complete": [None], "fail": ["over"]}[how]


def test_which_connections_to_start() -> None:
    """As many as there are chunks that are, or may be, needed; those whose home has some come first."""
    queue, _ = make(8, connections=4)
    assert queue.wanted_connections(set()) == [0, 1, 2, 3]
    queue.need(3, 5)
    assert queue.wanted_connections(set()) == [0, 3, 1, 2]
    queue.hold(0, 3)
    queue.hold(5, 8)
    assert queue.wanted_connections(set()) == [0, 3]
    assert queue.wanted_connections({3}) == [0]


def test_all_connections_are_started_where_all_is_needed() -> None:
    queue, _ = make(8, connections=4)
    queue.need(0, 8)
    assert queue.wanted_connections({0, 3}) == [1, 2]
    assert queue.wanted_connections({0, 1, 2, 3}) == []


def test_which_connections_to_start_for_a_strict_modulo() -> None:
    queue, _ = make(9, connections=4, strict_modulo=True)
    for home in range(3):
        queue.need(4 * home, 4 * home + 1)
        queue.hold(4 * home + 1, min(4 * home + 4, 9))
    assert queue.wanted_connections(set()) == [0]


def test_fewer_connections_dismiss_those_beyond_and_more_of_them_are_wanted_again() -> None:
    queue, _ = make(16, connections=4)
    queue.need(0, 16)
    assert queue.next(3, queue.epoch) == 3
    queue.resize(2)
    assert [queue.dismisses(connection_id) for connection_id in range(4)] == [False, False, True, True]
    assert queue.next(3, queue.epoch) is None
    assert (queue.remaining, queue.wanted_connections({0, 1})) == (15, [])
    queue.resize(4)
    assert queue.wanted_connections({0, 1}) == [2, 3]
    queue.put_back([3], queue.epoch)
    assert queue.next(3, queue.epoch) == 3


def test_all_are_dismissed_when_it_is_complete() -> None:
    queue, _ = make(0)
    assert not queue.dismisses(0)
    queue.complete()
    assert queue.dismisses(0)


def test_a_chunk_goes_to_its_new_home_when_there_are_more_connections() -> None:
    queue, _ = make(8, strict_modulo=True)
    queue.need(2, 3)
    queue.resize(4)
    assert queue.next(0, queue.epoch) is None
    assert queue.next(2, queue.epoch) == 2


def test_a_connection_of_an_earlier_epoch_gets_nothing() -> None:
    """A chunk that it took from the new schedule, and could not put back into it, would be lost."""
    queue = SendQueue(manifest_of(3), Schedule(1), Mailbox())
    earlier = queue.epoch
    queue.need(0, 3)
    queue.start_over()
    queue.need(0, 3)
    with pytest.raises(ConnectionLost):
        queue.next(0, earlier)
    assert [queue.next(0, queue.epoch) for _ in range(4)] == [0, 1, 2, None]


def test_the_chunks_of_a_shard() -> None:
    """Shard 1 of 3 of 11 chunks: 1, 4, 7 and 10. Answers are ranges of chunks, and mean those of the share."""
    done = DoneParts()
    queue = SendQueue(manifest_of(11), Schedule(2, shard_count=3), done, Share(1, 3))
    assert queue.states.chunks == 4
    assert queue.need(0, 5) == 2
    assert queue.hold(4, 11) == [(7, 11)]
    assert sorted(taken(queue)) == [1, 4]
    for chunk_id in (1, 4, 7, 10):
        assert pin_digest(queue, chunk_id, bytes([chunk_id]) * 16)
    assert not pin_digest(queue, 4, bytes(16 * [5]))
    queue.mark_done((1, 4, 7), queue.epoch)
    assert not queue.all_done
    queue.compared(10, queue.epoch, is_equal=False)
    assert taken(queue) == [10]
    queue.mark_done((10,), queue.epoch)
    assert (queue.all_done, done.count) == (True, 1)
    assert queue.digests.root_digest() == root_digest(bytes([chunk_id]) * 16 for chunk_id in (1, 4, 7, 10))
    queue.reopen(2, 8)
    assert sorted(taken(queue)) == [4, 7]


def test_of_a_shard_under_its_final_name_all_of_the_share_is_needed_where_one_chunk_differs() -> None:
    """Shard 1 of 3 of 11 chunks: its last chunk is answered after that is known."""
    queue = SendQueue(manifest_of(11), Schedule(2, shard_count=3), Mailbox(), Share(1, 3))
    whole = range(11)
    assert queue.hold(1, 8, whole) == [(1, 8)]
    assert queue.compared(1, queue.epoch, is_equal=True, whole=whole) == (True, [])
    assert queue.compared(4, queue.epoch, is_equal=False, whole=whole) == (False, [1])
    assert sorted(taken(queue)) == [1, 4, 7]
    assert queue.hold(8, 11, whole) == []
    assert taken(queue) == [10]


def test_a_shard_without_chunks_is_done_from_the_start() -> None:
    queue = SendQueue(manifest_of(2), Schedule(2, shard_count=3), Mailbox(), Share(2, 3))
    assert (queue.states.chunks, queue.all_done) == (0, True)
    assert queue.digests.root_digest() == root_digest([])


# ---------------------------------------------------------------------------------------------------------------- zeros


def test_zeros_are_told_and_done_when_the_receiver_knows_them() -> None:
    """With the chunk that a connection took go those of the same hole that are queued, and no others."""
    queue, done = make(10)
    queue.need(0, 9)
    assert [queue.next(connection_id, 1) for connection_id in (0, 1)] == [0, 1]
    assert queue.may_be_told(0)
    assert queue.take_zeros(0, 6, 1) == [(0, 1), (2, 6)]
    assert queue.remaining == 3
    assert [queue.is_told(chunk_id) for chunk_id in range(4)] == [True, False, True, True]
    with pytest.raises(RemoteProtocolError):
        queue.zeros_arrived(0, 2)  # 1 was not told
    assert queue.zeros_arrived(2, 6) == [(2, 6)]
    assert queue.zeros_arrived(2, 6) == []
    assert queue.zeros_arrived(0, 1) == [(0, 1)]
    assert (queue.states.done_count, queue.zeros(0, 10), done.count) == (5, [(0, 1), (2, 6)], 0)


def test_a_chunk_of_a_shard_that_was_put_back_is_told_with_the_others() -> None:
    """Shard 1 of 3 of 11 chunks: its connection was lost before the next one found the hole."""
    queue = SendQueue(manifest_of(11), Schedule(2, shard_count=3), Mailbox(), Share(1, 3))
    queue.need(0, 11)
    assert [queue.next(connection_id, 1) for connection_id in (0, 1)] == [1, 4]
    queue.put_back([4], 1)
    assert queue.take_zeros(1, 11, 1) == [(1, 11)]
    assert queue.remaining == 0


def test_what_was_read_is_not_told_as_zeros() -> None:
    """Its digest may be at the receiver already: it is sent again, whatever the file system says of it now."""
    queue, _ = make(4)
    queue.need(0, 4)
    assert queue.next(0, 1) == 0
    assert pin_digest(queue, 2, b"x" * 16)
    assert not queue.may_be_told(2)
    assert queue.take_zeros(0, 4, 1) == [(0, 2), (3, 4)]
    assert queue.next(0, 1) == 2


def test_zeros_have_no_digest() -> None:
    queue, _ = make(3)
    queue.need(0, 3)
    queue.next(0, 1)
    queue.take_zeros(0, 2, 1)
    queue.zeros_arrived(0, 2)
    pin_digest(queue, 1, b"y" * 16)  # a thread that compares was reading it
    pin_digest(queue, 2, b"x" * 16)
    assert queue.root_digest() == root_digest([b"x" * 16])


def test_zeros_that_a_receiver_misses_after_finish_are_sent_again() -> None:
    queue, _ = make(3)
    queue.need(0, 3)
    queue.next(0, 1)
    queue.take_zeros(0, 3, 1)
    queue.zeros_arrived(0, 3)
    assert queue.all_done
    queue.reopen(1, 2)
    assert (queue.all_done, queue.next(0, 1), queue.zeros(0, 3)) == (False, 1, [(0, 1), (2, 3)])


def test_zeros_of_an_earlier_epoch_are_not_told() -> None:
    queue, _ = make(3)
    queue.need(0, 3)
    queue.next(0, 1)
    queue.start_over()
    assert queue.take_zeros(0, 3, 1) == []


# --- runs


def take_run(queue: SendQueue, connection_id: int = 0, most: int = 256, end: int = 1 << 20) -> range:
    first = queue.next(connection_id, queue.epoch)
    assert first is not None
    return queue.take_run(first, connection_id, queue.epoch, most=most, end=end)


def test_of_a_home_that_is_not_its_own_a_connection_takes_half() -> None:
    queue, _ = make(100)
    queue.need(0, 100)
    assert take_run(queue, most=20) == range(0, 40, 2)
    assert take_run(queue) == range(40, 100, 2)
    assert take_run(queue) == range(1, 51, 2)
    assert take_run(queue, 1) == range(51, 100, 2)
    assert queue.remaining == 0


def test_a_run_that_is_done_counts_each_chunk_once() -> None:
    queue, done = make(6)
    queue.need(0, 6)
    run = take_run(queue)
    queue.mark_done((run[1],), queue.epoch, 0)
    queue.mark_done(run, queue.epoch, 0)
    queue.mark_done(take_run(queue, 1), queue.epoch, 1)
    assert (queue.all_done, queue.states.done_count, done.count) == (True, 6, 1)


def test_a_run_ends_within_the_window_of_a_pipe() -> None:
    queue, _ = make(100)
    queue.limit_window(40)
    queue.need(0, 100)
    assert take_run(queue) == range(0, 10, 2)  # so that other connections have something to send, too
    assert take_run(queue, 1) == range(1, 11, 2)
    queue.mark_done(range(0, 10, 2), queue.epoch, 0)
    for start in range(10, 40, 10):
        assert take_run(queue) == range(start, start + 10, 2)
    assert take_run(queue) == range(40, 41)
    assert queue.next(0, queue.epoch) == 11


def test_a_run_of_an_earlier_epoch_is_one_chunk() -> None:
    queue, _ = make(100)
    queue.need(0, 100)
    first, epoch = queue.next(0, queue.epoch), queue.epoch
    queue.start_over()
    assert first == 0
    assert queue.take_run(first, 0, epoch, most=256, end=100) == range(1)
