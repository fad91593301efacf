"""What a receiver's answers mean, and which of them it may not give."""

import pytest

from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import messages as m
from filestreamer.wire.digests import segment_digest
from filestreamer.wire.errors import Code, RemoteProtocolError
from filestreamer.wire.limits import DIGEST_BYTES
from sender.dispatch.answers import Answers
from sender.dispatch.manifest import Manifest
from sender.dispatch.schedule import Schedule
from sender.dispatch.send_queue import SendQueue
from sender.dispatch.verify import FILES_AT_ONCE, Compared, Held, HeldFiles, Verifier
from sender.mailbox import Mailbox
from sender.source.item import Item, Unsendable
from tests.support.manifests import item_of

GONE = Unsendable(Code.SOURCE_CHANGED, "it is gone", m.SkipKind.VANISHED, "it is gone")


class Discard(Verifier):
    """Notes what is to be compared, and compares nothing."""

    def __init__(self) -> None:
        self.held: list[Held] = []
        self.files: list[HeldFiles] = []

    def compare(self, held: Held | HeldFiles) -> None:
        if isinstance(held, Held):
            self.held.append(held)
        else:
            self.files.append(held)

    def told(self) -> list[tuple[int, bytes]]:
        """Return the files that are to be compared, each with what the receiver says of it."""
        return [told for files in self.files for told in files.digests]

    def forget(self, file_id: int) -> None:
        pass


SMALL, EMPTY, ALSO_SMALL, LARGE, OTHER, LINK = range(6)
BUNDLE = 0
LARGE_CHUNKS = range(1, 6)
OTHER_CHUNKS = range(6, 10)


class Asker:
    """A sender of a few files, in chunks of 10 bytes; two parts."""

    def __init__(self) -> None:
        self.manifest = Manifest(10)
        self.queue = SendQueue(self.manifest, Schedule(1), Mailbox())
        self.verifier = Discard()
        self.counters = TransferCounters(bytes(16), "x")
        self.answers = Answers(self.manifest, self.queue, self.verifier, self.counters)
        other = item_of(40, b"other")
        link = item_of(5, b"link")._replace(identity=None)
        self.add(item_of(4, b"small"), item_of(0, b"empty"), item_of(4, b"also small"), item_of(45, b"large"))
        self.add(other, link)
        self.counters.size_bytes = sum(part.bytes for part in self.manifest.parts)

    def add(self, *items: Item) -> None:
        self.queue.extend(self.manifest.add(items, last=False))

    def taken(self) -> list[int]:
        """Take what is queued by now."""
        chunk_ids = []
        while (chunk_id := self.queue.next(0, self.queue.epoch)) is not None:
            chunk_ids.append(chunk_id)
        return sorted(chunk_ids)

    def compared(self, *, equal: tuple[int, ...] = (), different: tuple[int, ...] = (), epoch: int = 0) -> None:
        """Have small files of the first part compared."""
        (part, _) = self.manifest.parts
        self.answers.compared(Compared(part, list(equal), list(different), self.queue.epoch + epoch))

    def carried(self, chunk_id: int) -> list[int]:
        return [segment.file_id for segment, _ in self.manifest.carried(chunk_id)]


@pytest.fixture
def asker() -> Asker:
    return Asker()


def needed(*files: tuple[int, int]) -> m.Needed:
    return m.Needed(tuple(m.FileRange(*each) for each in files), ())


def segments(file_id: int, first: int, count: int) -> m.Needed:
    return m.Needed((), (m.SegmentRange(file_id, first, count),))


def unchecked(*files: tuple[int, int]) -> m.Held:
    return m.Held(files[0][0], 0, b"", tuple(m.FileRange(*each) for each in files))


def held(file_id: int, first: int, *contents: bytes, final: bool = False) -> m.Held:
    return m.Held(file_id, first, b"".join(map(segment_digest, contents)), (), final)


def held_files(*files: tuple[int, int]) -> m.Held:
    """Return the answer for whole files, whose digests are those of their numbers."""
    ids = [file_id for first, count in files for file_id in range(first, first + count)]
    digests = b"".join(segment_digest(b"%d" % file_id) for file_id in ids)
    return m.Held(0, 0, digests, files=tuple(m.FileRange(*each) for each in files))


# ------------------------------------------------------------------------------------------------------- what they mean


def test_a_range_of_files_is_everything_in_it(asker: Asker) -> None:
    asker.answers.need(needed((0, 6)))
    assert asker.taken() == [BUNDLE, *LARGE_CHUNKS, *OTHER_CHUNKS]
    assert asker.carried(BUNDLE) == [SMALL, ALSO_SMALL]


def test_a_bundle_waits_for_each_of_its_files(asker: Asker) -> None:
    asker.answers.need(needed((SMALL, 1)))
    assert asker.taken() == []
    asker.answers.hold(unchecked((ALSO_SMALL, 1)))
    assert asker.taken() == [BUNDLE]
    assert asker.carried(BUNDLE) == [SMALL]
    assert asker.counters.unchecked_bytes == 4


def test_a_bundle_of_what_is_there_is_done(asker: Asker) -> None:
    asker.answers.hold(unchecked((SMALL, 3)))
    assert asker.taken() == []
    assert asker.queue.states.chunk_map.held[BUNDLE] == 1


def test_a_bundle_of_what_is_withdrawn_or_there_is_done(asker: Asker) -> None:
    """The file that was needed is withdrawn before the other one is answered."""
    asker.answers.need(needed((SMALL, 1)))
    asker.manifest.withdraw(SMALL, GONE)
    asker.answers.withdraw(SMALL)
    asker.answers.hold(unchecked((ALSO_SMALL, 1)))
    assert asker.taken() == []
    assert asker.queue.states.is_done(BUNDLE)


def test_a_small_file_is_compared_before_its_bundle_is_queued(asker: Asker) -> None:
    asker.answers.hold(held(SMALL, 0, b"held", final=True))
    asker.answers.need(needed((ALSO_SMALL, 1)))
    assert asker.taken() == []
    assert asker.verifier.told() == [(SMALL, segment_digest(b"held"))]
    asker.compared(equal=(SMALL,))
    assert asker.taken() == [BUNDLE]
    assert asker.carried(BUNDLE) == [ALSO_SMALL]


def test_small_files_are_compared_together(asker: Asker) -> None:
    """Those that are answered already are not, nor does an old result count."""
    asker.answers.need(needed((SMALL, 1)))
    asker.answers.hold(held_files((SMALL, 1), (ALSO_SMALL, 1)))
    assert asker.verifier.told() == [(ALSO_SMALL, segment_digest(b"%d" % ALSO_SMALL))]
    asker.compared(equal=(ALSO_SMALL,), epoch=-1)
    assert asker.taken() == []
    asker.compared(different=(ALSO_SMALL,))
    assert asker.taken() == [BUNDLE]
    assert asker.carried(BUNDLE) == [SMALL, ALSO_SMALL]


def test_many_small_files_are_compared_by_several_threads(asker: Asker) -> None:
    first, count = 6, 2 * FILES_AT_ONCE + 1
    asker.add(*[item_of(4, b"%d" % number) for number in range(count)])
    asker.answers.hold(held_files((first, count)))
    assert [len(files.digests) for files in asker.verifier.files] == [FILES_AT_ONCE, FILES_AT_ONCE, 1]
    assert asker.verifier.told() == [(i, segment_digest(b"%d" % i)) for i in range(first, first + count)]


def test_small_files_of_two_parts_are_compared_with_their_own_digests(asker: Asker) -> None:
    """The one that is answered is in a part that was dropped."""
    asker.answers.hold(unchecked((0, 6)))
    asker.add(item_of(4, b"one"))
    asker.add(item_of(4, b"two"))
    for part in asker.manifest.parts[:2]:
        part.is_sent = True
    assert asker.manifest.drop_done_parts() == 2
    asker.answers.hold(held_files((SMALL, 1), (6, 2)))
    assert asker.verifier.told() == [(i, segment_digest(b"%d" % i)) for i in (6, 7)]
    assert [files.part.first_file_id for files in asker.verifier.files] == [6, 7]


def test_answering_again_changes_nothing(asker: Asker) -> None:
    asker.answers.need(needed((0, 6)))
    asker.taken()
    asker.answers.need(needed((0, 6)))
    asker.answers.hold(unchecked((0, 6)))
    asker.answers.hold(held(SMALL, 0, b"held"))
    asker.answers.hold(held(LARGE, 0, b"held"))
    assert asker.taken() == []
    assert (asker.verifier.held, asker.verifier.files, asker.counters.unchecked_bytes) == ([], [], 0)


def test_what_is_accepted_unread_is_counted(asker: Asker) -> None:
    asker.answers.hold(unchecked((0, 6)))
    assert asker.counters.unchecked_bytes == asker.counters.size_bytes == 4 + 4 + 45 + 40


def test_withdrawing_a_file_takes_its_size_back(asker: Asker) -> None:
    for file_id in (SMALL, ALSO_SMALL, LARGE, OTHER):
        asker.manifest.withdraw(file_id, GONE)
        asker.answers.withdraw(file_id)
    assert asker.counters.size_bytes == 0
    assert asker.taken() == []
    assert not any(part.open_chunks for part in asker.manifest.parts)


def test_of_a_file_under_its_final_name_everything_is_needed_where_one_segment_differs(asker: Asker) -> None:
    """Answers may come in several messages, before and after that is known."""
    asker.answers.hold(held(OTHER, 0, b"0", final=True))
    (first,) = asker.verifier.held
    assert first.whole == OTHER_CHUNKS
    asker.queue.compared(6, asker.queue.epoch, is_equal=True, whole=OTHER_CHUNKS)
    assert asker.taken() == []
    asker.answers.hold(held(LARGE, 0, b"0", b"1", b"2", final=True))
    asker.queue.compared(1, asker.queue.epoch, is_equal=True, whole=LARGE_CHUNKS)
    asker.queue.compared(2, asker.queue.epoch, is_equal=False, whole=LARGE_CHUNKS)
    asker.queue.compared(3, asker.queue.epoch, is_equal=True, whole=LARGE_CHUNKS)
    assert asker.taken() == [1, 2, 3]
    asker.answers.hold(held(LARGE, 3, b"3", b"4", final=True))
    assert asker.taken() == [4, 5]
    asker.answers.hold(held(OTHER, 3, b"3", final=True))
    asker.queue.compared(9, asker.queue.epoch, is_equal=False, whole=OTHER_CHUNKS)
    assert asker.taken() == [6, 9]  # the others were not answered


# ------------------------------------------------------------------------------------------------- what they may not be


@pytest.mark.parametrize(
    "message",
    [
        needed((0, 7)),
        needed((6, 1)),
        needed(((1 << 63) - 2, 1)),
        needed((0, (1 << 63) - 1)),
        segments(LARGE, 0, 6),
        segments(LARGE, 5, 1),
        segments(SMALL, 0, 2),
        segments(EMPTY, 0, 1),
        segments(LINK, 0, 1),
        segments(6, 0, 1),
    ],
)
def test_needing_what_was_not_offered(asker: Asker, message: m.Needed) -> None:
    with pytest.raises(RemoteProtocolError):
        asker.answers.need(message)


@pytest.mark.parametrize(
    "message",
    [
        unchecked((0, 7)),
        unchecked((6, 1)),
        unchecked((0, (1 << 63) - 1)),
        held(LARGE, 4, b"4", b"5"),
        held(LARGE, 5, b"5"),
        held(SMALL, 0, b"0", b"1"),
        held(SMALL, 1, b"1"),
        held(EMPTY, 0, b"0"),
        held(LINK, 0, b"0"),
        held(6, 0, b"0"),
        held_files((SMALL, 2)),
        held_files((LARGE, 1)),
        held_files((LINK, 1)),
        held_files((6, 1)),
        m.Held(6, 0, b""),
        m.Held((1 << 64) - 1, 0, bytes(DIGEST_BYTES)),
    ],
)
def test_holding_what_was_not_offered(asker: Asker, message: m.Held) -> None:
    with pytest.raises(RemoteProtocolError):
        asker.answers.hold(message)
    assert (asker.verifier.held, asker.verifier.files) == ([], [])


def test_answers_for_what_was_dropped_change_nothing(asker: Asker) -> None:
    asker.answers.hold(unchecked((0, 4)))
    (dropped, _) = asker.manifest.parts
    for part in asker.manifest.parts:
        part.is_sent = True
    assert asker.manifest.drop_done_parts() == 1
    asker.answers.need(needed((0, 4)))
    asker.answers.need(segments(LARGE, 0, 99))
    asker.answers.hold(held(LARGE, 0, b"0"))
    asker.answers.hold(unchecked((0, 4)))
    asker.answers.hold(held_files((SMALL, 1), (ALSO_SMALL, 1)))
    asker.answers.compared(Compared(dropped, [], [SMALL], asker.queue.epoch))
    assert asker.taken() == []
    assert (asker.verifier.held, asker.verifier.files) == ([], [])
