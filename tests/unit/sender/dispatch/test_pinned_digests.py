"""Pinned digests: the first one of a segment is binding, and all of them make the root digest."""

from filestreamer.wire.digests import root_digest
from filestreamer.wire.limits import DIGEST_BYTES
from sender.dispatch.pinned_digests import PinnedDigests

A, B, C, D = (bytes([letter]) * DIGEST_BYTES for letter in b"abcd")


def make(chunks: int) -> PinnedDigests:
    digests = PinnedDigests()
    digests.extend(chunks)
    return digests


def test_the_first_digest_of_a_segment_is_binding() -> None:
    digests = make(2)
    assert digests.pin_segment(1, A)
    assert digests.pin_segment(1, A)
    assert not digests.pin_segment(1, B)
    assert digests.root_digest() == root_digest([A])


def test_the_first_digest_of_each_file_of_a_bundle_is_binding() -> None:
    digests = make(1)
    assert digests.pin_bundle(0, [7], [A]) == []
    assert digests.pin_bundle(0, [5, 7, 8], [B, C, D]) == [1]
    assert digests.pin_bundle(0, [5, 7, 8], [B, A, D]) == []
    digests.close_bundle(0, set())
    assert digests.root_digest() == root_digest([B, A, D])


def test_files_that_are_withdrawn_are_not_in_the_root_digest() -> None:
    digests = make(4)
    assert digests.pin_bundle(0, [1, 2], [A, B]) == []
    digests.close_bundle(0, {1})
    for ordinal in (1, 2):
        assert digests.pin_segment(ordinal, C)
    digests.leave_out(range(1, 3))
    assert digests.pin_segment(1, C), "a connection was reading it when it was withdrawn"
    assert digests.pin_segment(3, D)
    assert digests.root_digest() == root_digest([B, D])


def test_a_file_that_is_accepted_unread_after_it_was_sent_is_not_in_the_root_digest() -> None:
    digests = make(2)
    assert digests.pin_bundle(0, [0], [A]) == []
    digests.close_bundle(0, set())
    assert digests.pin_segment(1, B)
    digests.leave_out(range(1))
    digests.leave_nothing_out()
    digests.leave_out(range(1))
    assert digests.root_digest() == root_digest([B])


def test_a_bundle_without_files_that_are_left_has_no_digest() -> None:
    digests = make(1)
    assert digests.pin_bundle(0, [1], [A]) == []
    digests.close_bundle(0, {1})
    assert digests.root_digest() == root_digest([])


def test_the_bundle_of_a_single_file_stays_binding_after_it_was_done() -> None:
    digests = make(1)
    assert digests.pin_bundle(0, [0], [A]) == []
    digests.close_bundle(0, set())
    assert digests.pin_bundle(0, [0], [A]) == []
    assert digests.pin_bundle(0, [0], [B]) == [0]
