"""What proto/README.md decides, asked in raw frames. Above each part stands the section that it holds.

What a peer may not do at all is in test_hostile, test_trees_hostile and test_pipes_hostile.
"""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from xxhash import xxh3_64_intdigest

from filestreamer.wire import features, limits
from filestreamer.wire import messages as m
from filestreamer.wire.digests import root_digest
from filestreamer.wire.errors import CONSEQUENCES, Code
from filestreamer.wire.framing import frame_of
from filestreamer.wire.limits import KIB
from filestreamer.wire.opening import ReceiverOpening
from tests.support.peer import NO_RUNS, Link, RawReceiver, RawSender, Sample, TreeSample, acknowledged, read_chunk
from tests.support.services import Pair, Service
from tests.support.waiting import until


@pytest.fixture
def receiver(pair: Pair) -> Service:
    return pair.receiver()


@pytest.fixture
def peer(receiver: Service) -> Iterator[RawSender]:
    """Return a sender whose every frame is the test's own."""
    with RawSender(Pair.address(receiver)) as made:
        yield made


@pytest.fixture
def sample(seed: int) -> Sample:
    """Return a file of 10 segments."""
    return Sample.random(seed, 10 * KIB, KIB)


@pytest.fixture
def tree() -> TreeSample:
    """Return a tree of one small file, and a large one of 3 segments."""
    made = TreeSample(KIB)
    made.directory(b"t")
    made.add(b"t/small", b"small")
    made.add(b"t/large", bytes(range(256)) * 12)
    return made


def offer_tree(peer: RawSender, tree: TreeSample) -> Link:
    """Open control and offer a tree; the answers are still to be read."""
    control = peer.control()
    control.send(tree.offer, *tree.parts)
    return control


def needed(control: Link) -> set[tuple[int, int]]:
    """Read one Needed; return its segments of large files, and (file_id, -1) for each whole file."""
    answer = control.expect(m.Needed)
    segments = {(each.file_id, at) for each in answer.segments for at in _range(each.first_segment, each.segments)}
    return segments | {(at, -1) for each in answer.files for at in _range(each.first_file_id, each.files)}


def _range(first: int, count: int) -> range:
    return range(first, first + count)


# --- "Opening"


def test_a_data_connection_whose_hello_waits_too_long_for_control(pair: Pair) -> None:
    """The receiver refuses it with TIMEOUT; the sender opens it again when control is there."""
    with RawReceiver() as receiver:
        sender = pair.sender(pair.file("f", KIB), receiver.address, "--chunk-size", KIB, "--connections", 1)
        control, early = receiver.accept(), receiver.accept()
        openings = [ReceiverOpening(receiver.incarnation, None, features=NO_RUNS) for _ in range(2)]
        for link, opening in zip((control, early), openings, strict=True):
            link.send_raw(frame_of(opening.greeting_body))
        control.expect(m.Hello)
        early.send(m.Refusal(Code.TIMEOUT, "no Hello"))
        early.close()
        control.send(openings[0].welcome())
        control.expect(m.Offer)
        control.expect(m.ManifestPart)
        control.send(m.Needed((), (m.SegmentRange(0, 0, 1),)))
        late, _ = receiver.welcome(m.Role.DATA)
        late.send(m.ChunkAck(m.Verdict.OK, (read_chunk(late).chunk_id,)))
        control.expect(m.Finish)
        control.send(m.Complete(True))
        receiver.hang_up()
        sender.succeeds()


def test_a_receiver_waits_for_no_hello_of_a_data_connection(peer: RawSender, sample: Sample) -> None:
    """However long control takes: the opening of a data connection takes as long as any other."""
    link = peer.connect()
    link.expect(m.Greeting)
    peer.offer(sample).expect(m.Needed)
    refusal = link.expect(m.Refusal)
    assert (refusal.code, CONSEQUENCES[refusal.code].retryable) == (Code.TIMEOUT, True)


# --- "Proof"


@pytest.mark.parametrize("role", m.Role)
def test_a_proof_that_was_not_asked_for(pair: Pair, sample: Sample, role: m.Role) -> None:
    """It is a message after Welcome, and ends the transfer."""
    with RawSender(Pair.address(pair.receiver("--anonymous"))) as peer:
        control = peer.offer(sample) if role is m.Role.DATA else None
        if control is not None:
            control.expect(m.Needed)
        link = peer.connect()
        assert not link.expect(m.Greeting).token_required
        link.send(peer.hello(role), m.Proof(bytes(limits.MAC_BYTES)))
        link.expect(m.Welcome)
        assert link.expect(m.Abort).code is Code.PROTOCOL
        if control is not None:
            assert control.expect(m.Abort).code is Code.PROTOCOL


# --- "Sessions": what follows Abort


@pytest.mark.parametrize("code", [Code.SOURCE, Code.SHUTTING_DOWN])
def test_what_follows_abort_on_control(
    pair: Pair, receiver: Service, peer: RawSender, sample: Sample, code: Code
) -> None:
    """It is dropped, and not answered; the receiver forgets the transfer, and its data connections end."""
    control = peer.offer(sample)
    control.expect(m.Needed)
    data = peer.data()
    data.send_raw(b"".join(map(sample.chunk, range(10))))
    acknowledged(data, 10)
    control.send(m.Abort(code, "because"), sample.finish, m.Hello(1, 1, bytes(16), m.Role.CONTROL, 0, 4, bytes(16)))
    control.end_writing()
    control.ends()
    data.ends()
    (result,) = receiver.wait_for_results()
    assert (result["status"] != "complete", result["error"]["code"]) == (True, code.name.lower())
    assert "sample.bin" not in pair.received()
    assert peer.refused(m.Role.DATA).code is Code.UNKNOWN_TRANSFER


def test_what_follows_a_retryable_abort_on_data(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """It is dropped, and not answered; the transfer goes on over other connections."""
    control = peer.offer(sample)
    control.expect(m.Needed)
    data = peer.data()
    data.send(m.Abort(Code.CORRUPT, "because"), sample.finish)
    data.ends()
    again = peer.data()
    again.send_raw(b"".join(map(sample.chunk, range(10))))
    acknowledged(again, 10)
    control.send(sample.finish)
    assert control.expect(m.Complete).committed
    assert (pair.destination / "sample.bin").read_bytes() == sample.content


def test_a_sender_that_reads_abort_acts_on_nothing_behind_it(pair: Pair) -> None:
    """It begins anew where the code is retryable: all of its connections close, without a word."""
    with RawReceiver() as receiver:
        sender = pair.sender(pair.file("f", KIB), receiver.address, "--chunk-size", KIB, "--connections", 1)
        control, data = receiver.needs(1)
        chunk = read_chunk(data)
        assert control.expect(m.Finish).ahead
        control.send(m.Abort(Code.LIMIT, "because"), m.Needed((m.FileRange(5, 5),), ()))
        control.ends()
        data.ends()
        control, data = receiver.needs(1)
        assert read_chunk(data) == chunk
        data.send(m.ChunkAck(m.Verdict.OK, (chunk.chunk_id,)))
        control.expect(m.Finish)
        control.send(m.Complete(True))
        receiver.hang_up()
        sender.succeeds()


# --- "ChunkHeader"


def test_a_chunk_before_any_manifest(peer: RawSender, sample: Sample) -> None:
    """It ends its connection, and nothing else."""
    control, data = peer.control(), peer.data()
    data.send_raw(sample.chunk(0))
    assert data.expect(m.Abort).code is Code.UNKNOWN_TRANSFER
    data.close()
    control.send(sample.offer, m.ManifestPart(0, (sample.entry,), True))
    assert needed(control) == {(0, index) for index in range(10)}
    again = peer.data()
    again.send_raw(sample.chunk(0))
    assert acknowledged(again, 1) == [0]


def test_a_chunk_of_several_manifest_parts(peer: RawSender) -> None:
    tree = TreeSample(KIB, part_entries=2)
    tree.directory(b"t")
    tree.add(b"t/a", b"a")
    tree.add(b"t/b", b"b")
    control = offer_tree(peer, tree)
    assert needed(control) | needed(control) == {(1, -1), (2, -1)}
    peer.data().send(m.ChunkHeader(0, (m.Segment(1, 0, 1), m.Segment(2, 0, 1))))
    assert control.expect(m.Abort).code is Code.PROTOCOL


def test_a_chunk_of_a_file_that_was_accepted_unread(pair: Pair, peer: RawSender, tree: TreeSample) -> None:
    (pair.destination / "t").mkdir()
    (pair.destination / "t" / "small").write_bytes(b"small")
    os.utime(pair.destination / "t" / "small", ns=(0, tree.entries[1].mtime_ns))
    control = offer_tree(peer, tree)
    assert needed(control) == {(2, -1)}
    assert control.expect(m.Held).unchecked == (m.FileRange(1, 1),)
    peer.data().send(m.ChunkHeader(0, (m.Segment(1, 0, 5),)))
    assert control.expect(m.Abort).code is Code.PROTOCOL


# --- "On the wire": what OK means


def kill(pair: Pair, receiver: Service) -> RawSender:
    """Kill a receiver, and return a sender of another transfer to the next one."""
    receiver.signal(signal.SIGKILL)
    receiver.wait()
    return RawSender(Pair.address(pair.receiver()))


def test_ok_for_a_single_file_is_in_the_ledger(pair: Pair, receiver: Service, peer: RawSender, sample: Sample) -> None:
    peer.offer(sample).expect(m.Needed)
    data = peer.data()
    data.send_raw(sample.chunk(3))
    assert acknowledged(data, 1) == [3]
    with kill(pair, receiver) as again:
        control = again.offer(sample)
        assert needed(control) == {(0, index) for index in range(10) if index != 3}
        assert control.expect(m.Held) == m.Held(0, 3, sample.digest(3))


def test_ok_in_a_tree_is_in_the_ledger_for_large_files_only(
    pair: Pair, receiver: Service, peer: RawSender, tree: TreeSample
) -> None:
    offer_tree(peer, tree).expect(m.Needed)
    data = peer.data()
    for chunk_id, segments in list(tree.chunks().items())[:2]:
        data.send_raw(tree.chunk(chunk_id, segments))
        assert acknowledged(data, 1) == [chunk_id]
    with kill(pair, receiver) as again:  # before the small file is put in place with others
        control = offer_tree(again, tree)
        assert needed(control) == {(1, -1)}
        assert needed(control) == {(2, 1), (2, 2)}
        assert control.expect(m.Held).file_id == 2


def test_ok_for_a_stream_promises_nothing_to_another_transfer(
    pair: Pair, receiver: Service, peer: RawSender, sample: Sample
) -> None:
    stream = m.ManifestPart(0, (STREAM,), True)
    control = peer.control()
    control.send(sample.offer, stream)
    control.expect(m.Needed)
    data = peer.data()
    data.send_raw(sample.chunk(0))
    assert acknowledged(data, 1) == [0]
    with kill(pair, receiver) as again:
        control = again.control()
        control.send(sample.offer, stream)
        assert control.expect(m.Needed).files == (m.FileRange(0, 1),)


# --- "Withdrawn"


ONE_FILE = m.Entry(b"f", m.EntryType.FILE, KIB, 0o644, 0)
STREAM = m.Entry(b"s", m.EntryType.STREAM, 0, 0o644, 0)


@pytest.mark.parametrize(
    ("entry", "shard", "output"),
    [
        (ONE_FILE, None, False),
        (ONE_FILE, m.Shard(0, 2), False),
        (ONE_FILE, None, True),
        (STREAM, None, False),
        (STREAM, None, True),
    ],
    ids=["a file", "a share of a file", "a file to an output", "a stream", "a stream to an output"],
)
def test_withdrawn_is_for_trees(
    pair: Pair, sample: Sample, entry: m.Entry, shard: m.Shard | None, *, output: bool
) -> None:
    service = pair.start("receiver", "--listen", "127.0.0.1:0", "--output-file", "-") if output else pair.receiver()
    with RawSender(Pair.address(service)) as peer:
        control = peer.control()
        control.send(sample.offer._replace(shard=shard), m.ManifestPart(0, (entry,), True))
        control.expect(m.Needed)
        control.send(m.Withdrawn((0,)))
        assert control.expect(m.Abort).code is Code.PROTOCOL


def test_withdrawn_before_anything_was_offered(peer: RawSender, tree: TreeSample) -> None:
    assert peer.offers(tree.offer, m.Withdrawn((0,))).code is Code.PROTOCOL


@pytest.mark.parametrize("file_id", [0, 1, 2, 99])
def test_withdrawing_what_has_nothing_to_be_sent(peer: RawSender, file_id: int) -> None:
    """A directory, an empty file, a symlink, and none at all."""
    tree = TreeSample(KIB)
    tree.directory(b"t")
    tree.add(b"t/empty")
    tree.symlink(b"t/link", b"empty")
    tree.add(b"t/file", b"content")
    control = offer_tree(peer, tree)
    control.expect(m.Needed)
    control.send(m.Withdrawn((file_id,)))
    assert control.expect(m.Abort).code is Code.PROTOCOL


def test_other_names_of_a_file_that_was_withdrawn(pair: Pair, peer: RawSender) -> None:
    """They are not made, though nobody withdraws them; a name that is withdrawn alone is the only one missing."""
    tree = TreeSample(KIB)
    tree.directory(b"t")
    for name, group in ((b"lost", 1), (b"kept", 2)):
        for number in range(3):
            tree.add(b"t/%s%d" % (name, number), name, hard_link_group=group)
    control = offer_tree(peer, tree)
    control.expect(m.Needed)
    control.send(m.Withdrawn((1, 5)))
    tree.withdrawn = {1}
    data = peer.data()
    for chunk_id, segments in tree.chunks().items():
        data.send_raw(tree.chunk(chunk_id, segments))
        acknowledged(data, 1)
    control.send(tree.finish)
    assert control.expect(m.Complete).committed
    assert sorted(os.listdir(pair.destination / "t")) == ["kept0", "kept2"]


# --- "Declined"


def declined_tree(pair: Pair) -> TreeSample:
    """Return a tree of which a directory, with what is in it, and a file can't be made."""
    there = pair.destination / "t"
    (there / "file").mkdir(parents=True)
    (there / "dir").write_bytes(b"in the way")
    tree = TreeSample(KIB)
    tree.directory(b"t")
    tree.directory(b"t/dir")
    tree.add(b"t/dir/inside", b"inside")
    tree.add(b"t/file", b"file")
    tree.add(b"t/other", b"other")
    return tree


def declined_ids(control: Link, count: int) -> list[int]:
    """Read what is declined, up to so many entries; other answers are dropped."""
    ids: list[int] = []
    while len(ids) < count:
        message = control.read()
        if isinstance(message, m.Declined):
            ids += [entry.file_id for entry in message.entries]
    return ids


def test_declined_entries_are_no_part_of_what_is_finished(pair: Pair, peer: RawSender) -> None:
    """They are withdrawn, if anything of them were to be sent; the rest is durable."""
    tree = declined_tree(pair)
    control = offer_tree(peer, tree)
    assert declined_ids(control, 3) == [1, 2, 3]
    control.send(m.Withdrawn((2, 3)))
    tree.withdrawn = {2, 3}
    data = peer.data()
    for chunk_id, segments in tree.chunks().items():
        data.send_raw(tree.chunk(chunk_id, segments))
        acknowledged(data, 1)
    control.send(tree.finish)
    assert control.expect(m.Complete).committed
    assert (pair.destination / "t/other").read_bytes() == b"other"


def test_declined_entries_are_repeated_in_the_same_order(pair: Pair, peer: RawSender) -> None:
    tree = declined_tree(pair)
    control = offer_tree(peer, tree)
    assert declined_ids(control, 3) == [1, 2, 3]
    for _ in range(2):
        control.close()
        control = offer_tree(peer, tree)
        assert declined_ids(control, 3) == [1, 2, 3]


@pytest.mark.parametrize(
    "message", [m.Declined((m.DeclinedEntry(0, m.SkipKind.DECLINED, "", b"f"),)), m.Notice(("x",))]
)
def test_reports_are_the_receivers(peer: RawSender, tree: TreeSample, message: m.Message) -> None:
    assert peer.offers(tree.offer, message).code is Code.PROTOCOL


# --- "Zeros" and "Segment"


def test_zeros_are_told_once_more_and_change_nothing(pair: Pair, peer: RawSender) -> None:
    """They are repeated by the receiver each time, have no digest, and are answered after control was opened anew."""
    content = bytes(2 * KIB) + b"content" * 100
    sample = Sample(b"f", content, KIB)
    control = peer.control()
    control.send(sample.offer, m.ManifestPart(0, (sample.entry,), True))
    assert needed(control) == {(0, 0), (0, 1), (0, 2)}
    zeros = m.Zeros((m.SegmentRange(0, 0, 2),))
    for _ in range(2):
        control.send(zeros)
        assert control.expect(m.Zeros) == zeros
    control = peer.control()
    control.send(sample.offer, m.ManifestPart(0, (sample.entry,), True))
    assert {type(control.read()) for _ in range(2)} == {m.Needed, m.Zeros}
    data = peer.data()
    data.send_raw(sample.chunk(2))
    assert acknowledged(data, 1) == [2]
    control.send(m.Finish(3, root_digest([sample.digest(2)])))
    assert control.expect(m.Complete).committed
    assert (pair.destination / "f").read_bytes() == content


@pytest.mark.parametrize(
    "told",
    [m.SegmentRange(0, 2, 2), m.SegmentRange(0, 3, 1), m.SegmentRange(1, 0, 1)],
    ids=["too many", "none", "another file"],
)
def test_zeros_that_were_not_offered(peer: RawSender, told: m.SegmentRange) -> None:
    sample = Sample(b"f", bytes(3 * KIB), KIB)
    control = peer.control()
    control.send(sample.offer, m.ManifestPart(0, (sample.entry,), True))
    control.expect(m.Needed)
    control.send(m.Zeros((told,)))
    assert control.expect(m.Abort).code is Code.PROTOCOL


def test_what_was_sent_is_not_told_as_zeros(peer: RawSender) -> None:
    sample = Sample(b"f", bytes(3 * KIB), KIB)
    control = peer.control()
    control.send(sample.offer, m.ManifestPart(0, (sample.entry,), True))
    control.expect(m.Needed)
    data = peer.data()
    data.send_raw(sample.chunk(1))
    assert acknowledged(data, 1) == [1]
    control.send(m.Zeros((m.SegmentRange(0, 0, 3),)))
    assert control.expect(m.Abort).code is Code.PROTOCOL


# --- "Shards" and "Streams": what else the manifest may hold


DIRECTORY = m.Entry(b"d", m.EntryType.DIRECTORY, 0, 0o755, 0)


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        ((ONE_FILE._replace(path=b"d/f"),), Code.PROTOCOL),
        ((DIRECTORY, ONE_FILE._replace(path=b"d/f")), Code.PROTOCOL),
        ((ONE_FILE, ONE_FILE._replace(path=b"g")), Code.PROTOCOL),
        ((STREAM,), Code.PROTOCOL),
    ],
    ids=["in a directory", "a tree", "two files", "a stream"],
)
def test_what_is_no_share_of_one_file(
    pair: Pair, peer: RawSender, sample: Sample, entries: tuple[m.Entry, ...], code: Code
) -> None:
    offer = sample.offer._replace(shard=m.Shard(0, 2))
    assert peer.offers(offer, m.ManifestPart(0, entries, True)).code is code
    assert pair.received() in ([], [".filestreamer"])


TREE_SHARD = m.Shard(xxh3_64_intdigest(ONE_FILE.path) % 2, 2, tree=True)
"""The shard of a tree that ONE_FILE belongs to."""


@pytest.mark.parametrize(
    ("offer", "entries"),
    [
        ({"delete": m.Deletion((b"d",))}, (DIRECTORY,)),
        ({"dry_run": True}, (ONE_FILE,)),
        ({"shard": TREE_SHARD._replace(shard_index=1 - TREE_SHARD.shard_index)}, (DIRECTORY, ONE_FILE)),
        ({"shard": m.Shard(1, 2, tree=True)}, (DIRECTORY, ONE_FILE._replace(hard_link_group=1))),
        ({}, (DIRECTORY, STREAM)),
    ],
    ids=["with delete", "a dry run", "another shard's file", "a file with several links", "a stream"],
)
def test_what_is_no_shard_of_a_tree(
    pair: Pair, sample: Sample, offer: dict[str, Any], entries: tuple[m.Entry, ...]
) -> None:
    receiver = pair.receiver("--allow-delete")
    with RawSender(Pair.address(receiver), job="job") as peer:
        abort = peer.offers(sample.offer._replace(**{"shard": TREE_SHARD, **offer}), m.ManifestPart(0, entries, True))
    assert abort.code is Code.PROTOCOL
    assert "f" not in pair.received()


def test_one_file_may_be_a_shard_of_a_tree(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """Then it is no single file: Finish needs the digest of the walk."""
    peer.job = "job"
    control = peer.control()
    control.send(sample.offer._replace(shard=TREE_SHARD), m.ManifestPart(0, (ONE_FILE._replace(size=0),), True))
    control.send(m.Finish(0, root_digest([])))
    assert control.expect(m.Abort).code is Code.PROTOCOL


def test_a_shard_of_a_tree_without_a_job(pair: Pair, peer: RawSender, sample: Sample) -> None:
    abort = peer.offers(sample.offer._replace(shard=TREE_SHARD), m.ManifestPart(0, (DIRECTORY,), True))
    assert abort.code is Code.PROTOCOL
    assert "d" not in pair.received()


def test_the_job_is_the_same_in_every_hello(receiver: Service, sample: Sample) -> None:
    with RawSender(Pair.address(receiver), job="photos") as peer:
        peer.offer(sample).expect(m.Needed)
        for job in ("", "mails"):
            peer.job = job
            assert peer.refused(m.Role.DATA).code is Code.PROTOCOL
        peer.job = "photos"
        peer.data()


def test_an_output_takes_no_shard(pair: Pair, sample: Sample) -> None:
    output = pair.start("receiver", "--listen", "127.0.0.1:0", "--output-file", "-")
    with RawSender(Pair.address(output)) as peer:
        offer = sample.offer._replace(shard=m.Shard(0, 2))
        assert peer.offers(offer, m.ManifestPart(0, (sample.entry,), True)).code is Code.POLICY


@pytest.mark.parametrize("entries", [(ONE_FILE, STREAM), (DIRECTORY, STREAM), (STREAM._replace(path=b"d/s"),)])
def test_a_stream_among_other_entries(
    pair: Pair, peer: RawSender, sample: Sample, entries: tuple[m.Entry, ...]
) -> None:
    assert peer.offers(sample.offer, m.ManifestPart(0, entries, True)).code is Code.POLICY
    assert "s" not in pair.received()


# --- "Features"


def all_but(name: str) -> tuple[str, ...]:
    return tuple(each for each in features.KNOWN if each != name)


OPTIONS: dict[str, tuple[str, ...]] = {
    features.CHECKSUM: ("f", "--checksum"),
    features.DELETE: (".", "--delete"),
    features.DRY_RUN: ("f", "--dry-run"),
    features.EXISTING: ("f", "--existing", "skip"),
    features.OWNER: ("f", "--owner"),
    features.SHARDS: ("f", "--shard", "0/2"),
    features.TREES: (".",),
    features.TREE_SHARDS: (".", "--shard", "0/2", "--job", "job"),
    features.STREAMS: ("-",),
    features.XATTRS: ("f", "--xattrs"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_sender_says_nothing_to_a_receiver_that_lacks_what_it_needs(pair: Pair, name: str) -> None:
    """Nothing but Hello is sent; the user is told what is missing, and what to do."""
    file = pair.file("f", KIB)
    what, *options = OPTIONS[name]
    source = {"f": file, ".": file.parent}.get(what, what)
    with RawReceiver(named=all_but(name)) as receiver:
        sender = pair.start("sender", source, "--to", receiver.address, *options, "--connections", 1)
        link = receiver.accept()
        link.send_raw(frame_of(ReceiverOpening(receiver.incarnation, None, features=all_but(name)).greeting_body))
        assert name in link.expect(m.Hello).needs
        link.ends()
        assert f"feature '{name}'" in sender.fails(3, "policy", status="refused")


@pytest.mark.parametrize("name", OPTIONS)
def test_a_receiver_refuses_who_needs_what_it_does_not_know(pair: Pair, name: str) -> None:
    """Behind Hello there may be an Offer already, and the receiver must not act on an Offer that it knows in part."""
    receiver = pair.receiver("--anonymous")
    later = "a-later-feature"
    with RawSender(pair.address(receiver), named=tuple(sorted((*features.KNOWN, later)))) as peer:
        link = peer.connect()
        hello = peer.hello(m.Role.CONTROL)._replace(needs=tuple(sorted((name, later))))
        link.send(hello, m.Offer(KIB, None, False, 0))
        link.expect(m.Greeting)
        refusal = link.expect(m.Refusal)
        assert refusal.code is Code.POLICY
        assert later in refusal.reason
        link.ends()
    until(lambda: receiver.times("connection_refused") == 1, "it is told once")


def test_a_sender_needs_no_feature_for_one_file(pair: Pair) -> None:
    with RawReceiver(named=()) as receiver:
        sender = pair.sender(pair.file("f", KIB), receiver.address, "--chunk-size", KIB, "--connections", 1)
        control, data = receiver.needs(1)
        data.send(m.ChunkAck(m.Verdict.OK, (read_chunk(data).chunk_id,)))
        control.expect(m.Finish)
        control.send(m.Complete(True))
        receiver.hang_up()
        sender.succeeds()


OFFER = m.Offer(KIB, None, False, 0)
USES: dict[str, tuple[m.Offer, tuple[m.Entry, ...]]] = {
    features.CHECKSUM: (OFFER._replace(checksum=True), (ONE_FILE,)),
    features.DELETE: (OFFER._replace(delete=m.Deletion((b"d",))), (DIRECTORY, ONE_FILE._replace(path=b"d/f"))),
    features.DRY_RUN: (OFFER._replace(dry_run=True), (ONE_FILE,)),
    features.EXISTING: (OFFER._replace(existing=m.Existing.NEWER), (ONE_FILE,)),
    features.OWNER: (OFFER, (ONE_FILE._replace(uid=os.geteuid()),)),
    features.SHARDS: (OFFER._replace(shard=m.Shard(0, 2)), (ONE_FILE,)),
    features.TREES: (OFFER, (DIRECTORY, ONE_FILE._replace(path=b"d/f"))),
    features.TREE_SHARDS: (OFFER._replace(shard=TREE_SHARD), (ONE_FILE,)),
    features.STREAMS: (OFFER, (STREAM,)),
    features.XATTRS: (OFFER._replace(xattrs=True), (ONE_FILE._replace(xattrs=(m.Xattr(b"user.x", b"1"),)),)),
}


@pytest.mark.parametrize("name", USES)
def test_a_receiver_refuses_what_hello_did_not_name(pair: Pair, name: str) -> None:
    """By its name, and before anything is written."""
    receiver = pair.receiver("--allow-delete")
    offer, entries = USES[name]
    with RawSender(Pair.address(receiver), named=all_but(name), job="job") as peer:
        abort = peer.offers(offer, m.ManifestPart(0, entries, True))
    assert abort.code is Code.POLICY
    assert f"'{name}'" in abort.reason
    assert pair.received() == []
    more = (features.TREES,) if name == features.DELETE else ()  # which is for nothing else
    with RawSender(Pair.address(receiver), named=(name, *more, "z-of-a-later-version"), job="job") as peer:
        control = peer.control()
        control.send(offer, m.ManifestPart(0, entries, True))
        control.expect(m.Verdicts if name == features.DRY_RUN else m.Needed)


def test_a_receiver_needs_no_feature_for_one_file(receiver: Service, sample: Sample) -> None:
    with RawSender(Pair.address(receiver), named=()) as peer:
        peer.offer(sample).expect(m.Needed)


def test_features_are_the_same_in_every_hello(peer: RawSender, sample: Sample) -> None:
    control = peer.offer(sample)
    control.expect(m.Needed)
    peer.named = all_but(features.SHARDS)
    assert peer.refused(m.Role.DATA).code is Code.PROTOCOL
    peer.named = features.KNOWN
    peer.data()
