"""Receivers that lie to a sender of a tree (proto/README.md, "Needed", "Held" and "Complete")."""

import contextlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from filestreamer.process import backoff
from filestreamer.wire import messages as m
from filestreamer.wire.digests import root_digest, segment_digest
from filestreamer.wire.errors import Code, TransferFailed
from filestreamer.wire.limits import DIGEST_BYTES, KIB
from tests.support import sending, trees
from tests.support.peer import Ended, Link, RawReceiver, read_chunk, refuses
from tests.support.services import HANG, Pair, Service
from tests.support.waiting import with_patience

TOP, EMPTY, LARGE, LINK, SMALL, TINY = range(6)


@pytest.fixture
def tree(pair: Pair) -> Path:
    """Return a directory of an empty file, a large one of 10 segments with another name, and two small ones."""
    top = trees.write(pair.source / "tree" / "empty", b"").parent
    trees.write(top / "large", os.urandom(10 * KIB))
    os.link(top / "large", top / "link")
    trees.write(top / "small", b"small")
    trees.write(top / "tiny", b"tiny")
    return top


def start(pair: Pair, tree: Path | str, receiver: RawReceiver, *args: object) -> Service:
    return pair.start("sender", tree, "--to", receiver.address, "--chunk-size", KIB, "--connections", 1, *args)


def offered(receiver: RawReceiver) -> Link:
    """Let control in, and take all that it offers."""
    return receiver.tree()[0]


def held(file_id: int, first: int, *contents: bytes) -> m.Held:
    return m.Held(file_id, first, b"".join(map(segment_digest, contents)))


def held_files(first: int, count: int) -> m.Held:
    return m.Held(0, 0, bytes(DIGEST_BYTES * count), files=(m.FileRange(first, count),))


def declined(*file_ids: int, kind: m.SkipKind = m.SkipKind.DECLINED) -> m.Declined:
    return m.Declined(tuple(m.DeclinedEntry(file_id, kind, "it is in the way", b"f") for file_id in file_ids))


def zeros(*ranges: tuple[int, int, int]) -> m.Zeros:
    return m.Zeros(tuple(m.SegmentRange(*each) for each in ranges))


ANSWERS: dict[str, m.Message] = {
    "more files than were offered": m.Needed((m.FileRange(0, 7),), ()),
    "a file never offered": m.Needed((m.FileRange(1 << 62, 1),), ()),
    "segments of a file never offered": m.Needed((), (m.SegmentRange(6, 0, 1),)),
    "segments of a directory": m.Needed((), (m.SegmentRange(TOP, 0, 1),)),
    "segments of an empty file": m.Needed((), (m.SegmentRange(EMPTY, 0, 1),)),
    "segments of another name": m.Needed((), (m.SegmentRange(LINK, 0, 1),)),
    "segments beyond a large file": m.Needed((), (m.SegmentRange(LARGE, 5, 6),)),
    "segments beyond a small file": m.Needed((), (m.SegmentRange(SMALL, 0, 2),)),
    "held beyond a large file": held(LARGE, 9, b"9", b"10"),
    "held beyond a small file": held(SMALL, 0, b"0", b"1"),
    "held of a directory": held(TOP, 0, b"0"),
    "held of a file never offered": held(6, 0, b"0"),
    "a held file never offered": held_files(6, 1),
    "held files beyond the manifest": held_files(SMALL, 7),
    "a held file that is a directory": held_files(TOP, 1),
    "a held file that is empty": held_files(EMPTY, 1),
    "a held file that is another name": held_files(LINK, 1),
    "a held file that is large": held_files(LARGE, 1),
    "unchecked beyond the manifest": m.Held(0, 0, b"", (m.FileRange(0, 7),)),
    "complete before Finish": m.Complete(True),
    "a share of a tree": m.Complete(False),
    "a manifest": m.ManifestPart(0, (), True),
    "withdrawn": m.Withdrawn((SMALL,)),
    "declined, never offered": declined(6),
    "declined, far beyond": declined((1 << 64) - 1),
    "declined again and again": declined(*[TINY] * 13),
    "attributes of one entry again and again": declined(*[TINY] * 13, kind=m.SkipKind.ATTRIBUTE),
    "zeros that were not told": zeros((LARGE, 0, 1)),
    "zeros of all that there may be": zeros(*[(LARGE, 0, 1 << 23)] * 1024),
    "zeros of a small file": zeros((SMALL, 0, 1)),
    "zeros of a directory": zeros((TOP, 0, 1)),
    "zeros of another name": zeros((LINK, 0, 1)),
    "zeros of a file never offered": zeros((6, 0, 1)),
    "left, though it is to be replaced": m.Held(0, 0, b"", (), False, (m.FileRange(SMALL, 1),)),
    "verdicts without a question": m.Verdicts((m.EntryVerdict(m.Standing.SAME, 0, 6),)),
    "an extra without a question": m.Verdicts((m.EntryVerdict(m.Standing.EXTRA, path=b"x"),)),
}


def is_refused(pair: Pair, tree: Path | str, answer: m.Message, *args: object) -> bool:
    """Offer a tree, which is answered with nonsense."""
    with RawReceiver() as receiver:
        sender = start(pair, tree, receiver, *args)
        return refuses(sender, offered(receiver), answer)


def test_nonsense(pair: Pair, tree: Path) -> None:
    """The sender says PROTOCOL and exits 3; it believes none of it."""
    with ThreadPoolExecutor(3) as pool:
        refused = dict(
            zip(ANSWERS, pool.map(lambda answer: is_refused(pair, tree, answer), ANSWERS.values()), strict=True)
        )
    assert refused == dict.fromkeys(ANSWERS, True)


def test_accepted_unread_though_it_was_asked_to_compare(pair: Pair, tree: Path) -> None:
    answer = m.Held(SMALL, 0, b"", (m.FileRange(SMALL, 1),))
    assert is_refused(pair, tree, answer, "--checksum")


def test_small_files_are_not_held_together_in_a_dry_run(pair: Pair, tree: Path) -> None:
    """There, the digests of each go before the verdict on it: a receiver that leaves them out is not believed."""
    alone = trees.write(pair.source / "alone", b"alone")
    assert is_refused(pair, alone, held_files(0, 1), "--checksum", "--dry-run")
    assert is_refused(pair, tree, held(SMALL, 0, b"0"), "--dry-run")


def test_a_file_that_is_the_only_one_may_be_accepted_unread(pair: Pair) -> None:
    """One file in the destination itself is no tree, also where it was found in a directory."""
    top = trees.write(pair.source / "top" / "file", b"alone").parent
    with RawReceiver() as receiver:
        sender = start(pair, f"{top}/", receiver)
        control, _, entry = receiver.control()
        assert entry.path == b"file"
        control.send(m.Held(0, 0, b"", (m.FileRange(0, 1),)))
        assert control.expect(m.Finish) == m.Finish(1, root_digest([]))
        control.send(m.Complete(True))
        receiver.hang_up()
        assert sender.succeeds()["unchecked_bytes"] == 5


def serve(
    receiver: RawReceiver, control: Link, answer: tuple[m.Message, ...], chunks: int
) -> tuple[dict[int, bytes], Link]:
    """Answer, take so many chunks and acknowledge them; return what came of each file, and the data connection."""
    control.send(*answer)
    came: dict[int, bytes] = {}
    data, _ = receiver.welcome(m.Role.DATA)
    for _ in range(chunks):
        chunk = read_chunk(data)
        at = 0
        for segment in chunk.segments:
            came[segment.file_id] = came.get(segment.file_id, b"") + chunk.payload[at : at + segment.length]
            at += segment.length
        data.send(m.ChunkAck(m.Verdict.OK, (chunk.chunk_id,)))
    return came, data


def test_what_is_held_and_differs_is_sent_and_nothing_else(pair: Pair, tree: Path) -> None:
    large = (tree / "large").read_bytes()
    segments = [large[at : at + KIB] for at in range(0, len(large), KIB)]
    segments[4] = b"damaged"
    with RawReceiver() as receiver:
        sender = start(pair, tree, receiver)
        control = offered(receiver)
        answers = (held(LARGE, 0, *segments), held(SMALL, 0, b"other"), held(TINY, 0, b"tiny"))
        came, _ = serve(receiver, control, answers, 2)
        finish = control.finish()
        control.send(m.Complete(True))
        receiver.hang_up()
        result = sender.succeeds()
    assert came == {LARGE: large[4 * KIB : 5 * KIB], SMALL: b"small"}
    assert finish.chunks == 11
    assert (result["held_bytes"], result["sent_bytes"]) == (9 * KIB + 4, KIB + 5)


def test_contradictions_are_taken_by_their_first_half(pair: Pair, tree: Path) -> None:
    """What was answered stays answered: nothing is sent twice, and nothing is left out that was needed."""
    with RawReceiver() as receiver:
        sender = start(pair, tree, receiver)
        control = offered(receiver)
        needed = m.Needed((m.FileRange(0, 6),), ())
        unchecked = m.Held(0, 0, b"", (m.FileRange(0, 6),))
        came, _ = serve(receiver, control, (needed, unchecked, held(SMALL, 0, b"small"), needed), 11)
        control.finish()
        control.send(m.Complete(True))
        result = sender.succeeds()
    assert came == {LARGE: (tree / "large").read_bytes(), SMALL: b"small", TINY: b"tiny"}
    assert (result["unchecked_bytes"], result["held_bytes"]) == (0, 0)


def test_a_bundle_that_always_arrives_damaged(pair: Pair, tree: Path) -> None:
    with RawReceiver() as receiver:
        sender = start(pair, tree, receiver)
        control = offered(receiver)
        control.send(m.Needed((m.FileRange(SMALL, 2),), ()))
        data, _ = receiver.welcome(m.Role.DATA)
        for _ in range(4):
            chunk = read_chunk(data)
            data.send(m.ChunkAck(m.Verdict.DIGEST_MISMATCH, (chunk.chunk_id,)))
        assert control.expect(m.Abort).code is Code.DIGEST
        receiver.hang_up()
        sender.fails(1, "digest")


def says(*messages: m.Message) -> Callable[[Link], None]:
    return lambda control: control.send(*messages)


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (says(m.Abort(Code.BUSY, "later")), "busy"),
        (says(m.Abort(Code.UNKNOWN_TRANSFER, "begin again")), "timeout"),
        (says(m.Abort(Code.LIMIT, "too much")), "timeout"),
        (Link.reset, "timeout"),
        (Link.close, "timeout"),
    ],
    ids=["busy", "forgetful", "full", "reset", "closed"],
)
def test_a_receiver_that_never_takes_anything_is_given_up(
    tree: Path, monkeypatch: pytest.MonkeyPatch, end: Callable[[Link], None], error: str
) -> None:
    """To list the same again and again is no progress, however soon that is."""
    monkeypatch.setattr(backoff, "LONGEST_SECONDS", 0.1)

    def is_tried_again(give_up_after: float) -> bool:
        with ThreadPoolExecutor(1) as pool, RawReceiver() as receiver:
            receiver.patience(0.2)
            sent = pool.submit(sending.send, tree, "--to", receiver.address, "--give-up-after", give_up_after)
            deadline = time.monotonic() + HANG
            tries = 0
            while not sent.done():
                assert time.monotonic() < deadline, f"not given up after {tries} tries"
                with contextlib.suppress(TimeoutError, Ended):
                    end(offered(receiver))
                    tries += 1
            failure = sent.exception()
            assert isinstance(failure, TransferFailed)
            return (failure.name, tries > 3) == (error, True)

    with_patience(is_tried_again, "taken in vain more than three times")


@pytest.mark.parametrize("code", [Code.PATH, Code.EXISTS, Code.POLICY, Code.NO_SPACE, Code.SUPERSEDED])
def test_what_is_refused_for_good_ends_it(pair: Pair, tree: Path, code: Code) -> None:
    with RawReceiver() as receiver:
        sender = start(pair, tree, receiver)
        control = offered(receiver)
        control.send(m.Abort(code, "because"))
        control.close()
        assert sender.wait() not in (0, 2)
    assert sender.result["error"]["code"] == code.name.lower()
    assert len(sender.events("connected")) == 1
