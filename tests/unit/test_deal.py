"""The account of what is answered, dealt and settled."""

import threading

import pytest

from sender.deal import Deal
from sender.schedule import Schedule
from service.counters import ConnectionCounters
from tests.support.manifests import manifest_of
from tests.support.services import UNIT
from wire import limits
from wire.digests import root_digest
from wire.errors import Code, ConnectionLost, TransferFailed
from wire.grid import Share
from wire.messages import Segment


class Settled:
    """Counts the calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1


def make(chunks: int, connections: int = 2, *, strict_modulo: bool = False) -> tuple[Deal, Settled]:
    settled = Settled()
    return Deal(manifest_of(chunks), lambda: Schedule(connections, strict_modulo=strict_modulo), settled), settled


def bind(deal: Deal, chunk_id: int, digest: bytes) -> bool:
    return not deal.bind(chunk_id, [Segment(0, chunk_id, 1)], [digest])


def dealt(deal: Deal, connection_id: int = 0) -> list[int]:
    chunk_ids = []
    while (chunk_id := deal.next(connection_id, deal.epoch)) is not None:
        chunk_ids.append(chunk_id)
    return chunk_ids


def test_only_what_was_answered_is_dealt() -> None:
    deal, _ = make(10)
    assert deal.next(0, deal.epoch) is None
    assert deal.need(2, 5) == 3
    assert sorted(dealt(deal)) == [2, 3, 4]


def test_an_answer_that_was_given_before_changes_nothing() -> None:
    deal, _ = make(10)
    deal.need(2, 5)
    assert sorted(dealt(deal)) == [2, 3, 4]
    assert deal.need(0, 10) == 7
    assert sorted(dealt(deal)) == [0, 1, 5, 6, 7, 8, 9]
    assert deal.need(0, 10) == 0


def test_held_is_told_in_ranges_that_were_not_answered() -> None:
    deal, _ = make(10)
    deal.need(3, 5)
    assert deal.hold(0, 10) == [(0, 3), (5, 10)]
    assert deal.hold(0, 10) == []


def test_settled_when_all_are_answered_and_acknowledged() -> None:
    deal, settled = make(3)
    deal.need(0, 2)
    dealt(deal)
    deal.settle((0, 1), deal.epoch)
    assert (deal.all_settled, settled.calls) == (False, 0)
    deal.hold(2, 3)
    deal.settle((2,), deal.epoch)
    assert (deal.all_settled, settled.calls) == (True, 1)


def test_nothing_to_send_is_settled_at_once() -> None:
    deal, _ = make(0)
    assert deal.all_settled
    assert deal.root_digest() == root_digest([])


def test_settling_twice_counts_once() -> None:
    deal, _ = make(2)
    deal.need(0, 2)
    deal.settle((0,), deal.epoch)
    deal.settle((0,), deal.epoch)
    assert not deal.all_settled


def test_held_that_differs_is_dealt() -> None:
    deal, _ = make(2)
    deal.hold(0, 2)
    deal.compared(1, deal.epoch, is_equal=False)
    deal.settle((0,), deal.epoch)
    assert dealt(deal) == [1]
    assert not deal.all_settled


def test_lost_chunks_are_dealt_again() -> None:
    deal, _ = make(4)
    deal.need(0, 4)
    assert len(dealt(deal)) == 4
    deal.put_back([3, 1], deal.epoch)
    assert sorted(dealt(deal)) == [1, 3]


def test_needed_after_all_is_dealt_again() -> None:
    """In answer to Finish: whatever was believed of them."""
    deal, settled = make(3)
    deal.need(0, 3)
    dealt(deal)
    deal.settle(range(3), deal.epoch)
    deal.reopen(1, 3)
    assert not deal.all_settled
    assert sorted(dealt(deal)) == [1, 2]
    deal.settle((1, 2), deal.epoch)
    assert (deal.all_settled, settled.calls) == (True, 2)


def test_damaged_chunks_are_dealt_again_until_it_is_enough() -> None:
    deal, _ = make(1)
    deal.need(0, 1)
    for _ in range(limits.SENDS_PER_CHUNK - 1):
        assert deal.next(0, deal.epoch) == 0
        deal.mismatch(0, ConnectionCounters(7), deal.epoch)
    assert deal.next(0, deal.epoch) == 0
    with pytest.raises(TransferFailed, match="chunk 0 arrived damaged 4 times over connection 7") as caught:
        deal.mismatch(0, ConnectionCounters(7), deal.epoch)
    assert caught.value.code is Code.DIGEST


def test_another_incarnation_answers_anew() -> None:
    """What the old one acknowledged, and what connections to it lost, counts no more; digests stay binding."""
    deal, settled = make(3)
    deal.need(0, 3)
    dealt(deal)
    old = deal.epoch
    assert bind(deal, 0, b"a" * 16)
    deal.settle((0, 1), old)
    deal.start_over()
    deal.settle((2,), old)
    deal.put_back([1], old)
    deal.compared(0, old, is_equal=False)
    assert (deal.all_settled, settled.calls, deal.next(0, deal.epoch)) == (False, 0, None)
    assert deal.need(0, 3) == 3
    assert sorted(dealt(deal)) == [0, 1, 2]
    assert not bind(deal, 0, b"b" * 16)
    assert bind(deal, 0, b"a" * 16)


def test_the_first_digest_is_binding() -> None:
    deal, _ = make(2)
    assert (bind(deal, 1, b"x" * 16), bind(deal, 1, b"x" * 16), bind(deal, 1, b"y" * 16)) == (True, True, False)
    assert bind(deal, 0, b"w" * 16)
    assert deal.root_digest() == root_digest([b"w" * 16, b"x" * 16])


def test_the_first_failure_counts() -> None:
    deal, _ = make(1)
    deal.fail(ConnectionLost("first"))
    deal.fail(ConnectionLost("second"))
    with pytest.raises(ConnectionLost, match="first"):
        deal.next(0, deal.epoch)
    assert (deal.is_over, deal.is_complete) == (True, False)


def test_completing_ends_the_waiting() -> None:
    deal, _ = make(1)
    deal.complete()
    assert deal.next(0, deal.epoch, wait_seconds=100 * UNIT) is None
    assert (deal.is_over, deal.is_complete, deal.wait_over(0)) == (True, True, True)


@pytest.mark.parametrize("how", ["need", "put_back", "complete", "fail"])
def test_whoever_waits_is_woken(how: str) -> None:
    deal, _ = make(2)
    got: list[object] = []

    def wait() -> None:
        try:
            got.append(deal.next(0, deal.epoch, wait_seconds=100 * UNIT))
        except ConnectionLost as error:
            got.append(str(error))

    if how == "put_back":
        deal.need(0, 1)
        assert deal.next(1, deal.epoch) == 0
    thread = threading.Thread(target=wait)
    thread.start()
    if how == "need":
        deal.need(0, 1)
    elif how == "put_back":
        deal.put_back([0], deal.epoch)
    elif how == "complete":
        deal.complete()
    else:
        deal.fail(ConnectionLost("over"))
    thread.join(2 * UNIT)
    assert not thread.is_alive()
    assert got == {"need": [0], "put_back": [0], "complete": [None], "fail": ["over"]}[how]


def test_which_connections_to_start() -> None:
    """As many as there are chunks that are, or may be, needed; those whose home has some come first."""
    deal, _ = make(8, connections=4)
    assert deal.wanted_connections(set()) == [0, 1, 2, 3]
    deal.need(3, 5)
    assert deal.wanted_connections(set()) == [0, 3, 1, 2]
    deal.hold(0, 3)
    deal.hold(5, 8)
    assert deal.wanted_connections(set()) == [0, 3]
    assert deal.wanted_connections({3}) == [0]


def test_all_connections_are_started_where_all_is_needed() -> None:
    deal, _ = make(8, connections=4)
    deal.need(0, 8)
    assert deal.wanted_connections({0, 3}) == [1, 2]
    assert deal.wanted_connections({0, 1, 2, 3}) == []


def test_which_connections_to_start_for_a_strict_modulo() -> None:
    deal, _ = make(9, connections=4, strict_modulo=True)
    for home in range(3):
        deal.need(4 * home, 4 * home + 1)
        deal.hold(4 * home + 1, min(4 * home + 4, 9))
    assert deal.wanted_connections(set()) == [0]


def test_fewer_connections_dismiss_those_beyond_and_more_of_them_are_wanted_again() -> None:
    deal, _ = make(16, connections=4)
    deal.need(0, 16)
    assert deal.next(3, deal.epoch) == 3
    deal.resize(2)
    assert [deal.dismisses(connection_id) for connection_id in range(4)] == [False, False, True, True]
    assert deal.next(3, deal.epoch) is None
    assert (deal.undealt, deal.wanted_connections({0, 1})) == (15, [])
    deal.resize(4)
    assert deal.wanted_connections({0, 1}) == [2, 3]
    deal.put_back([3], deal.epoch)
    assert deal.next(3, deal.epoch) == 3


def test_all_are_dismissed_when_it_is_complete() -> None:
    deal, _ = make(0)
    assert not deal.dismisses(0)
    deal.complete()
    assert deal.dismisses(0)


def test_who_waits_for_a_chunk_of_its_home_gets_it_when_there_are_more_connections() -> None:
    deal, _ = make(8, strict_modulo=True)
    deal.need(2, 3)
    deal.resize(4)
    assert deal.next(0, deal.epoch) is None
    assert deal.next(2, deal.epoch) == 2


def test_a_connection_of_an_earlier_epoch_is_dealt_nothing() -> None:
    """A chunk that it took from the new schedule, and could not put back into it, would be lost."""
    deal = Deal(manifest_of(3), lambda: Schedule(1), lambda: None)
    earlier = deal.epoch
    deal.need(0, 3)
    deal.start_over()
    deal.need(0, 3)
    with pytest.raises(ConnectionLost):
        deal.next(0, earlier)
    assert [deal.next(0, deal.epoch) for _ in range(4)] == [0, 1, 2, None]


def test_the_chunks_of_a_shard() -> None:
    """Shard 1 of 3 of 11 chunks: 1, 4, 7 and 10. Answers are ranges of chunks, and mean those of the share."""
    settled = Settled()
    deal = Deal(manifest_of(11), lambda: Schedule(2, shard_count=3), settled, Share(1, 3))
    assert deal.chunks == 4
    assert deal.need(0, 5) == 2
    assert deal.hold(4, 11) == [(7, 11)]
    assert sorted(dealt(deal)) == [1, 4]
    for chunk_id in (1, 4, 7, 10):
        assert bind(deal, chunk_id, bytes([chunk_id]) * 16)
    assert not bind(deal, 4, bytes(16 * [5]))
    deal.settle((1, 4, 7), deal.epoch)
    assert not deal.all_settled
    deal.compared(10, deal.epoch, is_equal=False)
    assert dealt(deal) == [10]
    deal.settle((10,), deal.epoch)
    assert (deal.all_settled, settled.calls) == (True, 1)
    assert deal.root_digest() == root_digest(bytes([chunk_id]) * 16 for chunk_id in (1, 4, 7, 10))
    deal.reopen(2, 8)
    assert sorted(dealt(deal)) == [4, 7]


def test_a_shard_without_chunks_is_settled_from_the_start() -> None:
    deal = Deal(manifest_of(2), lambda: Schedule(2, shard_count=3), lambda: None, Share(2, 3))
    assert (deal.chunks, deal.all_settled) == (0, True)
    assert deal.root_digest() == root_digest([])
