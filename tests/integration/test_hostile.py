"""Peers that break the protocol: what they get to hear, and that nobody else notices.

First a raw sender against the real receiver, then strangers at its port, then a raw receiver against the real sender.
Codes and answers are those of proto/README.md, "Nonsense", "Opening", "Control conversation" and "ChunkHeader".
"""

import os
import random
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.digests import root_digest, segment_digest
from filestreamer.wire.errors import CONSEQUENCES, Code, Refused
from filestreamer.wire.framing import frame, frame_of
from filestreamer.wire.opening import ReceiverOpening, SenderOpening
from tests.support.peer import (
    Ended,
    Link,
    RawReceiver,
    RawSender,
    Sample,
    ack,
    acknowledged,
    end_after,
    read_chunk,
)
from tests.support.services import UNIT, Pair, Service, same

KIB = 1024
TOKEN = "a token of the tests"


@pytest.fixture
def receiver(pair: Pair) -> Iterator[Service]:
    """Start a receiver that stays; in the end it must still serve, and have no traceback in its log."""
    receiver = pair.receiver("--anonymous")  # what these peers say wrong is not that they have no token
    address = pair.address(receiver)
    yield receiver
    assert receiver.process.poll() is None, receiver.stderr
    pair.sender(pair.file("the last one", 3000), address, "--as", "the last one").succeeds()
    assert same(pair.source / "the last one", pair.destination / "the last one")
    assert "Traceback" not in receiver.stderr
    assert "(a bug)" not in receiver.stderr


@pytest.fixture
def peer(receiver: Service) -> Iterator[RawSender]:
    with RawSender(Pair.address(receiver)) as peer:
        yield peer


@pytest.fixture
def sample(seed: int) -> Sample:
    """Ten segments, the last one short."""
    return Sample.random(seed, 9 * KIB + 100, KIB)


def complete(control: Link, data: Link, sample: Sample, pair: Pair, skip: set[int] | None = None) -> None:
    """Send what is missing, finish, and check that the file is there."""
    missing = [index for index in range(sample.grid.segments) if index not in (skip or set())]
    for index in missing:
        data.send_raw(sample.chunk(index))
    assert missing == sorted(acknowledged(data, len(missing)))
    control.send(sample.finish)
    assert control.expect(m.Complete) == m.Complete(True)
    control.end_writing()
    assert sample.content == (pair.destination / os.fsdecode(sample.name)).read_bytes()


def needs_all(control: Link, sample: Sample) -> None:
    assert control.expect(m.Needed) == m.Needed((), (m.SegmentRange(0, 0, sample.grid.segments),))


def nothing_final(pair: Pair) -> None:
    """Under final names there is nothing."""
    assert [name for name in pair.received() if name != ".filestreamer"] == []


# ---------------------------------------------------------------------------------------------------- a decent exchange


def test_a_decent_raw_sender(pair: Pair, receiver: Service, peer: RawSender, sample: Sample) -> None:
    """What the other tests deviate from; chunks in any order, over several connections."""
    control = peer.offer(sample)
    needs_all(control, sample)
    links = [peer.data(0), peer.data(3)]
    for index in (9, 1, 0, 7, 5):
        links[0].send_raw(sample.chunk(index))
    for index in (2, 8, 3, 6, 4):
        links[1].send_raw(sample.chunk(index))
    assert sorted(acknowledged(links[0], 5)) == [0, 1, 5, 7, 9]
    assert sorted(acknowledged(links[1], 5)) == [2, 3, 4, 6, 8]
    complete(control, links[0], sample, pair, skip=set(range(10)))
    receiver.wait_for("transfer_complete")
    assert pair.received() == ["sample.bin"]


# -------------------------------------------------------------------------------------------------------------- opening


def test_data_before_control(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """UNKNOWN_TRANSFER, retryable; the same transfer may begin afterwards."""
    refusal = peer.refused(m.Role.DATA)
    assert (refusal.code, refusal.retryable) == (Code.UNKNOWN_TRANSFER, True)
    control = peer.offer(sample)
    needs_all(control, sample)
    complete(control, peer.data(), sample, pair)


def answer_to(peer: RawSender, *messages: m.Message) -> m.Refusal:
    """Connect, say this after the Greeting, and return the Refusal that is the last word."""
    link = peer.connect()
    link.expect(m.Greeting)
    link.send(*messages)
    refusal = link.expect(m.Refusal)
    link.end_writing()
    link.ends()
    return refusal


def test_hello_that_is_refused(pair: Pair, peer: RawSender) -> None:
    hello = peer.hello(m.Role.CONTROL)
    codes = {
        "another version": answer_to(peer, hello._replace(version=2)).code,
        "no connections": answer_to(peer, hello._replace(connections=0)).code,
        "257 connections": answer_to(peer, hello._replace(connections=257)).code,
        "control with a number": answer_to(peer, hello._replace(connection_id=1)).code,
        "beyond its connections": answer_to(peer, hello._replace(role=m.Role.DATA, connection_id=4)).code,
        "short id": answer_to(peer, hello._replace(transfer_id=bytes(15))).code,
        "long nonce": answer_to(peer, hello._replace(nonce=bytes(17))).code,
        "Offer instead": answer_to(peer, m.Offer(KIB, None, False, 0)).code,
        "Proof instead": answer_to(peer, m.Proof(bytes(32))).code,
        "Welcome instead": answer_to(peer, m.Welcome(b"")).code,
    }
    assert codes == {what: Code.VERSION if what == "another version" else Code.PROTOCOL for what in codes}
    assert pair.received() == []


def test_connection_beyond_those_of_control(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """Its own Hello announces more connections than control's did: refused, and the transfer goes on."""
    control = peer.offer(sample)
    needs_all(control, sample)
    hello = peer.hello(m.Role.DATA)._replace(connection_id=4, connections=5)
    assert answer_to(peer, hello).code is Code.PROTOCOL
    complete(control, peer.data(3), sample, pair)


def test_connections_that_differ(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """`connections` is the same in every Hello of a transfer."""
    control = peer.offer(sample)
    needs_all(control, sample)
    assert answer_to(peer, peer.hello(m.Role.DATA)._replace(connections=5)).code is Code.PROTOCOL
    complete(control, peer.data(), sample, pair)


def test_token_is_asked_for_before_anything_is_looked_up(pair: Pair) -> None:
    """Without the token nobody learns which transfers there are."""
    receiver = pair.receiver(env={"FILESTREAMER_TOKEN": TOKEN})
    address = pair.address(receiver)
    with RawSender(address, token=TOKEN) as peer, RawSender(address, token=TOKEN + "x") as stranger:
        peer.control()
        stranger.transfer_id = peer.transfer_id
        assert stranger.refused(m.Role.DATA).code is Code.TOKEN
        stranger.transfer_id = bytes(16)
        assert stranger.refused(m.Role.DATA).code is Code.TOKEN
        assert stranger.refused(m.Role.CONTROL).code is Code.TOKEN
        peer.data(0)
    assert TOKEN not in receiver.stderr


def test_proof_is_not_replayed(pair: Pair) -> None:
    """The proof of one connection opens no other one."""
    from filestreamer.wire.framing import read_body

    receiver = pair.receiver(env={"FILESTREAMER_TOKEN": TOKEN})
    with RawSender(pair.address(receiver), token=TOKEN) as peer:
        first = peer.connect()
        opening = SenderOpening(TOKEN.encode())
        greeting = read_body(first.read_exact, limits.OPENING_FRAME_BYTES)
        recorded = b"".join(map(frame_of, opening.answer(greeting, peer.transfer_id, m.Role.CONTROL, 0, 4)))
        first.send_raw(recorded)
        first.expect(m.Welcome)
        second = peer.connect()
        second.expect(m.Greeting)
        second.send_raw(recorded)
        assert second.expect(m.Refusal).code is Code.TOKEN


# -------------------------------------------------------------------------------------------------------------- control


Cases = dict[str, Callable[[Sample], list[m.Message]]]

CONTROL_NONSENSE: Cases = {
    "manifest before offer": lambda s: [m.ManifestPart(0, (s.entry,), True)],
    "finish before offer": lambda s: [s.finish],
    "offer twice": lambda s: [s.offer, s.offer],
    "finish before manifest": lambda s: [s.offer, s.finish],
    "complete": lambda _: [m.Complete(True)],
    "needed": lambda s: [s.offer, m.Needed((), (m.SegmentRange(0, 0, 1),))],
    "chunk on control": lambda s: [m.ChunkHeader(0, (s.segment(0),))],
    "hello again": lambda _: [m.Hello(1, bytes(16), m.Role.CONTROL, 0, 1, bytes(16))],
    "chunk size of 0": lambda s: [s.offer._replace(chunk_size=0)],
    "chunk size over 1 GiB": lambda s: [s.offer._replace(chunk_size=(1 << 30) + 1)],
    "too many chunks": lambda s: [
        s.offer._replace(chunk_size=1),
        m.ManifestPart(0, (s.entry._replace(size=1 << 24),), True),
    ],
    "size beyond all": lambda s: [s.offer, m.ManifestPart(0, (s.entry._replace(size=1 << 63),), True)],
    "mode with a file type": lambda s: [s.offer, m.ManifestPart(0, (s.entry._replace(mode=0o100644),), True)],
    "empty path": lambda s: [s.offer, m.ManifestPart(0, (s.entry._replace(path=b""),), True)],
    "file with a link target": lambda s: [s.offer, m.ManifestPart(0, (s.entry._replace(link_target=b"x"),), True)],
}


def codes_for(receiver: Service, cases: Cases, sample: Sample) -> dict[str, Code]:
    """Say each of these on a control connection of a transfer of its own; return the codes that end them."""
    codes = {}
    for what, make in cases.items():
        with RawSender(Pair.address(receiver)) as peer:
            codes[what] = peer.offers(*make(sample)).code
    return codes


def test_nonsense_on_control(pair: Pair, receiver: Service, sample: Sample) -> None:
    assert codes_for(receiver, CONTROL_NONSENSE, sample) == dict.fromkeys(CONTROL_NONSENSE, Code.PROTOCOL)
    assert pair.received() == []


POLICY: Cases = {
    "holes in a shard": lambda s: [
        s.offer._replace(shard=m.Shard(0, 2)),
        m.ManifestPart(0, (s.entry._replace(holes=(m.Hole(0, KIB),)),), True),
    ],
    "stream in a tree": lambda s: [
        s.offer,
        m.ManifestPart(0, (s.entry, m.Entry(b"s", m.EntryType.STREAM, 0, 0o644, 0)), True),
    ],
    "xattrs": lambda s: [s.offer, m.ManifestPart(0, (s.entry._replace(xattrs=(m.Xattr(b"user.a", b"b"),)),), True)],
}


def test_what_this_receiver_does_not_do(pair: Pair, receiver: Service, sample: Sample) -> None:
    """Refused when it is asked for; never left out silently."""
    assert codes_for(receiver, POLICY, sample) == dict.fromkeys(POLICY, Code.POLICY)
    _wait_until(lambda: pair.received() == [])


def test_owner_is_kept_where_it_is_told(pair: Pair, receiver: Service, peer: RawSender, sample: Sample) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")
    control = peer.control()
    control.send(sample.offer, m.ManifestPart(0, (sample.entry._replace(uid=12345, gid=54321),), True))
    needs_all(control, sample)
    complete(control, peer.data(), sample, pair)
    status = (pair.destination / "sample.bin").stat()
    assert (status.st_uid, status.st_gid) == (12345, 54321)
    assert receiver.poll() is None


def test_any_mode_and_time(pair: Pair, receiver: Service) -> None:
    """Setuid and its like are dropped; a time that the file system can't keep is no reason to fail."""
    for mtime_ns in (-1, -(1 << 63), (1 << 63) - 1, 0):
        sample = Sample(b"f", b"content", KIB)
        with RawSender(Pair.address(receiver)) as peer:
            control = peer.control()
            entry = sample.entry._replace(mode=0o7777, mtime_ns=mtime_ns)
            control.send(sample.offer, m.ManifestPart(0, (entry,), True))
            needs_all(control, sample)
            complete(control, peer.data(), sample, pair)
            control.ends()
        status = (pair.destination / "f").stat()
        assert status.st_mode == 0o100777
        if abs(mtime_ns) < 1 << 32:
            assert mtime_ns == status.st_mtime_ns


def test_an_offer_too_large_to_keep_is_refused_early(pair: Pair, peer: RawSender) -> None:
    """2^23 chunks of 1 GiB fit the protocol, and no disk: NO_SPACE, before anything is written."""
    sample = Sample(b"f", b"", 1 << 30)
    entry = sample.entry._replace(size=1 << 53)
    assert peer.offers(sample.offer, m.ManifestPart(0, (entry,), True)).code is Code.NO_SPACE
    assert pair.received() == []


def test_final_name_is_a_symlink(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """It is replaced, not followed: what it leads to stays as it is."""
    outside = pair.source / "outside"
    outside.write_bytes(b"outside")
    (pair.destination / "sample.bin").symlink_to(outside)
    control = peer.offer(sample)
    needs_all(control, sample)
    complete(control, peer.data(), sample, pair)
    assert outside.read_bytes() == b"outside"
    assert not (pair.destination / "sample.bin").is_symlink()


@pytest.mark.parametrize("suffix", [".data", ".ledger"])
def test_staged_file_is_a_symlink(pair: Pair, peer: RawSender, sample: Sample, suffix: str) -> None:
    """Whoever can write into the destination can't make the receiver write elsewhere."""
    outside = pair.source / "outside"
    outside.write_bytes(b"outside")
    staging = pair.destination / ".filestreamer"
    staging.mkdir(0o700)
    (staging / f"{segment_digest(sample.name).hex()}{suffix}").symlink_to(outside)
    assert peer.offers(sample.offer, m.ManifestPart(0, (sample.entry,), True)).code is Code.DESTINATION
    assert outside.read_bytes() == b"outside"
    nothing_final(pair)


# ----------------------------------------------------------------------------------------------------------------- data


BAD_SEGMENTS: dict[str, list[m.Segment]] = {
    "beyond the end": [m.Segment(0, 10 * KIB, KIB)],
    "across the end": [m.Segment(0, 9 * KIB, KIB)],
    "far beyond": [m.Segment(0, 1 << 62, KIB)],
    "a file never offered": [m.Segment(1, 0, KIB)],
    "a file number beyond all": [m.Segment((1 << 64) - 1, 0, KIB)],
    "not on the grid": [m.Segment(0, 1, KIB)],
    "half a segment": [m.Segment(0, 0, KIB // 2)],
    "two segments as one": [m.Segment(0, 0, 2 * KIB)],
    "the last one, too short": [m.Segment(0, 9 * KIB, 99)],
    "twice": [m.Segment(0, 0, KIB), m.Segment(0, 0, KIB)],
    "a good one and a bad one": [m.Segment(0, 0, KIB), m.Segment(0, 1, KIB)],
    "more than a chunk": [m.Segment(0, 0, KIB), m.Segment(0, KIB, KIB)],
}


def answers_on_data(receiver: Service, sample: Sample, messages: dict[str, m.Message]) -> dict[str, object]:
    """Say each of these on a data connection of a transfer of its own; return the code of the Abort that answers.

    Where no answer comes, the receiver waits for payload, or has taken it for good.
    """
    answers: dict[str, object] = {}
    for what, message in messages.items():
        with RawSender(Pair.address(receiver)) as peer:
            named = sample._replace(name=b"%d" % len(answers))
            control = peer.offer(named)
            needs_all(control, named)
            data, other = peer.data(0), peer.data(1)
            other.send_raw(named.chunk(3))
            assert acknowledged(other, 1) == [3]
            data.send(message)
            data.end_writing()
            try:
                answers[what] = data.expect(m.Abort).code
            except Ended as error:
                answers[what] = error
            else:
                data.ends()
    return answers


def test_bad_segments(pair: Pair, receiver: Service, sample: Sample) -> None:
    """Refused with PROTOCOL by the header alone, before a byte of payload is read or written."""
    headers: dict[str, m.Message] = {what: m.ChunkHeader(0, tuple(bad)) for what, bad in BAD_SEGMENTS.items()}
    assert answers_on_data(receiver, sample, headers) == dict.fromkeys(headers, Code.PROTOCOL)
    nothing_final(pair)


def test_nonsense_on_data_ends_the_transfer(pair: Pair, receiver: Service, peer: RawSender, sample: Sample) -> None:
    """PROTOCOL is not retryable: the whole transfer is over, control hears it, and so does the user."""
    control = peer.offer(sample)
    needs_all(control, sample)
    data, other = peer.data(0), peer.data(1)
    data.send(m.ChunkHeader(0, (m.Segment(0, 1, KIB),)))
    assert data.expect(m.Abort).code is Code.PROTOCOL
    data.close()
    assert control.expect(m.Abort).code is Code.PROTOCOL
    control.close()
    other.ends()
    (result,) = receiver.wait_for_results()
    assert (result["exit_code"], result["error"]["code"]) == (3, "protocol")
    nothing_final(pair)


def test_a_segment_twice_that_is_here_already(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """Twice in one chunk is refused also where it is verified and would only be compared."""
    control = peer.offer(sample)
    needs_all(control, sample)
    data = peer.data()
    data.send_raw(sample.chunk(0))
    assert acknowledged(data, 1) == [0]
    data.send(m.ChunkHeader(0, (sample.segment(0), sample.segment(0))))
    assert data.expect(m.Abort).code is Code.PROTOCOL


def test_nonsense_on_data(pair: Pair, receiver: Service, sample: Sample) -> None:
    nonsense: dict[str, m.Message] = {
        "finish": m.Finish(1, bytes(16)),
        "progress": m.Progress(m.Phase.MOVING, 0, 0),
        "acknowledgement": m.ChunkAck(m.Verdict.OK, (0,)),
        "offer": m.Offer(KIB, None, False, 0),
        "no segments": m.ChunkHeader(0, ()),
        "empty segment": m.ChunkHeader(0, (m.Segment(0, 0, 0),)),
        "large segment": m.ChunkHeader(0, (m.Segment(0, 0, (1 << 30) + 1),)),
    }
    assert answers_on_data(receiver, sample, nonsense) == dict.fromkeys(nonsense, Code.PROTOCOL)
    nothing_final(pair)


def test_abort_on_data_ends_the_transfer(pair: Pair, receiver: Service, peer: RawSender, sample: Sample) -> None:
    """A code that is not retryable ends the transfer, on whichever connection it comes."""
    control = peer.offer(sample)
    needs_all(control, sample)
    peer.data().send(m.Abort(Code.SOURCE_CHANGED, "it changed"))
    control.end_writing()
    (result,) = receiver.wait_for_results()
    assert (result["exit_code"], result["error"]["code"]) == (4, "source_changed")
    nothing_final(pair)


def test_corrupt_frame_ends_its_connection_only(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """CORRUPT is retryable: the transfer goes on over the other connections, and over the same one anew."""
    control = peer.offer(sample)
    needs_all(control, sample)
    data = peer.data()
    damaged = bytearray(frame(m.ChunkHeader(0, (sample.segment(0),))))
    damaged[-1] ^= 1
    data.send_raw(bytes(damaged))
    assert data.expect(m.Abort).code is Code.CORRUPT
    complete(control, peer.data(), sample, pair)


def test_length_that_lies(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """Half a chunk, then the connection is cut: that chunk is not here, whatever its header said."""
    control = peer.offer(sample)
    needs_all(control, sample)
    data = peer.data()
    whole = sample.chunk(5)
    data.send_raw(whole[: len(whole) // 2])
    data.end_writing()
    data.ends()
    control.send(sample.finish)
    needs_all(control, sample)
    nothing_final(pair)
    complete(control, peer.data(), sample, pair)


def test_cut_inside_the_digest(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """All payload came, the digest did not: not here."""
    control = peer.offer(sample)
    needs_all(control, sample)
    data = peer.data()
    data.send_raw(sample.chunk(5)[:-1])
    data.reset()
    again = peer.data()
    again.send_raw(sample.chunk(0))
    assert acknowledged(again, 1) == [0]
    control.send(sample.finish)
    assert control.expect(m.Needed) == m.Needed((), (m.SegmentRange(0, 1, 9),))
    complete(control, again, sample, pair, skip={0})


def test_wrong_digest(pair: Pair, receiver: Service, peer: RawSender, sample: Sample) -> None:
    """DIGEST_MISMATCH, and the chunk can be sent again, over another connection too."""
    control = peer.offer(sample)
    needs_all(control, sample)
    data, other = peer.data(0), peer.data(1)
    for _ in range(5):  # how often is for the sender to bound
        data.send_raw(sample.chunk(2, digest=bytes(16)))
        assert ack(data) == m.ChunkAck(m.Verdict.DIGEST_MISMATCH, (2,))
    other.send_raw(sample.chunk(2))
    assert acknowledged(other, 1) == [2]
    complete(control, data, sample, pair, skip={2})
    (result,) = receiver.wait_for_results()
    assert result["resent_chunks"] == 5


def test_damage_in_payload(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """A bit that flips on its way, past TCP's checksum."""
    control = peer.offer(sample)
    needs_all(control, sample)
    data = peer.data()
    damaged = bytearray(sample.chunk(2))
    damaged[-100] ^= 1
    data.send_raw(bytes(damaged))
    assert ack(data) == m.ChunkAck(m.Verdict.DIGEST_MISMATCH, (2,))
    complete(control, data, sample, pair)


def test_verified_chunk_is_not_written_again(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """A second delivery is compared: OK where it is the same, DIGEST_MISMATCH where not; the first stays."""
    control = peer.offer(sample)
    needs_all(control, sample)
    data = peer.data()
    other = Sample(sample.name, sample.content[::-1], sample.chunk_size)
    data.send_raw(sample.chunk(0))
    assert acknowledged(data, 1) == [0]
    data.send_raw(other.chunk(0))
    assert ack(data) == m.ChunkAck(m.Verdict.DIGEST_MISMATCH, (0,))
    data.send_raw(other.chunk(0, digest=sample.digest(0)))
    assert ack(data) == m.ChunkAck(m.Verdict.DIGEST_MISMATCH, (0,))
    data.send_raw(sample.chunk(0))
    assert acknowledged(data, 1) == [0]
    complete(control, data, sample, pair, skip={0})


def test_chunk_that_is_being_written_elsewhere(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """The older connection is shut and has left first."""
    control = peer.offer(sample)
    needs_all(control, sample)
    older, newer = peer.data(0), peer.data(1)
    whole = sample.chunk(4)
    # One piece: chunk 3 is acknowledged when the receiver has to wait for the rest of chunk 4, which it has begun.
    older.send_raw(sample.chunk(3) + whole[: len(whole) // 2])
    assert acknowledged(older, 1) == [3]
    newer.send_raw(sample.chunk(4))
    assert acknowledged(newer, 1) == [4]
    complete(control, newer, sample, pair, skip={3, 4})


def test_same_connection_id_supersedes(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """The older connection ends without a frame; what it had begun is not here."""
    control = peer.offer(sample)
    needs_all(control, sample)
    older = peer.data(2)
    whole = sample.chunk(4)
    older.send_raw(whole[:-17])
    newer = peer.data(2)
    older.ends()
    control.send(sample.finish)
    needs_all(control, sample)
    complete(control, newer, sample, pair)


# --------------------------------------------------------------------------------------------------------------- finish


def test_finish_before_all_is_there(pair: Pair, peer: RawSender, sample: Sample) -> None:
    control = peer.offer(sample)
    needs_all(control, sample)
    data = peer.data()
    for index in (0, 1, 4, 9):
        data.send_raw(sample.chunk(index))
    acknowledged(data, 4)
    control.send(sample.finish)
    assert control.expect(m.Needed) == m.Needed((), (m.SegmentRange(0, 2, 2), m.SegmentRange(0, 5, 4)))
    nothing_final(pair)
    complete(control, data, sample, pair, skip={0, 1, 4, 9})


@pytest.mark.parametrize("what", ["root digest", "chunks"])
def test_finish_that_is_wrong(pair: Pair, receiver: Service, peer: RawSender, sample: Sample, what: str) -> None:
    """DIGEST; nothing stands under the final name, and what was staged is discarded."""
    control = peer.offer(sample)
    needs_all(control, sample)
    data = peer.data()
    for index in range(10):
        data.send_raw(sample.chunk(index))
    acknowledged(data, 10)
    finish = sample.finish
    control.send(finish._replace(chunks=11) if what == "chunks" else finish._replace(root_digest=bytes(16)))
    assert control.expect(m.Abort).code is Code.DIGEST
    control.close()
    (result,) = receiver.wait_for_results()
    assert (result["exit_code"], result["error"]["code"]) == (1, "digest")
    assert pair.received() == []


def test_chunk_after_finish(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """A second delivery may cross the end; it changes nothing."""
    control = peer.offer(sample)
    needs_all(control, sample)
    data = peer.data()
    for index in range(10):
        data.send_raw(sample.chunk(index))
    acknowledged(data, 10)
    control.send(sample.finish)
    data.send_raw(sample.chunk(0, digest=bytes(16)))
    assert control.expect(m.Complete) == m.Complete(True)
    assert sample.content == (pair.destination / "sample.bin").read_bytes()


def test_empty_file(pair: Pair, peer: RawSender) -> None:
    sample = Sample(b"empty", b"", KIB)
    control = peer.offer(sample)
    control.send(m.Finish(0, root_digest([])))
    assert control.expect(m.Complete) == m.Complete(True)
    assert (pair.destination / "empty").read_bytes() == b""


# ------------------------------------------------------------------------------------------------------------ rejoining


def answers(control: Link, segments: int) -> tuple[set[int], dict[int, bytes]]:
    """Read Needed and Held until every segment is answered; return both."""
    needed: set[int] = set()
    held: dict[int, bytes] = {}
    while len(needed) + len(held) < segments:
        message = control.expect(tuple)
        assert isinstance(message, m.Needed | m.Held), message
        if isinstance(message, m.Needed):
            assert message.files == ()
            for files in message.segments:
                needed.update(range(files.first_segment, files.first_segment + files.segments))
        else:
            for at in range(0, len(message.digests), 16):
                held[message.first_segment + at // 16] = message.digests[at : at + 16]
    assert not needed & held.keys()
    return needed, held


@pytest.mark.parametrize("end", ["close", "reset", "keep"])
def test_control_comes_back(pair: Pair, peer: RawSender, sample: Sample, end: str) -> None:
    """The repeated Offer is answered from the chunk states; data connections stay."""
    control = peer.offer(sample)
    needs_all(control, sample)
    data = peer.data()
    for index in (0, 1, 4, 9):
        data.send_raw(sample.chunk(index))
    acknowledged(data, 4)
    if end == "close":
        control.close()
    elif end == "reset":
        control.reset()
    again = peer.offer(sample)
    needed, held = answers(again, 10)
    assert needed == {2, 3, 5, 6, 7, 8}
    assert held == {index: sample.digest(index) for index in (0, 1, 4, 9)}
    if end == "keep":
        control.ends()
    complete(again, data, sample, pair, skip={0, 1, 4, 9})


def test_rejoining_with_another_offer(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """PROTOCOL: a transfer is offered again as it was."""
    control = peer.offer(sample)
    needs_all(control, sample)
    control.close()
    assert peer.offers(sample.offer._replace(chunk_size=2 * KIB)).code is Code.PROTOCOL
    nothing_final(pair)


def test_rejoining_with_another_manifest(pair: Pair, peer: RawSender, sample: Sample) -> None:
    control = peer.offer(sample)
    needs_all(control, sample)
    control.close()
    entry = sample.entry._replace(path=b"another")
    assert peer.offers(sample.offer, m.ManifestPart(0, (entry,), True)).code is Code.PROTOCOL
    nothing_final(pair)


def send_all(peer: RawSender, sample: Sample) -> tuple[Link, Link]:
    """Offer and send everything, up to Finish: (control, data)."""
    control = peer.offer(sample)
    needs_all(control, sample)
    data = peer.data()
    for index in range(sample.grid.segments):
        data.send_raw(sample.chunk(index))
    acknowledged(data, sample.grid.segments)
    return control, data


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize("once", [False, True], ids=["stays", "once"])
def test_complete_is_repeated(pair: Pair, sample: Sample, end: str, once: bool) -> None:
    """Complete was lost: who comes back after the commit hears it again, also where control was closed before it."""
    receiver = pair.receiver(*(["--once"] if once else []))
    with RawSender(pair.address(receiver)) as peer:
        control, _ = send_all(peer, sample)
        control.send(sample.finish)
        if end == "close":
            control.end_writing()
        final = pair.destination / "sample.bin"
        _wait_until(final.exists)
        control.reset()
        again = peer.offer(sample)
        answer = again.expect(tuple)
        while isinstance(answer, m.Held):  # the directory is being synced still
            answer = again.expect(tuple)
        assert answer == m.Complete(True)
        again.end_writing()
        again.ends()
    assert [result["status"] for result in receiver.wait_for_results()] == ["complete"]
    if once:
        assert receiver.wait() == 0
    assert sample.content == final.read_bytes()


def _wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 2 * UNIT
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_finish_is_repeated_without_waiting(pair: Pair, peer: RawSender, sample: Sample) -> None:
    """Rejoining where all is done: Offer, ManifestPart and Finish at once; answers and Complete come."""
    control, _ = send_all(peer, sample)
    control.reset()
    again = peer.control()
    again.send(sample.offer, m.ManifestPart(0, (sample.entry,), True), sample.finish)
    _, held = answers(again, 10)
    assert len(held) == 10
    assert again.expect(m.Complete) == m.Complete(True)
    assert sample.content == (pair.destination / "sample.bin").read_bytes()


def test_corrupt_frame_on_control_is_not_the_end(pair: Pair, receiver: Service, peer: RawSender, seed: int) -> None:
    """CORRUPT is retryable: the sender opens control again, and what it believes acknowledged is still so.

    It may send what it had outstanding, and Finish, without waiting for answers: it was answered before.
    """
    sample = Sample.random(seed, 64 * 256 * KIB, 256 * KIB)
    control, data = send_all(peer, sample)
    damaged = bytearray(frame(m.Progress(m.Phase.MOVING, 1, 2)))
    damaged[-1] ^= 1
    control.send_raw(bytes(damaged))
    assert control.expect(m.Abort).code is Code.CORRUPT
    control.close()
    data.close()
    again = peer.control()
    again.send(sample.offer, m.ManifestPart(0, (sample.entry,), True), sample.finish)
    outcome: m.Message | None = None
    while outcome is None:
        message = again.read()
        if isinstance(message, m.Needed):  # in answer to Finish: it misses them, whatever was believed
            data = peer.data()
            for segments in message.segments:
                for index in range(segments.first_segment, segments.first_segment + segments.segments):
                    data.send_raw(sample.chunk(index))
                    ack(data)
            again.send(sample.finish)
        elif isinstance(message, m.Complete | m.Abort):
            outcome = message
    assert outcome == m.Complete(True)
    assert sample.content == (pair.destination / "sample.bin").read_bytes()


def test_a_later_transfer_resumes(pair: Pair, receiver: Service, sample: Sample) -> None:
    """What was acknowledged is held for another transfer of the file, whatever its sender did in the end."""
    with RawSender(Pair.address(receiver)) as first:
        control = first.offer(sample)
        needs_all(control, sample)
        data = first.data()
        for index in (0, 1, 4, 9):
            data.send_raw(sample.chunk(index))
        acknowledged(data, 4)
        control.send(m.Abort(Code.SHUTTING_DOWN, "bye"))
    receiver.wait_for("transfer_failed")
    with RawSender(Pair.address(receiver)) as second:
        control = second.offer(sample)
        needed, held = answers(control, 10)
        assert needed == {2, 3, 5, 6, 7, 8}
        assert held == {index: sample.digest(index) for index in (0, 1, 4, 9)}
        complete(control, second.data(), sample, pair, skip={0, 1, 4, 9})


def test_held_chunk_that_differs_is_replaced(pair: Pair, receiver: Service, sample: Sample, seed: int) -> None:
    """Another content under the same name: what differs is sent, what is equal need not be."""
    changed = Sample(sample.name, sample.content[: 5 * KIB] + random.Random(seed).randbytes(4 * KIB + 100), KIB)
    with RawSender(Pair.address(receiver)) as first:
        control, _ = send_all(first, sample)
        control.send(m.Abort(Code.SHUTTING_DOWN, "bye"))
    receiver.wait_for("transfer_failed")
    with RawSender(Pair.address(receiver)) as second:
        control = second.offer(changed)
        _, held = answers(control, 10)
        assert held == {index: sample.digest(index) for index in range(10)}
        complete(control, second.data(), changed, pair, skip=set(range(5)))


def test_busy_until_the_first_is_gone(pair: Pair, receiver: Service, sample: Sample) -> None:
    """A second transfer of the same name is BUSY; one whose sender has no connection left gives way, SUPERSEDED."""
    address = Pair.address(receiver)
    with RawSender(address) as first, RawSender(address) as second:
        control = first.offer(sample)
        needs_all(control, sample)
        abort = second.offers(sample.offer, m.ManifestPart(0, (sample.entry,), True))
        assert abort.code is Code.BUSY
        control.close()
        _wait_until(lambda: bool(receiver.events("control_lost")))
        control = second.offer(sample)
        needs_all(control, sample)
        complete(control, second.data(), sample, pair)


# ------------------------------------------------------------------------------------------------------------ strangers


STRANGERS = {
    "http": b"GET / HTTP/1.1\r\nHost: example\r\n\r\n",
    "tls": bytes.fromhex("16030100f8010000f40303") + bytes(64),
    "ssh": b"SSH-2.0-OpenSSH_9.9\r\n",
    "zeros": bytes(100),
    "ones": b"\xff" * 100,
    "newlines": b"\r\n" * 50,
    "frame over 1 KiB": struct.pack(">I8s", 1025, bytes(8)),
    "wrong checksum": struct.pack(">I8s", 4, bytes(8)) + b"abcd",
    "no protobuf": frame_of(b"\xff\xff\xff\xff"),
    "unknown kind": frame_of(b"\xfa\x7f\x00"),
}
DAMAGE = {"zeros", "ones", "newlines", "frame over 1 KiB", "wrong checksum"}
"""What may have been a frame before it was damaged: CORRUPT, retryable. The others are PROTOCOL."""


def test_strangers_are_told_why(pair: Pair, receiver: Service) -> None:
    """A cheap end with a clear reason, at once; the log names the first few of a kind, and no result is written."""
    reasons: dict[Code, list[str]] = {}
    for what, first_bytes in STRANGERS.items():
        with RawSender(Pair.address(receiver)) as stranger:
            link = stranger.connect()
            link.expect(m.Greeting)
            link.send_raw(first_bytes)
            refusal = link.expect(m.Refusal)
            link.ends()
        assert refusal.code is (Code.CORRUPT if what in DAMAGE else Code.PROTOCOL), what
        assert {"http": "HTTP", "tls": "TLS", "ssh": "SSH"}.get(what, "") in refusal.reason
        reasons.setdefault(refusal.code, []).append(refusal.reason)
    lines = receiver.events("connection_refused")
    for code, told in reasons.items():
        assert told[:5] == [line["reason"] for line in lines if line["code"] == code.name.lower()]
    assert receiver.results == []
    assert pair.received() == []


def test_garbage_disturbs_no_transfer(pair: Pair, receiver: Service, sample: Sample, seed: int) -> None:
    """200 strangers of random bytes, half of them resetting, while a transfer is under way."""
    generator = random.Random(seed)
    address = Pair.address(receiver)
    with RawSender(address) as peer, RawSender(address) as stranger:
        control = peer.offer(sample)
        needs_all(control, sample)
        data = peer.data()
        for number in range(200):
            link = stranger.connect()
            link.send_raw(generator.randbytes(generator.randrange(1, 200)))
            if number % 2:
                link.reset()
            else:
                link.close()
            if number % 20 == 0:
                data.send_raw(sample.chunk(number // 20))
        assert sorted(acknowledged(data, 10)) == list(range(10))
        complete(control, data, sample, pair, skip=set(range(10)))


def test_a_stranger_that_says_hello_and_resets(pair: Pair, receiver: Service) -> None:
    """Gone before it could be welcomed: no transfer, so no result."""
    with RawSender(Pair.address(receiver)) as stranger:
        link = stranger.connect()
        link.expect(m.Greeting)
        receiver.signal(signal.SIGSTOP)
        link.send(stranger.hello(m.Role.CONTROL))
        link.reset()
        receiver.signal(signal.SIGCONT)
    pair.sender(pair.file("f", 100), Pair.address(receiver)).succeeds()
    time.sleep(1.5)  # longer than a transfer's clock ticks: a result would be here by now
    assert [result["status"] for result in receiver.wait_for_results()] == ["complete"]


def read_until_end(link: Link) -> tuple[list[m.Message], float]:
    """Read all that comes; also return when the end came."""
    return link.rest(), time.monotonic()


@pytest.mark.timeout(6 * UNIT)
def test_silence_frees_its_slot(pair: Pair) -> None:
    """Who says nothing, half a frame, ten bytes a second, or Hello without Proof is refused with TIMEOUT in the end."""
    receiver = pair.receiver(env={"FILESTREAMER_TOKEN": TOKEN})
    address = pair.address(receiver)
    with RawSender(address) as stranger:
        links = {what: stranger.connect() for what in ("silent", "half a frame", "dribbling", "no proof")}
        for link in links.values():
            link.expect(m.Greeting)
        hello = frame(stranger.hello(m.Role.CONTROL))
        links["half a frame"].send_raw(hello[:20])
        links["no proof"].send_raw(hello)
        links["dribbling"].socket.settimeout(0.1)
        dribbled = 0
        answer = b""
        while not answer and dribbled < len(hello):
            links["dribbling"].send_raw(hello[dribbled : dribbled + 1])
            dribbled += 1
            try:
                answer = links["dribbling"].socket.recv(1, socket.MSG_PEEK)
            except TimeoutError:
                continue
            except ConnectionError:
                break
        links["dribbling"].socket.settimeout(3 * UNIT)
        codes = {
            what: [message.code for message in link.rest() if isinstance(message, m.Refusal)]
            for what, link in links.items()
        }
    assert codes == {what: [Code.TIMEOUT] for what in links}
    assert len(receiver.events("connection_refused")) == 4
    assert receiver.results == []
    env = {"FILESTREAMER_TOKEN": TOKEN}
    pair.sender(pair.file("f", 10), address, env=env).succeeds()


def test_600_silent_connections(pair: Pair, receiver: Service) -> None:
    """More than there are slots: the oldest give way, and a real transfer runs to its end beside them."""
    address = Pair.address(receiver)
    file = pair.file("f", 3 << 20)
    with RawSender(address) as stranger:
        links = [stranger.connect() for _ in range(600)]
        sender = pair.sender(file, address, "--connections", 8, "--chunk-size", "64KiB")
        links += [stranger.connect() for _ in range(50)]
        sender.succeeds()
        assert same(file, pair.destination / "f")
        assert len(links) == 650
    assert {"limit"} >= {line["code"] for line in receiver.events("connection_refused")} - {"timeout"}


# ------------------------------------------------------------------------------------------- a receiver that is hostile


@pytest.fixture
def source(pair: Pair) -> Path:
    """Ten segments of 1 KiB."""
    return pair.file("f", 10 * KIB)


def start_sender(pair: Pair, source: Path, receiver: RawReceiver, *args: object) -> Service:
    return pair.sender(source, receiver.address, "--chunk-size", KIB, "--connections", 1, *args)


ANSWERS: dict[str, m.Message] = {
    "beyond the file": m.Needed((), (m.SegmentRange(0, 5, 6),)),
    "far beyond the file": m.Needed((), (m.SegmentRange(0, (1 << 23) - 1, 1),)),
    "segments of a file never offered": m.Needed((), (m.SegmentRange(1, 0, 1),)),
    "a file never offered": m.Needed((m.FileRange(1, 1),), ()),
    "more files than were offered": m.Needed((m.FileRange(0, 2),), ()),
    "held beyond the file": m.Held(0, 9, bytes(32)),
    "held of another file": m.Held(1, 0, bytes(16)),
    "unchecked": m.Held(0, 0, b"", (m.FileRange(0, 1),)),
    "a share of a whole": m.Complete(False),
    "offer": m.Offer(KIB, None, False, 0),
    "acknowledgement on control": m.ChunkAck(m.Verdict.OK, (0,)),
    "welcome again": m.Welcome(b""),
}


def test_nonsense_from_a_receiver(pair: Pair, source: Path) -> None:
    """The sender says PROTOCOL and exits 3; it does not believe any of it."""
    with ThreadPoolExecutor(4) as pool:
        ends = dict(
            zip(ANSWERS, pool.map(lambda what: end_of_sender(pair, source, ANSWERS[what]), ANSWERS), strict=True)
        )
    assert ends == dict.fromkeys(ANSWERS, (Code.PROTOCOL, 3, "protocol"))


def end_of_sender(pair: Pair, source: Path, answer: m.Message) -> tuple[object, int, str | None]:
    """Answer an offer with nonsense; return what the sender says, its exit code, and its result's error."""
    with RawReceiver() as receiver:
        sender = start_sender(pair, source, receiver, "--give-up-after", 5)
        control, _, _ = receiver.control()
        return end_after(sender, control, answer)


def test_complete_before_anything_was_sent(pair: Pair, source: Path) -> None:
    """Exit 0 means that every byte was acknowledged or found: who has sent nothing has nothing completed."""
    with RawReceiver() as receiver:
        sender = start_sender(pair, source, receiver)
        control, _, _ = receiver.control()
        control.send(m.Complete(True))
        assert sender.wait() != 0


def test_acknowledgement_of_a_chunk_that_was_not_sent(pair: Pair, source: Path) -> None:
    with RawReceiver() as receiver:
        sender = start_sender(pair, source, receiver)
        control, data = receiver.needs(10)
        data.send(m.ChunkAck(m.Verdict.OK, (10,)))
        assert control.expect(m.Abort).code is Code.PROTOCOL
        receiver.hang_up()
        sender.fails(3, "protocol", status="refused")


def test_acknowledgement_twice(pair: Pair, source: Path) -> None:
    with RawReceiver() as receiver:
        sender = start_sender(pair, source, receiver)
        control, data = receiver.needs(10)
        chunk = read_chunk(data)
        data.send(m.ChunkAck(m.Verdict.OK, (chunk.chunk_id, chunk.chunk_id)))
        assert control.expect(m.Abort).code is Code.PROTOCOL
        receiver.hang_up()
        sender.fails(3, "protocol", status="refused")


def test_chunk_that_always_arrives_damaged(pair: Pair, source: Path) -> None:
    """Sent SENDS_PER_CHUNK times, then exit 1 with the advice to suspect the network."""
    with RawReceiver() as receiver:
        sender = pair.sender(source, receiver.address, "--chunk-size", KIB, "--connections", 1)
        _, data = receiver.needs(10)
        sends = 0
        try:
            while True:
                chunk = read_chunk(data)
                sends += chunk.chunk_id == 4
                verdict = m.Verdict.DIGEST_MISMATCH if chunk.chunk_id == 4 else m.Verdict.OK
                data.send(m.ChunkAck(verdict, (chunk.chunk_id,)))
        except Ended:
            pass
        message = sender.fails(1, "digest")
    assert sends == limits.SENDS_PER_CHUNK
    assert "chunk 4" in message


def test_closes_after_hello(pair: Pair, source: Path) -> None:
    """It may be a receiver that restarts: tried again until --give-up-after, exit 1."""
    with RawReceiver() as receiver:
        sender = start_sender(pair, source, receiver, "--give-up-after", 1)
        tries = 0
        receiver.patience(0.1)
        while sender.process.poll() is None:
            try:
                receiver.hello()[0].close()
                tries += 1
            except (TimeoutError, Ended):
                continue
        assert "closed the connection" in sender.fails(1, "timeout")
        assert tries >= 2


def test_something_else_listens_there(pair: Pair, source: Path) -> None:
    """Another service on that port: exit 3 at once where it is known for one, else exit 1 after some more tries."""
    greetings = {**STRANGERS, "http": b"HTTP/1.1 400 Bad Request\r\n\r\n"}

    def end(what: str) -> str:
        with RawReceiver() as receiver:
            sender = start_sender(pair, source, receiver, "--give-up-after", 1)
            receiver.patience(0.1)
            while sender.process.poll() is None:
                try:
                    receiver.accept().send_raw(greetings[what])
                except TimeoutError:
                    continue
            if what in DAMAGE:
                return sender.fails(1, "timeout")
            return sender.fails(3, "protocol", status="refused")

    with ThreadPoolExecutor(4) as pool:
        messages = dict(zip(greetings, pool.map(end, greetings), strict=True))
    assert ("HTTP" in messages["http"], "SSH" in messages["ssh"], "TLS" in messages["tls"]) == (True, True, True)


def test_something_that_closes_listens_there(pair: Pair, source: Path) -> None:
    """It may be a receiver that starts, or a proxy before it: tried again until --give-up-after, exit 1."""
    with RawReceiver() as receiver:
        sender = start_sender(pair, source, receiver, "--give-up-after", 1)
        receiver.patience(0.1)
        while sender.process.poll() is None:
            try:
                receiver.accept().close()
            except TimeoutError:
                continue
        assert receiver.address in sender.fails(1, "timeout")


@pytest.mark.parametrize("where", ["control", "data"])
def test_garbage_from_a_receiver(pair: Pair, source: Path, where: str) -> None:
    """A sound frame with nonsense in it is nobody's damage: PROTOCOL, exit 3."""
    with RawReceiver() as receiver:
        sender = start_sender(pair, source, receiver)
        control, data = receiver.needs(10)
        (control if where == "control" else data).send_raw(frame_of(b"\xff\xff\xff\xff"))
        assert control.expect(m.Abort).code is Code.PROTOCOL
        receiver.hang_up()
        sender.fails(3, "protocol", status="refused")


@pytest.mark.parametrize("damage", [bytes(100), b"\xff" * 100, STRANGERS["wrong checksum"]], ids=["0", "1", "sum"])
def test_damage_on_control_is_not_the_end(pair: Pair, source: Path, damage: bytes) -> None:
    """The sender opens control again, and offers the same file under the same transfer_id."""
    with RawReceiver() as receiver:
        sender = start_sender(pair, source, receiver)
        control, hello = receiver.welcome(m.Role.CONTROL)
        offers = [(control.expect(m.Offer), control.expect(m.ManifestPart))]
        control.send_raw(damage)
        again, hello_again = receiver.welcome(m.Role.CONTROL)
        offers.append((again.expect(m.Offer), again.expect(m.ManifestPart)))
        assert offers[0] == offers[1]
        assert hello.transfer_id == hello_again.transfer_id
        control.close()
        again.send(m.Abort(Code.POLICY, "enough"))
        sender.fails(3, "policy", status="refused")


def test_data_connections_are_opened_while_control_is(pair: Pair, source: Path) -> None:
    """Each step as soon as it may be: on a long path every one of them takes a round-trip."""
    with RawReceiver() as receiver:
        sender = start_sender(pair, source, receiver)
        control, data = receiver.accept(), receiver.accept()
        openings = [ReceiverOpening(receiver.incarnation, None) for _ in range(2)]
        for link, opening in zip((control, data), openings, strict=True):
            link.send_raw(frame_of(opening.greeting_body))
        assert control.expect(m.Hello).role is m.Role.CONTROL
        control.send(openings[0].welcome())
        assert data.expect(m.Hello).role is m.Role.DATA
        data.send(openings[1].welcome())
        control.expect(m.Offer)
        control.expect(m.ManifestPart)
        control.send(m.Needed((), (m.SegmentRange(0, 0, 10),)))
        chunk_ids = tuple(read_chunk(data).chunk_id for _ in range(10))
        data.send(m.ChunkAck(m.Verdict.OK, chunk_ids))
        assert control.expect(m.Finish).chunks == 10
        control.send(m.Complete(True))
        receiver.hang_up()
        assert sender.succeeds()["connections"] == 1


def test_data_connections_say_nothing_where_control_is_turned_away(pair: Pair, source: Path) -> None:
    """The second try, and what is told of the first: once, by control."""
    with RawReceiver() as receiver:
        sender = start_sender(pair, source, receiver)
        control, data = receiver.accept(), receiver.accept()
        for link in (control, data):
            link.send_raw(frame_of(ReceiverOpening(receiver.incarnation, None).greeting_body))
        control.expect(m.Hello)
        control.send(m.Refusal(Code.BUSY, "later"))
        data.ends()
        _, data = receiver.needs(10)
        data.send(m.ChunkAck(m.Verdict.OK, tuple(read_chunk(data).chunk_id for _ in range(10))))
        sender.wait_for("connected")
        receiver.hang_up()
        assert len(sender.events("cannot_connect")) == 1
        assert sender.events("connection_lost") == []


def test_damage_on_data_is_not_the_end(pair: Pair, source: Path) -> None:
    """What was sent on that connection and not acknowledged is sent again, over a new one of the same number."""
    with RawReceiver() as receiver:
        sender = start_sender(pair, source, receiver)
        control, data = receiver.needs(10)
        first = [read_chunk(data).chunk_id for _ in range(10)]
        data.send(m.ChunkAck(m.Verdict.OK, (0, 1, 2)))
        data.send_raw(bytes(100))
        again, hello = receiver.welcome(m.Role.DATA)
        data.close()
        second = [read_chunk(again).chunk_id for _ in range(7)]
        again.send(m.ChunkAck(m.Verdict.OK, tuple(second)))
        assert (first, second, hello.connection_id) == (list(range(10)), list(range(3, 10)), 0)
        assert control.expect(m.Finish).chunks == 10
        control.send(m.Complete(True))
        again.ends()
        receiver.hang_up()
        result = sender.succeeds()
    assert (result["resent_chunks"], result["reconnects"], result["sent_bytes"]) == (7, 1, 17 * KIB)


@pytest.mark.timeout(9 * UNIT)
@pytest.mark.parametrize("how", ["refusal", "abort"])
def test_codes(pair: Pair, source: Path, how: str) -> None:
    """The sender exits as CONSEQUENCES says: at once, or after trying again until it gives up; the reason is shown."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda code: check_code(pair, source, code, how), Code))


def check_code(pair: Pair, source: Path, code: Code, how: str) -> None:
    consequence = CONSEQUENCES[code]
    tries = 0
    with RawReceiver() as receiver:
        sender = start_sender(pair, source, receiver, "--give-up-after", 2)
        receiver.patience(0.1)
        while sender.process.poll() is None:
            try:
                link, hello, welcome = receiver.hello()
            except (TimeoutError, Ended):
                continue
            tries += hello.role is m.Role.CONTROL
            reason = "because of\x1b[31m a test\n"
            link.send(*([m.Refusal(code, reason)] if how == "refusal" else [welcome, m.Abort(code, reason)]))
            link.end_writing()
        expected = "busy" if code is Code.BUSY else "timeout" if consequence.retryable else code.name.lower()
        status = "refused" if consequence.exit_code == 3 else "failed"
        message = sender.fails(consequence.exit_code, expected, status=status)
    assert "because of" in message
    assert message.isprintable()
    assert (tries > 1) == consequence.retryable, code


def test_receiver_that_does_not_know_the_token(pair: Pair, source: Path) -> None:
    """It asks for the token, and can't prove that it has it: exit 3, and not a byte of the file was sent."""
    with RawReceiver(TOKEN) as receiver:
        sender = pair.sender(source, receiver.address, env={"FILESTREAMER_TOKEN": TOKEN})
        link, _, _ = receiver.hello()
        link.send(m.Welcome(bytes(32)))
        with pytest.raises(Ended):
            link.read()
        sender.fails(3, "token", status="refused")


def test_another_incarnation_for_data(pair: Pair, source: Path) -> None:
    """The name leads to two receivers: no chunk goes to the other one, and the error says so in the end."""
    with RawReceiver() as receiver:
        sender = start_sender(pair, source, receiver, "--give-up-after", 1)
        control, _, _ = receiver.control()
        control.send(m.Needed((), (m.SegmentRange(0, 0, 10),)))
        receiver.patience(0.5)
        first, received = receiver.incarnation, 0
        while sender.process.poll() is None:
            receiver.incarnation = bytes(16)
            try:
                link, hello, welcome = receiver.hello()
                if hello.role is m.Role.CONTROL:
                    link.close()
                    continue
                link.send(welcome)
                received += len(link.rest())
            except (TimeoutError, Ended):
                continue
        assert (received, first != bytes(16)) == (0, True)
        assert "several receivers" in sender.fails(1, "timeout")


def test_refused_is_a_word_of_the_receiver() -> None:
    """`Refused` and its like carry their code's consequence."""
    assert (Refused(Code.BUSY, "").retryable, Refused(Code.BUSY, "").exit_code) == (True, 1)
