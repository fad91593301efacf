"""Large files whose ctime moves while they are sent: what has to be read again, and which chunk waits for that."""

from filestreamer.wire.messages import Entry, EntryType
from sender.dispatch.moved_files import MovedFiles
from sender.source.item import Identity, Item

LISTED = Identity(1, 2, 3, 4, ctime_ns=5)
LATER = LISTED._replace(ctime_ns=6)
LATEST = LISTED._replace(ctime_ns=7)
ITEM = Item(Entry(b"f", EntryType.FILE, 3, 0, 4), b"f", LISTED)
FILE = 9


def moved_once() -> MovedFiles:
    """Return a file whose chunk 1 was read as it was listed, and whose chunk 2 after it moved."""
    moved = MovedFiles()
    assert moved.saw(FILE, ITEM, LISTED, 1) == (False, False)
    assert moved.saw(FILE, ITEM, LATER, 2) == (True, True)
    return moved


def read_again(moved: MovedFiles, seen: Identity = LATER) -> list[tuple[int, int]] | None:
    version = moved.begin_pass(FILE, seen)
    assert version is not None
    return moved.end_pass(FILE, version)


def test_one_chunk_is_held_back_until_the_file_was_read_again() -> None:
    moved = moved_once()
    assert moved.saw(FILE, ITEM, LATER, 3) == (False, False)  # of the version that the others are compared with
    assert not moved.rejected(2, epoch=4)
    assert read_again(moved) == [(2, 4)]
    assert moved.is_settled
    assert moved.saw(FILE, ITEM, LATER, 2) == (False, False)


def test_a_chunk_that_is_rejected_after_that_is_queued_at_once() -> None:
    moved = moved_once()
    assert read_again(moved) == []
    assert moved.rejected(2, epoch=4)
    assert MovedFiles().rejected(2, epoch=4)


def test_a_held_chunk_that_is_sent_again_is_held_back_again() -> None:
    """Its connection was lost: otherwise the file could be completed before it is compared."""
    moved = moved_once()
    assert moved.saw(FILE, ITEM, LATER, 2) == (False, True)


def test_a_segment_of_the_version_before_that_is_pinned_late_is_read_again_too() -> None:
    moved = moved_once()
    version = moved.begin_pass(FILE, LATER)
    assert version is not None
    assert moved.saw(FILE, ITEM, LISTED, 7) == (False, True)
    assert moved.end_pass(FILE, version) is None
    assert read_again(moved) == []


def test_a_file_that_moves_while_it_is_read_again_is_read_once_more() -> None:
    moved = moved_once()
    version = moved.begin_pass(FILE, LATER)
    assert version is not None
    assert moved.saw(FILE, ITEM, LATEST, 3) == (False, True)
    assert moved.end_pass(FILE, version) is None
    assert read_again(moved, LATEST) == []
    assert moved.is_settled


def test_a_pass_that_finds_the_file_moved_covers_what_was_read_before() -> None:
    moved = moved_once()
    version = moved.begin_pass(FILE, LATEST)
    assert version is not None
    assert moved.saw(FILE, ITEM, LATER, 3) == (False, True)  # pinned after the pass began
    assert moved.end_pass(FILE, version) is None


def test_a_settled_file_that_moves_again() -> None:
    moved = moved_once()
    assert read_again(moved) == []
    assert moved.saw(FILE, ITEM, LATEST, 3) == (True, True)


def test_a_file_that_moved_is_not_settled() -> None:
    assert not moved_once().is_settled


def test_inode_numbers_that_come_and_go_are_a_reason_to_read_a_file_again_once() -> None:
    other = LISTED._replace(inode=77)
    moved = MovedFiles()
    assert moved.saw(FILE, ITEM, other, 1) == (True, True)
    assert read_again(moved, other) == []
    for seen in (LISTED, other, LISTED._replace(inode=78)):
        assert moved.saw(FILE, ITEM, seen, 2) == (False, False)
    assert moved.saw(FILE, ITEM, LATER._replace(inode=79), 2) == (True, True)


def test_a_withdrawn_file_is_not_read_again() -> None:
    moved = moved_once()
    version = moved.begin_pass(FILE, LATER)
    assert version is not None
    moved.forget(FILE)
    assert moved.is_settled
    assert moved.begin_pass(FILE, LATER) is None
    assert moved.end_pass(FILE, version) == []


def test_another_name_of_a_file_has_nothing_to_be_read() -> None:
    assert MovedFiles().saw(FILE, ITEM._replace(identity=None), LATER, 1) == (False, False)
