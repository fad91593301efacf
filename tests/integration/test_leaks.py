"""Transfers that end badly, in every way and again and again, leave nothing behind in a receiver that goes on."""

import itertools
import time
from collections.abc import Callable
from typing import Final

import pytest

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code
from tests.support.peer import Link, RawSender, Sample, TreeSample, ack, acknowledged
from tests.support.processes import descriptors, thread_count
from tests.support.scrape import METRICS, scrape
from tests.support.services import HANG, UNIT, Pair, Service

CHUNK: Final = 4 * limits.KIB
ROUNDS: Final = 4
NUMBERS: Final = itertools.count()


def sample(name: bytes = b"sample.bin") -> Sample:
    return Sample.random(1, 5 * CHUNK, CHUNK, name)


def another_name() -> bytes:
    """Return a name that no round before had: the receiver may not have noticed their end yet, or releases theirs."""
    return b"%d" % next(NUMBERS)


def tree(*, part_entries: int = 8, checksum: bool = False) -> TreeSample:
    """Return a tree of small and large files, links, and an empty file, each time under another name."""
    made = TreeSample(CHUNK, part_entries=part_entries, checksum=checksum)
    root = another_name()
    made.directory(root)
    for at in range(10):
        made.add(root + b"/small %d" % at, b"%d" % at * 100)
        made.add(root + b"/large %d" % at, bytes([at]) * (3 * CHUNK))
    made.symlink(root + b"/link", b"small 1")
    made.add(root + b"/one", b"linked", hard_link_group=1)
    made.add(root + b"/two", b"linked", hard_link_group=1)
    made.add(root + b"/empty")
    return made


def offered(peer: RawSender, tree: TreeSample, parts: int | None = None) -> Link:
    """Offer a tree, or its first parts."""
    control = peer.control()
    control.send(tree.offer, *tree.parts[:parts])
    control.expect(m.Needed)
    return control


def aborted(link: Link) -> None:
    """Read up to Abort, and up to the end behind it."""
    while not isinstance(link.read(), m.Abort):
        pass
    link.ends()


def hello(peer: RawSender) -> None:
    peer.control().reset()


def no_manifest(peer: RawSender) -> None:
    control = peer.control()
    control.send(sample().offer)
    peer.data()
    control.reset()


def half_a_file(peer: RawSender) -> None:
    control = peer.offer(sample(another_name()))
    control.expect(m.Needed)
    data = peer.data()
    data.send_raw(sample().chunk(0) + sample().chunk(1))
    acknowledged(data, 2)
    data.send_raw(sample().chunk(2)[:-100])
    control.send(m.Abort(Code.SOURCE, "enough"))
    control.rest()


def a_share(peer: RawSender) -> None:
    control = peer.control()
    file = sample(another_name())
    control.send(file.offer._replace(shard=m.Shard(0, 2)), m.ManifestPart(0, (file.entry,), True))
    control.expect(m.Needed)
    data = peer.data()
    data.send_raw(sample().chunk(0))
    ack(data)
    peer.data().reset()
    control.reset()


def a_stream(peer: RawSender) -> None:
    control = peer.control()
    entry = m.Entry(another_name(), m.EntryType.STREAM, 0, 0o644, 1)
    control.send(sample().offer, m.ManifestPart(0, (entry,), True))
    control.expect(m.Needed)
    data = peer.data()
    data.send_raw(sample().chunk(0))
    ack(data)
    data.send_raw(sample().chunk(2))
    control.reset()


def a_wrong_digest_of_a_file(peer: RawSender) -> None:
    control = peer.offer(sample(another_name()))
    data = peer.data()
    control.expect(m.Needed)
    for at in range(5):
        data.send_raw(sample().chunk(at))
    acknowledged(data, 5)
    control.send(sample().finish._replace(root_digest=bytes(limits.DIGEST_BYTES)))
    aborted(control)


def half_a_tree(peer: RawSender) -> None:
    it = tree()
    control = offered(peer, it)
    links = [peer.data(at) for at in range(4)]
    for at, (chunk_id, segments) in enumerate(it.chunks().items()):
        if at % 3:
            links[at % 4].send_raw(it.chunk(chunk_id, segments))
    ack(links[1])
    older = links[0]
    links[0] = peer.data(0)  # the same connection once more
    older.close()
    control.send(m.Withdrawn((1, 2)))
    links[2].reset()
    control.reset()


def half_a_manifest(peer: RawSender) -> None:
    it = tree(part_entries=2)
    control = offered(peer, it, 4)
    peer.data().send_raw(it.chunk(0, [m.Segment(1, 0, 100)])[:-20])
    control.send(it.finish)
    aborted(control)


def compared_where_it_lies(peer: RawSender) -> None:
    it = tree(checksum=True)
    control = peer.control()
    control.send(it.offer, *it.parts)
    control.reset()


def a_wrong_digest_of_a_tree(peer: RawSender) -> None:
    it = tree()
    control = offered(peer, it)
    data = peer.data()
    for chunk_id, segments in it.chunks().items():
        data.send_raw(it.chunk(chunk_id, segments))
        ack(data)
    control.send(it.finish._replace(root_digest=bytes(limits.DIGEST_BYTES)))
    aborted(control)


def a_path_that_leads_out(peer: RawSender) -> None:
    it = tree()
    it.entries[5] = it.entries[5]._replace(path=it.entries[0].path + b"/../outside")
    control = peer.control()
    control.send(it.offer, *it.parts)
    aborted(control)


def a_segment_that_is_none(peer: RawSender) -> None:
    it = tree()
    control = offered(peer, it)
    data = peer.data()
    data.send_raw(it.chunk(1, [m.Segment(2, 0, CHUNK)]))
    ack(data)
    data.send_raw(it.chunk(2, [m.Segment(2, 1, CHUNK - 1)]))
    data.expect(m.Abort)
    aborted(control)


def a_file_in_the_way(peer: RawSender) -> None:
    it = tree()
    it.entries[6] = it.entries[6]._replace(path=it.entries[1].path + b"/below")
    control = peer.control()
    control.send(it.offer, *it.parts)
    control.reset()


WAYS: Final = (
    hello,
    no_manifest,
    half_a_file,
    a_share,
    a_stream,
    a_wrong_digest_of_a_file,
    half_a_tree,
    half_a_manifest,
    compared_where_it_lies,
    a_wrong_digest_of_a_tree,
    a_path_that_leads_out,
    a_segment_that_is_none,
    a_file_in_the_way,
)


def taken(receiver: Service) -> tuple[int, int, float]:
    """Return descriptors, threads, and bytes that are lent."""
    pid = receiver.process.pid
    return len(descriptors(pid)), thread_count(pid), scrape(receiver).value("memory_used_bytes")  # the scrape is last


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_what_ended_badly_leaves_nothing(pair: Pair, way: Callable[[RawSender], None]) -> None:
    receiver = pair.receiver("--anonymous", "--give-up-after", 0.5 * UNIT, *METRICS)
    address = pair.address(receiver)
    pair.sender(pair.file("first", 3000), address).succeeds()
    before = steady_resources(receiver, (1 << 10, 1 << 10, 0.0))
    most = before[0], before[1] + 1, 0.0  # the log has a timer for what it sums up
    for _ in range(ROUNDS):
        with RawSender(address) as peer:
            way(peer)
    after = steady_resources(receiver, most)
    assert all(now <= then for now, then in zip(after, most, strict=True)), (before, after)
    pair.sender(pair.file("last", 3000), address).succeeds()
    assert "(a bug" not in receiver.stderr
    assert "transfer_not_ended_well" not in receiver.stderr


def steady_resources(receiver: Service, most: tuple[int, int, float]) -> tuple[int, int, float]:
    """Wait until nothing is lent and no more is taken than this; return what is."""
    until = time.monotonic() + HANG
    while True:
        now = taken(receiver)
        if all(mine <= other for mine, other in zip(now, most, strict=True)) or time.monotonic() > until:
            return now
        time.sleep(0.1)  # the connection of the scrape ends
