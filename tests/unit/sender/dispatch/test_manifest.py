"""The parts of a manifest: when they are dropped, and what is known of files that are withdrawn."""

from filestreamer.wire.errors import Code
from filestreamer.wire.messages import SkipKind
from sender.dispatch.manifest import Manifest
from sender.dispatch.schedule import Schedule
from sender.dispatch.send_queue import SendQueue
from sender.mailbox import Mailbox
from sender.source.item import Unsendable
from tests.support.manifests import item_of

GONE = Unsendable(Code.SOURCE_CHANGED, "it is gone", SkipKind.VANISHED, "it is gone")

# ------------------------------------------------------------------------------------------------------------ dropping


def two_parts() -> tuple[Manifest, SendQueue]:
    """Return a large file in the first part of two; everything is needed."""
    manifest = Manifest(10)
    queue = SendQueue(manifest, Schedule(1), Mailbox())
    queue.extend(manifest.add([item_of(50, b"large")], last=False))
    queue.extend(manifest.add([item_of(5, b"small")], last=True))
    for part in manifest.parts:
        part.is_sent = True
    queue.need(0, 5)
    return manifest, queue


def test_an_open_part_is_not_dropped() -> None:
    manifest, queue = two_parts()
    queue.mark_done(range(4), queue.epoch)
    assert manifest.drop_done_parts() == 0
    queue.mark_done((4,), queue.epoch)
    assert manifest.drop_done_parts() == 1
    assert [part.first_chunk for part in manifest.parts] == [5]
    assert manifest.drop_done_parts() == 0
    assert manifest.part_of_file(0) is None


def test_a_manifest_of_nothing_is_not_a_single_file() -> None:
    """A receiver may answer before the first part was listed."""
    manifest = Manifest(10)
    assert not manifest.is_single
    manifest.add([], last=True)
    assert not manifest.is_single


def test_a_chunk_of_a_part_that_was_dropped_carries_nothing() -> None:
    """A large file was withdrawn while most of its chunks were queued: they still are."""
    manifest, queue = two_parts()
    assert queue.next(0, queue.epoch) == 0
    assert manifest.withdraw(0, GONE)
    queue.withdraw(range(5))
    manifest.withdrawn.take(0)
    assert manifest.drop_done_parts() == 1
    while (chunk_id := queue.next(0, queue.epoch)) is not None:
        assert manifest.carried(chunk_id) == []


def test_a_part_stays_until_the_receiver_was_told_what_is_withdrawn_of_it() -> None:
    """A part whose chunks are done is not done with before the coordinator has taken in that a file is withdrawn."""
    manifest, queue = two_parts()
    assert manifest.withdraw(0, GONE)
    assert not manifest.withdraw(0, GONE)
    queue.mark_done(range(5), queue.epoch)
    assert (manifest.withdrawn.is_all_taken, manifest.drop_done_parts()) == (False, 0)
    manifest.withdrawn.take(0)
    assert (manifest.withdrawn.is_all_taken, manifest.drop_done_parts()) == (True, 1)
    assert manifest.withdrawn.between(0, 10) == [
        0
    ]  # to be said again, should the connection that it was said on be lost


# ------------------------------------------------------------------------------------------------------ withdrawn files


def withdrawn_and_dropped() -> Manifest:
    """Withdraw the file of the first part, which is dropped, and say so before the second part is sent."""
    manifest, queue = two_parts()
    assert manifest.withdraw(0, GONE)
    queue.withdraw(range(5))
    manifest.withdrawn.take(0)
    manifest.withdrawn.said((0,))
    manifest.parts[-1].withdrawn_before = manifest.withdrawn.said_count
    assert manifest.drop_done_parts() == 1
    return manifest


def test_what_is_withdrawn_is_forgotten_once_the_receiver_answers_what_was_said_after_it() -> None:
    manifest = withdrawn_and_dropped()
    assert manifest.withdrawn.between(0, 2) == [0]
    manifest.take_answer(1)
    assert manifest.withdrawn.between(0, 2) == []
    assert not manifest.withdraw(0, GONE), "a connection that reads it later has nothing to say"


def test_an_answer_on_another_connection_proves_nothing() -> None:
    manifest = withdrawn_and_dropped()
    manifest.begin_offer()
    manifest.take_answer(1)
    assert manifest.withdrawn.between(0, 2) == [0]
    manifest.withdrawn.said((0,))
    manifest.parts[-1].is_sent, manifest.parts[-1].withdrawn_before = True, manifest.withdrawn.said_count
    manifest.take_answer(1)
    assert manifest.withdrawn.between(0, 2) == []


def test_what_is_withdrawn_of_a_part_that_is_here_stays() -> None:
    """Chunks are still to be sent without it."""
    manifest, _ = two_parts()
    assert manifest.withdraw(0, GONE)
    manifest.withdrawn.take(0)
    manifest.withdrawn.said((0,))
    manifest.parts[-1].withdrawn_before = manifest.withdrawn.said_count
    manifest.take_answer(1)
    assert 0 in manifest.withdrawn
    assert manifest.carried(0) == []
