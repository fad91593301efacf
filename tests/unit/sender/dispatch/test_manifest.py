"""Parts of a manifest: when they are full, what they carry, when they are let go."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filestreamer.wire import limits
from filestreamer.wire.codec import encode
from filestreamer.wire.messages import Entry, EntryType, Hole, ManifestPart
from sender.dispatch.manifest import Manifest, Part
from sender.dispatch.schedule import Schedule
from sender.dispatch.send_queue import SendQueue
from sender.source.item import Identity, Item
from sender.source.part_budget import PartBudget, encoded_bytes
from tests.support.manifests import item_of


def item(entry: Entry) -> Item:
    return Item(entry, b"/nowhere", Identity(1, 1, entry.size, 0, 0))


def listed(path: int, link: int, holes: int, numbers: list[int], **more: Any) -> Entry:
    """Return an entry with texts and numbers of these lengths."""
    size, mtime_ns, group = numbers
    return Entry(
        bytes(path),
        EntryType.FILE,
        size,
        0o777,
        mtime_ns,
        None,
        None,
        bytes(link),
        abs(group),
        (Hole(0, size),) * holes,
    )._replace(**more)


entries = st.builds(
    listed,
    st.sampled_from([1, 40, 255, limits.PATH_BYTES]),
    st.sampled_from([0, 127, 128, limits.PATH_BYTES]),
    st.sampled_from([0, 1, 5, limits.HOLES_PER_FILE]),
    st.lists(st.integers(0, (1 << 63) - 1), min_size=3, max_size=3),
    uid=st.one_of(st.none(), st.integers(0, (1 << 32) - 1)),
    mtime_ns=st.integers(-(1 << 63), (1 << 63) - 1),
)


@given(entries)
def test_an_entry_takes_no_more_than_is_reckoned(entry: Entry) -> None:
    alone = len(encode(ManifestPart(0, (entry,), True)))
    assert alone <= encoded_bytes(item(entry)) + 16  # those are the frame's own


@given(st.lists(entries, max_size=60))
def test_what_there_is_room_for_is_a_frame(found: list[Entry]) -> None:
    """Whatever is listed goes into parts, none of which is over the limit of a frame, in order."""
    parts: list[list[Entry]] = [[]]
    room = PartBudget()
    for entry in found:
        if not room.take(item(entry)):
            parts.append([])
            room = PartBudget()
            assert room.take(item(entry))
        parts[-1].append(entry)
    for part in parts:
        encode(ManifestPart((1 << 63) - 1, tuple(part), True))
    assert all(parts) or not found


def test_a_part_has_as_many_entries_as_the_protocol_allows() -> None:
    room = PartBudget()
    short = item(Entry(b"x", EntryType.DIRECTORY, 0, 0o755, 0))
    taken = 0
    while room.take(short):
        taken += 1
    assert 500 < taken <= limits.ENTRIES_PER_PART


def holes_of(size: int, *holes: tuple[int, int], chunk_size: int = 10) -> Part:
    entry = Entry(b"f", EntryType.FILE, size, 0o644, 0, holes=tuple(Hole(*hole) for hole in holes))
    return Part(0, 100, [item_of(3), item(entry), item_of(3)], chunk_size, last=True)


@pytest.mark.parametrize(
    ("size", "holes", "chunks"),
    [
        (40, [(0, 40)], [0, 1, 2, 3]),
        (35, [(0, 35)], [0, 1, 2, 3]),
        (35, [(10, 25)], [1, 2, 3]),
        (35, [(9, 12)], [1]),
        (35, [(11, 18)], []),
        (35, [(11, 19)], [2]),
        (35, [(30, 5)], [3]),
        (35, [(30, 4)], []),
        (40, [(0, 10), (20, 10)], [0, 2]),
    ],
)
def test_chunks_in_holes(size: int, holes: list[tuple[int, int]], chunks: list[int]) -> None:
    """Those that lie in a hole entirely, the last one to the end of the file."""
    part = holes_of(size, *holes)
    assert [101 + chunk for chunk in chunks] == list(part.hole_chunks())
    assert part.bytes == 6 + size - sum(min(10, size - chunk * 10) for chunk in chunks)


def test_a_small_file_of_holes_alone_is_carried_by_its_bundle_and_not_sent() -> None:
    part = holes_of(4, (0, 4))
    assert list(part.hole_chunks()) == []
    assert part.needs(0) is None
    assert part.needs(2) == 100
    assert [segment.file_id for segment in part.carried(100)] == [0, 2]
    assert part.bytes == 6


def test_a_bundle_is_ready_with_the_last_answer() -> None:
    part = Part(7, 3, [item_of(2), item_of(2), item_of(2)], 10, last=True)
    assert part.compares(8)
    assert not part.compares(8)
    assert (part.needs(7), part.has(9), part.has(9)) == (None, None, None)
    assert part.has(8) == 3
    assert [segment.file_id for segment in part.carried(3)] == [7]


# ---------------------------------------------------------------------------------------------------------- letting go


def two_parts() -> tuple[Manifest, SendQueue]:
    """Return a large file in the first part of two; everything is needed."""
    manifest = Manifest(10)
    queue = SendQueue(manifest, lambda: Schedule(1), lambda: None)
    queue.extend(manifest.add([item_of(50, b"large")], last=False))
    queue.extend(manifest.add([item_of(5, b"small")], last=True))
    for part in manifest.parts:
        part.is_sent = True
    queue.need(0, 5)
    return manifest, queue


def test_what_is_open_is_not_let_go() -> None:
    manifest, queue = two_parts()
    queue.mark_done(range(4), queue.epoch)
    assert manifest.let_go() == 0
    queue.mark_done((4,), queue.epoch)
    assert manifest.let_go() == 1
    assert [part.first_chunk for part in manifest.parts] == [5]
    assert manifest.let_go() == 0
    assert manifest.part_of_file(0) is None


def test_a_chunk_of_a_part_that_was_let_go_carries_nothing() -> None:
    """A large file was withdrawn while most of its chunks were waiting to be dealt: they still are."""
    manifest, queue = two_parts()
    assert queue.next(0, queue.epoch) == 0
    assert manifest.withdraw(0)
    queue.withdraw(range(5))
    manifest.told_withdrawn(0)
    assert manifest.let_go() == 1
    while (chunk_id := queue.next(0, queue.epoch)) is not None:
        assert manifest.carried(chunk_id) == []


def test_a_part_stays_until_the_receiver_was_told_what_is_withdrawn_of_it() -> None:
    """What is settled without a file is not done before somebody heard of it."""
    manifest, queue = two_parts()
    assert manifest.withdraw(0)
    assert not manifest.withdraw(0)
    queue.mark_done(range(5), queue.epoch)
    assert (manifest.is_all_told, manifest.let_go()) == (False, 0)
    manifest.told_withdrawn(0)
    assert (manifest.is_all_told, manifest.let_go()) == (True, 1)
    assert manifest.withdrawn_between(0, 10) == [
        0
    ]  # to be said again, should the connection that it was said on be lost


# -------------------------------------------------------------------------------------------------- what is withdrawn


def withdrawn_and_let_go() -> Manifest:
    """Withdraw the file of the first part, which is let go, and say so before the second part is sent."""
    manifest, queue = two_parts()
    assert manifest.withdraw(0)
    queue.withdraw(range(5))
    manifest.told_withdrawn(0)
    manifest.tell_withdrawn((0,))
    manifest.parts[-1].withdrawn_before = manifest.told
    assert manifest.let_go() == 1
    return manifest


def test_what_is_withdrawn_is_forgotten_once_the_receiver_answers_what_was_said_after_it() -> None:
    manifest = withdrawn_and_let_go()
    assert manifest.withdrawn_between(0, 2) == [0]
    manifest.hear_answer(1)
    assert manifest.withdrawn_between(0, 2) == []
    assert not manifest.withdraw(0), "a connection that reads it late has nothing to tell"


def test_an_answer_on_another_connection_proves_nothing() -> None:
    manifest = withdrawn_and_let_go()
    manifest.tell_again()
    manifest.hear_answer(1)
    assert manifest.withdrawn_between(0, 2) == [0]
    manifest.tell_withdrawn((0,))
    manifest.parts[-1].is_sent, manifest.parts[-1].withdrawn_before = True, manifest.told
    manifest.hear_answer(1)
    assert manifest.withdrawn_between(0, 2) == []


def test_what_is_withdrawn_of_a_part_that_is_here_stays() -> None:
    """Chunks are still to be dealt without it."""
    manifest, _ = two_parts()
    assert manifest.withdraw(0)
    manifest.told_withdrawn(0)
    manifest.tell_withdrawn((0,))
    manifest.parts[-1].withdrawn_before = manifest.told
    manifest.hear_answer(1)
    assert manifest.is_withdrawn(0)
    assert manifest.carried(0) == []
