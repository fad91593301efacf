"""Senders of a stream that do what no decent one does: nothing wrong is passed on, no window is exceeded.

The rules are those of proto/README.md, "Streams" and "The window of an output".
"""

import os
from collections.abc import Callable, Iterator

import pytest

from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code
from filestreamer.wire.framing import frame
from tests.support.exchange import nothing_final
from tests.support.peer import Link, RawSender, Sample, ack, acknowledged
from tests.support.services import Pair, Service

KIB = 1024
WINDOW = 4
"""Chunks."""
STREAM = m.Entry(b"s", m.EntryType.STREAM, 0, 0o644, 1)


@pytest.fixture
def receiver(pair: Pair) -> Iterator[tuple[Service, int]]:
    """Return a receiver that writes to standard output, and who reads that."""
    read_fd, write_fd = os.pipe()
    with os.fdopen(write_fd, "wb") as stdout:
        service = pair.start(
            "receiver", "--listen", "127.0.0.1:0", "--output-file", "-", "--window", WINDOW * KIB, stdout=stdout
        )
    yield service, read_fd
    os.close(read_fd)


@pytest.fixture
def peer(receiver: tuple[Service, int]) -> Iterator[RawSender]:
    """Return a sender whose every frame is the test's own."""
    with RawSender(Pair.address(receiver[0])) as made:
        yield made


def offer_stream(peer: RawSender) -> Link:
    """Offer a stream; it is needed whole, in a window."""
    control = peer.control()
    control.send(m.Offer(KIB, None, False, 0), m.ManifestPart(0, (STREAM,), True))
    assert control.expect(m.Needed) == m.Needed((m.FileRange(0, 1),), (), WINDOW * KIB)
    return control


def finish(sample: Sample) -> m.Finish:
    return sample.finish._replace(stream_bytes=len(sample.content))


def rest_of(fd: int) -> bytes:
    """Read what comes up to the end."""
    content = b""
    while some := os.read(fd, 1 << 16):
        content += some
    return content


def test_a_decent_stream(receiver: tuple[Service, int], peer: RawSender, sample: Sample) -> None:
    """What the other tests deviate from: in any order inside of the window, acknowledged in order."""
    control = offer_stream(peer)
    links = [peer.data(0), peer.data(1)]
    links[0].send_raw(sample.chunk(1) + sample.chunk(2))
    links[1].send_raw(sample.chunk(3) + sample.chunk(0))
    assert acknowledged(links[0], 2) == [1, 2]
    assert acknowledged(links[1], 2) == [0, 3]
    for index in range(4, 10):
        links[0].send_raw(sample.chunk(index))
        assert acknowledged(links[0], 1) == [index]
    control.send(finish(sample))
    assert control.expect(m.Complete) == m.Complete(True)
    control.end_writing()
    assert rest_of(receiver[1]) == sample.content
    receiver[0].succeeds()


def test_a_chunk_beyond_the_window_ends_it(receiver: tuple[Service, int], peer: RawSender, sample: Sample) -> None:
    control = offer_stream(peer)
    data = peer.data()
    data.send_raw(sample.chunk(1) + sample.chunk(WINDOW))
    assert data.expect(m.Abort).code is Code.PROTOCOL
    assert control.expect(m.Abort).code is Code.PROTOCOL
    control.close()
    data.close()
    receiver[0].wait_for("transfer_refused")


def test_damaged_bytes_are_not_passed_on(receiver: tuple[Service, int], peer: RawSender, sample: Sample) -> None:
    control = offer_stream(peer)
    data = peer.data()
    data.send_raw(sample.chunk(0, digest=bytes(16)))
    assert ack(data) == m.ChunkAck(m.Verdict.DIGEST_MISMATCH, (0,))
    for index in range(10):
        data.send_raw(sample.chunk(index))
        assert acknowledged(data, 1) == [index]
    data.send_raw(sample.chunk(9))
    assert acknowledged(data, 1) == [9]
    control.send(finish(sample))
    control.expect(m.Complete)
    control.end_writing()
    assert rest_of(receiver[1]) == sample.content


def test_a_stream_is_not_offered_to_be_left_out(peer: RawSender) -> None:
    """It is read once, whatever it goes to."""
    offer = m.Offer(KIB, None, False, 0, m.Existing.SKIP)
    assert peer.offers(offer, m.ManifestPart(0, (STREAM,), True)).code is Code.PROTOCOL


LIES: dict[str, Callable[[m.Finish], m.Finish]] = {
    "another digest": lambda f: f._replace(root_digest=bytes(16)),
    "more chunks": lambda f: f._replace(chunks=f.chunks + 1),
    "less bytes": lambda f: f._replace(stream_bytes=f.stream_bytes - 1),
}


@pytest.mark.parametrize("lie", LIES)
def test_finish_that_is_wrong(receiver: tuple[Service, int], peer: RawSender, sample: Sample, lie: str) -> None:
    """What was passed on is not called complete."""
    control = offer_stream(peer)
    data = peer.data()
    for index in range(10):
        data.send_raw(sample.chunk(index))
        acknowledged(data, 1)
    control.send(LIES[lie](finish(sample)))
    assert control.expect(m.Abort).code is Code.DIGEST
    control.close()
    data.close()
    assert receiver[0].wait() == 1


def test_nothing_follows_a_short_chunk(receiver: tuple[Service, int], peer: RawSender, sample: Sample) -> None:
    control = offer_stream(peer)
    data = peer.data()
    content = bytes(10)
    short = Sample(b"s", content, KIB)
    data.send_raw(short.chunk(0) + sample.chunk(1))
    assert control.expect(m.Abort).code is Code.PROTOCOL
    control.close()
    data.close()
    assert rest_of(receiver[1]) == content


NO_STREAMS: dict[str, tuple[tuple[m.Entry, ...], m.Shard | None, Code]] = {
    "a size": ((STREAM._replace(size=1),), None, Code.PROTOCOL),
    "shards": ((STREAM,), m.Shard(0, 2), Code.PROTOCOL),
    "two": ((STREAM, STREAM._replace(path=b"t")), None, Code.POLICY),
    "in a directory": ((STREAM._replace(path=b"d/s"),), None, Code.POLICY),
}


def test_what_is_no_stream(pair: Pair) -> None:
    address = Pair.address(pair.receiver())
    for what, (entries, shard, code) in NO_STREAMS.items():
        with RawSender(address) as peer:
            abort = peer.offers(m.Offer(KIB, shard, False, 0), m.ManifestPart(0, entries, True))
        assert abort.code is code, what
        nothing_final(pair)


def test_standard_output_takes_no_tree(receiver: tuple[Service, int], peer: RawSender) -> None:
    directory = m.Entry(b"d", m.EntryType.DIRECTORY, 0, 0o755, 1)
    file = m.Entry(b"d/f", m.EntryType.FILE, 5, 0o644, 1)
    abort = peer.offers(m.Offer(KIB, None, False, 5), m.ManifestPart(0, (directory, file), True))
    assert abort.code is Code.POLICY
    assert "tar" in abort.reason
    assert receiver[0].poll() is None


def test_two_segments_are_no_chunk_of_a_stream(receiver: tuple[Service, int], peer: RawSender, sample: Sample) -> None:
    offer_stream(peer)
    data = peer.data()
    data.send_raw(frame(m.ChunkHeader(0, (m.Segment(0, 0, 10), m.Segment(0, KIB, 10)))))
    assert data.expect(m.Abort).code is Code.PROTOCOL
