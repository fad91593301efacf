"""The states of chunks at the receiver, by example: one line of the table each."""

import pytest

from filestreamer.wire.errors import RemoteProtocolError
from filestreamer.wire.grid import Grid
from receiver.disk.staging.ledger import UNKNOWN_DIGEST, Claims
from receiver.file.chunk_states import ChunkStates, Delivery
from receiver.file.states import CLAIMED, FREE, HELD, VERIFIED, WRITING

D1, D2 = b"1" * 16, b"2" * 16


class Connection:
    """A writer, compared by identity."""

    def stop(self, seconds: float) -> bool:
        return seconds >= 0


A, B = Connection(), Connection()


def chunk_states(segments: int = 3, claims: dict[int, bytes] | None = None) -> ChunkStates:
    grid = Grid(segments * 10 - 5, 10)
    return ChunkStates(grid, Claims.of(grid, (claims or {}).items()))


def test_at_first_all_is_free() -> None:
    made = chunk_states(3)
    assert list(made.runs(FREE)) == [(0, 3)]
    assert (made.has_writers, made.held_bytes()) == (False, 0)


def test_an_empty_file_has_no_chunks() -> None:
    made = ChunkStates(Grid(0, 10))
    assert (list(made.runs(FREE)), b"".join(made.digests())) == ([], b"")


def test_written_and_right() -> None:
    made = chunk_states()
    assert made.begin(1, A) is Delivery.WRITE
    assert (made.state(1), made.writer(1), made.has_writers) == (WRITING, A, True)
    assert made.deliver(1, A, D1, D1)
    assert (made.state(1), made.writer(1), made.digest(1), made.has_writers) == (VERIFIED, None, D1, False)


def test_written_and_wrong() -> None:
    made = chunk_states()
    made.begin(1, A)
    assert not made.deliver(1, A, D1, D2)
    assert (made.state(1), made.writer(1), made.has_writers) == (FREE, None, False)
    assert made.begin(1, B) is Delivery.WRITE


def test_a_connection_that_ends_leaves_its_chunks_free() -> None:
    made = chunk_states()
    made.begin(0, A)
    made.begin(1, B)
    made.begin(2, A)
    made.detach(A)
    assert [made.state(index) for index in range(3)] == [FREE, WRITING, FREE]
    made.detach(A)
    assert made.deliver(1, B, D1, D1)


def test_a_verified_chunk_is_only_compared() -> None:
    made = chunk_states()
    made.begin(0, A)
    made.deliver(0, A, D1, D1)
    assert made.begin(0, B) is Delivery.COMPARE
    assert made.begin(0, A) is Delivery.COMPARE
    assert made.deliver(0, B, D1, D1)
    assert not made.deliver(0, B, D2, D2), "another content"
    assert not made.deliver(0, B, D1, D2), "damaged on its way"
    assert not made.deliver(0, B, D2, D1), "told another digest than it has"
    assert (made.state(0), made.digest(0)) == (VERIFIED, D1)


def test_a_chunk_that_another_one_writes_has_to_wait() -> None:
    made = chunk_states()
    made.begin(0, A)
    assert made.begin(0, B) is Delivery.WAIT
    assert made.writer(0) is A
    made.detach(A)
    assert made.begin(0, B) is Delivery.WRITE


def test_the_older_one_may_verify_while_the_newer_one_waits() -> None:
    made = chunk_states()
    made.begin(0, A)
    assert made.begin(0, B) is Delivery.WAIT
    made.deliver(0, A, D1, D1)
    assert made.begin(0, B) is Delivery.COMPARE


def test_a_segment_twice_in_a_chunk() -> None:
    made = chunk_states()
    made.begin(0, A)
    with pytest.raises(RemoteProtocolError, match="a chunk has segment 0 twice"):
        made.begin(0, A)


@pytest.mark.parametrize("says", [D1, UNKNOWN_DIGEST], ids=["known", "unknown"])
def test_claimed_then_held(says: bytes) -> None:
    """The disk is what the ledger says, or the ledger did not say: what counts is what was hashed."""
    made = chunk_states(claims={1: says})
    assert (made.state(1), made.held_bytes()) == (CLAIMED, 0)
    made.rehashed(1, D1)
    assert (made.state(1), made.digest(1), made.held_bytes()) == (HELD, D1, 10)


def test_the_last_chunk_counts_its_own_bytes() -> None:
    made = chunk_states(claims={2: D1})
    made.rehashed(2, D1)
    assert made.held_bytes() == 5


def test_claimed_and_not_there_after_all() -> None:
    made = chunk_states(claims={1: D1})
    made.rehashed(1, D2)
    assert (made.state(1), made.held_bytes()) == (FREE, 0)


def test_claimed_and_sent_before_it_was_re_hashed() -> None:
    """It is written like a free one, and what the re-hashing saw of it meanwhile counts no more."""
    made = chunk_states(claims={1: D1})
    assert made.begin(1, A) is Delivery.WRITE
    made.rehashed(1, D1)
    assert made.state(1) == WRITING
    assert made.deliver(1, A, D2, D2)
    made.rehashed(1, D1)
    assert (made.state(1), made.digest(1)) == (VERIFIED, D2)


def test_claimed_and_lost_while_it_was_written_over() -> None:
    """Half of it may be the new content: it is free, and what was read of it before does not make it held."""
    made = chunk_states(claims={1: D1})
    made.begin(1, A)
    made.detach(A)
    made.rehashed(1, D1)
    assert made.state(1) == FREE


def test_held_and_different() -> None:
    """The sender's digest is another one: it is written, and open again until it is right."""
    made = chunk_states(claims={1: D1})
    made.rehashed(1, D1)
    assert made.begin(1, A) is Delivery.WRITE
    assert (made.state(1), made.held_bytes()) == (WRITING, 0)
    assert made.deliver(1, A, D2, D2)
    assert (made.state(1), made.digest(1)) == (VERIFIED, D2)


def test_held_and_lost_while_it_was_written_over() -> None:
    """What was held is no more: bytes may have been written."""
    made = chunk_states(claims={1: D1})
    made.rehashed(1, D1)
    made.begin(1, A)
    made.detach(A)
    assert (made.state(1), made.held_bytes()) == (FREE, 0)


def test_hashing_that_comes_too_late_changes_nothing() -> None:
    """Re-hashing says something of CLAIMED chunks only."""
    made = chunk_states(4, {2: D1})
    made.begin(0, A)
    made.begin(1, A)
    made.deliver(1, A, D1, D1)
    made.rehashed(2, D1)
    for index in range(4):
        made.rehashed(index, D2)
    assert [made.state(index) for index in range(4)] == [WRITING, VERIFIED, HELD, FREE]
    assert [made.digest(1), made.digest(2)] == [D1, D1]


def test_runs_are_in_order_and_joined() -> None:
    made = chunk_states(7)
    for index in (0, 1, 4, 6):
        made.begin(index, A)
        made.deliver(index, A, D1, D1)
    made.begin(5, A)
    assert list(made.runs(VERIFIED)) == [(0, 2), (4, 5), (6, 7)]
    assert list(made.runs(FREE)) == [(2, 4)]
    assert list(made.runs(FREE, WRITING)) == [(2, 4), (5, 6)]
    assert list(made.runs(VERIFIED, WRITING, FREE)) == [(0, 7)]
    assert list(made.runs(HELD)) == []


def test_all_digests_in_order() -> None:
    made = chunk_states(2)
    made.begin(1, A)
    made.deliver(1, A, D2, D2)
    made.begin(0, B)
    made.deliver(0, B, D1, D1)
    assert b"".join(made.digests()) == D1 + D2
    assert all(view.readonly for view in made.digests())
